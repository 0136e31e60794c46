"""The pool cases that a student learns from: which they are, checked before the first step, and their batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import polars as pl

from pipeline.errors import BadInput
from pipeline.knobs import MEAN
from pipeline.seeding import numpy_generator, seed_of
from pipeline.segmenter.models import unseen_labelled
from pipeline.segmenter.segmenter import Segmenter
from pipeline.store import schema
from pipeline.store.cases import Case
from pipeline.store.tables import read_table
from pipeline.students.pool_batches import PoolBatches

if TYPE_CHECKING:
    from pipeline.students.objectives.objective import PoolObjective
    from pipeline.students.start import Start


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
