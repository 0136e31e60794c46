"""The loop that trains the base segmenter and every student: steps, schedule, validation, checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.compute import Compute
from pipeline.errors import BadInput
from pipeline.measures.overlap import dice_from_counts, overlaps_to
from pipeline.segmenter.knobs import Optimisation
from pipeline.segmenter.sliding import bands
from pipeline.segmenter.weights import predicted_classes
from pipeline.store.cases import Values, Where

State = dict[str, Tensor]
HistoryRow = dict[str, float | None]

MOST_LATE = 5
"""Most checkpoints kept of the last fifth of the evaluations; their mean is the sustained result."""


@dataclass
class TrainedWeights:
    """What a training leaves: weights by role and the history, one row per evaluation."""

    best: State
    last: State
    late: dict[int, State]  # step -> weights, of the last fifth of the evaluations, at most MOST_LATE
    snapshots: dict[int, State]
    history: list[HistoryRow] = field(default_factory=list)
    best_step: int = 0
    stopped: str | None = None  # why a training without labels ended before its last step


class Average:
    """Exponential moving average of a network's weights (Polyak & Juditsky 1992; the teacher of mean teacher)."""

    def __init__(self, network: nn.Module, decay: float, warm_up: bool = True) -> None:
        self.network, self.decay, self.steps = deepcopy(network).eval(), decay, 0
        self.warm_up = warm_up

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Take a step's weights in; under `warm_up` early steps weigh more: the average has nothing of its own yet."""
        self.steps += 1
        keep = min(self.decay, (1 + self.steps) / (10 + self.steps)) if self.warm_up else self.decay
        # Not by the names of the state, of which a DynUNet has two for every weight.
        for mine, new in zip(_weights(self.network), _weights(network), strict=True):
            if mine.dtype.is_floating_point:
                mine.lerp_(new, 1 - keep)
            else:
                mine.copy_(new)

    @torch.no_grad()
    def logits(self, images: Tensor, compute: Compute) -> Tensor:
        """Logits f32 `[image, output, *space]` without gradient."""
        with compute.autocast():
            return self.network(images).float()


def _weights(network: nn.Module) -> Iterator[Tensor]:
    yield from network.parameters()
    yield from network.buffers()


def validation_dice(
    network: nn.Module,
    images: Sequence[Values],
    truths: Sequence[Values],
    window: Sequence[int],
    classes: int,
    compute: Compute,
) -> float:
    """Mean over cases of the mean Dice over foreground classes, on the working grid."""

    def dice(image: Values, truth: Values) -> float:
        counts = [
            overlaps_to(truth[where], found[None], classes)
            for where, found in predicted_labels(network, image, window, compute)
        ]
        return dice_from_counts(np.sum(counts, axis=0))[0]

    return float(np.mean([dice(image, truth) for image, truth in zip(images, truths, strict=True)]))


def predicted_labels(
    network: nn.Module, image: Values, window: Sequence[int], compute: Compute
) -> Iterator[tuple[Where, np.ndarray]]:
    """Boxes that make up a case `[channel, *space]`, and the most probable class u8 `[*box]` in each, on the working
    grid."""
    for where, logits in bands(network, image, window, compute):
        yield where, predicted_classes(logits[None])[0].cpu().numpy()


def _copy(network: nn.Module) -> State:
    return {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}


def optimise(
    network: nn.Module,
    step_loss: Callable[[int], tuple[Tensor, HistoryRow]],
    evaluate: Callable[[nn.Module], HistoryRow],
    knobs: Optimisation,
    train_mode: bool,
    snapshot_every: int = 0,
    average: Average | None = None,
    stop: Callable[[HistoryRow], str | None] = lambda row: None,
) -> TrainedWeights:
    """Train the network in place.

    `step_loss(step)` gives the loss to minimise and numbers for the history, which are averaged between evaluations;
    `evaluate(network)` must give `validation_dice`. The first evaluation is at step 0, before any update.
    `train_mode` False keeps dropout off and normalisation statistics frozen, as preference losses need it.
    With `average`, what is evaluated and kept are the averaged weights. `stop` sees each row after step 0 and gives the
    reason to end there, or None; the weights of that row are not kept, since they are what it objects to.
    """
    optimiser = torch.optim.AdamW(network.parameters(), lr=knobs.learning_rate, weight_decay=knobs.weight_decay)
    trained = TrainedWeights({}, {}, {}, {})
    sums: dict[str, list[float]] = {}
    best = -1.0
    waited = 0

    def record(step: int) -> None:
        nonlocal best, waited, sums
        network.eval()
        current = network if average is None else average.network
        row: HistoryRow = {"step": step, **{name: float(np.mean(values)) for name, values in sums.items()}}
        row |= evaluate(current)
        sums = {}
        trained.history.append(row)
        if step and (reason := stop(row)):
            trained.stopped = reason
            return
        state = _copy(current)
        value = row["validation_dice"]
        assert value is not None
        if value > best:
            best, waited, trained.best, trained.best_step = value, 0, state, step
        else:
            waited += 1
        trained.last = state
        # Early stopping can end at any evaluation, so the last fifth is known only afterwards: keep the newest few.
        trained.late[step] = state
        _keep_newest(trained.late, MOST_LATE)

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
        if average is not None:
            average.update(network)
        for name, value in ({"loss": loss.item()} | numbers).items():
            if value is not None:
                sums.setdefault(name, []).append(value)
        if step % knobs.evaluate_every == 0 or step == knobs.steps:
            record(step)
            # A start that is trained already falls before it rises: patience begins with the first improvement.
            if trained.stopped or (knobs.patience and trained.best_step and waited >= knobs.patience):
                break
        if snapshot_every and step % snapshot_every == 0:
            trained.snapshots[step] = _copy(network)
    kept = len(trained.history) - 1 - (trained.stopped is not None)
    early = knobs.patience is not None or trained.stopped is not None
    _keep_newest(trained.late, max(1, (kept if early else knobs.steps // knobs.evaluate_every) // 5))
    return trained


def _keep_newest(states: dict[int, State], count: int) -> None:
    for old in sorted(states)[:-count]:
        del states[old]


def interpolated(
    trained: TrainedWeights, start: nn.Module, shares: Sequence[float], value: Callable[[nn.Module], float]
) -> float:
    """Replace all kept weights w by `start + share * (w - start)`, with the share whose last weights have the highest
    `value`; of equal shares the smallest. Returns the share (Wortsman et al. 2022, WiSE-FT)."""
    first = _copy(start)

    def mixed(state: State, share: float) -> State:
        return {
            name: torch.lerp(first[name], value, share) if value.dtype.is_floating_point else value
            for name, value in state.items()
        }

    best, chosen = -1.0, 1.0
    for share in sorted(set(shares)):
        start.load_state_dict(mixed(trained.last, share))
        if (found := value(start)) > best:
            best, chosen = found, share
    done = {id(state): mixed(state, chosen) for state in (trained.best, trained.last, *trained.late.values())}
    trained.best, trained.last = done[id(trained.best)], done[id(trained.last)]
    trained.late = {step: done[id(state)] for step, state in trained.late.items()}
    return chosen
