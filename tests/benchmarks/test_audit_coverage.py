"""The audit's 95 % intervals cover planted errors, on validation sets that are drawn anew for every seed."""

from __future__ import annotations

from benchmarks.audit_coverage import MEASURES, coverage
from pipeline.audit.audit import Audit

SEEDS = 100
LEAST = 90
"""Of 100 intervals that each cover with probability .95, fewer than 90 do so once in 87 times (binomial, .0115)."""


def test_intervals_cover_the_planted_error_rate_and_size_bias() -> None:
    """A judge that reverses one case in five and adds .3 Dice per relative volume, top over bottom, 25 patients."""
    names = {"noise_rate", "weighted_noise", "volume_bias"}
    measures = [measure for measure in MEASURES if measure.judge == "flip_size" and measure.name in names]
    assert len(measures) == len(names)
    found = coverage(SEEDS, Audit(bootstrap=500), measures)
    assert found["seeds"].to_list() == [SEEDS] * len(measures)
    assert min(found["covered"].to_list()) >= LEAST, found
