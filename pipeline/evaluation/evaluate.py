"""Stages `evaluate` and `validate`: metrics per case and class, and on test cases a summary and the metrics of DVC."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pipeline.errors import BadInput
from pipeline.evaluation.metrics import Evaluation, case_metrics
from pipeline.evaluation.prediction import Measured, Predictions, predictions
from pipeline.execution import CaseFailures, Runtime, Shard, run, shards_of
from pipeline.measures.intervals import Interval, bootstrap_interval, mean_over_groups
from pipeline.measures.overlap import mask_dice
from pipeline.store import schema
from pipeline.store.cases import Case, CaseStore, is_known
from pipeline.store.manifest import MANIFEST, write_json
from pipeline.store.proposals import Data
from pipeline.store.tables import read_table, write_table
from pipeline.workspace import workspace

Predict = Callable[[Case], np.ndarray]
"""A checkpoint that predicts: from a case to a label map u8 `[*space]` on the grid of the source image."""

BOOTSTRAP_SEED = 0
"""Seed of the resamples. A fixed seed makes the intervals of all models and all runs resample the same patients."""
SHARD = 16
"""Number of cases that one task measures."""

METRICS = ("dice", "nsd", "hd95", "assd")
"""Metrics that are always measured. `f1` of components is measured too if `evaluation.components` is true."""

VOLUME_ERRORS = ("volume_error", "absolute_volume_error")
"""Metrics of classes with a truth, null for all others."""

UNITLESS = ("dice", "f1")
"""Metrics that do not depend on the unit. Their mean may cover cases measured in mm and cases measured in px."""


def evaluate(
    cases: CaseStore, rows: Sequence[Case], sustained: Sequence[Predict], best: Predict | None, knobs: Evaluation
) -> pl.DataFrame:
    """Table of `schema.EVALUATION` of the cases in `rows`.

    A case whose truth is unknown everywhere is not measured, and has no rows. The base segmenter has one sustained
    checkpoint and no `best`. Raises `BadInput` with the failures of all cases together.
    """
    n_classes = len(cases.class_names)
    failures = CaseFailures()
    found: list[dict] = []
    for case in rows:
        with failures.of(case.case_id):
            truth = cases.truth(case)
            if not is_known(truth):
                continue
            predictions = [predict(case) for predict in sustained]
            peak = None if best is None else best(case)
            found += rows_of(case, truth, predictions, peak, n_classes, knobs)
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
    """Rows of `schema.EVALUATION` of one case, one per foreground class. All masks are u8 on the source's grid.

    Metrics are means over the sustained predictions, which come from the checkpoints of the last fifth of a student's
    evaluations. `prediction_empty` is true if at least one sustained prediction is empty. `dice_peak` is the Dice of
    `best`, or `dice` without `best`. Raises `BadInput` naming the case for predictions of another shape.
    """
    for mask in (*sustained, *(() if best is None else (best,))):
        if mask.shape != truth.shape:
            raise BadInput(
                f"case '{case.case_id}': expected a prediction of the truth's shape {truth.shape}, found {mask.shape}; "
                "bring the prediction back to the grid of the source image first"
            )
    each = [case_metrics(mask, truth, n_classes, case.original_spacing_mm, knobs) for mask in sustained]
    names = (*METRICS, "f1") if knobs.components else METRICS
    known = truth != schema.UNKNOWN
    rows = []
    for checkpoints in zip(*each, strict=True):
        row = {"case_id": case.case_id, "group": case.group, **checkpoints[0]}
        for name in (*names, *(() if row["truth_empty"] else VOLUME_ERRORS)):
            row[name] = float(np.mean([checkpoint[name] for checkpoint in checkpoints]))
        row["prediction_empty"] = any(checkpoint["prediction_empty"] for checkpoint in checkpoints)
        label = row["class"]
        row["dice_peak"] = row["dice"] if best is None else mask_dice((best == label) & known, truth == label)
        rows.append(row)
    return rows


def summary(evaluation: pl.DataFrame, base: pl.DataFrame | None, knobs: Evaluation, unmeasured: int = 0) -> dict:
    """Contents of `evaluation/NAME.json` from a table of `schema.EVALUATION`. `base` adds the paired comparison.

    `unmeasured` is the number of test cases whose truth is unknown everywhere. They have no rows and no other effect.
    The value of a case is the mean over its classes. Means are over patients, and intervals resample patients. If some
    cases are measured in mm and others in px, NSD and distances have no common unit, and their means are null. `f1` and
    `component_overlap` exist only if components were measured in every row. The gain in F1 exists only if components
    were measured for the base too. Raises `BadInput` for an empty table, and if base and student were measured on
    different cases or classes.
    """
    if evaluation.is_empty() and unmeasured:
        raise BadInput(
            f"evaluation: expected a test case whose truth has a known voxel, found {schema.UNKNOWN} (unknown) "
            f"everywhere in all {unmeasured} test cases; correct their labels"
        )
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
        "unmeasured": unmeasured,
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


def flat_metrics(content: Mapping[str, Any]) -> dict[str, float]:
    """At most six numbers of a `summary`, the content of `metrics/NAME.json`, which DVC shows as columns.

    Keys: `dice`, `gain`, `gain_low` and `gain_high` (Dice over the base with its 95 % interval), `hd95` (mm or px) and
    `cases`. A number that is unknown or does not apply is left out, because a metric of DVC is a number.
    """
    gain = content.get("gain_over_base", {}).get("dice", {})
    numbers = {
        "dice": content["dice"]["mean"],
        "gain": gain.get("mean"),
        "gain_low": gain.get("low"),
        "gain_high": gain.get("high"),
        "hd95": content["hd95"]["mean"],
        "cases": content["cases"],
    }
    return {name: value for name, value in numbers.items() if value is not None}


def _names(evaluation: pl.DataFrame) -> tuple[str, ...]:
    """Names of the metrics that every row has."""
    return METRICS if evaluation["f1"].null_count() else (*METRICS, "f1")


def means_per_case(evaluation: pl.DataFrame) -> pl.DataFrame:
    """Mean of each metric over the classes of a case, with the group, one row per case, sorted by case id.

    `evaluation` is a table of `schema.EVALUATION`.
    """
    means = [pl.col(name).mean() for name in (*_names(evaluation), "dice_peak", "absolute_volume_error")]
    return evaluation.group_by("case_id").agg(pl.col("group").first(), *means).sort("case_id")


def gain_per_case(evaluation: pl.DataFrame, base: pl.DataFrame) -> pl.DataFrame:
    """Metrics of each case minus the metrics of the base segmenter, with the group, sorted by case id.

    Both tables are of `schema.EVALUATION`. The metric of a case is the mean over its classes. Raises `BadInput` if the
    tables differ in cases or classes.
    """
    key = list(schema.EVALUATION.key)
    student_only, base_only = evaluation.join(base, key, "anti"), base.join(evaluation, key, "anti")
    if differing := student_only.height + base_only.height:
        example = pl.concat([student_only.select(key), base_only.select(key)]).row(0)
        raise BadInput(
            f"evaluation: expected the cases and classes of the base segmenter ({base.height} rows), found "
            f"{evaluation.height} rows, and {differing} rows are in one table only, e.g. {example}; "
            "measure both on the same split with `dvc repro`"
        )
    student, reference = means_per_case(evaluation.sort(key)), means_per_case(base.sort(key))
    shared = [name for name in _names(evaluation) if name in reference.columns]
    return student.select("case_id", "group", *(pl.col(name) - reference[name] for name in shared))


def worst_5_percent(per_case: pl.DataFrame) -> float:
    """Mean Dice of the worst 5 % of the cases. The number of cases is rounded down and at least one."""
    return float(np.mean(np.sort(per_case["dice"])[: max(1, per_case.height // 20)]))


def cases_worse(gain: pl.DataFrame, knobs: Evaluation) -> int:
    """Number of cases whose gain in Dice is below -`worse_by`."""
    # The tolerance keeps out a case at exactly `worse_by`: .90 - .92 is below -.02 in binary fractions.
    return int((gain["dice"] < -knobs.worse_by - 1e-9).sum())


def _interval(per_case: pl.DataFrame, name: str, knobs: Evaluation) -> Interval:
    return bootstrap_interval(per_case[name].to_numpy(), per_case["group"].to_list(), knobs.bootstrap, BOOTSTRAP_SEED)


def _intervals(per_case: pl.DataFrame, comparable: Mapping[str, bool], knobs: Evaluation) -> dict[str, dict]:
    """Mean and 95 % interval of each metric. Null if the values of a metric have no common unit."""
    unknown = Interval(None, None, None)
    found = {name: _interval(per_case, name, knobs) if kept else unknown for name, kept in comparable.items()}
    return {name: value._asdict() for name, value in found.items()}


def mean_over_patients(per_case: pl.DataFrame, name: str) -> float:
    """Mean of a metric over patients of the mean over the cases of a patient."""
    return mean_over_groups(per_case[name].to_numpy(), per_case["group"].to_list())


def _of_class(rows: pl.DataFrame, comparable: Mapping[str, bool]) -> dict[str, float | None]:
    """Means over patients for one class, and the Dice of the class over the cases with the class in the truth."""
    with_truth = rows.filter(~pl.col("truth_empty"))
    return {
        **{name: mean_over_patients(rows, name) if kept else None for name, kept in comparable.items()},
        "dice_with_truth": None if with_truth.is_empty() else mean_over_patients(with_truth, "dice"),
    }


def _empty(evaluation: pl.DataFrame) -> dict[str, int]:
    """Numbers of empty masks over cases and classes.

    `missed`: at least one prediction is empty, and the truth is not. `invented`: the truth is empty, and at least one
    prediction is not, so that the Dice is below 1.
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
        # An arm that takes a proposal runs no network, and importing torch takes longer than all of its metrics.
        if not self.predictions.take_proposals:
            import torch

            # One thread for any number of workers, because the number of threads changes results in the last bits.
            torch.set_num_threads(1)
        return evaluate(self.cases, shard.members, self.predictions.sustained, self.predictions.best, self.knobs)


@dataclass(frozen=True)
class EvaluationFiles:
    """Folder of a base or of a student, and files of the results."""

    model: Path
    table: Path
    """`evaluation/NAME.parquet`."""
    metrics: Path
    """`metrics/NAME.json`."""

    @property
    def summary(self) -> Path:
        """`evaluation/NAME.json`, beside the table."""
        return self.table.with_suffix(".json")


def evaluate_model(
    name: str, data: Data, files: EvaluationFiles, base: Path | None, knobs: Evaluation, runtime: Runtime
) -> dict[str, Any]:
    """Measure a base or a student on the test cases: write the table, its summary, and the metrics that DVC shows.

    `base` is the evaluation of the base segmenter, for the paired comparison. Proposals are read only for an arm that
    takes a proposal. Returns the summary.
    """
    _measure(name, "test", data, files.model, files.table, knobs, runtime)
    reference = None if base is None else read_table(base, schema.EVALUATION)
    rows = read_table(files.table, schema.EVALUATION)
    unmeasured = len(data.cases.split("test")) - rows["case_id"].n_unique()
    content = summary(rows, reference, knobs, unmeasured)
    write_json(files.summary, content)
    write_json(files.metrics, flat_metrics(content))
    return content


def validate_model(name: str, data: Data, model: Path, table: Path, knobs: Evaluation, runtime: Runtime) -> None:
    """Measure a base, or the last weights of a student, on the validation cases: write `validation/NAME.parquet`.

    Proposals are read only for an arm that takes a proposal.
    """
    _measure(name, "validation", data, model, table, knobs, runtime)


def _measure(
    name: str, split: Measured, data: Data, model: Path, table: Path, knobs: Evaluation, runtime: Runtime
) -> None:
    """Measure the model in a folder on the cases of a split: write a table of `schema.EVALUATION`."""
    cases, compute = data.cases, runtime.compute
    found = predictions(model, data, compute, split)
    inputs = [cases.folder / MANIFEST, model / MANIFEST]
    if found.take_proposals:
        inputs.append(data.proposals.folder / MANIFEST)
    title = f"{'evaluate' if split == 'test' else 'validate'} {name}"
    with workspace(title.replace(" ", "_"), __name__, (knobs, compute), inputs) as work:
        task = _Evaluating(cases, found, knobs)
        rows = run(task, shards_of(cases.split(split), SHARD), work, runtime.execution, title)
        write_table(rows, schema.EVALUATION, table, (knobs, compute))
