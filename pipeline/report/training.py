"""Training curves of the base and of all students."""

from __future__ import annotations

import numpy as np
import polars as pl

from pipeline.report.blocks import Block, Note, Section
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
)
"""Columns of a student's history that are drawn where some student has them."""

Curve = tuple[np.ndarray, np.ndarray]


def training(run: Run) -> Section:
    """Validation Dice by step of all students, what else was watched, and the training of the base."""
    blocks: list[Block] = []
    base = run.curve("base", ("model", "best"))
    histories = {name: run.curve(name) for name in run.params.students}
    start = base.filter((pl.col("model") == "base") & (pl.col("best") == "true"))["validation_dice"]
    if histories:
        caption = "Validation Dice of all students, in points. The dotted line is the base that they start from."
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
        panels: dict[str, dict[str, Curve]] = {}
        for measure in MEASURES:
            seen = {name: _curve(history, measure) for name, history in histories.items()}
            if seen := {name: curve for name, curve in seen.items() if len(curve[0])}:
                panels[measure] = seen
        if panels:
            caption = (
                "Averages between evaluations. Losses of different objectives do not compare. kl_outside and "
                "volume_ratio show drift where the pairs say nothing: they should stay near 0 and near 1."
            )
            blocks.append(curves(panels, list(histories), f"Line charts of {', '.join(panels)}. {caption}", caption))
    else:
        blocks.append(Note(["params.yaml has no students."]))
    models = base["model"].unique(maintain_order=True).to_list()
    of_base = {
        title: {name: _curve(base.filter(pl.col("model") == name), column, scale) for name in models}
        for title, column, scale in (("loss", "loss", 1.0), ("validation Dice, points", "validation_dice", 100.0))
    }
    caption = "Training of the base and its companions on the labelled split; a mean teacher also sees the pool."
    blocks.append(curves(of_base, models, f"Line charts. {caption}", caption, columns=2, size=(4.8, 2.8)))
    how = (
        "A student that rises and then falls is over-optimised: compare its peak with its end. Curves that still rise "
        "for the base mean that it was not at its plateau, and then continued training alone looks like a gain."
    )
    return Section("training", "Training curves", how, blocks)


def _curve(history: pl.DataFrame, column: str, scale: float = 1.0) -> Curve:
    """Steps and values of a column, without the evaluations that lack it."""
    rows = history.select("step", column).drop_nulls() if column in history.columns else history.clear()
    return rows["step"].to_numpy(), (rows[column] * scale).to_numpy() if len(rows) else np.zeros(0)
