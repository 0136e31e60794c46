"""Expected Dice under a learned probability of the truth, from image, mean probability and, if asked for, the mask."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, field_validator

from pipeline.compute import Compute
from pipeline.judges.judge import Evidence, JudgeInputs, JudgeKnobs
from pipeline.judges.learning.expected_dice import NETWORKS_FILE, error_of, expected_dice
from pipeline.segmenter.knobs import Network, Optimisation
from pipeline.store.cases import Case


class ErrorMap(JudgeKnobs):
    """Expected Dice of a proposal under class probabilities p of the truth that a network learned (0 to 1).

    A voxel's error probability is 1 - p of the mask's class. Per foreground class, with m the largest p of any voxel:
    m is taken for the probability that the class is there, and p / m for a voxel's probability if it is. An empty mask
    has 1 - m, another `2 sum(p y) / (sum y + sum p / m)`; then the mean over classes. Voxels that are 255 in the mask
    do not count; without a known voxel the judge abstains.

    `log p = a log(mean probability) + b network(image, mean probability, mask)` up to a constant, with a = 1 and b = 0
    at the start, where the score is close to that of `expected_dice`: what is learned corrects it. Learned on
    out-of-fold proposals of the labelled cases and corruptions, by cross-entropy and the squared error of the expected
    Dice. Of the weights met in training (a moving average), those count that order the proposals of held-out patients
    best, pairs weighted by their gap in true Dice; `error_map.json` says what they are worth there. A labelled patient
    is judged by networks that have not learned from it, if there are any. Cases must be small enough to be seen whole.

    Cost on one core with the defaults: learning takes about 1 minute at 128x128 and 5 at 48x64x48. Scoring takes
    8 and 45 ms per network and case, or with `given_mask` per network and distinct proposal, and 0.2 and 1 ms more per
    proposal. Cases with maps are seen twice.
    """

    kind: Literal["error_map"]
    given_mask: bool = False
    """Whether the network sees the mask. It then takes one pass per distinct proposal instead of one per case."""
    networks: Annotated[int, Field(ge=1)] = 3
    """Networks whose probabilities are averaged, each holding out another part of the labelled patients."""
    network: Network = Network(arguments={"channels": [16, 32, 64, 128], "strides": [2, 2, 2]}, multiple=8)
    """Of MONAI; its outputs are the classes."""
    optimisation: Optimisation = Optimisation(steps=300, learning_rate=1e-3, evaluate_every=50)
    """Of each network; evaluations are on its held-out part."""
    batch: Annotated[int, Field(ge=1)] = 8
    """Masks per step, up to four of one image."""
    corrupted: Annotated[float, Field(ge=0, le=1)] = 0.25
    """Share of corruptions among the masks of a step, in place of out-of-fold proposals."""
    dice_weight: Annotated[float, Field(ge=0)] = 5.0
    """Of the squared error of the expected Dice, beside the cross-entropy."""
    ranking: Annotated[float, Field(ge=0)] = 0.0
    """Of the logistic loss of the order of masks of one image."""
    maps: Literal["none", "validation", "all"] = "none"
    """Of which cases the error probability of every proposal is stored, in `error.zarr` beside the networks."""

    @field_validator("network")
    @classmethod
    def _whole(cls, network: Network) -> Network:
        if network.window is not None or network.head != "softmax":
            raise ValueError("expected window null (cases are seen whole) and head 'softmax'")
        return network

    def ready(self, given: JudgeInputs) -> ErrorMapScores:
        if not (given.models / NETWORKS_FILE).is_file():
            from pipeline.judges.learning.truth_network import learn

            learn(self, given)
        networks = json.loads((given.models / NETWORKS_FILE).read_text())["networks"]
        return ErrorMapScores(self, given.models, given.compute, tuple(tuple(one["held_out"]) for one in networks))


@dataclass(frozen=True)
class ErrorMapScores:
    """Scores by networks on disk, loaded once per process and thread."""

    knobs: ErrorMap
    folder: Path
    compute: Compute
    held_out: tuple[tuple[str, ...], ...]  # per network, the groups that it has not learned from

    def score(self, evidence: Evidence) -> np.ndarray:
        masks, originals = evidence.masks, evidence.originals
        scores = np.full(len(masks), np.nan)
        for slot, p in self._probabilities(evidence):
            scores[slot] = expected_dice(p, masks[slot]).mean()
        return scores[originals]

    def mapped(self, case: Case) -> bool:
        return self.knobs.maps in ("all", case.split)

    def errors(self, evidence: Evidence) -> np.ndarray:
        masks, originals = evidence.masks, evidence.originals
        errors = np.full(masks.shape, np.nan, np.float32)
        for slot, p in self._probabilities(evidence):
            errors[slot] = error_of(p, masks[slot])
        return errors[originals]

    def _probabilities(self, evidence: Evidence) -> Iterator[tuple[int, np.ndarray]]:
        """Slot of every distinct proposal and f32 `[class, *space]`, the mean over the networks that have not learned
        from the patient; over all of them where there is none such."""
        import torch

        from pipeline.judges.learning.truth_network import TruthModel, probability_of

        # One thread whatever the number of workers: thread counts move the last bits.
        torch.set_num_threads(1)
        numbers = range(len(self.held_out))
        used = [n for n in numbers if evidence.case.group in self.held_out[n]] or numbers
        models = [
            TruthModel(self.folder, n, evidence.cases.channels, self.knobs.given_mask, self.compute) for n in used
        ]
        p = None
        for slot in np.unique(evidence.originals).tolist():
            if p is None or self.knobs.given_mask:
                mask = evidence.masks[slot]
                p = np.mean([probability_of(m, evidence.image, evidence.probability, mask) for m in models], axis=0)
            yield slot, p
