"""Heads of deep supervision: which one is the main head, and what each counts for in a supervised loss."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pipeline.segmenter.heads import all_heads, heads_of, keep_main_head
from pipeline.segmenter.losses import deep_dice_ce, dice_ce
from tests.fixtures.networks import seeded


def logits(*space: int, value: float = 0.0) -> Tensor:
    return torch.full((1, 2, *space), value)


def weights(output: object, space: tuple[int, ...] = (8, 8)) -> list[float]:
    return [head.weight for head in heads_of(output, space)]


def values(output: object) -> list[float]:
    return [head.logits.max().item() for head in heads_of(output, (8, 8))]


@pytest.mark.parametrize("space", [(8, 8), (4, 8, 6)])
def test_a_tensor_is_the_only_head(space):
    (head,) = heads_of(logits(*space), space)
    assert (head.weight, head.logits.shape) == (1.0, (1, 2, *space))


def test_weights_halve_with_resolution():
    """8, 4 and 2 pixels: 1, 1/2 and 1/4 of 7/4, in whatever order they come."""
    heads = [logits(8, 8, value=1), logits(4, 4, value=2), logits(2, 2, value=3)]
    assert weights(heads) == pytest.approx([4 / 7, 2 / 7, 1 / 7])
    assert weights(tuple(heads[::-1])) == pytest.approx([4 / 7, 1 / 7, 2 / 7])
    assert values(heads[::-1]) == [1, 3, 2]


def test_of_equal_resolutions_all_weigh_the_same_and_the_last_is_the_main_head():
    heads = [logits(8, 8, value=value) for value in (1, 2, 3, 4)]
    assert weights(heads) == [0.25] * 4
    assert values(heads) == [4, 1, 2, 3]


def test_a_stack_goes_from_the_main_head_down():
    """All are brought to full size, so that their places say how deep they are: 1, 1/2 and 1/4 of 7/4."""
    stack = torch.stack([logits(8, 8, value=value) for value in (1, 2, 3)], 1)
    assert weights(stack) == pytest.approx([4 / 7, 2 / 7, 1 / 7])
    assert values(stack) == [1, 2, 3]


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ((logits(8, 8), torch.zeros(())), r"of several heads, found tuple of a tensor \[1, 2, 8, 8\], a tensor \[\]"),
        ((logits(8, 8), None), "of several heads, found tuple of .*, NoneType"),
        ((logits(8, 8), torch.zeros(1, 3, 2, 2)), r"found tuple of a tensor \[1, 2, 8, 8\], a tensor \[1, 3, 2, 2\]"),
        ({"out": logits(8, 8)}, "of several heads, found dict"),
        ([logits(4, 4), logits(2, 2)], r"expected logits of size \[8, 8\], found list of a tensor \[1, 2, 4, 4\]"),
        (logits(4, 4), r"expected logits of size \[8, 8\], found a tensor \[1, 2, 4, 4\]"),
    ],
)
def test_other_outputs_are_refused(output, message):
    with pytest.raises(ValueError, match=message):
        heads_of(output, (8, 8))


class Deep(nn.Module):
    """A further head of half the size in training only, and dropout of everything before both."""

    def __init__(self) -> None:
        super().__init__()
        self.main, self.low, self.drop = nn.Conv2d(1, 2, 1), nn.Conv2d(1, 2, 1, stride=2), nn.Dropout(1.0)

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        image = self.drop(image)
        return [self.main(image), self.low(image)] if self.training else self.main(image)


@pytest.mark.parametrize("mode", [True, False])
def test_a_call_returns_the_main_head_and_all_heads_are_there_in_either_mode(mode):
    """Dropout of everything leaves biases in training; without it, logits depend on the image. Modes stay."""
    network = keep_main_head(seeded(Deep)).train(mode)
    image = torch.rand(1, 1, 4, 4)
    with torch.no_grad():
        found = network(image)
        first, second = all_heads(network, image)
    assert torch.equal(found, first.logits)
    assert (first.logits.shape[2:], second.logits.shape[2:]) == ((4, 4), (2, 2))
    assert (second.logits.std((2, 3)).max().item() == 0) is mode
    assert [module.training for module in network.modules()] == [mode] * 4


def test_one_number_per_class_is_left_as_it_is():
    network = keep_main_head(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)))
    assert network(torch.zeros(2, 1, 4, 4)).shape == (2, 3)


def test_names_of_weights_stay():
    assert keep_main_head(Deep()).state_dict().keys() == Deep().state_dict().keys()


def test_the_loss_of_heads():
    """Labels in quarters of 4x4 are one voxel each at 2x2, where `nearest` takes the middle of each: 2/3 and 1/3 of
    the two losses; 255 stays unknown."""
    torch.manual_seed(0)
    full, low = torch.randn(1, 2, 4, 4), torch.randn(1, 2, 2, 2)
    labels = torch.tensor([[0, 1], [255, 1]], dtype=torch.uint8)
    whole = labels.repeat_interleave(2, 0).repeat_interleave(2, 1)
    expected = 2 / 3 * dice_ce(full, whole[None]) + 1 / 3 * dice_ce(low, labels[None])
    found = deep_dice_ce(heads_of([full, low], (4, 4)), whole[None])
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_loss_of_one_head_is_the_plain_loss():
    torch.manual_seed(0)
    full, labels = torch.randn(1, 2, 4, 4), torch.randint(0, 2, (1, 4, 4), dtype=torch.uint8)
    assert deep_dice_ce(heads_of(full, (4, 4)), labels) == dice_ce(full, labels)
