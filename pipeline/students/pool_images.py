"""What a student reads of pool images: images, masks of pairs, targets of imitation, and logits of the reference.

Values of images that fit the window are kept in memory, up to a budget. Crops of larger cases are read from disk.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import polars as pl
import torch
from torch import Tensor

from pipeline.segmenter.segmenter import Segmenter
from pipeline.store import schema
from pipeline.store.cases import Case, Where
from pipeline.store.proposals import Data
from pipeline.students.imitation import Target

if TYPE_CHECKING:
    from pipeline.students.student import Training

ERROR_RANGE = (0.02, 0.45)
"""Range to which error probabilities are clipped: never certain, and always below one half.

At one half, cDPO has no preference and rDPO divides by 0. Above one half, both reverse the pair.
"""


class PairMasks(NamedTuple):
    """Chosen and rejected masks of all pairs of one image, u8 `[pair, *space]` each."""

    chosen: Tensor
    rejected: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of both masks."""
        return self.chosen.nbytes + self.rejected.nbytes


Kept = TypeVar("Kept", Tensor, PairMasks)


class _Cache:
    """Values by key, up to a number of bytes. The least recently used values leave first."""

    def __init__(self, budget: float) -> None:
        self.budget, self.held, self.values = budget, 0, OrderedDict[Hashable, Any]()

    def get(self, key: Hashable, make: Callable[[], Kept]) -> Kept:
        if key in self.values:
            self.values.move_to_end(key)
            return self.values[key]
        value = make()
        self.values[key] = value
        self.held += value.nbytes
        # A value larger than the budget stays: the caller holds the value in any case.
        while self.held > self.budget and len(self.values) > 1:
            self.held -= self.values.popitem(last=False)[1].nbytes
        return value


class PoolImages:
    """Images of cases with all their pairs, without flips, and the logits of the frozen reference.

    `pairs` is a table of `schema.PAIRS`. `e` has the error probability of every pair of a case, NaN without a
    calibration.
    """

    def __init__(self, data: Data, pairs: pl.DataFrame, reference: Segmenter, knobs: Training) -> None:
        self.cases, self.proposals = data.cases, data.proposals
        self.reference, self.keeps_reference = reference, knobs.reference == "cached"
        self.cache = _Cache(knobs.cache_gb * 2**30)
        self.pairs: dict[str, list[tuple[int, int]]] = {}
        self.e: dict[str, list[float]] = {}
        columns = pairs.select("case_id", "chosen", "rejected", "p_correct").iter_rows()
        for case_id, chosen, rejected, p_correct in columns:
            # NaN is never read: a set with a pair that has no p_correct is not calibrated.
            self.pairs.setdefault(case_id, []).append((chosen, rejected))
            self.e.setdefault(case_id, []).append(np.nan if p_correct is None else 1 - p_correct)

    def _kept(self, what: str, case: Case, where: Where | None, make: Callable[[], Kept]) -> Kept:
        # A case larger than the window is read crop by crop: whole, the case would push all others out of the cache.
        return make() if where is not None else self.cache.get((what, case.case), make)

    def image(self, case: Case, where: Where | None) -> Tensor:
        # A volume stays on disk, so only the box is read.
        def read() -> Tensor:
            return torch.from_numpy(self.cases.volume(case)[(slice(None), *(where or case.space))])

        return self._kept("image", case, where, read)

    def masks(self, case: Case, where: Where | None) -> PairMasks:
        """Masks of all pairs of a case, or of a box of the case."""

        def read() -> PairMasks:
            pairs = self.pairs.get(case.case_id, [])
            if not pairs:
                # Batches of images without pairs are concatenated too, and need the shape.
                none = torch.zeros((0, *(part.stop - part.start for part in where or case.space)), dtype=torch.uint8)
                return PairMasks(none, none)
            # One read for both masks: a chunk of the array may hold all proposals of a case.
            slots = [chosen for chosen, _ in pairs] + [rejected for _, rejected in pairs]
            return PairMasks(*torch.from_numpy(self.proposals.masks(case, slots, where)).tensor_split(2))

        return self._kept("masks", case, where, read)

    def probability(self, case: Case, where: Where | None) -> Tensor:
        """Mean probability of the proposals, f32 `[class, *space]`."""

        def read() -> Tensor:
            return torch.from_numpy(self.proposals.probability(case, where)).contiguous()

        return self._kept("probability", case, where, read)

    def errors(self, case: Case, where: Where | None) -> Tensor:
        """Error rate of every voxel f32 `[pair, *space]`, from the votes of the proposals, clipped to `ERROR_RANGE`.

        Of the proposals that vote for the class of chosen or for the class of rejected, the error rate is the share
        that votes for the class of rejected. Masks that several proposals share vote once.
        """

        def count() -> Tensor:
            masks = self.masks(case, where)
            if not len(masks.chosen):
                return torch.zeros(masks.chosen.shape)
            every = torch.from_numpy(self.proposals.masks(case, self.proposals.distinct(case), where))
            shares = []
            for chosen, rejected in zip(*masks, strict=True):
                right, wrong = (every == chosen).sum(0), (every == rejected).sum(0)
                shares.append((wrong / (right + wrong).clamp(min=1)).clamp(*ERROR_RANGE))
            return torch.stack(shares)

        return self._kept("errors", case, where, count)

    def target(self, target: Target, case: Case, where: Where | None) -> Tensor:
        """Label map u8 `[*space]` that a student imitates; 255 where the student imitates nothing.

        Labelled images with pairs are not imitated on, because their labels are known.
        """

        def read() -> Tensor:
            if case.split != "pool":
                space = [part.stop - part.start for part in where or case.space]
                return torch.full(space, schema.UNKNOWN, dtype=torch.uint8)
            mask = torch.from_numpy(self.proposals.named_mask(case, target.proposal, where))
            if target.where == "agreement":
                every = torch.from_numpy(self.proposals.masks(case, self.proposals.distinct(case), where))
                mask = torch.where((every == every[0]).all(0), mask, schema.UNKNOWN)
            return mask

        return self._kept(f"target {target!r}", case, where, read)

    def reference_logits(self, image: Tensor, key: Hashable | None) -> Tensor:
        """Logits f32 `[output, *space]` of the frozen base; `key` None is never kept."""

        @torch.no_grad()
        def forward() -> Tensor:
            # One image at a time, and float32: kept and recomputed logits are equal in every bit.
            # The logits stay on the device, so kept logits need no transfer.
            with self.reference.compute.autocast():
                return self.reference.network(image[None].to(self.reference.compute.device))[0].float()

        if key is None or not self.keeps_reference:
            return forward()
        return self.cache.get(("reference", key), forward)
