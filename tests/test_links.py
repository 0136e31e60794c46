"""Links: their values at hand-picked margins, and where they stop."""

from __future__ import annotations

from math import exp, log

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.links import IPO, ConservativeDPO, Sigmoid


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


def test_ipo_is_least_at_half_of_one_over_tau():
    """tau = .25: (shift - 2)^2 is 4 at 0, 1 at 1 and 0 at 2; h plays no part."""
    link = IPO(tau=0.25)
    assert [value(link, 7.0, shift)[0] for shift in (0.0, 1.0, 2.0)] == [4.0, 1.0, 0.0]
    assert value(link, 7.0, 2.0)[1] == 0
    assert link.aimed_shift(9.0) == 2.0


@pytest.mark.parametrize("bad", [{"e": 0.0}, {"e": 0.5}, {"e": -0.1}])
def test_an_error_rate_is_between_0_and_one_half(bad):
    with pytest.raises(ValidationError):
        ConservativeDPO(**bad)


@given(st.floats(-30, 30), st.floats(0.02, 0.45))
def test_links_fall_until_they_stop(h, e):
    """Every slope has the sign of the way to the optimum, which the sigmoid never reaches."""
    assert value(Sigmoid(), h)[1] <= 0
    stop = log((1 - e) / e)
    assert (value(ConservativeDPO(e=e), h)[1]) * (h - stop) >= -1e-6
