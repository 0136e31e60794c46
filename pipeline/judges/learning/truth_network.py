"""Networks of `error_map`: class probabilities of the truth, learned from out-of-fold proposals."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.compute import Compute
from pipeline.errors import BadInput
from pipeline.judges.judge import JudgeInputs
from pipeline.judges.learning.expected_dice import NETWORKS_FILE, error_of, expected_dice
from pipeline.judges.learning.learned_dice import DECAY, ranking_loss, reliability
from pipeline.judges.learning.mask_examples import (
    Example,
    MaskBatch,
    MaskBatches,
    MaskDraws,
    class_dice,
    examples_of,
    network_input,
)
from pipeline.measures.folds import folds_by_group
from pipeline.measures.intervals import mean_over_groups
from pipeline.measures.ranking import differences
from pipeline.seeding import seed_of
from pipeline.segmenter.architecture import Architecture
from pipeline.segmenter.loop import Average, HistoryRow, optimise
from pipeline.segmenter.weights import load_weights, per_thread, save_weights
from pipeline.store.manifest import write_json
from pipeline.store.schema import UNKNOWN

if TYPE_CHECKING:
    from pipeline.judges.kinds.error_map import ErrorMap

PARTS = 4
"""Fewest parts of the labelled patients. Each network holds one part out and chooses its weights on this part."""
DICE_WEIGHT = 5.0
"""Weight of the squared error of the expected Dice beside the cross-entropy, so that both terms have one size."""
BINS = 10
"""Number of bins of equal width of the predicted probability, for the calibration error."""
_LEAST = 1 / 510  # least mean probability, half a stored step: keeps the logarithm finite
_GAIN = 10.0  # AdamW moves a factor by about the learning rate per step; the gain lets the correction grow faster


class TruthNetwork(nn.Module):
    """`log p = a log(mean probability) + b network(input)` up to a constant; a = 1 and b = 0 before training."""

    def __init__(self, network: nn.Module, channels: int, given_mask: bool) -> None:
        super().__init__()
        self.network, self.channels, self.given_mask = network, channels, given_mask
        self.factors = nn.Parameter(torch.tensor([1.0, 0.0]))  # a, and b in units of `_GAIN`

    def forward(self, seen: Tensor) -> Tensor:
        """Log-probabilities f32 `[n, class, *window]` for a batch of `network_input`s f32 `[n, channel, *window]`."""
        foreground = (seen.shape[1] - self.channels) // 2
        mean = seen[:, self.channels + foreground :]
        inputs = seen if self.given_mask else torch.cat([seen[:, : self.channels], mean], 1)
        mean = torch.cat([1 - mean.sum(1, keepdim=True), mean], 1).clamp(min=_LEAST)
        correction = self.network(inputs).float()
        return torch.log_softmax(self.factors[0] * mean.log() + _GAIN * self.factors[1] * correction, 1)


@dataclass(frozen=True)
class TruthModel:
    """A `TruthNetwork` on disk, in a folder with the architecture of its network."""

    folder: Path
    number: int
    channels: int
    given_mask: bool
    compute: Compute

    @cached_property
    def architecture(self) -> Architecture:
        return Architecture.load(self.folder)

    @property
    def weights(self) -> Path:
        return self.folder / f"network_{self.number}.safetensors"

    def build(self, seed: int) -> TruthNetwork:
        """The network before training."""
        return TruthNetwork(self.architecture.build(seed), self.channels, self.given_mask).to(self.compute.device)

    def shared(self) -> nn.Module:
        """The network that this thread shares, in eval mode: never train it."""
        return per_thread(self.weights, self.compute.device, lambda: load_weights(self.build(0), self.weights).eval())


def probability_of(model: TruthModel, image: np.ndarray, probability: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Class probabilities f32 `[class, *space]` of the truth, from one pass of the network of this thread."""
    return _probability(model.shared(), model, image, probability, mask)


@torch.no_grad()
def _probability(
    network: nn.Module, model: TruthModel, image: np.ndarray, probability: np.ndarray, mask: np.ndarray
) -> np.ndarray:
    seen = network_input(image, mask, probability, len(probability), model.architecture.window)
    with model.compute.autocast():
        found = network(seen[None].to(model.compute.device))[0].exp()
    return found[(slice(None), *(slice(0, length) for length in mask.shape))].cpu().numpy()


def expected_dice_of(p: Tensor, mask: Tensor, known: Tensor) -> Tensor:
    """Expected Dice f32 `[n, class - 1]` of a batch of masks u8 `[n, *space]`, with gradient.

    The differentiable form of `pipeline.judges.learning.expected_dice.expected_dice`. `p` holds class probabilities f32
    `[n, class, *space]`; `known` bool `[n, *space]` tells the voxels that count.
    """
    found = []
    space = tuple(range(1, mask.ndim))
    for label in range(1, p.shape[1]):
        inside, q = (mask == label) & known, p[:, label] * known
        there, size = q.amax(space), inside.sum(space)
        volume = q.sum(space) / there.clamp(min=1e-6)
        overlap = 2 * (q * inside).sum(space) / (size + volume).clamp(min=1e-6)
        found.append(torch.where(size > 0, overlap, 1 - there))
    return torch.stack(found, 1)


def learn(knobs: ErrorMap, given: JudgeInputs) -> None:
    """Train the networks and write them to `given.models`, with their measures on held-out patients.

    Raises `BadInput` without out-of-fold proposals, and for too few labelled groups.
    """
    examples = [known for example in examples_of(given, knobs.kind) if len((known := _with_known(example)).masks)]
    groups = [example.group for example in examples]
    if len(set(groups)) < max(2, knobs.networks):
        raise BadInput(
            f"judge 'error_map': expected labelled cases of at least {max(2, knobs.networks)} groups, so that each of "
            f"{knobs.networks} networks holds groups out, found {len(set(groups))}; label more or lower `networks`"
        )
    part = folds_by_group(groups, max(knobs.networks, PARTS), given.seed)
    classes, channels = len(given.cases.class_names), given.cases.channels
    inputs = channels + (classes - 1) * (1 + knobs.given_mask)
    Architecture.of(knobs.network, inputs, classes, given.cases.padded).save(given.models)
    found = []
    for number in range(knobs.networks):
        model = TruthModel(given.models, number, channels, knobs.given_mask, given.compute)
        record = model.weights.with_suffix(".json")
        if not record.is_file():
            inside, out = (
                [e for e, p in zip(examples, part, strict=True) if (p == number) == out] for out in (False, True)
            )
            write_json(record, _learn_one(knobs, model, inside, out, given, seed_of(given.seed, "error_map", number)))
        found.append(json.loads(record.read_text()))
    write_json(given.models / NETWORKS_FILE, {"networks": found})


def gap_weighted_accuracy(expected: Sequence[np.ndarray], truths: Sequence[np.ndarray], groups: Sequence[str]) -> float:
    """Pair accuracy of the expected Dice, pairs weighted by their gap in true Dice: mean over patients, 0 to 1.

    `expected` and `truths` hold f64 `[n, class - 1]` per case. Pairs of equal score count one half. Cases without a gap
    are left out; without any gap the result is one half. Only the order counts: a network that is merely more certain
    gains nothing.
    """
    found, of_group = [], []
    for expectation, truth, group in zip(expected, truths, groups, strict=True):
        score, gap = (differences(values.mean(1)[None])[0] for values in (expectation, truth))
        if gap.any():
            found.append(float((np.abs(gap) * (np.sign(score) * np.sign(gap) + 1) / 2).sum() / np.abs(gap).sum()))
            of_group.append(group)
    return mean_over_groups(found, of_group) if found else 0.5


def _with_known(example: Example) -> Example:
    """The example without masks that are 255 everywhere, which have no expected Dice."""
    return replace(example, masks=example.masks[[bool((mask != UNKNOWN).any()) for mask in example.masks]])


def _learn_one(
    knobs: ErrorMap, model: TruthModel, inside: list[Example], held_out: list[Example], given: JudgeInputs, seed: int
) -> dict[str, object]:
    compute = given.compute
    torch.set_num_threads(compute.threads)
    network = model.build(seed_of(seed, "weights"))
    window, classes = model.architecture.window, model.architecture.classes
    truths = [class_dice(example.label, example.masks, classes) for example in held_out]
    groups = [example.group for example in held_out]
    batches = iter(
        MaskBatches(inside, classes, window, MaskDraws(knobs.batch, knobs.corrupted, flips=given.flips), seed)
    )

    def step_loss(step: int) -> tuple[Tensor, HistoryRow]:
        network.train()
        batch = MaskBatch(*(part.to(compute.device) for part in next(batches)))
        return _loss(network, batch, knobs, compute)

    def evaluate(network: nn.Module) -> HistoryRow:
        found = held_out_dice(network, model, held_out)
        return {**reliability(found, truths, groups), "validation_dice": gap_weighted_accuracy(found, truths, groups)}

    # Dropout layers draw from torch's global generator.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "dropout"))
        average = Average(network, DECAY)
        trained = optimise(network, step_loss, evaluate, knobs.optimisation, average=average)
    network.load_state_dict(trained.best)
    save_weights(network, model.weights)
    return {
        "held_out": sorted(set(groups)),
        "step": trained.best_step,
        "measures": {"cases": len(held_out), **evaluate(network), **voxel_calibration(network.eval(), model, held_out)},
        "mean_probability": trained.history[0],
        "history": trained.history,
    }


def _loss(network: nn.Module, batch: MaskBatch, knobs: ErrorMap, compute: Any) -> tuple[Tensor, HistoryRow]:
    with compute.autocast():
        if knobs.given_mask:
            log_p = network(batch.inputs)
        else:
            # Masks of one image share a view, so one pass per image serves all its masks.
            first = torch.stack([(batch.image == n).nonzero()[0, 0] for n in range(int(batch.image.max()) + 1)])
            log_p = network(batch.inputs[first])[batch.image]
    known = batch.truth != UNKNOWN
    truth = torch.where(known, batch.truth, 0).long()
    entropy = -(log_p.gather(1, truth[:, None])[:, 0] * known).sum() / known.sum().clamp(min=1)
    expected = expected_dice_of(log_p.exp(), batch.mask, known & (batch.mask != UNKNOWN))
    error = (expected - batch.dice).square().mean()
    loss = entropy + DICE_WEIGHT * error
    if knobs.ranking:
        loss = loss + knobs.ranking * ranking_loss(expected.mean(1), batch.dice.mean(1), batch.image)
    return loss, {"cross_entropy": entropy.item(), "dice_error": error.item()}


def voxel_calibration(network: nn.Module, model: TruthModel, examples: Sequence[Example]) -> dict[str, float]:
    """Calibration of error probabilities on the voxels of out-of-fold proposals, against the true errors.

    `brier` is the mean squared difference of predicted probability and error (0 or 1). `ece` is |mean predicted
    probability - share of errors| in ten bins of the predicted probability, mean over voxels. `brier_disputed` and
    `ece_disputed` cover only voxels on which the proposals differ, and are 0 without one.
    """
    predicted, wrong, disputed = [], [], []
    for example in examples:
        known = example.label != UNKNOWN
        differ = ((example.masks != example.masks[0]) & (example.masks != UNKNOWN)).any(0)
        for p, mask in zip(_each(network, model, example), example.masks, strict=True):
            seen = known & (mask != UNKNOWN)
            predicted.append(error_of(p, mask)[seen])
            wrong.append((mask != example.label)[seen])
            disputed.append(differ[seen])
    error, right, where = np.concatenate(predicted), np.concatenate(wrong), np.concatenate(disputed)
    return {**calibration_of(error, right, ""), **calibration_of(error[where], right[where], "_disputed")}


def calibration_of(predicted: np.ndarray, wrong: np.ndarray, ending: str) -> dict[str, float]:
    """`ece` and `brier` of error probabilities f32 `[voxel]` against errors bool `[voxel]`; 0 without voxels.

    `ending` is added to both names.
    """
    bins = np.minimum((predicted * BINS).astype(np.int64), BINS - 1)
    gap = np.abs(np.bincount(bins, predicted - wrong, BINS)).sum()
    voxels = max(1, len(wrong))
    brier = ((predicted - wrong) ** 2).sum(dtype=np.float64) / voxels
    return {f"ece{ending}": float(gap / voxels), f"brier{ending}": float(brier)}


def _each(network: nn.Module, model: TruthModel, example: Example) -> Iterator[np.ndarray]:
    """Class probabilities f32 `[class, *space]` for every proposal, from as few passes as possible."""
    p = None
    for mask in example.masks:
        if p is None or model.given_mask:
            p = _probability(network, model, example.image, example.probability, mask)
        yield p


def held_out_dice(network: nn.Module, model: TruthModel, examples: Sequence[Example]) -> list[np.ndarray]:
    """Expected Dice f64 `[n, class - 1]` of the out-of-fold proposals of each example."""
    return [
        np.stack([expected_dice(p, m) for p, m in zip(_each(network, model, example), example.masks, strict=True)])
        for example in examples
    ]
