"""What a trained folder predicts for a case, on the grid of the case's source image."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.cases.grid import on_source_grid, to_source
from pipeline.compute import Compute
from pipeline.errors import BadInput
from pipeline.segmenter.knobs import RECORD
from pipeline.store.cases import Case, CaseStore, Values, Where
from pipeline.store.proposals import ProposalStore

if TYPE_CHECKING:
    from pipeline.segmenter.weights import Model


def _found(
    model: Model, image: Values, compute: Compute, offsets: Sequence[float]
) -> Iterator[tuple[Where, np.ndarray]]:
    """Boxes that make up the case, and their class probabilities f32 `[class, *box]`."""
    from pipeline.segmenter.sliding import bands
    from pipeline.segmenter.weights import probability, shifted

    for where, logits in bands(model.shared(), image, model.architecture.window, compute):
        yield where, probability(shifted(logits, offsets)).cpu().numpy()


def class_probabilities(
    model: Model, image: Values, case: Case, compute: Compute, offsets: Sequence[float] = ()
) -> np.ndarray:
    """Class probabilities f32 `[class, *source]` for an image f32 `[channel, *working]`; its mask is their argmax."""
    whole = np.empty((model.architecture.classes, *case.shape), np.float32)
    for where, working in _found(model, image, compute, offsets):
        whole[(slice(None), *where)] = working
    return to_source(whole, case)


def predicted_mask(
    model: Model, image: Values, case: Case, compute: Compute, offsets: Sequence[float] = ()
) -> np.ndarray:
    """Label map u8 `[*source]`, without holding the probabilities of a large case where no grid is changed."""
    if case.resampled:
        return class_probabilities(model, image, case, compute, offsets).argmax(0).astype(np.uint8)
    mask = np.empty(case.shape, np.uint8)
    for where, working in _found(model, image, compute, offsets):
        mask[where] = working.argmax(0)
    return mask


@dataclass(frozen=True)
class NetworkPrediction:
    """A network's most probable class, with offsets on its class logits where the student has some."""

    cases: CaseStore
    model: Model
    compute: Compute
    offsets: tuple[float, ...] = ()  # per foreground class

    def __call__(self, case: Case) -> np.ndarray:
        """Label map u8 `[*space]` on the source's grid."""
        image = self.cases.image_for(case, self.model.architecture.window)
        return predicted_mask(self.model, image, case, self.compute, self.offsets)


@dataclass(frozen=True)
class FixedProposal:
    """The same proposal of every case."""

    cases: CaseStore
    proposals: ProposalStore
    slot: int

    def __call__(self, case: Case) -> np.ndarray:
        """Label map u8 `[*space]` on the source's grid."""
        return on_source_grid(self.proposals.masks(case, [self.slot])[0], case, len(self.cases.class_names))


@dataclass(frozen=True)
class Predictions:
    """The checkpoints of a folder by role; the base and an arm without training have one and no best."""

    sustained: tuple[NetworkPrediction | FixedProposal, ...]
    best: NetworkPrediction | FixedProposal | None


def predictions(folder: Path, cases: CaseStore, proposals: ProposalStore, compute: Compute) -> Predictions:
    """What the folder of the base or of a student predicts with; raises `BadInput` where it cannot."""
    from pipeline.segmenter.weights import Model

    record = json.loads((folder / RECORD).read_text()) if (folder / RECORD).is_file() else None
    if record is None:
        return Predictions((NetworkPrediction(cases, Model(folder, "base", compute.device), compute),), None)
    if record["slot"] is not None:
        known = set(proposals.case_ids())
        if missing := [case.case_id for case in cases.split("test") if case.case_id not in known]:
            raise BadInput(
                f"{folder}: takes proposal {record['slot']} of every case, and {len(missing)} test cases have none "
                f"(first: '{missing[0]}'); add 'test' to propose.splits"
            )
        return Predictions((FixedProposal(cases, proposals, record["slot"]),), None)
    offsets = tuple(record["offsets"] or ())
    best, *late = (
        NetworkPrediction(cases, Model(folder, name, compute.device), compute, offsets)
        for name in ("best", *record["late"])
    )
    return Predictions(tuple(late), best)
