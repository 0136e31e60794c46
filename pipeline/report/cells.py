"""Numbers in the format of the page: Dice in points, signed gains, 95 % intervals in brackets."""

from __future__ import annotations

import numpy as np

from pipeline.measures.numbers import NO_VALUE, Estimate, decimal, interval_text
from pipeline.report.blocks import Cell


def cell(estimate: Estimate, scale: float = 100, digits: int = 1, signed: bool = False) -> Cell:
    """Cell of an estimate and its interval. A signed estimate is marked if the interval excludes 0."""
    text = decimal(None if estimate.mean is None else scale * estimate.mean, digits, signed)
    return Cell(text, interval_text(estimate, scale, digits, signed), estimate.sign if signed else 0)


def inline(estimate: Estimate, scale: float = 100, digits: int = 1, signed: bool = False) -> str:
    """Text of an estimate and its interval, for use within a sentence."""
    found = cell(estimate, scale, digits, signed)
    return f"{found.text} {found.interval}".strip()


def case_means(cases: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean of the values of each case, f64 `[case]`, and the index of the case of each value, i64 `[n]`.

    Values are added in the order of the rows. A threaded sum would change the last bits, and with them the bytes of a
    figure.
    """
    _, member = np.unique(cases, return_inverse=True)
    return np.bincount(member, values) / np.bincount(member), member


def extent(shapes: list[tuple[float, ...]], digits: int = 0) -> str:
    """Range of a list of shapes or spacings per axis, such as `64-80 x 64`, or `64 x 64` if all are equal."""
    if not shapes:
        return NO_VALUE
    if len({len(shape) for shape in shapes}) > 1:
        return "of 2 and 3 axes"
    axes = []
    for lengths in zip(*shapes, strict=True):
        low, high = (f"{end:.{digits}f}" for end in (min(lengths), max(lengths)))
        axes.append(low if low == high else f"{low}\N{EN DASH}{high}")
    return " \N{MULTIPLICATION SIGN} ".join(axes)
