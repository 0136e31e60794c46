"""Batches of pool images with all their pairs: one forward pass per image, reference logits from memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn

from pipeline import schema
from pipeline.arm import Training
from pipeline.augmentation import Augmentation, flip
from pipeline.dataset import Case, CaseStore, ProposalStore
from pipeline.losses import disagreement_region, kl_to_reference
from pipeline.objectives.objective import PairBatch, PairStatistics, Row
from pipeline.recipe import Compute
from pipeline.seeding import numpy_generator
from pipeline.segmenter import Architecture, pad_to


class _Cache:
    """Values by key within a byte budget; the least recently used leave first."""

    def __init__(self, budget: float) -> None:
        self.budget, self.held, self.values = budget, 0, OrderedDict[Hashable, Tensor]()

    def get(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        if key in self.values:
            self.values.move_to_end(key)
            return self.values[key]
        value = make()
        self.values[key] = value
        self.held += value.nbytes
        while self.held > self.budget and len(self.values) > 1:
            self.held -= self.values.popitem(last=False)[1].nbytes
        return value


@dataclass
class PairBatches:
    """Draws pool images with all their pairs, flipped and cut to the window, with reference logits."""

    cases: CaseStore
    proposals: ProposalStore
    pairs: pl.DataFrame
    architecture: Architecture
    reference: nn.Module
    knobs: Training
    augmentation: Augmentation
    compute: Compute
    seed: int
    cache: _Cache = field(init=False)

    def __post_init__(self) -> None:
        self.cache = _Cache(self.knobs.cache_gb * 2**30)
        rows = {case.case_id: case for case in self.cases.all}
        self.slots: dict[str, list[tuple[int, int]]] = {}
        for case_id, chosen, rejected in self.pairs.select("case_id", "chosen", "rejected").iter_rows():
            self.slots.setdefault(case_id, []).append((chosen, rejected))
        self.paired = [rows[case_id] for case_id in self.slots]
        self.views = self.augmentation.views()

    def statistics(self) -> PairStatistics:
        """|D| and image size of every pair, in the order of the images."""
        crops = numpy_generator(self.seed, "statistics")
        size, voxels = [], []
        for case in self.paired:
            masks = self._masks(case)
            # As in training: of a case larger than the window, what a crop holds.
            where = self._crop(case, masks, crops)
            seen = masks if where is None else masks[(slice(None), *where)]
            half = len(seen) // 2
            size += disagreement_region(seen[:half], seen[half:]).flatten(1).sum(1).tolist()
            voxels += [seen[0].numel()] * half
        return PairStatistics(np.array(size, np.int64), np.array(voxels, np.int64), self.architecture.dimensions)

    def draws(self) -> Iterator[list[tuple[Case, tuple[int, ...]]]]:
        """Cases and flips of each step: shuffled rounds over the images that have pairs."""
        generator = numpy_generator(self.seed, "pool")

        def rounds() -> Iterator[Case]:
            while True:
                for index in generator.permutation(len(self.paired)):
                    yield self.paired[index]

        order = rounds()
        while True:
            count = min(self.knobs.images, len(self.paired))
            yield [(next(order), self.views[generator.integers(len(self.views))]) for _ in range(count)]

    def batch(
        self, drawn: list[tuple[Case, tuple[int, ...]]], policy: nn.Module, crops: np.random.Generator
    ) -> PairBatch:
        """One forward pass of the policy on the drawn images."""
        images, references, chosen, rejected, index, voxels = [], [], [], [], [], []
        for position, (case, view) in enumerate(drawn):
            image, masks = self._image(case), self._masks(case)
            where = self._crop(case, masks, crops)
            if where is not None:
                image, masks = image[(slice(None), *where)], masks[(slice(None), *where)]
            real = masks[0].numel()
            dimensions = self.architecture.dimensions
            image = flip(image, view, dimensions)
            masks = self.augmentation.swap(flip(masks, view, dimensions), view)
            image = pad_to(image, self.architecture.window)
            masks = pad_to(masks, self.architecture.window, schema.UNKNOWN)
            images.append(image)
            references.append(self._reference(image, None if where else (case.case, view)))
            half = len(masks) // 2
            chosen.append(masks[:half])
            rejected.append(masks[half:])
            index += [position] * half
            voxels += [real] * half
        batch = torch.stack(images).to(self.compute.device)
        with self.compute.autocast():
            logits = policy(batch)
        return PairBatch(
            logits,
            torch.stack(references),
            torch.cat(chosen).to(self.compute.device),
            torch.cat(rejected).to(self.compute.device),
            torch.tensor(index, device=self.compute.device),
            torch.tensor(voxels, device=self.compute.device),
        )

    def _image(self, case: Case) -> Tensor:
        return self.cache.get(("image", case.case), lambda: torch.from_numpy(self.cases.image(case)))

    def _masks(self, case: Case) -> Tensor:
        """u8 `[chosen of every pair, then rejected of every pair, *space]`."""

        def read() -> Tensor:
            pairs = self.slots[case.case_id]
            slots = [chosen for chosen, _ in pairs] + [rejected for _, rejected in pairs]
            return torch.from_numpy(self.proposals.masks(case, slots))

        return self.cache.get(("masks", case.case), read)

    def _crop(self, case: Case, masks: Tensor, crops: np.random.Generator) -> tuple[slice, ...] | None:
        """A window around a voxel of one pair's disagreement, or None where the whole case fits."""
        window = self.architecture.window
        if all(have <= want for have, want in zip(case.shape, window, strict=True)):
            return None
        half = len(masks) // 2
        pair = int(crops.integers(half))
        region = disagreement_region(masks[pair], masks[half + pair]).nonzero()
        centre = region[int(crops.integers(len(region)))].tolist()
        starts = [
            int(np.clip(middle - want // 2, 0, max(0, have - want)))
            for middle, have, want in zip(centre, case.shape, window, strict=True)
        ]
        return tuple(slice(start, start + want) for start, want in zip(starts, window, strict=True))

    def _reference(self, image: Tensor, key: Hashable | None) -> Tensor:
        @torch.no_grad()
        def forward() -> Tensor:
            with self.compute.autocast():
                return self.reference(image[None].to(self.compute.device))[0].float()

        if key is None or self.knobs.reference == "recomputed":
            return forward()
        return self.cache.get(("reference", key), forward)


def drift(batch: PairBatch) -> Row:
    """KL to the reference inside and outside the union of D, and foreground volume ratio."""
    with torch.no_grad():
        logits = batch.logits.detach()
        kl = kl_to_reference(logits, batch.reference)
        known = torch.zeros_like(kl, dtype=torch.bool)
        union = torch.zeros_like(known)
        for pair, image in enumerate(batch.image.tolist()):
            known[image] |= batch.chosen[pair] != schema.UNKNOWN
            union[image] |= disagreement_region(batch.chosen[pair], batch.rejected[pair])
        outside = known & ~union
        row: Row = {
            "kl_inside": float((kl * union).sum() / union.sum().clamp(min=1)),
            "kl_outside": float((kl * outside).sum() / outside.sum().clamp(min=1)),
        }
        volumes = [_foreground(x, known) for x in (logits, batch.reference)]
        row["volume_ratio"] = volumes[0] / volumes[1] if volumes[1] else None
    return row


def _foreground(logits: Tensor, known: Tensor) -> float:
    predicted = logits[:, 0] > 0 if logits.shape[1] == 1 else logits.argmax(1) > 0
    return float((predicted & known).sum())
