"""Judging a way of mining: what the pairs that a judge and a strategy make of validation cases are worth."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import polars as pl

from pipeline.audit.judges import named
from pipeline.audit.verdicts import noise_verdict
from pipeline.measures.intervals import bootstrap_interval, share_interval, weighted_interval
from pipeline.measures.overlap import region
from pipeline.pairs.calibration import Calibration, Curve, PairCalibration, ValidationPairs, calibrate
from pipeline.pairs.mine import PairSet, mine
from pipeline.store import schema
from pipeline.store.cases import CaseStore
from pipeline.store.proposals import ProposalStore

TOP = 0.25
"""The `keep_fraction` of the cases with the widest margins whose lift is measured apart from the rest."""

_PAIR = ("case_id", "chosen", "rejected")


def try_pairs(
    pairs: PairSet, panel: pl.LazyFrame, proposals: ProposalStore, seed: int, calibration: Curve | None = None
) -> pl.DataFrame:
    """The pairs of a pair set on validation cases, with their truth.

    Columns of `PAIRS`, those of `with_truth`, and `top`: whether the pair is one of a `keep_fraction` of `TOP`. A
    `min_p_correct` is applied by the curve that was fitted on these same cases; without a curve there is no filter.
    """
    if calibration is None:
        pairs = _with(pairs, min_p_correct=None)  # no pair to fit one on, so there is none to filter either
    table, widest = (
        mine(panel, proposals, wanted, "validation", seed, calibration)[0]
        for wanted in (pairs, _with(pairs, keep_fraction=TOP))
    )
    return with_truth(table, panel).with_columns(top=pl.col("case").is_in(widest["case"].unique().implode()))


def audit_pairs(table: pl.DataFrame, voxels: pl.DataFrame, draws: int, seed: int) -> dict[str, object]:
    """The measures of `AUDIT_PAIRS` and `AUDIT_STRATEGIES`, from `try_pairs` and `voxel_shares`.

    `noise_rate`: chosen is worse than rejected (equal counts one half). `weighted_noise`: the same weighted by |D|.
    `noise_difference`: the latter less the share of pairs that are wrong; DPO feels the one, RN-DPO the other, so
    `verdict` names the one with less noise, or `undecided` where the interval holds 0.
    `voxel_noise`: share of D on which chosen is not the truth, per pair, and `weighted_voxel_noise`: of all D together.
    It is `rejected_right`, where the truth is the rejected one, and `neither_right`, which two classes do not have.
    Unknown truth is outside. `active_share`: share of D on which the base differs from chosen. `lift`: chosen minus
    base, true Dice; `lift_top_quarter` and `lift_rest`: the same in the cases with the widest margins and in others.
    `volume_bias`: 2 (V - W) / (V + W) of the foreground of chosen and rejected.
    """
    found = table.join(voxels, on=_PAIR, how="left", maintain_order="left")
    groups, weight = found["group"].to_numpy(), found["disagreement"].to_numpy().astype(np.float64)
    wrong, lift = 1 - found["right"].to_numpy(), (found["chosen_dice"] - found["base_dice"]).to_numpy()
    chosen, rejected = (found[f"{side}_volume"].to_numpy().astype(np.float64) for side in ("chosen", "rejected"))
    known, lost, other, active = (
        found[part].to_numpy().astype(np.float64) for part in ("known", "chosen_wrong", "rejected_right", "active")
    )
    everywhere, top = np.ones(len(found), bool), found["top"].to_numpy()
    with np.errstate(invalid="ignore"):  # D wholly in unknown truth has no voxel noise, and is not asked for it
        noise, turned = lost / known, other / known
    measured = {
        "noise_rate": (wrong, everywhere),
        "voxel_noise": (noise, known > 0),
        "rejected_right": (turned, known > 0),
        "neither_right": (noise - turned, known > 0),
        "active_share": (active / np.maximum(weight, 1), everywhere),
        "lift": (lift, everywhere),
        "lift_top_quarter": (lift, top),
        "lift_rest": (lift, ~top),
        "volume_bias": (2 * (chosen - rejected) / np.maximum(chosen + rejected, 1), everywhere),
    }
    out: dict[str, object] = {"mined": len(found)}
    for measure, (values, wanted) in measured.items():
        ends = share_interval if measure == "noise_rate" else bootstrap_interval
        out |= named(measure, ends(values[wanted], groups[wanted], draws, seed))
    ratio = wrong * weight, weight
    weighted = weighted_interval(*ratio, groups, draws, seed)
    difference = weighted_interval(*ratio, groups, draws, seed, minus=(wrong, np.ones_like(wrong)))
    out |= named("weighted_noise", weighted) | named("noise_difference", difference)
    out |= named("weighted_voxel_noise", weighted_interval(lost, known, groups, draws, seed))
    return out | {"verdict": noise_verdict(out, found["group"].n_unique()) if len(found) else None}


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


def voxel_shares(tables: Iterable[pl.DataFrame], cases: CaseStore, proposals: ProposalStore) -> pl.DataFrame:
    """Of every pair of these tables once, in voxels of its D: `known` truth, and of these `chosen_wrong` and
    `rejected_right`; `active`, on which the base differs from chosen. Masks are read once per case."""
    columns = {name: schema.PAIRS.columns[name] for name in _PAIR}
    counts = ("known", "chosen_wrong", "rejected_right", "active")
    wanted = pl.concat([pl.DataFrame(schema=columns), *(table.select(_PAIR) for table in tables)]).unique().sort(_PAIR)
    rows = {case.case_id: case for case in cases.split("validation")}
    found: list[tuple[object, ...]] = []
    for (case_id,), pairs in wanted.group_by("case_id", maintain_order=True):
        case = rows[str(case_id)]
        masks = proposals.masks(case)
        somewhere = (masks != masks[0]).any(axis=0)  # no pair differs elsewhere
        masks, label = masks[:, somewhere], cases.label(case)[somewhere]
        for _, chosen, rejected in pairs.iter_rows():
            differ = region(masks[chosen], masks[rejected])
            known = differ & (label != schema.UNKNOWN)
            parts = (
                known,
                known & (masks[chosen] != label),
                known & (masks[rejected] == label),
                differ & (masks[0] != masks[chosen]),
            )
            found.append((case_id, chosen, rejected, *(int(part.sum()) for part in parts)))
    return pl.DataFrame(found, schema=columns | dict.fromkeys(counts, pl.Int64()), orient="row")


def calibrate_pairs(
    pairs: PairSet, panel: pl.LazyFrame, proposals: ProposalStore, knobs: Calibration, seed: int
) -> PairCalibration:
    """What the margins of a pair set are worth, on validation pairs of its strategy without the filters on them."""
    unfiltered = _with(pairs, min_margin=0.0, min_p_correct=None, keep_fraction=1.0)
    table = with_truth(mine(panel, proposals, unfiltered, "validation", seed)[0], panel)
    tried = ValidationPairs(*(table[column].to_numpy() for column in ("margin", "right", "case", "group")))
    return calibrate(tried, knobs, seed)


def _with(pairs: PairSet, **filters: float | None) -> PairSet:
    return pairs.model_copy(update={"strategy": pairs.strategy.model_copy(update=filters)})
