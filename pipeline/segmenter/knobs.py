"""What is trained and how: knobs of networks, optimisation, the base segmenter and what computes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.knobs import Knobs, Name

MODELS = "models.json"
"""Lists the models of a base folder by role: members, folds, snapshots."""


class Network(Knobs):
    """A segmentation network of `monai.networks.nets`."""

    name: str = "UNet"
    """Class name; it takes an image and returns logits."""
    arguments: dict[str, Any] = {}
    """Arguments of the class, except the numbers of spatial axes, channels and classes, and sizes that are the window.
    With deep supervision, supervised losses take all heads; all else is the main head."""
    head: Literal["softmax", "sigmoid"] = "softmax"
    """`sigmoid` is one output channel, for two classes only."""
    window: tuple[Annotated[int, Field(gt=0)], ...] | None = None
    """Voxels that the network sees at once; larger cases are cropped in training and slid over in inference.
    Null: the largest case."""
    multiple: Annotated[int, Field(gt=0)] | None = None
    """The window is rounded up to a multiple of this. Null: of the smallest power of two to 128 (or, failing
    these, three times one) with which the network runs and gives logits of the window's size."""


class Optimisation(Knobs):
    """Steps and step sizes (AdamW)."""

    steps: Annotated[int, Field(gt=0)]
    """Most optimiser steps."""
    learning_rate: Annotated[float, Field(gt=0)]
    """At the first step."""
    schedule: Literal["constant", "poly"] = "poly"
    """`poly` falls to 0 at the last step with exponent 0.9, as in nnU-Net."""
    weight_decay: float = 1e-4
    """Of AdamW."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    evaluate_every: Annotated[int, Field(gt=0)] = 50
    """Steps between evaluations on validation."""
    patience: Annotated[int, Field(gt=0)] | None = None
    """Evaluations without a better validation Dice after which training stops, once it has been better than at the
    start; null trains all steps."""


class Consistency(Knobs):
    """Mean teacher (Tarvainen & Valpola 2017): unlabelled images on which a model must agree with its own moving
    average."""

    decay: Annotated[float, Field(gt=0, lt=1)] = 0.99
    """Share of the average that a step keeps; less in the first steps."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Of the squared difference of the class probabilities beside DiceCE; it rises over the first 40 % of the steps."""
    noise: Annotated[float, Field(ge=0)] = 0.1
    """Standard deviation of the noise on the image that the model sees and its average does not."""


class Base(Knobs):
    """A base segmenter that is trained here, and its relatives."""

    kind: Literal["trained"] = "trained"
    network: Network
    optimisation: Optimisation
    batch: Annotated[int, Field(gt=0)] = 8
    """Cases per step."""
    members: Annotated[int, Field(ge=0)] = 2
    """Further models on the same cases with other seeds, for the sampler `ensemble`."""
    others: dict[Name, Network] = {}
    """Further models of other architectures, by name, for the same sampler."""
    mean_teacher: Consistency | None = None
    """A further model, `mean_teacher`, that also learns from the images of the pool, for the same sampler."""
    folds: Annotated[int, Field(ge=0)] = 0
    """Models that each leave out one part of the labelled cases, by group, so that every labelled case has a model that
    has not seen it; learned judges need at least 2."""
    fold_members: Annotated[int, Field(ge=0)] = 0
    """Of the `members`, how many every fold has too: out-of-fold proposals then have an ensemble, as the pool's do."""
    snapshots: Annotated[int, Field(ge=0)] = 0
    """Checkpoints of the base and of each fold kept at equal distances, for the sampler `snapshots`."""

    @model_validator(mode="after")
    def _names(self) -> Base:
        for name in self.others:
            if name in ("base", "mean", "mean_teacher") or name.startswith(("member_", "fold_", "snapshot_")):
                raise ValueError(f"base.others.{name}: the base stage uses this name itself; choose another")
        most = self.members if self.folds else 0
        if self.fold_members > most:
            raise ValueError(
                f"base.fold_members: expected at most {most} (members of folds), found {self.fold_members}"
            )
        return self


def kind_of_base(block: Any) -> Any:
    """The kind of a block `base`; a block that names none is trained here."""
    if isinstance(block, dict):
        return block.get("kind", "trained")
    return getattr(block, "kind", "trained")
