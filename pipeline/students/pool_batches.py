"""Batches of pool images with all their pairs.

One forward pass of an image serves all pairs of the image. With `reference: cached`, the reference logits of images
that fit the window are kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn

from pipeline.errors import BadInput
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
from pipeline.store.tables import read_table
from pipeline.students.batch import PairStatistics, PoolBatch
from pipeline.students.pair_loss import disagreement_region

if TYPE_CHECKING:
    from pipeline.students.objectives.objective import PoolObjective
    from pipeline.students.start import Start
    from pipeline.students.student import Training

ERROR_RANGE = (0.02, 0.45)
"""Range to which error probabilities are clipped: never certain, and always below one half.

At one half, cDPO has no preference and rDPO divides by 0. Above one half, both reverse the pair.
"""

CasesAndFlips = list[tuple[Case, tuple[int, ...]]]
"""Cases of a step, each with the spatial axes along which the case is flipped."""


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


@dataclass
class PoolBatches:
    """Batches of pool images with all their pairs, flipped and cut to the window, with reference logits.

    `pool` has the images to draw from: the images with pairs, or all images if the objective needs no pairs (`pairs` is
    then empty). `probability` and `votes` ask for the parts `probability` and `voxel_e` of a batch. `noise` is the
    standard deviation of the noise on the images of the policy, in units of the normalised image.
    """

    data: Data
    pairs: pl.DataFrame
    pool: Sequence[Case]
    reference: Segmenter
    knobs: Training
    augmentation: Augmentation
    seed: int
    probability: bool = False
    votes: bool = False
    noise: float = 0.0
    cache: _Cache = field(init=False)

    def __post_init__(self) -> None:
        self.cases, self.proposals = self.data.cases, self.data.proposals
        self.architecture, self.compute = self.reference.architecture, self.reference.compute
        self.cache = _Cache(self.knobs.cache_gb * 2**30)
        self.spots: dict[tuple[int, ...], Spots] = {}
        self.slots: dict[str, list[tuple[int, int]]] = {}
        self.e: dict[str, list[float]] = {}
        columns = self.pairs.select("case_id", "chosen", "rejected", "p_correct").iter_rows()
        for case_id, chosen, rejected, p_correct in columns:
            # NaN is never read: a set with a pair that has no p_correct is not calibrated.
            self.slots.setdefault(case_id, []).append((chosen, rejected))
            self.e.setdefault(case_id, []).append(np.nan if p_correct is None else 1 - p_correct)
        # Flips alone: no voxel is interpolated, so masks, D and reference logits stay exact.
        self.views = self.augmentation.views()
        self.classes = tuple(self.cases.class_names)
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
            masks = self._masks(case, self._crop(case, crops))
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
            yield [(next(order), self.views[generator.integers(len(self.views))]) for _ in range(count)]

    def batch(
        self,
        drawn: CasesAndFlips,
        policy: nn.Module,
        crops: np.random.Generator,
        teacher: Average | None = None,
        step: int = 0,
        progress: float = 1.0,
    ) -> PoolBatch:
        """One forward pass of the policy on `drawn`: cases, and the axes along which each case is flipped.

        `crops` draws the places of crops. `teacher` gives the logits of the moving average on the clean images. `step`
        seeds the noise. `progress` is the share of the steps that are done.
        """
        images, references, known = [], [], []
        chosen: list[Tensor] = []
        rejected: list[Tensor] = []
        index, voxels, e, errors, probability = [], [], [], [], []
        window = self.architecture.window
        for position, (case, view) in enumerate(drawn):
            where = self._crop(case, crops)
            # Kept without flips, so that one entry of the cache serves every view.
            image, masks = self._image(case, where), self._masks(case, where)
            count = len(masks.chosen)

            # Flips come before padding: the padding lies behind the image in every view. The default binds this view.
            def placed(part: Tensor, value: float = 0.0, view: tuple[int, ...] = view) -> Tensor:
                return pad_to(flip(part, view, len(window)), window, value)

            known.append(placed(torch.ones((1, *image.shape[1:]), dtype=torch.bool))[0])
            image = placed(image)
            images.append(image)
            # Kept per view: the base predicts another mask for a flipped image. A crop hardly ever comes back.
            references.append(self._reference(image, None if where else (case.case, view)))
            # 255 keeps the padding out of D. A flip turns a left organ into a right organ, so sided classes swap.
            for masks_of, one in ((chosen, masks.chosen), (rejected, masks.rejected)):
                masks_of.append(self.augmentation.swap(placed(one, schema.UNKNOWN), view))
            index += [position] * count
            # Without the padding, which would make the normaliser `image` larger.
            voxels += [int(known[-1].sum())] * count
            e += self.e.get(case.case_id, [])
            if self.votes:
                errors.append(placed(self._errors(case, where)))
            if self.probability:
                probability.append(self.augmentation.swap_classes(placed(self._probability(case, where)), view))
        # Stacked on the CPU, except `references`: one transfer per part, not one per image.
        device = self.compute.device
        clean = torch.stack(images).to(device)
        batch = clean
        if self.noise:
            # From seed and step, on the CPU: equal on every device. Reference and teacher get the clean images.
            drawn_noise = torch.randn(clean.shape, generator=torch_generator(self.seed, "noise", step))
            batch = clean + self.noise * drawn_noise.to(clean)
        with self.compute.autocast():
            logits = policy(batch)
        return PoolBatch(
            logits=logits,
            reference=torch.stack(references).to(device),
            chosen=torch.cat(chosen).to(device),
            rejected=torch.cat(rejected).to(device),
            image=torch.tensor(index, dtype=torch.int64, device=device),
            voxels=torch.tensor(voxels, dtype=torch.int64, device=device),
            known=torch.stack(known).to(device),
            probability=torch.stack(probability).to(device) if self.probability else None,
            teacher=None if teacher is None else teacher.logits(clean, self.compute),
            e=torch.tensor(e, dtype=torch.float32, device=device).clamp(*ERROR_RANGE) if self.calibrated else None,
            voxel_e=torch.cat(errors).to(device) if self.votes else None,
            classes=self.classes,
            progress=progress,
            images=clean,
        )

    def _kept(self, what: str, case: Case, where: Where | None, make: Callable[[], Kept]) -> Kept:
        # A case larger than the window is read crop by crop: whole, the case would push all others out of the cache.
        return make() if where is not None else self.cache.get((what, case.case), make)

    def _image(self, case: Case, where: Where | None) -> Tensor:
        # A volume stays on disk, so only the box is read.
        def read() -> Tensor:
            return torch.from_numpy(self.cases.volume(case)[(slice(None), *(where or case.space))])

        return self._kept("image", case, where, read)

    def _masks(self, case: Case, where: Where | None) -> PairMasks:
        """Masks of all pairs of a case, or of a box of the case."""

        def read() -> PairMasks:
            pairs = self.slots.get(case.case_id, [])
            if not pairs:
                # Batches of images without pairs are concatenated too, and need the shape.
                none = torch.zeros((0, *(part.stop - part.start for part in where or case.space)), dtype=torch.uint8)
                return PairMasks(none, none)
            # One read for both masks: a chunk of the array may hold all proposals of a case.
            slots = [chosen for chosen, _ in pairs] + [rejected for _, rejected in pairs]
            return PairMasks(*torch.from_numpy(self.proposals.masks(case, slots, where)).tensor_split(2))

        return self._kept("masks", case, where, read)

    def _probability(self, case: Case, where: Where | None) -> Tensor:
        """Mean probability of the proposals, f32 `[class, *space]`."""

        def read() -> Tensor:
            return torch.from_numpy(self.proposals.probability(case, where)).contiguous()

        return self._kept("probability", case, where, read)

    def _errors(self, case: Case, where: Where | None) -> Tensor:
        """Error rate of every voxel f32 `[pair, *space]`, from the votes of the proposals, clipped to `ERROR_RANGE`.

        Of the proposals that vote for the class of chosen or for the class of rejected, the error rate is the share
        that votes for the class of rejected. Masks that several proposals share vote once.
        """

        def count() -> Tensor:
            masks = self._masks(case, where)
            every = torch.from_numpy(self.proposals.masks(case, self.proposals.distinct(case), where))
            shares = []
            for chosen, rejected in zip(*masks, strict=True):
                right, wrong = (every == chosen).sum(0), (every == rejected).sum(0)
                shares.append((wrong / (right + wrong).clamp(min=1)).clamp(*ERROR_RANGE))
            return torch.stack(shares)

        return self._kept("errors", case, where, count)

    def _crop(self, case: Case, crops: np.random.Generator) -> Where | None:
        """Box of a crop, at most as large as the window; None if the case fits the window.

        The crop lies around a voxel of the disagreement of one pair. A share `random_crops` of the crops, and all crops
        of a case without a disagreement, lie anywhere.
        """
        window = self.architecture.window
        if fits(case.shape, window):
            return None
        pairs = self.slots.get(case.case_id, [])
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
                case.shape, lambda where: region(*self.proposals.masks(case, pair, where))
            )
        return self.spots[(case.case, *pair)]

    def _reference(self, image: Tensor, key: Hashable | None) -> Tensor:
        """Logits f32 `[output, *space]` of the frozen base; `key` None is never kept."""

        @torch.no_grad()
        def forward() -> Tensor:
            # One image at a time, and float32: kept and recomputed logits are equal in every bit.
            # The logits stay on the device, so kept logits need no transfer.
            with self.compute.autocast():
                return self.reference.network(image[None].to(self.compute.device))[0].float()

        if key is None or self.knobs.reference == "recomputed":
            return forward()
        return self.cache.get(("reference", key), forward)


def pool_and_held_out(objective: PoolObjective, start: Start) -> tuple[PoolBatches, PoolBatches | None]:
    """Batches of the images to train on, and batches of the images that are kept from training for stopping.

    Without stopping, no image is kept from training and the second value is None. Raises `BadInput` if pairs, their
    calibration, proposals or groups are missing and the student needs them.
    """
    cases, student = start.data.cases, start.student
    pairs = read_table(start.pairs, schema.PAIRS)
    if objective.feeds == "pairs":
        _check_pairs(objective, start, pairs)
        # Pairs may be mined on labelled cases: the offline form of MAPO.
        paired = set(pairs["case_id"])
        members = [case for case in cases.split("pool", "labelled") if case.case_id in paired]
    else:
        members = cases.split("pool")
    probability = objective.needs_probability or bool(student.anchor and student.anchor.distill)
    if probability:
        _check_proposals(start, members)
    members, kept = _split_groups(start, members)
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
            probability=probability,
            votes=objective.needs_votes,
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


def _check_proposals(start: Start, members: list[Case]) -> None:
    proposed = set(start.data.proposals.case_ids())
    if without := [case.case_id for case in members if case.case_id not in proposed]:
        raise BadInput(
            f"{start.data.proposals.folder}: student '{start.name}' learns the mean of the proposals, and "
            f"{len(without)} pool cases have none (first: '{without[0]}'); add 'pool' to propose.splits"
        )


def _split_groups(start: Start, members: list[Case]) -> tuple[list[Case], list[Case]]:
    """Cases to train on, and cases that are kept from training: none for a student without `stopping`."""
    stopping = start.student.stopping
    if stopping is None:
        return members, []
    groups = sorted({case.group for case in members})
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
