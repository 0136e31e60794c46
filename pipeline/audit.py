"""Judging the judges: how far each judge, and each way of mining, can be believed, on validation cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import polars as pl
from pydantic import Field

from pipeline import schema
from pipeline.bootstrap import Interval, interval, weighted_interval
from pipeline.calibration import Calibrated, Calibration, Curve, Isotonic, Tried, calibrate, knots
from pipeline.dataset import CaseStore, ProposalStore
from pipeline.knobs import Knobs
from pipeline.mining import PairSet, mine
from pipeline.overlap import region
from pipeline.ranking import best_fixed, kendall, pair_error, spearman, top_value
from pipeline.store import scan_table, write_json, write_table
from pipeline.strategies import NoPairs


class Audit(Knobs):
    """How judges are measured."""

    bootstrap: Annotated[int, Field(gt=0)] = 2000
    """Resamples of patients behind every interval."""
    folds: Annotated[int, Field(ge=2)] = 5
    """Folds by patient for choosing the best fixed sampler out of fold."""
    calibration: Calibration = Isotonic()
    """How the margin of a pair becomes P(its order is right)."""


_OF_CASES = ("spearman", "kendall", "pair_error", "lift", "headroom")


def audit_judge(name: str, panel: pl.DataFrame, knobs: Audit, seed: int) -> dict[str, object]:
    """One row of `AUDIT_JUDGES` from the validation rows of a panel. Duplicates of a mask count once.

    Intervals are 95 % bootstraps by patient; null where too few patients or nothing to measure.
    """
    column = f"score_{name}"
    cases: dict[str, list[float | None]] = {key: [] for key in (*_OF_CASES, "beats")}
    groups: list[str] = []
    wide: list[np.ndarray] = []
    rows = panel.sort("case", "proposal")
    labels = rows.filter(pl.col("case") == rows["case"].min()).select("sampler", "setting").rows() if len(rows) else []
    for _, case in rows.group_by("case", maintain_order=True):
        scored = case.filter(pl.col("duplicate_of").is_null() & pl.col(column).is_not_null())
        if len(scored) < 2:
            continue
        score, truth = scored[column].to_numpy(), scored["true_dice"].to_numpy()
        everything = case["true_dice"].to_numpy()
        base = everything[0]
        groups.append(case["group"][0])
        wide.append(everything)
        top = top_value(score, truth)
        cases["spearman"].append(spearman(score, truth))
        cases["kendall"].append(kendall(score, truth))
        cases["pair_error"].append(pair_error(score, truth))
        cases["lift"].append(top - base)
        cases["headroom"].append(float(everything.max() - base))
        cases["beats"].append(1.0 if top > base else 0.0)
    out: dict[str, object] = {
        "judge": name,
        "cases": len(groups),
        "abstained": float(panel[column].null_count() / max(1, len(panel))),
        "fixed_sampler": None,
    }

    def put(measure: str, values: Sequence[float | None]) -> None:
        known = [(v, g) for v, g in zip(values, groups, strict=True) if v is not None]
        estimate = interval([v for v, _ in known], [g for _, g in known], knobs.bootstrap, seed)
        out.update(_named(measure, estimate))

    fixed = np.zeros(0)
    if groups:
        dice = np.stack(wide)
        fixed, slot = best_fixed(dice, groups, knobs.folds, seed)
        fixed = fixed - dice[:, 0]
        out["fixed_sampler"] = " ".join(labels[slot])
    for measure in _OF_CASES:
        put(measure, cases[measure])
    put("top_beats_base", cases["beats"])
    lift, headroom = (np.array(cases[measure], np.float64) for measure in ("lift", "headroom"))
    put("lift_over_fixed", (lift - fixed).tolist())
    found = weighted_interval(lift, headroom, groups, knobs.bootstrap, seed)
    out.update(_named("lift_over_headroom", found))
    return out


def _named(measure: str, estimate: Interval) -> dict[str, float | None]:
    return dict(zip((measure, f"{measure}_low", f"{measure}_high"), estimate, strict=True))


def audit_pairs(
    name: str,
    pairs: PairSet,
    panel: pl.LazyFrame,
    cases: CaseStore,
    proposals: ProposalStore,
    knobs: Audit,
    seed: int,
    calibration: Curve | None = None,
) -> dict[str, object]:
    """One row of `AUDIT_PAIRS`: the strategy of a pair set tried on validation.

    `noise_rate`: chosen is worse than rejected (equal counts one half). `weighted_noise`: the same weighted by |D|.
    `noise_difference`: the latter less the share of pairs that are wrong; DPO feels the one, RN-DPO the other, so
    `verdict` names the one with less noise, or `undecided` where the interval holds 0.
    `voxel_noise`: share of D on which chosen is not the truth, per pair. `active_share`: share of D on which the base
    differs from chosen. `lift`: chosen minus base, true Dice. `volume_bias`: 2 (V - W) / (V + W) of the foreground of
    chosen and rejected. A `min_p_correct` is applied by the curve that was fitted on these same cases.
    """
    if calibration is None:
        pairs = _with(pairs, min_p_correct=None)  # no pair to fit one on, so there is none to filter either
    table, _ = mine(panel, proposals, pairs, "validation", seed, calibration)
    table = with_truth(table, panel)
    groups, weight = table["group"].to_numpy(), table["disagreement"].to_numpy().astype(np.float64)
    wrong = 1 - table["right"].to_numpy()
    voxels = _voxels(table, cases, proposals)
    chosen, rejected = (table[f"{side}_volume"].to_numpy().astype(np.float64) for side in ("chosen", "rejected"))
    measured = {
        "noise_rate": wrong,
        "voxel_noise": voxels[:, 0],
        "active_share": voxels[:, 1],
        "lift": (table["chosen_dice"] - table["base_dice"]).to_numpy(),
        "volume_bias": 2 * (chosen - rejected) / np.maximum(chosen + rejected, 1),
    }
    out: dict[str, object] = {"pairs": name, "judge": pairs.judge, "strategy": pairs.strategy.kind, "mined": len(table)}
    for measure, values in measured.items():
        known = ~np.isnan(values)  # a disagreement wholly in unknown truth has no voxel noise
        out.update(_named(measure, interval(values[known], groups[known], knobs.bootstrap, seed)))
    ratio = wrong * weight, weight
    weighted = weighted_interval(*ratio, groups, knobs.bootstrap, seed)
    difference = weighted_interval(*ratio, groups, knobs.bootstrap, seed, minus=(wrong, np.ones_like(wrong)))
    out |= _named("weighted_noise", weighted) | _named("noise_difference", difference)
    out["verdict"] = _verdict(difference) if len(table) else None
    return out


def with_truth(table: pl.DataFrame, panel: pl.LazyFrame) -> pl.DataFrame:
    """Pairs of validation cases with `group`, `right` (1, or 0, or one half for equal masks), and of chosen, rejected
    and base the true Dice; of the two also the foreground in voxels."""
    truth = panel.select(
        "case_id", "proposal", "group", dice="true_dice", volume=pl.col("voxels").list.slice(1).list.sum()
    ).collect()
    found = table.with_columns(base=pl.lit(0, pl.Int32))
    for side in ("base", "rejected", "chosen"):
        of_side = truth.select("case_id", "proposal", pl.col("dice", "volume").name.prefix(f"{side}_"))
        found = found.join(
            of_side, left_on=["case_id", side], right_on=["case_id", "proposal"], how="left", maintain_order="left"
        )
    group = truth.select("case_id", "group").unique()
    gap = pl.col("chosen_dice") - pl.col("rejected_dice")
    found = found.join(group, on="case_id", how="left", maintain_order="left")
    return found.with_columns(right=gap.sign().add(1).truediv(2))


def _voxels(table: pl.DataFrame, cases: CaseStore, proposals: ProposalStore) -> np.ndarray:
    """Of each pair's D, f64 `[pair, 2]`: the share on which chosen is not the truth (NaN where all of it is unknown),
    and the share on which the base differs from chosen."""
    rows = {case.case_id: case for case in cases.split("validation")}
    found = np.empty((len(table), 2))
    masks, label, last = np.zeros(0), np.zeros(0), ""
    for index, (case_id, chosen, rejected) in enumerate(table.select("case_id", "chosen", "rejected").iter_rows()):
        if case_id != last:
            masks, label, last = proposals.masks(rows[case_id]), cases.label(rows[case_id]), case_id
        differ = region(masks[chosen], masks[rejected])
        known = differ & (label != schema.UNKNOWN)
        found[index, 0] = (masks[chosen] != label)[known].mean() if known.any() else np.nan
        found[index, 1] = (masks[0] != masks[chosen])[differ].mean()
    return found


def _verdict(difference: Interval) -> str:
    if difference.low is None or difference.high is None or difference.low <= 0 <= difference.high:
        return "undecided"
    return "RN-DPO" if difference.low > 0 else "DPO"


def _with(pairs: PairSet, **filters: float | None) -> PairSet:
    return pairs.model_copy(update={"strategy": pairs.strategy.model_copy(update=filters)})


def calibrate_pairs(
    pairs: PairSet, panel: pl.LazyFrame, proposals: ProposalStore, knobs: Audit, seed: int
) -> Calibrated:
    """What the margins of a pair set are worth, on validation pairs of its strategy without the filters on them."""
    unfiltered = _with(pairs, min_margin=0.0, min_p_correct=None, keep_fraction=1.0)
    table = with_truth(mine(panel, proposals, unfiltered, "validation", seed)[0], panel)
    tried = Tried(*(table[column].to_numpy() for column in ("margin", "right", "case", "group")))
    return calibrate(tried, knobs.calibration, seed)


def warnings(judges: pl.DataFrame, pairs: pl.DataFrame) -> list[str]:
    """What a user must know before training; the report repeats it."""
    found = []
    lifts = {row["judge"]: row for row in judges.iter_rows(named=True)}
    for row in pairs.iter_rows(named=True):
        name, judge = row["pairs"], lifts.get(row["judge"])
        if not row["mined"]:
            found.append(f"pair set '{name}': nothing could be mined on validation, so nothing is known about it")
            continue
        if judge and (judge["lift_low"] is None or judge["lift_low"] <= 0):
            found.append(
                f"pair set '{name}': the top pick of judge '{row['judge']}' is not shown to beat the base "
                f"(lift {_points(judge, 'lift')} Dice points)"
            )
        if row["noise_rate_high"] is None or row["noise_rate_high"] >= 0.5:
            found.append(
                f"pair set '{name}': {100 * row['noise_rate']:.0f} % of its validation pairs are ordered wrongly, not "
                "clearly below one half; do not train on it without an anchor"
            )
    return found


def _points(row: Mapping[str, float | None], measure: str) -> str:
    value, low, high = (row[f"{measure}{end}"] for end in ("", "_low", "_high"))
    if value is None:
        return "unknown"
    return f"{100 * value:+.1f}" + ("" if low is None or high is None else f" [{100 * low:+.1f}, {100 * high:+.1f}]")


def run_audit(
    panel_file: Path,
    judges: Sequence[str],
    pair_sets: Mapping[str, PairSet],
    cases: CaseStore,
    proposals: ProposalStore,
    knobs: Audit,
    seed: int,
    out: Path,
) -> None:
    """Audit every judge and pair set, calibrate the pair sets, and write what is found into a folder.

    `judges.parquet`, `pairs.parquet`, `calibration.parquet`, `reliability.parquet`, and `summary.json`: the number of
    labelled validation cases, per pair set how its calibration went, and warnings. Without labelled validation cases
    the tables are empty, and the one warning says so.
    """
    panel = scan_table(panel_file, schema.panel(judges))
    validation = panel.filter(pl.col("split") == "validation", pl.col("true_dice").is_not_null()).collect()
    mined = {name: pairs for name, pairs in pair_sets.items() if not isinstance(pairs.strategy, NoPairs)}
    if not len(validation):
        judges, mined = [], {}
    calibrated = {
        name: calibrate_pairs(pairs, validation.lazy(), proposals, knobs, seed) for name, pairs in mined.items()
    }
    paired = [
        audit_pairs(name, pairs, validation.lazy(), cases, proposals, knobs, seed, calibrated[name].curve)
        for name, pairs in mined.items()
    ]
    judge_table = pl.DataFrame(
        [audit_judge(name, validation, knobs, seed) for name in judges], schema=schema.AUDIT_JUDGES.columns
    )
    pair_table = pl.DataFrame(paired, schema=schema.AUDIT_PAIRS.columns)
    curves = [knots(name, pairs.judge, pairs.strategy.kind, calibrated[name].curve) for name, pairs in mined.items()]
    bins = [found.reliability.with_columns(pairs=pl.lit(name)) for name, found in calibrated.items()]
    write_table(judge_table, schema.AUDIT_JUDGES, out / "judges.parquet", knobs)
    write_table(pair_table, schema.AUDIT_PAIRS, out / "pairs.parquet", knobs)
    for table, parts, file in ((schema.CALIBRATION, curves, "calibration"), (schema.RELIABILITY, bins, "reliability")):
        empty = pl.DataFrame(schema=table.columns)
        whole = pl.concat([empty, *(part.select(empty.columns).cast(empty.schema) for part in parts)])
        write_table(whole, table, out / f"{file}.parquet", knobs.calibration)
    found = warnings(judge_table, pair_table)
    found += [
        f"pair set '{name}': {part.summary['note']}"
        for name, part in calibrated.items()
        if part.curve and part.summary["note"]
    ]
    if not len(validation):
        found = [
            "nothing is known about the judges and the pair sets: no validation case with a label has proposals; "
            "label some cases and add 'validation' to propose.splits"
        ]
    write_json(
        out / "summary.json",
        {
            "validation_cases": validation["case"].n_unique(),
            "calibration": {name: part.summary for name, part in calibrated.items()},
            "warnings": found,
        },
    )
