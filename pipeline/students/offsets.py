"""Offsets of a trained student, fitted on cases with labels."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.segmenter.logits import probability
from pipeline.segmenter.offsets import chosen_thresholds, dice_at_thresholds, offset_of, overlaps_at_thresholds
from pipeline.segmenter.segmenter import Segmenter
from pipeline.store.cases import LabelledCases


def fitted_offsets(segmenter: Segmenter, cases: LabelledCases) -> dict[str, Any]:
    """Fields of `StudentRecord`: `offsets`, their `thresholds`, and a note if there are too few patients to fit on."""
    dice, cases = [], cases.known()
    for image, label in zip(cases.images, cases.labels, strict=True):
        parts = [
            overlaps_at_thresholds(probability(logits).cpu(), label[where]) for where, logits in segmenter.bands(image)
        ]
        dice.append(dice_at_thresholds(np.sum(parts, axis=0)))
    choice = chosen_thresholds(np.stack(dice), [case.group for case in cases.cases])
    return {
        "offsets": tuple(offset_of(threshold) for threshold in choice.thresholds),
        "thresholds": choice.thresholds,
        "threshold_note": choice.note,
    }
