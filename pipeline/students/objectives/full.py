"""Full supervision with the pool's truth: a ceiling for research, on its own schedule to its plateau."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pipeline.segmenter.knobs import Optimisation
from pipeline.students.objectives.objective import Feed, ObjectiveKnobs


class Full(ObjectiveKnobs):
    """DiceCE on labelled cases and pool, from the base; refused where a pool case has no label."""

    kind: Literal["full"]
    feeds: ClassVar[Feed] = "truth"
    split: ClassVar[str] = "pool"
    optimisation: Optimisation
    """Its own, because more labels take more steps."""
    batch: Annotated[int, Field(gt=0)] = 8
    """Cases per step."""
