"""MAPO against supervised training with as many steps, on the data of the examples: its paper's three claims.

Better boundaries (ASSD), less overfitting (Dice on the labelled cases less Dice on test) and steadier late steps
(standard deviation over the late checkpoints of the mean test Dice). A seed covers the base and the arms; the cases
and their splits are the same for all. `run` makes one seed (start several beside each other), `draw` collects them.

    python -m benchmarks.mapo run --data polyps --network cnn --seed 0 --raw RAW/kvasir-seg --out mapo
    python -m benchmarks.mapo draw --out mapo --table docs/results/mapo.csv --figure docs/results/mapo.png
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click
import numpy as np
import polars as pl
from ruamel.yaml import YAML

from benchmarks.figure import save_png
from benchmarks.stage import stage

EXAMPLES = {"polyps": "kvasir", "hippocampus": "hippocampus"}

# Small, since a CPU takes several times as long for a Transformer as for the examples' UNet.
TRANSFORMER = {"feature_size": 8, "hidden_size": 96, "mlp_dim": 192, "num_heads": 4}

MAPO: dict[str, Any] = {"kind": "mapo", "hypotheses": 4, "rates": [0.1, 0.5], "tau": 0.02, "beta": 3.0}

ARMS: dict[str, dict[str, Any]] = {
    "supervised": {"pairs": "none", "objective": {"kind": "supervised"}},
    "MAPO, RN-DPO": {"pairs": "none", "objective": {**MAPO, "normaliser": "region"}},
    "MAPO, DPO": {"pairs": "none", "objective": {**MAPO, "normaliser": "none"}},
    "MAPO, agreement on the pool": {
        "pairs": "none",
        "objective": {**MAPO, "normaliser": "region", "ranker": {"kind": "agreement"}},
        "anchor": {"supervised": 1.0},
    },
}

METRICS = ("dice", "assd")
CURVES = {
    "labelled_dice": "Dice on labelled cases",
    "validation_dice": "validation Dice",
    "validation_assd": "validation ASSD",
}

COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red")


def name_of(arm: str) -> str:
    """Name of an arm's student."""
    return arm.lower().replace(", ", "_").replace("-", "_").replace(" ", "_")


def parameters(data: str, network: str, seed: int, raw: Path, every_arm: bool) -> dict[str, Any]:
    """The example's parameters with these arms alone: all, or supervised and RN-DPO."""
    example = Path(__file__).parent.parent / "examples" / f"{EXAMPLES[data]}.yaml"
    params: dict[str, Any] = YAML(typ="safe").load(example)
    params["seed"] = seed
    params["data"]["path"] = str(raw)
    # A base that has not converged makes every method look good, so it has no fewer steps than in the example.
    base = params["base"] | {"members": 0, "folds": 0, "fold_members": 0}
    if data == "polyps":
        params["preprocess"]["resize"] = [96, 96]
    if network == "transformer":
        base["network"] = {"name": "UNETR", "arguments": TRANSFORMER}
    if data == "hippocampus" and network == "transformer":
        # It learns more slowly than the example's UNet: with as many steps it would still be rising.
        base["optimisation"] = {"steps": 2000, "learning_rate": 1.0e-3, "evaluate_every": 100, "patience": 8}
    params["base"] = base
    params["judges"], params["consensus"] = {}, {}
    params["pairs"] = {"none": {"judge": "none", "strategy": {"kind": "none"}}}
    params["training"] |= {"optimisation": {"steps": 300, "learning_rate": 1.0e-4, "evaluate_every": 12}}
    arms = ARMS if every_arm else {arm: ARMS[arm] for arm in ("supervised", "MAPO, RN-DPO")}
    params["students"] = {name_of(arm): knobs for arm, knobs in arms.items()}
    params["execution"] = {"scheduler": "synchronous", "workers": 1, "progress": "none"}
    return params


@click.group(help=__doc__)
def main() -> None:
    pass


@main.command()
@click.option("--data", type=click.Choice(list(EXAMPLES)), required=True)
@click.option("--network", type=click.Choice(["cnn", "transformer"]), required=True)
@click.option("--seed", type=int, required=True)
@click.option("--raw", type=click.Path(path_type=Path), required=True, help="The data set's folder.")
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--every-arm", is_flag=True, help="DPO and the ranking of pool images too.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--precision", default="float32", show_default=True)
def run(data: str, network: str, seed: int, raw: Path, out: Path, every_arm: bool, device: str, precision: str) -> None:
    """Everything of one seed; what is there already is kept, if it was made with the same parameters."""
    folder = out / f"{data}_{network}" / f"seed_{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    raw = raw.resolve()
    os.chdir(folder)
    params = parameters(data, network, seed, raw, every_arm)
    params["compute"] |= {"device": device, "precision": precision}
    file = Path("params.yaml")
    before = YAML(typ="safe").load(file) if file.is_file() else params
    if {**before, "students": {}} != {**json.loads(json.dumps(params)), "students": {}}:
        raise click.ClickException(
            f"{folder / file}: made with other parameters; remove {folder}, or choose another --out"
        )
    YAML().dump(params, file)

    cases, base = "--cases=data/cases", "--base=models/base"
    stage("prepare", "data/cases/manifest.json", "--out=data/cases")
    stage("base", "models/base/manifest.json", cases, "--out=models/base", "--history=history/base.csv")
    _without_pairs(Path("data/pairs/none.parquet"))
    _measure("base", Path("models/base"))
    for name in params["students"]:
        model = f"models/students/{name}"
        files = ["--proposals=data/proposals", "--pairs=data/pairs/none.parquet", f"--history=history/{name}.csv"]
        stage("train", f"{model}/manifest.json", name, cases, base, f"--out={model}", *files)
        _measure(name, Path(model))


def _without_pairs(path: Path) -> None:
    from pipeline.store.schema import PAIRS
    from pipeline.store.tables import write_table

    write_table(pl.DataFrame(schema=PAIRS.columns), PAIRS, path, "no pairs")


def _measure(name: str, model: Path) -> None:
    """Every late checkpoint on test and on the labelled cases, on the source's grid: `measured/NAME.parquet`."""
    from pipeline.evaluation.evaluate import evaluate, means_per_case
    from pipeline.evaluation.prediction import predictions
    from pipeline.params import load_params
    from pipeline.store.cases import CaseStore
    from pipeline.store.proposals import Data, ProposalStore

    path = Path("measured") / f"{name}.parquet"
    if path.exists():
        return
    path.parent.mkdir(exist_ok=True)
    params, cases = load_params(Path("params.yaml")), CaseStore(Path("data/cases"))
    found = predictions(model, Data(cases, ProposalStore(Path("data/proposals"))), params.compute)
    tables = [
        means_per_case(evaluate(cases, cases.split(split), [checkpoint], None, params.evaluation)).with_columns(
            pl.lit(turn).alias("checkpoint"), pl.lit(split).alias("split")
        )
        for turn, checkpoint in enumerate(found.sustained)
        for split in ("test", "labelled")
    ]
    pl.concat(tables).write_parquet(path)


@main.command()
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--table", type=click.Path(path_type=Path), required=True)
@click.option("--figure", type=click.Path(path_type=Path), required=True)
def draw(out: Path, table: Path, figure: Path) -> None:
    """Sustained results with 95 % intervals over patients and seeds, as numbers, and the curves as a figure."""
    rows = []
    settings = sorted(path for path in out.iterdir() if path.is_dir())
    for setting in settings:
        for arm in ("base", *ARMS):
            name = name_of(arm)
            seeds = sorted(path for path in setting.glob("seed_*") if (path / f"measured/{name}.parquet").is_file())
            if seeds:
                rows.append({"setting": setting.name, "arm": arm, "seeds": len(seeds), **_row(seeds, name)})
    found = pl.DataFrame(rows)
    found.write_csv(table, float_precision=4)
    with pl.Config(tbl_rows=-1, tbl_cols=-1, tbl_width_chars=250):
        print(found)
    _figure(settings, figure)


def _row(seeds: list[Path], name: str) -> dict[str, float | int | None]:
    """Means over patients and seeds; differences are from `supervised` of the same seed."""
    from pipeline.measures.intervals import crossed_interval

    mine, other = ([_values(seed, arm) for seed in seeds] for arm in (name, "supervised"))
    row: dict[str, float | int | None] = {}
    groups = mine[0]["test"]["group"].to_list()
    for metric in METRICS:
        values = np.stack([seed["test"][metric].to_numpy() for seed in mine])
        row[f"test_{metric}"] = float(values.mean())
        against = np.stack([seed["test"][metric].to_numpy() for seed in other])
        difference = crossed_interval(values - against, groups, 2000, 0)
        row |= {f"{metric}_less_supervised{end}": v for end, v in zip(("", "_low", "_high"), difference, strict=True)}
        row[f"seeds_with_more_{metric}"] = int(((values - against).mean(1) > 0).sum())
    row["labelled_dice"] = float(np.mean([seed["labelled"]["dice"].mean() for seed in mine]))
    row["gap"] = row["labelled_dice"] - row["test_dice"]
    row |= _gap_less_supervised(mine, other)
    late = [seed["late"].std() for seed in mine]
    row |= {"late_sd": float(np.mean(late)), "late_sd_least": min(late), "late_sd_most": max(late)}
    return row


def _gap_less_supervised(mine: list[dict[str, Any]], other: list[dict[str, Any]]) -> dict[str, float]:
    """Difference of the gaps with its 95 % percentile interval: labelled and test patients are resampled apart, and the
    seeds with them. Not expanded for small samples, so it is short where there are few seeds or labelled patients."""
    generator = np.random.default_rng(0)
    drawn, value = 0.0, 0.0
    seeds = generator.integers(len(mine), size=(2000, len(mine)))
    for split, sign in (("labelled", 1), ("test", -1)):
        each = np.stack([a[split]["dice"] - b[split]["dice"] for a, b in zip(mine, other, strict=True)])
        groups = mine[0][split]["group"].to_numpy()
        members = np.stack([groups == group for group in np.unique(groups)]).astype(np.float64)
        weights = generator.multinomial(len(members), [1 / len(members)] * len(members), size=2000) @ members
        of_seed = weights @ each.T / weights.sum(1, keepdims=True)
        drawn = drawn + sign * np.take_along_axis(of_seed, seeds, axis=1).mean(1)
        value += sign * float(each.mean())
    low, high = np.percentile(drawn, [2.5, 97.5])
    return {"gap_less_supervised": value, "gap_less_supervised_low": low, "gap_less_supervised_high": high}


def _values(seed: Path, name: str) -> dict[str, Any]:
    """Of one arm: means over checkpoints by case, per split, and `late`, the mean test Dice of every checkpoint."""
    table = pl.read_parquet(seed / "measured" / f"{name}.parquet")
    by_case = table.group_by("split", "case_id").agg(pl.col("group").first(), *(pl.col(m).mean() for m in METRICS))
    found: dict[str, Any] = {split: by_case.filter(split=split).sort("case_id") for split in ("test", "labelled")}
    found["late"] = table.filter(split="test").group_by("checkpoint").agg(pl.col("dice").mean())["dice"].to_numpy()
    return found


def scale_of(column: str) -> int:
    """Dice is shown in points."""
    return 100 if column.endswith("dice") else 1


def _figure(settings: list[Path], figure: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    size = (4.2 * len(CURVES), 2.9 * len(settings))
    sheet, panels = plt.subplots(len(settings), len(CURVES), figsize=size, layout="constrained", squeeze=False)
    for row, setting in zip(panels, settings, strict=True):
        for axes, (column, title) in zip(row, CURVES.items(), strict=True):
            for color, arm in zip(COLOURS, ARMS, strict=True):
                histories = [pl.read_csv(path) for path in sorted(setting.glob(f"seed_*/history/{name_of(arm)}.csv"))]
                # An arm that not all seeds have would seem to start elsewhere.
                if len(histories) < len(list(setting.glob("seed_*"))):
                    continue
                curves = scale_of(column) * np.stack([history[column].to_numpy() for history in histories])
                axes.plot(histories[0]["step"], curves.mean(0), lw=1.4, color=color)
            axes.set_title(f"{setting.name.replace('_', ', ')}: {title}", fontsize=9)
            axes.set_xlabel("step")
            axes.set_ylabel("points" if scale_of(column) == 100 else "mm" if "hippocampus" in setting.name else "px")
            axes.spines[["top", "right"]].set_visible(False)
    lines = [plt.Line2D([], [], color=color, lw=1.4, label=arm) for color, arm in zip(COLOURS, ARMS, strict=True)]
    sheet.legend(handles=lines, loc="outside upper center", ncols=len(ARMS), frameon=False, fontsize=9)
    save_png(sheet, figure, dpi=130)


if __name__ == "__main__":
    main()
