"""Inference by windows, of cases that fit and of larger ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.inferers import sliding_window_inference
from torch import nn

from pipeline.segmenter.sliding import View, pad_to
from tests.fixtures.networks import noise, seeded, segmenter_of, small


def test_padding_is_at_the_ends():
    """2x3 to 3x4: zeros below and to the right; an axis that is longer than the window stays."""
    image = torch.arange(1.0, 7).view(1, 2, 3)
    assert pad_to(image, (3, 4))[0].tolist() == [[1, 2, 3, 0], [4, 5, 6, 0], [0, 0, 0, 0]]
    assert pad_to(image, (1, 4), value=9)[0].tolist() == [[1, 2, 3, 9], [4, 5, 6, 9]]
    masks = torch.ones(1, 1, 2, dtype=torch.uint8)
    assert pad_to(masks, (1, 3), value=255).tolist() == [[[1, 1, 255]]]


@pytest.mark.parametrize("space", [(5, 7), (3, 5, 4)])
def test_a_smaller_case_is_the_padded_forward_cropped(space):
    window = (8,) * len(space)
    net, image = small(len(space), 3), noise(space)
    padded = np.zeros((1, *window), np.float32)
    real: tuple[Any, ...] = tuple(slice(0, length) for length in space)
    padded[(0, *real)] = image[0]
    with torch.no_grad():
        expected = net(torch.from_numpy(padded)[None])[0][(slice(None), *real)]
    assert torch.equal(segmenter_of(net, window).logits(image), expected)


@pytest.mark.parametrize(
    ("space", "window"), [((19, 11), (8, 8)), ((19, 5), (8, 8)), ((9, 10, 7), (4, 8, 4)), ((9, 3, 4), (4, 4, 4))]
)
def test_a_larger_case_slides(space, window):
    """A network that sees one voxel at a time answers as on the whole image, up to the rounding of the blend."""
    conv = nn.Conv2d if len(space) == 2 else nn.Conv3d
    net, image = seeded(lambda: conv(1, 3, 1)), noise(space)
    with torch.no_grad():
        whole = net(torch.from_numpy(image)[None])[0]
    found = segmenter_of(net, window).logits(image)
    assert found.shape == whole.shape
    assert found.numpy() == pytest.approx(whole.numpy(), abs=1e-5)


def test_a_view_of_an_image_with_negative_strides_is_read():
    image = noise((4, 4))
    net = small(2, 2)
    assert torch.equal(
        segmenter_of(net, (4, 4)).logits(image[:, ::-1]), segmenter_of(net, (4, 4)).logits(image[:, ::-1].copy())
    )


def monai(network: nn.Module, image: np.ndarray, window: tuple[int, ...]) -> np.ndarray:
    """MONAI's own, with its padding done beforehand at the ends."""
    padded = pad_to(torch.from_numpy(image), window)
    with torch.no_grad():
        found = sliding_window_inference(padded[None], window, 1, network, overlap=0.5, mode="gaussian")[0]
    return found[(slice(None), *(slice(0, length) for length in image.shape[1:]))].numpy()


@pytest.mark.parametrize(
    ("space", "window"),
    [((19, 11), (8, 8)), ((11, 30), (8, 5)), ((19, 5), (8, 8)), ((9, 10, 17), (4, 8, 4)), ((24, 3, 9), (8, 4, 4))],
)
def test_windows_blend_as_in_monai(space, window):
    """A network that sees the edges of its window: whole, in bands, band by band from a file, and in any bands."""
    net, image = small(len(space), 3), noise(space)
    expected = monai(net, image, window)
    assert segmenter_of(net, window).logits(image).numpy() == pytest.approx(expected, abs=1e-5)
    parts = np.full(expected.shape, np.nan, np.float32)
    for where, logits in segmenter_of(net, window).bands(image):
        parts[(slice(None), *where)] = logits
    assert parts == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("rows", [1, 3, 7, 40])
def test_bands_of_any_thickness_are_the_same_bytes(tmp_path, axis, rows):
    """Held in memory or in a file, and asked for twice."""
    net, image, window = small(2, 2), noise((19, 21)), (8, 8)
    segmenter = segmenter_of(net, window)
    whole = segmenter.sliding(image, axis=axis).rows(0, image.shape[1 + axis])
    for park in (None, tmp_path / "rows"):
        sliding = segmenter.sliding(image, axis=axis, park=park)
        parts = []
        for start in range(0, sliding.length, rows):
            stop = min(start + rows, sliding.length)
            parts.append(sliding.rows(start, stop))
            assert torch.equal(parts[-1], sliding.rows(start, stop))
        assert torch.equal(torch.cat(parts, dim=1 + axis), whole)


def test_what_is_held_does_not_grow_with_the_case():
    """Window 4, bands of 2 rows: 2 rows that are asked for and the 4 of the window, of 10 or of 1000."""
    net = small(2, 2)
    for length in (10, 1000):
        sliding = segmenter_of(net, (4, 4)).sliding(noise((length, 4)))
        held = []
        for start in range(0, length, 2):
            sliding.rows(start, start + 2)
            held.append(sliding.last - sliding.first)
        assert max(held) <= 6


@pytest.mark.parametrize("view", [View(flips=(0,)), View(flips=(0, 1)), View(turns=1), View(turns=2), View(turns=3)])
@pytest.mark.parametrize("space", [(19, 11), (19, 5), (6, 7)])
def test_a_view_is_the_prediction_of_the_varied_image_brought_back(view, space):
    """Windows of a case lie where those of the flipped or turned image do, its last one at the far end."""
    net, image, window = small(2, 2), noise(space), (8, 6)
    there = view.there(torch.from_numpy(image)).numpy()
    expected = view.back(torch.from_numpy(monai(net, there, view.window(window)))).numpy()
    assert segmenter_of(net, window).logits(image, view).numpy() == pytest.approx(expected, abs=1e-5)


def test_a_factor_is_on_the_image():
    """A network of one weight, 1: logits are the image times 1.5, also where windows overlap."""
    image = noise((9, 5))
    found = segmenter_of(nn.Identity(), (4, 4)).logits(image, View(factor=1.5))
    assert found.numpy() == pytest.approx(1.5 * image, abs=1e-5)
