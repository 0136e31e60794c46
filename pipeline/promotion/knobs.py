"""Knobs of promotion."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from pipeline.knobs import NOTHING, Knobs


class Promotion(Knobs):
    """Choice, on validation, of the student that may replace the base."""

    max_worse: Annotated[float, Field(ge=0, le=1)] = 0.3
    """Largest share of the validation patients whose Dice may be more than `evaluation.worse_by` below that of the
    base. The Dice of a patient varies between trainings too, so some losses are chance. Where the Dice varies little, a
    lower limit protects more patients."""
    min_patients: Annotated[int, Field(ge=5)] = 15
    """Least number of validation patients. With fewer patients no student is promoted."""
    first_base: Path = NOTHING
    """Validation table of the base of the first round, in a round whose base was itself promoted. A student must then
    beat both bases, so that small losses do not add up over the rounds. `raw/none` in the first round."""
    bootstrap: Annotated[int, Field(gt=0)] = 10_000
    """Number of resamples of the patients behind the lower bounds."""
