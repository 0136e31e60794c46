"""Drift of the student on a batch, by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.students.batch import PoolBatch
from pipeline.students.drift import drift, kl_outside, regions


def batch_of(logits: torch.Tensor, reference: torch.Tensor, chosen: list[int], rejected: list[int]) -> PoolBatch:
    masks = [torch.tensor([m], dtype=torch.uint8) for m in (chosen, rejected)]
    known = torch.tensor([[True, True, True, False]])
    return PoolBatch(logits, reference, *masks, torch.tensor([0]), torch.tensor([3]), known)


def test_drift():
    """One voxel in D, one outside, one 255, sigmoid head.

    In D logit 0 (p = 1/2) against log 3 (3/4): KL = (log 2 + log 2/3)/2 = (.6931 - .4055)/2 = .1438. Outside 0.
    The third voxel, however far apart, counts nowhere.
    Foreground where the logit is positive: 1 voxel against 2.
    """
    three = float(np.log(3))
    logits, reference = torch.tensor([[[[0.0, three, 50.0]]]]), torch.tensor([[[[three, three, -50.0]]]])
    chosen, rejected = (
        torch.tensor([[[0, 1, 255]]], dtype=torch.uint8),
        torch.tensor([[[1, 1, 255]]], dtype=torch.uint8),
    )
    batch = PoolBatch(logits, reference, chosen, rejected, torch.tensor([0]), torch.tensor([2]))
    row = drift(batch)
    assert row["kl_inside"] == pytest.approx((np.log(2) + np.log(2 / 3)) / 2, abs=1e-6)
    assert row["kl_outside"] == pytest.approx(0, abs=1e-6)
    assert row["volume_ratio"] == 0.5


def test_kl_outside_by_hand():
    """Sigmoid head, 4 voxels: the first is D, the fourth padding. Outside: p = 1/2 against 3/4, and equal logits.

    KL of the second voxel (log 2 + log 2/3) / 2 = .1438, of the third 0: mean .0719. Its gradient is 0 in D.
    """
    three = float(np.log(3))
    logits = torch.tensor([[[5.0, 0.0, three, 9.0]]], requires_grad=True)
    batch = batch_of(logits, torch.tensor([[[0.0, three, three, 0.0]]]), [1, 0, 1, 255], [0, 0, 1, 255])
    union, outside = regions(batch)
    assert union.tolist() == [[True, False, False, False]]
    assert outside.tolist() == [[False, True, True, False]]
    loss = kl_outside(batch)
    assert loss.item() == pytest.approx((np.log(2) + np.log(2 / 3)) / 4, abs=1e-6)
    loss.backward()
    assert logits.grad[0, 0, 0] == logits.grad[0, 0, 3] == 0
    assert logits.grad[0, 0, 1] != 0


def test_without_pairs_everything_known_is_outside():
    three = float(np.log(3))
    none = torch.zeros((0, 4), dtype=torch.uint8)
    batch = PoolBatch(
        torch.tensor([[[0.0, three, three, 9.0]]]),
        torch.tensor([[[three, three, three, 0.0]]]),
        none,
        none,
        torch.zeros(0, dtype=torch.int64),
        torch.zeros(0, dtype=torch.int64),
        torch.tensor([[True, True, True, False]]),
    )
    row = drift(batch)
    assert row["kl_inside"] is None
    assert row["kl_outside"] == pytest.approx((np.log(2) + np.log(2 / 3)) / 6, abs=1e-6)
    assert row["volume_ratio"] == pytest.approx(2 / 3)
