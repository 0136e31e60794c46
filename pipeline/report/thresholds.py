"""Section on the fitted thresholds of sampler `mean`: Dice of labelled cases against the threshold, and the choice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.measures.numbers import decimal, points
from pipeline.proposals.fit_thresholds import tried_by
from pipeline.report.blocks import Block, Figure, Note, Section, Table
from pipeline.report.figures import Banded, banded_curves
from pipeline.report.run import Run
from pipeline.segmenter.offsets import THRESHOLDS, threshold_curve

ALL = "base and members"
"""Models whose proposals are cut at the thresholds that were fitted on all labelled cases."""


def thresholds(run: Run) -> Section | None:
    """Curve of Dice against the threshold, the fitted thresholds, and notes. None if no sampler fits a threshold."""
    if not run.fitted:
        return None
    notes = [_in_words(name, fit) for name, fit in run.fitted.items()]
    blocks: list[Block] = [Note(notes), *_curves(run), _table(run)]
    how = (
        "A sampler of kind 'mean' cuts the mean probability at one threshold per foreground class. The thresholds are "
        "fitted on labelled cases, by models that have not seen these cases. Look for a curve that is flat at the "
        "chosen threshold. A steep end of the curve means that the best threshold may lie outside the range that was "
        "tried."
    )
    return Section("thresholds", "Fitted thresholds", how, blocks)


def _in_words(name: str, fit: Mapping[str, Any]) -> str:
    if fit["note"]:
        return f"Sampler '{name}': {fit['note']}."
    return f"Sampler '{name}': the thresholds were fitted on {fit['patients']} labelled patients."


def _curves(run: Run) -> list[Figure]:
    """Figure with one panel per sampler and one line per foreground class. No figure if no threshold was tried."""
    if run.tried is None:
        return []
    classes = run.cases.class_names[1:]
    panels: dict[str, dict[str, Banded]] = {}
    spoken = []
    for name, fit in run.fitted.items():
        if name not in run.tried["sampler"]:
            continue
        dice, cases = tried_by(run.tried, name)
        panels[name] = {}
        for of_class, title, chosen in zip(dice.swapaxes(0, 1), classes, fit["thresholds"], strict=True):
            curve = threshold_curve(of_class, cases["group"].to_list())
            panels[name][title] = Banded(np.array(THRESHOLDS), 100 * curve.mean, 100 * curve.error, chosen)
            best, at = int(curve.mean.argmax()), THRESHOLDS.index(chosen)
            spoken.append(
                f"{name}, {title}: Dice {points(curve.mean[best])} at the best threshold {THRESHOLDS[best]:g}, and "
                f"{points(curve.mean[at])} at the chosen threshold {chosen:g}"
            )
    if not panels:
        return []
    caption = (
        "Mean Dice of the labelled patients, out of fold, against the threshold of one class; all other classes have "
        "one half. The band is one standard error of the difference to the best threshold, over the same patients. The "
        "point is the chosen threshold: the one nearest to one half whose band reaches the top of the line, or one "
        "half if nothing was fitted."
    )
    alt = f"Line charts. {'; '.join(spoken)}. {caption}"
    return [banded_curves(panels, classes, "threshold", "Dice, points", alt, caption)]


def _table(run: Run) -> Table:
    classes = run.cases.class_names[1:]
    rows = [
        [name, models, *(decimal(threshold, 2) for threshold in thresholds)]
        for name, fit in run.fitted.items()
        for models, thresholds in ((ALL, fit["thresholds"]), *sorted(fit["folds"].items()))
    ]
    note = (
        f"Proposals of '{ALL}' are cut at the threshold that was fitted on all labelled cases. Out-of-fold proposals "
        "of a fold are cut at the threshold that was fitted without the cases of the fold."
    )
    return Table("Fitted thresholds by models", ["sampler", "models", *classes], rows, frozenset({1}), note=note)
