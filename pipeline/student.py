"""Training a student on a pair set: one forward pass per image serves all its pairs; the base is the reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor, nn

from pipeline import schema
from pipeline.arm import Student, Training
from pipeline.augmentation import Augmentation, LabelledBatches
from pipeline.base import train_supervised
from pipeline.dataset import CaseStore, ProposalStore
from pipeline.errors import BadInput
from pipeline.losses import disagreement_region
from pipeline.objectives.objective import LabelledBatch, PairBatch, Row
from pipeline.pair_batches import PairBatches, drift
from pipeline.recipe import Base, Compute
from pipeline.seeding import numpy_generator, seed_of
from pipeline.segmentation_loss import dice_ce
from pipeline.segmenter import Model, save_weights
from pipeline.store import read_table, write_json, write_manifest
from pipeline.training import Trained, optimise, validation_dice

RECORD = "student.json"
PROBE = 32
"""Pool cases on which a trained student is compared with its base."""


def train_student(
    name: str,
    student: Student,
    cases: CaseStore,
    proposals: ProposalStore,
    pairs_file: Path,
    base: Model,
    training: Training,
    base_knobs: Base,
    augmentation: Augmentation,
    compute: Compute,
    seed: int,
    out: Path,
    history: Path,
) -> None:
    """Train one student from the base and write its weights (`last`, `best`, `step_N` of the last fifth), record and
    history. Raises `BadInput` where the pair set has no pairs but the objective needs them."""
    torch.set_num_threads(compute.threads)
    objective = student.objective
    summary: dict[str, Any] = {}
    if objective.feeds == "truth":
        trained = _full(objective, cases, base, base_knobs, augmentation, compute, seed)
        summary = {"labelled": len(cases.split("labelled")) + len(cases.split("pool"))}
    else:
        trained, summary = _train(
            name, student, cases, proposals, pairs_file, base, training, augmentation, compute, seed
        )
    out.mkdir(parents=True, exist_ok=True)
    base.architecture.save(out)
    network = base.architecture.build(0)
    late = {f"step_{step:06d}": state for step, state in trained.late.items()}
    for title, state in {"last": trained.last, "best": trained.best, **late}.items():
        network.load_state_dict(state)
        save_weights(network, out / f"{title}.safetensors")
    record = {
        "name": name,
        "pairs": student.pairs,
        "objective": objective.model_dump(mode="json"),
        "anchor": student.anchor and student.anchor.model_dump(mode="json"),
        "best_step": trained.best_step,
        "late": sorted(late),
        "steps": trained.history[-1]["step"],
        **summary,
    }
    write_json(out / RECORD, record)
    write_manifest(out, (student, training))
    history.parent.mkdir(parents=True, exist_ok=True)
    _history(trained).write_csv(history)


def _history(trained: Trained) -> pl.DataFrame:
    frame = pl.DataFrame(trained.history, infer_schema_length=None)
    empty = [name for name in HISTORY if name not in frame.columns]
    return frame.with_columns(pl.lit(None, pl.Float64).alias(name) for name in empty).select(
        pl.col("step").cast(pl.Int64), *(pl.col(name).cast(pl.Float64) for name in HISTORY[1:])
    )


HISTORY = (
    "step",
    "loss",
    "supervised",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "disagreement",
    "kl_inside",
    "kl_outside",
    "volume_ratio",
    "validation_dice",
)
"""Columns of `history/NAME.csv`, one row per evaluation; averages since the last one, empty where they do not apply."""


def _train(
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
    pool: PairBatches | None = None
    bound: Any = objective
    if objective.feeds == "pairs":
        pairs = read_table(pairs_file, schema.PAIRS)
        if not len(pairs):
            raise BadInput(
                f"{pairs_file}: student '{name}' needs pairs and pair set '{student.pairs}' has none; see "
                f"{pairs_file.with_suffix('.drops.json')} for the reasons, and lower its thresholds"
            )
        pool = PairBatches(
            cases,
            proposals,
            pairs,
            architecture,
            base.load(),
            training,
            augmentation,
            compute,
            seed_of(seed, "student"),
        )
        bound = objective.bind(pool.statistics())
        draws = pool.draws()
        crops = numpy_generator(seed, "student", "crops")
    last: dict[str, PairBatch] = {}

    def supervised_term() -> Tensor:
        images, truth = (part.to(compute.device) for part in next(labelled_batches))
        with compute.autocast():
            logits = policy(images)
        return dice_ce(logits, truth)

    def step_loss(step: int) -> tuple[Tensor, Row]:
        if pool is None:
            images, truth = (part.to(compute.device) for part in next(labelled_batches))
            with compute.autocast():
                logits = policy(images)
            return objective(LabelledBatch(logits, truth))
        batch = pool.batch(next(draws), policy, crops)
        loss, numbers = bound(batch)
        last["batch"] = batch
        if student.anchor is not None and student.anchor.supervised:
            term = supervised_term()
            loss = loss + student.anchor.supervised * term
            numbers = {**numbers, "supervised": float(term.detach())}
        return loss, numbers

    validation = cases.split("validation")
    images = [cases.image(case) for case in validation]
    truths = [cases.label(case) for case in validation]

    def evaluate(network: nn.Module) -> Row:
        row: Row = {}
        if last:
            batch = last.pop("batch")
            with torch.no_grad():
                row = {**drift(batch), **bound.diagnose(batch)}
        dice = validation_dice(network, images, truths, architecture.window, architecture.classes, compute)
        return {**row, "validation_dice": dice}

    trained = optimise(policy, step_loss, evaluate, training.optimisation, train_mode=False)
    summary = dict(bound.summary())
    if pool is not None:
        summary |= {"pairs_mined": len(pool.pairs), "images": len(pool.paired), **_probe(pool, policy)}
    return trained, summary


def _probe(pool: PairBatches, policy: nn.Module) -> dict[str, float | None]:
    """Median base margin on D, and the share of D on which the student predicts another class than the base."""
    margins, flipped, total = [], 0, 0
    crops = numpy_generator(pool.seed, "probe")
    for case in pool.paired[:PROBE]:
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


def _full(
    objective: Any,
    cases: CaseStore,
    base: Model,
    base_knobs: Base,
    augmentation: Augmentation,
    compute: Compute,
    seed: int,
) -> Trained:
    pool = cases.split("pool")
    without = [case.case_id for case in pool if not case.has_label]
    if without:
        raise BadInput(
            f"{cases.folder}: objective 'full' needs the truth of the pool; {len(without)} of {len(pool)} pool cases "
            f"have no label (first: '{without[0]}'); remove the student from params.yaml"
        )
    knobs = base_knobs.model_copy(update={"batch": objective.batch})
    torch.manual_seed(seed_of(seed, "full"))
    return train_supervised(
        cases,
        [*cases.split("labelled"), *pool],
        knobs,
        augmentation,
        compute,
        seed_of(seed, "full"),
        start=base.weights,
        optimisation=objective.optimisation,
    )
