"""Thresholds of classes: masks and Dice by hand, and the choice nearest to one half within one standard error."""

from __future__ import annotations

from math import log

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.measures.overlap import dice_to
from pipeline.segmenter.logits import labels, probability, shifted
from pipeline.segmenter.offsets import (
    THRESHOLDS,
    chosen_thresholds,
    dice_at_thresholds,
    mask_at,
    offset_of,
    overlaps_at_thresholds,
)


def curve(**dice: float) -> np.ndarray:
    """Dice at each threshold: the given values at p20, p50, ..., and 0 elsewhere."""
    of = {int(name[1:]): value for name, value in dice.items()}
    return np.array([[of.get(round(100 * t), 0.0) for t in THRESHOLDS]])


def test_masks_of_two_classes():
    """Foreground .1 to .9: a voxel is in from its own probability on."""
    p = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=torch.float64)
    found = {t: mask_at(torch.stack([1 - p, p]), [t]).tolist() for t in (0.2, 0.5, 0.8)}
    assert found == {0.2: [0, 1, 1, 1, 1], 0.5: [0, 0, 1, 1, 1], 0.8: [0, 0, 0, 0, 1]}


def test_masks_of_three_classes():
    """.4, .25, .35 is background; class 1 at .25 has odds 3: .75 beats all. At .9 for class 2, .35 / 9 is nothing."""
    p = torch.tensor([[0.4], [0.25], [0.35]])
    assert mask_at(p, [0.5, 0.5]).item() == 0
    assert mask_at(p, [0.25, 0.5]).item() == 1
    assert mask_at(p, [0.5, 0.4]).item() == 2
    assert mask_at(torch.tensor([[0.1], [0.2], [0.7]]), [0.5, 0.9]).item() == 1


@settings(max_examples=30)
@given(st.integers(1, 3), st.lists(st.sampled_from(THRESHOLDS), min_size=3, max_size=3), st.integers(0, 1000))
def test_a_threshold_is_an_offset_on_the_logits(outputs, thresholds, seed):
    """Masks by thresholds of probabilities and by offsets of logits agree, for sigmoid and softmax heads."""
    logits = torch.randn((outputs, 5, 4), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    thresholds = thresholds[: max(1, outputs - 1)]
    moved = shifted(logits, [offset_of(t) for t in thresholds])
    if outputs == 2:
        moved = torch.stack([logits[0], logits[1] + offset_of(thresholds[0])])
    assert np.array_equal(mask_at(probability(logits), thresholds), labels(probability(moved)))


def test_dice_of_one_class_by_hand():
    """Truth: the two voxels of .9 and .6. At .5 Dice 1; at .7 one of them, 2/3; at .2 three, 4/5."""
    p = torch.tensor([0.9, 0.6, 0.3, 0.1])
    dice = dice_at_thresholds(overlaps_at_thresholds(torch.stack([1 - p, p]), np.array([1, 1, 0, 0], np.uint8)))
    assert dice.shape == (1, 19)
    by = dict(zip(THRESHOLDS, dice[0].tolist(), strict=True))
    assert (by[0.5], by[0.7], by[0.2]) == (1, pytest.approx(2 / 3), pytest.approx(4 / 5))


def test_counts_of_parts_add_up():
    p = torch.rand((3, 8, 6), generator=torch.Generator().manual_seed(0))
    p, label = p / p.sum(0), np.random.default_rng(0).integers(3, size=(8, 6)).astype(np.uint8)
    whole = dice_at_thresholds(overlaps_at_thresholds(p, label))
    parts = [overlaps_at_thresholds(p[:, rows], label[rows]) for rows in (slice(0, 3), slice(3, 8))]
    assert np.array_equal(dice_at_thresholds(np.sum(parts, axis=0)), whole)
    at = THRESHOLDS.index(0.3)
    assert whole[1, at] == dice_to(label, mask_at(p, [0.5, 0.3])[None], 3)[0]


def test_the_choice_is_nearest_to_one_half_within_one_standard_error():
    """Eight patients, best .8 on average. At .7 each loses .01: the error of the difference is 0, so .8 stays.

    With losses of -.07 and +.09 in turn the mean loss .01 is below the error .08 * sqrt(8 / 7) / sqrt(8) = .030.
    """
    alike = np.stack([curve(p80=0.9, p70=0.89, p50=0.7)] * 8)
    groups = [f"p{i}" for i in range(8)]
    assert chosen_thresholds(alike, groups) == ((0.8,), 8, None)
    turns = np.stack([curve(p80=0.8, p70=0.87 if i % 2 else 0.71, p50=0.5) for i in range(8)])
    assert chosen_thresholds(turns, groups).thresholds == (0.7,)


def test_patients_count_and_not_cases():
    """One patient has nine cases that like .2; the other seven like .8, and they are the majority."""
    dice = np.stack([curve(p20=1.0, p80=0.5)] * 9 + [curve(p20=0.5, p80=1.0)] * 7)
    groups = ["many"] * 9 + [f"p{i}" for i in range(7)]
    assert chosen_thresholds(dice, groups).thresholds == (0.8,)


def test_too_few_patients():
    found = chosen_thresholds(np.stack([curve(p80=1.0)] * 7), [f"p{i}" for i in range(7)])
    assert (found.thresholds, found.patients) == ((0.5,), 7)
    assert found.note == "expected at least 8 patients to fit a threshold on, found 7: the threshold is .5"


def test_one_half_is_no_offset():
    assert offset_of(0.5) == 0
    assert offset_of(0.2) == pytest.approx(log(4))
