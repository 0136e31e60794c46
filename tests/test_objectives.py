"""Preference objectives on a pair set: matched beta, floors, rewards, and the objectives beside them."""

from __future__ import annotations

from math import log
from typing import get_args

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from pipeline.links import Link
from pipeline.objectives import Objective
from pipeline.objectives.objective import LabelledBatch, PairBatch, PairStatistics
from pipeline.objectives.preference import Preference
from pipeline.objectives.sft import Imitation
from pipeline.objectives.supervised import Supervised
from pipeline.schema import UNKNOWN
from pipeline.segmentation_loss import dice_ce

KINDS = get_args(get_args(Objective)[0])
LINKS = get_args(get_args(Link)[0])


def statistics(*size: int, voxels: int = 1000, dimensions: int = 2) -> PairStatistics:
    return PairStatistics(np.array(size, np.int64), np.full(len(size), voxels, np.int64), dimensions)


def preference(**knobs) -> Preference:
    return Preference(kind="preference", **knobs)


def bars(*lengths: int, width: int = 64) -> Tensor:
    """Masks u8 `[len(lengths), width]` whose first `length` voxels are 1."""
    return (torch.arange(width)[None] < torch.tensor(lengths)[:, None]).byte()


def batch(shift: Tensor, chosen: Tensor, rejected: Tensor, image: list[int]) -> PairBatch:
    """Policy logits `shift` `[image, output, *space]` against a reference of 0."""
    voxels = torch.full((len(image),), shift[0, 0].numel())
    return PairBatch(shift, torch.zeros_like(shift), chosen, rejected, torch.tensor(image), voxels)


# ---- beta ------------------------------------------------------------------------------------------------------


def test_beta_is_matched_to_region_over_the_pair_set():
    """|D| of 10 and 30 with floor 16: region has a mean N of (16 + 30) / 2 = 23, `none` of 1: beta / 23.

    sqrt_region: (4 + sqrt 30) / 2 = 4.739, so its N is 23 / 4.739 times as large. image: 23 / 1000.
    """
    pairs = statistics(10, 30)
    expected = {"region": 1, "none": 23, "sqrt_region": 23 / ((4 + 30**0.5) / 2), "image": 23 / 1000}
    for normaliser, factor in expected.items():
        bound = preference(normaliser=normaliser, beta=3.0).bind(pairs)
        assert bound.factor == pytest.approx(factor)
        summary = bound.summary()
        assert summary["beta_own"] == pytest.approx(3.0 / factor)
        assert summary["mean_disagreement"] == 20


def test_beta_may_stand_as_written():
    """`own`: h = .1 * delta, so 8 voxels of D shifted by 1 give .8."""
    bound = preference(normaliser="none", beta=0.1, beta_unit="own").bind(statistics(10, 30))
    _, row = bound(batch(torch.ones(1, 1, 64), bars(8), bars(0), [0]))
    assert row["rewards/margins"] == pytest.approx(0.8)
    assert bound.summary()["beta_own"] == pytest.approx(0.1)


def test_matched_normalisers_differ_in_leverage_alone():
    """|D| of 20 and 60 (mean 40), logits shifted by .5 everywhere, beta 2. region: h = 1 for both pairs.

    none: h = 2 * .5 * 20 / 40 = .5 and 2 * .5 * 60 / 40 = 1.5: the same mean, more for the larger region.
    """
    shift, chosen, rejected = torch.full((1, 1, 64), 0.5), bars(20, 60), bars(0, 0)
    found = {}
    for normaliser in ("region", "none"):
        bound = preference(normaliser=normaliser, beta=2.0).bind(statistics(20, 60))
        loss, row = bound(batch(shift, chosen, rejected, [0, 0]))
        assert row["rewards/margins"] == pytest.approx(1.0)
        found[normaliser] = loss.item()
    softplus = [log(1 + np.exp(-h)) for h in (1.0, 0.5, 1.5)]
    assert found["region"] == pytest.approx(softplus[0])
    assert found["none"] == pytest.approx((softplus[1] + softplus[2]) / 2)


@pytest.mark.parametrize(("dimensions", "floor"), [(2, 16), (3, 32)])
def test_the_floor_follows_the_dimensions(dimensions, floor):
    """One disagreeing voxel shifted by its floor at beta 3: h = 3 * floor / floor = 3."""
    bound = preference().bind(statistics(50, dimensions=dimensions))
    _, row = bound(batch(torch.full((1, 1, 64), float(floor)), bars(1), bars(0), [0]))
    assert row["rewards/margins"] == pytest.approx(3.0)
    assert preference(floor=5).bind(statistics(50, dimensions=dimensions)).floor == 5


@pytest.mark.parametrize(
    ("link", "aimed"),
    [({"kind": "sigmoid"}, None), ({"kind": "cdpo", "e": 0.2}, log(4) / 3), ({"kind": "ipo", "tau": 0.25}, 2.0)],
)
def test_the_record_says_which_shift_is_aimed_at(link, aimed):
    knobs = TypeAdapter(Objective).validate_python({"kind": "preference", "beta": 3.0, "link": link}, strict=False)
    assert knobs.bind(statistics(20)).summary()["aimed_shift"] == pytest.approx(aimed)


@pytest.mark.parametrize("normaliser", ["region", "none", "sqrt_region"])
def test_the_aimed_shift_is_where_the_loss_stops(normaliser):
    """All |D| are equal, so that matched normalisers agree: at a mean shift of log(4) / 3 (cdpo, beta 3, e = .2) or
    1 / (2 tau) = 2 (ipo) no logit moves."""
    for link in ({"kind": "cdpo", "e": 0.2}, {"kind": "ipo", "tau": 0.25}):
        knobs = TypeAdapter(Objective).validate_python({"kind": "preference", "link": link, "normaliser": normaliser})
        bound = knobs.bind(statistics(20, 20))
        shift = torch.full((1, 1, 64), bound.summary()["aimed_shift"]).requires_grad_()
        loss, _ = bound(batch(shift, bars(20), bars(0), [0]))
        loss.backward()
        assert shift.grad.abs().max().item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("bad", [{"beta": 0.0}, {"floor": 0}, {"normaliser": "volume"}, {"gamma": 1}])
def test_knobs_outside_their_range_are_refused(bad):
    with pytest.raises(ValidationError):
        preference(**bad)


# ---- a batch ---------------------------------------------------------------------------------------------------


def test_numbers_of_a_batch():
    """Shifts of +1 and -1 in two images, |D| = 20 and 40, beta 3: h = 3 and -3: mean 0, one of two orders right."""
    shift = torch.stack([torch.full((1, 64), 1.0), torch.full((1, 64), -1.0)])
    loss, row = preference().bind(statistics(20, 40))(batch(shift, bars(20, 40), bars(0, 0), [0, 1]))
    assert row == {"rewards/margins": pytest.approx(0), "rewards/accuracies": 0.5, "disagreement": 30}
    assert loss.item() == pytest.approx((log(1 + np.exp(-3)) + log(1 + np.exp(3))) / 2)


@pytest.mark.parametrize("outputs", [1, 2])
def test_rewards_of_chosen_and_rejected_differ_by_the_margin(outputs):
    """A pair without disagreement in this crop is in neither of the averages."""
    shift = torch.linspace(-1, 2, 2 * outputs * 64).reshape(2, outputs, 64)
    pairs = batch(shift, bars(20, 40, 7), bars(0, 60, 7), [0, 1, 1])
    bound = preference(normaliser="sqrt_region").bind(statistics(20, 20, 30))
    _, row = bound(pairs)
    rewards = bound.diagnose(pairs)
    assert rewards["rewards/chosen"] - rewards["rewards/rejected"] == pytest.approx(row["rewards/margins"], abs=1e-5)


def test_a_batch_without_disagreement_says_nothing():
    """A zero loss with a graph, and no numbers."""
    shift = torch.ones(1, 1, 64, requires_grad=True)
    pairs = batch(shift, bars(7), bars(7), [0])
    bound = preference().bind(statistics(20))
    loss, row = bound(pairs)
    loss.backward()
    assert (loss.item(), row, bound.diagnose(pairs)) == (0.0, {}, {})
    assert (shift.grad == 0).all()


def test_an_empty_pair_set_can_be_bound():
    bound = preference(normaliser="none").bind(statistics())
    assert (bound.factor, bound.summary()["mean_disagreement"]) == (1.0, 0.0)


# ---- beside preference -----------------------------------------------------------------------------------------


def test_imitation_is_supervision_by_the_chosen_mask():
    """Two pairs of image 1 and one of image 0: the mean over pairs of DiceCE with chosen; rejected plays no part
    but in |D| = 20, 30 and 50, of which 255 is no part."""
    logits = torch.linspace(-1, 2, 128).reshape(2, 1, 64)
    chosen, rejected = bars(20, 40, 50), bars(0, 10, 0)
    rejected[:, 60:] = UNKNOWN
    loss, row = Imitation(kind="sft")(batch(logits, chosen, rejected, [1, 1, 0]))
    assert loss.item() == pytest.approx(dice_ce(logits[[1, 1, 0]], chosen).item())
    assert row["disagreement"] == pytest.approx(100 / 3)


def test_supervision():
    logits, labels = torch.linspace(-1, 2, 128).reshape(2, 1, 64), bars(20, 40)
    loss, row = Supervised(kind="supervised")(LabelledBatch(logits, labels))
    assert (loss.item(), row) == (pytest.approx(dice_ce(logits, labels).item()), {})


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_objective(kind):
    """It is fed by what the trainer knows, and those fed by pairs give a finite loss with a gradient on D."""
    extra = {"optimisation": {"steps": 1, "learning_rate": 0.1}} if kind.__name__ == "Full" else {}
    knobs = kind.model_validate({"kind": get_args(kind.model_fields["kind"].annotation)[0], **extra}, strict=False)
    assert knobs.feeds in ("pairs", "labelled", "truth")
    if knobs.feeds == "pairs":
        logits = torch.zeros(1, 3, 64, requires_grad=True)
        pairs = batch(logits, 2 * bars(20), bars(40), [0])
        bound = knobs.bind(statistics(40))
        loss, row = bound(pairs)
        loss.backward()
        assert np.isfinite([loss.item(), *row.values(), *bound.diagnose(pairs).values()]).all()
        assert (logits.grad[0, :, :20] != 0).any()


@pytest.mark.parametrize("link", LINKS, ids=lambda link: link.__name__)
def test_every_link_pulls_a_new_student_towards_chosen(link):
    """At h = 0 the slope in delta is below 0."""
    delta = torch.zeros(1, requires_grad=True)
    knobs = link(kind=get_args(link.model_fields["kind"].annotation)[0])
    knobs(3.0 * delta, delta).sum().backward()
    assert delta.grad.item() < 0
