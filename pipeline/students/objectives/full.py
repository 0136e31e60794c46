"""Full supervision with the pool's truth: a ceiling for research, on its own schedule to its plateau."""

from __future__ import annotations

from typing import ClassVar, Literal

from pipeline.students.objectives.extra_labels import ExtraLabels


class Full(ExtraLabels):
    """DiceCE on labelled cases and pool, from the base; refused where a pool case has no label."""

    kind: Literal["full"]
    split: ClassVar[str] = "pool"
