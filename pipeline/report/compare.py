"""Gain of each arm over its base in several runs that differ in their seed.

A seed covers base training, proposals, judges and students. Every run has its own base, and its gains are over that
base.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import polars as pl

from pipeline.errors import BadInput
from pipeline.evaluation.evaluate import (
    BOOTSTRAP_SEED,
    cases_worse,
    gain_per_case,
    mean_over_patients,
    means_per_case,
    worst_5_percent,
)
from pipeline.evaluation.metrics import Evaluation
from pipeline.measures.intervals import Interval, crossed_interval
from pipeline.measures.numbers import NO_VALUE, Estimate, decimal, points
from pipeline.report.cells import inline
from pipeline.store import schema
from pipeline.store.tables import read_table, write_table

COMPARISON = schema.TableSchema(
    "comparison",
    "an arm over several runs",
    ("arm",),
    {
        "arm": pl.String(),
        "seeds": pl.Int64(),  # number of runs
        "cases": pl.Int64(),  # test cases, the same in every run
        "groups": pl.Int64(),
        "sustained": pl.Float64(),  # test Dice, mean over patients and seeds
        "gain": pl.Float64(),  # sustained Dice minus that of the base of the same seed; null for the base
        "gain_low": pl.Float64(),  # null also for a single patient
        "gain_high": pl.Float64(),
        "seeds_gained": pl.Int64(),  # number of seeds whose gain is above 0; null for the base
        "worst_5_percent": pl.Float64(),  # Dice of the worst twentieth of the cases, mean over seeds
        "cases_worse": pl.Float64(),  # number of cases that became worse, mean over seeds; null for the base
    },
    frozenset({"gain", "gain_low", "gain_high", "seeds_gained", "cases_worse"}),
)

BASE_NAME = "base"


def gain_over_seeds(students: Sequence[pl.DataFrame], bases: Sequence[pl.DataFrame], draws: int, seed: int) -> Interval:
    """Gain of one arm in sustained test Dice over its base, mean over patients and seeds, with its 95 % interval.

    `students` and `bases` hold one table of `schema.EVALUATION` per seed. The interval is over patients crossed with
    seeds: see `intervals.crossed_interval`. One seed gives the interval over patients alone, as in
    `evaluation/NAME.json`; a text that shows this interval must say that it rests on one seed.
    Raises `BadInput` without a seed, for unequal numbers of tables, and if the test cases differ between two seeds or
    between an arm and its base.
    """
    if not students or len(students) != len(bases):
        raise BadInput(
            f"comparison: expected one table of the arm and one of its base per seed, found {len(students)} and "
            f"{len(bases)}"
        )
    for number, base in enumerate(bases[1:], 2):
        _check_same_cases("seed 1", bases[0], f"seed {number}", base)
    gains = [gain_per_case(student, base) for student, base in zip(students, bases, strict=True)]
    values = np.stack([gain["dice"].to_numpy() for gain in gains])
    return crossed_interval(values, gains[0]["group"].to_list(), draws, seed)


def compare(runs: Sequence[Path], arms: Sequence[str], knobs: Evaluation) -> pl.DataFrame:
    """Rows of `COMPARISON`, the base first, from `evaluation/NAME.parquet` of each run's folder.

    Arms are compared over the same seeds only. Raises `BadInput` with the names of the folders for a run that is named
    twice, runs with equal results, runs on different test cases, and an arm that a run lacks.
    """
    if len({run.resolve() for run in runs}) < len(runs):
        raise BadInput(f"comparison: expected each run once, found {[str(run) for run in runs]}")
    names = tuple(dict.fromkeys((BASE_NAME, *arms)))
    tables = {
        run: {name: read_table(run / "evaluation" / f"{name}.parquet", schema.EVALUATION) for name in names}
        for run in runs
    }
    for run in runs[1:]:
        _check_same_cases(str(runs[0]), tables[runs[0]][BASE_NAME], str(run), tables[run][BASE_NAME])
    for one, other in combinations(runs, 2):
        if all(tables[one][name].equals(tables[other][name]) for name in names):
            raise BadInput(
                f"comparison: {one} and {other} have equal results, so they are one run and not two seeds; leave one "
                "of them out, or repeat one with another `seed` in params.yaml"
            )
    rows = [_row(name, [found[name] for found in tables.values()], tables, knobs) for name in names]
    return pl.DataFrame(rows, schema=COMPARISON.columns)


def _row(
    name: str, of_seed: list[pl.DataFrame], tables: dict[Path, dict[str, pl.DataFrame]], knobs: Evaluation
) -> dict[str, object]:
    """Row of `COMPARISON` of one arm. The columns on the gain are null for the base."""
    per_case = [means_per_case(table) for table in of_seed]
    row: dict[str, object] = {
        "arm": name,
        "seeds": len(of_seed),
        "cases": per_case[0].height,
        "groups": per_case[0]["group"].n_unique(),
        "sustained": float(np.mean([mean_over_patients(cases, "dice") for cases in per_case])),
        "worst_5_percent": float(np.mean([worst_5_percent(cases) for cases in per_case])),
    }
    if name == BASE_NAME:
        return row
    gains = []
    for run, found in tables.items():
        try:
            gains.append(gain_per_case(found[name], found[BASE_NAME]))
        except BadInput as error:
            raise BadInput(f"{run / 'evaluation' / f'{name}.parquet'}: {error}") from error
    gain = gain_over_seeds(of_seed, [found[BASE_NAME] for found in tables.values()], knobs.bootstrap, BOOTSTRAP_SEED)
    return row | {
        "gain": gain.mean,
        "gain_low": gain.low,
        "gain_high": gain.high,
        "seeds_gained": sum(mean_over_patients(of_case, "dice") > 0 for of_case in gains),
        "cases_worse": float(np.mean([cases_worse(of_case, knobs) for of_case in gains])),
    }


def _check_same_cases(first: str, one: pl.DataFrame, second: str, other: pl.DataFrame) -> None:
    """Raise `BadInput` unless two evaluations have the same cases, classes and groups."""
    key = [*schema.EVALUATION.key, "group"]
    parted = [one.join(other, key, "anti"), other.join(one, key, "anti")]
    if differing := sum(table.height for table in parted):
        example = pl.concat([table.select(key) for table in parted]).row(0)
        raise BadInput(
            f"comparison: expected the same test cases, classes and groups in {first} ({one.height} rows) and {second} "
            f"({other.height} rows), found {differing} rows in one only, e.g. {example}; keep `splits.seed` when only "
            "the seed of the run is to change"
        )


def write_comparison(table: pl.DataFrame, path: Path, knobs: Evaluation) -> None:
    """Write the table as Parquet or CSV, by the suffix of `path`. Raises `BadInput` for another suffix."""
    if path.suffix == ".parquet":
        write_table(table, COMPARISON, path, knobs)
    elif path.suffix == ".csv":
        path.parent.mkdir(parents=True, exist_ok=True)
        table.write_csv(path)
    else:
        raise BadInput(f"{path}: expected a file that ends in .parquet or .csv")


def printed(table: pl.DataFrame) -> str:
    """The table as lines of text with Dice in points, and a line on what the intervals are over."""
    seeds, cases, groups = table.select("seeds", "cases", "groups").row(0)
    rows = [("arm", "sustained Dice", "gain over base", "seeds gained", "worst 5 %", "cases worse")]
    for row in table.iter_rows(named=True):
        gained = NO_VALUE if row["seeds_gained"] is None else f"{row['seeds_gained']} of {seeds}"
        rows.append(
            (
                row["arm"],
                points(row["sustained"]),
                inline(Estimate.column(row, "gain"), signed=True),
                gained,
                points(row["worst_5_percent"]),
                decimal(row["cases_worse"]),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    tested = f"Dice in points on {cases} test cases of {groups} groups; in brackets the 95 % interval"
    over = (
        "groups and seeds" if seeds > 1 else "groups alone: a single seed says nothing about the spread between seeds"
    )
    count = f"{seeds} seeds" if seeds > 1 else "one seed"
    return "\n".join([*lines, "", f"{tested} over {over} ({count})."])
