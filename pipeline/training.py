"""The loop that trains the base segmenter and every student: steps, schedule, validation, checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.errors import BadInput
from pipeline.overlap import dice_to
from pipeline.recipe import Compute, Optimisation
from pipeline.segmenter import labels, predict

State = dict[str, Tensor]
Row = dict[str, float | None]

MOST_LATE = 5
"""Most checkpoints kept of the last fifth of the evaluations; their mean is the sustained result."""


@dataclass
class Trained:
    """What a training leaves: weights by role and the history, one row per evaluation."""

    best: State
    last: State
    late: dict[int, State]  # step -> weights, of the last fifth of the evaluations, at most MOST_LATE
    snapshots: dict[int, State]
    history: list[Row] = field(default_factory=list)
    best_step: int = 0


def validation_dice(
    network: nn.Module,
    images: Sequence[np.ndarray],
    truths: Sequence[np.ndarray],
    window: Sequence[int],
    classes: int,
    compute: Compute,
) -> float:
    """Mean over cases of the mean Dice over foreground classes, on the working grid."""
    return float(
        np.mean(
            [
                dice_to(truth, labels(_classes(predict(network, image, window, compute)))[None], classes)[0]
                for image, truth in zip(images, truths, strict=True)
            ]
        )
    )


def _classes(logits: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(logits), logits]) if logits.shape[0] == 1 else logits


def _copy(network: nn.Module) -> State:
    return {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}


def optimise(
    network: nn.Module,
    step_loss: Callable[[int], tuple[Tensor, Row]],
    evaluate: Callable[[nn.Module], Row],
    knobs: Optimisation,
    train_mode: bool,
    snapshot_every: int = 0,
) -> Trained:
    """Train the network in place.

    `step_loss(step)` gives the loss to minimise and numbers for the history, which are averaged between evaluations;
    `evaluate(network)` must give `validation_dice`. The first evaluation is at step 0, before any update.
    `train_mode` False keeps dropout off and normalisation statistics frozen, as preference losses need it.
    """
    optimiser = torch.optim.AdamW(network.parameters(), lr=knobs.learning_rate, weight_decay=knobs.weight_decay)
    trained = Trained({}, {}, {}, {})
    sums: dict[str, list[float]] = {}
    best = -1.0
    waited = 0
    expected = knobs.steps // knobs.evaluate_every

    def record(step: int) -> None:
        nonlocal best, waited, sums
        network.eval()
        row: Row = {"step": step, **{name: float(np.mean(values)) for name, values in sums.items()}}
        row |= evaluate(network)
        sums = {}
        trained.history.append(row)
        state = _copy(network)
        value = row["validation_dice"]
        assert value is not None
        if value > best:
            best, waited, trained.best, trained.best_step = value, 0, state, step
        else:
            waited += 1
        trained.last = state
        # Early stopping can end at any evaluation, so the last fifth is known only afterwards: keep the newest few.
        trained.late[step] = state
        keep = max(1, min(MOST_LATE, (len(trained.history) - 1) // 5 if knobs.patience else expected // 5))
        for old in sorted(trained.late)[:-keep]:
            del trained.late[old]

    record(0)
    for step in range(1, knobs.steps + 1):
        network.train(train_mode)
        if knobs.schedule == "poly":
            for group in optimiser.param_groups:
                group["lr"] = knobs.learning_rate * (1 - (step - 1) / knobs.steps) ** 0.9
        loss, numbers = step_loss(step)
        if not torch.isfinite(loss):
            raise BadInput(
                f"training diverged: the loss at step {step} is {loss.item()}; lower the learning rate or beta"
            )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), knobs.clip)
        optimiser.step()
        for name, value in ({"loss": loss.item()} | numbers).items():
            if value is not None:
                sums.setdefault(name, []).append(value)
        if step % knobs.evaluate_every == 0 or step == knobs.steps:
            record(step)
            # A start that is trained already falls before it rises: patience begins with the first improvement.
            if knobs.patience and trained.best_step and waited >= knobs.patience:
                break
        if snapshot_every and step % snapshot_every == 0:
            trained.snapshots[step] = _copy(network)
    return trained
