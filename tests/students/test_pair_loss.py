"""Margins of mask pairs, their gradients, normalisers and rewards, with numbers worked by hand."""

from __future__ import annotations

from math import exp, log
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.seeding import numpy_generator, torch_generator
from pipeline.store.schema import UNKNOWN
from pipeline.students.links.sigmoid import Sigmoid
from pipeline.students.pair_loss import (
    disagreement_region,
    kl_to_reference,
    normaliser_value,
    pair_terms,
    reduce_pairs,
    restricted_rewards,
)

FIRST = torch.zeros(1, dtype=torch.long)
"""One pair, of the first image."""


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch_generator(seed, "losses"))


def classes(*shape: int, outputs: int, seed: int = 0) -> Tensor:
    labels = numpy_generator(seed, "losses").integers(max(2, outputs), size=shape)
    return torch.from_numpy(labels.astype(np.uint8))


class Found(NamedTuple):
    delta: Tensor  # [pair]
    size: Tensor  # [pair]


def margins(logits: Tensor, reference: Tensor, chosen: Tensor, rejected: Tensor, image: Tensor) -> Found:
    terms = pair_terms(logits, reference, chosen, rejected, image)
    return Found(terms.total(terms.shift), terms.size)


def pair_loss(logits: Tensor, chosen: Tensor, rejected: Tensor, beta: float, kind: str = "region") -> Tensor:
    """`-logsig(beta delta / N)` of one pair against a reference equal to the policy."""
    found = margins(logits, logits.detach(), chosen, rejected, FIRST)
    n = normaliser_value(kind, found.size, 1, chosen[0].numel())  # type: ignore[arg-type]
    h = beta * found.delta / n
    return reduce_pairs(Sigmoid()(h, h), found.size, logits)


# ---- delta -----------------------------------------------------------------------------------------------------


def test_delta_of_a_binary_head():
    """Shifts z - r = (1, 2, 3, 4); w = 1100, l = 0101, D = {0, 3}: delta = +1 (only chosen) - 4 (only rejected)."""
    logits, reference = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]]), torch.zeros(1, 1, 4)
    chosen, rejected = torch.tensor([[1, 1, 0, 0]]).byte(), torch.tensor([[0, 1, 0, 1]]).byte()
    found = margins(logits, reference, chosen, rejected, FIRST)
    assert found.delta.tolist() == [-3.0]
    assert found.size.tolist() == [2]


def test_delta_of_a_softmax_head():
    """Voxel 0: w = 2, l = 1, z - r = (1, 2, 5): 5 - 2 = 3. Voxel 1: w = 0, l = 2, z - r = (4, 0, 1): 4 - 1 = 3.

    Voxel 2: w = l: nothing. delta = 6 on |D| = 2.
    """
    shift = torch.tensor([[[1.0, 4.0, 9.0], [2.0, 0.0, 9.0], [5.0, 1.0, 9.0]]])
    reference = normal(1, 3, 3)
    chosen, rejected = torch.tensor([[2, 0, 1]]).byte(), torch.tensor([[1, 2, 1]]).byte()
    found = margins(reference + shift, reference, chosen, rejected, FIRST)
    assert found.delta.tolist() == pytest.approx([6.0], abs=1e-5)
    assert found.size.tolist() == [2]


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("space", [(5, 7), (3, 4, 5)])
def test_delta_equals_the_difference_of_whole_mask_log_ratios(outputs, space):
    """The partition terms cancel: the sum over D of logits is the sum over the image of log-probabilities."""
    logits, reference = normal(1, outputs, *space, seed=1).double(), normal(1, outputs, *space, seed=2).double()
    chosen, rejected = classes(1, *space, outputs=outputs, seed=1), classes(1, *space, outputs=outputs, seed=2)

    def log_p(z: Tensor, mask: Tensor) -> float:
        full = torch.cat([torch.zeros_like(z), z], 1) if outputs == 1 else z
        return float(torch.log_softmax(full, 1).gather(1, mask[None].long()).sum())

    expected = log_p(logits, chosen) - log_p(reference, chosen) - (log_p(logits, rejected) - log_p(reference, rejected))
    assert margins(logits, reference, chosen, rejected, FIRST).delta.item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("outputs", [1, 3])
def test_delta_is_antisymmetric_and_additive_over_parts_of_the_region(outputs):
    """delta(w, l) = -delta(l, w); where l' takes w's side on half of D, delta(w, l') + delta(l', l) = delta(w, l)."""
    logits, reference = normal(1, outputs, 6, 6, seed=3), normal(1, outputs, 6, 6, seed=4)
    chosen, rejected = classes(1, 6, 6, outputs=outputs, seed=3), classes(1, 6, 6, outputs=outputs, seed=4)
    between = rejected.clone()
    between[:, :3] = chosen[:, :3]

    def of(one: Tensor, other: Tensor) -> float:
        return margins(logits, reference, one, other, FIRST).delta.item()

    assert of(chosen, rejected) == pytest.approx(-of(rejected, chosen), abs=1e-5)
    assert of(chosen, between) + of(between, rejected) == pytest.approx(of(chosen, rejected), abs=1e-5)
    assert of(chosen, chosen) == 0


def test_pairs_find_their_image_in_any_order():
    """Two images with shifts 1 and 10 everywhere, pairs of images 1, 0, 1 that disagree on 1, 2 and 3 pixels:
    delta = 10, 2, 30."""
    logits = torch.stack([torch.full((1, 4), 1.0), torch.full((1, 4), 10.0)])
    chosen = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]]).byte()
    found = margins(logits, torch.zeros(2, 1, 4), chosen, torch.zeros_like(chosen), torch.tensor([1, 0, 1]))
    assert found.delta.tolist() == [10.0, 2.0, 30.0]
    assert found.size.tolist() == [1, 2, 3]


def test_a_voxel_of_255_is_in_no_region():
    """w = 1x1, l = 00x (x = 255): D = {0}, so delta = 5 with a shift of 5 everywhere, for either head."""
    chosen, rejected = torch.tensor([[1, 255, 1]]).byte(), torch.tensor([[0, 0, 255]]).byte()
    assert disagreement_region(chosen, rejected).tolist() == [[True, False, False]]
    for logits in (torch.full((1, 1, 3), 5.0), torch.stack([torch.zeros(3), torch.full((3,), 5.0)])[None]):
        found = margins(logits, torch.zeros_like(logits), chosen, rejected, FIRST)
        assert found.delta.tolist() == [5.0]
        assert found.size.tolist() == [1]


def test_terms_of_a_softmax_head():
    """Pair 0: w = 021, l = 011: voxel 1 alone, of class 2. Pair 1, of another image: w = 100, l = 122: voxels 1 and 2,
    of the rejected class 2, since chosen is background. Places count on through the pairs: 1, 3 + 1, 3 + 2.

    z - r = class + 10 voxel (+ 100 in image 1): for two classes of one voxel their difference: 2 - 1, 0 - 2, 0 - 2.
    """
    chosen, rejected = torch.tensor([[0, 2, 1], [1, 0, 0]]).byte(), torch.tensor([[0, 1, 1], [1, 2, 2]]).byte()
    moved = torch.tensor([[[0.0, 10, 20], [1, 11, 21], [2, 12, 22]]])
    terms = pair_terms(torch.cat([moved, moved + 100]), torch.zeros(2, 3, 3), chosen, rejected, torch.tensor([1, 0]))
    assert terms.place.tolist() == [1, 4, 5]
    assert terms.shift.tolist() == [1, -2, -2]
    assert terms.part.tolist() == [1, 1, 1]
    assert terms.sizes.tolist() == [[0, 1], [0, 2]]
    assert terms.total(terms.shift).tolist() == [1, -4]


def test_parts_of_the_region():
    """w = 1120, l = 2201: voxel 0 and 1 are of class 1 (chosen), 2 of class 2, 3 of class 1 (rejected): 3 and 1 voxels.

    Values 1, 2, 4, 8 add up to 1 + 2 + 8 and 4. The second pair agrees everywhere, and has nothing.
    """
    chosen, rejected = torch.tensor([[1, 1, 2, 0]] * 2).byte(), torch.tensor([[2, 2, 0, 1], [1, 1, 2, 0]]).byte()
    terms = pair_terms(torch.zeros(1, 3, 4), torch.zeros(1, 3, 4), chosen, rejected, torch.zeros(2, dtype=torch.long))
    assert terms.sizes.tolist() == [[3, 1], [0, 0]]
    assert terms.total_by_part(torch.tensor([1.0, 2, 4, 8])).tolist() == [[11, 4], [0, 0]]
    assert terms.size.tolist() == [4, 0]


def test_terms_of_a_binary_head():
    """w = 01, l = 11 with z - r = 3, 4: voxel 0 alone, -3, of the one part there is."""
    terms = pair_terms(
        torch.tensor([[[3.0, 4.0]]]),
        torch.zeros(1, 1, 2),
        torch.tensor([[0, 1]]).byte(),
        torch.ones(1, 2).byte(),
        FIRST,
    )
    assert (terms.shift.tolist(), terms.part.tolist(), terms.sizes.tolist()) == ([-3], [0], [[1]])


@pytest.mark.parametrize("outputs", [1, 3])
def test_at_step_0_every_margin_is_0(outputs):
    """Policy equals reference: delta = 0 whatever the logits."""
    logits = 100 * normal(2, outputs, 8, 8)
    chosen, rejected = classes(2, 8, 8, outputs=outputs, seed=1), classes(2, 8, 8, outputs=outputs, seed=2)
    assert margins(logits, logits.clone(), chosen, rejected, torch.arange(2)).delta.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(("dtype", "whole_image"), [(torch.bfloat16, "zero"), (torch.float16, "not finite")])
def test_half_precision_logits_keep_their_margin(dtype, whole_image):
    """512x512 with r = 1, z = 1 + 1/128 on 818 pixels of D: delta = 818/128 = 6.39.

    Whole-image log-probabilities are near 512^2 log sigmoid(1) = -82,000: bf16 has steps of 512 there, so that the
    subtraction gives 0; fp16 ends at 65,504, so that it gives inf - inf.
    """
    reference = torch.ones(1, 1, 512, 512, dtype=dtype)
    logits = reference.clone()
    logits.view(-1)[:818] += 1 / 128
    chosen = torch.ones(1, 512, 512, dtype=torch.uint8)
    rejected = chosen.clone()
    rejected.view(-1)[:818] = 0

    def log_p(z: Tensor, mask: Tensor) -> Tensor:
        return torch.nn.functional.logsigmoid(torch.where(mask[None] == 1, z, -z)).sum()

    naive = log_p(logits, chosen) - log_p(reference, chosen) - (log_p(logits, rejected) - log_p(reference, rejected))
    assert naive.item() == 0 if whole_image == "zero" else not naive.isfinite()
    found = margins(logits, reference, chosen, rejected, FIRST)
    assert found.delta.dtype == torch.float32
    assert found.delta.item() == pytest.approx(6.39, abs=1e-2)


# ---- gradients -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [1.0, 3.0])
def test_the_gradient_of_a_binary_head_is_equal_on_the_region_and_0_outside(beta):
    """At h = 0 the slope of -logsig is -1/2: under `region` each of |D| logits gets beta / (2 |D|), beta/2 together."""
    logits = normal(1, 1, 6, 6).requires_grad_()
    chosen, rejected = classes(1, 6, 6, outputs=1, seed=1), classes(1, 6, 6, outputs=1, seed=2)
    region = disagreement_region(chosen, rejected)[0]
    pair_loss(logits, chosen, rejected, beta).backward()
    gradient = logits.grad[0, 0]
    assert (gradient[~region] == 0).all()
    assert gradient[region].abs().tolist() == pytest.approx([beta / 2 / int(region.sum())] * int(region.sum()))
    assert gradient.abs().sum().item() == pytest.approx(beta / 2)
    assert (gradient[region & (chosen[0] == 1)] < 0).all(), "a step down the gradient raises logits of the chosen"


@pytest.mark.parametrize("beta", [1.0, 3.0])
def test_the_gradient_of_a_softmax_head_is_equal_on_the_region_and_0_outside(beta):
    """Two logits per voxel of D move, w up and l down, by beta / (2 |D|) each: beta together. The third stays."""
    logits = normal(1, 3, 6, 6).requires_grad_()
    chosen, rejected = classes(1, 6, 6, outputs=3, seed=1), classes(1, 6, 6, outputs=3, seed=2)
    region = disagreement_region(chosen, rejected)[0]
    count = int(region.sum())
    pair_loss(logits, chosen, rejected, beta).backward()
    gradient = logits.grad[0]
    assert (gradient[:, ~region] == 0).all()
    for mask, sign in ((chosen, -1), (rejected, 1)):
        mine = gradient.gather(0, mask.long())[0][region]
        assert mine.tolist() == pytest.approx([sign * beta / 2 / count] * count)
    assert gradient.abs().sum().item() == pytest.approx(beta)


def test_without_a_normaliser_the_push_grows_with_the_region():
    """`none` at beta 1: 1/2 per pixel, so 4 pixels get 2 and 8 pixels get 4 in sum."""
    for size in (4, 8):
        logits = torch.zeros(1, 1, 16, requires_grad=True)
        chosen = (torch.arange(16) < size).byte()[None]
        pair_loss(logits, chosen, torch.zeros_like(chosen), 1.0, "none").backward()
        assert logits.grad.abs().sum().item() == pytest.approx(size / 2)


@pytest.mark.parametrize("outputs", [1, 3])
def test_region_is_unchanged_by_tiling_and_by_pixels_that_agree(outputs):
    """Twice the image has twice delta and twice |D|; pixels on which both masks agree have neither."""
    logits, reference = normal(1, outputs, 6, 6, seed=5), normal(1, outputs, 6, 6, seed=6)
    chosen, rejected = classes(1, 6, 6, outputs=outputs, seed=5), classes(1, 6, 6, outputs=outputs, seed=6)

    def h(z: Tensor, r: Tensor, w: Tensor, x: Tensor) -> float:
        found = margins(z, r, w, x, FIRST)
        return (found.delta / normaliser_value("region", found.size, 1, w[0].numel())).item()

    alone = h(logits, reference, chosen, rejected)
    tiled = [torch.cat([part, part], -1) for part in (logits, reference, chosen, rejected)]
    more = normal(1, outputs, 6, 6, seed=7)
    agreed = torch.ones(1, 6, 6, dtype=torch.uint8)
    wider = [
        torch.cat(parts, -1) for parts in ((logits, more), (reference, -more), (chosen, agreed), (rejected, agreed))
    ]
    assert h(*tiled) == pytest.approx(alone, abs=1e-5)
    assert h(*wider) == pytest.approx(alone, abs=1e-5)


def test_a_pair_without_disagreement_leaves_numerator_and_count():
    """Losses 3 and 5 with |D| of 2 and 0: the mean is 3, not (3 + 5) / 2 and not 3 / 2."""
    loss = torch.tensor([3.0, 5.0])
    assert reduce_pairs(loss, torch.tensor([2, 0]), torch.zeros(1)).item() == 3.0


def test_dr_dpo_by_hand():
    """Losses 1 and 3, b = 2: -2 log((exp(-1/2) + exp(-3/2)) / 2) = -2 log(.41483) = 1.7597; a third pair has no D."""
    loss, size = torch.tensor([1.0, 3.0, 50.0]), torch.tensor([2, 2, 0])
    expected = -2 * log((exp(-0.5) + exp(-1.5)) / 2)
    assert expected == pytest.approx(1.7597, abs=1e-4)
    assert reduce_pairs(loss, size, torch.zeros(1), 2.0).item() == pytest.approx(expected)
    assert reduce_pairs(loss[:1], size[:1], torch.zeros(1), 2.0).item() == pytest.approx(1.0)


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=6), st.floats(0.1, 10))
def test_dr_dpo_lies_between_the_least_loss_and_the_mean(losses, b):
    """Its weights are exp(-loss / b) over their sum: larger losses never weigh more. b without end: the mean."""
    loss = torch.tensor(losses).requires_grad_()
    size = torch.ones(len(losses), dtype=torch.long)
    found = reduce_pairs(loss, size, loss, b)
    (weights,) = torch.autograd.grad(found, loss)
    assert min(losses) - 1e-4 <= found.item() <= np.mean(losses) + 1e-4
    assert weights.sum().item() == pytest.approx(1, abs=1e-5)
    assert weights.tolist() == pytest.approx(torch.softmax(-loss.detach() / b, 0).tolist(), abs=1e-5)
    assert reduce_pairs(loss, size, loss, 1e4).item() == pytest.approx(np.mean(losses), abs=0.02)


def test_a_batch_without_disagreement_is_a_zero_with_a_graph():
    logits = normal(1, 1, 4, 4).requires_grad_()
    mask = classes(1, 4, 4, outputs=1)
    loss = pair_loss(logits, mask, mask, 3.0)
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()


# ---- normalisers ------------------------------------------------------------------------------------------------


def test_normalisers():
    """|D| = 9 and 400 in an image of 1024 voxels with a floor of 16: sqrt(16) = 4, sqrt(400) = 20; voxel as region."""
    size = torch.tensor([9, 400])
    values = {
        kind: normaliser_value(kind, size, 16, 1024).tolist()  # type: ignore[arg-type]
        for kind in ("none", "region", "sqrt_region", "image", "voxel")
    }
    assert values.pop("voxel") == values["region"]
    assert values == {"none": [1, 1], "region": [16, 400], "sqrt_region": [4, 20], "image": [1024, 1024]}
    assert normaliser_value("image", size, 16, torch.tensor([64, 256])).tolist() == [64, 256]


def test_below_its_floor_a_region_is_pushed_less():
    """|D| = 4 with floor 16 at beta 1: 4 pixels of 1/2 over 16 are 1/8 in sum, not 1/2."""
    logits = torch.zeros(1, 1, 32, requires_grad=True)
    chosen = (torch.arange(32) < 4).byte()[None]
    found = margins(logits, logits.detach(), chosen, torch.zeros_like(chosen), FIRST)
    h = found.delta / normaliser_value("region", found.size, 16, 32)
    Sigmoid()(h, h).sum().backward()
    assert logits.grad.abs().sum().item() == pytest.approx(1 / 8)


# ---- rewards and drift -----------------------------------------------------------------------------------------


def test_rewards_by_hand():
    """One voxel, w = 1, l = 0, r = 0, z = log 3: p = 3/4 against 1/2: log 1.5 for chosen, log .5 for rejected."""
    logits = torch.tensor([[[log(3.0)]]])
    one, none = torch.tensor([[1]]).byte(), torch.tensor([[0]]).byte()
    rows = restricted_rewards(logits, torch.zeros(1, 1, 1), one, none, FIRST)
    assert rows.flatten().tolist() == pytest.approx([log(1.5), log(0.5)])


@pytest.mark.parametrize("outputs", [1, 3])
def test_rewards_differ_by_delta(outputs):
    logits, reference = normal(2, outputs, 5, 5, seed=8), normal(2, outputs, 5, 5, seed=9)
    chosen, rejected = classes(3, 5, 5, outputs=outputs, seed=8), classes(3, 5, 5, outputs=outputs, seed=9)
    chosen[:, 0] = UNKNOWN
    pairs = (logits, reference, chosen, rejected, torch.tensor([0, 1, 1]))
    rows = restricted_rewards(*pairs)
    assert (rows[0] - rows[1]).tolist() == pytest.approx(margins(*pairs).delta.tolist(), abs=1e-5)


def test_kl_by_hand():
    """p = (1/4, 3/4) against q = (1/2, 1/2): 1/4 log(1/2) + 3/4 log(3/2) = .1308 nats; against itself 0."""
    expected = 0.25 * log(0.5) + 0.75 * log(1.5)
    binary = torch.tensor([[[log(3.0), 0.0]]])
    softmax = torch.tensor([[[0.0, 7.0], [log(3.0), 7.0]]])
    for logits in (binary, softmax):
        assert kl_to_reference(logits, torch.zeros_like(logits)).tolist() == [[pytest.approx(expected), 0.0]]


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.sampled_from([1, 3]))
def test_delta_is_the_sum_over_voxels(seed, outputs):
    """Against a loop over the voxels in float64."""
    logits, reference = normal(1, outputs, 4, 4, seed=seed), normal(1, outputs, 4, 4, seed=seed + 1)
    chosen, rejected = (classes(1, 4, 4, outputs=outputs, seed=seed + i) for i in range(2))
    chosen[0, 0, 0] = UNKNOWN
    total, count = 0.0, 0
    for at in np.ndindex(4, 4):
        w, x = int(chosen[(0, *at)]), int(rejected[(0, *at)])
        if w == x or UNKNOWN in (w, x):
            continue
        shift = (logits.double() - reference.double())[(0, slice(None), *at)].tolist()
        total += (w - x) * shift[0] if outputs == 1 else shift[w] - shift[x]
        count += 1
    found = margins(logits, reference, chosen, rejected, FIRST)
    assert found.delta.item() == pytest.approx(total, abs=1e-4)
    assert found.size.item() == count
