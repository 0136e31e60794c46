"""Section on training: curves of the base and of all students."""

from __future__ import annotations

import numpy as np
import polars as pl

from pipeline.measures.numbers import Estimate, decimal, points
from pipeline.report.blocks import Block, Cell, Figure, Note, Section, Table
from pipeline.report.cells import cell
from pipeline.report.figures import curves
from pipeline.report.run import Run

MEASURES = (
    "loss",
    "supervised",
    "rewards/margins",
    "rewards/accuracies",
    "kl_inside",
    "kl_outside",
    "volume_ratio",
    "labelled_dice",
    "validation_assd",
    "online/images_with_pair",
    "online/spread",
)
"""Columns of a student's history. A column is drawn if at least one student has values in it."""

HistoryCurve = tuple[np.ndarray, np.ndarray]


def training(run: Run) -> Section:
    """Curves of validation Dice and of the other measures of all students, and curves of the base."""
    blocks: list[Block] = []
    base = run.curve("base", ("model", "best"))
    histories = {name: run.curve(name) for name in run.params.students}
    start = base.filter((pl.col("model") == "base") & (pl.col("best") == "true"))["validation_dice"]
    if histories:
        caption = "Validation Dice of all students, in points. The dotted line is the base."
        lines = {name: _curve(history, "validation_dice", 100) for name, history in histories.items()}
        blocks.append(
            curves(
                {"validation Dice, points": lines},
                list(histories),
                f"Line chart. {caption}",
                caption,
                size=(9.6, 3.6),
                level=100 * start[0] if len(start) else None,
            )
        )
        panels: dict[str, dict[str, HistoryCurve]] = {}
        for measure in MEASURES:
            seen = {name: _curve(history, measure) for name, history in histories.items()}
            if seen := {name: curve for name, curve in seen.items() if len(curve[0])}:
                panels[measure] = seen
        blocks.append(_steadiness(run, histories))
        if panels:
            caption = (
                "Losses are averages between evaluations. Losses of different objectives cannot be compared. "
                "kl_outside and volume_ratio are of the last batch, without strong views. They show drift that the "
                "pairs do not ask for, and should stay near 0 and near 1. labelled_dice is measured on the labelled "
                "cases without augmentation. validation_assd is in mm, or in voxels if the spacing is unknown. "
                "online/images_with_pair is the share of images with two hypotheses that are at least tau apart."
            )
            blocks.append(curves(panels, list(histories), f"Line charts of {', '.join(panels)}. {caption}", caption))
    else:
        blocks.append(Note(["params.yaml has no students."]))
    if run.base_curve is not None:
        blocks.append(_of_base(base))
    of_run = "not trained in this run" if run.base_curve is None else run.base_curve.text
    how = (
        "A student whose validation Dice rises and then falls is over-optimised: compare its peak with its end. "
        f"The base was {of_run}. If a base still rises, continued training alone looks like a gain."
    )
    return Section("training", "Training curves", how, blocks)


def curve_table(run: Run) -> pl.DataFrame:
    """Validation Dice of all students at each evaluation: `model` (the student), `step` and `validation_dice`."""
    empty = pl.DataFrame(schema={"model": pl.String(), "step": pl.Int64(), "validation_dice": pl.Float64()})
    curves = [run.curve(name).with_columns(model=pl.lit(name)) for name in run.params.students]
    return pl.concat([empty, *(curve.select(empty.columns).cast(empty.schema) for curve in curves)])


def _of_base(history: pl.DataFrame) -> Figure:
    """Curves of the base and of all models that were trained beside it."""
    models = history["model"].unique(maintain_order=True).to_list()
    panels = {
        title: {name: _curve(history.filter(pl.col("model") == name), column, scale) for name in models}
        for title, column, scale in (("loss", "loss", 1.0), ("validation Dice, points", "validation_dice", 100.0))
    }
    caption = "Training of the base and its companions on the labelled split."
    if "mean_teacher" in models:
        caption += " The mean teacher also learned from the images of the pool."
    return curves(panels, models, f"Line charts. {caption}", caption, columns=2, size=(4.8, 2.8))


def _steadiness(run: Run, histories: dict[str, pl.DataFrame]) -> Table:
    """Table of over-fitting and steadiness, over the evaluations whose weights give the sustained result."""
    rows: list[list[Cell | str]] = []
    for arm in run.arms:
        if arm.student is None:
            continue
        history = histories[arm.name]
        record = run.record(arm.name)
        steps = [float(name.removeprefix("step_")) for name in record.late]
        late = history.filter(pl.col("step").is_in(steps))
        # The history measured the weights before interpolation, so its Dice is not that of interpolated weights.
        known = "labelled_dice" in late.columns and record.interpolated is None
        seen = late["labelled_dice"].mean() if known else None
        labelled = None if seen is None else float(seen)  # type: ignore[arg-type]
        test = arm.metrics["sustained"]
        spread = float(late["validation_dice"].std()) if len(late) > 1 else None  # type: ignore[arg-type]
        assd = Estimate.read(arm.metrics["assd"])
        rows.append(
            [
                arm.name,
                Cell(points(labelled), why="" if labelled is not None else "not measured on these weights"),
                points(test),
                points(None if labelled is None else labelled - test, signed=True),
                Cell(
                    decimal(None if spread is None else 100 * spread, 2),
                    why="" if spread is not None else "one evaluation",
                ),
                cell(assd, 1, 2),
            ]
        )
    return Table(
        "Over-fitting, steadiness and boundaries of the students, at the end of their training.",
        ("student", "labelled Dice", "test Dice", "gap", "late SD", "ASSD"),
        rows,
        meanings={
            "labelled Dice": "Dice on the labelled training cases, mean over the evaluations of the last fifth of "
            "training, on the working grid, in points.",
            "test Dice": "Sustained Dice on the test cases, in points.",
            "gap": "Labelled Dice minus test Dice, in points. The gap comes from over-fitting, and from resampling to "
            "the images' own grids.",
            "late SD": "Standard deviation of the validation Dice over the evaluations of the last fifth of training, "
            "in points.",
            "ASSD": f"Average symmetric surface distance on the test cases, in {run.arms[0].metrics['distance_unit']}.",
        },
    )


def _curve(history: pl.DataFrame, column: str, scale: float = 1.0) -> HistoryCurve:
    """Steps and values of a column, both f64 `[evaluation]`, without the evaluations that lack a value."""
    rows = history.select("step", column).drop_nulls() if column in history.columns else history.clear()
    return rows["step"].to_numpy(), (rows[column] * scale).to_numpy() if len(rows) else np.zeros(0)
