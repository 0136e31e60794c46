"""One way back to the source's grid: the base as an arm gains exactly nothing, whatever the working grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.store import schema
from pipeline.store.cases import CaseStore
from pipeline.store.proposals import ProposalStore
from pipeline.store.tables import read_table
from tests.fixtures.chain import TINY, run_chain
from tests.fixtures.phantoms import write_decathlon, write_folders

ARMS = {
    "base_as_arm": {"pairs": "none", "objective": {"kind": "proposal", "pick": "base"}},
    "half": {"pairs": "none", "objective": {"kind": "proposal", "pick": "half p>=0.5"}},
    "grown": {"pairs": "none", "objective": {"kind": "proposal", "pick": "shapes dilate=1"}},
}
SAMPLERS = {
    "half": {"kind": "threshold", "thresholds": [0.5]},
    "shapes": {
        "kind": "morphology",
        "dilate": [1],
        "erode": [],
        "open": [],
        "close": [],
        "largest_component": False,
        "fill_holes": False,
        "drop_component": [],
    },
    "consensus": {"kind": "consensus"},
}
NOT_NEEDED = ("panel", "audit", "mine", "judge", "report", "provenance", "validate", "promote")


def params(data: dict[str, Any], preprocess: dict[str, Any], flips: list[int]) -> dict[str, Any]:
    return {
        **TINY,
        "data": data,
        "preprocess": preprocess,
        "splits": {"labelled": 2, "pool": 1, "validation": 1, "test": "rest"},
        "augmentation": {"flips": flips},
        "base": {**TINY["base"], "members": 0},
        "propose": {"imports": "raw/none", "samplers": SAMPLERS, "splits": ["pool", "validation", "test"]},
        "pairs": {"none": {"judge": "none", "strategy": {"kind": "none"}}},
        "students": ARMS,
    }


@pytest.fixture
def empty_pairs(tmp_path) -> Path:
    """The file of the empty pair set, which these arms do not read."""
    path = tmp_path / "data/pairs/none.parquet"
    path.parent.mkdir(parents=True)
    path.touch()
    return tmp_path


@pytest.mark.parametrize("dimensions", [2, 3])
def test_the_base_as_an_arm_gains_exactly_nothing(empty_pairs, dimensions):
    """Resized pictures, and volumes of 1 x .5 x 2 mm on a grid of 1 mm."""
    if dimensions == 2:
        write_folders(empty_pairs / "raw", cases=7, shape=(23, 31))
        data = {"kind": "folders", "path": "raw", "classes": ["background", "disc"]}
        preprocess: dict[str, Any] = {"normalise": "zscore", "resize": [16, 16]}
    else:
        write_decathlon(empty_pairs / "raw", cases=7)
        data = {"kind": "decathlon", "path": "raw"}
        preprocess = {"normalise": "zscore", "spacing": [1.0, 1.0, 1.0], "orientation": "RAS"}
    run_chain(empty_pairs, params(data, preprocess, list(range(dimensions))), skip=NOT_NEEDED)
    base, same, half, grown = (
        read_table(empty_pairs / f"evaluation/{name}.parquet", schema.EVALUATION) for name in ("base", *ARMS)
    )
    assert same.equals(base)
    if dimensions == 2:
        assert half.equals(base), "foreground from one half on is the most probable class of two"
    assert not grown.equals(base)
    cases, proposals = CaseStore(empty_pairs / "data/cases"), ProposalStore(empty_pairs / "data/proposals")
    case = cases.split("test")[0]
    assert case.resampled
    assert proposals.source_mask(case, 0).shape == case.original_shape
    assert np.isin(proposals.source_mask(case, 0), range(len(cases.class_names))).all()
