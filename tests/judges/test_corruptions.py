"""Corruptions of masks: each kind by what it must leave alone, and all of them by how far they go."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.judges.learning import corruptions
from pipeline.judges.learning.corruptions import corrupted, radius_of
from pipeline.measures.overlap import dice_to
from pipeline.seeding import numpy_generator
from tests.fixtures.phantoms import disc

ROUND = disc((32, 32), 6).astype(np.uint8)
"""A disc of radius 6, far from every edge."""
RING = np.where(disc((32, 32), 3) == 1, 2, ROUND).astype(np.uint8)
"""The same, with class 2 within class 1."""
SEEDS = range(12)


def test_radius_of_a_square_and_a_cube():
    """25 pixels fill a disc of radius sqrt(25 / pi) = 2.82, 27 voxels a ball of radius (81 / 4 pi)^(1/3) = 1.86."""
    square = np.zeros((9, 9), np.uint8)
    square[2:7, 2:7] = 1
    assert radius_of(square) == pytest.approx((25 / np.pi) ** 0.5)
    assert radius_of(np.ones((3, 3, 3), np.uint8)) == pytest.approx((81 / (4 * np.pi)) ** (1 / 3))


def test_radius_of_nothing_is_an_eighth_of_the_shortest_edge():
    assert radius_of(np.zeros((64, 16), np.uint8)) == 2
    assert radius_of(np.zeros((4, 4), np.uint8)) == 1


@pytest.mark.parametrize("seed", SEEDS)
def test_an_outline_shrinks_or_grows_and_keeps_borders_between_classes(seed):
    found = corruptions.outline(RING, 3, numpy_generator(seed))
    inside, before = found > 0, RING > 0
    assert (inside <= before).all() or (inside >= before).all()
    assert (inside != before).any()
    assert (found[inside & before] == RING[inside & before]).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_translated_mask_is_the_same_elsewhere(seed):
    """A disc of radius 6 moves by at most its radius: it stays within 32 pixels."""
    found = corruptions.translated(RING, 3, numpy_generator(seed))
    assert np.bincount(found.ravel()).tolist() == np.bincount(RING.ravel()).tolist()
    step = np.round(np.argwhere(found).mean(0) - np.argwhere(RING).mean(0)).astype(int)
    assert np.abs(step).max() <= 6
    assert (np.roll(RING, step, (0, 1)) == found).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_an_elastic_shift_stays_near(seed):
    """At most three standard deviations of half a radius, beside the mask."""
    found = corruptions.elastic(RING, 3, numpy_generator(seed))
    assert set(np.unique(found)) <= {0, 1, 2}
    assert not found[disc((32, 32), 6 + 9) == 0].any()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_missing_part_only_takes_away(seed):
    found = corruptions.part_missing(RING, 3, numpy_generator(seed))
    gone = found != RING
    assert gone.any()
    assert not found[gone].any()


def test_one_of_two_components_goes():
    """In three of four draws, whichever it is; else a part of them."""
    two = np.zeros((20, 20), np.uint8)
    two[2:5, 2:5], two[10:18, 10:18] = 1, 2
    left = [np.unique(corruptions.part_missing(two, 3, numpy_generator(seed))).tolist() for seed in range(30)]
    assert [0, 1] in left
    assert [0, 2] in left


@pytest.mark.parametrize("seed", SEEDS)
def test_a_false_component_only_adds_one_class(seed):
    found = corruptions.false_component(RING, 4, numpy_generator(seed))
    new = found != RING
    assert (RING[new] == 0).all()
    assert len(np.unique(found[new])) <= 1


@pytest.mark.parametrize("seed", SEEDS)
def test_a_swap_leaves_the_foreground_as_a_whole(seed):
    found = corruptions.swapped(RING, 3, numpy_generator(seed))
    assert ((found > 0) == (RING > 0)).all()
    assert (found != RING).any()


def test_dice_spreads_from_gross_errors_to_hardly_visible_ones():
    draw = numpy_generator("spread")
    dice = dice_to(ROUND, np.stack([corrupted(ROUND, 2, draw) for _ in range(200)]), 2)
    assert np.histogram(dice, 5, (0, 1))[0].min() >= 5
    assert (dice > 0.9).sum() >= 20
    assert (dice == 0).any()


def test_an_empty_mask_gets_false_foreground_or_stays_empty():
    draw = numpy_generator("empty")
    found = [corrupted(np.zeros((16, 16), np.uint8), 2, draw).any() for _ in range(150)]
    assert set(found) == {True, False}
    assert np.mean(found) > 0.9


@settings(max_examples=60)
@given(
    shape=st.sampled_from([(1, 1), (1, 9), (8, 5), (3, 4, 5), (6, 1, 7)]),
    classes=st.integers(2, 4),
    fill=st.sampled_from(["noise", "full", "empty", "unknown"]),
    seed=st.integers(0, 2**32),
)
def test_any_mask_stays_a_mask(shape, classes, fill, seed):
    """Shape, type, declared classes and exactly the voxels that are 255; the input stays; equal draws, equal masks."""
    draw = numpy_generator("any", seed)
    mask = {
        "noise": draw.integers(classes, size=shape),
        "full": np.full(shape, classes - 1),
        "empty": np.zeros(shape),
        "unknown": np.full(shape, 255),
    }[fill].astype(np.uint8)
    mask[draw.random(shape) < 0.2] = 255
    before = mask.copy()
    found = corrupted(mask, classes, numpy_generator(seed))
    assert (found.shape, found.dtype) == (shape, np.uint8)
    assert ((found == 255) == (mask == 255)).all()
    assert found[found != 255].max(initial=0) < classes
    assert (mask == before).all()
    assert (corrupted(mask, classes, numpy_generator(seed)) == found).all()
