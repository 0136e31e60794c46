"""The parameters that benchmarks make from the shipped ones, or of their own, are valid knobs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import calibration, noise_sweep, promotion, study
from pipeline.params import Params

CHOSEN = {name: [5e-4, 1.0] for name in study.FAMILIES}
NOISE_CHOSEN = {name: [5e-4, 1.0] for name in noise_sweep.OBJECTIVES.values()}
MADE: dict[str, Any] = {
    "calibration": calibration.parameters(20, 20, 10),
    "noise_sweep": noise_sweep.parameters(
        0, Path("raw"), {arm: student for arm, (_, student) in noise_sweep.arms(NOISE_CHOSEN).items()}, 5e-4
    ),
    "noise_sweep_tune": noise_sweep.parameters(
        0, Path("raw"), {arm: student for arm, (_, student) in noise_sweep.tried().items()}, 5e-4
    ),
    "promotion": promotion.parameters(0),
    **{
        f"study_{name}_{which}": study.parameters(
            of, 0, Path("raw"), {arm: student for arm, (_, student) in study.arms(of, CHOSEN, which).items()}, 5e-4
        )
        for name, of in study.SETS.items()
        for which in ("core", "confirm", "rounds", "rivals", "pairs")
    },
}


@pytest.mark.parametrize("name", MADE)
def test_parameters_are_valid(name: str) -> None:
    assert Params.model_validate_json(json.dumps(MADE[name]))
