"""Predicted masks of a base or a student, on the grid of the source image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from pipeline.cases.grid import logits_to_source, to_source
from pipeline.compute import Compute
from pipeline.errors import BadInput
from pipeline.segmenter.student_record import StudentRecord
from pipeline.store.cases import Case, CaseStore, Values, Where
from pipeline.store.proposals import Data, ProposalStore

if TYPE_CHECKING:
    from pipeline.segmenter.models import Model
    from pipeline.segmenter.segmenter import Segmenter

Measured = Literal["test", "validation"]
"""Split whose cases measure a model: `test` reports results, and `validation` chooses the student to promote."""


Spacing = tuple[float, ...] | None


def class_probabilities(
    segmenter: Segmenter, image: Values, case: Case, spacing: Spacing, offsets: Sequence[float] = ()
) -> np.ndarray:
    """Class probabilities f32 `[class, *source]` of an image f32 `[channel, *working]`.

    `spacing` is the knob `preprocess.spacing` that the case was prepared with. `offsets` are added to the logits of the
    foreground classes, one per class. Empty: no offsets. Probabilities are resampled to the source's grid, or, for a
    network of nnU-Net's plans, the logits.
    """
    if segmenter.architecture.planned and case.resampled:
        return _by_logits(segmenter, image, case, spacing, offsets)
    whole = np.empty((segmenter.architecture.classes, *case.shape), np.float32)
    for where, working in _bands(segmenter, image, offsets):
        whole[(slice(None), *where)] = working
    return to_source(whole, case)


def _by_logits(
    segmenter: Segmenter, image: Values, case: Case, spacing: Spacing, offsets: Sequence[float]
) -> np.ndarray:
    """Class probabilities f32 `[class, *source]` of logits that were resampled to the source's grid."""
    import torch

    from pipeline.segmenter.logits import probability, shifted

    whole = np.empty((segmenter.architecture.outputs, *case.shape), np.float32)
    for where, logits in segmenter.bands(image):
        whole[(slice(None), *where)] = logits.cpu().numpy()
    return probability(shifted(torch.from_numpy(logits_to_source(whole, case, spacing)), offsets)).numpy()


def predicted_mask(
    segmenter: Segmenter, image: Values, case: Case, spacing: Spacing, offsets: Sequence[float] = ()
) -> np.ndarray:
    """Most probable class u8 `[*source]` of an image f32 `[channel, *working]`. Arguments as `class_probabilities`.

    If the working grid is the source's grid, only the probabilities of one box at a time are held in memory.
    """
    if case.resampled:
        return class_probabilities(segmenter, image, case, spacing, offsets).argmax(0).astype(np.uint8)
    mask = np.empty(case.shape, np.uint8)
    for where, working in _bands(segmenter, image, offsets):
        mask[where] = working.argmax(0)
    return mask


def _bands(segmenter: Segmenter, image: Values, offsets: Sequence[float]) -> Iterator[tuple[Where, np.ndarray]]:
    """Boxes that cover the case, in order, each with class probabilities f32 `[class, *box]`."""
    from pipeline.segmenter.logits import probability, shifted

    for where, logits in segmenter.bands(image):
        yield where, probability(shifted(logits, offsets)).cpu().numpy()


@dataclass(frozen=True)
class NetworkPrediction:
    """Predicted mask of a network, with offsets on the logits of the foreground classes."""

    cases: CaseStore
    model: Model
    compute: Compute
    offsets: tuple[float, ...] = ()  # one per foreground class; empty: no offsets

    def __call__(self, case: Case) -> np.ndarray:
        """Label map u8 `[*space]` on the source's grid."""
        segmenter = self.model.segmenter(self.compute)
        image, spacing = self.cases.image_for(case, segmenter.window), self.cases.info["preprocess"]["spacing"]
        return predicted_mask(segmenter, image, case, spacing, self.offsets)


@dataclass(frozen=True)
class FixedProposal:
    """Predicted mask of an arm without a network: the proposal in the same slot of every case."""

    proposals: ProposalStore
    slot: int

    def __call__(self, case: Case) -> np.ndarray:
        """Label map u8 `[*space]` on the source's grid."""
        return self.proposals.source_mask(case, self.slot)


@dataclass(frozen=True)
class Predictions:
    """Checkpoints of a model folder by role.

    There is no best for the base, for an arm that takes a proposal, and on validation.
    """

    sustained: tuple[NetworkPrediction | FixedProposal, ...]
    best: NetworkPrediction | FixedProposal | None

    @property
    def take_proposals(self) -> bool:
        """Whether the predictions are proposals, which need no network."""
        return any(isinstance(each, FixedProposal) for each in self.sustained)


def predictions(folder: Path, data: Data, compute: Compute, split: Measured = "test") -> Predictions:
    """Checkpoints of the folder of a base or of a student that are measured on the cases of a split.

    On validation a student has its `last` weights alone. They are the weights that `predict` and another round use, and
    validation chose `best`, so the Dice of `best` on validation is too high. Raises `BadInput` if a student takes a
    proposal of every case and some cases of the split have no proposals.
    """
    record = StudentRecord.of(folder)
    if record is None:
        from pipeline.segmenter.models import Model

        return Predictions((NetworkPrediction(data.cases, Model(folder, "base"), compute),), None)
    if record.slot is not None:
        known = set(data.proposals.case_ids())
        if missing := [case.case_id for case in data.cases.split(split) if case.case_id not in known]:
            raise BadInput(
                f"{folder}: the student takes proposal {record.slot} of every case, and {len(missing)} {split} cases "
                f"have no proposals (first: '{missing[0]}'); add '{split}' to propose.splits"
            )
        return Predictions((FixedProposal(data.proposals, record.slot),), None)
    from pipeline.segmenter.models import Model

    names = ("last",) if split == "validation" else (*record.late, "best")
    each = [NetworkPrediction(data.cases, Model(folder, name), compute, record.offsets or ()) for name in names]
    return Predictions(tuple(each), None) if split == "validation" else Predictions(tuple(each[:-1]), each[-1])
