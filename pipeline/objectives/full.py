"""Full supervision with the pool's truth: a ceiling for research, on its own schedule to its plateau."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pipeline.knobs import Knobs
from pipeline.objectives.objective import Feed
from pipeline.recipe import Optimisation


class Full(Knobs):
    """DiceCE on labelled cases and pool, from the base; refused where a pool case has no label."""

    kind: Literal["full"]
    feeds: ClassVar[Feed] = "truth"
    optimisation: Optimisation
    """Its own, because more labels take more steps."""
    batch: Annotated[int, Field(gt=0)] = 8
    """Cases per step."""

    def summary(self) -> dict[str, float | None]:
        return {}
