"""What every link holds with every normaliser, head and option, on random masks."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from pipeline.seeding import numpy_generator, torch_generator
from pipeline.store.schema import UNKNOWN
from pipeline.students.batch import PoolBatch
from pipeline.students.objectives import Objective
from pipeline.students.objectives.preference import Preference
from pipeline.students.pair_loss import disagreement_region
from tests.fixtures.preferences import LINKS, NORMALISERS, preference, statistics

OUTPUTS = [1, 3]


def masks(count: int, outputs: int, seed: int) -> Tensor:
    """u8 `[count, 8, 8]`, the last row outside the image."""
    drawn = numpy_generator(seed, "preference").integers(max(2, outputs), size=(count, 8, 8)).astype(np.uint8)
    drawn[:, 7] = UNKNOWN
    return torch.from_numpy(drawn)


def drawn(outputs: int, moved: float = 1.0, pairs: int = 3) -> PoolBatch:
    """Two images of random logits, moved by a normal of this size since the reference; one pair, then the others."""
    generator = torch_generator(outputs, "preference")
    reference = torch.randn(2, outputs, 8, 8, generator=generator)
    logits = (reference + moved * torch.randn(reference.shape, generator=generator)).requires_grad_()
    chosen, rejected = masks(pairs, outputs, 1), masks(pairs, outputs, 2)
    image = torch.tensor([0, 1, 1][:pairs])
    names = ("background", "one") if outputs == 1 else ("background", "one", "two")
    votes = torch.rand(chosen.shape, generator=generator).clamp(0.02, 0.45)
    e = torch.tensor([0.1, 0.2, 0.3])[:pairs]
    voxels = torch.full((pairs,), 56)
    return PoolBatch(logits, reference, chosen, rejected, image, voxels, e=e, voxel_e=votes, classes=names)


def tiled(pairs: PoolBatch) -> PoolBatch:
    """The same image twice side by side."""
    double = {
        name: torch.cat([getattr(pairs, name)] * 2, -1)
        for name in ("logits", "reference", "chosen", "rejected", "voxel_e")
    }
    return replace(pairs, **double, voxels=2 * pairs.voxels)


def subset(pairs: PoolBatch, *rows: int) -> PoolBatch:
    parts = {name: getattr(pairs, name)[list(rows)] for name in ("chosen", "rejected", "image", "voxels", "voxel_e")}
    return replace(pairs, **parts, e=pairs.e[list(rows)])


@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize("normaliser", NORMALISERS)
@pytest.mark.parametrize("kind", LINKS)
class TestEveryLinkAndNormaliser:
    def variants(self, kind: str, normaliser: str) -> list[Preference]:
        """The plain objective, and each option it may have."""
        made = [{}, {"dr": 0.5}]
        if kind != "ipo":
            made.append({"divide_by_beta": True})
        if normaliser == "region":
            made.append({"per_class": True})
        if kind in ("cdpo", "robust"):
            made.append({"link": {"kind": kind, "e": "votes" if normaliser == "voxel" else "calibrated"}})
        return [preference(**{"link": {"kind": kind}, "normaliser": normaliser, "floor": 4, **more}) for more in made]

    def bound(self, knobs: Preference):
        return knobs.bind(statistics(28, 36, voxels=56))

    def test_it_moves_logits_of_the_region_alone(self, kind, normaliser, outputs):
        pairs = drawn(outputs)
        region = torch.zeros(2, 8, 8, dtype=torch.bool)
        for image, mine in zip(pairs.image, disagreement_region(pairs.chosen, pairs.rejected), strict=True):
            region[image] |= mine
        assert not region[:, 7].any()
        for knobs in self.variants(kind, normaliser):
            loss, row = self.bound(knobs)(pairs)
            (gradient,) = torch.autograd.grad(loss, pairs.logits)
            assert np.isfinite([loss.item(), *row.values()]).all()
            assert (gradient.movedim(1, -1)[~region] == 0).all()
            assert (gradient[:, :, 7] == 0).all(), "padding"

    def test_a_new_student_is_pushed_alike_on_every_voxel(self, kind, normaliser, outputs):
        """Step 0: h = 0, one magnitude on D, up for chosen and down for rejected; its sum is the push reported."""
        pairs = subset(drawn(outputs, moved=0.0), 0)
        region = disagreement_region(pairs.chosen, pairs.rejected)[0]
        knobs = preference(link={"kind": kind}, normaliser=normaliser)
        loss, row = self.bound(knobs)(pairs)
        assert row["rewards/margins"] == 0
        gradient = torch.autograd.grad(loss, pairs.logits)[0][0]
        moved = gradient[gradient != 0].abs()
        assert len(moved) == min(2, outputs) * int(region.sum())
        assert moved.tolist() == pytest.approx([moved[0].item()] * len(moved), rel=1e-4)
        if outputs > 1:
            assert (gradient.gather(0, pairs.chosen.long().clamp(max=2))[0][region] < 0).all()
        else:
            assert (gradient[0][region & (pairs.chosen[0] == 1)] < 0).all()
        push = sum(value for name, value in row.items() if name.startswith("push/"))
        assert push == pytest.approx(gradient.abs().sum().item(), rel=1e-4)

    def test_the_push_is_what_autograd_finds(self, kind, normaliser, outputs):
        """Of a trained student, class by class; one pair of each image, so that no two pairs meet in a voxel."""
        pairs = subset(drawn(outputs), 0, 1)
        region = disagreement_region(pairs.chosen, pairs.rejected)
        label = torch.where(pairs.chosen > 0, pairs.chosen, pairs.rejected)
        for knobs in self.variants(kind, normaliser):
            loss, row = self.bound(knobs)(pairs)
            (gradient,) = torch.autograd.grad(loss, pairs.logits)
            for one, name in enumerate(pairs.classes[1:], start=1):
                mine = region & (label == one)
                assert row[f"push/{name}"] == pytest.approx(
                    gradient.abs().sum(1)[mine].sum().item(), rel=1e-4, abs=1e-8
                )
                assert row[f"disagreement/{name}"] == mine.sum().item() / 2

    def test_swapped_pairs_have_the_opposite_margin(self, kind, normaliser, outputs):
        pairs = drawn(outputs)
        bound = self.bound(preference(link={"kind": kind}, normaliser=normaliser))
        swapped = replace(pairs, chosen=pairs.rejected, rejected=pairs.chosen)
        margins = [bound(one)[1]["rewards/margins"] for one in (pairs, swapped)]
        assert margins[0] == pytest.approx(-margins[1])

    def test_pairs_that_agree_leave_numerator_and_count(self, kind, normaliser, outputs):
        pairs = drawn(outputs)
        pairs.rejected[1] = pairs.chosen[1]
        for knobs in self.variants(kind, normaliser):
            bound = self.bound(knobs)
            (loss, row), (expected, other) = bound(pairs), bound(subset(pairs, 0, 2))
            assert loss.item() == pytest.approx(expected.item())
            assert row == pytest.approx(other)

    def test_the_order_of_pairs_is_of_no_matter(self, kind, normaliser, outputs):
        pairs = drawn(outputs)
        for knobs in self.variants(kind, normaliser):
            bound = self.bound(knobs)
            assert bound(pairs)[0].item() == pytest.approx(bound(subset(pairs, 2, 0, 1))[0].item(), rel=1e-5)

    def test_a_larger_image_of_the_same(self, kind, normaliser, outputs):
        """Tiled: the loss of `region`, `voxel` and `image` stays, with N twice as large; `none` and `sqrt_region` see a
        margin of 2 and sqrt 2 times as much."""
        pairs = drawn(outputs)
        grows = {"none": 2.0, "sqrt_region": 2**0.5}.get(normaliser, 1.0)
        for knobs in self.variants(kind, normaliser):
            bound = self.bound(knobs)
            (loss, row), (larger, wider) = bound(pairs), bound(tiled(pairs))
            assert wider["rewards/margins"] == pytest.approx(grows * row["rewards/margins"], rel=1e-4)
            if grows == 1:
                assert larger.item() == pytest.approx(loss.item(), rel=1e-4)

    def test_half_precision_logits_give_a_float32_loss(self, kind, normaliser, outputs):
        """bf16 logits are what they are rounded to: the same numbers as from their float32 copies."""
        pairs = drawn(outputs)
        short = replace(
            pairs, logits=pairs.logits.detach().bfloat16().requires_grad_(), reference=pairs.reference.bfloat16()
        )
        copies = replace(short, logits=short.logits.detach().float(), reference=short.reference.float())
        for knobs in self.variants(kind, normaliser):
            bound = self.bound(knobs)
            (loss, row), (expected, other) = bound(short), bound(copies)
            assert loss.dtype == torch.float32
            assert loss.item() == expected.item()
            assert row["rewards/margins"] == other["rewards/margins"]
            assert torch.autograd.grad(loss, short.logits)[0].isfinite().all()

    def test_it_is_the_same_after_a_journey(self, kind, normaliser, outputs):
        pairs = drawn(outputs)
        for knobs in self.variants(kind, normaliser):
            read = TypeAdapter(Objective)
            assert read.validate_json(knobs.model_dump_json()) == knobs == pickle.loads(pickle.dumps(knobs))
            bound = self.bound(knobs)
            again = pickle.loads(pickle.dumps(bound))
            assert [again(pairs)[0].item(), again(pairs)[1], again.summary()] == [
                bound(pairs)[0].item(),
                bound(pairs)[1],
                bound.summary(),
            ]
