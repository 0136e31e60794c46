"""Which students are worth training: all arms of a fair comparison on three real data sets, over several seeds.

A seed covers base, proposals, judges and students; cases and splits are the same for all seeds. `run` makes one seed
and goes on where it was stopped, so several seeds may run beside each other. Learning rates and weights are tried on
seed 0 (`--arms tune`) and chosen on validation (`choose`). `collect` adds the test Dice of every case to a table that
outlives the models. `benchmarks.study_page` makes the tables of results from it.

    python -m benchmarks.study run --set polyps --seed 0 --arms tune --data ../shared/data --out study
    python -m benchmarks.study choose --out study
    python -m benchmarks.study run --set polyps --seed 0 --arms core --data ../shared/data --out study
    python -m benchmarks.study collect --out study
    python -m benchmarks.study_page
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import polars as pl
from polars import selectors
from pyarrow.parquet import write_table
from ruamel.yaml import YAML

from benchmarks.stage import stage
from pipeline.promotion.record import PROMOTION_FILE, Comparison, PromotionRecord

RATES = (5e-4, 1e-3, 2e-3)
"""Learning rates of the study."""
TRIED = (*((rate, 1.0) for rate in RATES), (5e-4, 0.3), (5e-4, 0.1))
"""Learning rates and weights that every family tries. What the weight belongs to is the family's own; see `family`."""
WITHOUT_WEIGHT = {"supervised": TRIED[:4], "full": TRIED[:3]}
"""Tries of the families that have no weight. The fourth of `supervised` varies the labelled images strongly."""
RECIPE = (2e-3, 1 / 3)
"""Learning rate and weight of the shipped recipe: labels weigh three times as much as the imitation, and the student
has a threshold of its own from pool images. Validation of both sets chose the weight after `TRIED`. The arm `recipe`
imitates `BEST`, as the shipped `params.yaml` does, and the arm `recipe_fitted` the fitted mean."""
BEST = "regions composed"
"""Proposal to imitate: composed of regions where that is better out of fold than the mean of all, else the mean."""

CHANNELS, STRIDES, RESIDUAL_UNITS = [16, 32, 64, 128], [2, 2, 2], 2
SETS: dict[str, dict[str, Any]] = {
    "polyps": {
        "data": {
            "kind": "folders",
            "path": "kvasir-seg",
            "classes": ["background", "polyp"],
            "case_table": {"file": "cases.csv", "case": "case_id", "group": "near_duplicate_group"},
        },
        "preprocess": {"normalise": "zscore", "resize": [64, 64]},
        "splits": {"labelled": 60, "pool": 400, "validation": 100, "test": 300},
        "augmentation": {"flips": [0, 1], "rotate_degrees": 30.0},
        "modality": "photograph",
        "folds": 3,
        "steps": {"base": 800, "student": 600, "full": 2400},
        "batch": 6,
        "nsd_tolerance": 3.0,
    },
    "nuclei": {
        "data": {"kind": "nnunet", "path": "Dataset038_Nuclei"},
        "preprocess": {"normalise": "percentile", "resize": [64, 64]},
        "splits": {"labelled": 12, "pool": 250, "validation": 60, "test": 150},
        "augmentation": {"flips": [0, 1], "rotate_degrees": 30.0},
        "modality": "microscopy",
        "folds": 3,
        "steps": {"base": 800, "student": 600, "full": 2400},
        "batch": 6,
        "nsd_tolerance": 2.0,
    },
    "hippocampus": {
        "data": {
            "kind": "decathlon",
            "path": "Task04_Hippocampus",
            "case_table": {"file": "groups.csv", "case": "case_id", "group": "group"},
        },
        "preprocess": {"normalise": "zscore"},
        "splits": {"labelled": 20, "pool": 90, "validation": 40, "test": 50},
        "augmentation": {"flips": [0]},
        "modality": "mri",
        # Residual units take three times as long on volumes.
        "residual_units": 0,
        "folds": 2,
        "steps": {"base": 600, "student": 300, "full": 900},
        "batch": 3,
        "nsd_tolerance": 1.0,
    },
}
"""Knobs of each data set, the polyps on two working grids. Paths of data are below `--data`."""
SETS["polyps_128"] = {**SETS["polyps"], "preprocess": {"normalise": "zscore", "resize": [128, 128]}}

TUNED = ("polyps", "nuclei")
"""Data sets whose validation chooses learning rates and weights."""
FLIPS = {2: [[0], [1], [0, 1]], 3: [[0]]}
PICKS = {"judge": "pairwise", "fixed": "fixed", "oracle": "oracle"}
"""Judges whose top pick is preferred to the base, by the name of the pair set."""
POOL_TERMS: dict[str, dict[str, Any] | None] = {
    "alone": None,
    "agreement": {"proposal": "consensus majority", "where": "agreement"},
    "best": {"proposal": BEST},
}
"""Terms beside the pairs, by the end of the arm's name."""
OBJECTIVES: dict[str, dict[str, Any]] = {
    "imitate": {"kind": "sft"},
    "rn_dpo": {"kind": "preference", "normaliser": "region"},
    "rn_cdpo": {"kind": "preference", "normaliser": "region", "link": {"kind": "cdpo", "e": 0.2}},
    "dpo": {"kind": "preference", "normaliser": "none"},
}
ROUND_1, ROUND_2 = "imitate_best", "round_2"
"""Student whose recipe starts from every model, and the folder and name of the student of the next round."""
MEMBERS = ("member_1", "member_2")
PROMOTABLE = ("supervised", "recipe", "judge_rn_dpo_best")
"""Candidates for promotion: two as the shipped `params.yaml` has them, and the preference arm of the study."""
FIXED_ARMS = {
    "flips": "flips mean",
    "ensemble": "ensemble mean",
    "mean_of_all": "mean all",
    "mean_fitted": "mean fitted",
    "base_fitted": "one fitted",
    "regions": "regions composed",
    "majority": "consensus majority",
}
"""Arms without training: a proposal as it is, by the name of the arm."""


def with_pool(objective: dict[str, Any], pairs: str, weight: float, imitate: dict[str, Any] | None) -> dict[str, Any]:
    """A student on pairs. `weight` is that of the objective against the terms of the anchor."""
    anchor: dict[str, Any] = {"supervised": round(1 / weight, 4)}
    if imitate is not None:
        anchor["imitate"] = {**imitate, "weight": round(1 / weight, 4)}
    return {"pairs": pairs, "objective": objective, "anchor": anchor}


def pooled(objective: dict[str, Any], weight: float) -> dict[str, Any]:
    """A student on all pool images without pairs. `weight` is that of the objective against the labelled term."""
    return {"pairs": "none", "objective": objective, "anchor": {"supervised": round(1 / weight, 4)}}


def full(of: dict[str, Any], steps: int, rate: float) -> dict[str, Any]:
    """All labels of the pool, as many images per step as the other arms see."""
    optimisation = {"steps": steps, "learning_rate": rate, "evaluate_every": steps // 10, "schedule": "cosine"}
    return {"pairs": "none", "objective": {"kind": "full", "batch": 2 * of["batch"], "optimisation": optimisation}}


def family(name: str, rate: float, weight: float, of: dict[str, Any]) -> dict[str, Any]:
    """The student of a family at a learning rate and a weight, for the choice on validation."""
    students: dict[str, Any] = {
        "supervised": {"pairs": "none", "objective": {"kind": "supervised"}, "labelled_views": weight < 1},
        "distill": pooled({"kind": "distill"}, weight),
        "imitate": pooled({"kind": "imitate", "proposal": BEST}, weight),
        "mean_teacher": pooled({"kind": "mean_teacher", "consistency": {"weight": 10 * weight}}, 1.0),
        "pseudo_label": pooled({"kind": "pseudo_label"}, weight),
        "preference": with_pool(OBJECTIVES["rn_dpo"], "judge", weight, POOL_TERMS["best"]),
        "preference_alone": with_pool(OBJECTIVES["rn_dpo"], "judge", weight, None),
        "oracle_imitate": with_pool(OBJECTIVES["imitate"], "oracle", weight, None),
        "oracle_preference": with_pool(OBJECTIVES["rn_dpo"], "oracle", weight, POOL_TERMS["best"]),
        "oracle_preference_alone": with_pool(OBJECTIVES["rn_dpo"], "oracle", weight, None),
        "full": full(of, of["steps"]["student"], rate),
    }
    return students[name]


def tries(name: str) -> tuple[tuple[float, float], ...]:
    """Learning rates and weights that a family tries."""
    return WITHOUT_WEIGHT.get(name, TRIED)


FAMILIES = (
    *("supervised", "full", "imitate", "preference", "preference_alone"),
    *("oracle_imitate", "oracle_preference", "oracle_preference_alone"),
    *("distill", "mean_teacher", "pseudo_label"),
)


def try_name(name: str, rate: float, weight: float) -> str:
    """Name of the arm that tries a family at a learning rate and a weight."""
    return f"tune_{name}_{rate:g}_{weight:g}".replace("-", "").replace(".", "")


def tried(of: dict[str, Any], families: Sequence[str]) -> dict[str, tuple[float, dict[str, Any]]]:
    """Learning rate and student by name, of the choice on validation."""
    return {
        try_name(name, rate, weight): (rate, family(name, rate, weight, of))
        for name in families
        for rate, weight in tries(name)
    }


def arms(
    of: dict[str, Any], chosen: dict[str, tuple[float, float]], which: str
) -> dict[str, tuple[float, dict[str, Any]]]:
    """Learning rate and student of the arms of the study, by name. `chosen` has learning rate and weight by family."""
    found: dict[str, tuple[float, dict[str, Any]]] = {}

    def add(name: str, of_family: str, student: dict[str, Any] | None = None) -> None:
        rate, weight = chosen[of_family]
        found[name] = rate, student or family(of_family, rate, weight, of)

    def paired(pick: str, objective: str, pool: str) -> None:
        of_family = "imitate" if objective == "imitate" else "preference_alone" if pool == "alone" else "preference"
        if pick == "oracle":
            of_family = f"oracle_{of_family}"
        student = with_pool(OBJECTIVES[objective], pick, chosen[of_family][1], POOL_TERMS[pool])
        add(f"{pick}_{objective}_{pool}", of_family, student)

    if which == "core":
        for name, pick in FIXED_ARMS.items():
            found[name] = RATES[1], {"pairs": "none", "objective": {"kind": "proposal", "pick": pick}}
        found["base_tuned"] = RATES[1], {"pairs": "none", "objective": {"kind": "threshold"}}
        for plain, views in (("supervised", False), ("supervised_strong", True)):
            student = {"pairs": "none", "objective": {"kind": "supervised"}, "labelled_views": views}
            add(plain, "supervised", student)
        add(ROUND_1, "imitate")
        rate, weight = chosen["imitate"]
        for name, proposal in (("mean", "mean all"), ("fitted", "mean fitted")):
            add(f"imitate_{name}", "imitate", pooled({"kind": "imitate", "proposal": proposal}, weight))
        for pick in ("judge", "oracle"):
            paired(pick, "imitate", "alone")
            paired(pick, "rn_dpo", "best")
        paired("oracle", "rn_dpo", "alone")
        for ending, offsets in (("own", "validation"), ("pool", "pool")):
            add(f"imitate_best_{ending}", "imitate", {**family("imitate", rate, weight, of), "offsets": offsets})
        student = {"pairs": "none", "objective": {"kind": "supervised"}, "labelled_views": False, "offsets": "pool"}
        add("supervised_pool", "supervised", student)
        for name, proposal in (("recipe", BEST), ("recipe_fitted", "mean fitted")):
            student = {**pooled({"kind": "imitate", "proposal": proposal}, RECIPE[1]), "offsets": "pool"}
            found[name] = RECIPE[0], student
        add("full_same", "full")
        rate = chosen["full"][0]
        found["full"] = rate, full(of, of["steps"]["full"], rate)
    if which == "confirm":
        core = arms(of, chosen, "core")
        confirmed = ("mean_fitted", "regions", "supervised", "supervised_pool", ROUND_1, "recipe", "full_same")
        found = {name: core[name] for name in confirmed}
    if which == "promote":
        core = arms(of, chosen, "core")
        found = {name: core[name] for name in PROMOTABLE}
    if which == "views":
        found = {"recipe_unvaried": arms(of, chosen, "core")["recipe"]}
    if which == "rounds":
        rate, weight = chosen["imitate"]
        for member in MEMBERS:
            add(f"{ROUND_1}_{member}", "imitate", {**family("imitate", rate, weight, of), "start": member})
    if which == "rivals":
        for name in ("distill", "mean_teacher", "pseudo_label"):
            add(name, name)
        rate = chosen["full"][0]
        labels = {**full(of, of["steps"]["student"], rate)["objective"], "kind": "validation_labels"}
        found["validation_labels"] = rate, {"pairs": "none", "objective": labels}
    if which == "pairs":
        for pick in PICKS:
            for objective in OBJECTIVES:
                for pool in POOL_TERMS:
                    paired(pick, objective, pool)
    return found


def parameters(of: dict[str, Any], seed: int, data: Path, students: dict[str, dict[str, Any]], rate: float) -> Any:
    """All knobs of one seed, with students that share a learning rate."""
    dimensions = 3 if of["data"]["kind"] == "decathlon" else 2
    steps = of["steps"]["student"]
    strategy = {"kind": "top_base", "min_disagreement": 16, "min_p_correct": 0.0}
    flips = FLIPS[dimensions]
    units = of.get("residual_units", RESIDUAL_UNITS)
    network = {"channels": CHANNELS, "strides": STRIDES, "num_res_units": units}
    return {
        "seed": seed,
        "data": {**of["data"], "path": str(data / of["data"]["path"])},
        "preprocess": of["preprocess"],
        "splits": of["splits"],
        "augmentation": of["augmentation"],
        "model": "raw/none",
        "base": {
            "network": {"name": "UNet", "arguments": network, "multiple": 8},
            "optimisation": {"steps": of["steps"]["base"], "learning_rate": 1e-3, "evaluate_every": 100, "patience": 4},
            "batch": 8 if dimensions == 2 else 4,
            "members": len(MEMBERS),
            "folds": of["folds"],
            "fold_members": len(MEMBERS),
        },
        "propose": {
            "imports": "raw/none",
            "splits": ["pool", "validation", "test"],
            "samplers": {
                "dropout": {"kind": "mc_dropout", "rates": [0.2, 0.35, 0.5], "at": "bottleneck"},
                "flips": {"kind": "tta", "flips": flips},
                "ensemble": {"kind": "ensemble"},
                "mean": {"kind": "mean", "flips": flips, "thresholds": [0.2, 0.35, 0.65, 0.8]},
                "one": {"kind": "mean", "members": [], "flips": []},
                "regions": {"kind": "regions"},
                "consensus": {"kind": "consensus", "of": ["majority"]},
            },
        },
        "judges": {
            "agreement": {"kind": "agreement"},
            "expected_dice": {"kind": "expected_dice"},
            "pairwise": {"kind": "pairwise"},
            "quality": {
                "kind": "quality",
                "optimisation": {"steps": 400, "learning_rate": 1e-3, "evaluate_every": 50},
            },
            "fixed": {"kind": "fixed", "proposal": "mean fitted"},
            "fixed_best": {"kind": "fixed"},
            "oracle": {"kind": "oracle"},
        },
        "tables": {},
        "review": {"verdicts": "raw/none"},
        "experts": {},
        "consensus": {"learned": {"kind": "rank_mean", "judges": ["pairwise", "quality"]}},
        "audit": {},
        "pairs": {
            "none": {"judge": "none", "strategy": {"kind": "none"}},
            **{name: {"judge": judge, "strategy": strategy} for name, judge in PICKS.items()},
        },
        "training": {
            "optimisation": {
                "steps": steps,
                "learning_rate": rate,
                "schedule": "cosine",
                "evaluate_every": steps // 10,
            },
            "images": of["batch"],
            "labelled": of["batch"],
            "views": {"modality": of["modality"], "strength": of.get("strength", 1.0)},
        },
        "students": students,
        "evaluation": {"nsd_tolerance": of["nsd_tolerance"]},
        "promotion": {"first_base": "raw/none"},
        "compute": {"device": "cpu", "threads": 1, "precision": "float32"},
        "execution": {"scheduler": "synchronous", "workers": 1, "progress": "none"},
    }


def prepared(params: str) -> None:
    """All stages before the students, in the current folder."""
    cases, proposals, panel = "--cases=data/cases", "--proposals=data/proposals", "--panel=data/panel.parquet"
    given, folds = f"--params={params}", "--out-of-fold=data/out_of_fold"
    stage("prepare", "data/cases/manifest.json", given, "--out=data/cases")
    stage("base", "models/base/manifest.json", given, cases, "--out=models/base", "--history=history/base.csv")
    stage("propose", "data/proposals/manifest.json", given, cases, "--base=models/base", "--out=data/proposals", folds)
    for judge in YAML(typ="safe").load(Path(params))["judges"]:
        table = f"data/scores/{judge}.parquet"
        stage("judge", table, judge, given, cases, proposals, folds, "--models=models/judges", f"--out={table}")
    stage("panel", "data/panel.parquet", given, cases, proposals, "--scores=data/scores", "--out=data/panel.parquet")
    stage("audit", "audit/summary.json", given, cases, proposals, panel, "--out=audit")
    for name in ("none", *PICKS):
        pairs = f"data/pairs/{name}.parquet"
        stage("mine", f"data/pairs/{name}.drops.json", name, given, panel, proposals, "--audit=audit", f"--out={pairs}")


def trained(params: str, name: str, pairs: str) -> None:
    """One student, if there is none yet."""
    model = f"models/students/{name}"
    stage(
        "train",
        f"{model}/manifest.json",
        name,
        f"--params={params}",
        "--cases=data/cases",
        "--proposals=data/proposals",
        f"--pairs=data/pairs/{pairs}.parquet",
        "--base=models/base",
        f"--out={model}",
        f"--history=history/{name}.csv",
    )


def measured(params: str, name: str) -> None:
    """Test measures of the base or of one student, if there are none yet."""
    model = "models/base" if name == "base" else f"models/students/{name}"
    base = [] if name == "base" else ["--base=evaluation/base.parquet"]
    tables = [f"--out=evaluation/{name}.parquet", f"--metrics=metrics/{name}.json", *base]
    given = [f"--params={params}", "--cases=data/cases", "--proposals=data/proposals", f"--model={model}"]
    stage("evaluate", f"metrics/{name}.json", name, *given, *tables)


def validated(params: str, name: str) -> None:
    """Validation measures of the base or of the last weights of one student, if there are none yet."""
    model = "models/base" if name == "base" else f"models/students/{name}"
    given = [f"--params={params}", "--cases=data/cases", "--proposals=data/proposals", f"--model={model}"]
    stage("validate", f"validation/{name}.parquet", name, *given, f"--out=validation/{name}.parquet")


def second_round(of: dict[str, Any], seed: int, data: Path, rate: float, weight: float) -> None:
    """The next round as `stages.next_round` makes it, whether or not a student was promoted, in the current folder.

    Students of the same recipe that started from all models are the models now. The fitted thresholds are carried over
    as numbers. Models of regions need folds, so the student of this round imitates the fitted mean. The arms are the
    student, the new mean at its threshold, and one round of as many steps as both.
    """
    from pipeline.exports.next_round import copy_models

    twice = f"{ROUND_1}_twice"
    longer = {**of, "steps": {**of["steps"], "student": 2 * of["steps"]["student"]}}
    with Path(f"params_{twice}.yaml").open("w") as file:
        YAML().dump(parameters(longer, seed, data, {twice: family("imitate", rate, weight, of)}, rate), file)
    trained(file.name, twice, "none")
    measured(file.name, twice)
    students = {
        f"{ROUND_2}_mean": {"pairs": "none", "objective": {"kind": "proposal", "pick": "mean fitted"}},
        ROUND_2: pooled({"kind": "imitate", "proposal": "mean fitted"}, weight),
    }
    folder, params = Path(ROUND_2), parameters(of, seed, data, students, rate)
    fitted = json.loads(Path("data/proposals/fitted.json").read_text())
    samplers = params["propose"]["samplers"]
    del samplers["regions"]
    for name in ("mean", "one"):
        samplers[name]["fitted"] = fitted[name]["thresholds"]
    params |= {
        "model": "raw/model",
        "base": {"kind": "checkpoint", "weights": "base", "members": list(MEMBERS)},
        "judges": {"oracle": {"kind": "oracle"}},
        "consensus": {},
        "pairs": {"none": params["pairs"]["none"]},
    }
    (folder / "raw").mkdir(parents=True, exist_ok=True)
    (folder / "raw/none").touch()
    made = Path("models/students")
    copy_models(
        {"base": made / ROUND_1, **{name: made / f"{ROUND_1}_{name}" for name in MEMBERS}}, folder / "raw/model"
    )
    with (folder / "params.yaml").open("w") as file:
        YAML().dump(params, file)
    os.chdir(folder)
    cases, proposals, pairs = "--cases=../data/cases", "--proposals=data/proposals", "data/pairs/none.parquet"
    panel = "data/panel.parquet"
    stage("base", "models/base/manifest.json", cases, "--out=models/base", "--history=history/base.csv")
    stage("propose", "data/proposals/manifest.json", cases, "--base=models/base", "--out=data/proposals")
    stage("judge", "data/scores/oracle.parquet", "oracle", cases, proposals, "--out=data/scores/oracle.parquet")
    stage("panel", panel, cases, proposals, "--scores=data/scores", f"--out={panel}")
    stage("mine", "data/pairs/none.drops.json", "none", f"--panel={panel}", proposals, f"--out={pairs}")
    for arm in students:
        model = f"models/students/{arm}"
        outs = [f"--out={model}", f"--history=history/{arm}.csv"]
        stage("train", f"{model}/manifest.json", arm, cases, proposals, f"--pairs={pairs}", "--base=models/base", *outs)
        # Beside the arms of the first round, and against its base.
        tables = [f"--out=../evaluation/{arm}.parquet", f"--metrics=../metrics/{arm}.json"]
        against = [f"--model={model}", "--base=../evaluation/base.parquet"]
        stage("evaluate", f"../metrics/{arm}.json", arm, cases, proposals, *against, *tables)


PATH = click.Path(path_type=Path)
TABLES = click.option(
    "--tables", type=PATH, default="docs/results", show_default=True, help="Folder of the tables and pages of results."
)
TRIED_FILE, CASES_FILE = "study_tried.csv", "study_cases.parquet"
JUDGES_FILE, PROMOTED_FILE = "study_judges.csv", "study_promoted.csv"


@click.group(help=__doc__)
def main() -> None:
    pass


@main.command()
@click.option("--set", "name", type=click.Choice(list(SETS)), required=True)
@click.option("--seed", type=int, required=True)
@click.option(
    "--arms",
    "which",
    type=click.Choice(["none", "tune", "core", "confirm", "promote", "views", "rounds", "rivals", "pairs"]),
    required=True,
)
@click.option("--data", type=PATH, required=True, help="Folder of the three data sets.")
@click.option("--out", type=PATH, required=True)
@TABLES
@click.option("--family", "families", type=click.Choice(FAMILIES), multiple=True, default=FAMILIES, help="To tune.")
@click.option("--only", multiple=True, help="Single arms of the group. `promote` decides among them alone.")
def run(
    name: str,
    seed: int,
    which: str,
    data: Path,
    out: Path,
    tables: Path,
    families: tuple[str, ...],
    only: tuple[str, ...],
) -> None:
    """Everything of one seed up to these arms; what is there already is kept."""
    of, data = SETS[name], data.resolve()
    if which == "views":
        of = {**of, "strength": 0.0}
    chosen = {} if which in ("none", "tune") else best_tries(tables / TRIED_FILE, TUNED)
    if which == "none":
        wanted: dict[str, tuple[float, dict[str, Any]]] = {}
    elif which == "tune":
        wanted = tried(of, families)
    else:
        wanted = arms(of, chosen, which)
    if unknown := sorted(set(only) - set(wanted)):
        raise click.BadParameter(f"--only: expected arms of '{which}', found {unknown}; there are {sorted(wanted)}")
    wanted = {arm: student for arm, student in wanted.items() if not only or arm in only}
    folder = out / name / f"seed_{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    for rate in RATES:
        students = {arm: student for arm, (own, student) in wanted.items() if own == rate}
        Path("raw").mkdir(exist_ok=True)
        Path("raw/none").touch()
        # A file of its own per group of arms, so that groups may run beside each other.
        params = f"params_{which}_{rate:g}.yaml"
        with Path(params).open("w") as file:
            YAML().dump(parameters(of, seed, data, students, rate), file)
        prepared(params)
        if which != "none":
            measured(params, "base")
        if which == "promote":
            validated(params, "base")
        for arm, student in students.items():
            trained(params, arm, student["pairs"])
            # What is only tried is measured on validation alone.
            if which != "tune":
                measured(params, arm)
            if which == "promote":
                validated(params, arm)
    if which == "promote":
        with Path("params_promote.yaml").open("w") as file:
            # All candidates in one file. The decision does not depend on the learning rate.
            students = {arm: student for arm, (_, student) in wanted.items()}
            YAML().dump(parameters(of, seed, data, students, RATES[0]), file)
        decided = ["--validation=validation", "--students=models/students", "--out=models/promoted"]
        stage("promote", f"models/promoted/{PROMOTION_FILE}", f"--params={file.name}", *decided)
    if which == "rounds":
        second_round(of, seed, data, *chosen["imitate"])


@main.command()
@click.option("--out", type=PATH, required=True)
@TABLES
def choose(out: Path, tables: Path) -> None:
    """Add the gain on validation, late in training, of every family that is tried whole, and print the best tries.

    Validation of polyps and nuclei chooses, by the mean of the two; hippocampus takes what they chose.
    """
    rows = []
    for name in FAMILIES:
        files = [[out / of / f"seed_0/history/{try_name(name, *each)}.csv" for of in TUNED] for each in tries(name)]
        if all(file.is_file() for each in files for file in each):
            rows += [(name, *one, *map(late_gain, each)) for one, each in zip(tries(name), files, strict=True)]
    keep_tries(rows, tables / TRIED_FILE, TUNED)


def late_gain(history: Path) -> float:
    """Validation Dice of the last two evaluations, mean, over that before the first step."""
    dice = pl.read_csv(history)["validation_dice"].to_numpy()
    return float(dice[-2:].mean() - dice[0])


def keep_tries(rows: Sequence[tuple[Any, ...]], file: Path, gains: Sequence[str]) -> None:
    """Add tries (family, rate, weight, one gain per column of `gains`) to a table, in place of those of the family."""
    names = ["family", "rate", "weight", *gains]
    found = pl.DataFrame(
        rows, schema={name: pl.String if name == "family" else pl.Float64 for name in names}, orient="row"
    )
    if file.is_file():
        found = pl.concat([pl.read_csv(file).filter(~pl.col("family").is_in(found["family"].to_list())), found])
    found.write_csv(file, float_precision=4)
    with pl.Config(tbl_rows=-1):
        print(found.with_columns(pl.col(gains) * 100))
    print(best_tries(file, gains))


def best_tries(file: Path, gains: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Learning rate and weight by family with the highest mean of the gains, from a table of `keep_tries`."""
    best = pl.read_csv(file).with_columns(mean=pl.mean_horizontal(gains)).sort("mean", descending=True)
    each = best.group_by("family", maintain_order=True).first().iter_rows(named=True)
    return {row["family"]: (row["rate"], row["weight"]) for row in each}


def seeds_of(folder: Path) -> list[Path]:
    """Folders of the seeds of a data set, in the order of their numbers."""
    return sorted(folder.glob("seed_*"), key=lambda path: int(path.name.split("_")[1]))


CASE_COLUMNS = {"seed": pl.UInt8, "arm": pl.String, "case_id": pl.String, "group": pl.String, "dice": pl.Float32}


def cases_of(folder: Path, seed: int, *more: str) -> pl.DataFrame:
    """Test measures of all finished arms of one folder: `CASE_COLUMNS` and more columns, a row per arm and case."""
    from pipeline.evaluation.evaluate import means_per_case
    from pipeline.store.schema import EVALUATION
    from pipeline.store.tables import read_table

    parts = [
        means_per_case(read_table(folder / f"evaluation/{arm}.parquet", EVALUATION)).select(
            pl.lit(seed, pl.UInt8).alias("seed"),
            pl.lit(arm).alias("arm"),
            *("case_id", "group"),
            # Four digits are a hundredth of a point. More digits would not compress.
            *(pl.col(name).round(4).cast(pl.Float32) for name in ("dice", *more)),
        )
        for arm in sorted(path.stem for path in (folder / "metrics").glob("*.json"))
    ]
    empty = pl.DataFrame(schema={**CASE_COLUMNS, **dict.fromkeys(more, pl.Float32)})
    return pl.concat([empty, *parts])


def with_new(old: pl.DataFrame, new: pl.DataFrame) -> pl.DataFrame:
    """Rows of `new`, and those of `old` that they do not replace.

    All arms of a seed have one base. If the base of a seed is another one in `new`, all old rows of the seed leave.
    """
    where, base = ["set", "seed"], pl.col("arm") == "base"
    both = old.filter(base).join(new.filter(base), on=[*where, "case_id"], how="inner")
    changed = both.filter(pl.col("dice") != pl.col("dice_right")).select(where).unique()
    left = old.join(changed, on=where, how="anti").join(new, on=[*where, "arm"], how="anti")
    for row in changed.sort(where).iter_rows(named=True):
        print(f"{row['set']}, seed {row['seed']}: the base is another one, so all old rows of this seed leave")
    return pl.concat([left, new]).sort(*where, "arm", "case_id")


def add_cases(new: pl.DataFrame, file: Path) -> None:
    """Add rows to a table of cases, as `with_new` says, and print how many arms each seed has."""
    found = with_new(read_cases(file) if file.is_file() else new.clear(), new)
    # Measures as decimals, their bytes side by side: exact, readable as Dice, and a quarter smaller than floats.
    measures = selectors.by_dtype(pl.Float32)
    write_table(
        found.with_columns(measures.cast(pl.Decimal(5, 4))).to_arrow(),
        file,
        compression="zstd",
        compression_level=22,
        use_dictionary=found.select(selectors.string()).columns,
        use_byte_stream_split=found.select(measures).columns,
        store_decimal_as_integer=True,
    )
    with pl.Config(tbl_rows=-1):
        print(found.group_by("set", "seed", maintain_order=True).agg(arms=pl.col("arm").n_unique()))


def judges_of(folder: Path) -> pl.DataFrame:
    """Lift of every judge of one seed on validation cases, over the base and over the best fixed sampler."""
    from pipeline.store.schema import AUDIT_JUDGES
    from pipeline.store.tables import read_table

    ends = ("", "_low", "_high")
    numbers = [f"{name}{end}" for name in ("lift", "lift_over_fixed") for end in ends]
    return read_table(folder / "audit/judges.parquet", AUDIT_JUDGES).select("judge", "fixed_sampler", *numbers)


def promotion_of(folder: Path) -> pl.DataFrame | None:
    """Candidates of one seed with their gain on validation patients, and whether they were promoted. None without."""
    record = PromotionRecord.of(folder / "models/promoted")
    if record is None:
        return None
    rows = [
        (one.name, one.name == record.promoted, record.patients, *one.over_base.model_dump().values())
        for one in record.students
    ]
    names = ["arm", "promoted", "patients", *Comparison.model_fields]
    return pl.DataFrame(rows, schema=names, orient="row")


def keep_seeds(found: Mapping[tuple[str, int], pl.DataFrame], file: Path) -> None:
    """Write the rows by data set and seed to a table, beside those of other seeds that the table has."""
    parts = [
        rows.insert_column(0, pl.lit(name).alias("set")).insert_column(1, pl.lit(seed, pl.Int64).alias("seed"))
        for (name, seed), rows in found.items()
    ]
    if not parts:
        return
    new = pl.concat(parts)
    if file.is_file():
        where = ["set", "seed"]
        new = pl.concat([pl.read_csv(file, schema=new.schema).join(new, on=where, how="anti"), new])
    new.sort("set", "seed", maintain_order=True).write_csv(file, float_precision=4)


def read_cases(file: Path) -> pl.DataFrame:
    """Table of cases that `add_cases` wrote."""
    if not file.is_file():
        raise click.ClickException(f"{file}: no such file; make it with `collect`")
    return pl.read_parquet(file).with_columns(selectors.decimal().cast(pl.Float32))


@main.command()
@click.option("--out", type=PATH, required=True)
@TABLES
def collect(out: Path, tables: Path) -> None:
    """Add the test Dice of every case of all finished arms to the table of the study.

    The lifts of the judges and the promotions of all seeds go to tables of their own.
    """
    parts = [
        cases_of(folder, int(folder.name.split("_")[1])).insert_column(0, pl.lit(name).alias("set"))
        for name in SETS
        for folder in seeds_of(out / name)
    ]
    if not parts:
        raise click.ClickException(f"{out}: expected the folder of a data set with a seed, found none; `run` one first")
    add_cases(pl.concat(parts), tables / CASES_FILE)
    seeds = {(name, int(at.name.split("_")[1])): at for name in SETS for at in seeds_of(out / name)}
    judges = {key: judges_of(at) for key, at in seeds.items() if (at / "audit/judges.parquet").is_file()}
    keep_seeds(judges, tables / JUDGES_FILE)
    promotions = {key: promotion_of(at) for key, at in seeds.items()}
    keep_seeds({key: rows for key, rows in promotions.items() if rows is not None}, tables / PROMOTED_FILE)


if __name__ == "__main__":
    main()
