"""From margins to P(the order is right), by hand on a few pairs and on drawn ones whose P is known."""

from __future__ import annotations

import pickle
from typing import Any, get_args

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from pipeline.measures.folds import folds_by_group
from pipeline.pairs.calibration import (
    Calibration,
    Curve,
    Isotonic,
    Logistic,
    ValidationPairs,
    calibrate,
    curve_of,
    knots,
)
from pipeline.store import schema

KINDS = get_args(get_args(Calibration)[0])


def tried(margin: Any, right: Any, case: Any = None, group: Any = None) -> ValidationPairs:
    """Pairs each of a case, and of a group, of its own, unless said otherwise."""
    case = range(len(margin)) if case is None else case
    return ValidationPairs(
        np.array(margin, np.float64),
        np.array(right, np.float64),
        np.array(case),
        np.array([f"g{c}" for c in case] if group is None else group),
    )


def drawn(n: int, seed: int = 0) -> ValidationPairs:
    """Margins of 0 to 1 whose order is right with probability sigmoid(3 margin - .2)."""
    generator = np.random.default_rng(seed)
    margin = generator.random(n)
    return tried(margin, generator.random(n) < 1 / (1 + np.exp(0.2 - 3 * margin)))


# ---- by hand ---------------------------------------------------------------------------------------------------


def test_isotonic():
    """Wrong, right, wrong, right by increasing margin: the middle two are pooled to 1/2. With one more right and one
    more wrong case: (0 + 1) / 3, (1 + 1) / 4, (1 + 1) / 3."""
    curve = Isotonic().curve(tried([0.4, 0.1, 0.2, 0.3], [1, 0, 1, 0]))
    assert curve.margin.tolist() == [0.1, 0.2, 0.3, 0.4]
    assert curve.p == pytest.approx([1 / 3, 1 / 2, 1 / 2, 2 / 3])
    assert curve(np.array([0.0, 0.15, 0.25, 9.0])) == pytest.approx([1 / 3, 5 / 12, 1 / 2, 2 / 3])


def test_steps_that_smoothing_puts_out_of_order_are_pooled():
    """9 of 10 right at .1: (9 + 1) / 12 = 10/12; the only one right at .2: 2/3. Together (10 + 2) / (12 + 3) = .8."""
    curve = Isotonic().curve(tried([0.1] * 10 + [0.2], [1] * 9 + [0, 1]))
    assert curve(np.array([0.1, 0.2])) == pytest.approx([0.8, 0.8])


def test_the_pairs_of_a_case_weigh_one():
    """Case 0 has a wrong and three right pairs of equal margin, case 1 a wrong one: (3/4 + 0 + 1) / (2 + 2) = .4375."""
    curve = Isotonic().curve(tried([0.1] * 5, [0, 1, 1, 1, 0], case=[0, 0, 0, 0, 1]))
    assert (curve.margin.tolist(), curve.p.tolist()) == ([0.1], [pytest.approx(0.4375)])


def test_equal_masks_count_one_half():
    assert Isotonic().curve(tried([0.1, 0.1], [0.5, 0.5])).p == pytest.approx([0.5])


def test_logistic_of_one_margin_is_the_smoothed_share():
    """3 of 4 right: Platt's targets are 4/5 for a right one and 1/3 for the wrong one: (3 x .8 + 1/3) / 4 = .68333."""
    curve = Logistic().curve(tried([0.2] * 4, [1, 1, 1, 0]))
    assert (curve.margin.tolist(), curve.p.tolist()) == ([0.2], [pytest.approx(0.68333, abs=1e-4)])


def test_logistic_never_decreases():
    """Right at small margins and wrong at large ones: flat at the share of the targets, (2 x .75 + 2 x .25) / 4."""
    curve = Logistic().curve(tried([0.1, 0.2, 0.3, 0.4], [1, 1, 0, 0]))
    assert curve.p == pytest.approx(np.full(len(curve.p), 0.5), abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_true_curve_is_found(kind):
    """Within .06 of sigmoid(3 margin - .2) on 4000 cases, and well calibrated on those that were held out."""
    found = calibrate(drawn(4000), kind(), seed=0)
    assert found.curve is not None
    at = np.array([0.1, 0.3, 0.5, 0.7, 0.9])
    assert found.curve(at) == pytest.approx(1 / (1 + np.exp(0.2 - 3 * at)), abs=0.06)
    assert found.summary["ece"] < 0.03
    assert (found.summary["shrinkage"], found.summary["note"]) == (1.0, None)


# ---- too few cases ---------------------------------------------------------------------------------------------


def test_too_few_cases_draw_p_towards_one_half_and_say_so():
    """Three right cases: (3 + 1) / (3 + 2) = .8; 3 of 20 cases leave .15 of the .3 above one half: .545."""
    found = calibrate(tried([0.1] * 3, [1, 1, 1]), Isotonic(), seed=0)
    assert found.curve is not None
    assert found.curve.p == pytest.approx([0.545])
    assert found.summary["shrinkage"] == pytest.approx(0.15)
    assert found.summary["note"] == (
        "3 validation cases (those of one group count once) where 20 are asked for: "
        "p_correct is drawn towards one half, 15% of its distance is left"
    )


def test_cases_of_one_patient_count_once():
    """Thirty cases of two patients are two of the twenty that are asked for."""
    found = calibrate(tried([0.1] * 30, [1] * 30, group=["a"] * 15 + ["b"] * 15), Isotonic(), seed=0)
    assert (found.summary["cases"], found.summary["groups"], found.summary["shrinkage"]) == (30, 2, 0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_patient_has_no_reliability(kind):
    found = calibrate(tried([0.1, 0.2], [1, 0], group=["a", "a"]), kind(), seed=0)
    assert found.curve is not None
    assert (len(found.reliability), found.summary["ece"], found.summary["brier"]) == (0, None, None)


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_pair_there_is_no_curve(kind):
    found = calibrate(tried([], []), kind(), seed=0)
    assert (found.curve, len(found.reliability), found.summary["ece"]) == (None, 0, None)
    assert found.summary["note"] == "no pair of labelled validation cases: p_correct is null"
    assert (found.summary["cases"], found.summary["groups"]) == (0, 0)


# ---- held out --------------------------------------------------------------------------------------------------


def test_reliability_by_hand():
    """Two patients, one right and one wrong. Each is predicted from the other: the right one as (0 + 1) / 3, bin 3, the
    wrong one as (1 + 1) / 3, bin 6. Both are 2/3 off: ECE 2/3, Brier 4/9."""
    found = calibrate(tried([0.1, 0.3], [1, 0]), Isotonic(min_cases=1), seed=0)
    assert found.reliability.rows() == [
        (3, 1, 1.0, pytest.approx(1 / 3), 1.0),
        (6, 1, 1.0, pytest.approx(2 / 3), 0.0),
    ]
    assert (found.summary["ece"], found.summary["brier"]) == (pytest.approx(2 / 3), pytest.approx(4 / 9))


def test_bins_count_pairs_and_weigh_cases():
    """The two pairs of case 0 weigh one half each; all four pairs are predicted alike from the other patient."""
    pairs = tried([0.1] * 4, [1, 0, 1, 0], case=[0, 0, 1, 1], group=["a", "a", "b", "b"])
    found = calibrate(pairs, Isotonic(min_cases=1), seed=0)
    assert found.reliability.rows() == [(5, 4, 2.0, 0.5, 0.5)]


def test_folds_keep_patients_whole_and_are_even():
    groups = ["b", "a", "c", "a", "d", "b"]
    fold = folds_by_group(groups, 2, seed=0)
    assert fold[0] == fold[5]
    assert fold[1] == fold[3]
    assert np.bincount([fold[0], fold[1], fold[2], fold[4]]).tolist() == [2, 2]
    assert len(np.unique(folds_by_group(groups, 9, seed=0))) == 4
    assert len(folds_by_group([], 5, seed=0)) == 0


# ---- table -----------------------------------------------------------------------------------------------------


def test_the_curve_comes_back_from_its_table():
    curve = Curve(np.array([0.1, 0.3]), np.array([0.5, 0.9]))
    table = pl.concat([knots("p", "j", "top_base", curve), knots("q", "j", "top_base", None)])
    assert table.schema == schema.CALIBRATION.columns
    assert table.rows() == [("p", 0, "j", "top_base", 0.1, 0.5), ("p", 1, "j", "top_base", 0.3, 0.9)]
    again = curve_of(table[::-1], "p")
    assert again is not None
    assert again.margin.tolist() == [0.1, 0.3]
    assert again(np.array([0.0, 0.2, 1.0])) == pytest.approx([0.5, 0.7, 0.9])
    assert curve_of(table, "q") is None


# ---- contract --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(
    pairs=st.lists(
        st.tuples(
            st.one_of(st.sampled_from([0.0, 0.1, 0.2]), st.floats(0, 50)),
            st.sampled_from([0, 0.5, 1]),
            st.integers(0, 4),
        ),
        min_size=1,
        max_size=12,
    ),
    seed=st.integers(0, 3),
)
def test_every_calibration(kind, pairs, seed):
    """P never decreases and is never certain; the order of the pairs plays no part; the bins hold every pair."""
    margin, right, case = zip(*pairs, strict=True)
    found = calibrate(tried(margin, right, case), kind(min_cases=3), seed)
    assert found.curve is not None
    assert (np.diff(found.curve.margin) > 0).all()
    assert (np.diff(found.curve.p) >= -1e-12).all()
    assert ((found.curve.p > 0) & (found.curve.p < 1)).all()
    turned = calibrate(tried(margin[::-1], right[::-1], case[::-1]), kind(min_cases=3), seed)
    assert turned.curve is not None
    assert turned.curve(np.array(margin)) == pytest.approx(found.curve(np.array(margin)), abs=1e-3)
    if len(set(case)) > 1:
        assert found.reliability["count"].sum() == len(pairs)
        assert found.reliability["cases"].sum() == pytest.approx(len(set(case)))
        assert 0 <= found.summary["ece"] <= 1
    assert found.reliability.columns == [name for name in schema.RELIABILITY.columns if name != "pairs"]


@pytest.mark.parametrize("kind", KINDS)
def test_calibrations_are_read_from_params_and_pickle(kind):
    knobs = TypeAdapter(Calibration).validate_python({"kind": kind.model_fields["kind"].default, "folds": 3})
    assert pickle.loads(pickle.dumps(knobs)) == knobs == kind(folds=3)
    for bad in ({"folds": 1}, {"min_cases": 0}, {"bins": 3}):
        with pytest.raises(ValidationError):
            kind(**bad)
