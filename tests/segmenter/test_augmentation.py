"""Augmentation of labelled cases: what it may change, and what it must leave alone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.errors import BadInput
from pipeline.segmenter.augmentation import Augmentation, flip
from pipeline.segmenter.batches import LabelledBatches
from pipeline.segmenter.strong_views import StrongViews
from pipeline.store.cases import LabelledCases, Volume
from tests.fixtures.builders import case_store
from tests.fixtures.networks import noise, row_of
from tests.fixtures.phantoms import disc

NOTHING: dict[str, Any] = {"flips": (), "rotate_degrees": 0.0, "scale": 0.0, "intensity": 0.0, "noise": 0.0}


def batches(
    labels: Sequence[np.ndarray],
    window: tuple[int, ...],
    images: Sequence[np.ndarray] | None = None,
    count: int = 1,
    batch: int = 1,
    seed: int = 0,
    spacing_mm: tuple[float, ...] | None = None,
    **knobs: Any,
) -> list[tuple[Tensor, Tensor]]:
    """The first batches; images are the labels as numbers unless given. All cases have the spacing `spacing_mm`."""
    if images is None:
        images = [label[None].astype(np.float32) for label in labels]
    cases = LabelledCases([row_of(label.shape, spacing_mm=spacing_mm) for label in labels], images, labels)
    stream = LabelledBatches(cases, window, Augmentation(**{**NOTHING, **knobs}), batch, seed)
    return list(islice(stream, count))


@pytest.mark.parametrize(
    ("flips", "expected"),
    [
        ((), [()]),
        ((1,), [(), (1,)]),
        ((0, 1), [(), (0,), (1,), (0, 1)]),
        ((0, 1, 2), [(), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]),
    ],
)
def test_views(flips, expected):
    assert Augmentation(flips=flips).views() == expected


@pytest.mark.parametrize("view", Augmentation(flips=(0, 1, 2)).views())
def test_a_flip_is_undone_by_itself(view):
    """In a batch with one leading axis and in one with two; the first spatial axis is the one behind them."""
    volume = torch.from_numpy(noise((3, 4, 5)))
    assert torch.equal(flip(flip(volume, view, 3), view, 3), volume)
    assert torch.equal(flip(volume[0], view, 3), flip(volume, view, 3)[0])
    expected = np.flip(volume.numpy(), tuple(axis + 1 for axis in view)) if view else volume.numpy()
    assert (flip(volume, view, 3).numpy() == expected).all()


def test_sided_classes_change_places():
    """Left (1) and right (2) on axis 1 only; 3, 0 and 255 stay."""
    knobs = Augmentation(flips=(0, 1), swap_labels=((1, 1, 2),))
    labels = torch.tensor([[0, 1, 2, 3, 255]], dtype=torch.uint8)
    assert knobs.swap(labels, (0,)).tolist() == [[0, 1, 2, 3, 255]]
    assert knobs.swap(labels, ()).tolist() == [[0, 1, 2, 3, 255]]
    assert knobs.swap(labels, (1,)).tolist() == [[0, 2, 1, 3, 255]]
    assert knobs.swap(labels, (0, 1)).tolist() == [[0, 2, 1, 3, 255]]
    assert knobs.swap(knobs.swap(labels, (1,)), (1,)).tolist() == labels.tolist()
    assert knobs.swap(labels, (1,)).dtype == torch.uint8


def test_sided_classes_in_batches():
    """Class 1 left and 2 right, before and after each flip: columns are always 1 then 2; the image tells the flip."""
    label = np.array([[1, 2]], np.uint8)
    found = batches([label], (1, 2), count=20, flips=(1,), swap_labels=((1, 1, 2),))
    assert {tuple(truth.flatten().tolist()) for _, truth in found} == {(1, 2)}
    assert {tuple(image.flatten().tolist()) for image, _ in found} == {(1.0, 2.0), (2.0, 1.0)}


@pytest.mark.parametrize("space", [(4, 6), (3, 4, 5)])
def test_no_strength_is_no_change(space):
    """All strengths 0: the case in the corner, zeros and 255 around it, its own 255 kept."""
    window = tuple(length + 2 for length in space)
    label = (disc(space, 1.5) * 2).astype(np.uint8)
    label[(0,) * len(space)] = 255
    image = noise(space)
    ((images, labels),) = batches([label], window, [image])
    real: tuple[Any, ...] = tuple(slice(0, length) for length in space)
    assert (images.dtype, labels.dtype) == (torch.float32, torch.uint8)
    expected_image, expected = np.zeros((1, 1, *window), np.float32), np.full((1, *window), 255, np.uint8)
    expected_image[(0, 0, *real)], expected[(0, *real)] = image[0], label
    assert (images.numpy() == expected_image).all()
    assert (labels.numpy() == expected).all()


def everything(seed: int) -> list[tuple[Tensor, Tensor]]:
    labels = [disc((12, 10), 3), disc((9, 14), 4) * 2]
    strengths: dict[str, Any] = {"flips": (0, 1), "rotate_degrees": 30.0, "scale": 0.2, "intensity": 0.2, "noise": 0.1}
    return batches(labels, (12, 12), count=6, batch=3, seed=seed, **strengths)


def test_equal_seeds_are_equal_batches():
    def content(seed: int) -> list[bytes]:
        return [part.numpy().tobytes() for pair in everything(seed) for part in pair]

    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    first = content(1)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(99)
    assert content(1) == first
    assert not set(content(2)) & set(first)


def test_labels_stay_classes():
    """Classes 0, 1 and 2 of two cases, and 255: nothing is interpolated to a class between."""
    seen = {value for _, labels in everything(3) for value in labels.unique().tolist()}
    assert seen == {0, 1, 2, 255}


@pytest.mark.parametrize("space", [(16, 16), (16, 24), (10, 12, 14)])
def test_what_is_turned_in_from_outside_is_unknown(space):
    """A label without any 255, in a window of its size: a turn leaves the middle known and corners 255."""
    label = np.ones(space, np.uint8)
    found = torch.cat([labels for _, labels in batches([label], space, count=8, rotate_degrees=45.0)])
    assert set(found.unique().tolist()) == {1, 255}
    middle: tuple[Any, ...] = tuple(slice(length // 2 - 1, length // 2 + 1) for length in space)
    assert (found[(slice(None), *middle)] == 1).all()
    assert (found.flatten(1)[:, 0] == 255).any()


@pytest.mark.parametrize(("space", "edge"), [((40, 40), 2), ((24, 48), 2), ((20, 24, 16), 1)])
def test_image_and_label_move_together(space, edge):
    """The image is the label as a number. Turned and rounded it is the label again, but for voxels beside an edge."""
    label = disc(space, min(space) / 3, offset=1.0)
    for image, truth in batches([label], space, count=4, rotate_degrees=40.0, scale=0.15):
        known = truth[0] != 255
        agree = (image[0, 0].round() == truth[0]) & known
        assert agree.sum() / known.sum() > 0.95
        assert (truth[0] == 1).sum() > 0


def test_a_turn_keeps_shapes_in_a_window_that_is_no_square():
    """A disc of radius 6 in 24x48 stays a disc of about 113 pixels, as long as it is wide, whatever the angle."""
    label = disc((24, 48), 6)
    for _, truth in batches([label], (24, 48), count=8, rotate_degrees=90.0):
        rows, columns = (truth[0] == 1).nonzero().T
        assert abs(int((truth == 1).sum()) - int(label.sum())) <= 6
        assert abs(int(rows.max() - rows.min()) - int(columns.max() - columns.min())) <= 1


@pytest.mark.parametrize("spacing", [(4.0, 1.0, 1.0), (1.0, 1.0, 2.5), (1.0, 3.0)])
def test_a_ball_keeps_its_extent_in_mm(spacing):
    """A ball of radius 12 mm spans 24 mm along every axis, whatever the angle, to a voxel of the coarsest axis.

    Turned in voxels, the ball on 4x1x1 mm, 6 voxels long and 24 wide, would be up to 24 voxels or 96 mm long.
    """
    space = tuple(int(41 / step) for step in spacing)
    grid = np.ogrid[tuple(slice(length) for length in space)]
    place = zip(grid, space, spacing, strict=True)
    ball = (sum(((at - (length - 1) / 2) * step) ** 2 for at, length, step in place) < 12**2).astype(np.uint8)
    for _, truth in batches([ball], space, count=8, rotate_degrees=90.0, spacing_mm=spacing):
        inside = (truth[0] == 1).nonzero()
        extent = (inside.amax(0) - inside.amin(0) + 1) * torch.tensor(spacing)
        assert ((extent - 24).abs() <= max(spacing)).all()
        assert int((truth == 1).sum()) == pytest.approx(int(ball.sum()), rel=0.05)


def test_equal_spacing_changes_no_batch():
    """Only ratios of the spacing matter: with .8 mm everywhere the bytes are those of an unknown spacing."""
    labels = [disc((12, 10), 3), disc((9, 14), 4)]
    one, other = (
        batches(labels, (12, 14), count=3, batch=2, rotate_degrees=30.0, scale=0.2, spacing_mm=spacing)
        for spacing in (None, (0.8, 0.8))
    )
    assert all(torch.equal(a, b) for pair in zip(one, other, strict=True) for a, b in zip(*pair, strict=True))


def test_scale_zooms():
    """At most 30 %: the disc's area changes by (1/1.3)^2 to (1/.7)^2, .59 to 2.04, and both sides are seen."""
    label = disc((40, 40), 8)
    areas = [int((t == 1).sum()) / label.sum() for _, t in batches([label], (40, 40), count=30, scale=0.3)]
    assert all(0.55 < area < 2.12 for area in areas)
    assert min(areas) < 0.9
    assert max(areas) > 1.1


def test_intensity_and_noise_leave_labels_alone():
    """A constant image of 2 has no spread: intensity .1 gives 1.8 to 2.2; noise of up to .5 varies within the image."""
    label = disc((8, 8), 3)
    image = np.full((1, 8, 8), 2.0, np.float32)
    for varied, truth in batches([label], (8, 8), [image], count=5, intensity=0.1):
        assert (truth[0].numpy() == label).all()
        assert len(varied.unique()) == 1
        assert 1.8 <= varied.unique().item() <= 2.2
    for varied, truth in batches([label], (8, 8), [image], count=5, noise=0.5):
        assert (truth[0].numpy() == label).all()
        assert 0 < varied.std() < 0.75


@pytest.mark.parametrize(("space", "window"), [((20, 6), (8, 8)), ((20, 30), (8, 8)), ((9, 12, 3), (4, 4, 4))])
def test_crops_have_the_windows_shape(space, window):
    """Every voxel of a crop is of the case or 255; where the case is larger, nothing is padded on that axis."""
    label = disc(space, 1)
    for image, truth in batches([label], window, count=10):
        assert image.shape == (1, 1, *window)
        known = min(len(truth[0].flatten()), int(np.prod(np.minimum(space, window))))
        assert int((truth != 255).sum()) == known


def test_every_other_crop_holds_foreground():
    """One foreground voxel of 40x40, window 4x4: at random 16/37^2 = 1 % would hold it, centred ones always do."""
    label = np.zeros((40, 40), np.uint8)
    label[39, 0] = 1
    holding = sum(int((truth == 1).any()) for _, truth in batches([label], (4, 4), count=60))
    assert 18 <= holding <= 45


def test_a_large_case_without_foreground_is_cropped_too():
    label = np.full((10, 10), 255, np.uint8)
    assert all(truth.shape == (1, 4, 4) for _, truth in batches([label], (4, 4), count=6))


def test_cases_are_seen_equally_often():
    """4 cases in batches of 3: after 4 batches each was seen 3 times, after 8 six times; the order is shuffled."""
    labels = [np.full((1, 1), value, np.uint8) for value in range(4)]
    seen = [value for _, truth in batches(labels, (1, 1), count=8, batch=3) for value in truth.flatten().tolist()]
    assert np.bincount(seen[:12]).tolist() == [3, 3, 3, 3]
    assert np.bincount(seen).tolist() == [6, 6, 6, 6]
    assert all(sorted(seen[i : i + 4]) == [0, 1, 2, 3] for i in range(0, 24, 4))
    assert len({tuple(seen[i : i + 4]) for i in range(0, 24, 4)}) > 1


def test_strong_views_leave_cases_flips_and_labels_as_they_are(tmp_path):
    """Arms with and without strong labelled views see the same batches but for the intensities, in every step."""
    labels = [disc((8, 8), 3), disc((8, 8), 2), disc((8, 8), 1)]
    cases = LabelledCases(case_store(tmp_path, labels).all, [noise((8, 8), f"c{row}") for row in range(3)], labels)
    plain, strong, again, none = (
        list(islice(LabelledBatches(cases, (8, 8), Augmentation(), 2, 0, views), 5))
        for views in (None, StrongViews(), StrongViews(), StrongViews(strength=0))
    )
    for one, other in zip(plain, strong, strict=True):
        assert one[1].equal(other[1])
        assert not one[0].equal(other[0])
    assert all(one[0].equal(other[0]) for one, other in zip(strong, again, strict=True))
    assert all(one[0].equal(other[0]) for one, other in zip(plain, none, strict=True))
    # Five batches of two from three cases: the first case that comes back is not varied as before.
    assert len({image.numpy().tobytes() for images, _ in strong for image in images}) == 10


def test_volumes_on_disk_give_the_batches_of_volumes_in_memory(tmp_path):
    """Cases larger than the window are left on disk: the same bytes, of crops around foreground and of others."""
    labels = [disc((20, 12), 3), disc((15, 30), 4)]
    images = [noise(label.shape, f"c{row}") for row, label in enumerate(labels)]
    store = case_store(tmp_path, labels, images=images)
    on_disk = store.with_labels(store.all, (8, 8))
    assert all(isinstance(volume, Volume) for volume in (*on_disk.images, *on_disk.labels))

    def first(cases: LabelledCases) -> list[bytes]:
        stream = islice(LabelledBatches(cases, (8, 8), Augmentation(), 3, 0), 4)
        return [part.numpy().tobytes() for batch in stream for part in batch]

    assert first(on_disk) == first(LabelledCases(store.all, images, labels))


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"flips": (0, 2)}, r"augmentation.flips: expected axes 0 to 1 of this data, found \[2\]; correct the axes"),
        ({"swap_labels": ((2, 1, 2),)}, r"augmentation.swap_labels: expected an axis 0 to 1 .*, found \(2, 1, 2\)"),
        (
            {"swap_labels": ((0, 1, 3),)},
            r"two of the classes \[1, 2\] of this data, found \(0, 1, 3\); correct the entry",
        ),
        (
            {"swap_labels": ((0, 0, 1),)},
            r"two of the classes \[1, 2\] of this data, found \(0, 0, 1\); correct the entry",
        ),
        ({"swap_labels": ((1, 1, 2), (0, 2, 2))}, r"two of the classes \[1, 2\] of this data, found \(0, 2, 2\)"),
    ],
)
def test_knobs_that_the_data_does_not_have(knobs, said):
    """In a plane, with two classes beside the background."""
    with pytest.raises(BadInput, match=said):
        Augmentation(**knobs).check(2, 3)
    Augmentation(flips=(0, 1), swap_labels=((1, 1, 2),)).check(2, 3)
