"""Supervised training of one network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from pipeline.compute import Compute
from pipeline.seeding import seed_of, torch_generator
from pipeline.segmenter.architecture import Architecture
from pipeline.segmenter.augmentation import Augmentation
from pipeline.segmenter.batches import LabelledBatches
from pipeline.segmenter.heads import all_heads
from pipeline.segmenter.knobs import Consistency, Network, Optimisation
from pipeline.segmenter.loop import Average, TrainedWeights, optimise, validation_dice
from pipeline.segmenter.losses import consistency, deep_dice_ce, ramp_up
from pipeline.segmenter.weights import load_weights
from pipeline.store.cases import Case, CaseStore
from pipeline.store.schema import UNKNOWN


def architecture_of(cases: CaseStore, network: Network) -> Architecture:
    """The network of these knobs for these cases; raises `BadInput` where it cannot be."""
    return Architecture.of(network, cases.channels, len(cases.class_names), cases.padded)


def train_supervised(
    cases: CaseStore,
    labelled: list[Case],
    architecture: Architecture,
    optimisation: Optimisation,
    batch_size: int,
    augmentation: Augmentation,
    compute: Compute,
    seed: int,
    start: Path | None = None,
    snapshots: int = 0,
    mean_teacher: Consistency | None = None,
) -> TrainedWeights:
    """DiceCE on labelled cases with augmentation, early stopping on validation; from `start` or from new weights.

    With `mean_teacher`, images of the pool are learnt from too, and the weights are those of the moving average.
    """
    network = architecture.build(seed_of(seed, "weights"))
    if start is not None:
        load_weights(network, start)
    network.to(compute.device)
    batches = iter(
        LabelledBatches(
            [cases.image_for(case, architecture.window) for case in labelled],
            [cases.label_for(case, architecture.window) for case in labelled],
            architecture.window,
            augmentation,
            batch_size,
            seed_of(seed, "batches"),
        )
    )
    average = None if mean_teacher is None else Average(network, mean_teacher.decay)
    pool = cases.split("pool") if mean_teacher is not None else []
    unlabelled = iter(
        LabelledBatches(
            [cases.image_for(case, architecture.window) for case in pool],
            # Nothing is known of them: only where a turned image has come in from outside is 255.
            [np.broadcast_to(np.uint8(0), case.shape) for case in pool],
            architecture.window,
            augmentation,
            batch_size,
            seed_of(seed, "unlabelled"),
        )
    )
    noise = torch_generator(seed, "noise")
    validation = cases.split("validation")
    images = [cases.image_for(case, architecture.window) for case in validation]
    truths = [cases.label_for(case, architecture.window) for case in validation]

    def step_loss(step: int) -> tuple[torch.Tensor, dict[str, float | None]]:
        batch, truth = (part.to(compute.device) for part in next(batches))
        with compute.autocast():
            heads = all_heads(network, batch)
        loss = deep_dice_ce(heads, truth)
        if mean_teacher is not None and average is not None:
            batch, valid = (part.to(compute.device) for part in next(unlabelled))
            blurred = batch + mean_teacher.noise * torch.randn(batch.shape, generator=noise).to(batch)
            with compute.autocast():
                logits = network(blurred)
            weight = mean_teacher.weight * ramp_up(step / optimisation.steps)
            loss = loss + weight * consistency(logits, average.logits(batch, compute), valid != UNKNOWN)
        return loss, {}

    def evaluate(network: torch.nn.Module) -> dict[str, float | None]:
        dice = validation_dice(network, images, truths, architecture.window, architecture.classes, compute)
        return {"validation_dice": dice}

    every = optimisation.steps // snapshots if snapshots else 0
    return optimise(network, step_loss, evaluate, optimisation, train_mode=True, snapshot_every=every, average=average)
