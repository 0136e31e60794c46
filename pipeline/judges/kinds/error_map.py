"""Judge `error_map`: expected Dice of a proposal under class probabilities of the truth that networks learned."""

from __future__ import annotations

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
from pipeline.store.manifest import read_json


class ErrorMap(JudgeKnobs):
    """Expected Dice of a proposal under class probabilities p of the truth that networks learned (0 to 1).

    The score is the mean over foreground classes. m is the largest p of the class at any voxel. m stands for the
    probability that the class is present, and p / m for the probability of a voxel if the class is present. A class
    that is empty in the mask y has 1 - m, any other class has `2 sum(p y) / (sum y + sum p / m)`. Voxels that are 255
    in the mask do not count, and the judge abstains on a mask without a known voxel. The error probability of a voxel
    is 1 - p of the mask's class.

    A network learns `log p = a log(mean probability) + b network(image, mean probability, mask)` up to a constant; the
    mask is an input with `given_mask` only. Training starts at a = 1 and b = 0, where the score is close to the score
    of `expected_dice`, so a network learns a correction. Networks learn from out-of-fold proposals of the labelled
    cases and from corruptions, by cross-entropy and the squared error of the expected Dice. The weights are a moving
    average, kept from the evaluation that orders the proposals of held-out patients best, with pairs weighted by their
    gap in true Dice. `error_map.json` records the measures of the kept weights on held-out patients. A labelled patient
    is judged by the networks that have not learned from the patient, if there are any. Networks see every case whole,
    so cases must be small enough for one forward pass.

    Cost on one core with the defaults: learning takes about 1 minute at 128x128 and 5 minutes at 48x64x48. Scoring
    takes 8 and 45 ms per network and case, or with `given_mask` per network and distinct proposal, and 0.2 and 1 ms
    more per proposal. Cases with stored maps pass the networks twice.
    """

    kind: Literal["error_map"]
    given_mask: bool = False
    """Whether networks see the mask. A network then takes one pass per distinct proposal instead of one per case."""
    networks: Annotated[int, Field(ge=1)] = 3
    """Number of networks, whose probabilities are averaged. Each holds out another part of the labelled patients."""
    network: Network = Network(arguments={"channels": [16, 32, 64, 128], "strides": [2, 2, 2]}, multiple=8)
    """Network of MONAI with one output per class. `window` must be null and `head` must be `softmax`."""
    optimisation: Optimisation = Optimisation(steps=300, learning_rate=1e-3, evaluate_every=50)
    """Optimisation of each network. Evaluations use the labelled patients that the network holds out."""
    batch: Annotated[int, Field(ge=1)] = 8
    """Masks per step, up to four of one image."""
    corrupted: Annotated[float, Field(ge=0, le=1)] = 0.25
    """Share of corruptions among the masks of a step. All other masks are out-of-fold proposals."""
    ranking: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the logistic loss of the order of masks of one image; 0 leaves the loss out."""
    maps: Literal["none", "validation", "all"] = "none"
    """Cases for which the error probability of every proposal is stored, in `error.zarr` beside the networks. `all`
    means all judged cases."""

    @field_validator("network")
    @classmethod
    def _whole(cls, network: Network) -> Network:
        if network.window is not None or network.head != "softmax":
            raise ValueError("expected window null (cases are seen whole) and head 'softmax'")
        return network

    @property
    def learns(self) -> bool:
        return True

    def ready(self, given: JudgeInputs) -> ErrorMapScores:
        if not (given.models / NETWORKS_FILE).is_file():
            from pipeline.judges.learning.truth_network import learn

            learn(self, given)
        networks = read_json(given.models / NETWORKS_FILE, "networks")["networks"]
        return ErrorMapScores(self, given.models, given.compute, tuple(tuple(one["held_out"]) for one in networks))


@dataclass(frozen=True)
class ErrorMapScores:
    """Scores by the networks in `folder`, which each process and thread loads once."""

    knobs: ErrorMap
    folder: Path
    compute: Compute
    held_out: tuple[tuple[str, ...], ...]  # [network], groups that the network has not learned from

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
        """Slot of every distinct proposal, with class probabilities f32 `[class, *space]` of the truth.

        Probabilities are the mean over the networks that have not learned from the patient, or over all networks if
        every network has.
        """
        import torch

        from pipeline.judges.learning.truth_network import TruthModel, probability_of

        # One thread, whatever the number of workers: the number of threads changes the last bits.
        torch.set_num_threads(1)
        numbers = range(len(self.held_out))
        used = [n for n in numbers if evidence.case.group in self.held_out[n]] or numbers
        models = [
            TruthModel(self.folder, n, evidence.cases.channels, self.knobs.given_mask, self.compute) for n in used
        ]
        p = None
        for slot in np.unique(evidence.originals).tolist():
            # Without the mask as input, one pass serves all proposals of the case.
            if p is None or self.knobs.given_mask:
                mask = evidence.masks[slot]
                p = np.mean([probability_of(m, evidence.image, evidence.probability, mask) for m in models], axis=0)
            yield slot, p
