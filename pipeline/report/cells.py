"""Numbers as the page writes them: Dice in points, signed gains, 95 % intervals in brackets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from pipeline.report.blocks import Cell

UNKNOWN = "\N{EM DASH}"
"""Stands for what was not measured or does not apply."""


class Estimate(NamedTuple):
    """A mean and the ends of its 95 % interval; None where unknown."""

    mean: float | None
    low: float | None = None
    high: float | None = None

    @classmethod
    def read(cls, entry: Mapping[str, Any]) -> Estimate:
        """From `{mean, low, high}`, as in `metrics/NAME.json`."""
        return cls(entry["mean"], entry["low"], entry["high"])

    @classmethod
    def column(cls, row: Mapping[str, Any], measure: str) -> Estimate:
        """From the columns `measure`, `measure_low` and `measure_high` of an audit table."""
        return cls(row[measure], row[f"{measure}_low"], row[f"{measure}_high"])

    @property
    def sign(self) -> int:
        """1 or -1 where the interval lies above or below 0, else 0."""
        if self.low is None or self.high is None:
            return 0
        return 1 if self.low > 0 else -1 if self.high < 0 else 0


def decimal(value: float | None, digits: int = 1, signed: bool = False) -> str:
    """A number with a true minus sign; zero has no sign."""
    if value is None:
        return UNKNOWN
    text = f"{value:{'+' if signed else ''}.{digits}f}"
    if float(text) == 0:
        text = f"{0:.{digits}f}"
    return text.replace("-", "\N{MINUS SIGN}")


def points(value: float | None, signed: bool = False) -> str:
    """A Dice or a difference of two in points, hundredths of the scale from 0 to 1."""
    return decimal(None if value is None else 100 * value, 1, signed)


def percent(value: float | None) -> str:
    """A share in per cent."""
    return UNKNOWN if value is None else f"{decimal(100 * value, 0)} %"


def interval(estimate: Estimate, scale: float = 100, digits: int = 1, signed: bool = False) -> str:
    """`[low, high]`, or nothing where there is no interval."""
    if estimate.low is None or estimate.high is None:
        return ""
    return f"[{', '.join(decimal(scale * end, digits, signed) for end in estimate[1:] if end is not None)}]"


def cell(estimate: Estimate, scale: float = 100, digits: int = 1, signed: bool = False) -> Cell:
    """An estimate and its interval; a signed one is marked where the interval excludes 0."""
    text = decimal(None if estimate.mean is None else scale * estimate.mean, digits, signed)
    return Cell(text, interval(estimate, scale, digits, signed), estimate.sign if signed else 0)


def inline(estimate: Estimate, scale: float = 100, digits: int = 1, signed: bool = False) -> str:
    """An estimate and its interval within a sentence."""
    found = cell(estimate, scale, digits, signed)
    return f"{found.text} {found.interval}".strip()


def case_means(cases: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean of each case's values, `[case]`, and which of them belongs to each value, `[n]`.

    Added in the order of the rows: a threaded sum would move the last bits, and with them the bytes of a figure.
    """
    _, member = np.unique(cases, return_inverse=True)
    return np.bincount(member, values) / np.bincount(member), member


def extent(shapes: list[tuple[float, ...]], digits: int = 0) -> str:
    """What a list of shapes or spacings has in common: `64 x 64`, or per axis the range `64-80 x 64`."""
    if not shapes:
        return UNKNOWN
    if len({len(shape) for shape in shapes}) > 1:
        return "of 2 and 3 axes"
    axes = []
    for lengths in zip(*shapes, strict=True):
        low, high = (f"{end:.{digits}f}" for end in (min(lengths), max(lengths)))
        axes.append(low if low == high else f"{low}\N{EN DASH}{high}")
    return " \N{MULTIPLICATION SIGN} ".join(axes)
