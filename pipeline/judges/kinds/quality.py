"""Judge `quality`: Dice regressed by networks from image, mask and mean probability (Robinson 2018)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field, field_validator

from pipeline.compute import Compute
from pipeline.errors import BadInput
from pipeline.judges.judge import Evidence, JudgeInputs, JudgeKnobs
from pipeline.judges.learning.learned_dice import DECAY, ranking_loss, reliability, soft_pick
from pipeline.measures.overlap import first_equal
from pipeline.seeding import numpy_generator, seed_of
from pipeline.segmenter.knobs import Network, Optimisation
from pipeline.store.manifest import write_json
from pipeline.store.schema import UNKNOWN

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pipeline.judges.learning.mask_examples import Example
    from pipeline.segmenter.architecture import Architecture

REPORT = "held_out.json"
"""File beside the weights: measures of each network on the labelled groups that the network leaves out."""
PARTS = 5
"""Fewest parts of the labelled groups, if there are as many groups. Each network leaves one part out."""
AT_ONCE = 16
"""Most masks of one case in one forward pass."""


class Quality(JudgeKnobs):
    """Dice (0 to 1) that networks predict for a proposal, mean over foreground classes and networks.

    A network sees image, mask and mean probability. The network adds a correction, on the logistic scale, to the Dice
    that the mean probability expects of the mask, so an untrained network is close to `expected_dice`. Networks learn
    from out-of-fold proposals of labelled cases and from corruptions. The loss is the smooth L1 error of the Dice of
    every foreground class, and a logistic ranking term on pairs of masks of one image. The weights are a moving
    average, kept from the evaluation that ranks proposals best on the labelled groups that the network leaves out.
    Equal masks have equal scores. The judge abstains on masks that are 255 everywhere. The judge needs out-of-fold
    proposals, and labelled cases of at least two groups; otherwise the stage ends with an error.

    Cost with the default knobs on one CPU core: 4 ms per network and proposal at 128x128, 23 ms at 48x64x48. Learning
    takes 0.13 s per step of 16 masks at 128x128 (4 minutes in all) and 0.7 s at 48x64x48, where smaller batches and
    fewer steps help. Memory per voxel and labelled case: 4 bytes per channel and class, and 1 byte per mask and
    corruption.
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
    """Network of MONAI that gives one number per output channel for an image of any size. The window must hold the
    largest case, since windows are not slid. `multiple` null means 16."""
    optimisation: Optimisation = Optimisation(steps=600, learning_rate=1e-3, evaluate_every=50, patience=6)
    """Optimisation of each network. Evaluations use the labelled groups that the network leaves out."""
    batch: Annotated[int, Field(gt=1)] = 16
    """Masks per step."""
    per_image: Annotated[int, Field(gt=1)] = 4
    """Most masks of one image in a batch. The ranking term compares masks of one image."""
    ranking: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the ranking term; the error of the Dice has weight 1, and 0 leaves the ranking term out."""
    corrupted: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of corruptions among the masks of a step. All other masks are out-of-fold proposals."""
    networks: Annotated[int, Field(gt=0)] = 3
    """Number of networks, whose predictions are averaged. Each leaves out another part of the labelled groups,
    as far as there are groups."""
    shrink: Annotated[int, Field(gt=0)] = 2
    """Edge in voxels of the blocks that are averaged to one voxel before the network. The network is then cheaper by
    this factor per axis, and coarser."""

    @field_validator("network")
    @classmethod
    def _with_multiple(cls, network: Network) -> Network:
        # No search finds the multiple: a network with one number per channel has no logits whose size tells the fit.
        return network if network.multiple else network.model_copy(update={"multiple": 16})

    @property
    def learns(self) -> bool:
        return True

    def ready(self, given: JudgeInputs) -> QualityScorer:
        from pipeline.judges.learning.mask_examples import examples_of, input_channels
        from pipeline.segmenter.architecture import Architecture

        classes = len(given.cases.class_names)
        channels = input_channels(given.cases.channels, classes)
        # After shrinking, small cases are padded to one multiple: normalisation needs more than one voxel.
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
        """Train one network and write its weights; the result is its record with measures on `held_out`."""
        import torch

        from pipeline.judges.learning.mask_examples import MaskBatches, MaskDraws, class_dice
        from pipeline.segmenter.loop import Average, optimise
        from pipeline.segmenter.weights import save_weights

        torch.set_num_threads(given.compute.threads)
        seed = seed_of(given.seed, "quality", number)
        compute, window = given.compute, architecture.window
        network = architecture.build(seed_of(seed, "weights")).to(compute.device)
        learning = DiceNetwork(network, window, classes, self.shrink, compute)
        truths = [class_dice(example.label, example.masks, classes) for example in held_out]
        groups = [example.group for example in held_out]

        def evaluate(network: nn.Module) -> dict[str, float | None]:
            judging = replace(learning, network=network)
            found = [judging.predicted_dice(e.image, e.masks, e.probability) for e in held_out]
            return {**reliability(found, truths, groups), "validation_dice": soft_pick(found, truths, groups)}

        draws = MaskDraws(self.batch, self.corrupted, self.per_image, given.flips)
        batches = iter(MaskBatches(seen, classes, window, draws, seed))

        def step_loss(step: int) -> tuple[Tensor, dict[str, float | None]]:
            network.train()
            batch = next(batches)
            dice = batch.dice.to(compute.device)
            found = learning.corrected_dice(batch.inputs.to(compute.device))
            loss = torch.nn.functional.smooth_l1_loss(found, dice, beta=0.1)
            if self.ranking:
                loss = loss + self.ranking * ranking_loss(found.mean(1), dice.mean(1), batch.image)
            return loss, {}

        # Dropout layers of a network draw from torch's global generator.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(seed, "dropout"))
            average = Average(network, DECAY)
            trained = optimise(network, step_loss, evaluate, self.optimisation, average=average)
        network.load_state_dict(trained.best)
        save_weights(network, given.models / f"{name_of(number)}.safetensors")
        return {
            "groups": sorted(set(groups)),
            "cases": len(held_out),
            "best_step": trained.best_step,
            "history": trained.history,
        }


def name_of(number: int) -> str:
    """File name of a network's weights, without its ending."""
    return f"quality_{number}"


@dataclass(frozen=True)
class DiceNetwork:
    """A network that predicts Dice as a correction of the Dice that the mean probability expects of a mask."""

    network: nn.Module
    window: Sequence[int]
    classes: int
    shrink: int
    compute: Compute

    def corrected_dice(self, inputs: Tensor) -> Tensor:
        """Dice f32 `[n, classes - 1]` in (0, 1) predicted for `network_input`s f32 `[n, channel, *window]`.

        The logit of the prediction is the logit of the soft Dice of mask and mean probability, plus the correction of
        the network. 1 is added to numerator and denominator of the soft Dice, so a class that is absent from mask and
        mean probability has a soft Dice of 1.
        """
        import torch

        axes = tuple(range(2, inputs.ndim))
        mask, probability = inputs[:, 2 - 2 * self.classes :].chunk(2, dim=1)
        soft = (2 * (mask * probability).sum(axes) + 1) / (mask.sum(axes) + probability.sum(axes) + 1)
        if self.shrink > 1:
            pool = torch.nn.functional.avg_pool2d if len(axes) == 2 else torch.nn.functional.avg_pool3d
            inputs = pool(inputs, self.shrink)
        with self.compute.autocast():
            correction = self.network(inputs)
        return torch.sigmoid(torch.logit(soft, 1e-3) + correction.float())

    def predicted_dice(self, image: np.ndarray, masks: np.ndarray, probability: np.ndarray) -> np.ndarray:
        """Predicted Dice f64 `[n, classes - 1]` of masks u8 `[n, *space]` of one image."""
        import torch

        from pipeline.judges.learning.mask_examples import network_input

        parts = []
        with torch.inference_mode():
            for start in range(0, len(masks), AT_ONCE):
                some = masks[start : start + AT_ONCE]
                rows = [network_input(image, mask, probability, self.classes, self.window) for mask in some]
                inputs = torch.stack(rows).to(self.compute.device)
                parts.append(self.corrected_dice(inputs).double().cpu().numpy())
        return np.concatenate(parts)


@dataclass(frozen=True)
class QualityScorer:
    """Scores by the trained networks in `folder`; each thread loads the networks once."""

    folder: Path
    networks: int
    shrink: int
    classes: int
    compute: Compute

    def score(self, evidence: Evidence) -> np.ndarray:
        import torch

        from pipeline.segmenter.models import Model

        torch.set_num_threads(1)
        originals, slot = np.unique(first_equal(evidence.masks), return_inverse=True)
        masks = evidence.masks[originals]
        found = []
        for number in range(self.networks):
            trained = Model(self.folder, name_of(number)).segmenter(self.compute)
            judging = DiceNetwork(trained.network, trained.window, self.classes, self.shrink, self.compute)
            found.append(judging.predicted_dice(evidence.image, masks, evidence.probability))
        scores = np.mean(found, axis=(0, 2))
        scores[[not (mask != UNKNOWN).any() for mask in masks]] = np.nan
        return scores[slot]
