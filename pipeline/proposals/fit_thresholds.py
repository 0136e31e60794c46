"""Thresholds of sampler `mean`, fitted on labelled cases by models that have not seen the cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from pipeline.proposals.samplers.mean import Mean
from pipeline.segmenter.offsets import HALF, THRESHOLDS, chosen_thresholds
from pipeline.store import schema
from pipeline.store.cases import Case
from pipeline.store.manifest import write_json
from pipeline.store.tables import write_table

if TYPE_CHECKING:
    from pipeline.proposals.samplers import Sampler

FITTED_FILE = "fitted.json"
"""File beside the proposals with the fitted thresholds of every sampler `mean`."""

TRIED_FILE = "thresholds.parquet"
"""File beside the out-of-fold proposals with the Dice of every threshold that was tried."""

Fit = tuple[float, ...]
"""One threshold per foreground class."""


@dataclass(frozen=True)
class FittedThresholds:
    """Thresholds by the name of the sampler, for cases of the pool and for labelled cases by fold.

    A labelled case gets the thresholds that were fitted without its fold. So a learned judge sees proposals of labelled
    cases that are no better than those of the pool.
    """

    of_all: Mapping[str, Fit] = field(default_factory=dict)
    of_fold: Mapping[str, Mapping[str, Fit]] = field(default_factory=dict)  # by fold, then by sampler
    fold_of: Mapping[str, str] = field(default_factory=dict)  # by labelled case
    notes: Mapping[str, str] = field(default_factory=dict)  # reason why nothing was fitted, by sampler
    patients: int = 0

    def of(self, case_id: str) -> Mapping[str, Fit]:
        """Thresholds by sampler for a case whose models are those of its fold, if it has one."""
        return self.of_fold.get(self.fold_of.get(case_id, ""), self.of_all)

    def of_pool(self) -> FittedThresholds:
        """The thresholds for proposals whose models are the base and its members, also those of labelled cases."""
        return replace(self, fold_of={})

    def save(self, folder: Path) -> None:
        """Write `fitted.json`: by sampler the thresholds, those of the folds, the patients, and a note or null."""
        content = {
            name: {
                "thresholds": list(thresholds),
                "folds": {fold: list(fits[name]) for fold, fits in self.of_fold.items()},
                "patients": self.patients,
                "note": self.notes.get(name),
            }
            for name, thresholds in self.of_all.items()
        }
        write_json(folder / FITTED_FILE, content)


def samplers_to_fit(samplers: Mapping[str, Sampler]) -> dict[str, Mean]:
    """Samplers of kind `mean` whose threshold is fitted and not given."""
    return {name: one for name, one in samplers.items() if isinstance(one, Mean) and one.fitted is True}


def not_fitted(samplers: Mapping[str, Sampler], classes: int, note: str) -> FittedThresholds:
    """Thresholds of one half for every sampler, with the reason."""
    names = samplers_to_fit(samplers)
    return FittedThresholds({name: (HALF,) * (classes - 1) for name in names}, notes=dict.fromkeys(names, note))


def fit_thresholds(
    tried: pl.DataFrame,
    samplers: Mapping[str, Sampler],
    fold_of: Mapping[str, str],
    lacking: Mapping[str, Sequence[str]],
) -> FittedThresholds:
    """Thresholds from the Dice of labelled cases (`schema.THRESHOLDS`), for the pool and for every fold.

    `fold_of` is the fold of a labelled case. The thresholds of a fold are fitted on the cases of all other folds.
    `lacking` names the members that the folds lack, by sampler.
    """
    of_all: dict[str, Fit] = {}
    of_fold: dict[str, dict[str, Fit]] = {fold: {} for fold in sorted(set(fold_of.values()))}
    notes: dict[str, str] = {}
    patients = tried["group"].n_unique()
    for name in samplers_to_fit(samplers):
        dice, cases = tried_by(tried, name)
        group, fold = cases["group"].to_list(), np.array([fold_of[case_id] for case_id in cases["case_id"]])
        choice = chosen_thresholds(dice, group)
        of_all[name] = choice.thresholds
        for one in of_fold:
            outside = np.flatnonzero(fold != one)
            # Too few patients are too few for every fold. Otherwise a fold is fitted on the patients that it leaves.
            found = chosen_thresholds(dice[outside], [group[at] for at in outside], fewest=2)
            of_fold[one][name] = found.thresholds if choice.note is None else choice.thresholds
        if choice.note is not None:
            notes[name] = choice.note
        elif lacking.get(name):
            notes[name] = (
                f"the folds lack the members {list(lacking[name])}, so the threshold was fitted on a mean of fewer "
                "models than the pool gets"
            )
    return FittedThresholds(of_all, of_fold, fold_of, notes, patients)


def tried_by(tried: pl.DataFrame, sampler: str) -> tuple[np.ndarray, pl.DataFrame]:
    """Dice f64 `[case, foreground class, threshold]` of a sampler, and one row of `tried` per case, in order."""
    rows = tried.filter(pl.col("sampler") == sampler).sort("case_id", "class", "threshold")
    cases = rows.gather_every(rows["class"].n_unique() * len(THRESHOLDS))
    return rows["dice"].to_numpy().reshape(len(cases), -1, len(THRESHOLDS)), cases


def rows_of(case: Case, sampler: str, dice: np.ndarray) -> list[dict[str, Any]]:
    """Rows of `schema.THRESHOLDS` of one case from its Dice f64 `[foreground class, threshold]`."""
    return [
        {"sampler": sampler, "case_id": case.case_id, "group": case.group, "class": label, "threshold": t, "dice": d}
        for label, of_class in enumerate(dice.tolist(), 1)
        for t, d in zip(THRESHOLDS, of_class, strict=True)
    ]


def write_tried(tried: pl.DataFrame, out: Path, block: object) -> None:
    """Write `thresholds.parquet`."""
    write_table(tried, schema.THRESHOLDS, out / TRIED_FILE, block)
