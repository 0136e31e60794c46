"""Batches of pool images with all their pairs: one forward pass per image, reference logits from memory."""

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
from pipeline.segmenter.logits import predicted_classes
from pipeline.segmenter.loop import Average, HistoryRow
from pipeline.segmenter.segmenter import Segmenter
from pipeline.segmenter.sliding import pad_to
from pipeline.store import schema
from pipeline.store.cases import Case, Where, fits
from pipeline.store.proposals import Data
from pipeline.store.tables import read_table
from pipeline.students.batch import PairStatistics, PoolBatch
from pipeline.students.pair_loss import disagreement_region, kl_to_reference

if TYPE_CHECKING:
    from pipeline.students.objectives.objective import PoolObjective
    from pipeline.students.start import Start
    from pipeline.students.student import Training

ERROR_RANGE = (0.02, 0.45)
"""Bounds of error probabilities: no pair is trusted fully, and none is turned around."""

CasesAndFlips = list[tuple[Case, tuple[int, ...]]]
"""The cases of a step, each with its flips."""


class PairMasks(NamedTuple):
    """Chosen and rejected masks of the pairs of one image, u8 `[pair, *space]` each."""

    chosen: Tensor
    rejected: Tensor

    @property
    def nbytes(self) -> int:
        """Memory of both."""
        return self.chosen.nbytes + self.rejected.nbytes


Kept = TypeVar("Kept", Tensor, PairMasks)


class _Cache:
    """Values by key within a byte budget; the least recently used leave first."""

    def __init__(self, budget: float) -> None:
        self.budget, self.held, self.values = budget, 0, OrderedDict[Hashable, Any]()

    def get(self, key: Hashable, make: Callable[[], Kept]) -> Kept:
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
class PoolBatches:
    """Draws pool images with all their pairs, flipped and cut to the window, with reference logits.

    `pool` are the images to draw from: those with pairs, or all where the objective takes none (`pairs` is empty).
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
            self.slots.setdefault(case_id, []).append((chosen, rejected))
            self.e.setdefault(case_id, []).append(np.nan if p_correct is None else 1 - p_correct)
        self.views = self.augmentation.views()
        self.classes = tuple(self.cases.class_names)
        self.calibrated = len(self.pairs) > 0 and self.pairs["p_correct"].null_count() == 0

    def statistics(self) -> PairStatistics:
        """|D| and image size of every pair, in the order of the images."""
        crops = numpy_generator(self.seed, "statistics")
        size, voxels = [], []
        for case in self.pool:
            # As in training: of a case larger than the window, what a crop holds.
            masks = self._masks(case, self._crop(case, crops))
            if count := len(masks.chosen):
                size += disagreement_region(*masks).flatten(1).sum(1).tolist()
                voxels += [masks.chosen[0].numel()] * count
        return PairStatistics(np.array(size, np.int64), np.array(voxels, np.int64), self.architecture.dimensions)

    def draws(self) -> Iterator[CasesAndFlips]:
        """Cases and flips of each step: shuffled rounds over the pool."""
        generator = numpy_generator(self.seed, "pool")

        def rounds() -> Iterator[Case]:
            while True:
                for index in generator.permutation(len(self.pool)):
                    yield self.pool[index]

        order = rounds()
        while True:
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
        """One forward pass of the policy on the drawn images; noise, where there is any, depends on the step."""
        images, references, known = [], [], []
        chosen: list[Tensor] = []
        rejected: list[Tensor] = []
        index, voxels, e, errors, probability = [], [], [], [], []
        window = self.architecture.window
        for position, (case, view) in enumerate(drawn):
            where = self._crop(case, crops)
            image, masks = self._image(case, where), self._masks(case, where)
            count = len(masks.chosen)

            def placed(part: Tensor, value: float = 0.0, view: tuple[int, ...] = view) -> Tensor:
                return pad_to(flip(part, view, len(window)), window, value)

            known.append(placed(torch.ones((1, *image.shape[1:]), dtype=torch.bool))[0])
            image = placed(image)
            images.append(image)
            references.append(self._reference(image, None if where else (case.case, view)))
            for masks_of, one in ((chosen, masks.chosen), (rejected, masks.rejected)):
                masks_of.append(self.augmentation.swap(placed(one, schema.UNKNOWN), view))
            index += [position] * count
            voxels += [int(known[-1].sum())] * count
            e += self.e.get(case.case_id, [])
            if self.votes:
                errors.append(placed(self._errors(case, where)))
            if self.probability:
                probability.append(self.augmentation.swap_classes(placed(self._probability(case, where)), view))
        device = self.compute.device
        clean = torch.stack(images).to(device)
        batch = clean
        if self.noise:
            drawn_noise = torch.randn(clean.shape, generator=torch_generator(self.seed, "noise", step))
            batch = clean + self.noise * drawn_noise.to(clean)
        with self.compute.autocast():
            logits = policy(batch)
        return PoolBatch(
            logits,
            torch.stack(references).to(device),
            torch.cat(chosen).to(device),
            torch.cat(rejected).to(device),
            torch.tensor(index, dtype=torch.int64, device=device),
            torch.tensor(voxels, dtype=torch.int64, device=device),
            torch.stack(known).to(device),
            torch.stack(probability).to(device) if self.probability else None,
            None if teacher is None else teacher.logits(clean, self.compute),
            torch.tensor(e, dtype=torch.float32, device=device).clamp(*ERROR_RANGE) if self.calibrated else None,
            torch.cat(errors).to(device) if self.votes else None,
            self.classes,
            progress,
            clean,
        )

    # Of cases larger than the window only the crop is read, anew each time: whole cases would not stay in the cache.

    def _kept(self, what: str, case: Case, where: Where | None, make: Callable[[], Kept]) -> Kept:
        return make() if where is not None else self.cache.get((what, case.case), make)

    def _image(self, case: Case, where: Where | None) -> Tensor:
        def read() -> Tensor:
            return torch.from_numpy(self.cases.volume(case)[(slice(None), *(where or case.space))])

        return self._kept("image", case, where, read)

    def _masks(self, case: Case, where: Where | None) -> PairMasks:
        """Masks of the pairs of a case, or of a box of the case."""

        def read() -> PairMasks:
            pairs = self.slots.get(case.case_id, [])
            if not pairs:
                none = torch.zeros((0, *(part.stop - part.start for part in where or case.space)), dtype=torch.uint8)
                return PairMasks(none, none)
            # One read for both, since a chunk of the array may hold all proposals of a case.
            slots = [chosen for chosen, _ in pairs] + [rejected for _, rejected in pairs]
            return PairMasks(*torch.from_numpy(self.proposals.masks(case, slots, where)).tensor_split(2))

        return self._kept("masks", case, where, read)

    def _probability(self, case: Case, where: Where | None) -> Tensor:
        """f32 `[class, *space]`, the mean over the proposals."""

        def read() -> Tensor:
            return torch.from_numpy(self.proposals.probability(case, where)).contiguous()

        return self._kept("probability", case, where, read)

    def _errors(self, case: Case, where: Where | None) -> Tensor:
        """f32 `[pair, *space]`: among the votes for chosen's or rejected's class at a voxel, the share for rejected's.

        Votes are those of all proposals, each distinct mask once; clipped to `ERROR_RANGE`.
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
        """A window around a voxel of one pair's disagreement or, for some and without pairs, anywhere; None where the
        case fits."""
        window = self.architecture.window
        if fits(case.shape, window):
            return None
        pairs = self.slots.get(case.case_id, [])
        if pairs and crops.random() >= self.knobs.random_crops:
            centre = self._disagreement(case, pairs[int(crops.integers(len(pairs)))]).draw(crops)
            if centre is not None:
                return around(centre, case.shape, window)
        return anywhere(case.shape, window, crops)

    def _disagreement(self, case: Case, pair: tuple[int, int]) -> Spots:
        """The voxels on which a pair differs: counts per chunk, which are kept whatever the budget."""
        if (case.case, *pair) not in self.spots:
            self.spots[(case.case, *pair)] = Spots(
                case.shape, lambda where: region(*self.proposals.masks(case, pair, where))
            )
        return self.spots[(case.case, *pair)]

    def _reference(self, image: Tensor, key: Hashable | None) -> Tensor:
        @torch.no_grad()
        def forward() -> Tensor:
            with self.compute.autocast():
                return self.reference.network(image[None].to(self.compute.device))[0].float()

        if key is None or self.knobs.reference == "recomputed":
            return forward()
        return self.cache.get(("reference", key), forward)


def regions(batch: PoolBatch) -> tuple[Tensor, Tensor]:
    """bool `[image, *space]` twice: the union of the image's disagreement regions, and what is known outside it."""
    if batch.known is not None:
        known = batch.known.clone()
    else:
        known = torch.zeros(batch.logits[:, 0].shape, dtype=torch.bool, device=batch.logits.device)
    union = torch.zeros_like(known)
    for pair, image in enumerate(batch.image.tolist()):
        if batch.known is None:
            known[image] |= batch.chosen[pair] != schema.UNKNOWN
        union[image] |= disagreement_region(batch.chosen[pair], batch.rejected[pair])
    return union, known & ~union


def kl_outside(batch: PoolBatch) -> Tensor:
    """KL(policy || reference), mean over known voxels outside the image's disagreement regions, with gradient."""
    _, outside = regions(batch)
    kl = kl_to_reference(batch.logits, batch.reference)
    return (kl * outside).sum() / outside.sum().clamp(min=1)


def drift(batch: PoolBatch) -> HistoryRow:
    """KL to the reference inside and outside the union of D (null without D), and foreground volume ratio."""
    with torch.no_grad():
        logits = batch.logits.detach()
        kl = kl_to_reference(logits, batch.reference)
        union, outside = regions(batch)
        row: HistoryRow = {
            "kl_inside": float((kl * union).sum() / union.sum()) if union.any() else None,
            "kl_outside": float((kl * outside).sum() / outside.sum().clamp(min=1)),
        }
        volumes = [_foreground(x, union | outside) for x in (logits, batch.reference)]
        row["volume_ratio"] = volumes[0] / volumes[1] if volumes[1] else None
    return row


def _foreground(logits: Tensor, known: Tensor) -> float:
    return float(((predicted_classes(logits) > 0) & known).sum())


def pool_and_held_out(objective: PoolObjective, start: Start) -> tuple[PoolBatches, PoolBatches | None]:
    """The pool images to train on, and those that label-free stopping keeps from training.

    Raises `BadInput` where pairs, their calibration, proposals or groups are missing that the student needs.
    """
    cases, student = start.data.cases, start.student
    pairs = read_table(start.pairs, schema.PAIRS)
    if objective.feeds == "pairs":
        _check_pairs(objective, start, pairs)
        paired = set(pairs["case_id"])
        members = [case for case in cases.split("pool", "labelled") if case.case_id in paired]
    else:
        members = cases.split("pool")
    probability = objective.needs_probability or bool(student.anchor and student.anchor.distill)
    if probability:
        _check_proposals(start, members)
    members, kept = _split_groups(start, members)
    reference = Segmenter(start.base.load(start.compute.device), start.base.architecture, start.compute)

    def batches(of: list[Case], noise: float) -> PoolBatches:
        return PoolBatches(
            start.data,
            pairs,
            of,
            reference,
            start.training,
            start.augmentation,
            seed_of(start.seed, "student"),
            probability=probability,
            votes=objective.needs_votes,
            noise=noise,
        )

    # Held-out images are compared with the base on the clean image.
    return batches(members, objective.image_noise), batches(kept, 0.0) if kept else None


def _check_pairs(objective: PoolObjective, start: Start, pairs: pl.DataFrame) -> None:
    if not len(pairs):
        raise BadInput(
            f"{start.pairs}: student '{start.name}' needs pairs and pair set '{start.student.pairs}' has none; see "
            f"{start.pairs.with_suffix('.drops.json')} for the reasons, and lower its thresholds"
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
    """Cases to train on, and cases that are kept from training: none without label-free stopping."""
    stopping = start.student.stopping
    if stopping is None:
        return members, []
    groups = sorted({case.group for case in members})
    count = max(1, round(stopping.held_out * len(groups)))
    if count >= len(groups):
        raise BadInput(
            f"student '{start.name}': stopping needs pool groups to keep from training, and there are {len(groups)}; "
            "mine more pairs, or remove `stopping`"
        )
    # Images of one patient are not independent: a group is kept whole.
    chosen = {groups[i] for i in numpy_generator(start.seed, "held_out").permutation(len(groups))[:count]}
    return [case for case in members if case.group not in chosen], [case for case in members if case.group in chosen]
