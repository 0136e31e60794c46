"""First screen of the page in words: is there a better model, which judge to take, and what to do next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.measures.numbers import decimal
from pipeline.promotion.record import PromotionRecord
from pipeline.report.arms import Results, shown_student
from pipeline.report.cells import inline
from pipeline.report.next_steps import next_steps
from pipeline.report.run import Run
from pipeline.report.step_numbers import Numbers, best_judge

SHOWN = 3
"""Number of next steps that the first screen shows. All further steps are folded."""
ON_TEST = {1: "Yes", 0: "Not shown on test", -1: "No"}
"""Answer for a promoted student by the sign of its gain over the base on test."""


@dataclass(frozen=True)
class Headline:
    """The answers of a run. Every text is a few sentences."""

    model: str
    judge: str
    steps: Sequence[str]
    """What to do next, the most important first."""

    @classmethod
    def of(cls, run: Run, results: Results) -> Headline:
        numbers = Numbers.of(run)
        return cls(_model(run, results), _judge(run, numbers), next_steps(numbers))

    @property
    def first_steps(self) -> Sequence[str]:
        return self.steps[:SHOWN]

    @property
    def further_steps(self) -> Sequence[str]:
        return self.steps[SHOWN:]


def _model(run: Run, results: Results) -> str:
    """Whether a student is better than the base: the decision on validation, and the gains on test."""
    record = run.promotion
    if not results.students:
        return "params.yaml has no students, so no model was compared with the base."
    if record.promoted is None:
        best = shown_student(run)
        measured = "" if best is None else f" Best on validation, measured on test: {_gains(run, results, best.name)}"
        return f"{record.reason}{measured}{_considered(record)}"
    one = next(one for one in results.students if one.name == record.promoted)
    over_base = record.student(record.promoted).over_base
    said = [f"{ON_TEST[one.arm.gain.sign]}: {_gains(run, results, one.name)}"]
    if results.supervised and one.arm is not results.supervised and not one.better and one.arm.gain.sign == 1:
        said.append(f"It is not shown to beat continued training ('{results.supervised.name}').")
    bound = None if over_base.lower_bound is None else 100 * over_base.lower_bound
    said.append(
        f"Validation chose it: {decimal(100 * over_base.gain, 2, signed=True)} on {record.patients} {run.units}, "
        f"with a lower bound of {decimal(bound, 2, signed=True)}."
    )
    return " ".join(said) + _considered(record)


def _considered(record: PromotionRecord) -> str:
    """Who was considered, and what the decision is not corrected for. Empty without a candidate."""
    names = [f"'{student.name}'" for student in record.students if student.candidate]
    if not names:
        return ""
    return (
        f" Candidates: {', '.join(names)}. Earlier runs and rounds on the same validation cases are not corrected for."
    )


def _gains(run: Run, results: Results, name: str) -> str:
    """Gains of a student on test over the base and over the rivals."""
    one = next(one for one in results.students if one.name == name)
    parts = [f"{inline(one.arm.gain, signed=True)} Dice points over the base"]
    if one.over_supervised and results.supervised:
        parts.append(f"{inline(one.over_supervised, signed=True)} over '{results.supervised.name}'")
    if one.over_proposal and results.proposal:
        passes = run.passes(results.proposal)
        cost = "" if passes is None else f" ({passes} passes)" if passes > 1 else " (1 pass)"
        parts.append(
            f"{inline(one.over_proposal, signed=True)} over the fixed proposal '{results.proposal.name}'{cost}"
        )
    listed = ", ".join(parts[:-1]) + f" and {parts[-1]}" if len(parts) > 1 else parts[0]
    patients = run.evaluated("base")["group"].n_unique()
    return f"student '{name}' gains {listed}, on {patients} test {run.units}."


def _judge(run: Run, numbers: Numbers) -> str:
    """Which judge to take, with its lift, and the advice of the audit."""
    found = best_judge(numbers.judges)
    if found is None:
        if not run.params.judge_names:
            return "params.yaml has no judges and no score tables."
        return "None: the audit measured no judge that a user could have."
    measured = (
        f"{inline(found.over_fixed, signed=True)} Dice points against the best fixed sampler and "
        f"{inline(found.lift, signed=True)} against the base, on {found.cases} validation cases"
    )
    said = (
        f"'{found.name}': its top picks are {measured}."
        if found.over_fixed.sign == 1
        else f"None is shown to beat the best fixed sampler. '{found.name}' has the largest lift: its top picks are "
        f"{measured}."
    )
    return f"{said} Audit: {found.advice}."
