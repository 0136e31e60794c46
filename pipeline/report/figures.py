"""Charts of the page as inline pictures. Equal numbers give equal bytes."""

from __future__ import annotations

import base64
import io
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

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

    class InNotebook(Drawing):
        """A drawing that notebooks show. Of other figures they show the name, until a backend of pyplot is active."""

        def _repr_png_(self) -> bytes:
            file = io.BytesIO()
            self.savefig(file, format="png")
            return file.getvalue()

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield InNotebook(figsize=(width, height), layout="constrained")


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


def forest(
    panels: Mapping[str, Mapping[str, Estimate | None]], better: Collection[str], alt: str, caption: str
) -> Figure:
    """Forest plot of gains in points with their intervals: one panel per rival, one row per arm from top to bottom.

    A gain above 0 is marked for the arms in `better` only. A gain whose interval is below 0 is marked for every arm.
    """
    names = list(next(iter(panels.values())))
    with drawing(3.2 + 3.0 * len(panels), 0.9 + 0.36 * len(names)) as drawn:
        axes = list(drawn.subplots(1, len(panels), squeeze=False, sharey=True).flat)
        for at, (title, gains) in zip(axes, panels.items(), strict=True):
            at.axvline(0, color="black", linewidth=1)
            for row, (name, gain) in enumerate(gains.items()):
                if gain is None or gain.mean is None:
                    continue
                sign = gain.sign if gain.sign < 0 or name in better else 0
                colour = {1: BLUE, -1: RED, 0: GREY}[sign]
                if gain.low is not None and gain.high is not None:
                    at.plot([100 * gain.low, 100 * gain.high], [row, row], color=colour, linewidth=2)
                at.plot(100 * gain.mean, row, "o", color=colour, markerfacecolor=colour if sign else "white")
            at.set_title(title)
            at.grid(axis="y", visible=False)
            at.set_xlabel("gain in test Dice, points")
        axes[0].set_yticks(range(len(names)), names)
        axes[0].set_ylim(len(names) - 0.5, -0.5)
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
    wide = _legend_columns(names, size[0] * min(len(panels), columns))
    with grid(len(panels), *size, columns, legend=0.28 * -(-len(names) // wide)) as (drawn, axes):
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
            ncols=wide,
        )
        return embed(drawn, alt, caption)


def _legend_columns(names: Sequence[str], width: float) -> int:
    """Number of names that fit side by side in a legend of this width in inches, at most 6."""
    # A letter of 11 pt is about 0.09 inches wide. A line sample and its gaps take 0.75 inches.
    each = 0.75 + 0.09 * max(map(len, names), default=0)
    return max(1, min(6, len(names), int(width / each)))


class Banded(NamedTuple):
    """A curve with a band around it and one marked point on it."""

    x: np.ndarray  # f64 [point]
    y: np.ndarray  # f64 [point]
    half: np.ndarray  # half the width of the band, f64 [point]; NaN for no band
    marked: float  # a value of `x`


def banded_curves(
    panels: Mapping[str, Mapping[str, Banded]], names: Sequence[str], xlabel: str, ylabel: str, alt: str, caption: str
) -> Figure:
    """Curves by name with their bands and marked points. A name has the same colour in all panels."""
    wide = _legend_columns(names, 4.6 * min(len(panels), 2))
    with grid(len(panels), 4.6, 3.0, columns=2, legend=0.28 * -(-len(names) // wide)) as (drawn, axes):
        for at, (title, lines) in zip(axes, panels.items(), strict=False):
            for name, curve in lines.items():
                place = list(names).index(name)
                colour, dashes = LINES[place % len(LINES)], DASHES[place // len(LINES) % len(DASHES)]
                at.fill_between(
                    curve.x, curve.y - curve.half, curve.y + curve.half, color=colour, alpha=0.15, linewidth=0
                )
                at.plot(curve.x, curve.y, color=colour, linestyle=dashes, linewidth=1.6, label=name)
                chosen = int(np.flatnonzero(curve.x == curve.marked)[0])
                at.plot(curve.marked, curve.y[chosen], "o", color=colour, markeredgecolor="black", markersize=8)
            at.set_title(title)
            at.set_xlabel(xlabel)
            at.set_ylabel(ylabel)
        handles = {handle.get_label(): handle for at in axes for handle in at.get_lines()}
        shown = [name for name in names if name in handles]
        drawn.legend([handles[name] for name in shown], shown, loc="outside lower left", ncols=wide)
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
