"""The proposals of one case: drawn as a whole or, of a large case, band by band, written slab by slab and counted."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
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

BASE_SAMPLER = "base"
"""Sampler and setting of slot 0, where there is a base segmenter."""


class Counts:
    """What the proposals table says of the masks of a case, and their disagreement; parts of the case add up."""

    def __init__(self, slots: int, classes: int) -> None:
        self.classes = classes
        self.disagreement = np.zeros((slots, slots), np.uint32)
        self.voxels = np.zeros((slots, classes), np.int64)
        self._overlaps = np.zeros((classes - 1, 2, slots), np.int64)
        self._same_unknown = np.ones((slots, slots), bool)

    def add(self, masks: np.ndarray) -> None:
        """Count masks u8 `[proposal, *space]` of a part of the case."""
        self.disagreement += disagreement(masks)
        self._overlaps += overlaps_to(masks[0], masks, self.classes)
        for slot, mask in enumerate(masks):
            self.voxels[slot] += np.bincount(mask[mask != UNKNOWN], minlength=self.classes)
        unknown = (masks == UNKNOWN).reshape(len(masks), -1)
        if unknown.any():
            self._same_unknown &= np.stack([(unknown == one).all(1) for one in unknown])

    @property
    def dice_to_base(self) -> np.ndarray:
        """Dice of every mask with slot 0, f64 `[proposal]`."""
        return dice_from_counts(self._overlaps)

    def duplicate_of(self, slot: int) -> int | None:
        """The first slot with the same mask, if it is another one."""
        # Masks that only differ where one of them is unknown are two masks, although no voxel tells them apart.
        first = int(((self.disagreement[slot] == 0) & self._same_unknown[slot]).argmax())
        return first if first < slot else None


class Target(Protocol):
    """An array, in memory or on disk, that masks or probabilities are written to."""

    def __setitem__(self, where: Any, values: np.ndarray, /) -> None: ...


@dataclass(frozen=True)
class CaseArrays:
    """Where the masks and the mean probability of a case are written."""

    masks: Target
    probability: Target
    row: int  # of the case in both arrays

    def write(self, where: Where, masks: np.ndarray, probability: np.ndarray) -> None:
        """Write u8 `[proposal, *box]` and u8 `[class, *box]` of a box of the case."""
        self.masks[(self.row, slice(None), *where)] = masks
        self.probability[(self.row, slice(None), *where)] = probability


def draw_case(
    case: CaseModels,
    samplers: Mapping[str, Sampler],
    slots: int,
    target: CaseArrays,
    slabs: Slabs | None,
    scratch: Path,
) -> tuple[list[dict[str, object]], np.ndarray]:
    """Write masks and mean probability of a case to `target`; return its rows of the table, and |D| u32 `[K, K]`.

    With `slabs` the case is drawn band by band, whose float32 probabilities are all that is in memory, and each slab is
    written when its last band is done; what windows and whole masks leave for later bands lies below `scratch`.
    """
    counts = Counts(slots, case.classes)
    if slabs is None:
        _draw(case, samplers)
        found = np.stack([draw.mask for draw in case.draws])
        target.write(case.where, found, _steps(case))
        counts.add(found)
        draws = case.draws
    else:
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            case.disk = OnDisk(Path(folder), slabs.axis)
            draws = _draw_slabs(case, samplers, counts, target, slabs)
    dice = counts.dice_to_base
    rows: list[dict[str, object]] = [
        {
            "case_id": case.case_id,
            "proposal": slot,
            "sampler": draw.sampler,
            "setting": draw.setting,
            "voxels": counts.voxels[slot].tolist(),
            "dice_to_base": float(dice[slot]),
            "duplicate_of": counts.duplicate_of(slot),
        }
        for slot, draw in enumerate(draws)
    ]
    return rows, counts.disagreement


def _draw_slabs(
    case: CaseModels, samplers: Mapping[str, Sampler], counts: Counts, target: CaseArrays, slabs: Slabs
) -> list[Draw]:
    """Write and count slab after slab; the draws of the last band."""
    from pipeline.segmenter.sliding import bands_of

    space = case.image.shape[1:]
    draws: list[Draw] = []
    for first in range(0, space[slabs.axis], slabs.rows):
        stop = min(first + slabs.rows, space[slabs.axis])
        where = case.at(first, stop).where
        shape = [part.stop - part.start for part in where]
        found = np.empty((len(counts.voxels), *shape), np.uint8)
        likely = np.empty((case.classes, *shape), np.uint8)
        for start, end in bands_of(first, stop, space, slabs.axis):
            band = case.at(start, end)
            _draw(band, samplers)
            inside: list[Any] = [slice(None)] * len(shape)
            inside[slabs.axis] = slice(start - first, end - first)
            found[(slice(None), *inside)] = np.stack([draw.mask for draw in band.draws])
            likely[(slice(None), *inside)] = _steps(band)
            draws = band.draws
        target.write(where, found, likely)
        counts.add(found)
    return draws


def _draw(case: CaseModels, samplers: Mapping[str, Sampler]) -> None:
    if case.base is not None:
        case.keep(drawn(BASE_SAMPLER, BASE_SAMPLER, case.predict(case.base)))
    for name, sampler in samplers.items():
        for draw in sampler.draw(name, case):
            case.keep(draw)


def _steps(case: CaseModels) -> np.ndarray:
    """Mean probability u8 `[class, *space]`, in steps of 1/255."""
    return (case.mean_probability() * 255).round().numpy()
