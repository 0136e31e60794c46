"""Dice as a network sees it: regressed from image, mask and mean probability, and trained to rank (Robinson 2018)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field, field_validator

from pipeline.compute import Compute
from pipeline.errors import BadInput
from pipeline.judges.judge import Evidence, JudgeInputs, JudgeKnobs
from pipeline.measures.overlap import first_equal
from pipeline.seeding import numpy_generator, seed_of
from pipeline.segmenter.knobs import Network, Optimisation
from pipeline.store.manifest import write_json
from pipeline.store.schema import UNKNOWN

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pipeline.judges.learning.mask_examples import Example
    from pipeline.segmenter.weights import Architecture

REPORT = "held_out.json"
"""Beside the weights: how well each network judges the labelled groups that it has not learned from."""
PARTS = 5
"""Parts of the labelled groups, one of which a network leaves out; more where there are more networks."""
SCALE = 0.05
"""Difference of predicted Dice that counts as a sure ranking: the loss of a pair is logistic in units of it."""
DECAY = 0.98
"""Of the moving average of the weights."""
AT_ONCE = 16
"""Masks of one case in one forward pass."""


class Quality(JudgeKnobs):
    """The mean over foreground classes of the Dice that networks predict, averaged over the networks.

    A network sees image, mask and mean probability; what it adds is a correction, on the logistic scale, of the Dice
    that the mean probability expects of the mask, so an untrained one is nearly `expected_dice`. It learns from
    out-of-fold proposals of labelled cases and from corruptions: smooth L1 error of the Dice of every foreground
    class, and a logistic ranking term on pairs of masks of one image. Of the weights met in training (a moving
    average) those are kept that rank proposals of the labelled groups best that this network has left out. Masks that
    are equal have equal scores; of a mask that is 255 throughout it abstains. Raises `BadInput` without out-of-fold
    proposals, and where the labelled cases are of fewer than two groups.

    Cost with the default knobs on one CPU core: 4 ms per network and proposal of 128x128, 23 ms of 48x64x48; learning
    takes 0.13 s per step of 16 masks of 128x128 (4 minutes in all) and 0.7 s of 48x64x48 (there, smaller batches and
    fewer steps help). Memory: see `MaskBatches`.
    """

    kind: Literal["quality"]
    network: Network = Network(
        name="DenseNet",
        arguments={
            "init_features": 16,
            "growth_rate": 16,
            "block_config": [2, 4, 4],
            "norm": ["instance", {"affine": True}],
        },
        multiple=32,
    )
    """A network of MONAI that gives one number per output channel for an image of any size. Windows are not slid; where
    `multiple` is null, it is 16."""
    optimisation: Optimisation = Optimisation(steps=600, learning_rate=1e-3, evaluate_every=50, patience=6)
    """Of each network; its evaluations are on the labelled groups that it leaves out."""
    batch: Annotated[int, Field(gt=1)] = 16
    """Masks per step."""
    per_image: Annotated[int, Field(gt=1)] = 4
    """Masks of one image in a batch; pairs of them are ranked."""
    ranking: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the ranking term beside the error of the Dice."""
    corrupted: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of corruptions among the masks; the others are out-of-fold proposals."""
    networks: Annotated[int, Field(gt=0)] = 3
    """Networks that are averaged, each leaving out another part of the labelled groups."""
    shrink: Annotated[int, Field(gt=0)] = 2
    """Voxels along each axis that are averaged to one before the network: cheaper by its power, and coarser."""

    @field_validator("network")
    @classmethod
    def _with_multiple(cls, network: Network) -> Network:
        # It cannot be found: there are no logits whose size tells whether the network fits.
        return network if network.multiple else network.model_copy(update={"multiple": 16})

    def ready(self, given: JudgeInputs) -> QualityScorer:
        from pipeline.judges.learning.mask_examples import examples_of, input_channels
        from pipeline.segmenter.weights import Architecture

        classes = len(given.cases.class_names)
        channels = input_channels(given.cases.channels, classes)
        # Small cases are padded to what is left of a multiple after shrinking: normalisation needs more than one voxel.
        assert self.network.multiple is not None
        least = self.network.multiple * self.shrink
        padded = [max(length, least) for length in given.cases.padded]
        architecture = Architecture.of(self.network, channels, classes - 1, padded)
        if any(have > want for have, want in zip(given.cases.padded, architecture.window, strict=True)):
            raise BadInput(
                f"judges: kind 'quality': network.window {list(architecture.window)} does not hold the largest case "
                f"{list(given.cases.padded)}; expected null, since windows are not slid; use `shrink` for speed"
            )
        scorer = QualityScorer(given.models, self.networks, self.shrink, classes, given.compute)
        if (given.models / REPORT).is_file():
            return scorer
        examples = examples_of(given, self.kind)
        groups = sorted({example.group for example in examples})
        if len(groups) < 2:
            raise BadInput(
                f"{given.cases.folder}: a judge of kind 'quality' leaves labelled groups out to choose its weights; "
                f"expected at least 2, found {groups}; label more or remove the judge"
            )
        order = numpy_generator(given.seed, "quality", "parts").permutation(len(groups))
        parts = min(len(groups), max(PARTS, self.networks))
        part_of = {groups[group]: place % parts for place, group in enumerate(order)}
        architecture.save(given.models)
        report = {}
        for number in range(self.networks):
            seen, held_out = (
                [e for e in examples if (part_of[e.group] == number % parts) == out] for out in (False, True)
            )
            record = given.models / f"{name_of(number)}.json"
            if not record.is_file():
                write_json(record, self._learned(number, architecture, seen, held_out, classes, given))
            report[name_of(number)] = json.loads(record.read_text())
        write_json(given.models / REPORT, report)
        return scorer

    def _learned(
        self,
        number: int,
        architecture: Architecture,
        seen: Sequence[Example],
        held_out: Sequence[Example],
        classes: int,
        given: JudgeInputs,
    ) -> dict[str, object]:
        """Train one network, write its weights, and say how it judges what it has not seen."""
        import torch

        from pipeline.judges.learning.mask_examples import MaskBatches, class_dice
        from pipeline.segmenter.loop import Average, optimise
        from pipeline.segmenter.weights import save_weights

        torch.set_num_threads(given.compute.threads)
        seed = seed_of(given.seed, "quality", number)
        compute, window = given.compute, architecture.window
        network = architecture.build(seed_of(seed, "weights")).to(compute.device)
        truths = [class_dice(example.label, example.masks, classes) for example in held_out]

        def evaluate(network: nn.Module) -> dict[str, float | None]:
            found = [
                predicted_dice(network, e.image, e.masks, e.probability, classes, window, self.shrink, compute)
                for e in held_out
            ]
            return {**reliability(found, truths), "validation_dice": soft_pick(found, truths)}

        batches = iter(
            MaskBatches(seen, classes, window, self.batch, seed, self.corrupted, self.per_image, given.flips)
        )

        def step_loss(step: int) -> tuple[Tensor, dict[str, float | None]]:
            batch = next(batches)
            dice = batch.dice.to(compute.device)
            found = corrected_dice(network, batch.inputs.to(compute.device), classes, self.shrink, compute)
            loss = torch.nn.functional.smooth_l1_loss(found, dice, beta=0.1)
            if self.ranking:
                loss = loss + self.ranking * ranking_loss(found.mean(1), dice.mean(1), batch.image)
            return loss, {}

        # Dropout layers of a network draw from torch's global generator.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(seed, "dropout"))
            average = Average(network, DECAY)
            trained = optimise(network, step_loss, evaluate, self.optimisation, train_mode=True, average=average)
        network.load_state_dict(trained.best)
        save_weights(network, given.models / f"{name_of(number)}.safetensors")
        groups = sorted({example.group for example in held_out})
        return {"groups": groups, "cases": len(held_out), "best_step": trained.best_step, "history": trained.history}


def name_of(number: int) -> str:
    """File name of a network's weights, without its ending."""
    return f"quality_{number}"


def corrected_dice(network: nn.Module, inputs: Tensor, classes: int, shrink: int, compute: Compute) -> Tensor:
    """Dice f32 `[n, classes - 1]` in (0, 1) predicted for `network_input`s f32 `[n, channel, *window]`.

    The logit of the soft Dice of mask and mean probability (with one voxel added to overlap and volumes, so that a
    class that neither has counts as 1), plus what the network adds.
    """
    import torch

    axes = tuple(range(2, inputs.ndim))
    mask, probability = inputs[:, 2 - 2 * classes :].chunk(2, dim=1)
    soft = (2 * (mask * probability).sum(axes) + 1) / (mask.sum(axes) + probability.sum(axes) + 1)
    if shrink > 1:
        pool = torch.nn.functional.avg_pool2d if len(axes) == 2 else torch.nn.functional.avg_pool3d
        inputs = pool(inputs, shrink)
    with compute.autocast():
        correction = network(inputs)
    return torch.sigmoid(torch.logit(soft, 1e-3) + correction.float())


def ranking_loss(predicted_dice: Tensor, dice: Tensor, image: Tensor) -> Tensor:
    """Logistic loss of the order of masks of one image, weighted by their true gap; 0 where no two masks differ.

    `predicted_dice` and `dice` are means over classes f32 `[n]`, `image` i64 `[n]` says whose masks they are.
    """
    import torch

    first, second = torch.triu_indices(len(dice), len(dice), 1)
    same = (image[first] == image[second]).to(dice.device)
    gap = (dice[first] - dice[second]) * same
    margin = (predicted_dice[first] - predicted_dice[second]) * gap.sign() / SCALE
    return (gap.abs() * torch.nn.functional.softplus(-margin)).sum() / gap.abs().sum().clamp_min(1e-6)


def predicted_dice(
    network: nn.Module,
    image: np.ndarray,
    masks: np.ndarray,
    probability: np.ndarray,
    classes: int,
    window: Sequence[int],
    shrink: int,
    compute: Compute,
) -> np.ndarray:
    """Predicted Dice f64 `[n, classes - 1]` of masks u8 `[n, *space]` of one image."""
    import torch

    from pipeline.judges.learning.mask_examples import network_input

    found = []
    with torch.inference_mode():
        for start in range(0, len(masks), AT_ONCE):
            rows = [network_input(image, m, probability, classes, window) for m in masks[start : start + AT_ONCE]]
            inputs = torch.stack(rows).to(compute.device)
            found.append(corrected_dice(network, inputs, classes, shrink, compute).double().cpu().numpy())
    return np.concatenate(found)


def reliability(predicted_dice: Sequence[np.ndarray], truths: Sequence[np.ndarray]) -> dict[str, float | None]:
    """How predictions of the Dice of proposals, `[n, class]` for each case, slot 0 first, hold against the true Dice.

    `error` is the mean absolute error per class; `pair_accuracy` the mean over cases of the share of pairs ordered
    rightly (None where no two proposals of a case differ); `lift` the mean true Dice of the top pick less slot 0's.
    """
    from pipeline.measures.ranking import differences, pair_error, rightness, top_value

    lifts, wrong = [], []
    for found, truth in zip(predicted_dice, truths, strict=True):
        score, dice = found.mean(1)[None], truth.mean(1)[None]
        lifts.append(top_value(score, dice)[0] - dice[0, 0])
        wrong.append(pair_error(rightness(differences(score), differences(dice)))[0])
    asked = ~np.isnan(wrong)
    return {
        "error": float(np.mean([np.abs(p - t).mean() for p, t in zip(predicted_dice, truths, strict=True)])),
        "pair_accuracy": 1 - float(np.mean(np.array(wrong)[asked])) if asked.any() else None,
        "lift": float(np.mean(lifts)),
    }


def soft_pick(predicted_dice: Sequence[np.ndarray], truths: Sequence[np.ndarray]) -> float:
    """Mean over cases of the true Dice of the proposals, weighted by the softmax of their scores over `SCALE`.

    The Dice of the top pick, smoothed: with few cases the top pick itself hardly tells weights apart.
    """
    picks = []
    for found, truth in zip(predicted_dice, truths, strict=True):
        score = found.mean(1)
        weight = np.exp((score - score.max()) / SCALE)
        picks.append(float((weight * truth.mean(1)).sum() / weight.sum()))
    return float(np.mean(picks))


@dataclass(frozen=True)
class QualityScorer:
    """Trained networks by folder; each thread loads them once."""

    folder: Path
    networks: int
    shrink: int
    classes: int
    compute: Compute

    def score(self, evidence: Evidence) -> np.ndarray:
        import torch

        from pipeline.segmenter.weights import Model

        torch.set_num_threads(1)
        originals, slot = np.unique(first_equal(evidence.masks), return_inverse=True)
        masks = evidence.masks[originals]
        found = []
        for number in range(self.networks):
            model = Model(self.folder, name_of(number), self.compute.device)
            given = (evidence.image, masks, evidence.probability, self.classes, model.architecture.window)
            found.append(predicted_dice(model.shared(), *given, self.shrink, self.compute))
        scores = np.mean(found, axis=(0, 2))
        scores[[not (mask != UNKNOWN).any() for mask in masks]] = np.nan
        return scores[slot]
