"""Batches of pool images with all their pairs.

One forward pass of an image serves all pairs of the image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import torch
from torch import Tensor

from pipeline.measures.overlap import region
from pipeline.seeding import numpy_generator, seed_of, torch_generator
from pipeline.segmenter.augmentation import Augmentation, flip
from pipeline.segmenter.crops import Spots, anywhere, around
from pipeline.segmenter.loop import Average
from pipeline.segmenter.segmenter import Segmenter
from pipeline.segmenter.sliding import pad_to
from pipeline.store import schema
from pipeline.store.cases import Case, Where, fits
from pipeline.store.proposals import Data
from pipeline.students.batch import PairStatistics, PoolBatch
from pipeline.students.imitation import Target
from pipeline.students.pair_loss import disagreement_region
from pipeline.students.pool_images import ERROR_RANGE, PoolImages

if TYPE_CHECKING:
    from pipeline.students.student import Training

CasesAndFlips = list[tuple[Case, tuple[int, ...]]]
"""Cases of a step, each with the spatial axes along which the case is flipped."""


@dataclass(frozen=True)
class _Part:
    """One image of a batch with all its pairs, flipped and padded to the window. A part that is not wanted is empty."""

    image: Tensor  # f32 [channel, *window], clean
    seen: Tensor  # f32 [channel, *window], the strong view that the policy sees
    known: Tensor  # bool [*window], False in the padding
    reference: Tensor  # f32 [output, *window]
    chosen: Tensor  # u8 [pair, *window]
    rejected: Tensor  # u8 [pair, *window]
    e: list[float]  # [pair]
    errors: Tensor  # f32 [pair, *window]
    probability: Tensor  # f32 [class, *window]
    targets: dict[Target, Tensor]  # u8 [*window]


_NOTHING = torch.zeros(0)


@dataclass
class PoolBatches:
    """Batches of pool images with all their pairs, flipped and cut to the window, with reference logits.

    `pool` has the images to draw from: images with pairs, or all images if the student learns from all of them.
    `references` asks for reference logits in training too; batches of evaluations always have them. `probability`,
    `votes` and `targets` ask for the parts `probability`, `voxel_e` and `targets` of a batch. `views` varies the images
    of the policy. `noise` is the standard deviation of further noise on the images of the policy, in units of the
    normalised image.
    """

    data: Data
    pairs: pl.DataFrame
    pool: Sequence[Case]
    reference: Segmenter
    knobs: Training
    augmentation: Augmentation
    seed: int
    references: bool = True
    probability: bool = False
    votes: bool = False
    targets: tuple[Target, ...] = ()
    noise: float = 0.0

    def __post_init__(self) -> None:
        self.architecture, self.compute = self.reference.architecture, self.reference.compute
        self.images = PoolImages(self.data, self.pairs, self.reference, self.knobs)
        self.spots: dict[tuple[int, ...], Spots] = {}
        # Flips alone move voxels: no voxel is interpolated, so masks, D and reference logits stay exact.
        self.flips, self.views = self.augmentation.views(), self.knobs.views
        self.classes = tuple(self.data.cases.class_names)
        self.calibrated = len(self.pairs) > 0 and self.pairs["p_correct"].null_count() == 0

    def statistics(self) -> PairStatistics:
        """|D| and image size of every pair, in the order of the images.

        For a case larger than the window, both are of a crop; |D| may then be 0.
        """
        # Crops of their own, so that the statistics leave the crops of the training as they are.
        crops = numpy_generator(self.seed, "statistics")
        size, voxels = [], []
        for case in self.pool:
            # As in training: one crop serves all pairs of a case, and |D| counts inside the crop alone.
            masks = self.images.masks(case, self._crop(case, crops))
            if count := len(masks.chosen):
                size += disagreement_region(*masks).flatten(1).sum(1).tolist()
                voxels += [masks.chosen[0].numel()] * count
        return PairStatistics(np.array(size, np.int64), np.array(voxels, np.int64), self.architecture.dimensions)

    def draws(self) -> Iterator[CasesAndFlips]:
        """Cases and flips of each step, without end. Every round over the pool has an order of its own."""
        generator = numpy_generator(self.seed, "pool")

        # In rounds, all images come equally often.
        def rounds() -> Iterator[Case]:
            while True:
                for index in generator.permutation(len(self.pool)):
                    yield self.pool[index]

        order = rounds()
        while True:
            # A batch larger than the pool would always hold images twice.
            count = min(self.knobs.images, len(self.pool))
            yield [(next(order), self.flips[generator.integers(len(self.flips))]) for _ in range(count)]

    def batch(
        self,
        drawn: CasesAndFlips,
        policy: Callable[[Tensor], Tensor],
        crops: np.random.Generator,
        teacher: Average | None = None,
        step: int | None = None,
        progress: float = 1.0,
    ) -> PoolBatch:
        """One forward pass of the policy on `drawn`: cases, and the axes along which each case is flipped.

        `crops` draws the places of crops. `teacher` gives the logits of the moving average on the clean images. `step`
        seeds the strong views and the noise; without `step` the policy sees the clean images. `progress` is the share
        of the steps that are done.
        """
        parts = [self._part(case, view, self._crop(case, crops), step) for case, view in drawn]
        # Stacked on the CPU, except `reference`: one transfer per part, not one per image.
        device = self.compute.device

        def stacked(tensors: Iterable[Tensor]) -> Tensor:
            return torch.stack(list(tensors)).to(device)

        clean, seen = (stacked(getattr(part, name) for part in parts) for name in ("image", "seen"))
        if self.noise and step is not None:
            # From seed and step, on the CPU: equal on every device. Reference and teacher get the clean images.
            noise = torch.randn(seen.shape, generator=torch_generator(self.seed, "noise", step))
            seen = seen + self.noise * noise.to(seen)
        with self.compute.autocast():
            logits = policy(seen)
        index = [position for position, part in enumerate(parts) for _ in part.e]
        # Without the padding, which would make the normaliser `image` larger.
        voxels = [int(part.known.sum()) for part in parts for _ in part.e]
        e = torch.tensor([rate for part in parts for rate in part.e], dtype=torch.float32, device=device)
        return PoolBatch(
            logits=logits,
            reference=stacked(part.reference for part in parts),
            chosen=torch.cat([part.chosen for part in parts]).to(device),
            rejected=torch.cat([part.rejected for part in parts]).to(device),
            image=torch.tensor(index, dtype=torch.int64, device=device),
            voxels=torch.tensor(voxels, dtype=torch.int64, device=device),
            known=stacked(part.known for part in parts),
            probability=stacked(part.probability for part in parts) if self.probability else None,
            teacher=None if teacher is None else teacher.logits(clean, self.compute),
            e=e.clamp(*ERROR_RANGE) if self.calibrated else None,
            voxel_e=torch.cat([part.errors for part in parts]).to(device) if self.votes else None,
            targets={target: stacked(part.targets[target] for part in parts) for target in self.targets},
            classes=self.classes,
            progress=progress,
            images=clean,
        )

    def _part(self, case: Case, view: tuple[int, ...], where: Where | None, step: int | None) -> _Part:
        """One image of a batch with all its pairs, flipped along the axes `view` and padded to the window."""
        window, swap = self.architecture.window, self.augmentation.swap

        # Flips come before padding: the padding lies behind the image in every view.
        def placed(part: Tensor, value: float = 0.0) -> Tensor:
            return pad_to(flip(part, view, len(window)), window, value)

        # Kept without flips, so that one entry of the cache serves every view.
        image, masks = self.images.image(case, where), self.images.masks(case, where)
        clean = placed(image)
        seen = clean
        if step is not None and self.views.strength:
            # Masks, probabilities and reference are of the clean image, so that the cache of reference logits stays.
            varied = self.views.varied(flip(image, view, len(window)), seed_of(self.seed, "view", step, case.case_id))
            seen = pad_to(varied, window, 0.0)
        known = torch.ones((1, *image.shape[1:]), dtype=torch.bool)
        return _Part(
            image=clean,
            seen=seen,
            known=placed(known)[0],
            # Kept per view: the base predicts another mask for a flipped image. A crop hardly ever comes back.
            reference=self.images.reference_logits(clean, None if where else (case.case, view))
            if self.references or step is None
            else _NOTHING,
            # 255 keeps the padding out of D. A flip turns a left organ into a right organ, so sided classes swap.
            chosen=swap(placed(masks.chosen, schema.UNKNOWN), view),
            rejected=swap(placed(masks.rejected, schema.UNKNOWN), view),
            e=self.images.e.get(case.case_id, []),
            errors=placed(self.images.errors(case, where)) if self.votes else _NOTHING,
            probability=self.augmentation.swap_classes(placed(self.images.probability(case, where)), view)
            if self.probability
            else _NOTHING,
            targets={
                target: swap(placed(self.images.target(target, case, where), schema.UNKNOWN), view)
                for target in self.targets
            },
        )

    def _crop(self, case: Case, crops: np.random.Generator) -> Where | None:
        """Box of a crop, at most as large as the window; None if the case fits the window.

        The crop lies around a voxel of the disagreement of one pair. A share `random_crops` of the crops, and all crops
        of a case without a disagreement, lie anywhere.
        """
        window = self.architecture.window
        if fits(case.shape, window):
            return None
        pairs = self.images.pairs.get(case.case_id, [])
        # Crops anywhere show the parts on which all pairs agree, where the student may drift.
        # One pair first, then one voxel: pairs with a small D are shown as often as pairs with a large D.
        if pairs and crops.random() >= self.knobs.random_crops:
            centre = self._spots_of(case, pairs[int(crops.integers(len(pairs)))]).draw(crops)
            if centre is not None:
                return around(centre, case.shape, window)
        return anywhere(case.shape, window, crops)

    def _spots_of(self, case: Case, pair: tuple[int, int]) -> Spots:
        """Sampler of the voxels on which a pair differs. The sampler counts the voxels chunk by chunk.

        The counts are small, and no part of the cache.
        """
        # Counting reads every chunk of both masks, so every pair is counted once.
        if (case.case, *pair) not in self.spots:
            self.spots[(case.case, *pair)] = Spots(
                case.shape, lambda where: region(*self.data.proposals.masks(case, pair, where))
            )
        return self.spots[(case.case, *pair)]
