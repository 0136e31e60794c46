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

from pipeline.errors import BadInput
from pipeline.knobs import MEAN
from pipeline.measures.overlap import region
from pipeline.seeding import numpy_generator, seed_of, torch_generator
from pipeline.segmenter.augmentation import Augmentation, flip
from pipeline.segmenter.crops import Spots, anywhere, around
from pipeline.segmenter.loop import Average
from pipeline.segmenter.models import unseen_labelled
from pipeline.segmenter.segmenter import Segmenter
from pipeline.segmenter.sliding import pad_to
from pipeline.store import schema
from pipeline.store.cases import Case, Where, fits
from pipeline.store.proposals import Data
from pipeline.store.tables import read_table
from pipeline.students.batch import PairStatistics, PoolBatch
from pipeline.students.imitation import Target
from pipeline.students.pair_loss import disagreement_region
from pipeline.students.pool_images import ERROR_RANGE, PoolImages

if TYPE_CHECKING:
    from pipeline.students.objectives.objective import PoolObjective
    from pipeline.students.start import Start
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


def pool_and_held_out(objective: PoolObjective, start: Start) -> tuple[PoolBatches, PoolBatches | None]:
    """Batches of the images to train on, and batches of the images that are kept from training for stopping.

    Without stopping, no image is kept from training and the second value is None. Raises `BadInput` if pairs, their
    calibration, proposals or groups are missing and the student needs them.
    """
    cases, student = start.data.cases, start.student
    pairs = read_table(start.pairs, schema.PAIRS)
    targets = student.targets
    if objective.feeds == "pairs":
        _check_pairs(objective, start, pairs)
        # Pairs may be mined on labelled cases: the offline form of MAPO.
        paired = set(pairs["case_id"])
        members = [case for case in cases.split("pool", "labelled") if case.case_id in paired]
        if targets:
            # A term on the pool learns from images without pairs too.
            unpaired = [case for case in cases.split("pool") if case.case_id not in paired]
            members = sorted([*members, *unpaired], key=lambda case: case.case)
    else:
        members = cases.split("pool")
    # Labelled cases on which offsets are fitted afterwards are kept from training.
    held_out = unseen_labelled(start.base) if student.offsets == "held_out" else set()
    members = [case for case in members if case.case_id not in held_out]
    probability = objective.needs_probability or any(target.soft for target in targets)
    if probability or targets:
        check_proposals(start, members, [target.proposal for target in targets])
    members, kept = _split_groups(start, members, set(pairs["case_id"]))
    # A loss without a reference needs no pass of the base, which is a pass per image and flip.
    references = objective.needs_reference or bool(student.anchor and student.anchor.kl)
    # Loaded anew: training changes the policy in place.
    reference = Segmenter(start.base.load(start.compute.device), start.base.architecture, start.compute)

    def batches(of: list[Case], noise: float) -> PoolBatches:
        return PoolBatches(
            start.data,
            pairs,
            of,
            reference,
            start.training,
            start.augmentation,
            # Without the name of the student: arms with the same cases draw the same images.
            seed_of(start.seed, "student"),
            references=references,
            probability=probability,
            votes=objective.needs_votes,
            targets=targets,
            noise=noise,
        )

    # Without noise: on held-out images, student and base are compared on the same image.
    return batches(members, objective.image_noise), batches(kept, 0.0) if kept else None


def _check_pairs(objective: PoolObjective, start: Start, pairs: pl.DataFrame) -> None:
    if not len(pairs):
        raise BadInput(
            f"{start.pairs}: student '{start.name}' needs pairs and pair set '{start.student.pairs}' has none; see "
            f"{start.pairs.with_suffix('.drops.json')} for the reasons, and lower the thresholds of the pair set"
        )
    if objective.needs_p_correct and pairs["p_correct"].null_count():
        raise BadInput(
            f"{start.pairs}: student '{start.name}' needs calibrated pairs, and {pairs['p_correct'].null_count()} of "
            f"{len(pairs)} have no p_correct; see audit/summary.json for why, or give the link a number as `e`"
        )


def check_proposals(start: Start, members: Sequence[Case], names: Sequence[str]) -> None:
    """Raise `BadInput` if a pool case has no proposals, or if a name is that of no proposal."""
    proposals = start.data.proposals
    if not members:
        raise BadInput(
            f"{start.data.cases.folder}: student '{start.name}' learns from the pool, found no case in split 'pool'; "
            "change `splits`"
        )
    proposed = set(proposals.case_ids())
    if without := [case.case_id for case in members if case.case_id not in proposed]:
        raise BadInput(
            f"{proposals.folder}: student '{start.name}' learns from proposals of the pool, and {len(without)} pool "
            f"cases have none (first: '{without[0]}'); add 'pool' to propose.splits"
        )
    for name in names:
        if name != MEAN:
            proposals.slot(name)  # raises for a name that no proposal has


def _split_groups(start: Start, members: list[Case], paired: set[str]) -> tuple[list[Case], list[Case]]:
    """Cases to train on, and cases that are kept from training: none for a student without `stopping`.

    Groups that are kept have pairs (`paired`), if the student learns from pairs: `patience` is measured on pairs.
    """
    stopping = start.student.stopping
    if stopping is None:
        return members, []
    wanted = paired if start.student.objective.feeds == "pairs" else {case.case_id for case in members}
    groups = sorted({case.group for case in members if case.case_id in wanted})
    count = max(1, round(stopping.held_out * len(groups)))
    # At least one group must remain to train on.
    if count >= len(groups):
        raise BadInput(
            f"student '{start.name}': stopping needs pool groups to keep from training, and there are {len(groups)}; "
            "mine more pairs, or remove `stopping`"
        )
    # Images of one patient are not independent, so a group is kept as a whole.
    chosen = {groups[i] for i in numpy_generator(start.seed, "held_out").permutation(len(groups))[:count]}
    return [case for case in members if case.group not in chosen], [case for case in members if case.group in chosen]
