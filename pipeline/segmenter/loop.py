"""Training loop of all networks (base segmenter, students, judges): steps, schedule, evaluations, kept weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.compute import Compute
from pipeline.errors import BadInput
from pipeline.progress import training_steps
from pipeline.segmenter.knobs import Optimisation

State = dict[str, Tensor]
HistoryRow = dict[str, float | None]

CLIP = 1.0
"""Largest norm of the gradient: one batch with a large loss must not undo many steps."""
MOST_LATE = 5
"""Most checkpoints that are kept of the last fifth of the evaluations. Their mean is the sustained result."""


@dataclass
class TrainedWeights:
    """Weights that a training keeps, by role, and the history with one row per evaluation."""

    best: State
    last: State
    late: dict[int, State]  # weights by step, of the last fifth of the evaluations, at most MOST_LATE
    snapshots: dict[int, State]  # weights by step, at equal distances
    history: list[HistoryRow] = field(default_factory=list)
    best_step: int = 0
    stopped: str | None = None  # reason of `stop` for ending before the last step


class Average:
    """Exponential moving average of a network's weights (Polyak & Juditsky 1992), such as a mean teacher."""

    def __init__(self, network: nn.Module, decay: float, warm_up: bool = True) -> None:
        self.network, self.decay, self.steps = deepcopy(network).eval(), decay, 0
        self.warm_up = warm_up

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Add the weights after a step to the average.

        The average keeps the share `decay` of itself. With `warm_up` step n keeps at most (1 + n) / (10 + n), so that
        the average soon leaves the weights from before training.
        """
        self.steps += 1
        keep = min(self.decay, (1 + self.steps) / (10 + self.steps)) if self.warm_up else self.decay
        # The state of a DynUNet names every weight twice and would average it twice; parameters name it once.
        for mine, new in zip(_weights(self.network), _weights(network), strict=True):
            if mine.dtype.is_floating_point:
                mine.lerp_(new, 1 - keep)
            else:
                # Integer buffers, such as the step counter of batch normalisation, have no mean.
                mine.copy_(new)

    @torch.no_grad()
    def logits(self, images: Tensor, compute: Compute) -> Tensor:
        """Logits f32 `[image, output, *space]` of the averaged network, without gradient."""
        with compute.autocast():
            return self.network(images).float()


def _weights(network: nn.Module) -> Iterator[Tensor]:
    yield from network.parameters()
    yield from network.buffers()


def _copy(network: nn.Module) -> State:
    return {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}


def optimise(
    network: nn.Module,
    step_loss: Callable[[int], tuple[Tensor, HistoryRow]],
    evaluate: Callable[[nn.Module], HistoryRow],
    knobs: Optimisation,
    snapshot_every: int = 0,
    average: Average | None = None,
    stop: Callable[[HistoryRow], str | None] = lambda row: None,
) -> TrainedWeights:
    """Train a network in place; returns the history and the weights that were kept at evaluations.

    `step_loss(step)` returns the loss to minimise, and numbers whose means since the last evaluation enter the history.
    `evaluate(network)` returns further numbers, among them `validation_dice`, which decides the best weights. The first
    evaluation is at step 0, before any update. An evaluation puts the network in eval mode; `step_loss` calls
    `network.train()` if dropout is to act and normalisation statistics are to change. With `average`, the averaged
    weights are evaluated and kept; snapshots, every `snapshot_every` steps (0: none), are of the network itself.
    `stop` gets every row after step 0 and returns the reason to end training, or None. The weights of the evaluation
    that triggered the stop are discarded. Raises `BadInput` for a loss that is not finite.
    """
    optimiser = torch.optim.AdamW(network.parameters(), lr=knobs.learning_rate, weight_decay=knobs.weight_decay)
    evaluations = _Evaluations(network if average is None else average.network, evaluate, stop)
    trained = evaluations.trained
    network.eval()
    evaluations.take(0)
    show = training_steps(knobs.steps)
    for step in range(1, knobs.steps + 1):
        for group in optimiser.param_groups:
            group["lr"] = knobs.learning_rate * knobs.factor(step)
        loss, numbers = step_loss(step)
        # Checked before the update, which would make all weights NaN.
        if not torch.isfinite(loss):
            raise BadInput(
                f"training diverged: the loss at step {step} is {loss.item()}; lower the learning rate or beta"
            )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        optimiser.step()
        if average is not None:
            average.update(network)
        evaluations.note({"loss": loss.item(), **numbers})
        if step % knobs.evaluate_every == 0 or step == knobs.steps:
            network.eval()
            evaluations.take(step)
        show(step, trained.history[-1]["validation_dice"])
        # A pretrained network often gets worse before it improves: patience counts after the first improvement.
        if trained.stopped or (knobs.patience and trained.best_step and evaluations.waited >= knobs.patience):
            break
        if snapshot_every and step % snapshot_every == 0:
            trained.snapshots[step] = _copy(network)
    _keep_last_fifth(trained, knobs)
    return trained


class _Evaluations:
    """Evaluations of one training: the history, and the weights that are kept."""

    def __init__(
        self,
        network: nn.Module,
        evaluate: Callable[[nn.Module], HistoryRow],
        stop: Callable[[HistoryRow], str | None],
    ) -> None:
        self.network, self.evaluate, self.stop = network, evaluate, stop
        self.trained = TrainedWeights({}, {}, {}, {})
        self.best = -1.0  # highest validation Dice; the start has at least 0
        self.waited = 0  # evaluations since the highest validation Dice
        self._numbers: dict[str, list[float]] = {}

    def note(self, numbers: HistoryRow) -> None:
        """Add the numbers of a step; the next row has their means. None does not count."""
        for name, value in numbers.items():
            if value is not None:
                self._numbers.setdefault(name, []).append(value)

    def take(self, step: int) -> None:
        """Evaluate the network, append a row to the history, and keep the weights unless `stop` ends the training."""
        trained = self.trained
        means = {name: float(np.mean(values)) for name, values in self._numbers.items()}
        row: HistoryRow = {"step": step, **means, **self.evaluate(self.network)}
        self._numbers = {}
        trained.history.append(row)
        if step and (reason := self.stop(row)):
            trained.stopped = reason
            return
        state = _copy(self.network)
        value = row["validation_dice"]
        assert value is not None
        if value > self.best:
            self.best, self.waited, trained.best, trained.best_step = value, 0, state, step
        else:
            self.waited += 1
        trained.last = state
        # Training may end at any evaluation, so the last fifth is known only at the end: keep the newest.
        trained.late[step] = state
        _keep_newest(trained.late, MOST_LATE)


def _keep_last_fifth(trained: TrainedWeights, knobs: Optimisation) -> None:
    """Keep only the late weights of the last fifth of the evaluations, at least one."""
    # Step 0 is no result of training, and the evaluation that triggered the stop has no weights.
    evaluations = len(trained.history) - 1 - (trained.stopped is not None)
    # Without early stopping, an evaluation at a last step off the interval does not count.
    early = knobs.patience is not None or trained.stopped is not None
    _keep_newest(trained.late, max(1, (evaluations if early else knobs.steps // knobs.evaluate_every) // 5))


def _keep_newest(states: dict[int, State], count: int) -> None:
    for old in sorted(states)[:-count]:
        del states[old]


def interpolated(
    trained: TrainedWeights, start: nn.Module, shares: Sequence[float], value: Callable[[nn.Module], float]
) -> float:
    """Interpolate the kept weights between `start` and training; returns the share of training (WiSE-FT).

    `best`, `last` and `late` weights w become `start + share * (w - start)`. The share is the one whose interpolated
    last weights have the highest `value`; if several do, the smallest. The weights of `start` are overwritten (Wortsman
    et al. 2022).
    """
    first = _copy(start)

    def mixed(state: State, share: float) -> State:
        # Integer buffers, such as the step counter of batch normalisation, cannot be interpolated.
        return {
            name: torch.lerp(first[name], value, share) if value.dtype.is_floating_point else value
            for name, value in state.items()
        }

    best, chosen = -1.0, 1.0
    for share in sorted(set(shares)):
        start.load_state_dict(mixed(trained.last, share))
        if (found := value(start)) > best:
            best, chosen = found, share
    # One evaluation may be best, last and late at once: every state is interpolated once.
    done = {id(state): mixed(state, chosen) for state in (trained.best, trained.last, *trained.late.values())}
    trained.best, trained.last = done[id(trained.best)], done[id(trained.last)]
    trained.late = {step: done[id(state)] for step, state in trained.late.items()}
    return chosen
