"""How often the 95 % interval over few seeds holds the truth: `python -m benchmarks.seed_coverage [REPEATS]`.

A gain is drawn as an effect of the seed, an effect of the patient and a residual, all with mean 0, for every number of
seeds and patients and several shares of the three in the variance. The interval is that of
`pipeline.measures.intervals.crossed_interval`, as `compare` gives it. The table is Markdown.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pipeline.measures.intervals import crossed_interval
from pipeline.seeding import numpy_generator

SEEDS = (2, 3, 4, 5, 8)
PATIENTS = (10, 40, 150)


class Shares(NamedTuple):
    """Shares of a gain's variance."""

    seeds: float
    patients: float
    residual: float
    skewed: bool = False
    """Whether the effects of patients are exponential less their mean, as where most gain nothing and few gain much."""


SHARES = (
    Shares(0.0, 1.0, 0.0),
    Shares(0.0, 0.5, 0.5),
    Shares(0.0, 0.0, 1.0),
    Shares(0.05, 0.05, 0.9),
    Shares(0.02, 0.5, 0.48),
    Shares(0.3, 0.4, 0.3),
    Shares(0.5, 0.5, 0.0),
    Shares(0.9, 0.1, 0.0),
    Shares(0.05, 0.5, 0.45, skewed=True),
    Shares(0.0, 0.9, 0.1, skewed=True),
)


def gains(shares: Shares, seeds: int, patients: int, generator: np.random.Generator) -> np.ndarray:
    """Gains f64 `[seed, patient]` of one comparison. Their expectation is 0 and their variance is 1."""
    draw = generator.standard_normal
    of_patients = generator.exponential(size=(1, patients)) - 1 if shares.skewed else draw((1, patients))
    effects = (draw((seeds, 1)), of_patients, draw((seeds, patients)))
    return sum((np.sqrt(share) * effect for share, effect in zip(shares[:3], effects, strict=True)), np.zeros(1))


def measured(shares: Shares, seeds: int, patients: int, repeats: int) -> tuple[float, float]:
    """Share of the intervals that hold 0, and their mean half width over 1.96 standard errors of the mean."""
    generator = numpy_generator("seed_coverage", seeds, patients, repr(shares))
    held = width = 0.0
    for _ in range(repeats):
        found = crossed_interval(gains(shares, seeds, patients, generator), range(patients), 1, 0)
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 0 <= found.high
        width += (found.high - found.low) / 2
    spread = shares.seeds / seeds + shares.patients / patients + shares.residual / (seeds * patients)
    return held / repeats, width / repeats / (1.96 * np.sqrt(spread))


def table(repeats: int, every_shares: Sequence[Shares] = SHARES) -> list[str]:
    """Rows of the Markdown table: coverage, and the width in brackets."""
    names = [
        f"{shares.seeds:.2g}, {shares.patients:.2g}, {shares.residual:.2g}{', skewed' if shares.skewed else ''}"
        for shares in every_shares
    ]
    lines = [f"| seeds | patients | {' | '.join(names)} |", "|---" * (2 + len(names)) + "|"]
    for seeds in SEEDS:
        for patients in PATIENTS:
            found = [measured(shares, seeds, patients, repeats) for shares in every_shares]
            cells = " | ".join(f"{held:.3f}".removeprefix("0") + f" ({width:.1f})" for held, width in found)
            lines.append(f"| {seeds} | {patients} | {cells} |")
    return lines


if __name__ == "__main__":
    print("\n".join(table(int(sys.argv[1]) if len(sys.argv) > 1 else 4000)))
