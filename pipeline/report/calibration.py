"""Section on the calibration of p_correct, the probability that the order of a pair is right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from pipeline.measures.numbers import decimal, percent
from pipeline.pairs.calibration import REVIEWED
from pipeline.report.audit_figures import CalibrationCurve, Distribution, distributions, reliabilities
from pipeline.report.blocks import Block, Note, Section, Table
from pipeline.report.run import Run
from pipeline.store import schema


def calibration(run: Run) -> Section:
    """Reliability and curve of every pair set, and p_correct of the mined pairs."""
    blocks: list[Block] = []
    summaries: dict[str, dict[str, Any]] = run.summary["calibration"]
    if run.mined:
        known = {name: summaries[name] for name in run.mined if name in summaries}
        blocks += _reliability(run, known)
        if known:
            blocks.append(_fits(known))
        blocks += _mined(run, summaries)
    else:
        blocks.append(Note(["params.yaml has no pair sets, so there is nothing to calibrate."]))
    how = (
        "The margin of a pair is the score of chosen minus the score of rejected. The audit turns the margin into "
        "p_correct, the probability that chosen is truly better. By default, mining drops pairs below one half. A "
        "calibrated cdpo takes 1 - p_correct as the error probability of each pair. Points near the diagonal mean that "
        "p_correct can be believed."
    )
    return Section("calibration", "Calibration: probability that a pair is right", how, blocks)


def _reliability(run: Run, summaries: Mapping[str, Mapping[str, Any]]) -> list[Block]:
    bins, knots = run.audited("reliability", schema.RELIABILITY), run.audited("calibration", schema.CALIBRATION)
    panels: dict[str, CalibrationCurve] = {}
    missing = []
    for name, summary in summaries.items():
        curve = knots.filter(pl.col("pairs") == name, pl.col("strategy") != REVIEWED).sort("knot")
        held_out = bins.filter(pl.col("pairs") == name).sort("bin")
        if curve.is_empty():
            missing.append(f"Pair set '{name}' has no curve: {summary['note'] or 'the audit gives no reason'}.")
            continue
        panels[name] = CalibrationCurve(
            ece=summary["ece"],
            judge=run.params.pairs[name].judge,
            predicted=held_out["predicted"].to_numpy(),
            observed=held_out["observed"].to_numpy(),
            pairs=held_out["count"].to_numpy(),
            margin=curve["margin"].to_numpy(),
            p_correct=curve["p_correct"].to_numpy(),
            mined=run.pairs_of(name).filter(pl.col("strategy") != REVIEWED)["margin"].to_numpy(),
        )
    found: list[Block] = [Note(missing)] if missing else []
    if panels:
        caption = (
            "Two panels for each pair set. Left: predicted p_correct of validation pairs that were held out of the "
            "fit, against the share of these pairs whose order is right. Numbers count pairs. The diagonal is perfect. "
            "The title gives the expected calibration error (ECE). Right: the curve from margin to p_correct. Grey "
            "bars show the margins of the mined pairs, on a scale of their own."
        )
        alt = f"Reliability diagrams and calibration curves of {', '.join(panels)}. {caption}"
        found.insert(0, reliabilities(panels, alt, caption))
    return found


def _fits(summaries: Mapping[str, Mapping[str, Any]]) -> Table:
    cells = [
        [
            name,
            summary["kind"],
            str(summary["cases"]),
            str(summary["groups"]),
            percent(summary["shrinkage"]),
            decimal(summary["ece"], 3),
            decimal(summary["brier"], 3),
            summary["note"] or "",
        ]
        for name, summary in summaries.items()
    ]
    columns = ["pair set", "fit", "cases", "groups", "distance kept", "ECE", "Brier", "note"]
    said = {
        "cases": "Validation cases with a pair.",
        "groups": "Groups (patients) of these cases. All cases of a group are held out together.",
        "distance kept": "Share of the distance between p_correct and one half that remains. It is below 100 % if the "
        "groups are too few to believe the curve.",
        "ECE": "Mean absolute difference between predicted p_correct and observed share over the bins, weighted by "
        "cases. 0 is perfect.",
        "Brier": "Mean squared difference between p_correct and the outcome (1 right, 0 wrong). A coin has 0.25.",
    }
    unknown = [name for name, summary in summaries.items() if summary["ece"] is None]
    note = f"No ECE and Brier score for {', '.join(unknown)}: both need two groups with pairs." if unknown else ""
    return Table("Calibration of each pair set", columns, cells, frozenset({1, 7}), note=note, meanings=said)


def _mined(run: Run, summaries: Mapping[str, Mapping[str, Any]]) -> list[Block]:
    panels: dict[str, Distribution] = {}
    missing = []
    for name in run.mined:
        pairs, drops = run.pairs_of(name), run.drops_of(name)
        p = pairs["p_correct"].drop_nulls().to_numpy()
        dropped = drops["dropped"].get("p_correct", 0)
        if len(p):
            least = getattr(run.params.pairs[name].strategy, "min_p_correct", None)
            panels[name] = Distribution(p, dropped, drops["cases"], least)
        elif pairs.is_empty():
            without = (
                f", and {dropped} of them were left out because their order is too likely wrong" if dropped else ""
            )
            missing.append(f"Pair set '{name}' has no pairs: {drops['cases']} cases were mined{without}.")
        else:
            why = summaries.get(name, {}).get("note") or "the audit has no curve for it"
            missing.append(f"The pairs of '{name}' have no p_correct: {why}.")
    found: list[Block] = []
    if panels:
        caption = (
            "p_correct of the mined pairs. Titles count the cases that were left out because their order is too likely "
            "wrong. The dotted line is the smallest p_correct that mining accepts."
        )
        spoken = "; ".join(
            f"{name}: median {decimal(float(np.median(one.p)), 2)}, {one.dropped} of {one.cases} cases left out"
            for name, one in panels.items()
        )
        found.append(distributions(panels, f"Histograms. {spoken}. {caption}", caption))
    if missing:
        found.append(Note(missing))
    return found
