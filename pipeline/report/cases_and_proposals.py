"""The cases of a run and their proposals."""

from __future__ import annotations

import polars as pl

from pipeline.measures.numbers import NO_VALUE, percent, points
from pipeline.report.blocks import Block, Cell, Note, Section, Table
from pipeline.report.cells import case_means, extent
from pipeline.report.figures import histograms
from pipeline.report.run import Run
from pipeline.store import schema


def splits(run: Run) -> Section:
    """Numbers of cases and patients per split, and the grids of the cases."""
    rows: list[list[Cell | str]] = []
    for name in schema.SPLITS:
        cases = run.cases.split(name)
        spacings = [case.spacing_mm for case in cases]
        known = [spacing for spacing in spacings if spacing is not None]
        missing = len(spacings) - len(known)
        spacing = " · ".join(
            part for part in (extent(known, 2) if known else "", f"unknown for {missing}" if missing else "") if part
        )
        rows.append(
            [
                name,
                str(len(cases)),
                str(len({case.group for case in cases})),
                str(sum(case.has_label for case in cases)),
                extent([case.shape for case in cases]),
                spacing or NO_VALUE,
            ]
        )
    columns = ["split", "cases", "groups", "with label", "voxels, working grid", "spacing, mm"]
    group = "a patient or an exam" if run.units == "patients" else "a single case, because the data name no patients"
    how = (
        f"A group is {group}. No group is in two splits. {_of_base(run)} Students may also learn from the images of "
        "the pool. Judges are measured, and best steps are chosen, on validation. All results are from test."
    )
    blocks: list[Block] = [Table("Splits", columns, rows, frozenset({4, 5}))]
    if notes := run.cases.info.get("notes"):
        blocks.append(Note(notes))
    return Section("splits", "Cases and splits", how, blocks)


def _of_base(run: Run) -> str:
    """What the base learned from."""
    if run.base_curve is not None:
        return "The base learned from the labelled split."
    return "The base was not trained in this run."


def proposals(run: Run) -> Section:
    """Lift, duplicates and diversity of the proposals by sampler, and sizes of the disagreement regions of pairs."""
    slots = run.panel.group_by("proposal", "sampler", "setting").agg(
        pl.len(),
        pl.col("duplicate_of").is_not_null().mean().alias("duplicates"),
        pl.col("dice_to_base").mean(),
    )
    known = lifts(run)
    slot = ("proposal", "sampler", "setting")
    mean = known.group_by(*slot, "group").agg(pl.col("lift").mean()).group_by(slot).agg(pl.col("lift").mean())
    table = slots.join(mean, on=slot, how="left").sort("proposal", "setting").collect()
    rows = [
        [
            f"{row['sampler']} · {row['setting']}" if row["sampler"] != row["setting"] else row["sampler"],
            points(row["lift"], signed=True) if row["proposal"] else NO_VALUE,
            percent(row["duplicates"]) if row["proposal"] else NO_VALUE,
            points(row["dice_to_base"]),
            points(1 - row["dice_to_base"]),
        ]
        for row in table.iter_rows(named=True)
    ]
    columns = ["sampler · setting", "mean lift over base", "duplicates", "Dice to base", "diversity"]
    note = (
        "Lift: true Dice of the proposal minus true Dice of the base, mean over validation patients. Duplicates: share "
        "of masks that equal an earlier proposal of the case. Diversity: 100 minus Dice to base. Duplicates and "
        "diversity are over all cases with proposals."
    )
    blocks: list[Block] = [Table("Proposals by sampler", columns, rows, note=note), *_spread(run, known)]
    how = (
        "A student can learn only from proposals that are better than the base. Look for samplers with a positive "
        "lift, and for headroom. Values are in Dice points."
    )
    return Section("proposals", "Proposals", how, blocks)


def lifts(run: Run) -> pl.LazyFrame:
    """Proposals of validation cases, with `lift`: true Dice minus that of the base. Null for a case without a label."""
    validation = run.panel.filter(pl.col("split") == "validation")
    base = validation.filter(pl.col("proposal") == 0).select("case", pl.col("true_dice").alias("base"))
    return validation.join(base, on="case").with_columns((pl.col("true_dice") - pl.col("base")).alias("lift"))


def _spread(run: Run, known: pl.LazyFrame) -> list[Block]:
    blocks: list[Block] = []
    best = known.group_by("case", "group").agg(pl.col("lift").max()).sort("case").collect()
    headroom = best["lift"].to_numpy() * 100
    others = run.panel.filter(pl.col("proposal") > 0).select("case", "proposal", "dice_to_base").collect()
    others = others.sort("case", "proposal")
    diversity = 100 - 100 * case_means(others["case"].to_numpy(), others["dice_to_base"].to_numpy())[0]
    if len(headroom) and len(diversity):
        mean = best.group_by("group", maintain_order=True).agg(pl.col("lift").mean())["lift"].to_numpy().mean()
        none = float((headroom <= 0).mean())
        caption = (
            "One value per case. The line is the median. Headroom: true Dice of the best proposal minus true Dice of "
            f"the base, on {len(headroom)} validation cases. The mean over patients is "
            f"{points(float(mean), signed=True)}, and {percent(none)} of the cases have no headroom. Diversity: 100 "
            f"minus the mean Dice of a case's proposals to the base, on {len(diversity)} cases."
        )
        blocks.append(
            histograms(
                {"headroom": headroom, "diversity": diversity},
                "Dice points",
                "Histograms of headroom and diversity per case. " + caption,
                caption,
            )
        )
    sizes = {name: run.pairs_of(name)["disagreement"].to_numpy() for name in run.mined}
    if sizes := {name: values for name, values in sizes.items() if len(values)}:
        caption = "Size |D| of the disagreement regions of the mined pairs, by pair set. The line is the median."
        blocks.append(histograms(sizes, "|D|, voxels", "Histograms. " + caption, caption, log=True))
    else:
        blocks.append(Note(["There are no mined pairs, so there are no disagreement regions to measure."]))
    return blocks
