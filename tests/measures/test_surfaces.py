"""Metrics on masks whose numbers can be worked by hand, and against two other implementations."""

import math
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pydantic import ValidationError
from scipy.ndimage import gaussian_filter
from skimage.measure import label

from pipeline.errors import BadInput
from pipeline.evaluation.metrics import Evaluation, case_metrics
from pipeline.measures.overlap import dice_to, disagreement, pairwise_dice
from pipeline.measures.overlap import mask_dice as dice
from pipeline.measures.surfaces import component_f1, surface_metrics
from pipeline.seeding import numpy_generator
from pipeline.store.schema import EVALUATION, UNKNOWN

KNOBS = Evaluation(nsd_tolerance=1.0)


def filled(shape: tuple[int, ...], *boxes: Any) -> np.ndarray:
    mask = np.zeros(shape, bool)
    for box in boxes:
        mask[box] = True
    return mask


def blobs(seed: int, shape: tuple[int, ...], threshold: float = 0.3) -> np.ndarray:
    field = gaussian_filter(numpy_generator(seed, "test").standard_normal(shape), 2)
    return field / field.std() > threshold


# ---- worked by hand --------------------------------------------------------------------------------------------

SQUARE = filled((12, 12), np.s_[2:6, 2:6])
SHIFTED = filled((12, 12), np.s_[2:6, 4:8])


def test_shifted_square():
    """4x4 squares two columns apart share 8 of 16 pixels: Dice 16/32.

    Of the 12 surface pixels of either, 4 are at distance 0, 4 at 1 and 4 at 2: ASSD 12/12, 95th percentile 2.
    """
    assert dice(SQUARE, SHIFTED) == 0.5
    for tolerance, right in ((0, 4), (1, 8), (2, 12)):
        nsd, hd95, assd = surface_metrics(SQUARE, SHIFTED, (1, 1), tolerance)
        assert nsd == right / 12
        assert (hd95, assd) == (2, 1)


def test_spacing_scales_each_axis():
    """Columns 3 apart, rows 1: the far side (4 pixels) is at 6, 2 pixels at 3, 2 at 1 (by row), 4 at 0: sum 32."""
    nsd, hd95, assd = surface_metrics(SQUARE, SHIFTED, (1, 3), 1)
    assert (nsd, hd95) == (6 / 12, 6)
    assert assd == pytest.approx(32 / 12)


def test_hd95_is_the_larger_direction_and_not_the_pool():
    """A 10x10 square (36 surface pixels) with an island of 3 pixels, 10 columns away.

    Towards the truth: 36 zeros and 3 tens, rank .95 * 38 = 36.1, so 10. Back: 0. Pooled: rank .95 * 74 = 70.3 of
    72 zeros and 3 tens, so 0. ASSD 30/75, and 72 of 75 surface pixels lie within 1.
    """
    truth = filled((20, 40), np.s_[5:15, 5:15])
    prediction = truth | filled((20, 40), np.s_[8:11, 24:25])
    nsd, hd95, assd = surface_metrics(prediction, truth, (1, 1), 1)
    assert (nsd, hd95, assd) == (72 / 75, 10, 30 / 75)


def test_shifted_disc():
    """Points of a circle of radius r, shifted by d, are |sqrt(r^2 + d^2 + 2 r d cos a) - r| from the other circle."""
    r, d = 20, 6
    rows, columns = np.ogrid[:60, :70]
    prediction, truth = ((rows - 30) ** 2 + (columns - centre) ** 2 <= r**2 for centre in (30, 30 + d))
    _, hd95, assd = surface_metrics(prediction, truth, (1, 1), 1)
    gap = np.abs(np.sqrt(r**2 + d**2 + 2 * r * d * np.cos(np.linspace(0, 2 * np.pi, 10_000))) - r)
    assert hd95 == pytest.approx(np.percentile(gap, 95), abs=0.5)
    assert assd == pytest.approx(gap.mean(), abs=0.25)


def test_image_border_is_surface():
    """5x5 filled to the border against its inner 3x3: 12 side pixels at 1, 4 corners at sqrt 2, and 8 back at 1."""
    _, _, assd = surface_metrics(np.ones((5, 5), bool), filled((5, 5), np.s_[1:4, 1:4]), (1, 1), 1)
    assert assd == pytest.approx((12 + 4 * math.sqrt(2) + 8) / 24)


def test_cube_around_a_voxel():
    """All 26 neighbours of a voxel at spacing (1, 2, 3) are surface; 8 corners at sqrt 14 hold rank .95 * 25.

    Sum: 2*1 + 2*2 + 4 sqrt 5 + 2*3 + 4 sqrt 10 + 4 sqrt 13 + 8 sqrt 14, and 1 back; Dice 2/28.
    """
    cube, voxel = filled((5, 5, 5), np.s_[1:4, 1:4, 1:4]), filled((5, 5, 5), np.s_[2, 2, 2])
    nsd, hd95, assd = surface_metrics(cube, voxel, (1, 2, 3), 2)
    total = 2 + 4 + 4 * math.sqrt(5) + 6 + 4 * math.sqrt(10) + 4 * math.sqrt(13) + 8 * math.sqrt(14) + 1
    assert dice(cube, voxel) == 2 / 28
    assert nsd == 5 / 27  # two at 1, two at 2, and one back
    assert hd95 == pytest.approx(math.sqrt(14))
    assert assd == pytest.approx(total / 27)


def test_distance_equal_to_the_tolerance_counts():
    """Pixels 3 and 2 at spacing 0.1 are 0.30000000000000004 - 0.2 apart, a last bit above the tolerance 0.1."""
    prediction, truth = filled((1, 5), np.s_[:, 0], np.s_[:, 3]), filled((1, 5), np.s_[:, 0], np.s_[:, 2])
    assert surface_metrics(prediction, truth, (1.0, 0.1), 0.1)[0] == 1


# ---- components ------------------------------------------------------------------------------------------------


def test_found_missed_and_invented_components():
    """Truth: 2x2, 2x2, 1x4. Found exactly; 2x2 with one row more, IoU 4/6; the line missed; one pixel invented.

    TP 2, FP 1, FN 1: F1 4/6. At an overlap of .7 the second is not found either: TP 1, FP 2, FN 2: 2/6.
    """
    truth = filled((12, 12), np.s_[0:2, 0:2], np.s_[0:2, 6:8], np.s_[8, 0:4])
    prediction = filled((12, 12), np.s_[0:2, 0:2], np.s_[0:3, 6:8], np.s_[11, 11])
    assert component_f1(prediction, truth, 0.5) == 4 / 6
    assert component_f1(prediction, truth, 0.7) == 2 / 6


@pytest.mark.parametrize(("columns", "overlap"), [(6, 0.5), (7, 0.7)])
def test_an_iou_at_the_overlap_is_no_match(columns, overlap):
    """`columns` of a line of 12 or 10 pixels: IoU exactly the overlap; one more pixel is a match."""
    length = round(columns / overlap)
    truth = filled((1, length), np.s_[:, :])
    assert component_f1(filled((1, length), np.s_[:, :columns]), truth, overlap) == 0
    assert component_f1(filled((1, length), np.s_[:, : columns + 1]), truth, overlap) == 1


def test_components_that_touch_are_one():
    """Two true squares of 9 pixels, a column apart; predicted with the gap filled, they are one component of 21.

    IoU with either is 9/21: TP 0 of 1 and 2. The other way round too. A bridge costs 3 of 21 pixels in Dice.
    """
    parted = filled((5, 9), np.s_[1:4, 1:4], np.s_[1:4, 5:8])
    merged = filled((5, 9), np.s_[1:4, 1:8])
    assert component_f1(merged, parted, 0.5) == component_f1(parted, merged, 0.5) == 0
    assert dice(merged, parted) == 36 / 39


def test_a_larger_part_may_still_match():
    """Of a true line of 10 pixels 7 and 2 are predicted: IoU 7/10 is a match, 2/10 is not: F1 2/(2 + 1)."""
    truth, prediction = filled((1, 10), np.s_[:, :]), filled((1, 10), np.s_[:, :7], np.s_[:, 8:])
    assert component_f1(prediction, truth, 0.5) == 2 / 3


@pytest.mark.parametrize("dimensions", [2, 3])
def test_corners_connect(dimensions):
    """A voxel that hangs on a square or cube by its corner is no component of its own, so no false positive."""
    shape = (5,) * dimensions
    truth = filled(shape, (slice(0, 3),) * dimensions)
    prediction = truth | filled(shape, (3,) * dimensions)
    assert component_f1(prediction, truth, 0.5) == 1


def test_f1_of_a_case_is_measured_on_request():
    """Rows 0 and 2 predicted, row 0 true, row 2 unknown: one component each. Else TP 1, FP 1: 2/3."""
    truth, prediction = np.zeros((2, 4, 4), np.uint8)
    truth[0] = 1
    prediction[[0, 2]] = 1
    assert case_metrics(prediction, truth, 2, None, KNOBS)[0]["f1"] is None
    asked = Evaluation(nsd_tolerance=1.0, components=True)
    assert case_metrics(prediction, truth, 2, None, asked)[0]["f1"] == 2 / 3
    truth[2] = UNKNOWN
    assert case_metrics(prediction, truth, 2, None, asked)[0]["f1"] == 1
    one, two = case_metrics(prediction, truth, 3, None, asked)
    assert (one["f1"], two["f1"]) == (1, 1)  # class 2 is in neither
    assert case_metrics(np.full_like(truth, 2), truth, 3, None, asked)[1]["f1"] == 0


def test_the_overlap_of_a_case_is_the_knob_s():
    """IoU 3/4 is a match above .5 and none above .8."""
    truth, prediction = np.zeros((2, 4, 4), np.uint8)
    truth[0], prediction[0, :3] = 1, 1
    for overlap, found in ((0.5, 1), (0.8, 0)):
        knobs = Evaluation(nsd_tolerance=1.0, components=True, component_overlap=overlap)
        assert case_metrics(prediction, truth, 2, None, knobs)[0]["f1"] == found


@pytest.mark.parametrize("overlap", [0.49, 1.0])
def test_overlaps_that_allow_two_matches_or_none_are_refused(overlap):
    with pytest.raises(ValidationError, match="component_overlap"):
        Evaluation.model_validate_json(f'{{"nsd_tolerance": 1.0, "component_overlap": {overlap}}}')


# ---- empty masks, unknown voxels, units ------------------------------------------------------------------------


@pytest.mark.parametrize("spacing", [(1, 1), (2, 2)])
def test_empty_masks(spacing):
    """A 3x4 image at spacing s has the diagonal 5 s."""
    empty, some = np.zeros((3, 4), bool), filled((3, 4), np.s_[1, 1])
    assert dice(empty, empty) == 1
    assert dice(empty, some) == dice(some, empty) == 0
    assert component_f1(empty, empty, 0.5) == 1
    assert component_f1(empty, some, 0.5) == component_f1(some, empty, 0.5) == 0
    assert surface_metrics(empty, empty, spacing, 1) == (1, 0, 0)
    worst = (0, 5 * spacing[0], 5 * spacing[0])
    assert surface_metrics(empty, some, spacing, 1) == worst
    assert surface_metrics(some, empty, spacing, 1) == worst


def test_single_precision_of_a_header_is_no_distance():
    """0.6 mm in single precision is 0.600000024 mm, so a surface three pixels away would be beyond 1.8 mm."""
    edge, shifted = float(np.float32(0.6)), np.roll(SQUARE, 3, axis=1)
    knobs = Evaluation(nsd_tolerance=1.8)
    (row,) = case_metrics(SQUARE.astype(np.uint8), shifted.astype(np.uint8), 2, (edge, edge), knobs)
    assert (row["nsd"], row["hd95"]) == (1, pytest.approx(1.8, abs=1e-12))


def test_case_metrics_per_class():
    """Class 1: V = 6, T = 2, shared 2: Dice 4/8, volume error 2 * 4 / 8. Class 2 was missed, 3 invented, 4 absent."""
    truth, prediction = np.zeros((2, 6, 6), np.uint8)
    truth[0, :2] = 1
    prediction[0, :6] = 1
    truth[2, 2] = 2
    prediction[4, 4] = 3
    one, two, three, four = case_metrics(prediction, truth, 5, None, KNOBS)
    assert (one["dice"], one["volume_error"], one["distance_unit"]) == (0.5, 1.0, "px")
    assert (two["class"], two["dice"], two["volume_error"]) == (2, 0, -2)
    assert (two["absolute_volume_error"], three["absolute_volume_error"]) == (2, None)
    assert (two["truth_empty"], two["prediction_empty"]) == (False, True)
    assert (three["dice"], three["volume_error"], three["hd95"]) == (0, None, math.hypot(6, 6))
    assert (three["truth_empty"], three["prediction_empty"]) == (True, False)
    assert (four["dice"], four["nsd"], four["hd95"], four["assd"], four["volume_error"]) == (1, 1, 0, 0, None)
    assert {type(value) for row in (one, two, three) for value in row.values()} == {int, float, str, bool, type(None)}
    assert set(one) == set(EVALUATION.columns) - {"case_id", "group", "dice_peak"}


def test_known_spacing_is_millimetres():
    truth, prediction = np.zeros((2, 4, 4), np.uint8)
    truth[0, 0] = prediction[0, 2] = 1
    (row,) = case_metrics(prediction, truth, 2, (1.0, 2.5), KNOBS)
    assert (row["hd95"], row["distance_unit"]) == (5.0, "mm")


def test_unknown_voxels_of_the_truth_belong_to_neither_mask():
    """What was predicted on 255 costs nothing, and a truth of nothing but 255 and background is empty."""
    truth = np.zeros((6, 6), np.uint8)
    truth[1:3, 1:3] = 1
    prediction = truth.copy()
    truth[4:] = UNKNOWN
    prediction[4:] = 1
    (row,) = case_metrics(prediction, truth, 2, None, KNOBS)
    assert (row["dice"], row["hd95"], row["volume_error"]) == (1, 0, 0)
    truth[:4] = 0
    prediction[:4] = 0
    (row,) = case_metrics(prediction, truth, 2, None, KNOBS)
    assert (row["dice"], row["truth_empty"], row["prediction_empty"]) == (1, True, True)


def test_shapes_must_agree():
    with pytest.raises(BadInput, match=r"truth's shape \(4, 4\), found \(4, 5\).*grid of the source image"):
        case_metrics(np.zeros((4, 5), np.uint8), np.zeros((4, 4), np.uint8), 2, None, KNOBS)


def test_tolerance_has_no_default():
    with pytest.raises(ValidationError, match="nsd_tolerance"):
        Evaluation.model_validate_json("{}")


# ---- properties ------------------------------------------------------------------------------------------------

two_masks = array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=6).flatmap(
    lambda shape: st.tuples(arrays(bool, shape), arrays(bool, shape))
)
label_maps = st.tuples(st.integers(1, 4), array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=5)).flatmap(
    lambda size: arrays(np.uint8, (size[0], *size[1]), elements=st.sampled_from([0, 1, 2, UNKNOWN]))
)


@given(two_masks)
def test_symmetry_identity_and_bounds(masks):
    one, other = masks
    spacing = (0.5, 1.0, 2.0)[: one.ndim]
    found = surface_metrics(one, other, spacing, 1)
    nsd, hd95, assd = found
    assert surface_metrics(other, one, spacing, 1) == pytest.approx(found)
    assert surface_metrics(one, one, spacing, 1) == (1, 0, 0)
    assert dice(one, other) == dice(other, one)
    assert 0 <= dice(one, other) <= 1
    assert 0 <= nsd <= 1
    assert 0 <= hd95 <= math.hypot(*np.multiply(one.shape, spacing))
    assert 0 <= assd <= math.hypot(*np.multiply(one.shape, spacing))


def naive_f1(one: np.ndarray, other: np.ndarray, overlap: float) -> float:
    """Every component of one mask with every component of the other."""
    first, second = (
        [found == number for number in range(1, found.max() + 1)]
        for found in (label(mask, connectivity=mask.ndim) for mask in (one, other))
    )
    matches = sum((a & b).sum() / (a | b).sum() > overlap for a in first for b in second)
    return 2 * matches / (len(first) + len(second)) if first or second else 1.0


@given(two_masks, st.sampled_from([0.5, 0.6, 0.75]))
def test_f1_equals_a_naive_loop(masks, overlap):
    one, other = masks
    assert component_f1(one, other, overlap) == naive_f1(one, other, overlap)
    assert component_f1(other, one, overlap) == component_f1(one, other, overlap)
    assert component_f1(one, one, overlap) == 1


@pytest.mark.parametrize("shape", [(60, 50), (16, 18, 20)])
def test_f1_of_many_objects_equals_a_naive_loop(shape):
    one, other = blobs(1, shape, 1.0), blobs(1, shape, 1.4)
    found = component_f1(one, other, 0.5)
    assert found == naive_f1(one, other, 0.5)
    assert 0 < found < 1


@given(two_masks, st.lists(st.integers(0, 4), min_size=3, max_size=3))
def test_translation_changes_nothing(masks, offset):
    spacing = (0.1, 0.3, 0.7)[: masks[0].ndim]
    margins = [(before, 1) for before in offset[: masks[0].ndim]]
    one, other = masks
    if one.any() and other.any():
        moved = surface_metrics(np.pad(one, margins), np.pad(other, margins), spacing, 0.3)
        assert moved == pytest.approx(surface_metrics(one, other, spacing, 0.3))


def naive_dice(one: np.ndarray, other: np.ndarray, n_classes: int) -> float:
    known = (one != UNKNOWN) & (other != UNKNOWN)
    return float(np.mean([dice((one == label) & known, (other == label) & known) for label in range(1, n_classes)]))


@given(label_maps)
def test_comparisons_of_many_masks_equal_naive_loops(masks):
    expected = np.array([[naive_dice(one, other, 4) for other in masks] for one in masks])
    np.testing.assert_allclose(pairwise_dice(masks, 4), expected, rtol=1e-12)
    np.testing.assert_allclose(dice_to(masks[0], masks, 4), expected[0], rtol=1e-12)
    counts = [[((a != b) & (a != UNKNOWN) & (b != UNKNOWN)).sum() for b in masks] for a in masks]
    found = disagreement(masks)
    assert found.dtype == np.uint32
    np.testing.assert_array_equal(found, counts)


def test_many_masks_worked_by_hand():
    """Rows of 4: A = 1122, B = 1222, C = 0000. A and B share one 1 (2/3) and two 2s (4/5): mean 11/15; C shares none.

    C with itself is empty in both classes: 1. A and B differ in 1 voxel, A and C in 4.
    """
    masks = np.array([[1, 1, 2, 2], [1, 2, 2, 2], [0, 0, 0, 0]], np.uint8)
    expected = np.array([[1, 11 / 15, 0], [11 / 15, 1, 0], [0, 0, 1]])
    np.testing.assert_allclose(pairwise_dice(masks, 3), expected)
    np.testing.assert_allclose(dice_to(masks[0], masks, 3), expected[0])
    np.testing.assert_array_equal(disagreement(masks), [[0, 1, 4], [1, 0, 4], [4, 4, 0]])


def test_counts_above_the_exact_range_of_float32():
    """2^24 + 1 voxels: float32 would lose the last one."""
    masks = np.zeros((2, 2**24 + 1), np.uint8)
    masks[0] = 1
    masks[1, 0] = 1
    np.testing.assert_array_equal(disagreement(masks), [[0, 2**24], [2**24, 0]])
    assert pairwise_dice(masks, 2)[0, 1] == 2 / (2**24 + 2)


# ---- other implementations -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "spacing"), [((48, 40), (1.0, 1.0)), ((48, 40), (0.7, 1.9)), ((18, 20, 16), (2.5, 0.8, 1.1))]
)
@pytest.mark.parametrize("seed", range(4))
def test_equal_to_monai(shape, spacing, seed):
    import torch
    from monai import metrics as monai

    masks = blobs(seed, shape), blobs(seed + 100, shape, 0.8)
    one, other = (torch.from_numpy(np.stack([~mask, mask])[None].astype(np.float32)) for mask in masks)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = (
            float(monai.compute_surface_dice(one, other, [1.9], spacing=spacing)),
            float(monai.compute_hausdorff_distance(one, other, percentile=95, spacing=spacing)),
            float(monai.compute_average_surface_distance(one, other, symmetric=True, spacing=spacing)),
        )
        overlap = float(monai.compute_dice(one, other, include_background=False))
    assert surface_metrics(masks[0], masks[1], spacing, 1.9) == pytest.approx(expected, abs=1e-5)
    assert dice(*masks) == pytest.approx(overlap, abs=1e-6)


@settings(max_examples=25)
@given(two_masks)
def test_dice_equals_deepmind(masks):
    deepmind = pytest.importorskip("surface_distance")
    if any(mask.any() for mask in masks):  # theirs is NaN for two empty masks
        assert dice(*masks) == pytest.approx(deepmind.compute_dice_coefficient(*masks))


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.5, 2.0)])
def test_hd95_equals_deepmind_for_a_far_shift(spacing):
    """A 20x20 square moved by 10 columns: more than 5 % of either surface, however it is drawn, is 10 columns away.

    DeepMind puts surfaces on the corners between voxels and weighs them by area, so other shapes give other values.
    """
    deepmind = pytest.importorskip("surface_distance")
    one, other = filled((40, 60), np.s_[10:30, 10:30]), filled((40, 60), np.s_[10:30, 20:40])
    theirs = deepmind.compute_robust_hausdorff(deepmind.compute_surface_distances(one, other, spacing), 95)
    assert surface_metrics(one, other, spacing, 1)[1] == pytest.approx(theirs)
    assert theirs == pytest.approx(10 * spacing[1])
