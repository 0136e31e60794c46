"""Numbers as the report writes them, and charts of few or equal values."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from pipeline.measures.numbers import Estimate, decimal, percent, points
from pipeline.report.cells import case_means, cell, extent, inline
from pipeline.report.figures import histograms

TIMES, MINUS = "\N{MULTIPLICATION SIGN}", "\N{MINUS SIGN}"


@pytest.mark.parametrize(
    ("write", "value", "expected"),
    [
        (points, 0.8134, "81.3"),
        (points, None, "—"),
        (lambda v: points(v, signed=True), 0.012, "+1.2"),
        (lambda v: points(v, signed=True), -0.012, f"{MINUS}1.2"),
        (lambda v: points(v, signed=True), -0.0001, "0.0"),
        (lambda v: decimal(v, 2), 0.126, "0.13"),
        (percent, 0.256, "26 %"),
        (percent, None, "—"),
    ],
)
def test_numbers(write: Callable[[float | None], str], value: float | None, expected: str) -> None:
    assert write(value) == expected


def test_estimates_carry_their_interval_and_gains_their_sign() -> None:
    assert inline(Estimate(0.813, 0.79, 0.832)) == "81.3 [79.0, 83.2]"
    assert inline(Estimate(0.813)) == "81.3"
    assert cell(Estimate(0.813, 0.79, 0.832)).sign == 0  # a Dice above 0 is no news
    assert cell(Estimate(-0.02, -0.03, -0.01), signed=True).sign == -1
    assert cell(Estimate(None), signed=True).text == "—"


def test_case_means() -> None:
    """Case 7 has 1 and 3, case 9 has 5: means 2 and 5."""
    means, member = case_means(np.array([7, 9, 7]), np.array([1.0, 5.0, 3.0]))
    assert means.tolist() == [2.0, 5.0]
    assert member.tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ([(64, 64), (64, 64)], f"64 {TIMES} 64"),
        ([(64, 80), (70, 80)], f"64\N{EN DASH}70 {TIMES} 80"),
        ([(64, 64), (8, 64, 64)], "of 2 and 3 axes"),
        ([], "—"),
    ],
)
def test_extents(shapes: list[tuple[float, ...]], expected: str) -> None:
    assert extent(shapes) == expected


@pytest.mark.parametrize("values", [[7.0], [1.0, 1.0], [1.0, 1000.0]])
def test_histograms_of_few_or_equal_values(values: list[float]) -> None:
    figure = histograms({"a $b$": np.array(values)}, "|D|", "alt", "caption", log=True)
    assert figure.source.startswith("data:image/svg+xml;base64,")
