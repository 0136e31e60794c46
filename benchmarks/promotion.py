"""Whether promotion does no harm: students of planted judges on phantoms, promoted on validation, measured on test.

A seed has one data set, one base and one set of proposals, and one run per judge: four judges that do harm and an
honest one. Students of harmful judges have no pool term, so that the harm is not hidden. `run` makes seeds one after
the other in one process and goes on where it was stopped. `draw` counts. `power` counts again with other numbers of
validation patients, drawn from the test patients.

    python -m benchmarks.promotion run --seeds 20 --out promotion
    python -m benchmarks.promotion draw --out promotion
    python -m benchmarks.promotion power --out promotion
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
import polars as pl
from ruamel.yaml import YAML

from benchmarks.stage import stage
from benchmarks.study import seeds_of

JUDGES: dict[str, dict[str, Any]] = {
    "likes_large": {"size_bias": 1.0},
    "likes_small": {"size_bias": -1.0},
    "coin": {"flip": 0.5},
    "honest": {"gaussian": 0.01},
}
"""Planted errors by the name of the run. The honest judge orders proposals of nearly equal quality by chance."""
INVERTED = "inverted"
"""A score table with the true Dice turned round: the worst judge that there is."""
RUNS = (INVERTED, *JUDGES)
HONEST = {"supervised": 3.3, "imitate": {"proposal": "mean fitted", "weight": 3.3}}
"""Anchor of the student of the honest judge. Preferences weigh .3, as chosen on a seed that is not counted."""
PATIENTS, REPEATS = (20, 40, 60, 90), 10
"""Numbers of patients that `power` draws, and the number of draws of each."""
MAX_WORSE = (0.1, 0.2, 0.3, 1.0)
"""Values of `promotion.max_worse` that `power` compares."""
CHOSE = 10
"""Seeds below this number chose the default of `promotion.max_worse`, and all others confirm the default."""
HARM, GAIN, WORSE_BY = -0.002, 0.01, 0.02
"""Test Dice over the base below which a promoted student did harm, test Dice from which a student should be promoted,
and the loss of Dice from which a patient counts as worse."""


def parameters(seed: int) -> dict[str, Any]:
    """All knobs of a seed. Data, base, proposals and students draw from the seed."""
    return {
        "seed": seed,
        "data": {
            "kind": "phantom",
            "path": "raw/none",
            "cases": 560,
            "size": [32, 32],
            "noise": 0.4,
            "bias": 0.3,
            "empty": 0.0,
            "seed": seed,
        },
        "preprocess": {"normalise": "zscore"},
        "splits": {"labelled": 20, "pool": 100, "validation": 40, "test": 400, "seed": seed},
        "augmentation": {"flips": [0, 1]},
        "model": "raw/none",
        "base": {
            "network": {"name": "UNet", "arguments": {"channels": [16, 32, 64], "strides": [2, 2]}, "multiple": 4},
            "optimisation": {"steps": 250, "learning_rate": 2e-3, "evaluate_every": 50, "patience": 3},
            "batch": 8,
            "members": 2,
            "folds": 2,
            "fold_members": 2,
        },
        "propose": {
            "imports": "raw/none",
            "samplers": {
                "dropout": {"kind": "mc_dropout", "rates": [0.2, 0.4], "at": "bottleneck"},
                "flips": {"kind": "tta"},
                "ensemble": {"kind": "ensemble"},
                "mean": {"kind": "mean", "thresholds": [0.2, 0.35, 0.65, 0.8]},
            },
        },
        "judges": {"truth": {"kind": "oracle"}}
        | {name: {"kind": "synthetic", **knobs} for name, knobs in JUDGES.items()},
        "tables": {INVERTED: {"kind": "table", "path": "qc/inverted.csv"}},
        "consensus": {},
        "audit": {"bootstrap": 200, "strategies": {}},
        "pairs": {
            name: {"judge": name, "strategy": {"kind": "top_base", "min_disagreement": 8, "min_p_correct": 0.0}}
            for name in RUNS
        },
        "training": {
            "optimisation": {"steps": 400, "learning_rate": 5e-4, "schedule": "cosine", "evaluate_every": 200},
            "images": 4,
            "labelled": 4,
            "views": {"modality": "mri"},
        },
        "students": {
            name: {
                "pairs": name,
                "objective": {"kind": "preference", "beta": 3.0},
                "anchor": HONEST if name == "honest" else {"supervised": 1.0},
            }
            for name in RUNS
        },
        "evaluation": {"nsd_tolerance": 1.0},
        "promotion": {"first_base": "raw/none"},
        "compute": {"device": "cpu", "threads": 1, "precision": "float32"},
        "execution": {"scheduler": "synchronous", "workers": 1, "progress": "none"},
    }


@click.group(help=__doc__)
def main() -> None:
    pass


@main.command()
@click.option("--seeds", type=int, default=20, show_default=True)
@click.option("--first", type=int, default=0, show_default=True, help="First seed.")
@click.option("--out", type=click.Path(path_type=Path), required=True)
def run(seeds: int, first: int, out: Path) -> None:
    """Everything of all seeds; what is there already is kept."""
    out = out.resolve()
    for seed in range(first, first + seeds):
        folder = out / f"seed_{seed}"
        (folder / "raw").mkdir(parents=True, exist_ok=True)
        os.chdir(folder)
        Path("raw/none").touch()
        with Path("params.yaml").open("w") as file:
            YAML().dump(parameters(seed), file)
        _seed()


def _seed() -> None:
    cases, proposals, panel = "--cases=data/cases", "--proposals=data/proposals", "--panel=data/panel.parquet"
    stage("prepare", "data/cases/manifest.json", "--out=data/cases")
    stage("base", "models/base/manifest.json", cases, "--out=models/base", "--history=history/base.csv")
    stage("propose", "data/proposals/manifest.json", cases, "--base=models/base", "--out=data/proposals")
    for judge in ("truth", *JUDGES, INVERTED):
        if judge == INVERTED and not Path("qc/inverted.csv").exists():
            Path("qc").mkdir(exist_ok=True)
            scores = pl.read_parquet("data/scores/truth.parquet").select("case_id", "proposal", -pl.col("score"))
            scores.write_csv("qc/inverted.csv")
        stage("judge", f"data/scores/{judge}.parquet", judge, cases, proposals, f"--out=data/scores/{judge}.parquet")
    stage("panel", "data/panel.parquet", cases, proposals, "--scores=data/scores", "--out=data/panel.parquet")
    stage("audit", "audit/summary.json", cases, proposals, panel, "--out=audit")
    for name in ("base", *RUNS):
        model = "models/base" if name == "base" else f"models/students/{name}"
        base = [] if name == "base" else ["--base=evaluation/base.parquet"]
        if name != "base":
            pairs = f"data/pairs/{name}.parquet"
            stage("mine", f"data/pairs/{name}.drops.json", name, panel, proposals, "--audit=audit", f"--out={pairs}")
            trained = [f"--pairs={pairs}", "--base=models/base", f"--out={model}", f"--history=history/{name}.csv"]
            stage("train", f"{model}/manifest.json", name, cases, proposals, *trained)
        table = f"validation/{name}.parquet"
        stage("validate", table, name, cases, proposals, f"--model={model}", f"--out={table}")
        tables = [f"--out=evaluation/{name}.parquet", f"--metrics=metrics/{name}.json", *base]
        stage("evaluate", f"metrics/{name}.json", name, cases, proposals, f"--model={model}", *tables)


@main.command()
@click.option("--out", type=click.Path(path_type=Path), required=True)
def draw(out: Path) -> None:
    """Promotions by judge, of students that are better and worse than their base on test."""
    from pipeline.evaluation.evaluate import gain_per_case, mean_over_patients
    from pipeline.promotion.knobs import Promotion
    from pipeline.promotion.promote import decide

    rows = []
    for folder in _finished(out):
        for judge in RUNS:
            bases = [_table(folder, "validation", "base")]
            record = decide({judge: None}, {judge: _table(folder, "validation", judge)}, bases, Promotion(), WORSE_BY)
            test = gain_per_case(_table(folder, "evaluation", judge), _table(folder, "evaluation", "base"))
            over = record.students[0].over_base
            measured = (mean_over_patients(test, "dice"), over.gain, over.lower_bound, over.share_worse)
            rows.append((folder.name, judge, record.patients, *measured, record.promoted is not None))
    columns = ["seed", "judge", "patients", "test_gain", "gain", "lower_bound", "share_worse", "promoted"]
    table = pl.DataFrame(rows, schema=columns, orient="row")
    table.write_csv(out / "promotions.csv")
    harmed, gained = pl.col("test_gain") < HARM, pl.col("test_gain") >= GAIN
    print(
        table.group_by("judge", maintain_order=True).agg(
            runs=pl.len(),
            test_gain=(100 * pl.col("test_gain")).mean().round(2),
            worst=(100 * pl.col("test_gain")).min().round(2),
            promoted=pl.col("promoted").sum(),
            harmful_promotions=(pl.col("promoted") & harmed).sum(),
            truly_better=gained.sum(),
            promoted_of_truly_better=(pl.col("promoted") & gained).sum(),
        )
    )


@main.command()
@click.option("--out", type=click.Path(path_type=Path), required=True)
def power(out: Path) -> None:
    """Promotions by `promotion.max_worse` and by number of validation patients.

    The validation patients are drawn from the test patients, and the other test patients tell the truth. The tables are
    those of test, whose Dice is a mean over the last evaluations and not that of the last weights.
    """
    from pipeline.evaluation.evaluate import gain_per_case, mean_over_patients
    from pipeline.promotion.knobs import Promotion
    from pipeline.promotion.promote import TOLERANCE, decide
    from pipeline.seeding import numpy_generator

    rows = []
    for seed, folder in enumerate(_finished(out)):
        base = _table(folder, "evaluation", "base")
        patients = base["group"].unique().sort().to_numpy()
        for judge in RUNS:
            student = _table(folder, "evaluation", judge)
            for repeat in range(REPEATS):
                order = numpy_generator(repeat, folder.name).permutation(patients)
                for number in PATIENTS:
                    drawn = pl.col("group").is_in(order[:number].tolist())
                    given = {judge: student.filter(drawn)}
                    over = (
                        decide({judge: None}, given, [base.filter(drawn)], Promotion(), WORSE_BY).students[0].over_base
                    )
                    truth = mean_over_patients(gain_per_case(student.filter(~drawn), base.filter(~drawn)), "dice")
                    rows.append((seed < CHOSE, number, truth, over.lower_bound, over.share_worse))
    table = pl.DataFrame(rows, schema=["chose", "patients", "truth", "low", "worse"], orient="row")
    harmed, gained = pl.col("truth") < HARM, pl.col("truth") >= GAIN
    found = []
    for limit in MAX_WORSE:
        promoted = (pl.col("low") > 0) & (pl.col("worse") <= limit + TOLERANCE)
        counts = table.group_by("chose", "patients", maintain_order=True).agg(
            max_worse=pl.lit(limit),
            harmful=harmed.sum(),
            harmful_promoted=(promoted & harmed).sum(),
            truly_better=gained.sum(),
            promoted_of_truly_better=(100 * promoted.filter(gained).mean()).round(0),
        )
        found.append(counts)
    with pl.Config(tbl_rows=-1):
        print(pl.concat(found).sort("chose", "max_worse", "patients", descending=[True, False, False]))


def _finished(out: Path) -> list[Path]:
    """Folders of the seeds of which all runs are measured, in the order of their numbers."""
    return [seed for seed in seeds_of(out) if all((seed / f"metrics/{name}.json").is_file() for name in RUNS)]


def _table(folder: Path, of: str, name: str) -> pl.DataFrame:
    """Validation or test measures of the base or of a student."""
    from pipeline.store.schema import EVALUATION
    from pipeline.store.tables import read_table

    return read_table(folder / of / f"{name}.parquet", EVALUATION)


if __name__ == "__main__":
    main()
