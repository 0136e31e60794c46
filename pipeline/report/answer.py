"""The answer of a run: test results of every arm, and its gain over the arms that it has to beat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pipeline.measures.numbers import NO_VALUE, Estimate, decimal, percent, points
from pipeline.report.arms import ComparedArm, Rivals, compared_arms, first_of_family, has_f1
from pipeline.report.audit_measures import RESEARCH
from pipeline.report.blocks import Block, Cell, Figure, Note, Section, Table
from pipeline.report.cells import cell, inline
from pipeline.report.figures import forest
from pipeline.report.run import Arm, Run
from pipeline.segmenter.student_record import anchor_terms

OVER_SUPERVISED, OVER_PROPOSAL = "gain over supervised", "gain over fixed proposal"
"""Columns of a student against the arms that it has to beat."""


def answer(run: Run) -> Section:
    """Test results of all arms by family, the forest plot of gains, and the preference push on each student."""
    rivals = Rivals.of(run)
    arms = compared_arms(run, rivals)
    blocks: list[Block] = [Note(run.base_notes)] if run.base_notes else []
    blocks.append(_arms_table(run, arms, rivals))
    if len(arms) > 1:
        blocks += [_forest(arms, rivals), _further_table(arms), _push_table(run)]
    else:
        blocks.append(Note(["params.yaml has no students, so there is nothing to compare with the base."]))
        blocks.append(_further_table(arms))
    rival = f"'{rivals.supervised.name}'" if rivals.supervised else "the base"
    how = (
        "Dice is the mean over the patients of the test split, in points (100 is perfect). Brackets hold the 95 % "
        f"interval. An arm is better only if the interval of its gain over {rival} lies above 0. The gains of a better "
        "arm are bold with \N{BLACK UP-POINTING TRIANGLE}. A gain whose interval lies below 0 is bold with "
        "\N{BLACK DOWN-POINTING TRIANGLE}."
    )
    return Section("answer", "Results of training on preferences", how, blocks)


def _forest(arms: list[ComparedArm], rivals: Rivals) -> Figure:
    """Forest plot of the gains over the base and over each rival."""
    students = [compared for compared in arms if compared.arm.student]
    panels = {"over the base": {_title(one): one.over_base for one in students}}
    if rivals.supervised:
        panels[f"over '{rivals.supervised.name}'"] = {_title(one): one.over_supervised for one in students}
    if rivals.proposal:
        panels[f"over '{rivals.proposal.name}'"] = {_title(one): one.over_proposal for one in students}
    spoken = ". ".join(
        f"Gain {over}: " + "; ".join(f"{name} {inline(gain, signed=True)}" for name, gain in gains.items() if gain)
        for over, gains in panels.items()
    )
    return forest(
        panels,
        {_title(one) for one in students if one.better},
        f"Gains of all arms with their 95 % intervals, in Dice points. {spoken}.",
        "Gains in test Dice with their 95 % intervals. A blue filled point is a gain above 0 of a better arm. A red "
        "filled point has an interval below 0. All other points are open.",
    )


def _title(compared: ComparedArm) -> str:
    return f"{compared.name} (research)" if compared.arm.research else compared.name


def gap_recovered(gain: float | None, full: Estimate | None) -> float | None:
    """(student - base) / (full supervision - base): the gain as a share of the gain of full supervision.

    None unless the interval of the gain of full supervision lies above 0.
    """
    if gain is None or full is None or full.mean is None or full.sign != 1:
        return None
    return gain / full.mean


def _arms_table(run: Run, arms: list[ComparedArm], rivals: Rivals) -> Table:
    ceiling = next((one.arm for one in arms if one.arm.student and one.arm.student.objective.kind == "full"), None)
    full = ceiling.gain if ceiling else None
    rows = []
    for one in arms:
        student = one.arm.student is not None
        passes = run.passes(one.arm)
        gap = None if one.arm is ceiling or not student else gap_recovered(one.arm.gain.mean, full)
        rows.append(
            [
                Cell(one.name, tag=RESEARCH if one.arm.research else ""),
                Cell(decimal(passes, 0), why="unknown" if passes is None else ""),
                cell(Estimate.read(one.arm.metrics["dice"])),
                _gain(one.over_base, one.better),
                *([_gain(one.over_supervised, one.better)] if rivals.supervised else []),
                *([_gain(one.over_proposal, one.better)] if rivals.proposal else []),
                percent(gap),
                f"{one.arm.metrics['cases_worse']} of {one.arm.metrics['cases']}" if student else NO_VALUE,
                *_recipe(one.arm),
            ]
        )
    recipe = ("pair set", "judge", "objective", "anchor")
    columns = [
        *("arm", "passes", "test Dice, sustained", "gain over base"),
        *([OVER_SUPERVISED] if rivals.supervised else []),
        *([OVER_PROPOSAL] if rivals.proposal else []),
        *("gap recovered", "cases worse", *recipe),
    ]
    if ceiling is None:
        gap_text = "Left out, because no arm has the objective full."
    elif gap_recovered(0.0, full) is None:
        gap_text = f"Left out, because the gain of '{ceiling.name}' is not shown to be above 0."
    else:
        gap_text = f"Gain over the base as a share of the gain of '{ceiling.name}'."
    meanings = {
        "passes": "Forward passes of a network that one prediction needs. Compare arms with equal numbers of passes. A "
        "dash: unknown, as for masks of other tools.",
        "test Dice, sustained": "Mean over the last fifth of a student's checkpoints.",
        "gap recovered": gap_text,
        "cases worse": "Cases that lost more Dice than evaluation.worse_by "
        f"({arms[0].arm.metrics['worse_by']:g}) against the base.",
    }
    words = frozenset(columns.index(name) for name in recipe)
    groups = first_of_family(arms)
    note = _comparison_note(run, arms, rivals)
    return Table("Test results of all arms", columns, rows, words, note=note, groups=groups, meanings=meanings)


def _gain(gain: Estimate | None, better: bool) -> Cell | str:
    """Cell of a gain. A gain above 0 is marked only for an arm that is better."""
    if gain is None:
        return NO_VALUE
    found = cell(gain, signed=True)
    return found if better or found.sign < 0 else replace(found, sign=0)


def _comparison_note(run: Run, arms: list[ComparedArm], rivals: Rivals) -> str:
    """What the arms are compared with, how many there are, and what an interval does not say."""
    count = len(arms) - 1
    parts = []
    if rivals.supervised:
        parts.append(f"'{rivals.supervised.name}' is training continued on the labels, with as many steps.")
    elif count:
        parts.append(
            "The run has no arm of continued training, so a gain may come from longer training alone. Add the student "
            "'supervised: {pairs: none, objective: {kind: supervised}}'."
        )
    if rivals.proposal:
        taken = run.record(rivals.proposal.name).proposal
        several = sum(_kind(one.arm) == "proposal" for one in arms) > 1
        parts.append(
            f"The fixed proposal is '{rivals.proposal.name}'"
            + (f" ({taken})" if taken else "")
            + (", the best such arm on validation." if several else ".")
        )
    elif count:
        parts.append(
            "The run has no arm of a fixed proposal. Add the student 'best_proposal: {pairs: none, objective: "
            "{kind: proposal}}', and test to propose.splits."
        )
    if count:
        parts.append(
            f"{count} arms were compared. The intervals of single arms are not corrected for this number: among many "
            "arms, some intervals lie above 0 by chance."
            if count > 1
            else "One arm was compared."
        )
    if any(one.arm.research for one in arms):
        parts.append(f"An arm marked '{RESEARCH}' learned from truth of the pool.")
    if unmeasured := arms[0].arm.metrics["unmeasured"]:
        parts.append(f"Not measured: {unmeasured} test cases whose truth is unknown everywhere.")
    return " ".join(parts)


def _kind(arm: Arm) -> str | None:
    return arm.student.objective.kind if arm.student else None


def _further_table(arms: list[ComparedArm]) -> Table:
    """Peak, drop, surface distances, F1 and empty masks of all arms."""
    first = arms[0].arm.metrics
    unit, f1 = first["distance_unit"], has_f1([one.arm for one in arms])
    columns = [
        *("arm", "peak", "drop", "NSD", f"HD95, {unit}", f"ASSD, {unit}", *(["F1"] if f1 else [])),
        *("missed", "invented"),
    ]
    meanings = {
        "peak": "Dice at the student's best validation step.",
        "drop": "Peak minus sustained.",
        "NSD": f"Share of surface within {first['nsd_tolerance']:g} {unit}, in points.",
        f"HD95, {unit}": "95th percentile of the distances between surfaces; lower is better.",
        f"ASSD, {unit}": "Average symmetric distance between surfaces; lower is better.",
        "missed": "Masks of a case and class that are empty although the truth is not.",
        "invented": "Masks of a case and class that are not empty although the truth is.",
    }
    if f1:
        meanings["F1"] = (
            "F1 of connected components, in points. A predicted component matches a true component if their IoU is "
            f"above {first['component_overlap']:g}. Objects that touch are one component."
        )
    rows = [[one.name, *_further(one.arm, f1)] for one in arms]
    return Table("Further test results of all arms", columns, rows, meanings=meanings)


def _recipe(arm: Arm) -> list[Cell | str]:
    if arm.student is None:
        return [NO_VALUE] * 4
    paired = arm.student.objective.feeds == "pairs"
    pooled = paired or arm.student.objective.feeds == "pool"
    anchor = arm.student.anchor.model_dump(mode="json") if arm.student.anchor else None
    return [
        arm.student.pairs if paired else NO_VALUE,
        arm.judge if paired else NO_VALUE,
        objective_text(arm.student.objective.model_dump(mode="json")),
        anchor_terms(anchor) if pooled else NO_VALUE,
    ]


def objective_text(knobs: dict[str, Any]) -> str:
    """Objective in words: `link x normaliser` with the knobs of the link, or the kind of an objective without a link.

    An objective that makes its pairs during training has its kind and its ranker in front.
    """
    if "link" not in knobs:
        return f"{knobs['kind']} ({knobs['pick']})" if "pick" in knobs else knobs["kind"]
    own = ", ".join(
        f"{name} {value}" if isinstance(value, str) else f"{name} {value:g}"
        for name, value in knobs["link"].items()
        if name != "kind"
    )
    link = knobs["link"]["kind"] + (f" ({own})" if own else "")
    more = [f"dr {knobs['dr']:g}"] if knobs.get("dr") is not None else []
    more += [key.replace("_", " ") for key in ("per_class", "reference_free", "divide_by_beta") if knobs.get(key)]
    text = ", ".join([f"{link} \N{MULTIPLICATION SIGN} {knobs['normaliser']}", *more])
    if "ranker" not in knobs:
        return text
    ranker = knobs["ranker"] if isinstance(knobs["ranker"], str) else knobs["ranker"]["kind"]
    return f"{knobs['kind']} by {ranker}: {text}"


def _further(arm: Arm, f1: bool) -> list[Cell | str]:
    metrics, student = arm.metrics, arm.student is not None
    nsd, hd95, assd = (Estimate.read(metrics[name]) for name in ("nsd", "hd95", "assd"))
    return [
        points(metrics["peak"]) if student else NO_VALUE,
        points(metrics["drop"], signed=True) if student else NO_VALUE,
        cell(nsd),
        cell(hd95, 1, 1),
        cell(assd, 1, 2),
        *([cell(Estimate.read(metrics["f1"]))] if f1 else []),
        str(metrics["empty"]["missed"]),
        str(metrics["empty"]["invented"]),
    ]


def _aimed(link: Mapping[str, Any] | None) -> str:
    """What a link without one aimed shift for all pairs aims at."""
    if link is None:
        return NO_VALUE
    each = {"calibrated": "per pair", "votes": "per voxel"}.get(link.get("e", ""))
    return each if each and link["kind"] == "cdpo" else "unbounded"


def _push_table(run: Run) -> Table:
    rows: list[list[Cell | str]] = []
    for arm in run.arms[1:]:
        record = run.record(arm.name)
        objective = record.objective
        aimed = decimal(record.aimed_shift, 2) if record.aimed_shift is not None else _aimed(objective.get("link"))
        rows.append(
            [
                arm.name,
                decimal(objective.get("beta"), 2),
                f"{record.beta_own:.3g}" if record.beta_own is not None else NO_VALUE,
                aimed,
                decimal(record.base_margin_on_disagreement, 2),
                percent(record.flipped_share),
                decimal(record.mean_disagreement, 0),
                decimal(record.pairs_mined, 0),
                decimal(record.images, 0),
                f"{record.best_step} of {record.steps}",
            ]
        )
    columns = [
        *("arm", "beta", "beta on its own scale", "aimed shift", "base margin on D", "flipped share"),
        *("mean |D|, voxels", "pairs", "images", "best step"),
    ]
    note = (
        "D: voxels on which chosen and rejected differ. Beta on its own scale: factor of the summed log-ratio divided "
        "by the normaliser, without matching. Aimed shift: mean change of the logits on D at which the link is "
        "satisfied; with error rates of the pairs or voxels each has its own. Base margin on D: median difference of "
        "the base's two largest logits. An aimed shift far below the base margin cannot flip decisions of the base. "
        "Flipped share: share of D on which the student predicts "
        "another class than the base."
    )
    return Table("Preference push on each student", columns, rows, note=note)
