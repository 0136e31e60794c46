"""Knobs of networks, of their optimisation and of the base segmenter."""

from __future__ import annotations

from math import cos, pi
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.knobs import Knobs, Name

MODELS = "models.json"
"""File that lists the models of a base folder by role (members, folds, snapshots), and the fold of labelled cases."""


class Network(Knobs):
    """A segmentation network of `monai.networks.nets`."""

    name: str = "UNet"
    """Class name. The class takes images and returns logits."""
    arguments: dict[str, Any] = {}
    """Arguments of the class, without the numbers of spatial axes, channels and classes, and without the image size:
    the data and `window` give these. With deep supervision, supervised losses use all heads, and everything else uses
    the main head."""
    head: Literal["softmax", "sigmoid"] = "softmax"
    """`softmax`: one output channel per class. `sigmoid`: one output channel, for two classes only."""
    window: tuple[Annotated[int, Field(gt=0)], ...] | None = None
    """Size of the network's input, in voxels per axis. Larger cases are cropped in training, and inference slides the
    window over them. Null: the size of the largest case."""
    multiple: Annotated[int, Field(gt=0)] | None = None
    """The window is rounded up to a multiple of this number. Null: of the first number with which the network runs and
    gives logits of the window's size, among the powers of two up to 128, then three times the powers up to 32."""


class Optimisation(Knobs):
    """Steps and learning rate of AdamW."""

    steps: Annotated[int, Field(gt=0)]
    """Largest number of optimiser steps."""
    learning_rate: Annotated[float, Field(gt=0)]
    """Learning rate at the first step."""
    schedule: Literal["constant", "poly", "cosine"] = "poly"
    """Factor of the learning rate at step n, where t = (n - 1) / steps. `poly`: (1 - t)^0.9, as in nnU-Net. `cosine`:
    (1 + cos(pi t)) / 2 (Loshchilov & Hutter 2017). `constant`: 1."""
    weight_decay: float = 1e-4
    """Weight decay of AdamW."""
    evaluate_every: Annotated[int, Field(gt=0)] = 50
    """Steps between evaluations on validation."""
    patience: Annotated[int, Field(gt=0)] | None = None
    """Evaluations without a better validation Dice after which training stops. Patience counts only after the first
    improvement over the start. Null trains all steps."""

    def factor(self, step: int) -> float:
        """Factor of the learning rate at a step, counted from 1: the full rate at step 1, almost 0 at the last step."""
        done = (step - 1) / self.steps
        match self.schedule:
            case "poly":
                return (1 - done) ** 0.9
            case "cosine":
                return (1 + cos(pi * done)) / 2
        return 1.0


class Consistency(Knobs):
    """Mean teacher (Tarvainen & Valpola 2017): a model learns to agree with its moving average on unlabelled images."""

    decay: Annotated[float, Field(gt=0, lt=1)] = 0.99
    """Share of the average that is kept at a step. The first steps keep less."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Weight of the squared difference of class probabilities, relative to DiceCE. The weight rises over the first 40 %
    of the steps."""
    noise: Annotated[float, Field(ge=0)] = 0.1
    """Standard deviation of the noise on the model's images, in intensities of the normalised image. The average gets
    the images without noise."""


class Base(Knobs):
    """A base segmenter that is trained by the stage `base`, with its members, folds and snapshots."""

    kind: Literal["trained"] = "trained"
    network: Network
    """Network of the base, and of its members and folds."""
    optimisation: Optimisation
    """Steps and learning rate of each of these models."""
    batch: Annotated[int, Field(gt=0)] = 8
    """Cases per step."""
    members: Annotated[int, Field(ge=0)] = 2
    """Number of further models with other seeds, trained on the same cases, for the sampler `ensemble`."""
    others: dict[Name, Network] = {}
    """Further models of other architectures, by name, for the sampler `ensemble`."""
    mean_teacher: Consistency | None = None
    """A further model `mean_teacher` that also learns from pool images, for the sampler `ensemble`. Null: none."""
    folds: Annotated[int, Field(ge=0)] = 0
    """Number of fold models. Each fold model is trained without one part of the labelled cases, split by group, so that
    every labelled case has a model that has not seen the case. 0: none. Learned judges need at least 2."""
    fold_members: Annotated[int, Field(ge=0)] = 0
    """Number of `members` that every fold has as well, so that out-of-fold proposals have an ensemble like the pool."""
    snapshots: Annotated[int, Field(ge=0)] = 0
    """Number of checkpoints of the base, and of each fold, at equal distances of steps, for the sampler `snapshots`."""

    @model_validator(mode="after")
    def _names(self) -> Base:
        for name in self.others:
            if name in ("base", "mean", "mean_teacher") or name.startswith(("member_", "fold_", "snapshot_")):
                raise ValueError(f"others.{name}: the base stage uses this name itself; choose another")
        most = self.members if self.folds else 0
        if self.fold_members > most:
            reason = "members" if self.folds else "folds is 0, so there are no members of folds"
            raise ValueError(f"fold_members: expected at most {most} ({reason}), found {self.fold_members}")
        return self


def kind_of_base(block: Any) -> Any:
    """Kind of a block `base`: `trained` if the block has no kind."""
    if isinstance(block, dict):
        return block.get("kind", "trained")
    return getattr(block, "kind", "trained")
