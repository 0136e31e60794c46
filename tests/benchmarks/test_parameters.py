"""The parameters that benchmarks make from the shipped ones, or of their own, are valid knobs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import calibration, noise_sweep, promotion, study
from pipeline.params import Params

CHOSEN = {name: [5e-4, 1.0] for name in study.FAMILIES}
MADE: dict[str, Any] = {
    "calibration": calibration.parameters(20, 20, 10),
    "noise_sweep": noise_sweep.parameters(0),
    "promotion": promotion.parameters(0),
    **{
        f"study_{name}_{which}": study.parameters(
            of, 0, Path("raw"), {arm: student for arm, (_, student) in study.arms(of, CHOSEN, which).items()}, 5e-4
        )
        for name, of in study.SETS.items()
        for which in ("core", "more")
    },
}


@pytest.mark.parametrize("name", MADE)
def test_parameters_are_valid(name: str) -> None:
    assert Params.model_validate_json(json.dumps(MADE[name]))
