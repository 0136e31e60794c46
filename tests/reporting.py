"""Finished runs for the report: stores from masks, an audit with given numbers, and results of students."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pipeline import schema
from pipeline.dataset import CaseStore, ProposalStore
from pipeline.evaluation import summary
from pipeline.metrics import Evaluation
from pipeline.mining import mine_to
from pipeline.params import load_params
from pipeline.recipe import MODELS
from pipeline.report.blocks import Section, Table
from pipeline.report.page import write_report
from pipeline.report.run import Run
from pipeline.store import create_array, open_array, write_json, write_table
from tests.builders import bars, case_store, panel_of, proposal_store
from tests.chain import with_changes, write_params

HEADROOM = {
    "headroom": 0.1,
    "headroom_low": 0.05,
    "headroom_high": 0.15,
    "verdict": "headroom left: the best proposals are +10.0 [+5.0, +15.0] Dice points above the base",
}
JUDGES = {"agreement": {"kind": "agreement"}, "oracle": {"kind": "oracle"}}
NO_PAIRS = {"judge": "none", "strategy": {"kind": "none"}}
PAIRS = {
    "none": NO_PAIRS,
    "mined": {"judge": "agreement", "strategy": {"kind": "top_bottom"}},
    "ceiling": {"judge": "oracle", "strategy": {"kind": "top_bottom"}},
}
PREFERENCE = {"kind": "preference", "link": {"kind": "cdpo", "e": 0.2}}
FULL = {"kind": "full", "optimisation": {"steps": 4, "learning_rate": 1e-3, "evaluate_every": 2}}
STUDENTS = {
    "supervised": {"pairs": "none", "objective": {"kind": "supervised"}},
    "rn_cdpo": {"pairs": "mined", "objective": PREFERENCE, "anchor": {"supervised": 1.0}},
    "oracle_dpo": {"pairs": "ceiling", "objective": {"kind": "preference"}, "anchor": None},
    "full": {"pairs": "none", "objective": FULL},
}
GAINS: dict[str, tuple[float, ...]] = {
    "supervised": (0.1, -0.1, 0.1, -0.1),
    "rn_cdpo": (0.2, 0.2, 0.2, 0.2),
    "oracle_dpo": (0.3, 0.3, 0.3, 0.3),
    "full": (0.4, 0.4, 0.4, 0.4),
}
"""Test Dice of each student minus that of the base, for the four test cases."""
BASE_DICE = (0.3, 0.4, 0.5, 0.6)
TEST_CASES = ("<b>x", "t1", "t2", "t3")
SCORES = {"agreement": [0.1, 0.9, 0.2, 0.9], "oracle": [0.67, 0.91, 0.75, 0.91]}
SPLITS = ("labelled", *["pool"] * 3, *["validation"] * 5, *["test"] * 4)
KNOBS = Evaluation(nsd_tolerance=1.0, bootstrap=200)

Ends = tuple[float | None, float | None, float | None]
UNMEASURED: Ends = (None, None, None)


@dataclass
class Built:
    folder: Path
    run: Run

    def page(self, out: str = "reports") -> str:
        write_report(self.run, self.folder / out)
        return (self.folder / out / "index.html").read_text()


@dataclass
class Scene:
    """Images, truth and proposals u8 `[proposal, *space]` of all cases, and the scores of each judge."""

    splits: Sequence[str]
    truth: Sequence[np.ndarray]
    proposed: Sequence[np.ndarray]
    scores: Mapping[str, Sequence[Sequence[float | None]]]
    images: Sequence[np.ndarray] | None = None


def plain_scene(scorers: Mapping[str, Any], dimensions: int = 2) -> Scene:
    """Bars of 6 pixels as truth; of 3 (base), 5, 10 and again 5 as proposals."""
    masks = bars([6, 3, 5, 10, 5])
    if dimensions == 3:
        masks = np.repeat(masks[:, None], 3, axis=1)
    scores = {name: [SCORES[name]] * 9 for name in scorers}
    return Scene(SPLITS, [masks[0]] * 13, [masks[1:]] * 9, scores)


@dataclass
class Audited:
    """Rows of the audit's tables, and its summary."""

    judges: list[dict[str, Any]]
    pairs: list[dict[str, Any]]
    strategies: list[dict[str, Any]]
    bins: list[dict[str, Any]]
    knots: list[dict[str, Any]]
    reliability: list[dict[str, Any]]
    summary: dict[str, Any]

    def write(self, folder: Path) -> None:
        for file, table, rows in (
            ("judges", schema.AUDIT_JUDGES, self.judges),
            ("pairs", schema.AUDIT_PAIRS, self.pairs),
            ("strategies", schema.AUDIT_STRATEGIES, self.strategies),
            ("bins", schema.AUDIT_BINS, self.bins),
            ("calibration", schema.CALIBRATION, self.knots),
            ("reliability", schema.RELIABILITY, self.reliability),
        ):
            write_table(pl.DataFrame(rows, schema=table.columns), table, folder / f"{file}.parquet", "a test")
        write_json(folder / "summary.json", self.summary)


def ends(table: schema.Table, **measured: Ends) -> dict[str, float | None]:
    """All measures of a table with their ends, null unless given."""
    names = [name.removesuffix("_low") for name in table.columns if name.endswith("_low")]
    assert not measured.keys() - set(names)
    return {
        f"{name}{end}": value
        for name in names
        for end, value in zip(("", "_low", "_high"), measured.get(name, UNMEASURED), strict=True)
    }


def judge_row(judge: str, cases: int = 3, **measured: Ends) -> dict[str, Any]:
    """A row of `AUDIT_JUDGES`."""
    own = {"judge": judge, "cases": cases, "abstained": 0.0, "fixed_sampler": "s 1" if cases else None}
    return {**own, "verdict": f"verdict <on> {judge}", **ends(schema.AUDIT_JUDGES, **measured)}


def pairs_row(pairs: str, judge: str, verdict: str | None, mined: int = 3, **measured: Ends) -> dict[str, Any]:
    """A row of `AUDIT_PAIRS`."""
    own = {"pairs": pairs, "judge": judge, "strategy": "top_bottom", "mined": mined, "verdict": verdict}
    return {**own, **ends(schema.AUDIT_PAIRS, **measured)}


def strategy_row(judge: str, strategy: str, **measured: Ends) -> dict[str, Any]:
    """A row of `AUDIT_STRATEGIES`."""
    own = {"judge": judge, "strategy": strategy, "mined": 3, "verdict": "undecided"}
    return {**own, **ends(schema.AUDIT_STRATEGIES, **measured)}


def bin_row(judge: str, by: str, place: int, count: int, accuracy: Ends) -> dict[str, Any]:
    """A row of `AUDIT_BINS` of the bins (0, .01], (.01, .02], ..."""
    row = {"judge": judge, "by": by, "bin": place, "above": place / 100, "up_to": (place + 1) / 100, "count": count}
    return {**row, **dict(zip(("accuracy", "accuracy_low", "accuracy_high"), accuracy, strict=True))}


def knot_rows(pairs: str, judge: str, *knots: tuple[float, float]) -> list[dict[str, Any]]:
    """Rows of `CALIBRATION` from margins and p_correct."""
    own = {"pairs": pairs, "judge": judge, "strategy": "top_bottom"}
    return [{**own, "knot": i, "margin": margin, "p_correct": p} for i, (margin, p) in enumerate(knots)]


def reliability_rows(pairs: str, *bins: tuple[int, int, float, float]) -> list[dict[str, Any]]:
    """Rows of `RELIABILITY` from the bin, its pairs, what was predicted and what was observed."""
    names = ("bin", "count", "predicted", "observed")
    return [{"pairs": pairs, "cases": float(row[1]), **dict(zip(names, row, strict=True))} for row in bins]


def fit(ece: float | None, note: str | None = None) -> dict[str, Any]:
    """The entry of a pair set under `calibration` of `summary.json`."""
    brier = None if ece is None else 0.2
    return {
        **{"kind": "isotonic", "cases": 3, "groups": 3, "shrinkage": 0.15},
        **{"ece": ece, "brier": brier, "note": note},
    }


def plain_audit(scorers: Mapping[str, Any], pairs: Mapping[str, Any]) -> Audited:
    """Every judge with a lift of .02 over a headroom of .08; every pair set with 30 % wrong pairs and a curve."""
    mined = {name: knobs["judge"] for name, knobs in pairs.items() if knobs["judge"] != "none"}
    lift: Ends = (0.02, 0.01, 0.03)
    return Audited(
        judges=[judge_row(n, lift=lift, lift_over_fixed=lift, headroom=(0.08, 0.05, 0.1)) for n in scorers],
        pairs=[
            pairs_row(n, j, "undecided", noise_rate=(0.3, 0.2, 0.4), lift=(0.01, -0.01, 0.02)) for n, j in mined.items()
        ],
        strategies=[strategy_row(name, "top_base", noise_rate=(0.2, 0.1, 0.3)) for name in scorers],
        bins=[
            bin_row(name, by, place, 5, (0.6, 0.5, 0.7))
            for name in scorers
            for by in ("gap", "disagreement")
            for place in (0, 1)
        ],
        knots=[row for n, j in mined.items() for row in knot_rows(n, j, (0.1, 0.55), (0.8, 0.7))],
        reliability=[row for n in mined for row in reliability_rows(n, (5, 2, 0.55, 0.5), (6, 1, 0.65, 1.0))],
        summary={
            "validation_cases": 3,
            "headroom": HEADROOM,
            "calibration": {name: fit(0.04) for name in mined},
            "warnings": [],
        },
    )


def build(
    folder: Path,
    scorers: dict[str, Any] = JUDGES,
    pairs: dict[str, Any] = PAIRS,
    students: dict[str, Any] = STUDENTS,
    gains: dict[str, tuple[float, ...]] = GAINS,
    dimensions: int = 2,
    scene: Scene | None = None,
    audited: Audited | None = None,
) -> Built:
    """A finished run: test Dice as given, pairs mined by the audit's curves."""
    write_params(folder, with_changes(judges=scorers, pairs=pairs, students=students))
    params = load_params(folder / "params.yaml")
    scene = scene or plain_scene(scorers, dimensions)
    cases = case_store(folder / "data/cases", scene.truth, scene.splits, scene.images, scene.truth[0].shape)
    store = proposal_store(folder / "data/proposals", scene.proposed)
    panel = panel_of(cases, store, scene.scores)
    panel = panel.filter(pl.col("split").is_in(["pool", "validation"]))
    file, audit = folder / "data/panel.parquet", folder / "audit"
    write_table(panel, schema.panel(scorers), file, "a test")
    (audited or plain_audit(scorers, pairs)).write(audit)
    for name, knobs in params.pairs.items():
        mine_to(file, list(scorers), store, knobs, 0, folder / f"data/pairs/{name}.parquet", name, audit)
    base = evaluation(BASE_DICE)
    for name in ("base", *students):
        dice = BASE_DICE if name == "base" else tuple(b + g for b, g in zip(BASE_DICE, gains[name], strict=True))
        rows = evaluation(dice)
        write_table(rows, schema.EVALUATION, folder / f"evaluation/{name}.parquet", "a test")
        write_json(folder / f"metrics/{name}.json", summary(rows, None if name == "base" else base, KNOBS))
        if name != "base":
            objective = params.students[name].objective.model_dump(mode="json")
            record = {"objective": objective, "best_step": 2, "steps": 4, "aimed_shift": None, "flipped_share": 0.25}
            record |= {"late": ["step_000002", "step_000004"], "interpolated": None}
            write_json(folder / f"models/students/{name}/student.json", record)
    write_json(folder / "models/base" / MODELS, {"members": []})
    (folder / "history").mkdir()
    (folder / "history/base.csv").write_text(
        "model,step,loss,validation_dice,best\nbase,0,,0.1,false\nbase,6,0.9,0.5,true\n"
    )
    for name in students:
        (folder / f"history/{name}.csv").write_text(
            "step,loss,rewards/margins,kl_outside,labelled_dice,validation_dice\n"
            "0,,,,0.6,0.5\n2,0.8,0.1,,0.8,0.6\n4,0.7,0.2,,0.9,0.55\n"
        )
    run = Run(
        params=params,
        audit=audit,
        cases=CaseStore(folder / "data/cases"),
        pairs=folder / "data/pairs",
        panel_file=file,
        proposals=ProposalStore(folder / "data/proposals"),
        evaluation=folder / "evaluation",
        history=folder / "history",
        metrics=folder / "metrics",
        students=folder / "models/students",
        judge_models=folder / "models/judges",
        base=folder / "models/base",
    )
    return Built(folder, run)


def evaluation(dice: tuple[float, ...]) -> pl.DataFrame:
    """Rows of `EVALUATION` of four test cases with one class, each case a patient."""
    rows = [
        {
            "case_id": case,
            "class": 1,
            "group": f"p{i}",
            "dice": value,
            "dice_peak": value + 0.01,
            "nsd": 0.5,
            "hd95": 2.0,
            "assd": 1.0,
            "distance_unit": "mm",
            "volume_error": 0.1,
            "truth_empty": False,
            "prediction_empty": False,
        }
        for i, (case, value) in enumerate(zip(TEST_CASES, dice, strict=True))
    ]
    return pl.DataFrame(rows, schema=schema.EVALUATION.columns)


def store_error_maps(built: Built, judge: str, errors: Mapping[int, np.ndarray]) -> None:
    """Maps of a judge: u8 `[proposal, *space]` in steps of 1/254 by array row; other cases are unknown."""
    folder = built.run.judge_models / judge
    some = next(iter(errors.values()))
    create_array(folder, schema.ERROR, (len(built.run.cases.all), *some.shape), 2)
    array = open_array(folder, schema.ERROR, "r+")
    for row, block in errors.items():
        array[row] = block


def table(section: Section, caption: str) -> Table:
    """The one table of a section with this caption."""
    found = [block for block in section.blocks if isinstance(block, Table) and block.caption == caption]
    assert len(found) == 1, [block.caption for block in section.blocks if isinstance(block, Table)]
    return found[0]


def row_of(found: Table, name: str) -> dict[str, Any]:
    """Cells by column of the row with this name."""
    cells = next(row for row in found.cells if row[0].text == name)
    return dict(zip(found.columns, cells, strict=True))
