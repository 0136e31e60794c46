"""Knobs of promotion."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pipeline.knobs import Knobs


class Promotion(Knobs):
    """Knobs of the choice of the student that may replace the base."""

    max_worse: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Largest share of the validation patients whose Dice may be more than `evaluation.worse_by` below that of the
    base."""
    min_patients: Annotated[int, Field(ge=5)] = 15
    """Least number of validation patients. With fewer patients no student is promoted."""
    bootstrap: Annotated[int, Field(gt=0)] = 10_000
    """Number of resamples of the patients behind the lower bounds."""
