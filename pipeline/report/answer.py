"""The answer of a run: test results of every arm, and its gain over the arms that it has to beat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pipeline.measures.numbers import NO_VALUE, Estimate, decimal, percent, points
from pipeline.report.arms import ComparedArm, Results, first_of_family, has_f1
from pipeline.report.audit_measures import RESEARCH
from pipeline.report.blocks import Block, Cell, Figure, Note, Section, Table
from pipeline.report.cells import cell, inline
from pipeline.report.figures import forest
from pipeline.report.run import Arm, Run
from pipeline.segmenter.student_record import anchor_terms

CAPTION = "Every arm on test"
"""Caption of the table of the first screen."""


def gains_table(run: Run, results: Results) -> Table | None:
    """Every arm against the base, continued training and the best fixed proposal. None without a student."""
    if not results.students:
        return None
    columns = [
        *("arm", "over base"),
        *(["over supervised"] if results.supervised else []),
        *(["over fixed proposal"] if results.proposal else []),
        *("test Dice", "cases worse", "passes"),
    ]
    rows: list[list[Cell | str]] = []
    for one in results.arms:
        passes, metrics = run.passes(one.arm), one.arm.metrics
        rows.append(
            [
                Cell(one.name, tag=RESEARCH if one.arm.research else ""),
                _gain(one.over_base, one.better),
                *([_gain(one.over_supervised, one.better)] if results.supervised else []),
                *([_gain(one.over_proposal, one.better)] if results.proposal else []),
                cell(Estimate.read(metrics["dice"])),
                f"{metrics['cases_worse']} of {metrics['cases']}" if one.arm.student else NO_VALUE,
                Cell(decimal(passes, 0), why="unknown" if passes is None else ""),
            ]
        )
    rival = f"'{results.supervised.name}'" if results.supervised else "the base"
    meanings = {
        "test Dice": "Mean over the checkpoints of the last fifth of a student's training, in points.",
        "cases worse": "Cases that lost more Dice than evaluation.worse_by "
        f"({results.arms[0].arm.metrics['worse_by']:g}) against the base.",
        "passes": "Forward passes of a network that one prediction needs. Compare arms with equal numbers of passes. A "
        "dash: unknown, as for masks of other tools.",
        "\N{BLACK UP-POINTING TRIANGLE}": f"The arm is better: the interval of its gain over {rival} lies above 0.",
        "\N{BLACK DOWN-POINTING TRIANGLE}": "The interval of the gain lies below 0.",
    }
    note = _comparison_note(run, results)
    return Table(CAPTION, columns, rows, note=note, groups=first_of_family(results.arms), meanings=meanings)


def answer(run: Run, results: Results) -> Section:
    """Forest plot of gains, further test results, and the recipe of each arm with its preference push."""
    blocks: list[Block] = []
    if results.students:
        blocks += [_forest(results), _further_table(results), _recipe_table(run, results), _push_table(run)]
    else:
        blocks += [
            Note(["params.yaml has no students, so there is nothing to compare with the base."]),
            _further_table(results),
        ]
    how = (
        f"Results are means over the {run.units} of the test split. Dice is in points (100 is perfect). Brackets hold "
        "the 95 % interval."
    )
    return Section("answer", "Results on test", how, blocks)


def _forest(results: Results) -> Figure:
    """Forest plot of the gains over the base and over each rival."""
    students = results.students
    panels = {"over the base": {_title(one): one.over_base for one in students}}
    if results.supervised:
        panels[f"over '{results.supervised.name}'"] = {_title(one): one.over_supervised for one in students}
    if results.proposal:
        panels[f"over '{results.proposal.name}'"] = {_title(one): one.over_proposal for one in students}
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


def _gain(gain: Estimate | None, better: bool) -> Cell | str:
    """Cell of a gain. A gain above 0 is marked only for an arm that is better."""
    if gain is None:
        return NO_VALUE
    found = cell(gain, signed=True)
    return found if better or found.sign < 0 else replace(found, sign=0)


def _comparison_note(run: Run, results: Results) -> str:
    """What the arms are compared with, how many there are, and what an interval does not say."""
    count = len(results.students)
    parts = ["Gains are in Dice points, with 95 % intervals."]
    if results.supervised:
        parts.append(_continued(run, results, results.supervised))
    if results.proposal:
        taken = run.record(results.proposal.name).proposal
        several = sum(_kind(one.arm) == "proposal" for one in results.arms) > 1
        parts.append(
            f"The fixed proposal is '{results.proposal.name}'"
            + (f" ({taken})" if taken else "")
            + (", the best such arm on validation." if several else ".")
        )
    parts.append(
        f"{count} arms were compared. Their intervals are not corrected for this number."
        if count > 1
        else "One arm was compared."
    )
    if any(one.arm.research for one in results.arms):
        parts.append(f"An arm marked '{RESEARCH}' learned from truth of the pool.")
    if unmeasured := results.arms[0].arm.metrics["unmeasured"]:
        parts.append(f"Not measured: {unmeasured} test cases whose truth is unknown everywhere.")
    return " ".join(parts)


def _continued(run: Run, results: Results, supervised: Arm) -> str:
    """Steps of continued training, and of the arms with another number of steps."""
    steps = {one.name: run.record(one.name).steps for one in results.students}
    own = steps[supervised.name]
    others = [f"'{name}' {count}" for name, count in steps.items() if count not in (0, own)]
    said = f"'{supervised.name}' is {own} steps of training continued on the labels"
    return f"{said}. Other arms trained other numbers of steps: {', '.join(others)}." if others else f"{said}."


def _kind(arm: Arm) -> str | None:
    return arm.student.objective.kind if arm.student else None


def _further_table(results: Results) -> Table:
    """Dice, peak, drop, surface distances, F1, empty masks and the gap recovered of all arms."""
    arms = results.arms
    first = arms[0].arm.metrics
    unit, f1 = first["distance_unit"], has_f1([one.arm for one in arms])
    ceiling = next((one for one in arms if _kind(one.arm) == "full"), None)
    columns = [
        *("arm", "Dice", "peak", "drop", "NSD", f"HD95, {unit}", f"ASSD, {unit}", *(["F1"] if f1 else [])),
        *("missed", "invented", *(["gap recovered"] if ceiling else [])),
    ]
    meanings = {
        "Dice": "Mean over the checkpoints of the last fifth of a student's training.",
        "peak": "Dice at the student's best validation step.",
        "drop": "Peak minus Dice.",
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
    if ceiling:
        meanings["gap recovered"] = (
            f"Left out, because the gain of '{ceiling.name}' is not shown to be above 0."
            if gap_recovered(0.0, ceiling.over_base) is None
            else f"Gain over the base as a share of the gain of '{ceiling.name}'."
        )
    rows = [
        [one.name, *_further(one.arm, f1), *([percent(_recovered(one, ceiling))] if ceiling else [])] for one in arms
    ]
    return Table("Further test results of all arms", columns, rows, meanings=meanings)


def _recovered(one: ComparedArm, ceiling: ComparedArm) -> float | None:
    if one is ceiling or one.over_base is None:
        return None
    return gap_recovered(one.over_base.mean, ceiling.over_base)


def _recipe_table(run: Run, results: Results) -> Table:
    """What each student learned from, and its best step."""
    columns = ["arm", "best step", "pairs", "images", "pair set", "judge", "objective", "anchor"]
    rows: list[list[Cell | str]] = []
    for one in results.students:
        record = run.record(one.name)
        steps = f"{record.best_step} of {record.steps}" if record.steps else NO_VALUE
        counts = [decimal(record.pairs_mined, 0), decimal(record.images, 0)]
        rows.append([one.name, steps, *counts, *_recipe(one.arm)])
    meanings = {
        "best step": "Step with the best validation Dice, of the steps that were trained. A dash: not trained.",
        "images": "Pool images of the training.",
    }
    return Table("Recipe of each student", columns, rows, frozenset(range(4, len(columns))), meanings=meanings)


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
        cell(Estimate.read(metrics["dice"])),
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
            ]
        )
    columns = [
        *("arm", "beta", "beta on its own scale", "aimed shift", "base margin on D", "flipped share"),
        "mean |D|, voxels",
    ]
    note = (
        "D: voxels on which chosen and rejected differ. An aimed shift far below the base margin cannot flip decisions "
        "of the base."
    )
    meanings = {
        "beta on its own scale": "Factor of the summed log-ratio divided by the normaliser, without matching.",
        "aimed shift": "Mean change of the logits on D at which the link is satisfied. With error rates of the pairs "
        "or voxels, each has its own.",
        "base margin on D": "Median difference of the base's two largest logits.",
        "flipped share": "Share of D on which the student predicts another class than the base.",
    }
    return Table("Preference push on each student", columns, rows, folded=True, note=note, meanings=meanings)
