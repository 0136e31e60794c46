"""Charts of the page as inline pictures. Equal numbers give equal bytes."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pipeline.measures.numbers import Estimate
from pipeline.report.blocks import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

BLUE, ORANGE, GREEN, RED, SKY, PURPLE, YELLOW = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#56B4E9",
    "#CC79A7",
    "#F0E442",
)
"""Colours that colour-blind readers can tell apart (Okabe and Ito 2008)."""
GREY = "#6b7280"
LINES = (BLUE, RED, GREEN, PURPLE, ORANGE, SKY)
"""Colours of curves, in order. Yellow is left out: yellow lines are too pale on white."""
DASHES: tuple[Literal["-", "--", ":", "-."], ...] = ("-", "--", ":", "-.")
"""Line styles of curves, in order. A new style starts when all colours are used."""
DPI = 96

_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "report",  # else the ids in an SVG are random
    "text.parse_math": False,  # names are text, also with a dollar sign
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e7eb",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.constrained_layout.h_pad": 0.09,
    "figure.constrained_layout.w_pad": 0.07,
    "axes.prop_cycle": "cycler('color', ['black'])",
}


@contextmanager
def drawing(width: float, height: float) -> Iterator[Drawing]:
    """An empty drawing of this size in inches. The user's matplotlib settings have no effect."""
    import matplotlib
    from matplotlib.figure import Figure as Drawing

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield Drawing(figsize=(width, height), layout="constrained")


def embed(drawn: Drawing, alt: str, caption: str, pixels: bool = False) -> Figure:
    """The drawing as a data URI: SVG, or PNG with `pixels` for drawings that are mostly images."""
    file = io.BytesIO()
    if pixels:
        drawn.savefig(file, format="png", dpi=1.5 * DPI, metadata={"Software": None})
    else:
        drawn.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    kind = "png" if pixels else "svg+xml"
    source = f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
    return Figure(source, alt, caption, round(drawn.get_figwidth() * DPI))


def forest(gains: Mapping[str, Estimate], alt: str, caption: str) -> Figure:
    """Forest plot of gains in points with their intervals, one row per gain from top to bottom.

    A point is filled if its interval excludes 0.
    """
    with drawing(8.5, 0.9 + 0.36 * len(gains)) as drawn:
        axes = drawn.subplots()
        axes.axvline(0, color="black", linewidth=1)
        for row, gain in enumerate(gains.values()):
            if gain.mean is None:
                continue
            colour = {1: BLUE, -1: RED, 0: GREY}[gain.sign]
            if gain.low is not None and gain.high is not None:
                axes.plot([100 * gain.low, 100 * gain.high], [row, row], color=colour, linewidth=2)
            axes.plot(100 * gain.mean, row, "o", color=colour, markerfacecolor=colour if gain.sign else "white")
        axes.set_yticks(range(len(gains)), list(gains))
        axes.set_ylim(len(gains) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("gain in test Dice over the base, points")
        return embed(drawn, alt, caption)


def histograms(
    panels: Mapping[str, np.ndarray], xlabel: str | Sequence[str], alt: str, caption: str, log: bool = False
) -> Figure:
    """One histogram of values `[n]` per panel, with a line at the median. `log`: logarithmic axis and bins."""
    from matplotlib.ticker import LogLocator, NullLocator

    labels = [xlabel] * len(panels) if isinstance(xlabel, str) else xlabel
    with grid(len(panels), 3.2, 2.5) as (drawn, axes):
        for at, label, (title, values) in zip(axes, labels, panels.items(), strict=False):
            low, high = float(values.min()), float(values.max())
            if log:
                at.set_xscale("log")
                at.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                at.xaxis.set_major_formatter("{x:g}")
                at.xaxis.set_minor_locator(NullLocator())
                bins = np.geomspace(low, max(high, 1.5 * low), 21)
            else:
                bins = np.linspace(low, high if high > low else low + 1, 21)
            at.hist(values, bins.tolist(), color=SKY, edgecolor="white", linewidth=0.5)
            at.axvline(float(np.median(values)), color="black", linewidth=1.5)
            at.set_title(title)
            at.set_xlabel(label)
        return embed(drawn, alt, caption)


def scatters(
    panels: Mapping[str, tuple[np.ndarray, np.ndarray]], xlabel: str, ylabel: str, alt: str, caption: str
) -> Figure:
    """One cloud of points per panel. Points are drawn as pixels, so that a large validation set gives a small file."""
    with grid(len(panels), 3.2, 2.9) as (drawn, axes):
        for at, (title, (x, y)) in zip(axes, panels.items(), strict=False):
            at.axhline(0, color=GREY, linewidth=0.8)
            at.axvline(0, color=GREY, linewidth=0.8)
            at.plot(x, y, ".", color=BLUE, alpha=0.35, markersize=5, markeredgewidth=0, rasterized=True)
            at.set_title(title)
            at.set_xlabel(xlabel)
            at.set_ylabel(ylabel)
        drawn.set_dpi(1.5 * DPI)
        return embed(drawn, alt, caption)


def curves(
    panels: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]],
    names: Sequence[str],
    alt: str,
    caption: str,
    columns: int = 3,
    size: tuple[float, float] = (3.3, 2.4),
    level: float | None = None,
) -> Figure:
    """Curves `(x, y)` by name, one panel per measure, with one legend. A name has the same style in all panels.

    `level` draws a dotted horizontal line in every panel.
    """
    style: dict[str, dict[str, Any]] = {
        name: {"color": LINES[i % len(LINES)], "linestyle": DASHES[i // len(LINES) % len(DASHES)]}
        for i, name in enumerate(names)
    }
    with grid(len(panels), *size, columns, legend=0.28 * -(-len(names) // 6)) as (drawn, axes):
        for at, (title, lines) in zip(axes, panels.items(), strict=False):
            for name, (x, y) in lines.items():
                at.plot(x, y, linewidth=1.6, label=name, **style[name])
            if level is not None:
                at.axhline(level, color="black", linewidth=1, linestyle=(0, (1, 2)))
            at.set_title(title)
            at.set_xlabel("step")
        handles = {h.get_label(): h for at in axes for h in at.get_lines() if h.get_label() in style}
        drawn.legend(
            [handles[n] for n in names if n in handles],
            [n for n in names if n in handles],
            loc="outside lower left",
            ncols=min(6, len(names)),
        )
        return embed(drawn, alt, caption)


@contextmanager
def grid(
    n: int, width: float, height: float, columns: int = 3, legend: float = 0
) -> Iterator[tuple[Drawing, list[Axes]]]:
    """A drawing of `n` panels in rows of `columns`, with room for a legend below. All sizes are in inches."""
    columns = min(n, columns)
    rows = -(-n // columns)
    with drawing(width * columns, height * rows + legend) as drawn:
        axes = list(drawn.subplots(rows, columns, squeeze=False).flat)
        for spare in axes[n:]:
            spare.remove()
        yield drawn, axes[:n]
