"""How often the audit's 95 % intervals cover planted errors: `python -m benchmarks.audit_coverage [SEEDS]`.

A seed is a validation set of its own, drawn anew, and judges with their own noise; they go through the stages judge and
panel and are audited as any others. What the interval has to cover is the expectation over all patients: the planted
rate itself where all cases have the same, else the mean of `SyntheticScores.error_rates`, which knows it before any
noise is drawn.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from pipeline.audit.audit import Audit
from pipeline.audit.judges import audit_judge, validation_scores
from pipeline.audit.pair_sets import audit_pairs, try_pairs, voxel_shares
from pipeline.compute import Compute
from pipeline.execution import Execution, Runtime
from pipeline.judges.judge import Evidence
from pipeline.judges.kinds.synthetic import Synthetic, SyntheticScores
from pipeline.judges.panel import build_panel
from pipeline.judges.score import JudgeFiles, judge
from pipeline.measures.overlap import disagreement, first_equal
from pipeline.pairs.mine import PairSet
from pipeline.seeding import numpy_generator
from pipeline.store import schema
from pipeline.store.arrays import create_array, open_array
from pipeline.store.cases import CaseStore
from pipeline.store.manifest import write_json, write_manifest
from pipeline.store.proposals import Data, ProposalStore
from pipeline.store.tables import scan_table, write_table

PATIENTS = 25
CASES = 2
"""Of a patient; they share how wrong the proposals are."""
SLOTS = 6
EDGE = 24
RUNTIME = Runtime(Compute(), 0, Execution(scheduler="synchronous", workers=1, progress="none"))

JUDGES = {
    "flip": Synthetic(kind="synthetic", flip=0.2),
    "flip_size": Synthetic(kind="synthetic", flip=0.2, size_bias=0.3),
    "flip_large": Synthetic(kind="synthetic", flip=0.4, large_above=0.5),
    "gaussian": Synthetic(kind="synthetic", gaussian=0.1),
    "size_bias": Synthetic(kind="synthetic", size_bias=0.3),
}


ALL = "all"
"""Instead of a strategy: all pairs of distinct proposals, as a judge is audited."""


class Measure(NamedTuple):
    """One measure of one judge, of the pairs that a strategy mines or of `ALL`."""

    judge: str
    strategy: str
    name: str


MEASURES = (
    Measure("flip", ALL, "pair_error"),
    Measure("flip", "top_bottom", "noise_rate"),
    Measure("flip", "top_bottom", "volume_bias"),
    *(Measure("flip_size", "top_bottom", name) for name in ("noise_rate", "weighted_noise", "noise_difference")),
    Measure("flip_size", "top_bottom", "volume_bias"),
    Measure("flip_large", "top_bottom", "noise_rate"),
    Measure("flip_large", "top_bottom", "weighted_noise"),
    Measure("flip_large", "top_bottom", "noise_difference"),
    Measure("gaussian", ALL, "pair_error"),
    Measure("gaussian", "random", "noise_rate"),
    Measure("size_bias", ALL, "pair_error"),
    Measure("size_bias", "random", "noise_rate"),
    Measure("size_bias", "top_bottom", "volume_bias"),
)


@dataclass(frozen=True)
class Population:
    """The validation sets of all seeds, one after the other, seen by all judges."""

    cases: CaseStore
    proposals: ProposalStore
    panel: pl.DataFrame

    def of_seed(self, seed: int) -> pl.DataFrame:
        """Panel rows of one validation set."""
        rows = PATIENTS * CASES * SLOTS
        return self.panel[seed * rows : (seed + 1) * rows]


@contextlib.contextmanager
def drawn_and_judged(seeds: int, judges: Sequence[str]) -> Iterator[Population]:
    """Validation sets with the scores of these judges, in a folder that is deleted afterwards."""
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        drawn = [_ellipses(seed) for seed in range(seeds)]
        labels, masks = (np.concatenate(part) for part in zip(*drawn, strict=True))
        cases, proposals = _cases(Path("cases"), labels), _proposals(Path("proposals"), masks)
        # In memory: tens of thousands of reads of single masks would be most of the time.
        vars(cases)["_labels"], vars(proposals)["_masks"] = labels, masks
        for judge_name in judges:
            files = JudgeFiles(Path("models") / judge_name, Path("scores") / f"{judge_name}.parquet")
            judge(judge_name, JUDGES[judge_name], Data(cases, proposals), proposals, files, RUNTIME)
        build_panel(cases, proposals, Path("scores"), judges, Path("panel.parquet"))
        panel = scan_table(Path("panel.parquet"), schema.panel(judges)).collect()
        yield Population(cases, proposals, panel)


def _ellipses(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Truth u8 `[case, *space]` and proposals u8 `[case, proposal, *space]`: ellipses moved, stretched and turned."""
    draw = numpy_generator("audit_coverage", seed)
    count = PATIENTS * CASES

    def of_patients(low: float, high: float) -> np.ndarray:
        return np.repeat(draw.uniform(low, high, PATIENTS), CASES)[:, None]

    difficulty, size = of_patients(0.2, 1.0), of_patients(4.0, 6.5)
    centre = (EDGE - 1) / 2 + draw.uniform(-2, 2, (2, count, 1))
    half = size * np.exp(0.15 * draw.standard_normal((2, count, 1)))
    # The truth, and then the proposals.
    wrong = difficulty * np.append(np.zeros(1), np.ones(SLOTS))
    centre = centre + 1.2 * wrong * draw.standard_normal((2, count, 1 + SLOTS))
    half = half * np.exp(0.2 * wrong * draw.standard_normal((2, count, 1 + SLOTS)))
    axis = np.arange(EDGE)
    y, x = ((axis - at[..., None]) / length[..., None] for at, length in zip(centre, half, strict=True))
    inside = (y[..., :, None] ** 2 + x[..., None, :] ** 2 < 1).astype(np.uint8)
    return inside[:, 0], inside[:, 1:]


def _case_ids(count: int) -> list[str]:
    return [f"case_{case:06d}" for case in range(count)]


def _cases(folder: Path, labels: np.ndarray) -> CaseStore:
    count = len(labels)
    unknown = ("spacing_mm", "original_spacing_mm", "affine", "orientation", "crop", "site")
    shape = [[EDGE, EDGE]] * count
    table = pl.DataFrame(
        {
            "case_id": _case_ids(count),
            "case": range(count),
            "group": [f"patient_{case // CASES:06d}" for case in range(count)],
            "split": ["validation"] * count,
            "has_label": [True] * count,
            "shape": shape,
            "original_shape": shape,
            **{column: [None] * count for column in unknown},
            "sources": [["drawn"]] * count,
            "sha256": [["0" * 64]] * count,
        },
        schema_overrides=schema.CASES.columns,
    )
    write_table(table, schema.CASES, folder / "cases.parquet", "benchmark")
    write_json(folder / "cases.json", {"class_names": ["background", "object"], "channel_names": ["grey"]})
    write_manifest(folder, "benchmark")
    return CaseStore(folder)


def _proposals(folder: Path, masks: np.ndarray) -> ProposalStore:
    count = len(masks)
    differ = np.stack([disagreement(block) for block in masks])
    create_array(folder, schema.DISAGREEMENT, differ.shape, PATIENTS * CASES)
    open_array(folder, schema.DISAGREEMENT, "r+")[...] = differ
    foreground = masks.sum((2, 3), dtype=np.int64)
    shared = (masks & masks[:, :1]).sum((2, 3), dtype=np.int64)
    first = np.stack([first_equal(block) for block in masks])
    slot = np.tile(np.arange(SLOTS), count)
    table = pl.DataFrame(
        {
            "case_id": np.repeat(_case_ids(count), SLOTS),
            "proposal": slot,
            "sampler": ["base" if s == 0 else "drawn" for s in slot],
            "setting": slot.astype(str),
            "voxels": np.stack([EDGE**2 - foreground, foreground], 2).reshape(-1, 2),
            "dice_to_base": (2 * shared / (foreground + foreground[:, :1])).ravel(),
            "duplicate_of": pl.Series(first.ravel()).zip_with(pl.Series(first.ravel() < slot), pl.Series([None])),
        }
    )
    write_table(table, schema.PROPOSALS, folder / "proposals.parquet", "benchmark")
    write_manifest(folder, "benchmark")
    return ProposalStore(folder)


# ---- what is planted --------------------------------------------------------------------------------------------


def planted(population: Population, measures: Sequence[Measure], n_cases: int | None = None) -> dict[Measure, float]:
    """The expectation of every measure over the patients of all seeds, before any noise is drawn.

    `n_cases`: over so many cases only.
    """
    judges = sorted({measure.judge for measure in measures})
    of_judge = {name: _of_cases(JUDGES[name], population, n_cases) for name in judges}
    return {measure: _expected(measure, of_judge[measure.judge]) for measure in measures}


class Expected(NamedTuple):
    """Of each case, f64 `[case]`; NaN where a case has none."""

    all_pairs: np.ndarray
    """P(a pair whose masks differ in true Dice is in the wrong order), all pairs alike."""
    random: np.ndarray
    """The same for one pair of distinct masks drawn at random; masks of equal Dice count one half."""
    top_bottom: np.ndarray
    """The same for top over bottom, by the scores before they are turned around."""
    volume_bias: np.ndarray
    """2 (V - W) / (V + W) of top and bottom."""
    disagreement: np.ndarray
    """|D| of top and bottom, voxels."""


def _of_cases(knobs: Synthetic, population: Population, n_cases: int | None) -> Expected:
    noisy, unturned = SyntheticScores(knobs, 0), SyntheticScores(knobs.model_copy(update={"flip": 0.0}), 0)
    cases = population.cases.all[:n_cases]
    found = np.full((len(cases), len(Expected._fields)), np.nan)
    for row, case in enumerate(cases):
        evidence = Evidence(population.cases, population.proposals, case, research=True)
        distinct = np.flatnonzero(evidence.originals == np.arange(SLOTS))
        if len(distinct) < 2:
            continue
        rate = noisy.error_rates(evidence)
        of_pairs = rate[np.ix_(distinct, distinct)][np.triu_indices(len(distinct), 1)]
        if (known := ~np.isnan(of_pairs)).any():
            found[row, 0] = of_pairs[known].mean()
        found[row, 1] = np.nan_to_num(of_pairs, nan=0.5).mean()
        score = unturned.score(evidence)[distinct]
        order = np.argsort(score)
        (bottom, top), apart = distinct[order[[0, -1]]], np.diff(score[order])
        if min(apart[0], apart[-1]) > 0:  # ties are not mined
            chosen, rejected = evidence.masks[top], evidence.masks[bottom]
            volume, other = chosen.sum(dtype=np.int64), rejected.sum(dtype=np.int64)
            bias = (1 - 2 * knobs.flip) * 2 * (volume - other) / (volume + other)
            found[row, 2:] = np.nan_to_num(rate[top, bottom], nan=0.5), bias, (chosen != rejected).sum()
    return Expected(*found.T)


def _expected(measure: Measure, of: Expected) -> float:
    """Mean over patients of the mean over their cases; the weighted ones are ratios of sums over all cases."""
    if measure.name in ("weighted_noise", "noise_difference"):
        known = ~np.isnan(of.top_bottom)
        rate, weight = of.top_bottom[known], of.disagreement[known]
        weighted = float((rate * weight).sum() / weight.sum())
        return weighted if measure.name == "weighted_noise" else weighted - float(rate.mean())
    of_pairs = {ALL: of.all_pairs, "random": of.random, "top_bottom": of.top_bottom}[measure.strategy]
    of_patients = (of.volume_bias if measure.name == "volume_bias" else of_pairs).reshape(-1, CASES)
    return float(np.nanmean(of_patients[~np.isnan(of_patients).all(1)], axis=1).mean())


# ---- what is found ----------------------------------------------------------------------------------------------


def audited(
    population: Population, seed: int, knobs: Audit, measures: Sequence[Measure]
) -> dict[Measure, tuple[float, float]]:
    """The interval of every measure on one validation set."""
    panel, stores = population.of_seed(seed), (population.cases, population.proposals)
    tried = {
        (name, strategy): try_pairs(
            PairSet.model_validate({"judge": name, "strategy": {"kind": strategy}}), panel.lazy(), stores[1], seed
        )
        for name, strategy in {measure[:2] for measure in measures if measure.strategy != ALL}
    }
    voxels = voxel_shares(tried.values(), *stores)
    rows = {which: audit_pairs(table, voxels, knobs.bootstrap, seed) for which, table in tried.items()}
    judges = sorted({measure.judge for measure in measures if measure.strategy == ALL})
    validation = validation_scores(panel, judges)
    for name in judges:
        row = audit_judge(name, validation, knobs.folds, knobs.failure_below, knobs.bootstrap, seed)
        rows[name, ALL] = row
    found = {}
    for measure in measures:
        low, high = (rows[measure.judge, measure.strategy][f"{measure.name}_{end}"] for end in ("low", "high"))
        assert isinstance(low, float)
        assert isinstance(high, float)
        found[measure] = (low, high)
    return found


def coverage(
    seeds: int, knobs: Audit, measures: Sequence[Measure] = MEASURES, n_cases: int | None = None
) -> pl.DataFrame:
    """Per measure: what was planted, how many intervals cover it, lie below or above it, and their mean width.

    `n_cases`: as for `planted`.
    """
    with drawn_and_judged(seeds, sorted({measure.judge for measure in measures})) as population:
        truth = planted(population, measures, n_cases)
        found = [audited(population, seed, knobs, measures) for seed in range(seeds)]
    rows = []
    for measure, value in truth.items():
        low, high = np.array([one[measure] for one in found]).T
        below, above = int((high < value).sum()), int((low > value).sum())
        width = float((high - low).mean())
        rows.append((*measure, value, seeds, seeds - below - above, below, above, width))
    columns = ["judge", "pairs", "measure", "planted", "seeds", "covered", "below", "above", "width"]
    return pl.DataFrame(rows, schema=columns, orient="row")


if __name__ == "__main__":
    table = coverage(int(sys.argv[1]) if len(sys.argv) > 1 else 100, Audit(bootstrap=2000))
    with pl.Config(tbl_rows=-1, tbl_cols=-1, tbl_width_chars=140, tbl_hide_dataframe_shape=True, float_precision=4):
        print(table)
