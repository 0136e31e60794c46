"""Cases with proposals for tests of judges, and scores as `pipeline.judges.judge.judge` would have them made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pipeline.dataset import CaseStore, ProposalStore
from pipeline.judges.judge import Evidence, Given, LabelFree
from pipeline.recipe import Compute
from pipeline.seeding import numpy_generator, seed_of
from tests.builders import case_store, no_proposals, proposal_store


@dataclass
class Scene:
    """Cases with proposals, and a table that scores a proposal by minus its foreground voxels."""

    cases: CaseStore
    proposals: ProposalStore
    table: Path
    out_of_fold: ProposalStore | None = None


def scene(
    folder: Path,
    masks: Sequence[np.ndarray],
    probabilities: Sequence[np.ndarray] | None = None,
    classes: int = 2,
    labels: Sequence[np.ndarray | None] | None = None,
    splits: Sequence[str] | None = None,
) -> Scene:
    """Cases `c0`, ... of the pool unless `splits` says otherwise; without `labels` the truth is noise."""
    space = masks[0].shape[1:]
    if labels is None:
        labels = noisy_labels(0, len(masks), space, classes)
    cases = case_store(folder / "cases", labels, splits, classes=classes, space=space)
    proposals = proposal_store(folder / "proposals", masks, probabilities, classes)
    voxels = pl.col("voxels").list.slice(1).list.sum()
    proposals.table.select("case_id", "proposal", score=-voxels).write_csv(folder / "table.csv")
    return Scene(cases, proposals, folder / "table.csv")


def noisy_labels(seed: int, count: int, space: tuple[int, ...], classes: int) -> list[np.ndarray]:
    return [numpy_generator(seed, row).integers(classes, size=space).astype(np.uint8) for row in range(count)]


def evidence_of(knobs: Any, at: Scene, row: int = 0) -> Evidence:
    return Evidence(seen_by(knobs, at), at.proposals, at.cases.all[row], knobs.research)


def seen_by(knobs: Any, at: Scene) -> CaseStore:
    return at.cases if knobs.research else LabelFree(at.cases.folder)


def folds_of(at: Scene) -> ProposalStore:
    """Out-of-fold proposals, or none, as of a base without folds."""
    return at.out_of_fold or no_proposals(at.table.parent / "no_folds")


def given(cases: CaseStore, proposals: ProposalStore, folder: Path) -> Given:
    """What a judge may learn from beside a base without folds; its models go below `folder`."""
    return _given(cases, proposals, no_proposals(folder / "no_folds"), folder / "models", 0)


def _given(cases: CaseStore, proposals: ProposalStore, folds: ProposalStore, models: Path, seed: int) -> Given:
    models.mkdir(parents=True, exist_ok=True)
    return Given(cases, proposals, folds, models, Compute(), seed)


def scorer_of(knobs: Any, at: Scene, seed: int = 0) -> Any:
    # A folder per knobs and seed, as a workspace is: what another judge has learned there would be taken for its own.
    models = at.table.parent / "models" / f"{seed_of(repr(knobs), seed):x}"
    return knobs.ready(_given(seen_by(knobs, at), at.proposals, folds_of(at), models, seed))


def scores_of(knobs: Any, at: Scene, row: int = 0, seed: int = 0) -> np.ndarray:
    return scorer_of(knobs, at, seed).score(evidence_of(knobs, at, row))
