"""Charts of the audit: lift and pair accuracy of judges, and calibration of p_correct."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pipeline.measures.numbers import Estimate, decimal
from pipeline.report.blocks import Figure
from pipeline.report.figures import BLUE, GREEN, GREY, RED, SKY, drawing, embed, grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 4
"""Number of small charts side by side."""
DASHED, DOTTED = (0, (3, 1.5)), (0, (1, 2))
PALE = "#d1d5db"
SMALL = 8.5
"""Size in points of numbers inside small charts."""


class CalibrationCurve(NamedTuple):
    """Data of the calibration chart of a pair set. The bins are empty if no pairs were held out."""

    ece: float | None
    judge: str
    predicted: np.ndarray  # f64 [bin]
    observed: np.ndarray  # f64 [bin]
    pairs: np.ndarray  # i64 [bin], number of pairs
    margin: np.ndarray  # f64 [knot]
    p_correct: np.ndarray  # f64 [knot]
    mined: np.ndarray  # f64 [pair], margins of the mined pairs


class Distribution(NamedTuple):
    """Data of the chart of p_correct of the mined pairs of a pair set."""

    p: np.ndarray  # f64 [pair]
    dropped: int  # number of cases left out because of p_correct
    cases: int
    least: float | None  # min_p_correct; None means one half


def lifts(rows: Sequence[Mapping[str, Any]], research: Sequence[bool], alt: str, caption: str) -> Figure:
    """Forest plot of lift@1, one line per row of `AUDIT_JUDGES` from top to bottom.

    Each line also shows the headroom, and the lift of the best fixed sampler on the same cases. Judges for research
    stand below a grey line. Every row must have a lift.
    """
    with drawing(9.6, 1.2 + 0.36 * len(rows)) as drawn:
        axes = drawn.subplots()
        axes.axvline(0, color="black", linewidth=1)
        for at, row in enumerate(rows):
            lift = Estimate.column(row, "lift")
            assert lift.mean is not None
            colour = {1: BLUE, -1: RED, 0: GREY}[lift.sign]
            if row["lift_over_fixed"] is not None:
                fixed = 100 * (lift.mean - row["lift_over_fixed"])
                axes.plot([fixed, fixed], [at - 0.5, at + 0.5], color=GREEN, linewidth=1.6, linestyle=DASHED)
            if row["headroom"] is not None:
                axes.plot(100 * row["headroom"], at, "D", color="black", markerfacecolor="white", markersize=5)
            if lift.low is not None and lift.high is not None:
                axes.plot([100 * lift.low, 100 * lift.high], [at, at], color=colour, linewidth=2.2)
            axes.plot(100 * lift.mean, at, "o", color=colour, markerfacecolor=colour if lift.sign else "white")
        if True in research and False in research:
            axes.axhline(research.index(True) - 0.5, color=GREY, linewidth=1)
        names = [f"{row['judge']} (research)" if of else row["judge"] for row, of in zip(rows, research, strict=True)]
        axes.set_yticks(range(len(rows)), names)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("true Dice over the base, points")
        handles = [
            *axes.plot([], [], "o-", color=BLUE, linewidth=2.2, label="lift@1"),
            *axes.plot([], [], color=GREEN, linewidth=1.6, linestyle=DASHED, label="best fixed sampler"),
            *axes.plot([], [], "D", color="black", markerfacecolor="white", markersize=5, label="headroom"),
        ]
        drawn.legend(handles=handles, loc="outside upper right", ncols=3)
        return embed(drawn, alt, caption)


def accuracies(panels: Mapping[str, Sequence[Mapping[str, Any]]], xlabel: str, alt: str, caption: str) -> Figure:
    """Pair accuracy by bin, one panel per judge, from the rows of `AUDIT_BINS` of the judge in the order of the bins.

    If all judges have the same bins, pale lines of the other judges are drawn behind each judge.
    """
    ranges = {name: [(row["above"], row["up_to"]) for row in rows] for name, rows in panels.items()}
    alike = len({tuple(edges) for edges in ranges.values()}) == 1
    with grid(len(panels), 2.75, 2.55, COLUMNS) as (drawn, axes):
        for at, (name, rows) in zip(axes, panels.items(), strict=True):
            at.axhline(50, color="black", linewidth=1, linestyle=DOTTED)
            for other in panels if alike else ():
                at.plot(*_accuracy(panels[other]), color=PALE, linewidth=1)
            at.plot(*_accuracy(rows), color=BLUE, linewidth=1.4)
            for place, row in enumerate(rows):
                accuracy = Estimate.column(row, "accuracy")
                if accuracy.mean is None:
                    continue
                if accuracy.low is not None and accuracy.high is not None:
                    at.plot([place, place], [100 * accuracy.low, 100 * accuracy.high], color=BLUE, linewidth=2)
                at.plot(place, 100 * accuracy.mean, "o", color=BLUE, markersize=4.5)
            for place, row in enumerate(rows):
                at.text(place, 2, _count(row["count"]), ha="center", va="bottom", fontsize=SMALL, color=GREY)
            at.set_xticks(range(len(rows)), [_range(*ends) for ends in ranges[name]], rotation=35, ha="right")
            at.tick_params(axis="x", labelsize=SMALL)
            at.set(xlim=(-0.5, len(rows) - 0.5), ylim=(0, 104), yticks=(0, 25, 50, 75, 100))
            at.grid(axis="x", visible=False)
            at.set_title(name)
        for at in axes[::COLUMNS]:
            at.set_ylabel("ordered rightly, %")
        drawn.supxlabel(xlabel, fontsize=11)
        return embed(drawn, alt, caption)


def _accuracy(rows: Sequence[Mapping[str, Any]]) -> tuple[list[int], list[float]]:
    """Places of the measured bins, and their accuracy in per cent."""
    known = [(place, 100 * row["accuracy"]) for place, row in enumerate(rows) if row["accuracy"] is not None]
    return [place for place, _ in known], [value for _, value in known]


def _range(above: float, up_to: float) -> str:
    """Edges of a bin in hundredths of their unit, with two digits."""
    return "\N{EN DASH}".join(f"{float(f'{100 * end:.2g}'):g}" for end in (above, up_to))


def _count(n: int) -> str:
    """A number in at most four characters."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if n >= size:
            return f"{n / size:.0f}{unit}" if n >= 10 * size else f"{n / size:.1f}{unit}"
    return str(n)


def reliabilities(panels: Mapping[str, CalibrationCurve], alt: str, caption: str) -> Figure:
    """Reliability diagram and curve from margin to p_correct, side by side for each pair set."""
    lowest = min(float(np.min([*one.predicted, *one.observed, *one.p_correct, 0.5])) for one in panels.values())
    low = np.floor(10 * lowest) / 10 - 0.05
    with grid(2 * len(panels), 2.75, 2.6, COLUMNS) as (drawn, axes):
        for index, (name, one) in enumerate(panels.items()):
            left, right = axes[2 * index], axes[2 * index + 1]
            left.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=DOTTED)
            left.plot(one.predicted, one.observed, color=BLUE, linewidth=1)
            if len(one.pairs):
                left.scatter(one.predicted, one.observed, 15 + 90 * one.pairs / one.pairs.max(), BLUE, zorder=3)
            for x, y, n in zip(one.predicted, one.observed, one.pairs.tolist(), strict=True):
                below = y <= x or y > 0.9  # a number above a high point would run into the title
                offset = (5, -5) if below else (-5, 5)
                left.annotate(
                    _count(n),
                    (x, y),
                    offset,
                    textcoords="offset points",
                    fontsize=SMALL,
                    color=GREY,
                    ha="left" if below else "right",
                    va="top" if below else "bottom",
                )
            left.set(xlim=(low, 1.05), ylim=(low, 1.05), xlabel="predicted p_correct", ylabel="ordered rightly")
            left.set_title(f"{name}\nECE {decimal(one.ece, 3)}" if one.ece is not None else f"{name}\nno ECE")
            _curve(right, one, low)
        return embed(drawn, alt, caption)


def _curve(at: Axes, one: CalibrationCurve, low: float) -> None:
    """Draw the curve from margin to p_correct over a histogram of the margins of the mined pairs."""
    end = max(float(one.margin.max()), float(one.mined.max()) if len(one.mined) else 0.0)
    if len(one.mined):
        height, edges = np.histogram(one.mined, 20, (0, end))
        top = 0.35 * (1.05 - low) / height.max()
        middle = [(a + b) / 2 for a, b in pairwise(edges)]
        at.bar(middle, height * top, end / 20, bottom=low, color=PALE)
    at.axhline(0.5, color="black", linewidth=1, linestyle=DOTTED)
    # The curve is constant beyond the margins of validation pairs.
    at.plot([0, *one.margin, end], [one.p_correct[0], *one.p_correct, one.p_correct[-1]], color=BLUE, linewidth=1.6)
    at.set(ylim=(low, 1.05), xlim=(0, 1.03 * end), xlabel="margin", ylabel="p_correct")
    at.locator_params(axis="x", nbins=4)
    at.set_title(f"score margin of\n{one.judge}")


def distributions(panels: Mapping[str, Distribution], alt: str, caption: str) -> Figure:
    """Histograms of p_correct of the mined pairs, one panel per pair set. Titles count the cases left out."""
    lowest = min(0.5, *(float(one.p.min()) for one in panels.values()))
    low = np.floor(20 * lowest) / 20
    bins = np.linspace(low, 1, round((1 - low) * 40) + 1)
    with grid(len(panels), 2.75, 2.4, COLUMNS) as (drawn, axes):
        for at, (name, one) in zip(axes, panels.items(), strict=True):
            at.hist(one.p, bins.tolist(), color=SKY, edgecolor="white", linewidth=0.5)
            at.axvline(0.5 if one.least is None else one.least, color="black", linewidth=1, linestyle=DOTTED)
            at.set_xlim(low - 0.02, 1.02)
            at.set_title(
                f"{name}\n{_count(len(one.p))} pairs, {one.dropped} of {one.cases} cases left out", fontsize=10
            )
            at.set_xlabel("p_correct")
        return embed(drawn, alt, caption)
