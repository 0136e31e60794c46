"""Parts of a disagreement region, voxels and classes, worked by hand on rows of voxels."""

from __future__ import annotations

from math import exp, log

import pytest
import torch

from pipeline.errors import BadInput
from pipeline.students.batch import PoolBatch
from tests.fixtures.preferences import LINKS, bars, batch, preference, softplus, statistics

# ---- voxel -----------------------------------------------------------------------------------------------------


def test_voxel_takes_the_mean_of_the_links():
    """Shifts of 1 on 10 voxels of D and of -1 on 10, beta 3: (log(1 + e^-3) + log(1 + e^3)) / 2 = 1.5486.

    `region` sees a mean shift of 0, log 2, and pushes all voxels alike; here each by its own slope.
    """
    shift = torch.cat([torch.ones(10), -torch.ones(54)]).reshape(1, 1, 64).requires_grad_()
    pairs = batch(shift, bars(20), bars(0), [0])
    loss, row = preference(normaliser="voxel").bind(statistics(20))(pairs)
    loss.backward()
    assert loss.item() == pytest.approx((softplus(-3) + softplus(3)) / 2)
    assert row["rewards/margins"] == pytest.approx(0, abs=1e-6)
    assert preference().bind(statistics(20))(pairs)[0].item() == pytest.approx(log(2))
    slopes = [-3 * (1 - 1 / (1 + exp(-h))) / 20 for h in (3.0, -3.0)]
    assert shift.grad[0, 0, :20].tolist() == pytest.approx([slopes[0]] * 10 + [slopes[1]] * 10)
    assert (shift.grad[0, 0, 20:] == 0).all()


@pytest.mark.parametrize("normaliser", ["region", "voxel"])
def test_a_tiny_region_is_pushed_less(normaliser):
    """|D| = 4 under a floor of 16 at beta 1: 4 voxels of 1/2 over 16 are 1/8 in sum; 20 voxels have their 1/2."""
    for size, push in ((4, 1 / 8), (16, 1 / 2), (20, 1 / 2)):
        shift = torch.zeros(1, 1, 64, requires_grad=True)
        preference(normaliser=normaliser, beta=1.0).bind(statistics(20))(batch(shift, bars(size), bars(0), [0]))[
            0
        ].backward()
        assert shift.grad.abs().sum().item() == pytest.approx(push)


def test_votes_give_every_voxel_its_error():
    """cdpo at beta 3 with e = .1 on 8 voxels and .4 on 8: at h_i = log(.9/.1) and log(.6/.4) no logit moves.

    Outside D votes are never read, even where they are no number.
    """
    votes = torch.full((1, 64), torch.nan)
    votes[:, :8], votes[:, 8:16] = 0.1, 0.4
    shift = torch.zeros(64)
    shift[:8], shift[8:16] = log(9) / 3, log(1.5) / 3
    shift = shift.reshape(1, 1, 64).requires_grad_()
    knobs = preference(link={"kind": "cdpo", "e": "votes"}, normaliser="voxel")
    loss, _ = knobs.bind(statistics(16))(batch(shift, bars(16), bars(0), [0], voxel_e=votes))
    loss.backward()
    entropy = [-e * log(e) - (1 - e) * log(1 - e) for e in (0.1, 0.4)]
    assert loss.item() == pytest.approx(sum(entropy) / 2)
    assert shift.grad.abs().max().item() == pytest.approx(0, abs=1e-6)


def test_votes_have_to_be_there():
    knobs = preference(link={"kind": "cdpo", "e": "votes"}, normaliser="voxel")
    with pytest.raises(BadInput, match="'votes' needs an error probability, and its batches carry no votes"):
        knobs.bind(statistics(20))(batch(torch.zeros(1, 1, 64), bars(20), bars(0), [0]))


# ---- classes ---------------------------------------------------------------------------------------------------

NAMES = ("background", "liver", "lesion")


def two_classes(shift: float = 0.0) -> PoolBatch:
    """A pair whose D has 32 voxels of liver (chosen 1, rejected 0) and 16 of lesion (chosen 0, rejected 2), with the
    liver's logit raised by `shift` everywhere."""
    chosen, rejected = bars(32), torch.zeros(1, 64).byte()
    rejected[:, 48:] = 2
    logits = torch.zeros(1, 3, 64)
    logits[:, 1] = shift
    return batch(logits.requires_grad_(), chosen, rejected, [0], classes=NAMES)


def test_classes_by_hand():
    """Liver shifted by 1/2, lesion by 0, beta 2. Whole: delta = 16 over 48 voxels: h = 2/3.

    Per class: h = 2 * 16 / 32 = 1 for liver and 0 for lesion: the mean of log(1 + e^-1) and log 2.
    """
    pairs = two_classes(0.5)
    for per_class, expected in ((False, softplus(-2 / 3)), (True, (softplus(-1) + log(2)) / 2)):
        loss, row = preference(beta=2.0, per_class=per_class).bind(statistics(48))(pairs)
        assert loss.item() == pytest.approx(expected)
        assert row["rewards/margins"] == pytest.approx(2 / 3), "rewards are of the pair"
        assert (row["disagreement/liver"], row["disagreement/lesion"], row["disagreement"]) == (32, 16, 48)


def test_the_push_of_each_class():
    """Step 0, beta 2, slope -1/2, two logits per voxel. Whole: 2 * 1/2 * 2 * 32/48 = 4/3 and 2/3: by size.

    Per class: the mean over two parts gives each 1: a small class is pushed as much as a large one.
    """
    for per_class, expected in ((False, (4 / 3, 2 / 3)), (True, (1.0, 1.0))):
        pairs = two_classes()
        loss, row = preference(beta=2.0, per_class=per_class).bind(statistics(48))(pairs)
        loss.backward()
        assert (row["push/liver"], row["push/lesion"]) == pytest.approx(expected)
        gradient = pairs.logits.grad.abs().sum(1)[0]
        assert (gradient[:32].sum().item(), gradient[48:].sum().item()) == pytest.approx(expected)


def test_a_part_below_the_floor_is_pushed_less():
    """32 voxels of liver and 4 of lesion under a floor of 16, beta 2: pushes of 1 and 4/16."""
    pairs = two_classes()
    pairs.rejected[:, 52:] = 0
    _, row = preference(beta=2.0, per_class=True).bind(statistics(36))(pairs)
    assert (row["push/liver"], row["push/lesion"]) == pytest.approx((1.0, 1 / 4))


def test_a_class_that_is_nowhere_in_dispute_leaves_the_mean():
    """Chosen and rejected differ in liver alone: as if there were no classes; lesion reads 0."""
    pairs = two_classes(0.5)
    pairs.rejected[:, 48:] = 0
    losses = [preference(per_class=split).bind(statistics(32))(pairs) for split in (False, True)]
    assert losses[1][0].item() == pytest.approx(losses[0][0].item())
    assert (losses[1][1]["push/lesion"], losses[1][1]["disagreement/lesion"]) == (0, 0)


def test_two_classes_have_one_part():
    """For either head: the same loss and gradient, split or not, for every link."""
    for outputs in (1, 2):
        shift = torch.linspace(-1, 2, 2 * outputs * 64).reshape(2, outputs, 64).requires_grad_()
        pairs = batch(shift, bars(20, 40, 7), bars(0, 60, 7), [0, 1, 1], e=torch.tensor([0.1, 0.2, 0.3]))
        for kind in LINKS:
            found = []
            for split in (False, True):
                loss, _ = preference(link={"kind": kind}, per_class=split).bind(statistics(20, 20))(pairs)
                found.append((loss.item(), torch.autograd.grad(loss, shift)[0].flatten().tolist()))
            assert found[0][0] == pytest.approx(found[1][0])
            assert found[0][1] == pytest.approx(found[1][1], abs=1e-7)


def test_without_a_gradient_there_is_no_push():
    pairs = two_classes()
    with torch.no_grad():
        _, row = preference().bind(statistics(48))(pairs)
    assert {key for key in row if "/l" in key} == {"disagreement/liver", "disagreement/lesion"}
