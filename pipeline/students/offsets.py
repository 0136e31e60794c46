"""Offsets of a trained student, fitted on cases with labels, or on proposals of pool cases."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np

from pipeline.seeding import numpy_generator
from pipeline.segmenter.logits import probability
from pipeline.segmenter.offsets import chosen_thresholds, dice_at_thresholds, offset_of, overlaps_at_thresholds
from pipeline.segmenter.segmenter import Segmenter
from pipeline.store.cases import Case, LabelledCases, Values, Where
from pipeline.store.proposals import Data

MOST = 200
"""Largest number of pool cases that offsets are fitted on, because every case takes a forward pass. A few cases more or
less may move the choice by one step of the thresholds."""


def offsets_of_labels(segmenter: Segmenter, cases: LabelledCases) -> dict[str, Any]:
    """Fields of `StudentRecord`: `offsets`, their `thresholds`, and a note if there are too few patients to fit on.

    The thresholds are those with the best Dice to the labels of the cases.
    """
    cases = cases.known()
    labels = (label.__getitem__ for label in cases.labels)
    return _fitted(segmenter, zip(cases.cases, cases.images, labels, strict=True))


def offsets_of_proposal(segmenter: Segmenter, data: Data, proposal: str, seed: int) -> dict[str, Any]:
    """Offsets at which the masks of pool cases agree best with a proposal, by its name. No label is read.

    Strong views and soft losses move the probabilities of a student, and a threshold moves its masks back to what the
    student learned. At most `MOST` cases of the pool are used, drawn from `seed`. Fields as of `offsets_of_labels`.
    """
    pool = data.cases.split("pool")
    drawn = sorted(numpy_generator(seed, "offsets").permutation(len(pool))[:MOST].tolist())

    def rows() -> Iterable[_Row]:
        for case in (pool[index] for index in drawn):
            mask = partial(data.proposals.named_mask, case, proposal)
            yield case, data.cases.image_for(case, segmenter.window), mask

    return _fitted(segmenter, rows())


_Row = tuple[Case, Values, Callable[[Where], np.ndarray]]
"""A case, its image, and a function that reads a box of its label map."""


def _fitted(segmenter: Segmenter, rows: Iterable[_Row]) -> dict[str, Any]:
    dice, groups = [], []
    for case, image, mask in rows:
        parts = [
            overlaps_at_thresholds(probability(logits).cpu(), mask(where)) for where, logits in segmenter.bands(image)
        ]
        dice.append(dice_at_thresholds(np.sum(parts, axis=0)))
        groups.append(case.group)
    choice = chosen_thresholds(np.stack(dice), groups)
    return {
        "offsets": tuple(offset_of(threshold) for threshold in choice.thresholds),
        "thresholds": choice.thresholds,
        "threshold_note": choice.note,
    }
