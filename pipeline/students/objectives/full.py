"""Full supervision with the labels of the pool: a ceiling for research, on a schedule of its own."""

from __future__ import annotations

from typing import ClassVar, Literal

from pipeline.students.objectives.extra_labels import ExtraLabels
from pipeline.students.objectives.objective import ArmFamily


class Full(ExtraLabels):
    """DiceCE on labelled cases and pool, from the base. Every pool case must have a label."""

    kind: Literal["full"]
    family: ClassVar[ArmFamily] = "ceilings"
    split: ClassVar[str] = "pool"
