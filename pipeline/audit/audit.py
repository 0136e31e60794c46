"""The audit: measures of every judge, strategy and pair set on labelled validation cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import polars as pl
from pydantic import Field

from pipeline.audit.answers import Answers, answers_row, on_labels, reviewed_row
from pipeline.audit.asked import Asked
from pipeline.audit.judges import BIN_SIZES, audit_bins, audit_judge, headroom, validation_scores
from pipeline.audit.pair_sets import audit_pairs, calibrate_pairs, try_pairs, try_reviewed, voxel_shares
from pipeline.audit.verdicts import (
    Validation,
    constant_picks,
    headroom_verdict,
    judge_verdict,
    nothing_known,
    warnings,
)
from pipeline.knobs import Knobs, Name
from pipeline.pairs.calibration import REVIEWED, Calibration, Isotonic, PairCalibration, knots
from pipeline.pairs.mine import PairSet
from pipeline.pairs.reviewed import judged, read_answers, reviewer_curve
from pipeline.pairs.strategies import Mined
from pipeline.pairs.strategies.none import NoPairs
from pipeline.pairs.strategies.reviewed import Reviewed
from pipeline.pairs.strategies.top_base import TopBase
from pipeline.pairs.strategies.top_bottom import TopBottom
from pipeline.store import schema
from pipeline.store.manifest import write_json
from pipeline.store.proposals import Data
from pipeline.store.tables import scan_table, write_table


class Audit(Knobs):
    """Measures, on validation, of how far each judge and each pair set can be believed."""

    bootstrap: Annotated[int, Field(gt=0)] = 2000
    """Number of bootstrap resamples of patients behind every 95 % interval."""
    folds: Annotated[int, Field(ge=2)] = 5
    """Number of folds, split by patient, for choosing the best fixed sampler out of fold."""
    failure_below: Annotated[float, Field(gt=0, lt=1)] = 0.7
    """True Dice below which a base prediction is a failure. `auroc` measures whether a judge scores failures lower than
    other cases."""
    strategies: dict[Name, Annotated[Mined, Field(discriminator="kind")]] = {
        "top_bottom": TopBottom(kind="top_bottom"),
        "top_base": TopBase(kind="top_base"),
    }
    """Standard strategies by name. The audit measures them with every judge and consensus entry, besides the pair
    sets."""
    calibration: Calibration = Isotonic()
    """Fit of the curve from the margin of a pair to P(the order is right). The curve is fitted to labelled validation
    cases. Without such cases the curve is fitted to answers of reviewers of the draw `audit`, if these are of at least
    `min_cases` patients, and is then the probability that a reviewer agrees."""
    least_answers: Annotated[int, Field(ge=1)] = 20
    """Number of answers of reviewers below which no noise is estimated from the answers."""


def run_audit(
    panel_file: Path,
    judges: Mapping[str, bool],
    pair_sets: Mapping[str, PairSet],
    data: Data,
    knobs: Audit,
    seed: int,
    out: Path,
) -> None:
    """Audit every judge, strategy and pair set, calibrate the pair sets, and write the results to the folder `out`.

    The tables are `judges.parquet`, `strategies.parquet`, `bins.parquet`, `pairs.parquet`, `answers.parquet`,
    `calibration.parquet` and `reliability.parquet`. `summary.json` holds the number of labelled validation cases and of
    their groups, the headroom of the proposals, a summary of the calibration of each pair set, the state of the review
    (null without an answer), and the warnings, each with its pair set.
    `judges` says for every judge of the panel whether the judge reads the truth.
    Without labelled validation cases the tables are empty but for what the answers of reviewers show, and the only
    warning says so.
    """
    panel = scan_table(panel_file, schema.panel(judges))
    validation = panel.filter(pl.col("split") == "validation", pl.col("true_dice").is_not_null()).collect()
    all_sets = {name: pairs for name, pairs in pair_sets.items() if not isinstance(pairs.strategy, NoPairs)}
    answers = Answers(read_answers(data))
    answered, sets = len(answers.table) > 0, all_sets if len(validation) else {}
    rows, of = validation.lazy(), _validation(validation, data)
    ordered = {name: part for name, pairs in (all_sets if answered else sets).items() if (part := judged(pairs))}
    calibrated = {
        name: calibrate_pairs(part, rows, data.proposals, knobs.calibration, seed) for name, part in ordered.items()
    }
    asked = Asked(answers, panel, data.proposals, seed)
    for name, part in ordered.items():
        if calibrated[name].curve is None and answered:
            calibrated[name] = asked.calibration(part, knobs.calibration) or calibrated[name]
    tried = {
        name: try_reviewed(pairs, rows, data.proposals, seed, answers.table, calibrated.get(name))
        for name, pairs in sets.items()
    }
    # Pairs of reviewers are on validation cases only if a reviewer saw such cases.
    shown = {name: pairs for name, pairs in sets.items() if name in ordered or len(tried[name])}
    judged_here = list(judges) if len(validation) else []
    of_pairs, of_strategies = _pair_measures(rows, shown, tried, judged_here, data, knobs, seed)
    scores = validation_scores(validation, judged_here)
    of_judges = [
        audit_judge(name, scores, knobs.folds, knobs.failure_below, knobs.bootstrap, seed) for name in judged_here
    ]
    for row in of_judges:
        mine = [one for one in of_strategies if one["judge"] == row["judge"]]
        row["verdict"] = judge_verdict(row, mine, of.groups, judges[str(row["judge"])])
    judge_table = pl.DataFrame(of_judges, schema=schema.AUDIT_JUDGES.columns)
    pair_table = pl.DataFrame(of_pairs, schema=schema.AUDIT_PAIRS.columns)
    for table, frame, file in (
        (schema.AUDIT_JUDGES, judge_table, "judges"),
        (schema.AUDIT_PAIRS, pair_table, "pairs"),
        (schema.AUDIT_STRATEGIES, pl.DataFrame(of_strategies, schema=schema.AUDIT_STRATEGIES.columns), "strategies"),
        (schema.AUDIT_BINS, audit_bins(scores, data.proposals, BIN_SIZES, knobs.bootstrap, seed), "bins"),
    ):
        write_table(frame, table, out / f"{file}.parquet", knobs)
    said = _by_answers(asked, all_sets, calibrated, list(judges), (judge_table, pair_table), knobs) if answered else []
    write_table(
        pl.DataFrame(said, schema=schema.AUDIT_ANSWERS.columns), schema.AUDIT_ANSWERS, out / "answers.parquet", knobs
    )
    _write_calibration(all_sets, calibrated, answers.repeats.expected_error, knobs, out)
    room = headroom(scores, knobs.bootstrap, seed)
    notes = {name: str(part.summary["note"] or "") for name, part in calibrated.items() if part.curve}
    write_json(
        out / "summary.json",
        {
            "validation_cases": of.cases,
            "groups": of.groups,
            "headroom": {**room, "verdict": headroom_verdict(room, of.groups)},
            "calibration": {name: part.summary for name, part in calibrated.items()},
            "review": answers.state() if answered else None,
            "warnings": [
                *warnings(judge_table, pair_table, of, notes),
                *constant_picks(validation, {name: part.judge for name, part in ordered.items()}),
            ]
            if len(validation)
            else nothing_known(answered),
        },
    )


def _validation(panel: pl.DataFrame, data: Data) -> Validation:
    """Numbers of the validation cases of the panel."""
    known = set(panel["case_id"])
    labels = (data.cases.label(case) for case in data.cases.split("validation") if case.case_id in known)
    empty = sum(not ((label > 0) & (label != schema.UNKNOWN)).any() for label in labels)
    return Validation(len(known), panel["group"].n_unique(), empty)


def _pair_measures(
    rows: pl.LazyFrame,
    sets: Mapping[str, PairSet],
    tried: Mapping[str, pl.DataFrame],
    judges: Sequence[str],
    data: Data,
    knobs: Audit,
    seed: int,
) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """Rows of `AUDIT_PAIRS` for the pair sets, and of `AUDIT_STRATEGIES` for every judge with every standard strategy.

    All of them are mined on the validation rows of the panel. `tried` has the pairs of the pair sets.
    """
    proposals = data.proposals
    standard = {
        (judge, name): try_pairs(PairSet(judge=judge, strategy=strategy), rows, proposals, seed)
        for judge in judges
        for name, strategy in knobs.strategies.items()
    }
    # Masks are read once for the pairs of all sets and strategies: many of them share pairs.
    voxels = voxel_shares([*tried.values(), *standard.values()], data.cases, proposals)
    of_pairs = [
        {"pairs": name, "judge": sets[name].judge, "strategy": sets[name].strategy.kind}
        | audit_pairs(table, voxels, knobs.bootstrap, seed)
        for name, table in tried.items()
        if name in sets
    ]
    of_strategies = [
        {"judge": judge, "strategy": name} | audit_pairs(table, voxels, knobs.bootstrap, seed)
        for (judge, name), table in standard.items()
    ]
    return of_pairs, of_strategies


def _by_answers(
    asked: Asked,
    sets: Mapping[str, PairSet],
    calibrated: Mapping[str, PairCalibration],
    judges: Sequence[str],
    tables: tuple[pl.DataFrame, pl.DataFrame],
    knobs: Audit,
) -> list[dict[str, Any]]:
    """Rows of `AUDIT_ANSWERS` for every judge and pair set. `tables`: `AUDIT_JUDGES` and `AUDIT_PAIRS`."""
    labelled_judges, labelled_pairs = (
        {row[key]: row for row in table.iter_rows(named=True)}
        for key, table in zip(("judge", "pairs"), tables, strict=True)
    )
    least, answers = knobs.least_answers, asked.answers
    rows = [
        answers_row(asked.judge(name, name not in sets, on_labels(labelled_judges, name, "pair_error")), answers, least)
        for name in judges
    ]
    for name, pairs in sets.items():
        known = on_labels(labelled_pairs, name, "noise_rate")
        if judged(pairs) is None:
            rows.append(reviewed_row(name, answers, known))
        else:
            rows.append(answers_row(asked.pairs(name, pairs, calibrated[name], known), answers, least))
    return rows


def _write_calibration(
    sets: Mapping[str, PairSet],
    calibrated: Mapping[str, PairCalibration],
    error: float | None,
    knobs: Audit,
    out: Path,
) -> None:
    """Write `calibration.parquet` and `reliability.parquet`. `error`: probability that an answer is wrong, if known."""
    curves = []
    for name, pairs in sets.items():
        if name in calibrated:
            # For `otherwise`, the curve of the judge has the strategy of the judge.
            part = judged(pairs)
            assert part is not None
            curves.append(knots(name, part.judge, part.strategy.kind, calibrated[name].curve))
        if isinstance(pairs.strategy, Reviewed):
            own = knots(name, "none", REVIEWED, reviewer_curve(error))
            first = len(curves[-1]) if name in calibrated else 0
            curves.append(own.with_columns(pl.col("knot") + first))
    reliable = [part.reliability.with_columns(pairs=pl.lit(name)) for name, part in calibrated.items()]
    for table, parts, file in (
        (schema.CALIBRATION, curves, "calibration"),
        (schema.RELIABILITY, reliable, "reliability"),
    ):
        empty = pl.DataFrame(schema=table.columns)
        whole = pl.concat([empty, *(part.select(empty.columns).cast(empty.schema) for part in parts)])
        write_table(whole, table, out / f"{file}.parquet", knobs.calibration)
