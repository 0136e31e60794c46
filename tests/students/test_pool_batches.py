"""Batches of pool images with all their pairs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor, nn

from pipeline.compute import Compute
from pipeline.seeding import numpy_generator
from pipeline.segmenter.architecture import Architecture
from pipeline.segmenter.augmentation import Augmentation
from pipeline.segmenter.knobs import Optimisation
from pipeline.segmenter.segmenter import Segmenter
from pipeline.segmenter.strong_views import StrongViews
from pipeline.store.cases import CaseStore
from pipeline.store.proposals import Data, ProposalStore
from pipeline.students.batch import PoolBatch
from pipeline.students.drift import drift
from pipeline.students.imitation import Target
from pipeline.students.objectives.preference import Preference
from pipeline.students.pair_loss import disagreement_region, pair_terms
from pipeline.students.pool_batches import PoolBatches
from pipeline.students.student import Training
from tests.fixtures.builders import bars, case_store, proposal_store
from tests.fixtures.networks import noise, small
from tests.fixtures.phantoms import disc

CLEAN = StrongViews(strength=0)
VIEWS = Augmentation(flips=(0, 1)).views()


def pairs_of(*rows: tuple[str, int, int, int]) -> pl.DataFrame:
    frame = pl.DataFrame(rows, schema=["case_id", "chosen", "rejected", "disagreement"], orient="row")
    return frame.with_columns(pl.lit(None, pl.Float64).alias("p_correct"))


def pool(
    folder: Path,
    masks: Sequence[np.ndarray],
    pairs: pl.DataFrame,
    window: tuple[int, ...],
    images: Sequence[np.ndarray] | None = None,
    reference: nn.Module | None = None,
    head: str = "softmax",
    classes: int = 2,
    augmentation: Augmentation | None = None,
    seed: int = 0,
    kind: Literal["cached", "recomputed"] = "cached",
    per_step: int = 1,
    cache_gb: float = 1.0,
    random_crops: float = 0.0,
    views: StrongViews = CLEAN,
) -> PoolBatches:
    """Pool cases with these masks u8 `[proposal, *space]`; images of noise unless given."""
    shapes = [m.shape[1:] for m in masks]
    if images is None:
        images = [noise(shape, f"c{i}") for i, shape in enumerate(shapes)]
    labels = [np.zeros(shape, np.uint8) for shape in shapes]
    if not (folder / "cases").exists():
        case_store(folder / "cases", labels, images=images, classes=classes)
        proposal_store(folder / "proposals", masks, classes=classes)
    architecture = Architecture("UNet", {}, len(window), 1, classes, head, window)
    cases = CaseStore(folder / "cases")
    return PoolBatches(
        Data(cases, ProposalStore(folder / "proposals")),
        pairs,
        [case for case in cases.all if case.case_id in set(pairs["case_id"])],
        Segmenter(reference or small(len(window), architecture.outputs), architecture, Compute()),
        Training(
            optimisation=Optimisation(steps=1, learning_rate=1e-3),
            images=per_step,
            reference=kind,
            cache_gb=cache_gb,
            random_crops=random_crops,
            views=views,
        ),
        augmentation or Augmentation(flips=(0, 1)),
        seed,
    )


def three_discs(shape: tuple[int, ...]) -> np.ndarray:
    return np.stack([disc(shape, 2), disc(shape, 3), disc(shape, 3, offset=1)])


def crops() -> np.random.Generator:
    return numpy_generator("crops")


class Counted(nn.Module):
    """Counts the images that pass."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.seen = network, list[int]()
        network.register_forward_hook(lambda _, inputs, __: self.seen.append(len(inputs[0])))

    def forward(self, image: Tensor) -> Tensor:
        return self.network(image)


def test_one_forward_pass_serves_all_pairs(tmp_path):
    """Two images with 2 and 1 pairs: one pass of 2 images, 3 pairs."""
    masks = [three_discs((8, 8))] * 2
    found = pool(tmp_path, masks, pairs_of(("c0", 1, 0, 5), ("c0", 1, 2, 5), ("c1", 2, 0, 5)), (8, 8))
    policy = Counted(small(2, 2))
    batch = found.batch([(case, ()) for case in found.pool], policy, crops())
    assert policy.seen == [2]
    assert batch.image.tolist() == [0, 0, 1]
    assert batch.voxels.tolist() == [64, 64, 64]
    assert (batch.chosen.numpy() == np.stack([masks[0][1], masks[0][1], masks[1][2]])).all()
    assert (batch.rejected.numpy() == np.stack([masks[0][0], masks[0][2], masks[1][0]])).all()
    assert batch.logits.shape == batch.reference.shape == (2, 2, 8, 8)
    assert batch.logits.requires_grad
    assert not batch.reference.requires_grad


def test_statistics(tmp_path):
    """Bars of 2 and 5 of 16 pixels differ in 3; of 2 and 9 in 7. The other image has 12 pixels and |D| = 4."""
    masks = [bars([2, 5, 9]), bars([1, 5, 5], width=12)]
    pairs = pairs_of(("c0", 1, 0, 3), ("c0", 2, 0, 7), ("c1", 1, 0, 4))
    found = pool(tmp_path, masks, pairs, (1, 16)).statistics()
    assert (found.size.tolist(), found.voxels.tolist(), found.dimensions) == ([3, 7, 4], [16, 16, 12], 2)


def test_statistics_of_crops(tmp_path):
    """What a step sees: of a pair that differs everywhere in 40 pixels, a window of 8 holds 8."""
    masks = np.stack([np.zeros((1, 40), np.uint8), np.ones((1, 40), np.uint8)])
    found = pool(tmp_path, [masks], pairs_of(("c0", 1, 0, 40)), (1, 8))
    statistics = found.statistics()
    assert (statistics.size.tolist(), statistics.voxels.tolist()) == ([8], [8])
    assert found.batch([(found.pool[0], ())], small(2, 2), crops()).voxels.tolist() == [8]


@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_cached_reference_equals_a_recomputed_one(tmp_path, dimensions):
    """The same bytes in every view; 2 images in 4 views, seen twice, are 8 passes cached and 16 recomputed."""
    space = (8, 6, 5)[:dimensions]
    pairs = pairs_of(("c0", 1, 0, 5), ("c1", 2, 0, 5))
    policy = small(dimensions, 2, seed=1)

    def references(kind: Literal["cached", "recomputed"]) -> tuple[list[bytes], int]:
        counted = Counted(small(dimensions, 2))
        window = (8,) * dimensions
        found = pool(tmp_path, [three_discs(space)] * 2, pairs, window, reference=counted.network, kind=kind)
        drawn = [(case, view) for _ in range(2) for case in found.pool for view in VIEWS]
        return [found.batch([d], policy, crops()).reference.numpy().tobytes() for d in drawn], len(counted.seen)

    cached, recomputed = references("cached"), references("recomputed")
    assert cached[0] == recomputed[0]
    assert (cached[1], recomputed[1]) == (8, 16)
    assert len(set(cached[0])) == 8


@pytest.mark.parametrize("space", [(8, 8), (5, 7)])
@pytest.mark.parametrize("view", VIEWS)
def test_image_masks_and_reference_move_together(tmp_path, view, space):
    """Logits are the image, and chosen is where the image is positive: so it stays in every view."""
    image = noise(space)
    masks = np.stack([np.zeros(space, np.uint8), (image[0] > 0).astype(np.uint8)])
    found = pool(tmp_path, [masks], pairs_of(("c0", 1, 0, 5)), (8, 8), [image], reference=nn.Identity(), head="sigmoid")
    batch = found.batch([(found.pool[0], view)], nn.Identity(), crops())
    known = batch.chosen[0] != 255
    real = (slice(0, space[0]), slice(0, space[1]))
    assert known[real].all()
    assert int(known.sum()) == space[0] * space[1]
    assert torch.equal((batch.logits[0, 0] > 0)[known], (batch.chosen[0] == 1)[known])
    assert torch.equal(batch.rejected[0] == 255, batch.chosen[0] == 255)
    assert torch.equal(batch.reference, batch.logits)
    flipped = np.flip(image[0], view) if view else image[0]
    assert (batch.logits[0, 0][real].numpy() == flipped).all()


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("outputs", [1, 2])
def test_the_margin_is_zero_before_the_first_step(tmp_path, view, outputs):
    """Policy equals reference, which is no symmetric network: h is 0 in every view, also when recomputed."""
    found = pool(
        tmp_path,
        [three_discs((7, 8))],
        pairs_of(("c0", 1, 0, 5), ("c0", 2, 1, 5)),
        (8, 8),
        head="sigmoid" if outputs == 1 else "softmax",
    )
    for _ in range(2):
        batch = found.batch([(found.pool[0], view)], small(2, outputs), crops())
        result = pair_terms(batch.logits, batch.reference, batch.chosen, batch.rejected, batch.image)
        assert result.total(result.shift).tolist() == [0.0, 0.0]
        assert (result.size > 0).all()
        row = drift(batch)
        assert row["kl_inside"] == row["kl_outside"] == 0
        assert row["volume_ratio"] in (1, None)


def test_sided_classes_change_places_in_the_masks(tmp_path):
    """Left 1, right 2. Flipped along axis 1 and exchanged: 1, 2 again, and the image turned."""
    masks = np.array([[[0, 2]], [[1, 2]]], np.uint8)
    found = pool(
        tmp_path,
        [masks],
        pairs_of(("c0", 1, 0, 1)),
        (1, 2),
        [np.array([[[5.0, 7.0]]], np.float32)],
        classes=3,
        augmentation=Augmentation(flips=(0, 1), swap_labels=((1, 1, 2),)),
    )
    policy = small(2, 3)
    plain = found.batch([(found.pool[0], ())], policy, crops())
    turned = found.batch([(found.pool[0], (1,))], policy, crops())
    assert (plain.chosen.tolist(), plain.rejected.tolist()) == ([[[1, 2]]], [[[0, 2]]])
    assert (turned.chosen.tolist(), turned.rejected.tolist()) == ([[[1, 2]]], [[[1, 0]]])
    assert not torch.equal(plain.logits, turned.logits)


def test_smaller_images_are_padded(tmp_path):
    """2x3 in a window of 4x4: 10 of 16 voxels are 255 in both masks and 0 in the image; voxels counts the 6."""
    masks = np.array([[[0, 0, 0], [0, 0, 0]], [[1, 1, 1], [1, 1, 1]]], np.uint8)
    found = pool(
        tmp_path,
        [masks],
        pairs_of(("c0", 1, 0, 6)),
        (4, 4),
        [np.ones((1, 2, 3), np.float32)],
        reference=nn.Identity(),
        head="sigmoid",
    )
    batch = found.batch([(found.pool[0], (0, 1))], nn.Identity(), crops())
    assert batch.chosen[0].tolist() == [[1, 1, 1, 255], [1, 1, 1, 255], [255] * 4, [255] * 4]
    assert batch.rejected[0].tolist() == [[0, 0, 0, 255], [0, 0, 0, 255], [255] * 4, [255] * 4]
    assert batch.logits[0, 0].tolist() == [[1, 1, 1, 0], [1, 1, 1, 0], [0] * 4, [0] * 4]
    assert batch.voxels.tolist() == [6]
    assert disagreement_region(batch.chosen, batch.rejected).sum().item() == 6


@pytest.mark.parametrize(
    ("space", "window"), [((30, 20), (8, 8)), ((30, 5), (8, 8)), ((16, 18, 14), (4, 8, 4)), ((16, 3, 9), (4, 4, 4))]
)
def test_larger_cases_are_cropped_around_disagreement(tmp_path, space, window):
    """One pair differs in one voxel of a corner, and every crop holds it; image and masks are of the same place."""
    masks = np.zeros((2, *space), np.uint8)
    masks[(1, *(length - 1 for length in space))] = 1
    image = masks[1][None].astype(np.float32)
    found = pool(tmp_path, [masks], pairs_of(("c0", 1, 0, 1)), window, [image], reference=nn.Identity(), head="sigmoid")
    generator = crops()
    for view in VIEWS:
        batch = found.batch([(found.pool[0], view)], nn.Identity(), generator)
        assert batch.chosen.shape == (1, *window)
        assert disagreement_region(batch.chosen, batch.rejected).sum().item() == 1
        assert torch.equal(batch.logits[0, 0] == 1, batch.chosen[0] == 1)
        assert torch.equal(batch.reference, batch.logits.detach())
        expected = int(np.prod(np.minimum(space, window)))
        assert int((batch.chosen != 255).sum()) == expected


def test_a_crop_follows_one_pair_at_a_time(tmp_path):
    """Two pairs at the two ends of a line of 40: each crop of 8 holds one, and both are seen in 20 crops."""
    masks = np.zeros((3, 1, 40), np.uint8)
    masks[1, 0, 1] = masks[2, 0, 38] = 1
    found = pool(tmp_path, [masks], pairs_of(("c0", 1, 0, 1), ("c0", 2, 0, 1)), (1, 8))
    generator, policy, seen = crops(), small(2, 2), set()
    for _ in range(20):
        batch = found.batch([(found.pool[0], ())], policy, generator)
        seen.add(tuple(disagreement_region(batch.chosen, batch.rejected).flatten(1).sum(1).tolist()))
    assert seen == {(1, 0), (0, 1)}


def test_draws(tmp_path):
    """5 images, 2 per step: in 5 steps each twice, all views in use; equal seed, equal order; another seed, another."""
    masks = [bars([2, 5])] * 5
    pairs = pairs_of(*((f"c{i}", 1, 0, 3) for i in range(5)))

    def drawn(seed: int, steps: int) -> list[tuple[str, tuple[int, ...]]]:
        found = pool(tmp_path, masks, pairs, (1, 16), seed=seed, per_step=2)
        steps_of = list(islice(found.draws(), steps))
        assert all(len(step) == 2 for step in steps_of)
        return [(case.case_id, view) for step in steps_of for case, view in step]

    first = drawn(0, 5)
    assert sorted(case_id for case_id, _ in first) == sorted(2 * [f"c{i}" for i in range(5)])
    assert drawn(0, 5) == first
    assert drawn(1, 5) != first
    assert {view for _, view in drawn(0, 40)} == set(VIEWS)


def test_more_images_per_step_than_there_are(tmp_path):
    found = pool(tmp_path, [bars([2, 5])] * 2, pairs_of(("c0", 1, 0, 3), ("c1", 1, 0, 3)), (1, 16), per_step=4)
    assert [sorted(case.case_id for case, _ in step) for step in islice(found.draws(), 3)] == [["c0", "c1"]] * 3


def test_only_cases_with_pairs_are_drawn(tmp_path):
    found = pool(tmp_path, [bars([2, 5])] * 3, pairs_of(("c2", 1, 0, 3)), (1, 16))
    assert [case.case_id for case in found.pool] == ["c2"]


def test_the_cache_keeps_its_budget(tmp_path):
    """A reference is 2*8*8*4 = 512 bytes, an image 256 and masks 128: 1024 bytes hold one image's and one more."""
    masks, pairs = [three_discs((8, 8))] * 3, pairs_of(*((f"c{i}", 1, 0, 5) for i in range(3)))
    policy, budget = small(2, 2, seed=1), 1024
    tight = pool(tmp_path, masks, pairs, (8, 8), cache_gb=budget / 2**30)
    ample = pool(tmp_path, masks, pairs, (8, 8))
    for view in VIEWS:
        for case in tight.pool:
            one, two = (found.batch([(case, view)], policy, crops()) for found in (tight, ample))
            assert content(one) == content(two)
            assert tight.images.cache.held <= budget
            assert tight.images.cache.held == sum(value.nbytes for value in tight.images.cache.values.values())
    assert ample.images.cache.held == 3 * (256 + 128) + 3 * 4 * 512


def test_a_batch_leaves_the_cached_tensors_alone(tmp_path):
    found = pool(tmp_path, [three_discs((8, 8))], pairs_of(("c0", 1, 0, 5)), (8, 8))
    policy = small(2, 2, seed=1)
    first = content(found.batch([(found.pool[0], ())], policy, crops()))
    for view in VIEWS:
        found.batch([(found.pool[0], view)], policy, crops())
    assert content(found.batch([(found.pool[0], ())], policy, crops())) == first


def content(batch: PoolBatch) -> list[bytes]:
    return [part.detach().numpy().tobytes() for part in (batch.logits, batch.reference, batch.chosen, batch.rejected)]


def test_votes_of_the_proposals(tmp_path):
    """Bars of 2, 5, 5 (a duplicate, which votes once) and 8 voxels. Pair 5 over 2: D is voxels 2 to 4, where the
    distinct masks 5 and 8 say foreground and 2 says background: e = 1/3. Pair 2 over 8: at voxels 2 to 4 chosen says
    background (1 vote) against 2, e = 2/3 clipped to .45; at voxels 5 to 7 it has 2 votes (2 and 5) against 1: 1/3."""
    found = pool(tmp_path, [bars([2, 5, 5, 8])], pairs_of(("c0", 1, 0, 3), ("c0", 0, 3, 6)), (1, 16))
    assert found.batch([(found.pool[0], ())], small(2, 2), crops()).voxel_e is None
    found.votes = True
    e = found.batch([(found.pool[0], ())], small(2, 2), crops()).voxel_e
    assert e[0, 0, 2:5].tolist() == pytest.approx([1 / 3] * 3)
    assert e[1, 0, 2:5].tolist() == pytest.approx([0.45] * 3)
    assert e[1, 0, 5:8].tolist() == pytest.approx([1 / 3] * 3)


def test_error_of_each_pair(tmp_path):
    """p_correct .7 and .995: e = .3 and .005, clipped to .02; one pair without calibration leaves none."""
    pairs = pairs_of(("c0", 1, 0, 3), ("c0", 2, 0, 6))
    masks = [bars([2, 5, 8])]
    calibrated = pairs.with_columns(pl.Series("p_correct", [0.7, 0.995]))
    found = pool(tmp_path, masks, calibrated, (1, 16))
    assert found.batch([(found.pool[0], ())], small(2, 2), crops()).e.tolist() == pytest.approx([0.3, 0.02])
    half = pairs.with_columns(pl.Series("p_correct", [0.7, None], pl.Float64))
    found = pool(tmp_path, masks, half, (1, 16))
    assert found.batch([(found.pool[0], ())], small(2, 2), crops()).e is None


def test_probability_is_flipped_with_its_image_and_sided_classes_swap(tmp_path):
    """Axis 1 flipped, classes 1 and 2 sided: their channels change places."""
    mask = np.zeros((3, 2, 4), np.uint8)
    mask[:, :, 0], mask[:, :, 3] = 1, 2
    augmentation = Augmentation(flips=(1,), swap_labels=((1, 1, 2),))
    found = pool(tmp_path, [mask], pairs_of(("c0", 1, 0, 1)), (2, 4), classes=3, augmentation=augmentation)
    found.probability = True
    plain = found.batch([(found.pool[0], ())], small(2, 3), crops()).probability[0]
    turned = found.batch([(found.pool[0], (1,))], small(2, 3), crops()).probability[0]
    assert plain[1, 0].tolist() == [1, 0, 0, 0]
    assert turned[1, 0].tolist() == [1, 0, 0, 0]  # what was class 2 at the far end
    assert torch.equal(turned[0], plain[0].flip(-1))


def test_padding_is_not_known(tmp_path):
    found = pool(tmp_path, [bars([2, 5], 6)], pairs_of(("c0", 1, 0, 3)), (1, 8))
    batch = found.batch([(found.pool[0], ())], small(2, 2), crops())
    assert batch.known[0, 0].tolist() == [True] * 6 + [False] * 2
    assert batch.voxels.tolist() == [6]


def test_noise_depends_on_the_step_and_spares_the_reference(tmp_path):
    found = pool(tmp_path, [bars([2, 5])], pairs_of(("c0", 1, 0, 3)), (1, 16), reference=nn.Identity(), head="sigmoid")
    clean = found.batch([(found.pool[0], ())], nn.Identity(), crops(), step=1)
    found.noise = 0.5
    one, again, other = (found.batch([(found.pool[0], ())], nn.Identity(), crops(), step=s) for s in (1, 1, 2))
    assert torch.equal(one.reference, clean.logits)
    assert torch.equal(one.logits, again.logits)
    assert not torch.equal(one.logits, other.logits)
    assert 0.1 < float((one.logits - clean.logits).std()) < 1.0


def test_strong_views_depend_on_seed_step_and_case_and_spare_all_but_the_policy(tmp_path):
    """Two cases have the same image and two views. Masks, reference and clean images stay. The same step gives the same
    view. Without a step nothing is varied."""
    pairs = pairs_of(("c0", 1, 0, 3), ("c1", 1, 0, 3))
    masks, images = [three_discs((8, 8))] * 2, [noise((8, 8))] * 2
    found = pool(tmp_path, masks, pairs, (8, 8), images, nn.Identity(), head="sigmoid", views=StrongViews())
    drawn = [(case, (0,)) for case in found.pool]
    one, again, other, clean = (found.batch(drawn, nn.Identity(), crops(), step=s) for s in (1, 1, 2, None))
    assert torch.equal(clean.logits, clean.images)
    assert torch.equal(one.logits, again.logits)
    assert not torch.equal(one.logits, other.logits)
    assert torch.equal(clean.logits[0], clean.logits[1])
    assert not torch.equal(one.logits[0], one.logits[1])
    for name in ("reference", "chosen", "rejected", "images", "known"):
        assert torch.equal(getattr(one, name), getattr(clean, name))
    alone = found.batch(drawn[:1], nn.Identity(), crops(), step=1).logits
    assert torch.equal(alone[0], one.logits[0]), "a view does not depend on the other images of the batch"


def test_targets_are_flipped_with_their_image_and_hold_what_all_agree_on(tmp_path):
    """Slots 0 0 1 1, 0 1 1 1 and 0 1 1 0: all agree on voxels 0 and 2; the mean is 0, 2/3, 1 and 2/3."""
    masks = np.array([[[0, 0, 1, 1]], [[0, 1, 1, 1]], [[0, 1, 1, 0]]], np.uint8)
    found = pool(tmp_path, [masks], pairs_of(("c0", 1, 0, 1)), (1, 6))
    named, agreed, mean = Target(proposal="s 2"), Target(proposal="s 1", where="agreement"), Target()
    found.targets = (named, agreed, mean)
    plain, flipped = (found.batch([(found.pool[0], view)], small(2, 2), crops()).targets for view in ((), (1,)))
    assert plain[named][0, 0].tolist() == [0, 1, 1, 0, 255, 255]
    assert plain[agreed][0, 0].tolist() == [0, 255, 1, 255, 255, 255]
    assert plain[mean][0, 0].tolist() == [0, 1, 1, 1, 255, 255]
    assert flipped[agreed][0, 0].tolist() == [255, 1, 255, 0, 255, 255]


def test_random_crops_have_their_share(tmp_path):
    """One voxel of 400 differs: of 200 crops of 8, half are around it, and of the others 8 / 393 hold it by chance."""
    masks = np.zeros((2, 1, 400), np.uint8)
    masks[1, 0, 200] = 1
    found = pool(tmp_path, [masks], pairs_of(("c0", 1, 0, 1)), (1, 8), random_crops=0.5)
    generator, policy = crops(), small(2, 2)
    batches = [found.batch([(found.pool[0], ())], policy, generator) for _ in range(200)]
    holding = sum(int(disagreement_region(b.chosen, b.rejected).sum()) for b in batches)
    assert 75 <= holding <= 130
    again = [found.batch([(found.pool[0], ())], policy, generator) for generator in (crops(), crops())]
    assert content(again[0]) == content(again[1])


def test_a_pair_that_agrees_in_a_crop_leaves_numerator_and_count(tmp_path):
    """Two pairs at the two ends of a line: the loss of a crop that holds one is that of the one alone.

    Policy logits are the image's 2 everywhere, the reference's 0; chosen is foreground: the shift is 2 on |D| = 1,
    h = 3 * 2 / 16 (the floor), and the loss log(1 + e^-h).
    """
    masks = np.zeros((3, 1, 40), np.uint8)
    masks[1, 0, 1] = masks[2, 0, 38] = 1
    image = np.full((1, 1, 40), 2, np.float32)
    pairs = pairs_of(("c0", 1, 0, 1), ("c0", 2, 0, 1))
    found = pool(tmp_path, [masks], pairs, (1, 8), [image], reference=Zero(), head="sigmoid")
    batch = found.batch([(found.pool[0], ())], nn.Identity(), crops())
    assert len(batch.image) == 2
    objective = Preference(kind="preference", beta=3, beta_unit="own").bind(found.statistics())
    assert float(objective(batch)[0]) == pytest.approx(float(np.log1p(np.exp(-6 / 16))), abs=1e-6)


def test_a_step_whose_crops_hold_no_disagreement_moves_nothing(tmp_path):
    """A crop anywhere, away from the one voxel that differs: the loss is 0 exactly, and so is every gradient."""
    masks = np.zeros((2, 1, 400), np.uint8)
    masks[1, 0, 399] = 1
    found = pool(tmp_path, [masks], pairs_of(("c0", 1, 0, 1)), (1, 8), random_crops=1.0)
    policy, generator = small(2, 2), crops()
    batch = found.batch([(found.pool[0], ())], policy, generator)
    assert not disagreement_region(batch.chosen, batch.rejected).any()
    loss, row = Preference(kind="preference").bind(found.statistics())(batch)
    loss.backward()
    assert (loss.item(), row) == (0.0, {})
    assert all((weight.grad == 0).all() for weight in policy.parameters())


def test_of_a_large_case_only_crops_are_read(tmp_path, monkeypatch):
    """Nothing of it is kept in the cache, and no read but the counting of chunks is larger than a chunk of 256."""
    masks = np.zeros((2, 1, 1000), np.uint8)
    masks[1, 0, 600] = 1
    found = pool(tmp_path, [masks], pairs_of(("c0", 1, 0, 1)), (1, 8))
    read: list[int] = []
    whole = ProposalStore.masks

    def watched(self, case, slots=None, where=None):
        assert where is not None
        read.append(where[-1].stop - where[-1].start)
        return whole(self, case, slots, where)

    monkeypatch.setattr(ProposalStore, "masks", watched)
    for _ in range(3):
        found.batch([(found.pool[0], ())], small(2, 2), crops())
    assert read == [256, 256, 256, 232, *(3 * [256, 8])]
    assert found.images.cache.held == 0


class Zero(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return torch.zeros_like(image)
