"""Models of sampler `regions`, fitted on labelled cases by proposals of models that have not seen the cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from pipeline.measures.folds import folds_by_group
from pipeline.measures.intervals import group_means, mean_over_groups
from pipeline.measures.overlap import dice, dice_to
from pipeline.proposals.regions import Options, RegionModel, Regions, composed, standardised
from pipeline.proposals.samplers.regions import RegionsSampler
from pipeline.segmenter.offsets import FEWEST
from pipeline.store.arrays import Slabs
from pipeline.store.cases import Case, CaseStore
from pipeline.store.manifest import write_json
from pipeline.store.schema import UNKNOWN

if TYPE_CHECKING:
    from pipeline.proposals.samplers import Sampler

REGIONS_FILE = "regions.json"
"""File beside the proposals with the gain of every sampler `regions` on labelled cases, and its model."""
RIDGES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Penalties to choose from: multiples of half the sum of the squared weights, added to the mean log-loss of a case."""
_PARTS = 10  # parts into which the labelled patients are split to choose the penalty

SEEN = {
    "sampler": pl.String(),
    "case_id": pl.String(),
    "group": pl.String(),
    "fixed": pl.Float64(),  # Dice of the fixed proposal, mean over the foreground classes
    "truth": pl.List(pl.Int64()),  # voxels of every foreground class
    "region": pl.List(pl.Int64()),  # by option
    "label": pl.List(pl.Int64()),
    "size": pl.List(pl.Int64()),  # known voxels
    "right": pl.List(pl.Int64()),  # voxels of the option's class
    "values": pl.List(pl.Float64()),  # features, option by option
}
"""Columns of the labelled cases to fit on, one row per sampler and case."""


@dataclass(frozen=True)
class LabelledRegions:
    """Options of a labelled case, with the truth."""

    case_id: str
    group: str
    fixed: float
    truth: np.ndarray  # i64 [foreground class]
    options: Options
    right: np.ndarray  # i64 [option]

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> LabelledRegions:
        """The case of a row of `SEEN`."""
        region, label, size, right, truth = (np.array(row[k], np.int64) for k in (*_BY_OPTION, "truth"))
        values = np.array(row["values"], np.float64).reshape(len(region), -1 if len(region) else 0)
        return cls(row["case_id"], row["group"], row["fixed"], truth, Options(region, label, size, values), right)

    @property
    def share(self) -> np.ndarray:
        """True share of every option, f64 `[option]`."""
        return self.right / self.options.size

    @property
    def weight(self) -> np.ndarray:
        """Weight of every option, f64 `[option]`. A voxel counts equally within a case, and a case counts 1."""
        return self.options.size / max(self.options.size.sum(), 1)

    def dice(self, model: RegionModel) -> float:
        """Dice of the mask that the model composes, mean over the foreground classes."""
        share = model.share(self.options.values) if len(self.right) else np.zeros(0)
        labels = composed(self.options, share, model.outside).labels()
        chosen = labels[self.options.region] == self.options.label
        counts = [
            (self.right[mine].sum(), self.options.size[mine].sum() + truth)
            for mine, truth in ((chosen & (self.options.label == c), of_c) for c, of_c in enumerate(self.truth, 1))
        ]
        return float(np.mean([dice(right, total) for right, total in counts]))


_BY_OPTION = ("region", "label", "size", "right")


def row_of(
    case: Case, name: str, label: np.ndarray, fixed: np.ndarray, seen: tuple[Regions, Options], classes: int
) -> dict[str, Any]:
    """Row of `SEEN` from the label u8 `[*space]`, the fixed proposal u8 `[*space]` and the regions of a case.

    Voxels whose label is unknown do not count. Regions without a known voxel are left out.
    """
    regions, options = seen
    right = np.stack([regions.total(label == one) for one in range(classes)])[options.label, options.region]
    size = regions.total(label != UNKNOWN)[options.region]
    kept = size > 0
    columns = (options.region[kept], options.label[kept], size[kept].astype(np.int64), right[kept].astype(np.int64))
    return {
        "sampler": name,
        "case_id": case.case_id,
        "group": case.group,
        "fixed": float(dice_to(label, fixed[None], classes)[0]),
        "truth": [int(np.count_nonzero(label == one)) for one in range(1, classes)],
        **{key: values.tolist() for key, values in zip(_BY_OPTION, columns, strict=True)},
        "values": options.values[kept].ravel().tolist(),
    }


@dataclass(frozen=True)
class Gain:
    """What composing gains over the fixed proposal on labelled patients that the model has not seen."""

    dice: float
    error: float  # standard error over patients
    patients: int
    composes: bool
    note: str | None  # reason why the fixed proposal is taken


@dataclass(frozen=True)
class FittedRegions:
    """Models by the name of the sampler, for cases of the pool and for labelled cases by fold.

    A labelled case gets the model that was fitted without its fold. Whether a sampler composes is decided once, for all
    cases, from the gain of these models on the labelled cases.
    """

    of_all: Mapping[str, RegionModel] = field(default_factory=dict)  # of the samplers that compose
    of_fold: Mapping[str, Mapping[str, RegionModel]] = field(default_factory=dict)  # by fold, then by sampler
    fold_of: Mapping[str, str] = field(default_factory=dict)  # by labelled case
    gains: Mapping[str, Gain] = field(default_factory=dict)  # by sampler

    def of(self, case_id: str) -> Mapping[str, RegionModel]:
        """Models by sampler for a case whose models are those of its fold, if it has one."""
        return self.of_fold.get(self.fold_of.get(case_id, ""), self.of_all)

    def of_pool(self) -> FittedRegions:
        """The models for proposals whose models are the base and its members, also those of labelled cases."""
        return replace(self, fold_of={})

    def save(self, folder: Path) -> None:
        """Write `regions.json`, if there is a sampler `regions`: its gain, and its weights if it composes."""
        if not self.gains:
            return
        content = {
            name: {
                "gain": gain.dice,
                "standard_error": gain.error,
                "patients": gain.patients,
                "composes": gain.composes,
                "note": gain.note,
                "model": vars(self.of_all[name]) if gain.composes else None,
            }
            for name, gain in self.gains.items()
        }
        write_json(folder / REGIONS_FILE, content)


def regions_to_fit(samplers: Mapping[str, Sampler]) -> dict[str, RegionsSampler]:
    """Samplers of kind `regions`."""
    return {name: one for name, one in samplers.items() if isinstance(one, RegionsSampler)}


def whole_cases_needed(cases: CaseStore, slots: int) -> str | None:
    """Why nothing is composed if cases are so large that their proposals are drawn in bands; None for smaller cases."""
    if Slabs.of(cases.padded, slots + len(cases.class_names)) is None:
        return None
    coarser = "preprocess.resize" if len(cases.padded) == 2 else "preprocess.spacing"
    return (
        f"composing needs whole cases, and cases padded to {cases.padded} voxels with {slots} proposals are drawn in "
        f"bands, so nothing is composed; fewer samplers or a coarser {coarser} would let it compose"
    )


def nothing_composed(samplers: Mapping[str, Sampler], note: str) -> FittedRegions:
    """No model for any sampler, with the reason."""
    return FittedRegions(gains={name: Gain(0.0, 0.0, 0, False, note) for name in regions_to_fit(samplers)})


def fit_regions(
    seen: pl.DataFrame,
    samplers: Mapping[str, RegionsSampler],
    voters: Mapping[str, Sequence[str]],
    fold_of: Mapping[str, str],
    seed: int,
) -> FittedRegions:
    """Models from labelled cases (`SEEN`), for the pool and for every fold, of the samplers that gain by composing.

    A sampler composes if the mean gain over the fixed proposal is above 0 and at least one standard error, paired over
    patients, where every labelled case is composed by the model that was fitted without its fold. `voters` are the
    proposals that vote, by sampler. `fold_of` is the fold of a labelled case.
    """
    folds = sorted(set(fold_of.values()))
    of_all: dict[str, RegionModel] = {}
    of_fold: dict[str, dict[str, RegionModel]] = {fold: {} for fold in folds}
    gains: dict[str, Gain] = {}
    for name, sampler in samplers.items():
        rows = seen.filter(pl.col("sampler") == name).sort("case_id").iter_rows(named=True)
        cases = [LabelledRegions.of(row) for row in rows]
        by_fold = {fold: [case for case in cases if fold_of[case.case_id] != fold] for fold in folds}
        learns = [case for case in cases if len(case.right)]
        patients = len({case.group for case in cases})
        if len(folds) < 2:
            note = (
                "expected labelled cases that two folds left out, so that a fold is composed by what was fitted on "
                f"another, found one fold: the mask is that of '{sampler.fixed}'"
            )
            gains[name] = Gain(0.0, 0.0, patients, False, note)
            continue
        if patients < FEWEST or not learns or not all(any(len(c.right) for c in kept) for kept in by_fold.values()):
            note = (
                f"expected at least {FEWEST} labelled patients, with votes for the foreground, to fit on, found "
                f"{patients}: the mask is that of '{sampler.fixed}'"
            )
            gains[name] = Gain(0.0, 0.0, patients, False, note)
            continue
        models = {fold: fitted(kept, voters[name], seed) for fold, kept in by_fold.items()}
        gains[name] = _gain(cases, models, fold_of, sampler.fixed)
        if gains[name].composes:
            of_all[name] = fitted(cases, voters[name], seed)
            for fold, model in models.items():
                of_fold[fold][name] = model
    return FittedRegions(of_all, of_fold, fold_of, gains)


def _gain(
    cases: Sequence[LabelledRegions], models: Mapping[str, RegionModel], fold_of: Mapping[str, str], fixed: str
) -> Gain:
    gain = [case.dice(models[fold_of[case.case_id]]) - case.fixed for case in cases]
    means = group_means(gain, [case.group for case in cases])
    mean, error = float(means.mean()), float(means.std(ddof=1) / np.sqrt(len(means)))
    composes = mean > 0 and mean >= error
    note = (
        f"composing gains {mean:.4f} of Dice over '{fixed}' on labelled patients, less than the standard error of "
        f"{error:.4f}: the mask is that of '{fixed}'"
    )
    return Gain(mean, error, len(means), composes, None if composes else note)


def fitted(cases: Sequence[LabelledRegions], voters: Sequence[str], seed: int) -> RegionModel:
    """Model with the penalty of the least log-loss on patients that are left out. With one patient: the largest."""
    cases = [case for case in cases if len(case.right)]
    groups = [case.group for case in cases]
    ridge = max(RIDGES)
    if len(set(groups)) > 1:
        part = folds_by_group(groups, _PARTS, seed)
        tried = {}
        for penalty in sorted(RIDGES, reverse=True):
            losses, of_group = [], []
            for left_out in range(int(part.max()) + 1):
                model = _regression([c for c, p in zip(cases, part, strict=True) if p != left_out], voters, penalty)
                for case in (c for c, p in zip(cases, part, strict=True) if p == left_out):
                    losses.append(_log_loss(case, model.share(case.options.values)))
                    of_group.append(case.group)
            tried[penalty] = mean_over_groups(losses, of_group)
        ridge = min(tried, key=lambda penalty: tried[penalty])
    return _regression(cases, voters, ridge)


def _log_loss(case: LabelledRegions, found: np.ndarray) -> float:
    share, found = case.share, np.clip(found, 1e-6, 1 - 1e-6)
    return float(-(case.weight * (share * np.log(found) + (1 - share) * np.log1p(-found))).sum())


def _regression(cases: Sequence[LabelledRegions], voters: Sequence[str], ridge: float) -> RegionModel:
    """Model with the least mean log-loss over cases plus `ridge` / 2 |weights|^2. The intercept has no penalty."""
    from scipy.optimize import minimize
    from scipy.special import expit

    values = np.concatenate([case.options.values for case in cases])
    share = np.concatenate([case.share for case in cases])
    weight = np.concatenate([case.weight for case in cases]) / len(cases)
    mean = np.einsum("o,of->f", weight, values)
    spread = np.sqrt(np.einsum("o,of->f", weight, (values - mean) ** 2))
    spread[spread < 1e-9] = 0
    scaled = standardised(values, mean.tolist(), spread.tolist())

    def loss(found: np.ndarray) -> tuple[float, np.ndarray]:
        # einsum in place of BLAS: sums of BLAS may depend on the number of threads.
        odds = np.einsum("of,f->o", scaled, found[:-1]) + found[-1]
        slope = weight * (expit(odds) - share)
        penalty = ridge * np.append(found[:-1], 0)
        gradient = np.append(np.einsum("of,o->f", scaled, slope), slope.sum()) + penalty
        return float((weight * (np.logaddexp(0, odds) - share * odds)).sum() + (penalty * found).sum() / 2), gradient

    start = np.zeros(scaled.shape[1] + 1)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"gtol": 1e-7, "ftol": 0, "maxiter": 1000}).x
    outside = []
    for label, truth in enumerate(np.sum([case.truth for case in cases], axis=0), 1):
        inside = sum(int(case.right[case.options.label == label].sum()) for case in cases)
        outside.append(float(truth - inside) / max(inside, 1))
    weights = found[:-1].tolist()
    return RegionModel(
        tuple(voters), tuple(mean.tolist()), tuple(spread.tolist()), tuple(weights), float(found[-1]), tuple(outside)
    )
