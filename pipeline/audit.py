"""Judging the judges: how far each judge, and each way of mining, can be believed, on validation cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import polars as pl
from pydantic import Field

from pipeline import schema
from pipeline.bootstrap import interval, weighted_interval
from pipeline.dataset import CaseStore, ProposalStore
from pipeline.errors import BadInput
from pipeline.knobs import Knobs
from pipeline.mining import NoPairs, PairSet, mine
from pipeline.overlap import region
from pipeline.seeding import numpy_generator
from pipeline.store import scan_table, write_json, write_table


class Audit(Knobs):
    """How judges are measured."""

    bootstrap: Annotated[int, Field(gt=0)] = 2000
    """Resamples of patients behind every interval."""
    folds: Annotated[int, Field(ge=2)] = 5
    """Folds by patient for choosing the best fixed sampler out of fold."""


def spearman(score: np.ndarray, truth: np.ndarray) -> float | None:
    """Rank correlation `[proposal]` with mean ranks for ties; None where either is constant."""
    a, b = (pl.Series(values).rank("average").to_numpy() for values in (score, truth))
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(np.corrcoef(a, b)[0, 1])


def pair_error(score: np.ndarray, truth: np.ndarray) -> float | None:
    """Share of proposal pairs of different true Dice that the score orders wrongly; equal scores count one half."""
    first, second = np.triu_indices(len(score), 1)
    gap, order = truth[first] - truth[second], score[first] - score[second]
    differ = gap != 0
    if not differ.any():
        return None
    wrong = np.sign(gap[differ]) * np.sign(order[differ])
    return float(np.where(wrong < 0, 1.0, np.where(wrong == 0, 0.5, 0.0)).mean())


def top_value(score: np.ndarray, truth: np.ndarray) -> float:
    """True Dice of the top pick; the mean over proposals that share the highest score."""
    return float(truth[score == score.max()].mean())


def best_fixed(dice: np.ndarray, groups: Sequence[str], folds: int, seed: int) -> tuple[np.ndarray, int]:
    """True Dice `[case]` of always taking one slot, chosen on the other folds, and the slot chosen on all cases.

    `dice` is `[case, proposal]`. With a single group the slot is chosen on that group itself.
    """
    names = sorted(set(groups))
    order = numpy_generator(seed, "audit", "folds").permutation(len(names))
    fold_of = {names[g]: i % min(folds, max(1, len(names))) for i, g in enumerate(order)}
    fold = np.array([fold_of[group] for group in groups])
    chosen = np.empty(len(dice))
    for index in np.unique(fold):
        inside = fold == index
        rest = dice[~inside] if (~inside).any() else dice
        chosen[inside] = dice[inside, rest.mean(0).argmax()]
    return chosen, int(dice.mean(0).argmax())


def audit_judge(name: str, panel: pl.DataFrame, knobs: Audit, seed: int) -> dict[str, object]:
    """One row of `AUDIT_JUDGES` from the validation rows of a panel. Duplicates of a mask count once.

    Intervals are 95 % bootstraps by patient; null where too few patients or nothing to measure.
    """
    column = f"score_{name}"
    cases: dict[str, list[float | None]] = {key: [] for key in ("spearman", "pair_error", "lift", "headroom", "beats")}
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
        out.update(zip((measure, f"{measure}_low", f"{measure}_high"), estimate, strict=True))

    fixed = np.zeros(0)
    if groups:
        dice = np.stack(wide)
        fixed, slot = best_fixed(dice, groups, knobs.folds, seed)
        fixed = fixed - dice[:, 0]
        out["fixed_sampler"] = " ".join(labels[slot])
    for measure in ("spearman", "pair_error", "lift", "headroom"):
        put(measure, cases[measure])
    put("top_beats_base", cases["beats"])
    put(
        "lift_over_fixed", [lift - f for lift, f in zip(cases["lift"], fixed.tolist(), strict=True) if lift is not None]
    )
    return out


def audit_pairs(
    name: str, pairs: PairSet, panel: pl.LazyFrame, cases: CaseStore, proposals: ProposalStore, knobs: Audit, seed: int
) -> dict[str, object]:
    """One row of `AUDIT_PAIRS`: the strategy of a pair set tried on validation.

    `noise_rate`: chosen is worse than rejected (equal counts one half). `weighted_noise`: the same weighted by |D|.
    `voxel_noise`: share of D on which chosen is not the truth, per pair. `active_share`: share of D on which the base
    differs from chosen. `lift`: chosen minus base, true Dice.
    """
    table, _ = mine(panel, proposals, pairs, "validation", seed)
    truth = panel.filter(pl.col("split") == "validation").select("case_id", "proposal", "true_dice", "group").collect()
    dice = {(c, p): d for c, p, d in truth.select("case_id", "proposal", "true_dice").iter_rows()}
    group_of = dict(truth.select("case_id", "group").unique().iter_rows())
    rows = {case.case_id: case for case in cases.split("validation")}
    found: list[tuple[float, float, float, float]] = []
    sizes, groups = [], []
    masks, label, last = np.zeros(0), np.zeros(0), ""
    for case_id, chosen, rejected, size in table.select("case_id", "chosen", "rejected", "disagreement").iter_rows():
        if case_id != last:
            masks, label, last = proposals.masks(rows[case_id]), cases.label(rows[case_id]), case_id
        differ = region(masks[chosen], masks[rejected])
        known = differ & (label != schema.UNKNOWN)
        gap = dice[case_id, chosen] - dice[case_id, rejected]
        wrong = float((masks[chosen] != label)[known].mean()) if known.any() else np.nan
        active = float((masks[0] != masks[chosen])[differ].mean())
        found.append((0.5 if gap == 0 else float(gap < 0), wrong, active, dice[case_id, chosen] - dice[case_id, 0]))
        sizes.append(size)
        groups.append(group_of[case_id])
    out: dict[str, object] = {"pairs": name, "judge": pairs.judge, "strategy": pairs.strategy.kind, "mined": len(table)}
    columns = np.array(found).reshape(-1, 4).T
    weight = np.array(sizes, np.float64)
    for measure, values in zip(("noise_rate", "voxel_noise", "active_share", "lift"), columns, strict=True):
        # A disagreement wholly in unknown truth has no voxel noise.
        known_values = ~np.isnan(values)
        estimate = interval(values[known_values], np.array(groups)[known_values], knobs.bootstrap, seed)
        out.update(zip((measure, f"{measure}_low", f"{measure}_high"), estimate, strict=True))
    weighted = weighted_interval(columns[0] * weight, weight, groups, knobs.bootstrap, seed)
    out.update(zip(("weighted_noise", "weighted_noise_low", "weighted_noise_high"), weighted, strict=True))
    return out


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
    """Audit every judge and pair set and write `judges.parquet`, `pairs.parquet` and `summary.json`."""
    table = schema.panel(judges)
    panel = scan_table(panel_file, table)
    validation = panel.filter(pl.col("split") == "validation").collect()
    if not len(validation):
        raise BadInput(f"{panel_file}: no validation proposals; add 'validation' to propose.splits")
    rows = [audit_judge(name, validation, knobs, seed) for name in judges]
    judged = pl.DataFrame(rows, schema=schema.AUDIT_JUDGES.columns)
    mined = [
        audit_pairs(name, pairs, panel, cases, proposals, knobs, seed)
        for name, pairs in pair_sets.items()
        if not isinstance(pairs.strategy, NoPairs)
    ]
    paired = pl.DataFrame(mined, schema=schema.AUDIT_PAIRS.columns)
    write_table(judged, schema.AUDIT_JUDGES, out / "judges.parquet", knobs)
    write_table(paired, schema.AUDIT_PAIRS, out / "pairs.parquet", knobs)
    write_json(
        out / "summary.json", {"validation_cases": validation["case"].n_unique(), "warnings": warnings(judged, paired)}
    )
