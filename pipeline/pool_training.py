"""Training a student step by step, on pool images or labelled batches: anchors, label-free stopping, averages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline import schema
from pipeline.arm import Stopping, Student, Training
from pipeline.augmentation import Augmentation, LabelledBatches
from pipeline.dataset import Case, CaseStore, ProposalStore
from pipeline.errors import BadInput
from pipeline.losses import disagreement_region
from pipeline.objectives.objective import LabelledBatch, PoolBatch, Row
from pipeline.pool_batches import PoolBatches, drift, kl_outside
from pipeline.recipe import Compute
from pipeline.seeding import numpy_generator, seed_of
from pipeline.segmentation_loss import dice_ce, soft_cross_entropy
from pipeline.segmenter import Model
from pipeline.store import read_table
from pipeline.training import Average, Trained, interpolated, optimise, validation_dice

PROBE = 32
"""Pool cases on which a trained student is compared with its base."""


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
) -> tuple[Trained, dict[str, Any]]:
    """Weights and history of a student, and numbers for its record; the base is where it starts and its reference.

    Raises `BadInput` where the pair set has no pairs, or no calibration, but the objective needs it.
    """
    objective: Any = student.objective
    architecture = base.architecture
    policy = base.load()
    labelled = cases.split("labelled")
    # Arms share the labelled batches and the pool's order: they differ in the objective alone.
    labelled_batches = iter(
        LabelledBatches(
            [cases.image(case) for case in labelled],
            [cases.label(case) for case in labelled],
            architecture.window,
            augmentation,
            training.labelled,
            seed_of(seed, "student", "labelled"),
        )
    )
    pool, held_out = None, None
    if objective.feeds in ("pairs", "pool"):
        pool, held_out = _pool(name, student, cases, proposals, pairs_file, base, training, augmentation, compute, seed)
    bound: Any = objective if pool is None else objective.bind(pool.statistics())
    draws = None if pool is None else pool.draws()
    crops = numpy_generator(seed, "student", "crops")
    decay = objective.teacher_decay or student.average
    average = None if decay is None else Average(policy, decay)
    teacher = average if objective.teacher_decay else None
    anchor = student.anchor
    last: dict[str, PoolBatch] = {}

    def labelled_batch() -> LabelledBatch:
        images, truth = (part.to(compute.device) for part in next(labelled_batches))
        with compute.autocast():
            return LabelledBatch(policy(images), truth)

    def step_loss(step: int) -> tuple[Tensor, Row]:
        if pool is None or draws is None:
            return objective(labelled_batch())
        progress = step / training.optimisation.steps
        batch = pool.batch(next(draws), policy, crops, teacher, step, progress)
        loss, numbers = bound(batch)
        last["batch"] = batch
        if anchor is not None:
            for term, weight in (("supervised", anchor.supervised), ("kl", anchor.kl), ("distill", anchor.distill)):
                if not weight:
                    continue
                if term == "supervised":
                    labels = labelled_batch()
                    value = dice_ce(labels.logits, labels.labels)
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
    images = [cases.image(case) for case in validation]
    truths = [cases.label(case) for case in validation]

    def dice_of(network: nn.Module) -> float:
        return validation_dice(network, images, truths, architecture.window, architecture.classes, compute)

    def evaluate(network: nn.Module) -> Row:
        row: Row = {}
        if last:
            batch = last.pop("batch")
            with torch.no_grad():
                row = {**drift(batch), **bound.diagnose(batch)}
        if held_out is not None:
            row |= watched(held_out, network, bound)
        return {**row, "validation_dice": dice_of(network)}

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
            summary |= _probe(pool, policy.to(compute.device).eval())
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
        members = [case for case in cases.split("pool") if case.case_id in paired]
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


def watched(pool: PoolBatches, network: nn.Module, bound: Any) -> Row:
    """What label-free stopping looks at: means over held-out images, unflipped, of drift and of reward accuracy."""
    sums: dict[str, list[float]] = {}
    crops = numpy_generator(pool.seed, "watched")
    for case in pool.pool:
        with torch.no_grad():
            batch = pool.batch([(case, ())], network, crops)
            row = drift(batch)
            if len(batch.image):
                row["accuracy"] = bound(batch)[1].get("rewards/accuracies")
        for key, value in row.items():
            if value is not None:
                sums.setdefault(f"held_out/{key}", []).append(value)
    return {key: sum(values) / len(values) for key, values in sums.items()}


def stop_rule(stopping: Stopping | None) -> Any:
    """A function of a history row that gives the reason to stop, or None; it remembers the best reward accuracy."""
    best, waited = -1.0, 0

    def rule(row: Row) -> str | None:
        nonlocal best, waited
        if stopping is None:
            return None
        kl, ratio = row.get("held_out/kl_outside"), row.get("held_out/volume_ratio")
        accuracy = row.get("held_out/accuracy")
        if stopping.kl is not None and kl is not None and kl > stopping.kl:
            return f"KL outside the disagreement regions {kl:.3g} above {stopping.kl:g}"
        if stopping.volume_ratio is not None and ratio is not None:
            low, high = stopping.volume_ratio
            if not low <= ratio <= high:
                return f"volume ratio {ratio:.3g} outside {low:g} to {high:g}"
        if stopping.patience is not None and accuracy is not None:
            best, waited = (accuracy, 0) if accuracy > best else (best, waited + 1)
            if waited >= stopping.patience:
                return f"reward accuracy on held-out pairs not above {best:.3g} for {waited} evaluations"
        return None

    return rule


def _probe(pool: PoolBatches, policy: nn.Module) -> dict[str, float | None]:
    """Median base margin on D, and the share of D on which the student predicts another class than the base."""
    margins, flipped, total = [], 0, 0
    crops = numpy_generator(pool.seed, "probe")
    for case in pool.pool[:PROBE]:
        with torch.no_grad():
            batch = pool.batch([(case, ())], policy, crops)
        region = disagreement_region(batch.chosen, batch.rejected).any(0)
        reference, logits = (
            torch.cat([torch.zeros_like(x), x], dim=1)[0] if x.shape[1] == 1 else x[0]
            for x in (batch.reference, batch.logits)
        )
        top = reference.float().topk(2, dim=0).values
        margins.append((top[0] - top[1])[region])
        flipped += int((reference.argmax(0) != logits.argmax(0))[region].sum())
        total += int(region.sum())
    return {
        "base_margin_on_disagreement": float(torch.cat(margins).median()),
        "flipped_share": flipped / max(1, total),
    }
