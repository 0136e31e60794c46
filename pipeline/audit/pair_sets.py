"""Measures of a pair set: how often its pairs are wrong on validation cases, and what its disagreement regions hold."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import polars as pl

from pipeline.audit.judges import named
from pipeline.audit.verdicts import noise_verdict
from pipeline.measures.intervals import bootstrap_interval, share_interval, weighted_interval
from pipeline.measures.overlap import region
from pipeline.pairs.calibration import Calibration, HeldOutCurves, PairCalibration, ValidationPairs, calibrate
from pipeline.pairs.mine import PairSet, mine, widest
from pipeline.pairs.reviewed import Curves, judged, mine_reviewed
from pipeline.pairs.strategies.none import NoPairs
from pipeline.pairs.strategies.reviewed import Reviewed
from pipeline.store import schema
from pipeline.store.cases import CaseStore
from pipeline.store.proposals import ProposalStore

TOP = 0.25
"""Share of the cases (as `keep_fraction`) with the widest margins. Their lift is measured apart from other cases."""

_PAIR = ("case_id", "chosen", "rejected")


def try_pairs(
    pairs: PairSet, panel: pl.LazyFrame, proposals: ProposalStore, seed: int, held_out: HeldOutCurves | None = None
) -> pl.DataFrame:
    """Pairs of a pair set on validation cases, with their truth.

    Columns are those of `PAIRS`, those that `with_truth` adds, and `top`: whether the case is kept by a `keep_fraction`
    of `TOP`. `p_correct` of a pair comes from the curve that was fitted to the other folds of patients, and the filter
    `min_p_correct` looks at this `p_correct`. A curve that has seen the pair would drop the pairs that are wrong by
    chance, and a judge that is a coin would look better than a coin. Without `held_out`, as for fewer than two
    patients, `p_correct` is null, and `min_p_correct` is not applied.
    """
    strategy = pairs.strategy
    assert not isinstance(strategy, NoPairs | Reviewed)
    # All other filters of `mine` look at one case at a time. Only `keep_fraction` has to follow `min_p_correct`.
    mined, _ = mine(panel, proposals, with_filters(pairs, min_p_correct=None, keep_fraction=1.0), "validation", seed)
    table = with_truth(mined, panel)
    if held_out is not None:
        p = held_out(table["margin"].to_numpy(), table["group"].to_numpy())
        table = table.with_columns(p_correct=p).filter(pl.col("p_correct") >= strategy.least_p_correct)
    in_top = widest(table, TOP)["case"].unique().implode()
    return widest(table, strategy.keep_fraction).with_columns(top=pl.col("case").is_in(in_top))


def try_reviewed(
    pairs: PairSet,
    panel: pl.LazyFrame,
    proposals: ProposalStore,
    seed: int,
    answers: pl.DataFrame,
    calibrated: PairCalibration | None,
) -> pl.DataFrame:
    """As `try_pairs`, for every strategy. Pairs of reviewers are those of their answers on validation cases.

    `calibrated`: calibration of the judge's part of the pair set. Pairs of reviewers are in no `top`, because their
    margin is a number of answers.
    """
    held_out = None if calibrated is None else calibrated.held_out
    part = judged(pairs)
    if not isinstance(pairs.strategy, Reviewed):
        assert part is not None
        return try_pairs(part, panel, proposals, seed, held_out)
    alone = with_filters(pairs, otherwise=None)
    found = mine_reviewed(panel, proposals, alone, "validation", seed, answers, Curves())[0]
    table = with_truth(found, panel).with_columns(top=pl.lit(False))
    if part is None:
        return table
    rest = panel.filter(~pl.col("case_id").is_in(table["case_id"].unique().implode()))
    return pl.concat([table, try_pairs(part, rest, proposals, seed, held_out)])


def audit_pairs(table: pl.DataFrame, voxels: pl.DataFrame, draws: int, seed: int) -> dict[str, object]:
    """Measures of `AUDIT_PAIRS` and `AUDIT_STRATEGIES`, from `try_pairs` and `voxel_shares`.

    `noise_rate`: share of pairs whose chosen mask is worse than the rejected mask; equal masks count one half.
    `weighted_noise`: the same share, pairs weighted by |D|.
    `noise_difference`: `weighted_noise` minus the share of wrong pairs, pairs weighted equally.
    `verdict`: the objective with less noise, or `undecided` if the interval of `noise_difference` contains 0. DPO feels
    the noise weighted by |D|, RN-DPO feels the noise per pair.
    `voxel_noise`: share of D on which chosen differs from the truth, mean over pairs. Voxels of unknown truth do not
    count. `weighted_voxel_noise`: the same share over the voxels of all D together.
    `rejected_right`, `neither_right`: the two parts of `voxel_noise`. The rejected mask equals the truth, or neither
    mask does; with two classes `neither_right` is 0.
    `active_share`: share of D on which the base differs from chosen.
    `lift`: true Dice of chosen minus true Dice of the base. `lift_top_quarter`, `lift_rest`: `lift` in the cases with
    the widest margins, and in the other cases.
    `volume_bias`: 2 (V - W) / (V + W) with the foreground volumes V of chosen and W of rejected.
    """
    found = table.join(voxels, on=_PAIR, how="left", maintain_order="left")
    groups, weight = found["group"].to_numpy(), found["disagreement"].to_numpy().astype(np.float64)
    wrong, lift = 1 - found["right"].to_numpy(), (found["chosen_dice"] - found["base_dice"]).to_numpy()
    chosen, rejected = (found[f"{side}_volume"].to_numpy().astype(np.float64) for side in ("chosen", "rejected"))
    known, lost, other, active = (
        found[part].to_numpy().astype(np.float64) for part in ("known", "chosen_wrong", "rejected_right", "active")
    )
    everywhere, top = np.ones(len(found), bool), found["top"].to_numpy()
    # A region D of unknown truth alone gives 0 / 0. The condition `known > 0` leaves such a pair out below.
    with np.errstate(invalid="ignore"):
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
    return out | {"verdict": noise_verdict(out) if len(found) else None}


def with_truth(table: pl.DataFrame, panel: pl.LazyFrame) -> pl.DataFrame:
    """Pairs of validation cases with columns for their truth.

    `group`: patient or exam. `right`: 1 if the order is right, 0 if wrong, one half for equal true Dice.
    `chosen_dice`, `rejected_dice`, `base_dice`: true Dice. `chosen_volume`, `rejected_volume`, `base_volume`:
    foreground in voxels.
    """
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
    """Voxel counts in the disagreement region D of every pair. A pair of several tables has one row.

    `known`: voxels of D whose truth is known. `chosen_wrong`: known voxels on which chosen differs from the truth.
    `rejected_right`: known voxels on which rejected equals the truth. `active`: voxels of D on which the base differs
    from chosen. The masks of a case are read once.
    """
    columns = {name: schema.PAIRS.columns[name] for name in _PAIR}
    counts = ("known", "chosen_wrong", "rejected_right", "active")
    wanted = pl.concat([pl.DataFrame(schema=columns), *(table.select(_PAIR) for table in tables)]).unique().sort(_PAIR)
    rows = {case.case_id: case for case in cases.split("validation")}
    found: list[tuple[object, ...]] = []
    for (case_id,), pairs in wanted.group_by("case_id", maintain_order=True):
        case = rows[str(case_id)]
        masks = proposals.masks(case)
        somewhere = (masks != masks[0]).any(axis=0)  # D of every pair lies inside this region
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
    """Calibration of a pair set, fitted to validation pairs of its strategy without the filters by margin.

    `min_margin`, `min_p_correct` and `keep_fraction` are switched off.
    """
    unfiltered = with_filters(pairs, min_margin=0.0, min_p_correct=None, keep_fraction=1.0)
    table = with_truth(mine(panel, proposals, unfiltered, "validation", seed)[0], panel)
    tried = ValidationPairs(*(table[column].to_numpy() for column in ("margin", "right", "case", "group")))
    made = calibrate(tried, knobs, seed)
    return made._replace(summary={**made.summary, "source": None if made.curve is None else "labels"})


def with_filters(pairs: PairSet, **filters: float | None) -> PairSet:
    """The pair set with other values of these knobs of its strategy."""
    return pairs.model_copy(update={"strategy": pairs.strategy.model_copy(update=filters)})
