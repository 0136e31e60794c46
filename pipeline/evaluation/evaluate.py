"""Tables of test metrics per case and class, and their summary `metrics/NAME.json`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from pipeline.errors import BadInput
from pipeline.evaluation.metrics import Evaluation, case_metrics
from pipeline.evaluation.prediction import FixedProposal, Predictions, predictions
from pipeline.execution import CaseFailures, Runtime, Shard, run, shards_of, workspace
from pipeline.measures.intervals import Interval, bootstrap_interval, group_means
from pipeline.measures.overlap import mask_dice
from pipeline.store import schema
from pipeline.store.cases import Case, CaseStore
from pipeline.store.manifest import MANIFEST, write_json
from pipeline.store.proposals import Data
from pipeline.store.tables import read_table, write_table

Predict = Callable[[Case], np.ndarray]
"""A checkpoint at work: label map u8 `[*space]` of a case on the grid of its source image."""

BOOTSTRAP_SEED = 0
"""Intervals of all models resample the same patients, whatever the seed of the run."""
SHARD = 16
"""Test cases measured in one task."""

METRICS = ("dice", "nsd", "hd95", "assd")
"""Always measured; `f1` of components joins them where `evaluation.components` asks for it."""

UNITLESS = ("dice", "f1")
"""Metrics with a mean over cases of which some are measured in mm and others in px."""


def evaluate(
    cases: CaseStore, rows: Sequence[Case], sustained: Sequence[Predict], best: Predict | None, knobs: Evaluation
) -> pl.DataFrame:
    """Rows of `schema.EVALUATION` for these cases; the base segmenter is one sustained checkpoint without a best.

    Raises `BadInput` with the failures of all cases together.
    """
    n_classes = len(cases.class_names)
    failures = CaseFailures()
    found: list[dict] = []
    for case in rows:
        with failures.of(case.case_id):
            predictions = [predict(case) for predict in sustained]
            peak = None if best is None else best(case)
            found += rows_of(case, cases.truth(case), predictions, peak, n_classes, knobs)
    failures.raise_any()
    return pl.DataFrame(found, schema=schema.EVALUATION.columns)


def rows_of(
    case: Case,
    truth: np.ndarray,
    sustained: Sequence[np.ndarray],
    best: np.ndarray | None,
    n_classes: int,
    knobs: Evaluation,
) -> list[dict]:
    """Rows of `schema.EVALUATION` of one case, one per foreground class; all masks u8 on the source's grid.

    Metrics are means over the sustained predictions (checkpoints of the last fifth of a student's evaluations);
    `prediction_empty` holds if any of them is empty. `dice_peak` is the Dice of the best checkpoint, or `dice` if
    there is none. Raises `BadInput` naming the case for predictions of another shape.
    """
    for mask in (*sustained, *(() if best is None else (best,))):
        if mask.shape != truth.shape:
            raise BadInput(
                f"case '{case.case_id}': expected a prediction of the truth's shape {truth.shape}, found {mask.shape}; "
                "bring it back to the grid of the source image first"
            )
    each = [case_metrics(mask, truth, n_classes, case.original_spacing_mm, knobs) for mask in sustained]
    names = (*METRICS, "f1") if knobs.components else METRICS
    known = truth != schema.UNKNOWN
    rows = []
    for checkpoints in zip(*each, strict=True):
        row = {"case_id": case.case_id, "group": case.group, **checkpoints[0]}
        for name in (*names, *(() if row["truth_empty"] else ("volume_error",))):
            row[name] = float(np.mean([checkpoint[name] for checkpoint in checkpoints]))
        row["prediction_empty"] = any(checkpoint["prediction_empty"] for checkpoint in checkpoints)
        label = row["class"]
        row["dice_peak"] = row["dice"] if best is None else mask_dice((best == label) & known, truth == label)
        rows.append(row)
    return rows


def summary(evaluation: pl.DataFrame, base: pl.DataFrame | None, knobs: Evaluation) -> dict:
    """Contents of `metrics/NAME.json` from a table of `schema.EVALUATION`; `base` adds the paired comparison.

    A case's value is the mean over its classes, the mean is over patients, intervals resample patients.
    Where some cases are measured in mm and others in px, NSD and distances have no common unit: their means are null.
    `f1` and `component_overlap` are there only where components were measured in every row, the gain in F1 only where
    they were for the base too.
    Raises `BadInput` for an empty table and where base and student were measured on different cases.
    """
    if evaluation.is_empty():
        raise BadInput("evaluation: expected at least one test case, found none; check `splits` in params.yaml")
    evaluation = evaluation.sort(schema.EVALUATION.key)
    units = evaluation["distance_unit"].cast(pl.String).unique().to_list()
    comparable = {name: len(units) == 1 or name in UNITLESS for name in _names(evaluation)}
    per_case = means_per_case(evaluation)
    with_truth = means_per_case(evaluation.filter(~pl.col("truth_empty")))
    peak, sustained = mean_over_patients(per_case, "dice_peak"), mean_over_patients(per_case, "dice")
    content: dict = {
        **_intervals(per_case, comparable, knobs),
        "dice_with_truth": _interval(with_truth, "dice", knobs)._asdict(),
        "absolute_volume_error": _interval(with_truth, "absolute_volume_error", knobs)._asdict(),
        "classes": {
            str(label): _of_class(evaluation.filter(pl.col("class") == label), comparable)
            for label in evaluation["class"].unique().sort()
        },
        "peak": peak,
        "sustained": sustained,
        "drop": peak - sustained,
        "worst_5_percent": worst_5_percent(per_case),
        "empty": _empty(evaluation),
        "cases": per_case.height,
        "groups": per_case["group"].n_unique(),
        "nsd_tolerance": knobs.nsd_tolerance,
        "worse_by": knobs.worse_by,
        "distance_unit": units[0] if len(units) == 1 else "mixed",
    }
    if "f1" in comparable:
        content["component_overlap"] = knobs.component_overlap
    if base is not None:
        gain = gain_per_case(evaluation, base)
        shared = {name: kept for name, kept in comparable.items() if name in gain.columns}
        content["gain_over_base"] = _intervals(gain, shared, knobs)
        content["cases_worse"] = cases_worse(gain, knobs)
    return content


def _names(evaluation: pl.DataFrame) -> tuple[str, ...]:
    """Metrics that every row has."""
    return METRICS if evaluation["f1"].null_count() else (*METRICS, "f1")


def means_per_case(evaluation: pl.DataFrame) -> pl.DataFrame:
    """Means over the classes of each case, with its group, by case id; a table of `schema.EVALUATION`."""
    means = [pl.col(name).mean() for name in (*_names(evaluation), "dice_peak")]
    volume = pl.col("volume_error").abs().mean().alias("absolute_volume_error")
    return evaluation.group_by("case_id").agg(pl.col("group").first(), *means, volume).sort("case_id")


def gain_per_case(evaluation: pl.DataFrame, base: pl.DataFrame) -> pl.DataFrame:
    """Metrics of each case minus the base segmenter's, with its group, by case id; tables of `schema.EVALUATION`.

    A case's metric is the mean over its classes. Raises `BadInput` where the tables differ in cases or classes.
    """
    key = list(schema.EVALUATION.key)
    student_only, base_only = evaluation.join(base, key, "anti"), base.join(evaluation, key, "anti")
    if differing := student_only.height + base_only.height:
        example = pl.concat([student_only.select(key), base_only.select(key)]).row(0)
        raise BadInput(
            f"evaluation: expected the cases and classes of the base segmenter ({base.height} rows), found "
            f"{evaluation.height} rows of which {differing} are in one table only, e.g. {example}; "
            "evaluate both on the same test split with `dvc repro`"
        )
    student, reference = means_per_case(evaluation.sort(key)), means_per_case(base.sort(key))
    shared = [name for name in _names(evaluation) if name in reference.columns]
    return student.select("case_id", "group", *(pl.col(name) - reference[name] for name in shared))


def worst_5_percent(per_case: pl.DataFrame) -> float:
    """Mean Dice of the worst twentieth of the cases, of one case at least."""
    return float(np.mean(np.sort(per_case["dice"])[: max(1, per_case.height // 20)]))


def cases_worse(gain: pl.DataFrame, knobs: Evaluation) -> int:
    """Cases whose gain in Dice is below -`worse_by`."""
    # The margin keeps out a case at exactly `worse_by`: .90 - .92 is below -.02 in binary fractions.
    return int((gain["dice"] < -knobs.worse_by - 1e-9).sum())


def _interval(per_case: pl.DataFrame, name: str, knobs: Evaluation) -> Interval:
    return bootstrap_interval(per_case[name].to_numpy(), per_case["group"].to_list(), knobs.bootstrap, BOOTSTRAP_SEED)


def _intervals(per_case: pl.DataFrame, comparable: Mapping[str, bool], knobs: Evaluation) -> dict[str, dict]:
    """Per metric; null where its values have no common unit."""
    unknown = Interval(None, None, None)
    found = {name: _interval(per_case, name, knobs) if kept else unknown for name, kept in comparable.items()}
    return {name: value._asdict() for name, value in found.items()}


def mean_over_patients(per_case: pl.DataFrame, name: str) -> float:
    """Mean over patients of the mean over their cases."""
    return float(group_means(per_case[name].to_numpy(), per_case["group"].to_list()).mean())


def _of_class(rows: pl.DataFrame, comparable: Mapping[str, bool]) -> dict[str, float | None]:
    """Means over patients for one class, and its Dice over the cases that have it."""
    with_truth = rows.filter(~pl.col("truth_empty"))
    return {
        **{name: mean_over_patients(rows, name) if kept else None for name, kept in comparable.items()},
        "dice_with_truth": None if with_truth.is_empty() else mean_over_patients(with_truth, "dice"),
    }


def _empty(evaluation: pl.DataFrame) -> dict[str, int]:
    """Counts of empty masks over cases and classes.

    `missed`: empty in some checkpoint though the truth is not; `invented`: the reverse, which shows as Dice below 1.
    """
    truth, prediction = evaluation["truth_empty"], evaluation["prediction_empty"]
    return {
        "truth": int(truth.sum()),
        "prediction": int(prediction.sum()),
        "missed": int((prediction & ~truth).sum()),
        "invented": int((truth & (evaluation["dice"] < 1)).sum()),
    }


@dataclass(frozen=True)
class _Evaluating:
    cases: CaseStore
    predictions: Predictions
    knobs: Evaluation

    def __call__(self, shard: Shard) -> pl.DataFrame:
        import torch

        # One thread whatever the number of workers: thread counts move the last bits.
        torch.set_num_threads(1)
        return evaluate(self.cases, shard.members, self.predictions.sustained, self.predictions.best, self.knobs)


@dataclass(frozen=True)
class EvaluationFiles:
    """A trained folder, and the files of its results."""

    model: Path
    table: Path
    """`evaluation/NAME.parquet`."""
    metrics: Path
    """`metrics/NAME.json`."""


def evaluate_model(
    name: str, data: Data, files: EvaluationFiles, base: Path | None, knobs: Evaluation, runtime: Runtime
) -> None:
    """Measure a base or student folder on the test cases: `evaluation/NAME.parquet` and `metrics/NAME.json`.

    Proposals are read for an arm that takes one of them.
    """
    cases, compute = data.cases, runtime.compute
    found = predictions(files.model, data, compute)
    inputs = [cases.folder / MANIFEST, files.model / MANIFEST]
    if any(isinstance(each, FixedProposal) for each in found.sustained):
        inputs.append(data.proposals.folder / MANIFEST)
    with workspace(f"evaluate_{name}", __name__, (knobs, compute), inputs) as work:
        task = _Evaluating(cases, found, knobs)
        rows = run(task, shards_of(cases.split("test"), SHARD), work, runtime.execution, f"evaluate {name}")
        write_table(rows, schema.EVALUATION, files.table, (knobs, compute))
        reference = None if base is None else read_table(base, schema.EVALUATION)
        write_json(files.metrics, summary(read_table(files.table, schema.EVALUATION), reference, knobs))
