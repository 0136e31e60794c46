"""Stage `promote`: choose on validation the student that may replace the base, or none, and say why."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from pipeline.evaluation.evaluate import gain_per_case
from pipeline.measures.intervals import group_means, simultaneous_lower_bounds
from pipeline.measures.numbers import decimal, percent, points
from pipeline.promotion.knobs import Promotion
from pipeline.promotion.record import PROMOTION_FILE, Comparison, Considered, PromotionRecord
from pipeline.segmenter.seen import SEEN
from pipeline.segmenter.student_record import STUDENT_FILE
from pipeline.store import schema
from pipeline.store.cases import INPUT
from pipeline.store.manifest import check_manifest, write_manifest
from pipeline.store.tables import read_table

BOOTSTRAP_SEED = 0
"""Seed of the resamples. A fixed seed makes the decision depend on the validation tables and knobs alone."""

TOLERANCE = 1e-9
"""Rounding error of a difference of two Dice and of a share: .90 - .92 is below -.02 in binary fractions."""

BASES = ("the base", "the first base")
"""Bases that a student is compared with, in words. In the first round there is one."""

LIMITS = (
    "The lower bounds are corrected for the candidates of this run. Earlier runs and rounds on the same validation "
    "cases are not corrected for. A base that kept its best step on these cases looks a little too good on them."
)


@dataclass(frozen=True)
class PromotionFiles:
    """Folders of the validation tables and of the students, and the folder of the result."""

    validation: Path
    students: Path
    out: Path
    """`models/promoted`."""
    first_base: Path | None = None
    """Validation table of the base of the first round, if the base of this run was itself promoted. A student must then
    beat both bases, so that small losses do not add up over the rounds."""


def promote(
    objections: Mapping[str, str | None], files: PromotionFiles, knobs: Promotion, worse_by: float
) -> PromotionRecord:
    """Decide, and write `promotion.json`. If a student is promoted, also write its `last` weights as a model folder.

    `objections` has the students in the order of `params.yaml`, as of `candidates.objections`.
    """
    base = read_table(files.validation / "base.parquet", schema.EVALUATION)
    tables = {name: read_table(files.validation / f"{name}.parquet", schema.EVALUATION) for name in objections}
    first_base = None if files.first_base is None else read_table(files.first_base, schema.EVALUATION)
    bases = [base] if first_base is None else [base, first_base]
    record = decide(objections, tables, bases, knobs, worse_by)
    # The folder of an earlier promotion may hold the weights of another student.
    if (files.out / PROMOTION_FILE).is_file():
        shutil.rmtree(files.out)
    files.out.mkdir(parents=True, exist_ok=True)
    record.save(files.out)
    if record.promoted is not None:
        _copy_model(files.students / record.promoted, files.out)
        write_manifest(files.out, (record.promoted, knobs, worse_by))
    return record


def decide(
    objections: Mapping[str, str | None],
    tables: Mapping[str, pl.DataFrame],
    bases: list[pl.DataFrame],
    knobs: Promotion,
    worse_by: float,
) -> PromotionRecord:
    """The student to promote, from validation tables of `schema.EVALUATION`, or none.

    A student is promoted if it is a candidate (no objection), if the lower bound of its gain in Dice is above 0, and if
    no more than `max_worse` of the patients lost more than `worse_by`. Of several such students, the largest lower
    bound decides, and among equal ones the order of `params.yaml`. The gain of a patient is the mean over the patient's
    cases of the mean over classes.

    `bases` holds the table of the base, and that of the first base where it is another. All conditions hold against
    each base. The bounds over all bases hold together. Raises `BadInput` if the tables differ in cases or classes.
    """
    patients = bases[0]["group"].n_unique()
    candidates = [name for name, objection in objections.items() if objection is None]
    gains = {name: np.stack([_gain_per_patient(tables[name], base) for base in bases]) for name in objections}
    bounds: dict[str, np.ndarray] = {}
    if candidates and patients >= knobs.min_patients:
        family = np.concatenate([gains[name] for name in candidates])
        low = simultaneous_lower_bounds(family, knobs.bootstrap, BOOTSTRAP_SEED).low
        bounds = dict(zip(candidates, low.reshape(len(candidates), len(bases)), strict=True))
    compared = {name: _comparisons(gains[name], bounds.get(name), worse_by) for name in objections}
    few = f"validation has {patients} patients, fewer than promotion.min_patients ({knobs.min_patients})"
    failures = {
        name: objection or (_failure(compared[name], knobs, worse_by) if name in bounds else few)
        for name, objection in objections.items()
    }
    # `max` takes the first of equal bounds.
    order = sorted(candidates, key=lambda name: -_weakest_bound(compared[name]))
    best = next((name for name in order if failures[name] is None), None)
    if best is not None:
        reason = f"Student '{best}' may replace the base: {_achievement(compared[best], len(candidates), patients)}."
    elif not order:
        why = "none of the students is a candidate" if objections else "there are no students"
        reason = f"No student may replace the base: {why}."
    else:
        why = f"student '{order[0]}' came nearest, and {failures[order[0]]}" if bounds else few
        reason = f"No student may replace the base: {why}."
    considered = [
        Considered(
            name=name,
            candidate=name in candidates,
            reason=failures[name] or ("promoted" if name == best else f"student '{best}' has a larger lower bound"),
            over_base=compared[name][0],
            over_first_base=compared[name][1] if len(bases) > 1 else None,
        )
        for name in objections
    ]
    return PromotionRecord(
        promoted=best,
        reason=reason,
        limits=LIMITS,
        patients=patients,
        knobs=knobs,
        worse_by=worse_by,
        students=tuple(considered),
    )


def _gain_per_patient(student: pl.DataFrame, base: pl.DataFrame) -> np.ndarray:
    """Gain in Dice, f64 `[patient]`, in sorted order of the patients."""
    gain = gain_per_case(student, base)
    return group_means(gain["dice"].to_numpy(), gain["group"].to_list())


def _comparisons(gains: np.ndarray, bounds: np.ndarray | None, worse_by: float) -> list[Comparison]:
    """Comparison with each base, from gains f64 `[base, patient]` and bounds f64 `[base]`, None without bounds."""
    return [
        Comparison(
            gain=float(each.mean()),
            lower_bound=None if bounds is None else float(bounds[place]),
            share_worse=float(np.mean(each < -worse_by - TOLERANCE)),
        )
        for place, each in enumerate(gains)
    ]


def _failure(compared: list[Comparison], knobs: Promotion, worse_by: float) -> str | None:
    """Why a candidate must not replace the base, in words; None if it may."""
    for found, base in zip(compared, BASES, strict=False):
        if found.lower_bound is None or not found.lower_bound > 0:
            return f"the lower bound of its gain over {base} is {_points(found.lower_bound)} Dice points, not above 0"
        if found.share_worse > knobs.max_worse + TOLERANCE:
            return (
                f"{percent(found.share_worse)} of the patients lost more than {points(worse_by)} Dice points against "
                f"{base}, more than promotion.max_worse ({percent(knobs.max_worse)})"
            )
    return None


def _weakest_bound(compared: list[Comparison]) -> float:
    return min(-np.inf if found.lower_bound is None else found.lower_bound for found in compared)


def _achievement(compared: list[Comparison], candidates: int, patients: int) -> str:
    """Gain and lower bound of the promoted student in words."""
    against = [
        f"its gain over {base} is {_points(found.gain)} Dice points, with a lower bound of {_points(found.lower_bound)}"
        for found, base in zip(compared, BASES, strict=False)
    ]
    others = f"{candidates} candidate{'s' if candidates > 1 else ''}"
    return f"{' and '.join(against)}, on {patients} validation patients and corrected for {others}"


def _points(value: float | None) -> str:
    """Dice points with two decimals, so that a bound that is not above 0 does not look as if it were."""
    return decimal(None if value is None else 100 * value, 2, signed=True)


def _copy_model(model: Path, out: Path) -> None:
    """Copy the `last` weights of a student with the files that `predict`, `export` and another round read."""
    from pipeline.segmenter.architecture import ARCHITECTURE
    from pipeline.segmenter.models import Model

    check_manifest(model, content=True)
    for name in (ARCHITECTURE, INPUT, SEEN, STUDENT_FILE):
        shutil.copy(model / name, out / name)
    weights = Model(model, "last").weights
    shutil.copy(weights, out / weights.name)
