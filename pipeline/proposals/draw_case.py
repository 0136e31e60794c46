"""Proposals of one case: masks and mean probability are drawn, counted and written.

A small case is drawn as a whole. A large case is drawn band by band and written slab by slab.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pipeline.measures.overlap import dice_from_counts, disagreement, overlaps_to
from pipeline.proposals.samplers import Sampler
from pipeline.proposals.samplers.sampler import CaseModels, Draw, OnDisk, drawn
from pipeline.store.arrays import Slabs
from pipeline.store.cases import Where
from pipeline.store.schema import UNKNOWN
from pipeline.workspace import PASSING

BASE_SAMPLER = "base"
"""Sampler and setting of slot 0 if there is a base segmenter."""


class Counts:
    """Voxel counts of the proposals of a case, for the table of proposals and the disagreement.

    `disagreement` is |D| u32 `[proposal, proposal]`, `voxels` is the size of each class i64 `[proposal, class]`. The
    counts of the parts of a case add up to the counts of the case.
    """

    def __init__(self, slots: int, classes: int) -> None:
        self.classes = classes
        self.disagreement = np.zeros((slots, slots), np.uint32)
        self.voxels = np.zeros((slots, classes), np.int64)
        self._overlaps = np.zeros((classes - 1, 2, slots), np.int64)
        self._same_unknown = np.ones((slots, slots), bool)

    def add(self, masks: np.ndarray) -> None:
        """Add the counts of masks u8 `[proposal, *space]` of a part of the case."""
        self.disagreement += disagreement(masks)
        self._overlaps += overlaps_to(masks[0], masks, self.classes)
        for slot, mask in enumerate(masks):
            self.voxels[slot] += np.bincount(mask[mask != UNKNOWN], minlength=self.classes)
        unknown = (masks == UNKNOWN).reshape(len(masks), -1)
        if unknown.any():
            self._same_unknown &= np.stack([(unknown == one).all(1) for one in unknown])

    @property
    def dice_to_base(self) -> np.ndarray:
        """Dice of every proposal with slot 0, f64 `[proposal]`, mean over the foreground classes."""
        return dice_from_counts(self._overlaps)

    def duplicate_of(self, slot: int) -> int | None:
        """First slot with the same mask, or None if `slot` is the first."""
        # Two masks with |D| = 0 may still differ in which voxels are unknown. Such masks are no duplicates.
        first = int(((self.disagreement[slot] == 0) & self._same_unknown[slot]).argmax())
        return first if first < slot else None


class Target(Protocol):
    """An array in memory or on disk to which masks or probabilities are written."""

    def __setitem__(self, where: Any, values: np.ndarray, /) -> None: ...


@dataclass(frozen=True)
class CaseArrays:
    """Arrays to which the masks and the mean probability of a case are written."""

    masks: Target
    probability: Target
    row: int  # index of the case in all arrays
    source_masks: Target | None = None  # None if no case is measured on another grid than the working grid

    def write(self, where: Where, masks: np.ndarray, probability: np.ndarray) -> None:
        """Write masks u8 `[proposal, *box]` and probability u8 `[class, *box]` of a box of the case."""
        self.masks[(self.row, slice(None), *where)] = masks
        self.probability[(self.row, slice(None), *where)] = probability

    def write_source(self, masks: Sequence[np.ndarray]) -> None:
        """Write the masks u8 `[*source]` of all proposals on the source's grid."""
        assert self.source_masks is not None
        space = tuple(slice(0, length) for length in masks[0].shape)
        self.source_masks[(self.row, slice(None), *space)] = np.stack(masks)


def draw_case(
    case: CaseModels,
    samplers: Mapping[str, Sampler],
    slots: int,
    target: CaseArrays,
    slabs: Slabs | None,
    scratch: Path,
) -> tuple[list[dict[str, object]], np.ndarray]:
    """Write masks and mean probability of a case to `target`. Return the rows of the table, and |D| u32 `[K, K]`.

    With `slabs` the case is drawn band by band, and a slab is written when the last band of the slab is done. Only the
    float32 probabilities of one band are in memory. Sliding windows and masks of the whole case that later bands need
    are stored below `scratch`. With None the case is drawn as a whole. A case whose masks are wanted on the source's
    grid is drawn as a whole too, because probabilities of a whole case are interpolated.
    """
    counts = Counts(slots, case.classes)
    if slabs is None or case.source_masks is not None:
        draw(case, samplers)
        found = np.stack([one.mask for one in case.draws])
        target.write(case.where, found, _steps(case))
        if case.source_masks is not None:
            target.write_source(case.source_masks)
        counts.add(found)
        draws = case.draws
    else:
        with tempfile.TemporaryDirectory(dir=scratch, prefix=PASSING) as folder:
            case.disk = OnDisk(Path(folder), slabs.axis)
            draws = _draw_slabs(case, samplers, counts, target, slabs)
    dice = counts.dice_to_base
    rows: list[dict[str, object]] = [
        {
            "case_id": case.case_id,
            "proposal": slot,
            "sampler": one.sampler,
            "setting": one.setting,
            "voxels": counts.voxels[slot].tolist(),
            "dice_to_base": float(dice[slot]),
            "duplicate_of": counts.duplicate_of(slot),
        }
        for slot, one in enumerate(draws)
    ]
    return rows, counts.disagreement


def bands(case: CaseModels, slabs: Slabs | None, scratch: Path) -> Iterator[CaseModels]:
    """Parts of a case that together cover the case: bands of a large case, or else the case itself.

    Sliding windows are stored below `scratch`.
    """
    from pipeline.segmenter.sliding import bands_of

    if slabs is None:
        yield case
        return
    space = case.image.shape[1:]
    with tempfile.TemporaryDirectory(dir=scratch, prefix=PASSING) as folder:
        case.disk = OnDisk(Path(folder), slabs.axis)
        for start, stop in bands_of(0, space[slabs.axis], space, slabs.axis):
            yield case.at(start, stop)


def _draw_slabs(
    case: CaseModels, samplers: Mapping[str, Sampler], counts: Counts, target: CaseArrays, slabs: Slabs
) -> list[Draw]:
    """Draw, count and write a large case slab by slab. Return the draws of the last band.

    Sampler and setting of the draws are the same in every band.
    """
    from pipeline.segmenter.sliding import bands_of

    space = case.image.shape[1:]
    draws: list[Draw] = []
    for first in range(0, space[slabs.axis], slabs.rows):
        stop = min(first + slabs.rows, space[slabs.axis])
        where = case.at(first, stop).where
        shape = [part.stop - part.start for part in where]
        found = np.empty((len(counts.voxels), *shape), np.uint8)
        likely = np.empty((case.classes, *shape), np.uint8)
        # A slab is a shard of the arrays and is written at once. Bands are thinner, to bound float32 probabilities.
        for start, end in bands_of(first, stop, space, slabs.axis):
            band = case.at(start, end)
            draw(band, samplers)
            inside: list[Any] = [slice(None)] * len(shape)
            inside[slabs.axis] = slice(start - first, end - first)
            found[(slice(None), *inside)] = np.stack([one.mask for one in band.draws])
            likely[(slice(None), *inside)] = _steps(band)
            draws = band.draws
        target.write(where, found, likely)
        counts.add(found)
    return draws


def draw(case: CaseModels, samplers: Mapping[str, Sampler]) -> None:
    """Draw slot 0, unless it is drawn, and the proposals of all samplers, and keep them in the case."""
    if case.base is not None and not case.draws:
        case.keep(drawn(BASE_SAMPLER, BASE_SAMPLER, case.predict(case.base)))
    for name, sampler in samplers.items():
        for one in sampler.draw(name, case):
            case.keep(one)


def _steps(case: CaseModels) -> np.ndarray:
    """Mean probability times 255, rounded, u8 `[class, *space]`."""
    return (case.mean_probability() * 255).round().numpy()
