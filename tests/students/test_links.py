"""Links: their values at hand-picked margins, where they stop, and what all of them have to be."""

from __future__ import annotations

import pickle
from math import exp, log
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from pipeline.errors import BadInput
from pipeline.students.links import Link
from pipeline.students.links.cdpo import ConservativeDPO
from pipeline.students.links.hinge import Hinge
from pipeline.students.links.ipo import IPO
from pipeline.students.links.robust import RobustDPO
from pipeline.students.links.sigmoid import Sigmoid

KINDS = {get_args(link.model_fields["kind"].annotation)[0]: link for link in get_args(get_args(Link)[0])}
EXAMPLES = {
    "sigmoid": [{}],
    "cdpo": [{"e": 0.3}, {"e": "calibrated"}],
    "robust": [{"e": 0.3}, {"e": "calibrated"}],
    "ipo": [{"tau": 0.25}],
    "hinge": [{}],
}
"""Knobs to try, by kind; every link needs some."""


def value(link, h: float, shift: float = 0.0) -> tuple[float, float]:
    """Value and slope of a link; the slope is in h, for IPO in the shift."""
    at = torch.tensor([shift if link.kind == "ipo" else h], requires_grad=True)
    loss = link(*((torch.tensor([h]), at) if link.kind == "ipo" else (at, torch.tensor([shift]))))
    loss.sum().backward()
    return loss.item(), at.grad.item()


def test_sigmoid():
    """-logsig(0) = log 2 with slope -1/2; -logsig(1) = log(1 + 1/e) = .3133."""
    assert value(Sigmoid(), 0.0) == pytest.approx((log(2), -0.5))
    assert value(Sigmoid(), 1.0)[0] == pytest.approx(log(1 + exp(-1)))
    assert Sigmoid().aimed_shift(3.0) is None


def test_cdpo_stops_at_the_log_odds_of_its_error():
    """e = .2: at 0 log 2, at 1 .8 log(1 + 1/e) + .2 log(1 + e) = .2506 + .2627; slope 0 at log(.8/.2) = log 4."""
    link = ConservativeDPO(e=0.2)
    assert value(link, 0.0)[0] == pytest.approx(log(2))
    assert value(link, 1.0)[0] == pytest.approx(0.8 * log(1 + exp(-1)) + 0.2 * log(1 + exp(1)))
    assert value(link, log(4))[1] == pytest.approx(0, abs=1e-6)
    assert value(link, log(4) - 0.1)[1] < 0 < value(link, log(4) + 0.1)[1]
    assert link.aimed_shift(2.0) == pytest.approx(log(4) / 2)


def test_robust_never_stops():
    """e = .2: at 0 (.8 - .2) log 2 / .6 = log 2, with slope (-.8 / 2 - .2 / 2) / .6 = -5/6.

    At 1: (.8 * .31326 - .2 * 1.31326) / .6 = -.02007. Far out the slope is -e / (1 - 2e) = -1/3.
    """
    link = RobustDPO(e=0.2)
    assert value(link, 0.0) == pytest.approx((log(2), -5 / 6))
    assert value(link, 1.0)[0] == pytest.approx(-0.02007, abs=1e-5)
    assert value(link, 40.0)[1] == pytest.approx(-1 / 3)
    assert link.aimed_shift(2.0) is None


@given(st.floats(-20, 20), st.floats(0.02, 0.45))
def test_robust_sees_through_flipped_orders(h, e):
    """A share e of the pairs is turned around: (1 - e) robust(h) + e robust(-h) = sigmoid(h)."""
    link = RobustDPO(e=e)
    mean = (1 - e) * value(link, h)[0] + e * value(link, -h)[0]
    assert mean == pytest.approx(value(Sigmoid(), h)[0], abs=1e-3)


def test_ipo_is_least_at_half_of_one_over_tau():
    """tau = .25: (shift - 2)^2 is 4 at 0, 1 at 1 and 0 at 2; h plays no part."""
    link = IPO(tau=0.25)
    assert [value(link, 7.0, shift)[0] for shift in (0.0, 1.0, 2.0)] == [4.0, 1.0, 0.0]
    assert value(link, 7.0, 2.0)[1] == 0
    assert link.aimed_shift(9.0) == 2.0


def test_hinge():
    """relu(1 - h): 1 at 0, .5 at .5, 0 at 1 and beyond, with slopes -1, -1 and 0; a mean shift of 1 / beta."""
    assert [value(Hinge(), h) for h in (0.0, 0.5, 2.0)] == [(1.0, -1.0), (0.5, -1.0), (0.0, 0.0)]
    assert Hinge().aimed_shift(4.0) == 0.25


@pytest.mark.parametrize("link", [ConservativeDPO, RobustDPO])
@pytest.mark.parametrize("source", ["calibrated", "votes"])
def test_every_margin_may_have_its_own_error(link, source):
    """As one call for each with that number; the number of a link that has one is not overruled."""
    h, e = torch.tensor([-1.0, 0.5, 2.0]), torch.tensor([0.02, 0.2, 0.45])
    expected = [value(link(e=rate), at)[0] for at, rate in zip(h.tolist(), e.tolist(), strict=True)]
    assert link(e=source)(h, h, e).tolist() == pytest.approx(expected, abs=1e-5)
    assert link(e=0.3)(h, h, e).tolist() == link(e=0.3)(h, h).tolist()
    assert link(e=source).aimed_shift(3.0) is None


@pytest.mark.parametrize(("source", "found"), [("calibrated", "p_correct of its pairs is null"), ("votes", "no votes")])
def test_an_error_that_the_batch_lacks_is_no_number(source, found):
    with pytest.raises(BadInput, match=rf"link.e: '{source}' needs an error probability, and .*{found}.*number below"):
        ConservativeDPO(e=source)(torch.zeros(1), torch.zeros(1))


@pytest.mark.parametrize("link", [ConservativeDPO, RobustDPO])
@pytest.mark.parametrize("bad", [{"e": 0.0}, {"e": 0.5}, {"e": -0.1}, {"e": "per_pair"}, {"e": None}])
def test_an_error_rate_is_between_0_and_one_half(link, bad):
    with pytest.raises(ValidationError):
        link(**bad)


@given(st.floats(-30, 30), st.floats(0.02, 0.45))
def test_links_fall_until_they_stop(h, e):
    """Every slope has the sign of the way to the optimum, which the sigmoid and the robust link never reach."""
    assert value(Sigmoid(), h)[1] <= 0
    assert value(RobustDPO(e=e), h)[1] < 0
    assert value(Hinge(), h)[1] == (-1 if h < 1 else 0)
    stop = log((1 - e) / e)
    assert (value(ConservativeDPO(e=e), h)[1]) * (h - stop) >= -1e-6


# ---- every link -------------------------------------------------------------------------------------------------


def test_every_link_has_examples():
    assert EXAMPLES.keys() == KINDS.keys()


@pytest.mark.parametrize(("kind", "knobs"), [(kind, knobs) for kind, tried in EXAMPLES.items() for knobs in tried])
class TestEveryLink:
    BETA = 2.0

    def loss(self, link, shift: Tensor) -> Tensor:
        return link(self.BETA * shift, shift, torch.full((), 0.3))

    def test_it_is_finite_and_of_the_shape_of_its_margins(self, kind, knobs):
        for shape in ((0,), (5,), (2, 3)):
            shift = torch.linspace(-50, 50, int(np.prod(shape))).reshape(shape)
            found = self.loss(KINDS[kind](**knobs), shift)
            assert found.shape == shape
            assert found.dtype == torch.float32
            assert found.isfinite().all()

    def test_it_pulls_a_new_student_towards_chosen(self, kind, knobs):
        """At h = 0 the slope is below 0, the same for every pair."""
        shift = torch.zeros(3, requires_grad=True)
        self.loss(KINDS[kind](**knobs), shift).sum().backward()
        assert (shift.grad < 0).all()
        assert len(set(shift.grad.tolist())) == 1

    def test_its_aimed_shift_is_where_it_stops(self, kind, knobs):
        """No slope just beyond it that leads on; without one it still falls far out, or e is of the pair."""
        link = KINDS[kind](**knobs)
        aimed = link.aimed_shift(self.BETA)
        at = torch.tensor([4.0 if aimed is None else aimed + 1e-3], requires_grad=True)
        self.loss(link, at).sum().backward()
        if aimed is not None:
            assert at.grad.item() >= 0
        elif knobs.get("e") != "calibrated":
            assert at.grad.item() < 0

    def test_it_is_the_same_after_a_journey(self, kind, knobs):
        link = KINDS[kind](**knobs)
        read = TypeAdapter(Link)
        assert read.validate_json(read.dump_json(link)) == link == pickle.loads(pickle.dumps(link))
        assert read.validate_python({"kind": kind, **knobs}) == link
        shift = torch.linspace(-2, 2, 5)
        assert self.loss(pickle.loads(pickle.dumps(link)), shift).tolist() == self.loss(link, shift).tolist()

    def test_an_unknown_knob_is_refused(self, kind, knobs):
        with pytest.raises(ValidationError, match="margin"):
            TypeAdapter(Link).validate_python({"kind": kind, "margin": 1.0, **knobs})
