"""Error maps: the probability that a voxel of a proposal is wrong, as a judge sees it, stored as u8 steps."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from pipeline.judges.judge import Evidence, Scorer
from pipeline.store import schema
from pipeline.store.arrays import open_array, read_array
from pipeline.store.cases import Case

ERROR_STEPS = 254
"""Stored value of error probability 1; 255 stands for an unknown probability."""


@runtime_checkable
class ErrorMapper(Scorer, Protocol):
    """A scorer that also gives the error probability of every voxel of a proposal."""

    def mapped(self, case: Case) -> bool:
        """Whether the error maps of this case's proposals are stored."""
        ...

    def errors(self, evidence: Evidence) -> np.ndarray:
        """Error probability f32 `[proposal, *space]`; NaN where the probability is unknown."""
        ...


def as_steps(errors: np.ndarray) -> np.ndarray:
    """Stored form (`schema.ERROR`) u8 of error probabilities f32 `[proposal, *space]`; NaN becomes 255."""
    return np.where(np.isnan(errors), schema.UNKNOWN, np.rint(errors * ERROR_STEPS)).astype(np.uint8)


def error_maps(folder: Path, case: Case) -> np.ndarray:
    """Error probability f32 `[proposal, *space]` of a case, read from a judge's folder `models/judges/NAME`.

    NaN where the probability is unknown, and everywhere for a case whose maps the judge did not store. Raises
    `BadInput` if the judge stores no maps at all.
    """
    steps = read_array(open_array(folder, schema.ERROR), (case.case, slice(None), *case.space))
    return np.where(steps == schema.UNKNOWN, np.nan, steps / np.float32(ERROR_STEPS)).astype(np.float32)
