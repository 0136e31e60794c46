"""What to do next, by explicit rules on the numbers of a run. Every sentence holds the numbers that its rule has read.

The rules read validation alone, because what to do next is a choice. Test cases are for reporting.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pipeline.audit.verdicts import HEADROOM
from pipeline.measures.numbers import decimal, points
from pipeline.promotion.record import Considered
from pipeline.report.cells import inline
from pipeline.report.step_numbers import Numbers, best_judge

MOST = 4
"""Largest factor by which a rule asks for more validation patients. A gain that needs more is too small to wait for."""


def next_steps(numbers: Numbers) -> list[str]:
    """Sentences of all rules that apply, the most important first."""
    return [said for rule in RULES if (said := rule(numbers)) is not None]


def _label_more_to_promote(numbers: Numbers) -> str | None:
    """Validation has too few patients to promote any candidate."""
    record = numbers.promotion
    if record.patients >= record.knobs.min_patients or not any(one.candidate for one in record.students):
        return None
    return (
        f"Label more validation cases: validation has {record.patients} patients, and a promotion needs "
        f"{record.knobs.min_patients} (promotion.min_patients)."
    )


def _imitate_the_fixed_proposal(numbers: Numbers) -> str | None:
    """A fixed proposal beats the base, and is better than every trained student."""
    fixed = numbers.fixed
    if fixed is None or fixed.lift.mean is None or fixed.lift.sign < 1:
        return None
    gains = {name: numbers.gain(name) for name in numbers.students}
    best = max(gains, key=lambda name: gains[name], default=None)
    if best is not None and gains[best] >= fixed.lift.mean:
        return None
    against = "no student was trained" if best is None else f"the best student, '{best}', gains {_signed(gains[best])}"
    if fixed.imitated_by:
        curves = {name: numbers.students[name].curve for name in fixed.imitated_by if name in numbers.students}
        early = next((name for name, curve in curves.items() if curve.best < curve.last), None)
        how = "more steps or images"
        if early is not None:
            how = f"a lower learning rate ('{early}' was best at step {curves[early].best} of {curves[early].last})"
        action = f"Bring {_names(fixed.imitated_by)} nearer to the target '{fixed.name}' by {how}"
    elif fixed.has_arm:
        action = f"Let a student imitate the proposal '{fixed.name}' (kind: imitate)"
    else:
        action = f"Add the proposal '{fixed.name}' as an arm (kind: proposal) and a student of it (kind: imitate)"
    return f"{action}: untrained it gains {inline(fixed.lift, signed=True)} Dice points on validation, and {against}."


def _train_the_base_longer(numbers: Numbers) -> str | None:
    """The best evaluation of the base is its last."""
    curve = numbers.base
    if curve is None or curve.best != curve.last:
        return None
    before = max(step for step in curve.dice if step < curve.last)
    return (
        f"Train the base longer (base.optimisation.steps): it was best at its last step, {curve.last}, with validation "
        f"Dice {points(curve.dice[curve.last])} after {points(curve.dice[before])} at step {before}. Until then a gain "
        "may come from longer training alone."
    )


def _make_other_proposals(numbers: Numbers) -> str | None:
    """The audit shows no headroom."""
    high = numbers.headroom.high
    if high is None or high >= HEADROOM:
        return None
    return (
        f"Add samplers (propose.samplers): the best proposals are {inline(numbers.headroom, signed=True)} Dice points "
        f"above the base, less than {points(HEADROOM)}, so no judge can find much better masks."
    )


def _change_the_judge(numbers: Numbers) -> str | None:
    """Students trained on pairs of a judge that is not shown to beat the base."""
    doubtful = [
        (name, used, judge)
        for name, used in numbers.used.items()
        if (judge := numbers.judge(used.judge)) is not None and judge.lift.sign < 1
    ]
    if not doubtful:
        return None
    name, used, judge = doubtful[0]
    better = next((one for one in numbers.judges if one.lift.sign == 1), None)
    instead = f"judge '{better.name}' is ({inline(better.lift, signed=True)})" if better else "no other judge is"
    others = f" The same holds for {len(doubtful) - 1} more." if len(doubtful) > 1 else ""
    return (
        f"Do not train {_names(used.students)} on pair set '{name}': judge '{judge.name}' is not shown to beat the "
        f"base (lift {inline(judge.lift, signed=True)} Dice points), and {instead}.{others}"
    )


def _change_what_teaches_nothing(numbers: Numbers) -> str | None:
    """Students on pool images were best before any training."""
    flat = {}
    for name, one in numbers.students.items():
        later = max(dice for step, dice in one.curve.dice.items() if step)
        if one.uses_pool and one.curve.best == 0 and later <= one.curve.dice[0]:
            flat[name] = one.curve, later
    if not flat:
        return None
    curve, later = next(iter(flat.values()))
    return (
        f"Change the pairs or targets of {_names(tuple(flat))}: training on them never raised validation Dice, which "
        f"was {points(curve.dice[0])} at step 0 of {curve.last} and at most {points(later)} later."
    )


def _use_the_better_judge(numbers: Numbers) -> str | None:
    """A judge beats the best fixed proposal, and no student trained on its pairs."""
    best = best_judge(numbers.judges)
    if best is None or best.over_fixed.sign < 1 or any(used.judge == best.name for used in numbers.used.values()):
        return None
    return (
        f"Train on pairs of judge '{best.name}': its top picks are {inline(best.over_fixed, signed=True)} Dice points "
        "above the best fixed proposal, and no pair set of a student has this judge."
    )


def _label_more_to_show_a_gain(numbers: Numbers) -> str | None:
    """The gain of a candidate is above 0, and its lower bound is not.

    The distance between gain and bound shrinks with the square root of the number of patients.
    """
    record = numbers.promotion
    near: dict[str, tuple[int, Considered]] = {}
    for one in record.students:
        gain, bound = one.over_base.gain, one.over_base.lower_bound
        if record.promoted is None and bound is not None and gain > 0 >= bound:
            # One patient more than the number whose bound is 0.
            near[one.name] = int(record.patients * ((gain - bound) / gain) ** 2) + 1, one
    if not near:
        return None
    needed, student = min(near.values(), key=lambda found: found[0])
    over_base = student.over_base
    if needed > MOST * record.patients:
        return None
    return (
        f"Label validation cases of about {needed} patients instead of {record.patients}: '{student.name}' gains "
        f"{_signed(over_base.gain)} Dice points with a lower bound of {_signed(over_base.lower_bound)}, which would "
        "then be above 0 if gain and spread stay the same."
    )


def _train_students_longer(numbers: Numbers) -> str | None:
    """Students were best at their last evaluation."""
    rising = {name: one.curve for name, one in numbers.students.items() if one.curve.best == one.curve.last}
    if not rising:
        return None
    curve = next(iter(rising.values()))
    verb = "was" if len(rising) == 1 else "were"
    return (
        f"Train students longer (training.optimisation.steps): {_names(tuple(rising))} {verb} best at the last step, "
        f"{curve.last}, with validation Dice {points(curve.dice[curve.last])} after {points(curve.dice[0])} at step 0."
    )


def _use_the_promoted_student(numbers: Numbers) -> str | None:
    """A student was promoted. The next round needs headroom."""
    name, headroom = numbers.promotion.promoted, numbers.headroom
    if name is None:
        return None
    use = f"Use '{name}' (segpref predict)"
    if headroom.high is None or headroom.high < HEADROOM:
        return f"{use}."
    return (
        f"{use}, or start the next round from it (segpref next-round): the best proposals are "
        f"{inline(headroom, signed=True)} Dice points above the base."
    )


def _add_continued_training(numbers: Numbers) -> str | None:
    """No arm tells a gain of preferences from a gain of longer training."""
    if numbers.continued or not numbers.students:
        return None
    count = len(numbers.students)
    return (
        "Add the student 'supervised: {pairs: none, objective: {kind: supervised}}': without it, a gain of "
        f"{'the trained student' if count == 1 else f'the {count} trained students'} may come from longer training "
        "alone."
    )


def _repeat_with_another_seed(numbers: Numbers) -> str | None:
    """One run says nothing about the spread between trainings."""
    return (
        "Repeat the run with another seed, and compare both (segpref compare): 1 seed does not show how much "
        "results vary between trainings."
    )


RULES: tuple[Callable[[Numbers], str | None], ...] = (
    _label_more_to_promote,
    _imitate_the_fixed_proposal,
    _train_the_base_longer,
    _make_other_proposals,
    _change_the_judge,
    _change_what_teaches_nothing,
    _use_the_better_judge,
    _label_more_to_show_a_gain,
    _add_continued_training,
    _use_the_promoted_student,
    _train_students_longer,
    _repeat_with_another_seed,
)
"""Rules, the most important first."""


def _names(names: Sequence[str]) -> str:
    """The first name, and how many more there are."""
    return f"'{names[0]}'" + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _signed(value: float | None) -> str:
    """Dice points with two decimals, as on validation everywhere."""
    return decimal(None if value is None else 100 * value, 2, signed=True)
