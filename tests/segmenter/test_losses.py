"""The supervised loss: worked by hand, against MONAI, and what does not count in it."""

from __future__ import annotations

from math import exp, log

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.seeding import numpy_generator, torch_generator
from pipeline.segmenter.losses import consistency, dice_ce, ramp_up, soft_cross_entropy
from pipeline.store.schema import UNKNOWN


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch_generator(seed, "losses"))


def classes(*shape: int, outputs: int, seed: int = 0) -> Tensor:
    labels = numpy_generator(seed, "losses").integers(max(2, outputs), size=shape)
    return torch.from_numpy(labels.astype(np.uint8))


def test_dice_ce_by_hand():
    """Binary, logits 0 on 4 voxels, 2 of them foreground: entropy log 2; Dice (2 * 1 + 1) / (2 + 2 + 1) = 3/5."""
    loss = dice_ce(torch.zeros(1, 1, 4), torch.tensor([[1, 1, 0, 0]]).byte())
    assert loss.item() == pytest.approx(log(2) + 2 / 5)


def test_an_absent_class_costs_its_false_positives_only():
    """Softmax of (0, 0) on 4 voxels of background: p = 1/2 each, Dice (0 + 1) / (2 + 0 + 1) = 1/3; sure of the
    background the loss goes to 0."""
    empty = torch.zeros(1, 4, dtype=torch.uint8)
    assert dice_ce(torch.zeros(1, 2, 4), empty).item() == pytest.approx(log(2) + 2 / 3)
    sure = torch.stack([torch.full((4,), 50.0), torch.zeros(4)])[None]
    assert dice_ce(sure, empty).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("space", [(7, 6), (4, 5, 3)])
@pytest.mark.parametrize("outputs", [1, 2, 4])
def test_dice_ce_equals_monai(outputs, space):
    """Where every voxel is known: foreground classes only, smooth terms 1, equal weights."""
    from monai.losses import DiceCELoss

    logits, labels = 3 * normal(2, outputs, *space), classes(2, *space, outputs=outputs)
    head = {"sigmoid": True} if outputs == 1 else {"softmax": True, "to_onehot_y": True, "include_background": False}
    theirs = DiceCELoss(**head, smooth_nr=1.0, smooth_dr=1.0)(logits, labels[:, None].float())
    assert dice_ce(logits, labels).item() == pytest.approx(theirs.item(), rel=1e-5)


@pytest.mark.parametrize("outputs", [1, 3])
def test_unknown_voxels_count_in_neither_term(outputs):
    """One image with a border of 255 has the loss of its inside, and no gradient on the border."""
    logits, labels = normal(1, outputs, 6, 6).requires_grad_(), classes(1, 6, 6, outputs=outputs)
    inside = dice_ce(logits[..., 1:5, 1:5], labels[:, 1:5, 1:5]).item()
    framed = torch.full_like(labels, UNKNOWN)
    framed[:, 1:5, 1:5] = labels[:, 1:5, 1:5]
    loss = dice_ce(logits, framed)
    loss.backward()
    assert loss.item() == pytest.approx(inside, rel=1e-6)
    assert (logits.grad[0][:, framed[0] == UNKNOWN] == 0).all()


def test_an_image_of_255_only_has_a_finite_loss():
    """No known voxel: entropy 0 of at least one voxel, Dice (0 + 1) / (0 + 1) = 1: the loss is 0."""
    assert dice_ce(normal(1, 1, 4, 4), torch.full((1, 4, 4), UNKNOWN, dtype=torch.uint8)).item() == 0


KNOWN = torch.tensor([[True, True, False]])


def test_soft_cross_entropy_by_hand():
    """Sigmoid head, logits 0: -log 1/2 per voxel whatever the target. With logit log 3 (p = 3/4) and target 1/4 of
    foreground: -(1/4 log 3/4 + 3/4 log 1/4) = 1.1117. Mean with log 2 over the two known voxels: .9024."""
    target = torch.tensor([[[0.5, 0.75, 0.0], [0.5, 0.25, 1.0]]])
    loss = soft_cross_entropy(torch.tensor([[[0.0, log(3), 50.0]]]), target, KNOWN)
    expected = (log(2) - (log(3 / 4) / 4 + 3 * log(1 / 4) / 4)) / 2
    assert loss.item() == pytest.approx(expected)
    # Targets in steps of 1/255 rarely add up to 1: only their proportions count.
    assert soft_cross_entropy(torch.tensor([[[0.0, log(3), 50.0]]]), 0.9 * target, KNOWN).item() == pytest.approx(
        expected
    )


def test_consistency_by_hand():
    """p = 1/2 against 3/4: (1/4)^2 for each of the two classes = 1/8; equal in the second voxel; mean 1/16."""
    student, teacher = torch.tensor([[[0.0, 1.0, 9.0]]]), torch.tensor([[[log(3), 1.0, -9.0]]])
    assert consistency(student, teacher, KNOWN).item() == pytest.approx(1 / 16)
    two = torch.cat([torch.zeros_like(student), student], 1)
    assert consistency(two, teacher, KNOWN).item() == pytest.approx(1 / 16)


def test_nothing_known_gives_zero():
    nothing = torch.zeros_like(KNOWN)
    assert consistency(torch.zeros(1, 1, 3), torch.ones(1, 1, 3), nothing).item() == 0
    assert soft_cross_entropy(torch.zeros(1, 1, 3), torch.full((1, 2, 3), 0.5), nothing).item() == 0


def test_ramp_up():
    """exp(-5) at the start, 1 from 40 % on, exp(-5/4) halfway there."""
    assert [ramp_up(t) for t in (0.0, 0.2, 0.4, 1.0)] == pytest.approx([exp(-5), exp(-1.25), 1, 1])
