"""Test-time augmentation on networks whose answer is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.errors import BadInput
from pipeline.proposals.samplers.tta import TTA
from pipeline.segmenter.architecture import Architecture
from tests.fixtures.networks import Ramp, models, noise, seeded


def tta(**knobs: Any) -> TTA:
    return TTA(kind="tta", **{"flips": (), "mean": False, **knobs})


@pytest.mark.parametrize("space", [(8, 8), (4, 6, 6)])
def test_flips_and_turns_are_undone(space):
    """A network that sees one voxel at a time answers exactly as the base."""
    conv = nn.Conv2d if len(space) == 2 else nn.Conv3d
    case = models(seeded(lambda: conv(1, 3, 1)), 3 * noise(space))
    flips = ((0,), (1,), (0, 1), (len(space) - 1,))
    draws = list(tta(flips=flips, quarter_turns=(1, 2, 3)).draw("t", case))
    assert len(draws) == 7
    assert len(np.unique(case.draws[0].mask)) > 1
    for draw in draws:
        assert draw.probability.equal(case.base_probability())


def test_a_turned_image_that_is_not_square_is_undone_too():
    """8x12 becomes 12x8, larger than the window in one axis, so the window slides: equal up to rounding."""
    case = models(seeded(lambda: nn.Conv2d(1, 3, 1)), noise((8, 12)))
    (draw,) = tta(quarter_turns=(1,)).draw("t", case)
    assert draw.probability.numpy() == pytest.approx(case.base_probability().numpy(), abs=1e-5)


@pytest.mark.parametrize(
    ("network", "arguments", "wide", "square"),
    [
        ("UNETR", {"feature_size": 4, "hidden_size": 12, "mlp_dim": 8, "num_heads": 2}, (16, 32), (16, 16)),
        ("DynUNet", {"filters": [4] * 4}, (12, 32), (16, 16)),
    ],
)
def test_a_network_with_fixed_sizes_turns_in_a_square_window_only(network, arguments, wide, square):
    """DynUNet plans to halve 12x32 to 6x16, 6x8 and 6x4: of 32x12, the second axis would be 1.5 long."""

    def case(window):
        made = Architecture(network, arguments, 2, 1, 2, "softmax", window).rounded(1)
        return models(made.build(0).eval(), noise(window))

    with pytest.raises(BadInput, match=r"case 'c0': sampler 't': .* window \[1., 32\] .*, \[32, 1.\], found an error"):
        list(tta(quarter_turns=(1,)).draw("t", case(wide)))
    assert len(list(tta(quarter_turns=(2,)).draw("t", case(wide)))) == 1
    assert len(list(tta(quarter_turns=(1, 2, 3)).draw("t", case(square)))) == 3


def test_what_a_varied_image_answers():
    """The base says 'second half of the rows'. Rows flipped and flipped back: the first half; columns: no change.

    A quarter turn, undone, leaves the answer in the first columns; a half turn in the first rows.
    """
    case = models(Ramp(), np.zeros((1, 2, 2), np.float32))
    assert case.draws[0].mask.tolist() == [[0, 0], [1, 1]]
    draws = {
        d.setting: d.mask.tolist() for d in tta(flips=((0,), (1,), (0, 1)), quarter_turns=(1, 2, 3)).draw("t", case)
    }
    assert draws == {
        "flip=0": [[1, 1], [0, 0]],
        "flip=1": [[0, 0], [1, 1]],
        "flip=01": [[1, 1], [0, 0]],
        "turn=1": [[1, 0], [1, 0]],
        "turn=2": [[1, 1], [0, 0]],
        "turn=3": [[0, 1], [0, 1]],
    }


def test_the_mean_is_of_the_base_and_all_variants():
    """Logits -1 and 2 in the halves: p = .27 and .88. Base and flip have the mean .57 everywhere: foreground.

    The mean is no prediction of its own: the mean probability of the case counts its parts once.
    """
    case = models(Ramp(), np.zeros((1, 2, 2), np.float32))
    flipped, mean = tta(flips=((0,),), mean=True).draw("t", case)
    assert mean.setting == "mean"
    assert mean.mask.tolist() == [[1, 1], [1, 1]]
    assert (flipped.counts, mean.counts) == (True, False)


def test_intensity():
    """Foreground where x > .5: of .4 and .1 none; times 1.5 (.6, .15) the first."""
    layer = nn.Conv2d(1, 1, 1)
    nn.init.ones_(layer.weight)
    nn.init.constant_(layer.bias, -0.5)
    case = models(layer, np.array([[[0.4, 0.1]]], np.float32))
    (draw,) = tta(intensity=(1.5,)).draw("t", case)
    assert (case.draws[0].mask.tolist(), draw.mask.tolist(), draw.setting) == ([[0, 0]], [[1, 0]], "intensity=1.5")


class Sided(nn.Module):
    """Class 1 in the bright voxels of the first half of an axis, class 2 in those of the second half."""

    def __init__(self, axis: int = 0) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        length = image.shape[2 + self.axis]
        shape = [length if axis == 2 + self.axis else 1 for axis in range(image.ndim)]
        left = (torch.arange(length) < length / 2).view(shape).expand_as(image)
        bright = image > 0
        return torch.cat([~bright, bright & left, bright & ~left], dim=1).float() * 10


def test_sided_classes_change_places_in_a_flip_and_back():
    """Image + - - + + - + -: the base says 1 0 0 1 2 0 2 0. The flipped image is - + - + + - - +, whose answer
    0 1 0 1 2 0 0 2, turned back, is 2 0 0 2 1 0 1 0: left and right must change places too."""
    image = np.broadcast_to(np.array([1, -1, -1, 1, 1, -1, 1, -1], np.float32)[None, :, None], (1, 8, 2)).copy()
    sampler = TTA(kind="tta", flips=((0,),), mean=False)
    case = models(Sided(), image)
    assert case.draws[0].mask[:, 0].tolist() == [1, 0, 0, 1, 2, 0, 2, 0]
    (draw,) = sampler.draw("flips", case)
    assert draw.mask[:, 0].tolist() == [2, 0, 0, 2, 1, 0, 1, 0], "classes without sides stay as the network says"
    case.swap_labels = ((0, 1, 2),)
    (draw,) = sampler.draw("flips", case)
    assert np.array_equal(draw.mask, case.draws[0].mask)
    case.swap_labels = ((1, 1, 2),)
    (draw,) = sampler.draw("flips", case)
    assert draw.mask[:, 0].tolist() == [2, 0, 0, 2, 1, 0, 1, 0], "of another axis"


@pytest.mark.parametrize("space", [(8, 2), (3, 8, 2)])
def test_sided_classes_change_places_in_a_half_turn(space):
    """The half turn of an image whose rows are all equal is its flip along the first axis of the plane."""
    row = np.array([1, -1, -1, 1, 1, -1, 1, -1], np.float32)
    image = np.broadcast_to(row[:, None], space)[None].copy()
    case = models(Sided(axis=len(space) - 2), image)
    (draw,) = tta(quarter_turns=(2,)).draw("t", case)
    assert draw.mask.reshape(-1, 8, 2)[0, :, 0].tolist() == [2, 0, 0, 2, 1, 0, 1, 0], "no class has a side"
    case.swap_labels = ((len(space) - 2, 1, 2),)
    (draw,) = tta(quarter_turns=(2,)).draw("t", case)
    assert np.array_equal(draw.mask, case.draws[0].mask)


@pytest.mark.parametrize("turn", [1, 3])
def test_an_odd_turn_of_sided_classes_is_refused(turn):
    """In 3D an axis outside the plane of the turns may have sides."""
    case = models(seeded(lambda: nn.Conv3d(1, 3, 1)), noise((4, 6, 6)))
    case.swap_labels = ((0, 1, 2),)
    assert len(list(tta(quarter_turns=(turn,)).draw("t", case))) == 1
    case.swap_labels = ((0, 1, 2), (2, 1, 2))
    said = rf"propose.samplers.t.quarter_turns: expected only 2 .* the turned plane \(\[2\]\), found \[{turn}\]"
    with pytest.raises(BadInput, match=said):
        list(tta(quarter_turns=(2, turn)).draw("t", case))
