"""Supervised training of one network on labelled cases, optionally with a mean teacher on unlabelled images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.compute import Compute
from pipeline.seeding import seed_of, torch_generator
from pipeline.segmenter.architecture import Architecture
from pipeline.segmenter.augmentation import Augmentation
from pipeline.segmenter.batches import LabelledBatches
from pipeline.segmenter.heads import all_heads
from pipeline.segmenter.knobs import Consistency, Network, Optimisation
from pipeline.segmenter.loop import Average, HistoryRow, TrainedWeights, optimise
from pipeline.segmenter.losses import consistency, deep_dice_ce, ramp_up
from pipeline.segmenter.segmenter import Segmenter
from pipeline.segmenter.strong_views import StrongViews
from pipeline.segmenter.weights import load_weights
from pipeline.store.cases import Case, CaseStore, LabelledCases
from pipeline.store.schema import UNKNOWN


@dataclass(frozen=True)
class Recipe:
    """Settings of the training of one network on labelled cases."""

    architecture: Architecture
    optimisation: Optimisation
    batch: int
    """Cases per step."""
    augmentation: Augmentation
    compute: Compute
    strong: StrongViews | None = None
    """Strong variations of every image, beside the augmentation."""


def architecture_of(cases: CaseStore, network: Network) -> Architecture:
    """Architecture of a network for these cases. Raises `BadInput` if the network cannot be built for the cases."""
    return Architecture.of(network, cases.channels, len(cases.class_names), cases.padded)


def train_supervised(
    recipe: Recipe,
    cases: CaseStore,
    labelled: Sequence[Case],
    seed: int,
    start: Path | None = None,
    snapshots: int = 0,
    mean_teacher: Consistency | None = None,
) -> TrainedWeights:
    """Train one network with DiceCE on augmented labelled cases, with early stopping on validation.

    Training begins with the weights of the file `start`, or with random weights. `snapshots` is the number of
    checkpoints at equal distances; early stopping leaves fewer. With `mean_teacher` the network also learns from the
    images of the pool, and the moving average is evaluated and kept.
    """
    architecture, compute = recipe.architecture, recipe.compute
    network = architecture.build(seed_of(seed, "weights"))
    if start is not None:
        load_weights(network, start)
    network.to(compute.device)
    batches = iter(_batches(recipe, cases.with_labels(labelled, architecture.window), seed_of(seed, "batches")))
    validation = cases.with_labels(cases.split("validation"), architecture.window)
    average, teacher_loss = None, None
    if mean_teacher is not None:
        average = Average(network, mean_teacher.decay)
        teacher_loss = _MeanTeacher(mean_teacher, average, recipe, cases, seed)

    def step_loss(step: int) -> tuple[Tensor, HistoryRow]:
        # Dropout and batch statistics act here: no reference has to stay comparable, unlike in preference training.
        network.train()
        images, labels = (part.to(compute.device) for part in next(batches))
        # Only the forward pass runs at reduced precision: losses are float32.
        with compute.autocast():
            heads = all_heads(network, images)
        loss = deep_dice_ce(heads, labels)
        if teacher_loss is not None:
            loss = loss + teacher_loss(network, step / recipe.optimisation.steps)
        return loss, {}

    def evaluate(network: nn.Module) -> HistoryRow:
        return {"validation_dice": Segmenter(network, architecture, compute).dice(validation)}

    every = recipe.optimisation.steps // snapshots if snapshots else 0
    return optimise(network, step_loss, evaluate, recipe.optimisation, snapshot_every=every, average=average)


class _MeanTeacher:
    """Consistency term of a mean teacher: network on noised pool images against its moving average on clean images."""

    def __init__(self, knobs: Consistency, average: Average, recipe: Recipe, cases: CaseStore, seed: int) -> None:
        self.knobs, self.average, self.compute = knobs, average, recipe.compute
        pool = cases.split("pool")
        images = [cases.image_for(case, recipe.architecture.window) for case in pool]
        # Pool labels are unknown. Labels of 0 everywhere let 255 mark voxels that augmentation takes from outside.
        blank = [np.broadcast_to(np.uint8(0), case.shape) for case in pool]
        # A stream of its own: the labelled batches are the same with and without a teacher.
        self.batches: Iterator[tuple[Tensor, Tensor]] = iter(
            _batches(recipe, LabelledCases(pool, images, blank), seed_of(seed, "unlabelled"))
        )
        self.noise = torch_generator(seed, "noise")

    def __call__(self, network: nn.Module, progress: float) -> Tensor:
        images, valid = (part.to(self.compute.device) for part in next(self.batches))
        # Both networks get the same augmented image, so outputs match voxel by voxel; only the noise differs.
        noised = images + self.knobs.noise * torch.randn(images.shape, generator=self.noise).to(images)
        with self.compute.autocast():
            logits = network(noised)
        difference = consistency(logits, self.average.logits(images, self.compute), valid != UNKNOWN)
        return self.knobs.weight * ramp_up(progress) * difference


def _batches(recipe: Recipe, cases: LabelledCases, seed: int) -> LabelledBatches:
    window = recipe.architecture.window
    return LabelledBatches(cases, window, recipe.augmentation, recipe.batch, seed, recipe.strong)
