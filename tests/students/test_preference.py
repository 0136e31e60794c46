"""Preference objectives on a pair set: matched beta, floors, knobs and batches, worked by hand on rows of voxels."""

from __future__ import annotations

from dataclasses import replace
from math import log, tanh

import pytest
import torch
from pydantic import ValidationError

from pipeline.errors import BadInput
from tests.fixtures.preferences import NORMALISERS, bars, batch, preference, softplus, statistics

# ---- beta ------------------------------------------------------------------------------------------------------


def test_beta_is_matched_to_region_over_the_pair_set():
    """|D| of 10 and 30 with floor 16: region has a mean N of (16 + 30) / 2 = 23, `none` of 1: beta / 23.

    sqrt_region: (4 + sqrt 30) / 2 = 4.739, so its N is 23 / 4.739 times as large. image: 23 / 1000. A voxel's shift is
    already of the size of region's mean.
    """
    pairs = statistics(10, 30)
    expected = {"region": 1, "none": 23, "sqrt_region": 23 / ((4 + 30**0.5) / 2), "image": 23 / 1000, "voxel": 1}
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
    assert found["region"] == pytest.approx(softplus(-1.0))
    assert found["none"] == pytest.approx((softplus(-0.5) + softplus(-1.5)) / 2)


@pytest.mark.parametrize(("dimensions", "floor"), [(2, 16), (3, 32)])
def test_the_floor_follows_the_dimensions(dimensions, floor):
    """One disagreeing voxel shifted by its floor at beta 3: h = 3 * floor / floor = 3."""
    bound = preference().bind(statistics(50, dimensions=dimensions))
    _, row = bound(batch(torch.full((1, 1, 64), float(floor)), bars(1), bars(0), [0]))
    assert row["rewards/margins"] == pytest.approx(3.0)
    assert preference(floor=5).bind(statistics(50, dimensions=dimensions)).floor == 5


@pytest.mark.parametrize(
    ("link", "aimed"),
    [
        ({"kind": "sigmoid"}, None),
        ({"kind": "cdpo", "e": 0.2}, log(4) / 3),
        ({"kind": "ipo", "tau": 0.25}, 2.0),
        ({"kind": "hinge"}, 1 / 3),
    ],
)
def test_the_record_says_which_shift_is_aimed_at(link, aimed):
    assert preference(beta=3.0, link=link).bind(statistics(20)).summary()["aimed_shift"] == pytest.approx(aimed)


@pytest.mark.parametrize("normaliser", NORMALISERS)
def test_the_aimed_shift_is_where_the_loss_stops(normaliser):
    """All |D| are equal, so that matched normalisers agree: at a mean shift of log(4) / 3 (cdpo, beta 3, e = .2) or
    1 / (2 tau) = 2 (ipo) no logit moves."""
    for link in ({"kind": "cdpo", "e": 0.2}, {"kind": "ipo", "tau": 0.25}):
        bound = preference(link=link, normaliser=normaliser).bind(statistics(20, 20, voxels=64))
        shift = torch.full((1, 1, 64), bound.summary()["aimed_shift"]).requires_grad_()
        loss, _ = bound(batch(shift, bars(20), bars(0), [0]))
        loss.backward()
        assert shift.grad.abs().max().item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("beta", [1.0, 3.0, 10.0])
def test_divided_by_beta_a_new_student_is_pushed_as_much_by_every_beta(beta):
    """Loss 1/beta of log 2, and 1/2 in sum over the logits of D, where it would be beta / 2."""
    shift = torch.zeros(1, 1, 64, requires_grad=True)
    loss, _ = preference(beta=beta, divide_by_beta=True).bind(statistics(20))(batch(shift, bars(20), bars(0), [0]))
    loss.backward()
    assert loss.item() == pytest.approx(log(2) / beta)
    assert shift.grad.abs().sum().item() == pytest.approx(1 / 2)


# ---- knobs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad", [{"beta": 0.0}, {"floor": 0}, {"dr": 0.0}, {"normaliser": "volume"}, {"gamma": 1}, {"link": {"kind": "kto"}}]
)
def test_knobs_outside_their_range_are_refused(bad):
    with pytest.raises(ValidationError):
        preference(**bad)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (
            {"link": {"kind": "cdpo", "e": "votes"}},
            "'votes' gives every voxel an error rate, which needs normaliser 'voxel'",
        ),
        (
            {"link": {"kind": "robust", "e": "calibrated"}, "normaliser": "voxel"},
            "'calibrated' is the error rate of the order of a pair",
        ),
        ({"per_class": True, "normaliser": "voxel"}, "per_class: needs normaliser 'region', found 'voxel'"),
        ({"per_class": True, "normaliser": "none"}, "per_class: needs normaliser 'region', found 'none'"),
        ({"divide_by_beta": True, "link": {"kind": "ipo"}}, "beta plays no part in link 'ipo'; set tau instead"),
    ],
)
def test_knobs_that_do_not_go_together_are_refused(bad, says):
    with pytest.raises(ValidationError, match=says):
        preference(**bad)


def test_the_trainer_is_told_what_is_read():
    for knobs, needs in (
        ({}, (False, False)),
        ({"link": {"kind": "cdpo", "e": 0.2}}, (False, False)),
        ({"link": {"kind": "cdpo", "e": "calibrated"}}, (True, False)),
        ({"link": {"kind": "robust", "e": "votes"}, "normaliser": "voxel"}, (False, True)),
    ):
        made = preference(**knobs)
        assert (made.needs_p_correct, made.needs_votes) == needs


# ---- a batch ---------------------------------------------------------------------------------------------------


def test_numbers_of_a_batch():
    """Shifts of +1 and -1 in two images, |D| = 20 and 40, beta 3: h = 3 and -3: mean 0, one of two orders right."""
    shift = torch.stack([torch.full((1, 64), 1.0), torch.full((1, 64), -1.0)])
    loss, row = preference().bind(statistics(20, 40))(batch(shift, bars(20, 40), bars(0, 0), [0, 1]))
    assert row == {"rewards/margins": pytest.approx(0), "rewards/accuracies": 0.5, "disagreement": 30}
    assert loss.item() == pytest.approx((softplus(-3) + softplus(3)) / 2)


@pytest.mark.parametrize("normaliser", NORMALISERS)
@pytest.mark.parametrize("reference_free", [False, True])
@pytest.mark.parametrize("outputs", [1, 2])
def test_rewards_of_chosen_and_rejected_differ_by_the_margin(outputs, reference_free, normaliser):
    """A pair without disagreement in this crop is in neither of the averages."""
    shift = torch.linspace(-1, 2, 2 * outputs * 64).reshape(2, outputs, 64)
    pairs = batch(shift, bars(20, 40, 7), bars(0, 60, 7), [0, 1, 1])
    pairs = replace(pairs, reference=torch.sin(shift))
    bound = preference(normaliser=normaliser, reference_free=reference_free).bind(statistics(20, 20, 30))
    _, row = bound(pairs)
    rewards = bound.diagnose(pairs)
    assert rewards["rewards/chosen"] - rewards["rewards/rejected"] == pytest.approx(row["rewards/margins"], abs=1e-5)


def test_a_batch_without_disagreement_says_nothing():
    """A zero loss with a graph, and no numbers."""
    shift = torch.ones(1, 1, 64, requires_grad=True)
    pairs = batch(shift, bars(7), bars(7), [0], classes=("background", "disc"))
    for knobs in ({}, {"dr": 1.0}, {"per_class": True}, {"normaliser": "voxel"}):
        shift.grad = None
        bound = preference(**knobs).bind(statistics(20))
        loss, row = bound(pairs)
        loss.backward()
        assert (loss.item(), row, bound.diagnose(pairs)) == (0.0, {}, {})
        assert (shift.grad == 0).all()


def test_an_empty_pair_set_can_be_bound():
    bound = preference(normaliser="none").bind(statistics())
    assert (bound.factor, bound.summary()["mean_disagreement"]) == (1.0, 0.0)


def test_dr_dpo_over_the_pairs_of_a_step():
    """h = 3 and -3 as above: losses .0486 and 3.0486, b = 1: -log((exp(-.0486) + exp(-3.0486)) / 2) = .6931: log 2,
    since exp(-softplus(-h)) = sigmoid(h), and sigmoid(3) + sigmoid(-3) = 1. A pair that agrees is no third."""
    shift = torch.stack([torch.full((1, 64), 1.0), torch.full((1, 64), -1.0)])
    pairs = batch(shift, bars(20, 40, 5), bars(0, 0, 5), [0, 1, 1])
    loss, _ = preference(dr=1.0).bind(statistics(20, 40))(pairs)
    assert loss.item() == pytest.approx(log(2), abs=1e-5)
    assert preference(dr=1e4).bind(statistics(20, 40))(pairs)[0].item() == pytest.approx(
        preference().bind(statistics(20, 40))(pairs)[0].item(), abs=1e-3
    )


def test_without_a_reference_the_margin_is_the_students_own():
    """Policy and reference are both .5 on 20 voxels: h = 0 against the reference, and 3 * .5 = 1.5 against none."""
    pairs = batch(torch.full((1, 1, 64), 0.5), bars(20), bars(0), [0])
    pairs = replace(pairs, reference=pairs.logits.clone())
    for free, margin in ((False, 0.0), (True, 1.5)):
        loss, row = preference(reference_free=free).bind(statistics(20))(pairs)
        assert row["rewards/margins"] == pytest.approx(margin)
        assert loss.item() == pytest.approx(softplus(-margin))


@pytest.mark.parametrize("kind", ["cdpo", "robust"])
def test_every_pair_may_have_its_own_error(kind):
    """Two pairs with h = 3 and -3 and e = .1 and .4: the mean of two losses with these numbers."""
    shift = torch.stack([torch.full((1, 64), 1.0), torch.full((1, 64), -1.0)])
    pairs = batch(shift, bars(20, 40), bars(0, 0), [0, 1], e=torch.tensor([0.1, 0.4]))
    expected = []
    for e, one in ((0.1, [0]), (0.4, [1])):
        single = batch(shift[one], pairs.chosen[one], pairs.rejected[one], [0])
        expected.append(preference(link={"kind": kind, "e": e}).bind(statistics(20))(single)[0].item())
    for more in ({}, {"per_class": True}):
        loss, _ = preference(link={"kind": kind, "e": "calibrated"}, **more).bind(statistics(20, 40))(pairs)
        assert loss.item() == pytest.approx(sum(expected) / 2)


def test_a_calibrated_error_needs_a_calibrated_pair_set():
    knobs = preference(link={"kind": "cdpo", "e": "calibrated"})
    with pytest.raises(BadInput, match="p_correct of its pairs is null"):
        knobs.bind(statistics(20))(batch(torch.zeros(1, 1, 64), bars(20), bars(0), [0]))


def test_a_sigmoid_by_hand_for_a_moved_softmax():
    """One voxel, three classes, w = 2, l = 1, z - r = (5, 1, 2), beta 3, floor 1: h = 3 and slope -3 (1 - sigmoid(3)),
    written with tanh: (1 - tanh(3/2)) / 2; class 0 stays."""
    logits = torch.tensor([[[5.0], [1.0], [2.0]]], requires_grad=True)
    pairs = batch(logits, torch.tensor([[2]]).byte(), torch.tensor([[1]]).byte(), [0])
    loss, _ = preference(floor=1).bind(statistics(1))(pairs)
    loss.backward()
    slope = 3 * (1 - tanh(1.5)) / 2
    assert loss.item() == pytest.approx(softplus(-3))
    assert logits.grad.flatten().tolist() == pytest.approx([0, slope, -slope])
