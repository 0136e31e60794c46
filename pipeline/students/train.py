"""Stage `train`: one student, trained or made from the base without training, with its record and history."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import torch

from pipeline.segmenter.loop import HistoryRow, TrainedWeights
from pipeline.segmenter.models import Model
from pipeline.segmenter.program import copy_program
from pipeline.segmenter.seen import Seen
from pipeline.segmenter.student_record import StudentRecord
from pipeline.segmenter.weights import save_weights
from pipeline.store.manifest import sha256, write_manifest
from pipeline.students.start import Start

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
"""First columns of `history/NAME.csv`, which has one row per evaluation.

Numbers that every step gives are means since the previous evaluation. `kl_inside`, `kl_outside`, `volume_ratio`,
`rewards/chosen` and `rewards/rejected` are of the last batch alone, without strong views. Empty values do not apply.
Further columns depend on the student: terms of the anchor, classes (`disagreement/CLASS`, `push/CLASS`), online pairs
(`online/...`), held-out images (`held_out/...`), `consistency` and `pseudo_labelled`.
"""


def train_student(start: Start, out: Path, history: Path) -> None:
    """Train one student; write its weights and record to the folder `out`, and its history to the file `history`.

    The weights are `last`, `best`, and `step_N` of the last fifth of the evaluations. An arm without training has the
    weights of the base, or no weights if the arm takes a proposal. Raises `BadInput` if the data lack something that
    the arm needs.
    """
    torch.set_num_threads(start.compute.threads)
    student = start.student
    arm = student.objective.train(start)
    out.mkdir(parents=True, exist_ok=True)
    late = [f"step_{step:06d}" for step in sorted(arm.weights.late)] if student.objective.has_weights else []
    if student.objective.has_weights:
        _write_model(start, arm.weights, out)
    record = {
        "name": start.name,
        "pairs": student.pairs,
        "pairs_sha256": sha256(start.pairs) if student.objective.feeds == "pairs" else None,
        "objective": student.objective.model_dump(mode="json"),
        "anchor": student.anchor and student.anchor.model_dump(mode="json"),
        "best_step": arm.weights.best_step,
        "late": tuple(late),
        "steps": arm.weights.history[-1]["step"],
        "offsets": None,
        "slot": None,
    }
    StudentRecord.model_validate(record | arm.numbers).save(out)
    write_manifest(out, (student, start.training))
    history.parent.mkdir(parents=True, exist_ok=True)
    _history(arm.weights.history).write_csv(history)


def _write_model(start: Start, trained: TrainedWeights, out: Path) -> None:
    """Write the weights by role, and `network.json`, `input.json` and `seen.json` beside the weights."""
    architecture, cases = start.base.architecture, start.data.cases
    architecture.save(out)
    cases.write_input(out)
    # Validation chooses the best step of a training, and the offsets of a tuned threshold.
    Seen.of(start.base.seen_folder).also(cases, start.student.objective.learns_from, ("validation",)).save(out)
    late = {f"step_{step:06d}": state for step, state in trained.late.items()}
    network = None if architecture.program else architecture.build(0)
    for title, state in {"last": trained.last, "best": trained.best, **late}.items():
        if network is None:
            # A program has no state to save, so the file is copied.
            copy_program(start.base.weights, Model(out, title).weights)
        else:
            network.load_state_dict(state)
            save_weights(network, Model(out, title).weights)


def _history(rows: list[HistoryRow]) -> pl.DataFrame:
    further = sorted({name for row in rows for name in row} - set(HISTORY))
    columns = {name: [row.get(name) for row in rows] for name in (*HISTORY, *further)}
    types = {name: pl.Int64() if name == "step" else pl.Float64() for name in columns}
    return pl.DataFrame(columns, schema=types, strict=False)
