"""Supervised training of one network on labelled cases, with a mean teacher on unlabelled images where asked for."""

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
from pipeline.segmenter.weights import load_weights
from pipeline.store.cases import Case, CaseStore, LabelledCases
from pipeline.store.schema import UNKNOWN


@dataclass(frozen=True)
class Recipe:
    """How one network is trained on labelled cases."""

    architecture: Architecture
    optimisation: Optimisation
    batch: int
    """Cases per step."""
    augmentation: Augmentation
    compute: Compute


def architecture_of(cases: CaseStore, network: Network) -> Architecture:
    """The network of these knobs for these cases; raises `BadInput` where the network cannot be built."""
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
    """DiceCE on labelled cases with augmentation and early stopping on validation.

    Training begins with the weights of the file `start`, or with new weights. With `mean_teacher` the network also
    learns from the images of the pool, and the weights are those of the moving average.
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
        # With dropout and with batch statistics: labels are learned, and no reference is compared.
        network.train()
        images, labels = (part.to(compute.device) for part in next(batches))
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
    """Weighted difference between the network on noised pool images and its moving average on the clean ones."""

    def __init__(self, knobs: Consistency, average: Average, recipe: Recipe, cases: CaseStore, seed: int) -> None:
        self.knobs, self.average, self.compute = knobs, average, recipe.compute
        pool = cases.split("pool")
        images = [cases.image_for(case, recipe.architecture.window) for case in pool]
        # Pool labels are unknown: 0 everywhere, so that 255 marks what augmentation turns in from outside the image.
        blank = [np.broadcast_to(np.uint8(0), case.shape) for case in pool]
        self.batches: Iterator[tuple[Tensor, Tensor]] = iter(
            _batches(recipe, LabelledCases(pool, images, blank), seed_of(seed, "unlabelled"))
        )
        self.noise = torch_generator(seed, "noise")

    def __call__(self, network: nn.Module, progress: float) -> Tensor:
        images, valid = (part.to(self.compute.device) for part in next(self.batches))
        noised = images + self.knobs.noise * torch.randn(images.shape, generator=self.noise).to(images)
        with self.compute.autocast():
            logits = network(noised)
        difference = consistency(logits, self.average.logits(images, self.compute), valid != UNKNOWN)
        return self.knobs.weight * ramp_up(progress) * difference


def _batches(recipe: Recipe, cases: LabelledCases, seed: int) -> LabelledBatches:
    return LabelledBatches(cases, recipe.architecture.window, recipe.augmentation, recipe.batch, seed)
