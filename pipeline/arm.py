"""What a student is: its pair set, its objective and its anchor, and what all students share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.knobs import Knobs, Name
from pipeline.objectives import Objective
from pipeline.recipe import Optimisation


class Anchor(Knobs):
    """What keeps a student near what is known."""

    supervised: Annotated[float, Field(ge=0)] = 1.0
    """Weight of DiceCE on a labelled batch, added to the objective."""


class Training(Knobs):
    """What all students share, so that arms differ in nothing else."""

    optimisation: Optimisation
    images: Annotated[int, Field(gt=0)] = 4
    """Pool images per step, each with all its pairs."""
    labelled: Annotated[int, Field(gt=0)] = 4
    """Labelled cases per step, of the anchor and of `supervised`."""
    reference: Literal["cached", "recomputed"] = "cached"
    """Whether logits of the frozen base are kept per image and flip. Crops of larger cases are always recomputed."""
    cache_gb: Annotated[float, Field(gt=0)] = 4.0
    """Memory for images, masks and reference logits; the least recently used leave first."""


class Student(Knobs):
    """A student: its pair set, its objective and its anchor."""

    pairs: Name
    """Name of a pair set; `none` for objectives that need no pairs."""
    objective: Objective
    anchor: Anchor | None = None
    """Null is the unsafe baseline of preference training."""
