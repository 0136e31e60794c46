"""What planted judge errors do to students: phantoms, judges `synthetic`, five objectives at matched beta, some seeds.

A seed covers base, proposals, judge and students; the cases and their splits are the same for all, so that patients
are crossed with seeds. `run` makes one seed (start several beside each other), `draw` collects them.

    python -m benchmarks.noise_sweep run --seed 0 --out sweep
    python -m benchmarks.noise_sweep draw --out sweep --figure docs/results/noise_sweep.png \\
        --table docs/results/noise_sweep.csv
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
import numpy as np
import polars as pl
from ruamel.yaml import YAML

from benchmarks.figure import save_png
from benchmarks.stage import stage

LEVELS: dict[str, dict[float, dict[str, Any]]] = {
    "order flips, share of cases": {e: {"flip": e} for e in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)},
    "size bias, Dice per relative volume": {b: {"size_bias": b} for b in (-0.5, 0.0, 0.5)},
    "order flips where |D| is large only": {e: {"flip": e, "large_above": 0.3} for e in (0.0, 0.3, 0.5)},
}
"""Errors of the judge by panel of the figure and by its horizontal axis."""

OBJECTIVES: dict[str, dict[str, Any]] = {
    "DPO": {"normaliser": "none"},
    "sqrt": {"normaliser": "sqrt_region"},
    "RN-DPO": {"normaliser": "region"},
    "RN-cDPO": {"normaliser": "region", "link": {"kind": "cdpo", "e": 0.2}},
    # Aims at half a logit, as cdpo with e = .2 and beta 3 does: log(4) / 3.
    "RN-IPO": {"normaliser": "region", "link": {"kind": "ipo", "tau": 1.0}},
}

JUDGES = {
    "synthetic_"
    + "_".join(f"{key}_{value:g}" for key, value in sorted(knobs.items())).replace(".", "").replace("-", "minus"): knobs
    for levels in LEVELS.values()
    for knobs in levels.values()
    if any(knobs[key] for key in knobs if key != "large_above")
} | {"truth": {}}
"""Judges by name; those without any error are one."""


def judge_of(knobs: dict[str, Any]) -> str:
    """Name of the judge with these errors."""
    return next((name for name, known in JUDGES.items() if known == knobs), "truth")


def arm_of(judge: str, objective: str) -> str:
    """Name of the student of a judge and an objective."""
    return f"{objective.replace('-', '_')}_{judge}"


def parameters(seed: int) -> dict[str, Any]:
    """The shipped parameters with these judges, their pairs and their students."""
    params: dict[str, Any] = YAML(typ="safe").load(Path(__file__).parent.parent / "params.yaml")
    params["seed"] = seed
    params["base"] |= {"members": 1, "fold_members": 1}
    params["judges"] = {name: {"kind": "synthetic", **knobs} for name, knobs in JUDGES.items()}
    params["consensus"] = {}
    strategy = {"kind": "top_bottom", "min_disagreement": 16, "max_pairs_per_case": 4}
    # Pairs that the audit finds out are trained on all the same: their noise is what is studied.
    strategy["min_p_correct"] = 0.0
    params["pairs"] = {name: {"judge": name, "strategy": strategy} for name in JUDGES}
    # A step size at which a judge that is right gives a gain on validation (seed 0), so that noise can take it away.
    params["training"] |= {"optimisation": {"steps": 80, "learning_rate": 1.0e-4, "evaluate_every": 16}}
    params["students"] = {
        arm_of(judge, name): {
            "pairs": judge,
            "objective": {"kind": "preference", "beta": 3.0, **knobs},
            # Without an anchor, what is seen is the doing of the pairs alone.
            "anchor": None,
        }
        for judge in JUDGES
        for name, knobs in OBJECTIVES.items()
    }
    params["execution"] = {"scheduler": "synchronous", "workers": 1, "progress": "none"}
    return params


@click.group(help=__doc__)
def main() -> None:
    pass


@main.command()
@click.option("--seed", type=int, required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
def run(seed: int, out: Path) -> None:
    """Everything of one seed; what is there already is kept."""
    folder = out / f"seed_{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    YAML().dump(parameters(seed), Path("params.yaml"))

    cases, proposals, panel = "--cases=data/cases", "--proposals=data/proposals", "--panel=data/panel.parquet"
    stage("prepare", "data/cases/manifest.json", "--out=data/cases")
    stage("base", "models/base/manifest.json", cases, "--out=models/base", "--history=history/base.csv")
    stage("propose", "data/proposals/manifest.json", cases, "--base=models/base", "--out=data/proposals")
    for judge in JUDGES:
        table = f"data/scores/{judge}.parquet"
        stage("judge", table, judge, cases, proposals, f"--out={table}")
    stage("panel", "data/panel.parquet", cases, proposals, "--scores=data/scores", "--out=data/panel.parquet")
    stage("audit", "audit/summary.json", cases, proposals, panel, "--out=audit")
    measured = ["--metrics=metrics/base.json", "--out=evaluation/base.parquet"]
    stage("evaluate", "metrics/base.json", "base", cases, "--model=models/base", *measured)
    for judge in JUDGES:
        pairs = f"data/pairs/{judge}.parquet"
        stage("mine", pairs, judge, panel, proposals, f"--out={pairs}")
        for objective in OBJECTIVES:
            arm = arm_of(judge, objective)
            model, metrics = f"models/students/{arm}", f"metrics/{arm}.json"
            trained = [f"--pairs={pairs}", "--base=models/base", f"--out={model}", f"--history=history/{arm}.csv"]
            stage("train", f"{model}/manifest.json", arm, cases, proposals, *trained)
            tables = [f"--out=evaluation/{arm}.parquet", f"--metrics={metrics}", "--base=evaluation/base.parquet"]
            stage("evaluate", metrics, arm, cases, f"--model={model}", *tables)


@main.command()
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--figure", type=click.Path(path_type=Path), required=True)
@click.option("--table", type=click.Path(path_type=Path), required=True)
def draw(out: Path, figure: Path, table: Path) -> None:
    """The gain over the base by noise, with 95 % intervals over seeds and patients, as a figure and as numbers."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    from pipeline.report.compare import gain_over_seeds
    from pipeline.store.schema import AUDIT_PAIRS, EVALUATION
    from pipeline.store.tables import read_table

    seeds = sorted(path for path in out.glob("seed_*") if (path / "metrics").is_dir())
    noise = {
        judge: [
            read_table(seed / "audit/pairs.parquet", AUDIT_PAIRS).filter(pl.col("pairs") == judge)["noise_rate"][0]
            for seed in seeds
        ]
        for judge in JUDGES
    }
    bases = [read_table(seed / "evaluation/base.parquet", EVALUATION) for seed in seeds]
    rows = []
    for title, levels in LEVELS.items():
        for level, knobs in levels.items():
            judge = judge_of(knobs)
            for objective in OBJECTIVES:
                arm = arm_of(judge, objective)
                students = [read_table(seed / f"evaluation/{arm}.parquet", EVALUATION) for seed in seeds]
                mean, low, high = gain_over_seeds(students, bases, 2000, 0)
                rows.append((title, level, float(np.mean(noise[judge])), objective, len(seeds), mean, low, high))
    columns = ["error", "level", "noise_rate", "objective", "seeds", "gain", "low", "high"]
    found = pl.DataFrame(rows, schema=columns, orient="row")
    found.write_csv(table, float_precision=4)
    sheet, panels = plt.subplots(1, len(LEVELS), figsize=(13, 4), sharey=True, layout="constrained")
    for axes, (title, levels) in zip(panels, LEVELS.items(), strict=True):
        width = max(levels) - min(levels)
        for turn, (objective, marker) in enumerate(zip(OBJECTIVES, "osD^v", strict=True)):
            one = found.filter((pl.col("error") == title) & (pl.col("objective") == objective)).sort("level")
            mean, low, high = (100 * one[name].to_numpy() for name in ("gain", "low", "high"))
            # Beside each other, so that the intervals can be told apart.
            at = one["level"].to_numpy() + width * 0.012 * (turn - 2)
            axes.errorbar(at, mean, (mean - low, high - mean), marker=marker, ms=5, lw=1.4, capsize=2, label=objective)
        axes.axhline(0, color="0.5", lw=0.8)
        axes.set_xlabel(title)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("sustained test Dice, gain over base, points")
    panels[0].legend(frameon=False)
    save_png(sheet, figure, dpi=144)


if __name__ == "__main__":
    main()
