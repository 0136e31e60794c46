"""What is measured on validation while a student is trained."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pipeline.store.cases import LabelledCases
from pipeline.students.watching import moved_on_disagreement, validation_measures
from tests.fixtures.networks import Constant, Ramp, row_of, segmenter_of
from tests.students.test_pool_batches import pairs_of, pool


def measured(window: tuple[int, ...], *spacings: tuple[float, ...] | None) -> dict[str, float | None]:
    """The network finds the lower half of 8x4; the truth is the lowest quarter."""
    truth = (np.arange(8)[:, None] >= 6).repeat(4, 1).astype(np.uint8)
    cases = [row_of((8, 4), spacing_mm=spacing) for spacing in spacings]
    images = [np.zeros((1, 8, 4), np.float32)] * len(cases)
    return validation_measures(segmenter_of(Ramp(), window), LabelledCases(cases, images, [truth] * len(cases)))


def test_dice_and_surface_distance_by_hand():
    """Dice 2 * 8 / (16 + 8) = 2/3. Surface of the prediction, rows 4 to 7: 12 voxels, of which the 4 of row
    4 are 2 away from the truth's, the 2 ends of row 5 are 1 away, the rest 0. Of the truth, rows 6 and 7: 8 voxels, of
    which the inner two of row 6 are 1 away. (8 + 2 + 2) / 20 = .6."""
    found = measured((8, 4), None)
    assert found["validation_dice"] == pytest.approx(2 / 3)
    assert found["validation_assd"] == pytest.approx(0.6)
    assert measured((8, 4), (2.0, 2.0), (2.0, 2.0))["validation_assd"] == pytest.approx(1.2)


def test_means_are_over_patients():
    """Patient p has the case of Dice 2/3 and ASSD .6 once, patient q twice a truth that is found: 1 and 0."""
    truth, found = ((np.arange(8)[:, None] >= first).repeat(4, 1).astype(np.uint8) for first in (6, 4))
    cases = [row_of((8, 4), group=group) for group in "pqq"]
    images = [np.zeros((1, 8, 4), np.float32)] * 3
    row = validation_measures(segmenter_of(Ramp(), (8, 4)), LabelledCases(cases, images, [truth, found, found]))
    assert row == {"validation_dice": pytest.approx((2 / 3 + 1) / 2), "validation_assd": pytest.approx(0.3)}


def test_a_distance_that_has_no_unit_or_would_need_a_whole_case_is_null():
    assert measured((8, 4), None, (2.0, 2.0))["validation_assd"] is None
    larger = measured((8, 2), None)
    assert larger["validation_assd"] is None
    assert larger["validation_dice"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(("at", "margin", "flipped"), [(4, math.log(3), 1.0), (39, None, None)])
def test_what_moved_where_crops_may_miss_every_disagreement(tmp_path, at, margin, flipped):
    """A disagreement of one pixel of 40. The crop of 8 at a random place holds pixel 4 with this seed, not pixel 39.

    The base predicts class 0 with the probabilities 3/4 and 1/4, and the student predicts class 1.
    """
    masks = np.zeros((2, 1, 40), np.uint8)
    masks[1, 0, at] = 1
    base = Constant(0.75, 0.25)
    crops = pool(tmp_path, [masks], pairs_of(("c0", 1, 0, 1)), (1, 8), reference=base, random_crops=1.0)
    moved = moved_on_disagreement(crops, Constant(0.25, 0.75))
    assert moved == {"base_margin_on_disagreement": pytest.approx(margin), "flipped_share": flipped}
