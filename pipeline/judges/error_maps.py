"""Where a judge sees a proposal to be wrong: error probabilities by voxel, stored in steps."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from pipeline.judges.judge import Evidence, Scorer
from pipeline.store import schema
from pipeline.store.arrays import open_array
from pipeline.store.cases import Case

ERROR_STEPS = 254
"""Stored number of an error that is certain; 255 is unknown."""


@runtime_checkable
class ErrorMapper(Scorer, Protocol):
    """A scorer that can also say where a proposal is wrong."""

    def mapped(self, case: Case) -> bool:
        """Whether the errors of this case's proposals are stored."""
        ...

    def errors(self, evidence: Evidence) -> np.ndarray:
        """Error probability f32 `[proposal, *space]`; NaN where it is unknown."""
        ...


def as_steps(errors: np.ndarray) -> np.ndarray:
    """Error probability f32 `[proposal, *space]` as `schema.ERROR` stores it; NaN is 255."""
    return np.where(np.isnan(errors), schema.UNKNOWN, np.rint(errors * ERROR_STEPS)).astype(np.uint8)


def error_maps(folder: Path, case: Case) -> np.ndarray:
    """Error probability f32 `[proposal, *space]` of a case, stored by a judge in its folder `models/judges/NAME`.

    NaN where it is unknown, which it is everywhere for cases that the judge stored none of. Raises `BadInput` where the
    judge stores none at all.
    """
    steps = np.asarray(open_array(folder, schema.ERROR)[(case.case, slice(None), *case.space)])
    return np.where(steps == schema.UNKNOWN, np.nan, steps / np.float32(ERROR_STEPS)).astype(np.float32)
