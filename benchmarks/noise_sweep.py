"""What planted judge errors do to students on polyps: judges `synthetic`, three objectives, some seeds.

Base and proposals are those of the study (`benchmarks/study.py`). A seed covers base, proposals, judges and students.
The cases and their splits are the same for all seeds, so patients are crossed with seeds. Learning rates and weights
are tried on seed 0 with a judge that is right (`--arms tune`) and chosen on validation (`choose`). `collect` adds the
finished seeds to a table of all test cases. `draw` makes the table of results, the figure and the tables of the page
from it, each table below the comment with its name.

    python -m benchmarks.study run --set polyps --seed 0 --arms none --data ../shared/data --out study
    python -m benchmarks.noise_sweep run --seed 0 --arms tune --data ../shared/data --out study
    python -m benchmarks.noise_sweep choose --out study
    python -m benchmarks.noise_sweep run --seed 0 --arms sweep --data ../shared/data --out study
    python -m benchmarks.noise_sweep collect --out study
    python -m benchmarks.noise_sweep draw
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
import numpy as np
import polars as pl
from ruamel.yaml import YAML

from benchmarks import study
from benchmarks.figure import save_png
from benchmarks.stage import stage
from benchmarks.study_page import Measured, cell, percent, points, put, table, tries_table
from pipeline.measures.intervals import Interval, crossed_interval

SET = "polyps"
LEVELS: dict[str, dict[float, str]] = {
    "order flips, share of cases": {0.0: "truth", 0.2: "flip_02", 0.4: "flip_04"},
    "size bias, Dice per relative volume": {-0.5: "likes_small", 0.0: "truth", 0.5: "likes_large"},
    "order flips where |D| is large only": {0.0: "truth", 0.5: "large"},
}
"""Judges by panel of the figure and by its horizontal axis."""
JUDGES: dict[str, dict[str, Any]] = {
    "truth": {},
    "flip_02": {"flip": 0.2},
    "flip_04": {"flip": 0.4},
    "likes_small": {"size_bias": -0.5},
    "likes_large": {"size_bias": 0.5},
    # In half of the cases, |D| of the best against the worst proposal is larger than .9 of the base's foreground.
    "large": {"flip": 0.5, "large_above": 0.9},
}
OBJECTIVES = {"DPO": "dpo", "RN-DPO": "rn_dpo", "RN-cDPO": "rn_cdpo"}
"""Objectives of the study by the name in tables."""
BY_CHANCE = "random"
"""Strategy that mines without rank, for RN-DPO: two proposals drawn at random, ordered by the judge."""
MINED_BY_CHANCE = ("truth", "flip_04", "likes_large")
TITLES = {
    "truth": "no errors",
    "flip_02": "order flips in 20 % of the cases",
    "flip_04": "order flips in 40 % of the cases",
    "large": "order flips in half of the cases with large D",
    "likes_small": "size bias, likes small masks (-0.5)",
    "likes_large": "size bias, likes large masks (+0.5)",
}
"""Title by judge in the tables of the page."""
ENDS = ("", "_low", "_high")
TRIED_FILE, CASES_FILE = "noise_sweep_tried.csv", "noise_sweep_cases.parquet"


def student(judge: str, objective: str, weight: float) -> dict[str, Any]:
    """A student on the pairs of a judge, beside the labelled term. Without a pool term, errors are not hidden."""
    return study.with_pool(study.OBJECTIVES[objective], judge, weight, None)


def tried() -> dict[str, tuple[float, dict[str, Any]]]:
    """Learning rate and student by name, of the choice on validation."""
    return {
        study.try_name(objective, *each): (each[0], student("truth", objective, each[1]))
        for objective in OBJECTIVES.values()
        for each in study.TRIED
    }


def arms(chosen: dict[str, tuple[float, float]]) -> dict[str, tuple[float, dict[str, Any]]]:
    """Learning rate and student of the arms by name. `chosen` has learning rate and weight by objective."""
    found = {}
    for objective in OBJECTIVES.values():
        rate, weight = chosen[objective]
        for judge in JUDGES:
            found[f"{objective}_{judge}"] = rate, student(judge, objective, weight)
    rate, weight = chosen["rn_dpo"]
    for judge in MINED_BY_CHANCE:
        pairs = f"{judge}_{BY_CHANCE}"
        found[f"rn_dpo_{pairs}"] = rate, student(pairs, "rn_dpo", weight)
    return found


def parameters(seed: int, data: Path, students: dict[str, dict[str, Any]], rate: float) -> Any:
    """All knobs of one seed: those of the study with these judges, their pairs and their students."""
    params = study.parameters(study.SETS[SET], seed, data, students, rate)
    by_rank = params["pairs"]["oracle"]["strategy"]
    params["judges"] = {name: {"kind": "synthetic", **knobs} for name, knobs in JUDGES.items()}
    params["consensus"] = {}
    params["pairs"] = {name: {"judge": name, "strategy": by_rank} for name in JUDGES}
    for name in MINED_BY_CHANCE:
        params["pairs"][f"{name}_{BY_CHANCE}"] = {"judge": name, "strategy": {**by_rank, "kind": BY_CHANCE}}
    return params


PATH = click.Path(path_type=Path)


@click.group(help=__doc__)
def main() -> None:
    pass


@main.command()
@click.option("--seed", type=int, required=True)
@click.option("--arms", "which", type=click.Choice(["tune", "sweep"]), required=True)
@click.option("--data", type=PATH, required=True, help="Folder of the three data sets.")
@click.option("--out", type=PATH, required=True, help="Folder of the study.")
@study.TABLES
def run(seed: int, which: str, data: Path, out: Path, tables: Path) -> None:
    """These arms of one seed; what is there already is kept."""
    wanted = tried() if which == "tune" else arms(study.best_tries(tables / TRIED_FILE, [SET]))
    data, folder = data.resolve(), out / SET / f"seed_{seed}/noise"
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    Path("raw").mkdir(exist_ok=True)
    Path("raw/none").touch()
    cases, proposals, folds = (
        "--cases=../data/cases",
        "--proposals=../data/proposals",
        "--out-of-fold=../data/out_of_fold",
    )
    panel = "data/panel.parquet"
    for rate in study.RATES:
        students = {arm: knobs for arm, (own, knobs) in wanted.items() if own == rate}
        params = f"params_{which}_{rate:g}.yaml"
        with Path(params).open("w") as file:
            YAML().dump(parameters(seed, data, students, rate), file)
        given = f"--params={params}"
        for judge in JUDGES:
            table = f"data/scores/{judge}.parquet"
            stage("judge", table, judge, given, cases, proposals, folds, f"--out={table}")
        stage("panel", panel, given, cases, proposals, "--scores=data/scores", f"--out={panel}")
        stage("audit", "audit/summary.json", given, cases, proposals, f"--panel={panel}", "--out=audit")
        for arm, knobs in students.items():
            name, model = knobs["pairs"], f"models/students/{arm}"
            pairs = f"data/pairs/{name}.parquet"
            mined = [f"--panel={panel}", proposals, "--audit=audit", f"--out={pairs}"]
            stage("mine", f"data/pairs/{name}.drops.json", name, given, *mined)
            made = [f"--pairs={pairs}", "--base=../models/base", f"--out={model}", f"--history=history/{arm}.csv"]
            stage("train", f"{model}/manifest.json", arm, given, cases, proposals, *made)
            # What is only tried is measured on validation alone.
            if which == "sweep":
                measured = [f"--model={model}", "--base=../evaluation/base.parquet", f"--out=evaluation/{arm}.parquet"]
                metrics = f"metrics/{arm}.json"
                stage("evaluate", metrics, arm, given, cases, proposals, *measured, f"--metrics={metrics}")


@main.command()
@click.option("--out", type=PATH, required=True, help="Folder of the study.")
@study.TABLES
def choose(out: Path, tables: Path) -> None:
    """Add the gain on validation, late in training, of every try of each objective, and print the best tries."""
    rows = []
    for objective in OBJECTIVES.values():
        for one in study.TRIED:
            history = out / SET / f"seed_0/noise/history/{study.try_name(objective, *one)}.csv"
            rows.append((objective, *one, study.late_gain(history)))
    study.keep_tries(rows, tables / TRIED_FILE, [SET])


@main.command()
@click.option("--out", type=PATH, required=True, help="Folder of the study.")
@study.TABLES
def collect(out: Path, tables: Path) -> None:
    """Add the test Dice of every case of the seeds with all arms, and the share of wrong pairs of each arm."""
    from pipeline.store.schema import AUDIT_PAIRS
    from pipeline.store.tables import read_table

    names = arms(study.best_tries(tables / TRIED_FILE, [SET]))
    pairs = pl.DataFrame(
        [(arm, knobs["pairs"]) for arm, (_, knobs) in names.items()], schema=["arm", "pairs"], orient="row"
    )
    parts = []
    for folder in study.seeds_of(out / SET):
        noise, seed = folder / "noise", int(folder.name.split("_")[1])
        if not all((noise / f"metrics/{name}.json").is_file() for name in names):
            continue
        wrong = read_table(noise / "audit/pairs.parquet", AUDIT_PAIRS).select("pairs", "noise_rate")
        base = study.cases_of(folder, seed, "dice_peak").filter(pl.col("arm") == "base")
        for cases in (base, study.cases_of(noise, seed, "dice_peak")):
            parts.append(cases.join(pairs.join(wrong, on="pairs"), on="arm", how="left").drop("pairs"))
    if not parts:
        raise click.ClickException(f"{out / SET}: expected a seed with all arms, found none; run --arms sweep first")
    study.add_cases(pl.concat(parts).insert_column(0, pl.lit(SET).alias("set")), tables / CASES_FILE)


@main.command()
@study.TABLES
def draw(tables: Path) -> None:
    """Gain over the base and differences between arms, with 95 % intervals over patients and seeds."""
    cases = study.read_cases(tables / CASES_FILE)
    measured = Measured(cases)
    seeds, of_base, patients = measured.dice("base")
    noise = dict(cases.group_by("arm").agg(pl.col("noise_rate").mean()).iter_rows())
    level_of = {judge: (title, level) for title, of in LEVELS.items() for level, judge in of.items()}
    level_of["truth"] = ("none", 0.0)

    def over_chance(judge: str, column: str) -> np.ndarray:
        by_rank, by_chance = (measured.dice(f"rn_dpo_{pairs}", column)[1] for pairs in (judge, f"{judge}_{BY_CHANCE}"))
        return by_rank - by_chance

    rows = []
    for objective, short in OBJECTIVES.items():
        for pairs in (*JUDGES, *(f"{judge}_{BY_CHANCE}" for judge in MINED_BY_CHANCE if short == "rn_dpo")):
            judge = pairs.removesuffix(f"_{BY_CHANCE}")
            mined_by = "top_base" if judge == pairs else BY_CHANCE
            row = [*level_of[judge], judge, mined_by, noise[f"{short}_{pairs}"], objective, len(seeds)]
            for column in ("dice", "dice_peak"):
                _, values, _ = measured.dice(f"{short}_{pairs}", column)
                row += crossed_interval(values - of_base, patients, 2000, 0)
            rival = measured.dice(f"dpo_{pairs}")[1] if mined_by == "top_base" else None
            own = measured.dice(f"{short}_{pairs}")[1]
            over = (None,) * 3 if rival is None else crossed_interval(own - rival, patients, 2000, 0)
            row += over
            by_rank = short == "rn_dpo" and mined_by == "top_base" and judge in MINED_BY_CHANCE
            for column in ("dice", "dice_peak"):
                row += crossed_interval(over_chance(judge, column), patients, 2000, 0) if by_rank else (None,) * 3
            # What the errors cost by rank, minus what they cost by chance.
            if by_rank and judge != "truth":
                amplified = over_chance("truth", "dice") - over_chance(judge, "dice")
                row += crossed_interval(amplified, patients, 2000, 0)
            else:
                row += (None,) * 3
            rows.append(row)
    of = [
        f"{name}{end}"
        for name in ("gain", "peak_gain", "over_dpo", "over_chance", "peak_over_chance", "amplified")
        for end in ENDS
    ]
    columns = ["error", "level", "judge", "mined_by", "noise_rate", "objective", "seeds", *of]
    found = pl.DataFrame(rows, schema=columns, orient="row")
    found.write_csv(tables / "noise_sweep.csv", float_precision=4)
    with pl.Config(tbl_rows=-1, tbl_cols=-1, tbl_width_chars=250, float_precision=3):
        print(found.drop("error"))
    _figure(found.filter(pl.col("mined_by") == "top_base"), tables / "noise_sweep.png")
    page = tables / "noise_sweep.md"
    text = page.read_text()
    for name, content in page_tables(found, tables / TRIED_FILE).items():
        text = put(text, name, content)
    page.write_text(text)


def page_tables(found: pl.DataFrame, tried: Path) -> dict[str, str]:
    """Tables of the page by name, from the table of results and the file of tries."""
    rows = {(row["judge"], row["mined_by"], row["objective"]): row for row in found.iter_rows(named=True)}

    def of(judge: str, objective: str, what: str, mined_by: str = "top_base") -> str:
        row = rows[judge, mined_by, objective]
        return cell((row["seeds"], Interval(*(row[f"{what}{end}"] for end in ENDS))), row["seeds"], points)

    def wrong(judge: str, mined_by: str = "top_base") -> str:
        return f"{percent(rows[judge, mined_by, 'RN-DPO']['noise_rate'])} %"

    errors = [
        (
            title,
            wrong(judge),
            *(of(judge, objective, "gain") for objective in OBJECTIVES),
            *(of(judge, objective, "over_dpo") for objective in OBJECTIVES if objective != "DPO"),
        )
        for judge, title in TITLES.items()
    ]
    mining = [
        (
            TITLES[judge],
            *(
                text
                for by in ("top_base", BY_CHANCE)
                for text in (wrong(judge, by), of(judge, "RN-DPO", "gain", by), of(judge, "RN-DPO", "peak_gain", by))
            ),
            *(of(judge, "RN-DPO", what) for what in ("over_chance", "peak_over_chance")),
            "" if judge == "truth" else of(judge, "RN-DPO", "amplified"),
        )
        for judge in MINED_BY_CHANCE
    ]
    over = [f"{objective} over DPO" for objective in OBJECTIVES if objective != "DPO"]
    by = [f"{what}, `{by}`" for by in ("top_base", BY_CHANCE) for what in ("wrong", "sustained", "peak")]
    differences = ("difference, sustained", "difference, peak", "harm of errors, difference")
    return {
        "errors": table(["planted errors", "wrong pairs on validation", *OBJECTIVES, *over], errors),
        "mining": table(["planted errors", *by, *differences], mining),
        "tries": tries_table(tried, {short: name for name, short in OBJECTIVES.items()}, [SET]),
    }


def _figure(found: pl.DataFrame, file: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    sheet, panels = plt.subplots(1, len(LEVELS), figsize=(11, 4), sharey=True, layout="constrained")
    for axes, (title, levels) in zip(panels, LEVELS.items(), strict=True):
        width = max(levels) - min(levels)
        for turn, (objective, marker) in enumerate(zip(OBJECTIVES, "osD", strict=True)):
            one = found.filter((pl.col("objective") == objective) & pl.col("judge").is_in(list(levels.values())))
            gains = dict(zip(one["judge"], 100 * one.select("gain", "gain_low", "gain_high").to_numpy(), strict=True))
            mean, low, high = np.array([gains[judge] for judge in levels.values()]).T
            # Beside each other, so that the intervals can be told apart.
            at = np.array(list(levels)) + width * 0.02 * (turn - 1)
            axes.errorbar(at, mean, (mean - low, high - mean), marker=marker, ms=5, lw=1.4, capsize=2, label=objective)
        axes.axhline(0, color="0.5", lw=0.8)
        axes.set_xlabel(title)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("sustained test Dice, gain over base, points")
    panels[0].legend(frameon=False)
    save_png(sheet, file, dpi=144)


if __name__ == "__main__":
    main()
