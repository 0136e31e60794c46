"""A student: trained, or made of the base without training, and written with its record and history."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import torch

from pipeline.compute import Compute
from pipeline.segmenter.augmentation import Augmentation
from pipeline.segmenter.knobs import RECORD
from pipeline.segmenter.loop import State, TrainedWeights
from pipeline.segmenter.program import copy_program
from pipeline.segmenter.seen import Seen
from pipeline.segmenter.weights import Model, save_weights
from pipeline.store.cases import CaseStore
from pipeline.store.manifest import write_json, write_manifest
from pipeline.store.proposals import ProposalStore
from pipeline.students.baselines import picked_slot, retrained, tuned_offsets
from pipeline.students.loop import train_on_pool
from pipeline.students.objectives import Objective
from pipeline.students.objectives.full import Full
from pipeline.students.objectives.objective import HistoryRow
from pipeline.students.objectives.proposal import Proposal
from pipeline.students.objectives.threshold import TunedThreshold
from pipeline.students.objectives.validation_labels import ValidationLabels
from pipeline.students.student import Student, Training

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
    "labelled_dice",
    "validation_assd",
    "validation_dice",
)
"""First columns of `history/NAME.csv`, one row per evaluation; averages since the last one, empty where they do not
apply. Further ones depend on the objective: anchors, per class (`disagreement/CLASS`, `push/CLASS`), `held_out/...`."""


def train_student(
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
    out: Path,
    history: Path,
) -> None:
    """Train one student from the base and write its weights (`last`, `best`, `step_N` of the last fifth), record and
    history. An arm without training has the base's weights, or none where it takes a proposal.

    Raises `BadInput` where the pair set has no pairs but the objective needs them, and where truth or proposals that
    an arm needs are missing.
    """
    torch.set_num_threads(compute.threads)
    objective = student.objective
    summary: dict[str, Any] = {"offsets": None, "slot": None}
    if isinstance(objective, Proposal):
        slot, title, dice = picked_slot(objective, cases, proposals)
        trained = _untrained({}, dice)
        summary |= {"slot": slot, "proposal": title}
    elif isinstance(objective, TunedThreshold):
        offsets, dice = tuned_offsets(objective, cases, base, compute)
        trained = _untrained(base.load().state_dict(), dice)
        summary |= {"offsets": list(offsets)}
    elif isinstance(objective, Full | ValidationLabels):
        trained = retrained(objective, cases, base, augmentation, compute, seed)
        summary |= {"labelled": len(cases.split("labelled")) + len(cases.split(objective.split))}
    else:
        trained, found = train_on_pool(
            name, student, cases, proposals, pairs_file, base, training, augmentation, compute, seed
        )
        summary |= found
    out.mkdir(parents=True, exist_ok=True)
    late = {f"step_{step:06d}": state for step, state in trained.late.items()}
    if isinstance(objective, Proposal):
        late = {}
    else:
        base.architecture.save(out)
        cases.write_input(out)
        Seen.of(base.folder).also(cases, learned_splits(objective), ("validation",)).save(out)
        network = None if base.architecture.program else base.architecture.build(0)
        for title, state in {"last": trained.last, "best": trained.best, **late}.items():
            if network is None:
                copy_program(base.weights, Model(out, title).weights)
            else:
                network.load_state_dict(state)
                save_weights(network, Model(out, title).weights)
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
    _history(trained.history).write_csv(history)


def learned_splits(objective: Objective) -> tuple[str, ...]:
    """Splits that the weights of a student follow from."""
    if isinstance(objective, Full | ValidationLabels):
        return "labelled", objective.split
    return {"pairs": ("labelled", "pool"), "pool": ("labelled", "pool"), "labelled": ("labelled",)}.get(
        objective.feeds, ()
    )


def _untrained(state: State, validation_dice: float) -> TrainedWeights:
    return TrainedWeights(state, state, {0: state}, {}, [{"step": 0, "validation_dice": validation_dice}])


def _history(rows: list[HistoryRow]) -> pl.DataFrame:
    further = sorted({name for row in rows for name in row} - set(HISTORY))
    columns = {name: [row.get(name) for row in rows] for name in (*HISTORY, *further)}
    types = {name: pl.Int64() if name == "step" else pl.Float64() for name in columns}
    return pl.DataFrame(columns, schema=types, strict=False)
