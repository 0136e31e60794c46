"""Thresholds and offsets of class probabilities worked by hand."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from pipeline.errors import BadInput
from pipeline.proposals.samplers.sampler import Setup
from pipeline.proposals.samplers.threshold import Threshold
from tests.fixtures.networks import given, models, noise, sampler_of, small


def test_thresholds():
    """Foreground .1 to .9: at .2 four are in, at .45 three, at .8 one."""
    p = np.array([0.1, 0.3, 0.5, 0.7, 0.9])
    draws = list(Threshold(kind="threshold", thresholds=(0.2, 0.45, 0.8)).draw("t", given([1 - p, p])))
    masks = {d.setting: d.mask.tolist() for d in draws}
    assert masks == {"p>=0.2": [0, 1, 1, 1, 1], "p>=0.45": [0, 0, 1, 1, 1], "p>=0.8": [0, 0, 0, 0, 1]}
    assert not any(d.counts for d in draws)


def test_thresholds_of_several_classes():
    """Background .6, classes .1 and .3: foreground .4, class 2 the likelier. Background .3, .4, .3: class 1."""
    case = given([[0.6, 0.3], [0.1, 0.4], [0.3, 0.3]])
    low, high = Threshold(kind="threshold", thresholds=(0.35, 0.65)).draw("t", case)
    assert low.mask.tolist() == [2, 1]
    assert high.mask.tolist() == [0, 1]


def test_thresholds_are_nested():
    case = models(small(2, 3), noise((8, 8)))
    thresholds = tuple(np.linspace(0.05, 0.95, 19).tolist())
    masks = [d.mask > 0 for d in Threshold(kind="threshold", thresholds=thresholds).draw("t", case)]
    assert len({mask.sum() for mask in masks}) > 3
    assert all((larger >= smaller).all() for larger, smaller in pairwise(masks))


def test_offsets_by_hand():
    """Classes .6, .3, .1. Against class 0, class 1 needs log 2 = .69, class 2 log 6 = 1.79 more.

    +.7 on class 1: .3 e^.7 = .604 > .6: 1. +.69: .598: 0. +1.8 on class 2: .1 e^1.8 = .605: 2. -.7 on background:
    .6 e^-.7 = .298 < .3: 1. Class 1 +.7 and class 2 +1.81: .604 and .611: 2.
    """
    offsets = [{"1": 0.7}, {"1": 0.69}, {"2": 1.8}, {"0": -0.7}, {"2": 1.81, "1": 0.7}]
    sampler = sampler_of("threshold", thresholds=[], offsets=offsets)
    case = given([[0.6], [0.3], [0.1]])
    settings = ["logit 1:+0.7", "logit 1:+0.69", "logit 2:+1.8", "logit 0:-0.7", "logit 1:+0.7 2:+1.81"]
    assert sampler.settings("t", Setup(3)) == settings
    assert [(d.setting, d.mask.item()) for d in sampler.draw("t", case)] == list(
        zip(settings, [1, 0, 2, 1, 2], strict=True)
    )


def test_offsets_of_certain_voxels_change_nothing():
    """log 0 is minus infinity: no offset makes an impossible class possible, and nothing is NaN."""
    (draw,) = sampler_of("threshold", thresholds=[], offsets=[{"1": 100}]).draw("t", given([[1.0, 0.9], [0.0, 0.1]]))
    assert draw.mask.tolist() == [0, 1]


@pytest.mark.parametrize(("offsets", "found"), [([{"3": 1}], r"\[3\]"), ([{}], r"\{\}")])
def test_offsets_of_no_class(offsets, found):
    with pytest.raises(BadInput, match=rf"samplers.t.offsets: expected offsets of the classes 0 to 2, found {found}"):
        sampler_of("threshold", offsets=offsets).settings("t", Setup(3))
