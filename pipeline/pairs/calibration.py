"""Calibration: the curve from score margin to P(the order of a pair is right), for one judge and one strategy.

Platt, Probabilistic outputs for support vector machines, 1999; Zadrozny and Elkan, KDD 2002 (isotonic).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import polars as pl
from pydantic import Field

from pipeline.knobs import Knobs
from pipeline.measures.folds import folds_by_group
from pipeline.store import schema

BINS = 10
"""Number of bins of a reliability curve. All bins have equal width."""
KNOTS = 101
"""Number of knots of a logistic curve. Linear interpolation between the knots is off by less than .001."""


class ValidationPairs(NamedTuple):
    """Mined pairs of validation cases whose truth is known. All arrays are `[pair]`."""

    margin: np.ndarray  # f64
    right: np.ndarray  # f64; 1 if the order is right, 0 if it is wrong, one half if both masks are equally good
    case: np.ndarray
    group: np.ndarray

    @property
    def weight(self) -> np.ndarray:
        """Weight of each pair, f64 `[pair]`. The weights of a case sum to 1, so that cases count equally."""
        _, member, pairs = np.unique(self.case, return_inverse=True, return_counts=True)
        return 1 / pairs[member]

    def only(self, wanted: np.ndarray) -> ValidationPairs:
        """The pairs that a mask bool `[pair]` selects."""
        return ValidationPairs(*(column[wanted] for column in self))


class Curve(NamedTuple):
    """P(the order is right) by margin: linear between knots, constant beyond the margins of validation pairs."""

    margin: np.ndarray  # f64 [knot], increasing
    p: np.ndarray  # f64 [knot], never decreasing

    def __call__(self, margins: np.ndarray) -> np.ndarray:
        return np.interp(margins, self.margin, self.p)

    def shrunk(self, left: float) -> Curve:
        """The curve moved towards one half. `left` is the share of the distance to one half that remains."""
        return Curve(self.margin, 0.5 + left * (self.p - 0.5))


class _Calibration(Knobs):
    """Base class of the calibrations: the folds that measure reliability, and the number of cases that a fit needs."""

    folds: Annotated[int, Field(ge=2)] = 5
    """Number of folds, split by group. Each fold is predicted by a curve that was fitted to the other folds, so
    reliability is measured on cases outside the fit."""
    min_cases: Annotated[int, Field(ge=1)] = 20
    """Number of validation cases below which `p_correct` is moved towards one half. Cases of one group count once.
    With n cases, the share n / `min_cases` of the distance to one half remains."""


class Isotonic(_Calibration):
    """Isotonic regression: level steps that never decrease, joined by straight lines.

    Each step is smoothed as if the step held one more right case and one more wrong case (Laplace).
    """

    kind: Literal["isotonic"] = "isotonic"

    def curve(self, tried: ValidationPairs) -> Curve:
        from scipy.optimize import isotonic_regression

        margin, member = np.unique(tried.margin, return_inverse=True)
        cases = np.bincount(member, tried.weight)
        share = np.bincount(member, tried.weight * tried.right) / cases
        steps = isotonic_regression(share, weights=cases)
        start = steps.blocks[:-1]
        held = np.add.reduceat(cases, start)
        # Smoothing moves small steps more than large steps. The second fit restores the order of the steps.
        smoothed = (steps.x[start] * held + 1) / (held + 2)
        level = np.repeat(isotonic_regression(smoothed, weights=held + 2).x, np.diff(steps.blocks))
        # Two knots per step, at its first and last margin, keep the curve level on the step.
        ends = np.union1d(start, steps.blocks[1:] - 1)
        return Curve(margin[ends], level[ends])


class Logistic(_Calibration):
    """sigmoid(a + b margin) with b >= 0, fitted to Platt's targets.

    The targets count one more right case and one more wrong case.
    """

    kind: Literal["logistic"] = "logistic"

    def curve(self, tried: ValidationPairs) -> Curve:
        from scipy.optimize import minimize
        from scipy.special import expit

        weight = tried.weight
        right, wrong = (weight * tried.right).sum(), (weight * (1 - tried.right)).sum()
        target = tried.right * (right + 1) / (right + 2) + (1 - tried.right) / (wrong + 2)
        # Margins are scaled to at most 1, so that convergence does not depend on the unit of the score.
        unit = max(float(np.abs(tried.margin).max()), np.finfo(np.float64).tiny)
        x = tried.margin / unit

        def loss(at: np.ndarray) -> tuple[float, np.ndarray]:
            logit = at[0] + at[1] * x
            slope = weight * (expit(logit) - target)
            value = weight * (np.logaddexp(0, logit) - target * logit)
            return float(value.sum()), np.array([slope.sum(), (slope * x).sum()])

        bounds = [(None, None), (0, None)]
        options = {"ftol": 1e-14, "gtol": 1e-9, "maxiter": 1000}
        found = minimize(loss, np.zeros(2), jac=True, method="L-BFGS-B", bounds=bounds, options=options)
        # At the bound b = 0 the loss may still fall towards negative b. Only a fall towards larger b is a failure.
        descent = -loss(found.x)[1]
        if abs(descent[0]) > 1e-4 * weight.sum() or descent[1] > 1e-4 * weight.sum():
            raise ArithmeticError(
                f"audit.calibration: the logistic fit to {len(x)} pairs did not converge ({found.message}); use kind "
                "isotonic"
            )
        knots = np.unique(np.linspace(tried.margin.min(), tried.margin.max(), KNOTS))
        return Curve(knots, expit(found.x[0] + found.x[1] * knots / unit))


Calibration = Annotated[Isotonic | Logistic, Field(discriminator="kind")]


class HeldOutCurves(NamedTuple):
    """Curves of the folds of groups. The curve of a fold is fitted to the pairs of the other folds."""

    groups: np.ndarray  # [group], sorted
    fold: np.ndarray  # i64 [group]
    curves: list[Curve]  # [fold]

    def __call__(self, margins: np.ndarray, groups: np.ndarray) -> np.ndarray:
        """P(the order is right) of each pair, f64 `[pair]`, by a curve that has not seen the group of the pair.

        `margins` and `groups` are `[pair]`. Every group is one of `self.groups`.
        """
        fold = self.fold[np.searchsorted(self.groups, groups)]
        p = np.empty(len(margins))
        for index, curve in enumerate(self.curves):
            inside = fold == index
            p[inside] = curve(margins[inside])
        return p


class PairCalibration(NamedTuple):
    """Calibration of one pair set."""

    curve: Curve | None  # fitted to all validation pairs; None if there is no pair
    held_out: HeldOutCurves | None  # None for fewer than two groups
    reliability: pl.DataFrame  # columns `bin`, `count`, `cases`, `predicted`, `observed` of `RELIABILITY`
    summary: dict[str, Any]  # keys `kind`, `cases`, `groups`, `shrinkage`, `ece`, `brier`, `note`


def calibrate(tried: ValidationPairs, knobs: Calibration, seed: int) -> PairCalibration:
    """Curve fitted to all validation pairs, and the reliability of the fit on held-out groups.

    Keys of `summary`:
    `cases`, `groups`: number of validation cases with a pair, and of their groups.
    `shrinkage`: share of the distance to one half that remains; 1 with enough cases.
    `ece`: mean of |predicted - observed| over the bins, weighted by cases.
    `brier`: mean of (predicted - right)^2, cases weighted equally.
    `note`: effect of too few cases on the fit; null with enough cases.

    With fewer than two groups, `held_out` is None, `ece` and `brier` are null and `reliability` is empty. Without a
    pair, `curve` is None.
    """
    groups = len(np.unique(tried.group))
    left = min(1.0, groups / knobs.min_cases)
    note = None
    if not groups:
        note = "no pair of labelled validation cases: p_correct is null"
    elif left < 1:
        note = (
            f"{groups} validation cases (those of one group count once) where {knobs.min_cases} are asked for: "
            f"p_correct is drawn towards one half, {left:.0%} of its distance is left"
        )
    held_out = _held_out(tried, knobs, left, seed) if groups > 1 else None
    predicted = None if held_out is None else held_out(tried.margin, tried.group)
    reliability = _reliability(tried, predicted)
    share = reliability["cases"] / max(1.0, reliability["cases"].sum())
    gap = (reliability["predicted"] - reliability["observed"]).abs()
    summary: dict[str, Any] = {
        "kind": knobs.kind,
        "cases": len(np.unique(tried.case)),
        "groups": groups,
        "shrinkage": left,
        "ece": None if predicted is None else float((share * gap).sum()),
        "brier": None if predicted is None else float(np.average((predicted - tried.right) ** 2, weights=tried.weight)),
        "note": note,
    }
    return PairCalibration(knobs.curve(tried).shrunk(left) if groups else None, held_out, reliability, summary)


def _held_out(tried: ValidationPairs, knobs: Calibration, left: float, seed: int) -> HeldOutCurves:
    groups, first = np.unique(tried.group, return_index=True)
    fold = folds_by_group(tried.group, knobs.folds, seed)
    curves = [knobs.curve(tried.only(fold != index)).shrunk(left) for index in range(fold.max() + 1)]
    return HeldOutCurves(groups, fold[first], curves)


def _reliability(tried: ValidationPairs, predicted: np.ndarray | None) -> pl.DataFrame:
    """Mean predicted P and observed share of right orders per bin of predicted P (f64 `[pair]`).

    Cases count equally. A bin without a pair has no row. Without predictions the table is empty.
    """
    if predicted is None:
        return pl.DataFrame(schema={name: schema.RELIABILITY.columns[name] for name in _BIN})
    index = np.minimum((predicted * BINS).astype(np.int32), BINS - 1)
    held, count = np.unique(index, return_counts=True)
    cases, p, right = (np.bincount(index, tried.weight * what, BINS)[held] for what in (1.0, predicted, tried.right))
    columns = (held, count, cases, p / cases, right / cases)
    return pl.DataFrame(dict(zip(_BIN, columns, strict=True)))


_BIN = ("bin", "count", "cases", "predicted", "observed")


def knots(name: str, judge: str, strategy: str, curve: Curve | None) -> pl.DataFrame:
    """Rows of `CALIBRATION` for one pair set. Without a curve there are no rows."""
    margin, p = curve or (np.zeros(0), np.zeros(0))
    return pl.DataFrame(
        {
            "pairs": [name] * len(margin),
            "knot": range(len(margin)),
            "judge": [judge] * len(margin),
            "strategy": [strategy] * len(margin),
            "margin": margin,
            "p_correct": p,
        },
        schema=schema.CALIBRATION.columns,
    )


REVIEWED = "reviewed"
"""Strategy of the pairs of reviewers. The margin of these pairs is a number of answers, so they have a curve of their
own beside the curve of a judge."""


def curve_of(calibration: pl.DataFrame, pairs_name: str, reviewed: bool = False) -> Curve | None:
    """Curve of a pair set from the rows of `CALIBRATION`; None if no row is of this pair set.

    `reviewed` asks for the curve of the pairs of reviewers, in place of the curve of the judge.
    """
    wanted = (pl.col("pairs") == pairs_name) & ((pl.col("strategy") == REVIEWED) == reviewed)
    rows = calibration.filter(wanted).sort("knot")
    return Curve(rows["margin"].to_numpy(), rows["p_correct"].to_numpy()) if len(rows) else None
