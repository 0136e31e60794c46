"""The coverage of intervals over few seeds is measured on gains whose mean and variance are known."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.seed_coverage import SHARES, gains
from pipeline.seeding import numpy_generator


@pytest.mark.parametrize("shares", SHARES)
def test_drawn_gains_have_mean_0_and_variance_1(shares):
    """20,000 gains of one seed and patient each. Their mean has a standard error of .007, and their variance, with
    kurtosis up to 9 where patients are skewed, of .02."""
    generator = numpy_generator(0, repr(shares))
    drawn = np.array([gains(shares, 1, 1, generator)[0, 0] for _ in range(20_000)])
    assert drawn.mean() == pytest.approx(0, abs=0.03)
    assert drawn.var() == pytest.approx(1, abs=0.08)
    assert sum(shares[:3]) == pytest.approx(1)
    assert gains(shares, 3, 5, generator).shape == (3, 5)
