"""Training a student step by step, on pool images or labelled batches: anchors, label-free stopping, averages."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.compute import Compute
from pipeline.errors import BadInput
from pipeline.seeding import numpy_generator, seed_of
from pipeline.segmenter.augmentation import Augmentation
from pipeline.segmenter.batches import LabelledBatches
from pipeline.segmenter.heads import all_heads
from pipeline.segmenter.loop import Average, TrainedWeights, interpolated, optimise, validation_dice
from pipeline.segmenter.losses import deep_dice_ce, soft_cross_entropy
from pipeline.segmenter.weights import Model
from pipeline.store import schema
from pipeline.store.cases import Case, CaseStore
from pipeline.store.proposals import ProposalStore
from pipeline.store.tables import read_table
from pipeline.students.objectives.mapo import Mapo
from pipeline.students.objectives.mapo_pairs import OnlinePairs
from pipeline.students.objectives.objective import HistoryRow, LabelledBatch, PoolBatch
from pipeline.students.pool_batches import PoolBatches, drift, kl_outside
from pipeline.students.student import Student, Training
from pipeline.students.watching import PROBE, moved_on_disagreement, stop_rule, validation_measures, watched


def train_on_pool(
    name: str,
    student: Student,
    cases: CaseStore,
    proposals: ProposalStore,
    pairs_file: Path,
    base: Model,
    training: Training,
    augmentation: Augmentation,
    compute: Compute,
    seed: int,
) -> tuple[TrainedWeights, dict[str, Any]]:
    """Weights and history of a student, and numbers for its record; the base is where it starts and its reference.

    Raises `BadInput` where the pair set has no pairs, or no calibration, but the objective needs it.
    """
    objective: Any = student.objective
    architecture = base.architecture
    policy = base.load()
    labelled = cases.split("labelled")
    anchor = student.anchor
    if not labelled and (objective.feeds == "labelled" or (anchor and anchor.supervised)):
        raise BadInput(
            f"{cases.folder}: student '{name}' learns from labels, and no case is in split 'labelled'; give it some in "
            "`splits`, or an objective on pairs or the pool with an anchor that has supervised: 0"
        )
    pool, held_out = None, None
    if objective.feeds in ("pairs", "pool"):
        pool, held_out = _pool(name, student, cases, proposals, pairs_file, base, training, augmentation, compute, seed)
    draws = None if pool is None else pool.draws()
    online = None
    if isinstance(objective, Mapo):
        online = OnlinePairs(objective, base.load(), policy, architecture, compute, seed_of(seed, "online"))
    crops = numpy_generator(seed, "student", "crops")
    decay = objective.teacher_decay or student.average
    average = None if decay is None else Average(policy, decay)
    teacher = average if objective.teacher_decay else None
    last: dict[str, PoolBatch] = {}
    labelled_images, labelled_truths = (
        [cases.image_for(case, architecture.window) for case in labelled],
        [cases.label_for(case, architecture.window) for case in labelled],
    )

    def batches_of_labels(what: str) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(
            LabelledBatches(
                labelled_images,
                labelled_truths,
                architecture.window,
                augmentation,
                training.labelled,
                seed_of(seed, "student", what),
            )
        )

    # Arms share the labelled batches and the pool's order: they differ in the objective alone.
    labelled_batches = batches_of_labels("labelled")

    def labelled_batch(source: Iterator[tuple[Tensor, Tensor]] = labelled_batches) -> LabelledBatch:
        images, truth = (part.to(compute.device) for part in next(source))
        with compute.autocast():
            return LabelledBatch(all_heads(policy, images), truth, images)

    def first_batches() -> Iterator[PoolBatch]:
        """Batches of as many images as `PROBE`, with the pairs that the base makes of them online."""
        assert online is not None
        probe_draws = None if pool is None else pool.draws()
        probe_crops, probe_labels = numpy_generator(seed, "probe"), batches_of_labels("probe")
        for turn in range(-(-PROBE // (training.labelled if pool is None else training.images))):
            with torch.no_grad():
                if pool is None or probe_draws is None:
                    yield online.of_labelled(labelled_batch(probe_labels), -turn)[0]
                else:
                    yield online.of_pool(pool.batch(next(probe_draws), policy, probe_crops), -turn)[0]

    bound: Any = objective
    if online is not None:
        bound = objective.bind(online.statistics(first_batches()))
    elif pool is not None:
        bound = objective.bind(pool.statistics())

    def step_loss(step: int) -> tuple[Tensor, HistoryRow]:
        if online is not None and step > 1:
            online.follow()
        if pool is None or draws is None:
            labels = labelled_batch()
            if online is None:
                return objective(labels)
            batch, made = online.of_labelled(labels, step)
            last["batch"] = batch
            supervised = deep_dice_ce(labels.heads, labels.labels)
            loss, numbers = bound(batch)
            row = {**made, **numbers, "supervised": float(supervised.detach())}
            return supervised + objective.weight * loss, row
        progress = step / training.optimisation.steps
        batch = pool.batch(next(draws), policy, crops, teacher, step, progress)
        made = {}
        if online is not None:
            batch, made = online.of_pool(batch, step)
        loss, numbers = bound(batch)
        if online is not None:
            loss, numbers = objective.weight * loss, {**made, **numbers}
        last["batch"] = batch
        if anchor is not None:
            for term, weight in (("supervised", anchor.supervised), ("kl", anchor.kl), ("distill", anchor.distill)):
                if not weight:
                    continue
                if term == "supervised":
                    labels = labelled_batch()
                    value = deep_dice_ce(labels.heads, labels.labels)
                elif term == "kl":
                    value = kl_outside(batch)
                else:
                    assert batch.probability is not None
                    assert batch.known is not None
                    value = soft_cross_entropy(batch.logits, batch.probability, batch.known)
                loss = loss + weight * value
                numbers = {**numbers, term: float(value.detach())}
        return loss, numbers

    validation = cases.split("validation")
    images = [cases.image_for(case, architecture.window) for case in validation]
    truths = [cases.label_for(case, architecture.window) for case in validation]
    spacings = [case.spacing_mm for case in validation]
    measure = partial(validation_measures, window=architecture.window, classes=architecture.classes, compute=compute)

    def dice_of(network: nn.Module) -> float:
        return validation_dice(network, images, truths, architecture.window, architecture.classes, compute)

    def evaluate(network: nn.Module) -> HistoryRow:
        row: HistoryRow = {}
        if last:
            batch = last.pop("batch")
            with torch.no_grad():
                row = {**drift(batch), **bound.diagnose(batch)}
        if held_out is not None:
            row |= watched(held_out, network, bound)
        if labelled:
            seen = labelled_images, labelled_truths, architecture.window, architecture.classes
            row["labelled_dice"] = validation_dice(network, *seen, compute)
        return {**row, **measure(network, images, truths, spacings)}

    trained = optimise(
        policy,
        step_loss,
        evaluate,
        training.optimisation,
        train_mode=False,
        average=average,
        stop=stop_rule(student.stopping),
    )
    summary: dict[str, Any] = {**bound.summary(), "stopped": trained.stopped, "interpolated": None}
    if student.interpolate is not None:
        summary["interpolated"] = interpolated(trained, base.load(), student.interpolate, dice_of)
    if pool is not None:
        summary |= {"pairs_mined": len(pool.pairs), "images": len(pool.pool)}
        if objective.feeds == "pairs":
            policy.load_state_dict(trained.last)
            summary |= moved_on_disagreement(pool, policy.to(compute.device).eval())
    return trained, summary


def _pool(
    name: str,
    student: Student,
    cases: CaseStore,
    proposals: ProposalStore,
    pairs_file: Path,
    base: Model,
    training: Training,
    augmentation: Augmentation,
    compute: Compute,
    seed: int,
) -> tuple[PoolBatches, PoolBatches | None]:
    """The images to train on, and those kept for label-free stopping."""
    objective = student.objective
    pairs = read_table(pairs_file, schema.PAIRS)
    if objective.feeds == "pairs":
        if not len(pairs):
            raise BadInput(
                f"{pairs_file}: student '{name}' needs pairs and pair set '{student.pairs}' has none; see "
                f"{pairs_file.with_suffix('.drops.json')} for the reasons, and lower its thresholds"
            )
        if objective.needs_p_correct and pairs["p_correct"].null_count():
            raise BadInput(
                f"{pairs_file}: student '{name}' needs calibrated pairs, and {pairs['p_correct'].null_count()} of "
                f"{len(pairs)} have no p_correct; see audit/summary.json for why, or give the link a number as `e`"
            )
        paired = set(pairs["case_id"])
        members = [case for case in cases.split("pool", "labelled") if case.case_id in paired]
    else:
        members = cases.split("pool")
    anchor = student.anchor
    probability = objective.needs_probability or bool(anchor and anchor.distill)
    proposed = set(proposals.case_ids()) if probability else set()
    if probability and (without := [case.case_id for case in members if case.case_id not in proposed]):
        raise BadInput(
            f"{proposals.folder}: student '{name}' learns the mean of the proposals, and {len(without)} pool cases "
            f"have none (first: '{without[0]}'); add 'pool' to propose.splits"
        )
    kept: list[Case] = []
    if student.stopping is not None:
        groups = sorted({case.group for case in members})
        count = max(1, round(student.stopping.held_out * len(groups)))
        if count >= len(groups):
            raise BadInput(
                f"student '{name}': stopping needs pool groups to keep from training, and there are {len(groups)}; "
                "mine more pairs, or remove `stopping`"
            )
        # Images of one patient are not independent: a group is kept whole.
        chosen = {groups[i] for i in numpy_generator(seed, "held_out").permutation(len(groups))[:count]}
        kept = [case for case in members if case.group in chosen]
        members = [case for case in members if case.group not in chosen]

    def batches(of: list[Case], noise: float) -> PoolBatches:
        return PoolBatches(
            cases,
            proposals,
            pairs,
            of,
            base.architecture,
            base.load(),
            training,
            augmentation,
            compute,
            seed_of(seed, "student"),
            probability=probability,
            votes=objective.needs_votes,
            noise=noise,
        )

    # What is watched is compared with the base on the clean image.
    return batches(members, objective.image_noise), batches(kept, 0.0) if kept else None
