"""What a student is: its pair set, its objective and its anchor, and what all students share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.knobs import Knobs, Name
from pipeline.segmenter.knobs import Optimisation
from pipeline.students.objectives import Objective

Weight = Annotated[float, Field(ge=0)]


class Anchor(Knobs):
    """What keeps a student near what is known; the terms are added to the objective."""

    supervised: Weight = 1.0
    """Weight of DiceCE on a labelled batch."""
    kl: Weight = 0.0
    """Weight of KL(student || base) outside the union of the image's disagreement regions, mean over voxels."""
    distill: Weight = 0.0
    """Weight of the soft cross-entropy to the mean probability of the proposals."""


class Stopping(Knobs):
    """When to stop without labels: measured at every evaluation on pool images kept from training.

    The weights of the evaluation that gave a reason to stop are not kept.
    """

    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the groups (patients) of the objective's pool images that are kept from training for this."""
    kl: Annotated[float, Field(gt=0)] | None = None
    """Stop where KL(student || base) outside the disagreement regions is above this, in nats per voxel."""
    volume_ratio: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] | None = None
    """Stop where the predicted foreground volume over the base's leaves this range."""
    patience: Annotated[int, Field(ge=1)] | None = None
    """Stop after as many evaluations without a better reward accuracy on held-out pairs."""

    @model_validator(mode="after")
    def _some_rule(self) -> Stopping:
        if self.kl is None and self.volume_ratio is None and self.patience is None:
            raise ValueError("stopping: names no rule; give kl, volume_ratio or patience")
        if self.volume_ratio is not None and not self.volume_ratio[0] < 1 < self.volume_ratio[1]:
            raise ValueError(f"stopping.volume_ratio: expected a range around 1, found {list(self.volume_ratio)}")
        return self


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
    """Memory for images, masks and reference logits; the least recently used leave first. Crops of larger cases are
    read from disk each time."""
    random_crops: Annotated[float, Field(ge=0, le=1)] = 0.25
    """Share of the crops of cases larger than the window that lie anywhere, all others around a voxel on which a pair
    differs. Pairs that agree in a crop do not count there."""


class Student(Knobs):
    """A student: its pair set, its objective and its anchor."""

    pairs: Name
    """Name of a pair set; `none` for objectives that need no pairs."""
    objective: Objective
    anchor: Anchor | None = None
    """Null is the unsafe baseline of preference training."""
    average: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of a moving average of the weights, which is then what is evaluated and kept."""
    interpolate: tuple[Annotated[float, Field(ge=0, le=1)], ...] | None = None
    """Shares of the student between base (0) and student (1) to try on validation; the best is applied to all its
    weights (Wortsman et al. 2022). Null keeps the student as trained."""
    stopping: Stopping | None = None
    """When to stop without labels; null trains all steps."""
