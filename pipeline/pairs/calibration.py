"""Calibration: score margin -> P(the order of a pair is right), for the pairs of one judge mined by one strategy.

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
"""Bins of equal width of a reliability curve."""
KNOTS = 101
"""Knots that stand for a logistic curve; linear between them it is off by less than .001."""


class ValidationPairs(NamedTuple):
    """Validation pairs whose truth is known, all `[pair]`."""

    margin: np.ndarray  # f64
    right: np.ndarray  # f64; 1, or 0, or one half where both masks are equally good
    case: np.ndarray
    group: np.ndarray

    @property
    def weight(self) -> np.ndarray:
        """Cases count equally, however many pairs they have."""
        _, member, pairs = np.unique(self.case, return_inverse=True, return_counts=True)
        return 1 / pairs[member]

    def only(self, wanted: np.ndarray) -> ValidationPairs:
        return ValidationPairs(*(column[wanted] for column in self))


class Curve(NamedTuple):
    """P(the order is right), linear between knots and constant beyond the margins of validation."""

    margin: np.ndarray  # f64 [knot], increasing
    p: np.ndarray  # f64 [knot], never decreasing

    def __call__(self, margins: np.ndarray) -> np.ndarray:
        return np.interp(margins, self.margin, self.p)

    def shrunk(self, left: float) -> Curve:
        """Drawn towards one half, of the distance to which this share is left."""
        return Curve(self.margin, 0.5 + left * (self.p - 0.5))


class _Calibration(Knobs):
    """How a curve is fitted to all pairs, and when there are too few."""

    folds: Annotated[int, Field(ge=2)] = 5
    """Folds by group for measuring the calibration on cases that it was not fitted on."""
    min_cases: Annotated[int, Field(ge=1)] = 20
    """Fewer validation cases than this, those of one group counting once, draw `p_correct` towards one half, in
    proportion to what is missing."""


class Isotonic(_Calibration):
    """A step fit that never decreases, each step as if it held one more right and one more wrong case (Laplace)."""

    kind: Literal["isotonic"] = "isotonic"

    def curve(self, tried: ValidationPairs) -> Curve:
        from scipy.optimize import isotonic_regression

        margin, member = np.unique(tried.margin, return_inverse=True)
        cases = np.bincount(member, tried.weight)
        share = np.bincount(member, tried.weight * tried.right) / cases
        steps = isotonic_regression(share, weights=cases)
        start = steps.blocks[:-1]
        held = np.add.reduceat(cases, start)
        smoothed = (steps.x[start] * held + 1) / (held + 2)
        level = np.repeat(isotonic_regression(smoothed, weights=held + 2).x, np.diff(steps.blocks))
        ends = np.union1d(start, steps.blocks[1:] - 1)
        return Curve(margin[ends], level[ends])


class Logistic(_Calibration):
    """sigmoid(a + b margin), b >= 0, fitted to Platt's targets: as if one more case were right and one more wrong."""

    kind: Literal["logistic"] = "logistic"

    def curve(self, tried: ValidationPairs) -> Curve:
        from scipy.optimize import minimize
        from scipy.special import expit

        weight = tried.weight
        right, wrong = (weight * tried.right).sum(), (weight * (1 - tried.right)).sum()
        target = tried.right * (right + 1) / (right + 2) + (1 - tried.right) / (wrong + 2)
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
        descent = -loss(found.x)[1]
        if abs(descent[0]) > 1e-4 * weight.sum() or descent[1] > 1e-4 * weight.sum():
            raise ArithmeticError(f"the logistic calibration of {len(x)} pairs did not converge: {found.message}")
        knots = np.unique(np.linspace(tried.margin.min(), tried.margin.max(), KNOTS))
        return Curve(knots, expit(found.x[0] + found.x[1] * knots / unit))


Calibration = Annotated[Isotonic | Logistic, Field(discriminator="kind")]


class PairCalibration(NamedTuple):
    """What is known about P(the order is right) in one pair set."""

    curve: Curve | None  # fitted on all validation cases; None without a pair
    reliability: pl.DataFrame  # `bin`, `count`, `cases`, `predicted`, `observed` of `RELIABILITY`
    summary: dict[str, Any]  # `kind`, `cases`, `groups`, `shrinkage`, `ece`, `brier`, `note`


def calibrate(tried: ValidationPairs, knobs: Calibration, seed: int) -> PairCalibration:
    """The fit on all pairs, and how reliable such fits are on groups that were held out of them.

    `shrinkage`: what is left of the distance to one half, 1 with enough cases. `ece`: mean of |predicted - observed|
    over the bins, weighted by cases; `brier`: mean of (predicted - right)^2. Both are null, and the reliability curve
    is empty, with fewer than two groups. Without a pair there is no curve. `note` says what too little data did to
    the fit; null with enough.
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
    reliability = _reliability(tried, held_out)
    share = reliability["cases"] / max(1.0, reliability["cases"].sum())
    gap = (reliability["predicted"] - reliability["observed"]).abs()
    summary: dict[str, Any] = {
        "kind": knobs.kind,
        "cases": len(np.unique(tried.case)),
        "groups": groups,
        "shrinkage": left,
        "ece": None if held_out is None else float((share * gap).sum()),
        "brier": None if held_out is None else float(np.average((held_out - tried.right) ** 2, weights=tried.weight)),
        "note": note,
    }
    return PairCalibration(knobs.curve(tried).shrunk(left) if groups else None, reliability, summary)


def _held_out(tried: ValidationPairs, knobs: Calibration, left: float, seed: int) -> np.ndarray:
    """P of each pair `[pair]` by a fit on the other folds of groups."""
    fold = folds_by_group(tried.group, knobs.folds, seed)
    p = np.empty(len(tried.margin))
    for index in np.unique(fold):
        inside = fold == index
        p[inside] = knobs.curve(tried.only(~inside)).shrunk(left)(tried.margin[inside])
    return p


def _reliability(tried: ValidationPairs, predicted: np.ndarray | None) -> pl.DataFrame:
    """Bins of predicted P that hold a pair: what was predicted and how often the order was right, cases equal."""
    if predicted is None:
        return pl.DataFrame(schema={name: schema.RELIABILITY.columns[name] for name in _BIN})
    index = np.minimum((predicted * BINS).astype(np.int32), BINS - 1)
    held, count = np.unique(index, return_counts=True)
    cases, p, right = (np.bincount(index, tried.weight * what, BINS)[held] for what in (1.0, predicted, tried.right))
    columns = (held, count, cases, p / cases, right / cases)
    return pl.DataFrame(dict(zip(_BIN, columns, strict=True)))


_BIN = ("bin", "count", "cases", "predicted", "observed")


def knots(name: str, judge: str, strategy: str, curve: Curve | None) -> pl.DataFrame:
    """Rows of `CALIBRATION` of one pair set; none without a curve."""
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


def curve_of(calibration: pl.DataFrame, pairs_name: str) -> Curve | None:
    """The curve of a pair set from the rows of `CALIBRATION`; None where they lack it."""
    rows = calibration.filter(pl.col("pairs") == pairs_name).sort("knot")
    return Curve(rows["margin"].to_numpy(), rows["p_correct"].to_numpy()) if len(rows) else None
