"""Numbers as text: decimals, points, percent and intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

NO_VALUE = "\N{EM DASH}"
"""Text for a value that was not measured or does not apply."""


class Estimate(NamedTuple):
    """A mean and the ends of its 95 % interval. None if unknown."""

    mean: float | None
    low: float | None = None
    high: float | None = None

    @classmethod
    def read(cls, entry: Mapping[str, Any]) -> Estimate:
        """Estimate from `{mean, low, high}`, as in `evaluation/NAME.json`."""
        return cls(entry["mean"], entry["low"], entry["high"])

    @classmethod
    def column(cls, row: Mapping[str, Any], measure: str) -> Estimate:
        """Estimate from the columns `measure`, `measure_low` and `measure_high` of an audit table."""
        return cls(row[measure], row[f"{measure}_low"], row[f"{measure}_high"])

    @property
    def sign(self) -> int:
        """1 if the interval lies above 0, -1 if below 0, else 0. 0 without an interval."""
        if self.low is None or self.high is None:
            return 0
        return 1 if self.low > 0 else -1 if self.high < 0 else 0


def decimal(value: float | None, digits: int = 1, signed: bool = False) -> str:
    """A number with a typographic minus sign. Zero has no sign. `NO_VALUE` for None."""
    if value is None:
        return NO_VALUE
    text = f"{value:{'+' if signed else ''}.{digits}f}"
    if float(text) == 0:
        text = f"{0:.{digits}f}"
    return text.replace("-", "\N{MINUS SIGN}")


def points(value: float | None, signed: bool = False) -> str:
    """A Dice or a difference of two Dice in points, hundredths of the scale from 0 to 1."""
    return decimal(None if value is None else 100 * value, 1, signed)


def percent(value: float | None) -> str:
    """A share between 0 and 1 in per cent, without decimals."""
    return NO_VALUE if value is None else f"{decimal(100 * value, 0)} %"


def interval_text(estimate: Estimate, scale: float = 100, digits: int = 1, signed: bool = False) -> str:
    """The interval as `[low, high]`, both times `scale`. Empty without an interval."""
    if estimate.low is None or estimate.high is None:
        return ""
    return f"[{', '.join(decimal(scale * end, digits, signed) for end in estimate[1:] if end is not None)}]"
