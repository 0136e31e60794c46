"""Whether P(the order is right) means what it says: `python -m benchmarks.calibration [--folder FOLDER]`.

The chain on phantoms up to the panel. As in use, the curve of a pair set is fitted on validation pairs and read off at
the margins of pool pairs; here the truth of the pool is known, so that the pool is held out from fit, base and judges.
ECE is the mean of |predicted - observed| over ten bins of equal width, by pairs or with cases weighted equally.
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
import polars as pl
from ruamel.yaml import YAML

from benchmarks.stage import stage
from pipeline.audit.pair_sets import with_truth
from pipeline.measures.overlap import dice_to
from pipeline.pairs.calibration import BINS, Curve, Isotonic, Logistic, ValidationPairs, calibrate
from pipeline.pairs.mine import PairSet, mine
from pipeline.store import schema
from pipeline.store.cases import CaseStore
from pipeline.store.proposals import ProposalStore
from pipeline.store.tables import scan_table

BUDGET = 0.05
"""Largest ECE, on at least 3,000 pairs."""
JUDGES: dict[str, dict[str, Any]] = {
    "agreement": {"kind": "agreement"},
    "expected_dice": {"kind": "expected_dice"},
    "likelihood": {"kind": "likelihood"},
    # Its margins say much about the order, so that P takes many values.
    "true_dice_and_noise": {"kind": "synthetic", "gaussian": 0.1},
}
STRATEGIES: dict[str, dict[str, Any]] = {
    "top_bottom": {"kind": "top_bottom", "max_pairs_per_case": 4},
    "all_pairs": {"kind": "all_pairs", "max_pairs_per_case": 12},
    "top_base": {"kind": "top_base", "max_pairs_per_case": 6},
}
FITS = (Isotonic(), Logistic())


def parameters(validation: int, pool: int, steps: int) -> dict[str, Any]:
    """The shipped parameters with more cases, these judges, and nothing after the panel."""
    params: dict[str, Any] = YAML(typ="safe").load(Path(__file__).parent.parent / "params.yaml")
    params["data"]["cases"] = 16 + validation + pool + 12
    params["splits"] = {"labelled": 16, "validation": validation, "pool": pool, "test": "rest"}
    params["base"] |= {"members": 1, "folds": 0, "fold_members": 0}
    params["base"]["optimisation"] |= {"steps": steps, "patience": None, "evaluate_every": steps // 2}
    params["judges"] = JUDGES
    params |= {"consensus": {}, "tables": {}, "students": {}}
    params["pairs"] = {"none": {"judge": "none", "strategy": {"kind": "none"}}}
    params["execution"] = {"scheduler": "synchronous", "workers": 1, "progress": "none"}
    return params


def run_chain() -> None:
    """The stages up to the panel, in the current folder; what is there already is kept."""

    cases, proposals = "--cases=data/cases", "--proposals=data/proposals"
    stage("prepare", "data/cases/manifest.json", "--out=data/cases")
    stage("base", "models/base/manifest.json", cases, "--out=models/base", "--history=history/base.csv")
    stage("propose", "data/out_of_fold/manifest.json", cases, "--base=models/base", "--out=data/proposals")
    for judge in JUDGES:
        table = f"data/scores/{judge}.parquet"
        stage("judge", table, judge, cases, proposals, f"--out={table}")
    stage("panel", "data/panel.parquet", cases, proposals, "--scores=data/scores", "--out=data/panel.parquet")


def known_panel(cases: CaseStore, proposals: ProposalStore) -> pl.LazyFrame:
    """The panel with the true Dice of pool proposals too, which only a phantom tells."""
    classes = len(cases.class_names)
    truth = pl.DataFrame(
        [
            (case.case_id, slot, dice)
            for case in cases.split("pool")
            for slot, dice in enumerate(dice_to(cases.label(case), proposals.masks(case), classes).tolist())
        ],
        schema={"case_id": pl.String(), "proposal": pl.Int32(), "of_pool": pl.Float64()},
        orient="row",
    )
    panel = scan_table(Path("data/panel.parquet"), schema.panel(JUDGES)).collect()
    joined = panel.join(truth, on=["case_id", "proposal"], how="left", maintain_order="left")
    return joined.with_columns(true_dice=pl.coalesce("true_dice", "of_pool")).drop("of_pool").lazy()


def tried(panel: pl.LazyFrame, proposals: ProposalStore, pairs: PairSet, split: str) -> ValidationPairs:
    """Pairs of a split, mined without a calibration, and which of them are right."""
    table = with_truth(mine(panel, proposals, pairs, split, 0)[0], panel)
    return ValidationPairs(*(table[column].to_numpy() for column in ("margin", "right", "case", "group")))


def reliability(curve: Curve, held_out: ValidationPairs, weight: np.ndarray) -> pl.DataFrame:
    """Bins of predicted P that hold a pair: pairs, weight, mean predicted P and share of right orders."""
    frame = pl.DataFrame({"p": curve(held_out.margin), "right": held_out.right, "weight": weight})
    bins = frame.with_columns(bin=(pl.col("p") * BINS).cast(pl.Int32).clip(0, BINS - 1))
    mean = [(pl.col(name) * pl.col("weight")).sum() / pl.col("weight").sum() for name in ("p", "right")]
    return (
        bins.group_by("bin")
        .agg(pairs=pl.len(), weight=pl.col("weight").sum(), predicted=mean[0], observed=mean[1])
        .sort("bin")
    )


def ece(bins: pl.DataFrame) -> float:
    """Mean of |predicted - observed| over the bins, by their weight."""
    return float(np.average((bins["predicted"] - bins["observed"]).abs(), weights=bins["weight"]))


@click.command(help=__doc__)
@click.option("--validation", default=300, show_default=True, help="Cases to fit on.")
@click.option("--pool", default=1000, show_default=True, help="Cases held out.")
@click.option("--steps", default=300, show_default=True, help="Of the base's training.")
@click.option("--folder", type=click.Path(path_type=Path), help="Keep the run there.  [default: a temporary one]")
def main(validation: int, pool: int, steps: int, folder: Path | None) -> None:
    with contextlib.ExitStack() as stack:
        at = folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        at.mkdir(parents=True, exist_ok=True)
        stack.enter_context(contextlib.chdir(at))
        YAML().dump(parameters(validation, pool, steps), Path("params.yaml"))
        run_chain()
        cases, proposals = CaseStore(Path("data/cases")), ProposalStore(Path("data/proposals"))
        report(known_panel(cases, proposals), proposals)


def report(panel: pl.LazyFrame, proposals: ProposalStore) -> None:
    """A line per judge, strategy and fit, then the reliability of each, as Markdown."""
    print(f"ECE on the pool (budget {BUDGET} on at least 3,000 pairs); cross-fitted: what the audit says of validation")
    print("Brier of the share: of a P that is the share of right pairs whatever the margin, which is calibrated too\n")
    columns = "judge | pairs | fit | right | fitted on | held out | ECE by pair | by case | Brier | Brier of the share"
    columns += " | ECE cross-fitted"
    print(f"| {columns} |\n|{'---|' * 11}")
    curves = []
    for judge in JUDGES:
        for name, strategy in STRATEGIES.items():
            pairs = PairSet.model_validate({"judge": judge, "strategy": strategy})
            fitted, held_out = (tried(panel, proposals, pairs, split) for split in ("validation", "pool"))
            for knobs in FITS:
                found = calibrate(fitted, knobs, 0)
                assert found.curve is not None
                p = found.curve(held_out.margin)
                by_pair, by_case = (
                    reliability(found.curve, held_out, weight) for weight in (np.ones_like(p), held_out.weight)
                )
                brier = float(((p - held_out.right) ** 2).mean())
                print(
                    f"| {judge} | {name} | {knobs.kind} | {held_out.right.mean():.3f} | {len(fitted.margin)} | "
                    f"{len(p)} | {ece(by_pair):.3f} | {ece(by_case):.3f} | {brier:.3f} | {held_out.right.var():.3f} | "
                    f"{found.summary['ece']:.3f} |"
                )
                curves.append((judge, name, knobs.kind, by_pair))
    print("\n| judge | pairs | fit | bin | held out | predicted | observed |\n|---|---|---|---|---|---|---|")
    for *what, bins in curves:
        for row in bins.iter_rows(named=True):
            low, high = row["bin"] / BINS, (row["bin"] + 1) / BINS
            numbers = f"{row['pairs']} | {row['predicted']:.3f} | {row['observed']:.3f}"
            print(f"| {' | '.join(what)} | {low:.1f}-{high:.1f} | {numbers} |")


if __name__ == "__main__":
    main()
