"""Preparation of images as in nnU-Net: numbers worked by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pydantic import ValidationError

from pipeline.cases.as_nnunet import nonzero_box, slice_axis, splined
from pipeline.cases.files import image_file
from pipeline.cases.grid import logits_to_source, on_source_grid, to_source, to_working, working_affine
from pipeline.cases.preprocess import Preprocess
from pipeline.cases.readers.reader import Source
from pipeline.errors import BadInput
from pipeline.store.cases import Case
from tests.fixtures.attached_files import write_attached
from tests.fixtures.networks import row_of


@pytest.mark.parametrize(
    ("now", "then", "axis"),
    [
        ((1, 1, 4), (1, 1, 1), 2),
        ((4, 1, 1), (1, 1, 5), 0),  # the edges before decide
        ((1, 1, 1), (1, 5, 1), 1),
        ((1, 1, 3), (1, 1, 1), None),  # not more than threefold
        ((1, 4, 4), (1, 1, 5), None),  # two longest edges
    ],
)
def test_the_axis_of_slices(now, then, axis):
    assert slice_axis(now, then) == axis


def test_the_nearest_slice_is_taken():
    """Centres of 4 new slices in 2 old ones: -0.25, 0.25, 0.75 and 1.25. Of 2 in 4: 0.5 and 2.5, the later ones."""
    values = np.arange(16, dtype=np.float32).reshape(2, 2, 4)
    found = splined(values, (4, 2, 4), 0, order=3)
    assert found == pytest.approx(values[[0, 0, 1, 1]], abs=1e-5)
    assert splined(values, (2, 2, 2), 2, order=3) == pytest.approx(values[:, :, [1, 3]], abs=1e-5)


def test_planes_are_interpolated():
    """Centres of 4 new voxels in 2 old ones: -0.25, 0.25, 0.75 and 1.25, which are the edges at both ends."""
    row = np.array([[[0.0, 4.0]]], np.float32)
    assert splined(row, (1, 1, 4), None, order=1).ravel() == pytest.approx([0, 1, 3, 4], abs=1e-6)
    assert splined(row.repeat(3, 0), (3, 1, 4), 0, order=1)[2].ravel() == pytest.approx([0, 1, 3, 4], abs=1e-6)
    assert splined(row, (1, 1, 2), None, order=1) is row


def test_splines_follow_a_curve_that_lines_cut_off():
    """The peak of a wave of 8 voxels lies between two voxels, where a line is too low by 1 - cos(pi/8) = 0.08."""
    wave = np.sin(2 * np.pi * (np.arange(32) - 1.5) / 8).astype(np.float32)[None]
    line, spline = (splined(wave, (1, 96), None, order)[0, 16:80].max() for order in (1, 3))
    assert line == pytest.approx(np.cos(np.pi / 8), abs=1e-3)
    # Splines are clipped to the values of the voxels, as in scikit-image.
    assert spline == pytest.approx(line, abs=1e-3)
    shifted = np.sin(2 * np.pi * np.arange(32) / 8).astype(np.float32)[None]
    places = (np.arange(96) + 0.5) / 3 - 0.5
    truth = np.sin(2 * np.pi * places / 8)[16:80]
    errors = [np.abs(splined(shifted, (1, 96), None, order)[0, 16:80] - truth).max() for order in (1, 3)]
    assert errors[1] < 0.01 < 0.05 < errors[0]


def case(shape: tuple[int, ...], original: tuple[int, ...], now: tuple[float, ...], then: tuple[float, ...]) -> Case:
    return replace(row_of(shape), original_shape=original, original_spacing_mm=now, spacing_mm=then)


def test_images_are_normalised_before_they_are_resampled():
    """1 and 3 become -1 and 1. Resampled first, the ends and the middle would have another deviation."""
    knobs = Preprocess(spacing=(1.0, 0.5), resample="nnunet")
    found = knobs.image(np.array([[[1.0, 3.0]]], np.float32), case((1, 4), (1, 2), (1.0, 1.0), (1.0, 0.5)))
    assert found[0, 0, [0, 3]] == pytest.approx([-1, 1], abs=1e-6)
    assert found[0, 0, 1] == pytest.approx(-found[0, 0, 2])
    assert found.std() != pytest.approx(1, abs=0.05)


def test_the_box_outside_which_an_image_is_0():
    image = np.zeros((2, 4, 5), np.float32)
    assert nonzero_box(image) == (slice(0, 4), slice(0, 5))
    image[0, 1, 3], image[1, 2, 3] = 7, -7
    assert nonzero_box(image) == (slice(1, 3), slice(3, 4))


def test_a_margin_of_zeros_is_cropped_and_comes_back():
    """Non-zero voxels in rows 1 to 3 and columns 2 to 4 of 5x6. Every second voxel edge is halved."""
    image = np.zeros((2, 5, 6), np.float32)
    image[0, 1, 2], image[1, 3, 4], image[0, 2, 3] = 1, -1, 4
    knobs = Preprocess(resample="nnunet", normalise="minmax", spacing=(1.0, 0.5))
    crop = knobs.crop(image)
    assert crop == (1, 4, 2, 5)
    assert (knobs.crop(image[:, 1:4, 2:5]), Preprocess().crop(image)) == (None, None)
    grid = knobs.grid(Source("c0", (5, 6), "", None, (1.0, 1.0)), crop)
    assert (grid.shape, grid.spacing_mm, grid.crop) == ((3, 6), (1.0, 0.5), crop)
    there = replace(case((3, 6), (5, 6), (1.0, 1.0), (1.0, 0.5)), crop=crop)
    assert there.resampled
    assert there.box == (slice(1, 4), slice(2, 5))
    assert knobs.image(image, there).shape == (2, 3, 6)

    label = np.zeros((5, 6), np.uint8)
    label[1:3, 2:4], label[4, 0] = 1, 1
    working = to_working(label, there)
    assert working.tolist() == [[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 0, 0], [0] * 6]
    inside = label * (np.arange(5)[:, None] < 4)
    assert np.array_equal(on_source_grid(working, there, 2), inside)
    probability = np.stack([1 - working, working]).astype(np.float32)
    found = to_source(probability, there)
    assert np.array_equal(found.argmax(0), inside)
    assert (found.sum(0) == 1).all()
    logits = logits_to_source(probability, there, knobs.spacing)
    assert np.array_equal(logits.argmax(0), inside)
    assert np.isneginf(logits[1, 0]).all()


def stored(folder: Path, edges: tuple[float, ...], shape: tuple[int, ...] = (2, 2, 2), ending: str = ".nii") -> Source:
    """Source of a volume in a file, in single precision as NIfTI or as text as MetaImage."""
    file = folder / f"a{ending}"
    if ending == ".nii":
        nib.save(nib.Nifti1Image(np.zeros(shape, np.uint8), np.diag([*edges, 1.0])), file)
    else:
        write_attached(file, np.zeros(shape, np.uint8), spacing_mm=edges, ElementSpacing=" ".join(map(str, edges)))
    header = image_file.header(file, "a")
    return Source("a", header.shape, file.name, None, header.spacing_mm, header.affine)


@pytest.mark.parametrize(
    ("edge", "voxels", "asked", "length", "ending"),
    [
        (1.9, 25, 1.0, 47, ".nii"),  # 47.5 voxels: in single precision 1.9 is a little less
        (1.9, 25, 1.0, 48, ".mha"),  # Python rounds 47.5 to the even number
        (0.9765625, 96, 0.5, 188, ".nii"),  # 187.5 voxels: six digits would be a little less
        (0.9765625, 96, 0.5, 188, ".mha"),
    ],
)
def test_an_edge_as_stored_decides_between_two_lengths(tmp_path, edge, voxels, asked, length, ending):
    knobs = Preprocess(resample="nnunet", spacing=(1.0, 1.0, asked))
    assert knobs.grid(stored(tmp_path, (1.0, 1.0, edge), (4, 4, voxels), ending)).shape == (4, 4, length)


@pytest.mark.parametrize(("edge", "axis"), [(0.8, 2), (0.9, 2), (0.4, 2), (0.7, None), (0.5, None)])
def test_edges_as_stored_decide_whether_slices_are_resampled_one_by_one(tmp_path, edge, axis):
    """Slices are three times as thick as pixels. In single precision the ratio is above, below or equal to 3."""
    found = stored(tmp_path, (edge, edge, 3 * edge))
    assert found.spacing_mm is not None
    assert slice_axis(found.spacing_mm, (1.0, 1.0, 1.0)) == axis


def test_logits_go_back_by_the_spacing_that_was_asked_for():
    """Plans of 1x1x3 mm are not anisotropic. Whole voxels make edges of 1x1x3.06 mm of 52 slices of 1 mm, which are."""
    there = case((2, 2, 17), (2, 2, 52), (1.0, 1.0, 1.0), (1.0, 1.0, 52 / 17))
    logits = np.arange(17, dtype=np.float32)[None, None, None].repeat(2, 1).repeat(2, 2).repeat(2, 0)
    found = logits_to_source(logits, there, (1.0, 1.0, 3.0))[0, 0, 0]
    assert found[25:28] == pytest.approx((np.arange(25, 28) + 0.5) * 17 / 52 - 0.5, abs=1e-5)
    nearest = logits_to_source(logits, there, there.spacing_mm)[0, 0, 0]
    assert nearest[25:28].tolist() == [8, 8, 8]


def test_a_crop_of_a_reoriented_case_shifts_the_affine():
    """Source voxels 2 to 5 of 8 along the first axis, which runs backwards: working voxel 0 is source voxel 5."""
    affine = (-2.0, 0, 0, 14, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1)
    there = replace(
        case((4, 2, 1), (8, 2, 1), (2.0, 1.0, 1.0), (2.0, 1.0, 1.0)),
        affine=affine, orientation=(-1, 2, 3), crop=(2, 6, 0, 2, 0, 1),
    )  # fmt: skip
    found = working_affine(there)
    assert found is not None
    assert (found @ [0, 0, 0, 1])[:3].tolist() == [14 - 2 * 5, 0, 0]
    assert (found @ [3, 1, 0, 1])[:3].tolist() == [14 - 2 * 2, 1, 0]
    label = np.zeros((8, 2, 1), np.uint8)
    label[5] = 1
    assert to_working(label, there)[:, 0, 0].tolist() == [1, 0, 0, 0]
    mask = np.zeros((4, 2, 1), np.uint8)
    mask[0] = 1
    assert np.array_equal(on_source_grid(mask, there, 2), label)


def test_nonzero_voxels_alone_are_normalised():
    """3 and 5 become -1 and 1; a zero that they enclose becomes (0 - 4) / 1 in a volume, as one of them."""
    knobs = Preprocess(resample="nnunet", normalise="zscore_nonzero")
    picture = np.array([[[3.0, 0.0, 5.0]]], np.float32)
    found = knobs.image(picture, case((1, 3), (1, 3), (1.0, 1.0), (1.0, 1.0)))
    assert found.ravel() == pytest.approx([-1, 0, 1])
    volume = np.ones((1, 3, 3, 3), np.float32)
    volume[0, 1, 1, 1] = 0
    found = knobs.image(volume, case((3, 3, 3), (3, 3, 3), (1.0,) * 3, (1.0,) * 3))
    mean, deviation = 26 / 27, (26 / 27 / 27) ** 0.5
    assert found[0, 1, 1, 1] == pytest.approx(-mean / deviation, rel=1e-5)
    with pytest.raises(ValidationError, match="'zscore_nonzero' goes with resample: nnunet"):
        Preprocess(normalise="zscore_nonzero")


def test_thick_slices_are_not_mixed():
    """Slices of 5 mm become slices of 2.5 mm: every slice twice."""
    image = np.arange(12, dtype=np.float32).reshape(1, 2, 2, 3)
    knobs = Preprocess(spacing=(1.0, 1.0, 2.5), resample="nnunet", normalise="minmax")
    found = knobs.image(image, case((2, 2, 6), (2, 2, 3), (1.0, 1.0, 5.0), (1.0, 1.0, 2.5)))
    assert found[0] == pytest.approx(image[0].repeat(2, 2) / 11, abs=1e-6)


def test_resize_is_refused():
    with pytest.raises(ValidationError, match="resample: 'nnunet' resamples to a spacing, found resize"):
        Preprocess(resize=(4, 4), resample="nnunet")


def test_logits_go_back_by_lines():
    logits = np.array([[[0.0, 4.0]], [[0.0, 0.0]]], np.float32)
    found = logits_to_source(logits, case((1, 2), (1, 4), (1.0, 1.0), (1.0, 2.0)), (1.0, 2.0))
    assert found[0, 0] == pytest.approx([0, 1, 3, 4], abs=1e-6)
    assert found[1].tolist() == [[0, 0, 0, 0]]
    with pytest.raises(BadInput, match=r"case 'c0': expected \(1, 2\) voxels, the working grid, found \(2, 2\)"):
        logits_to_source(np.zeros((2, 2, 2), np.float32), case((1, 2), (1, 4), (1.0, 1.0), (1.0, 2.0)), None)


def test_logits_of_a_reoriented_case():
    """The first axis of the source runs backwards on the working grid."""
    turned = replace(case((2, 2, 1), (4, 2, 1), (1.0, 1.0, 1.0), (2.0, 1.0, 1.0)), orientation=(-1, 2, 3))
    logits = np.array([0.0, 4.0], np.float32)[None, :, None, None].repeat(2, 2)
    assert logits_to_source(logits, turned, (2.0, 1.0, 1.0))[0, :, 0, 0] == pytest.approx([4, 3, 1, 0], abs=1e-6)
