"""The base with class offsets tuned on validation: the cheapest way to move a mask's size."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pipeline.students.objectives.objective import Feed, ObjectiveKnobs


class TunedThreshold(ObjectiveKnobs):
    """Adds to each foreground class's logit the offset with the best mean Dice on validation, class after class."""

    kind: Literal["threshold"]
    feeds: ClassVar[Feed] = "nothing"
    offsets: Annotated[tuple[float, ...], Field(min_length=1)] = (-2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0)
    """What is tried per class, in logits: the threshold t of a binary task is the offset log((1 - t) / t)."""
    rounds: Annotated[int, Field(ge=1)] = 2
    """Turns over the classes; with one foreground class, one is enough."""
