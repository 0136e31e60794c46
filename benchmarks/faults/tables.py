"""Faults of case tables, given splits and tables of scores."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.faults.damage import Make, raw, remove, text
from benchmarks.faults.entry import PREPARE, Bad, judge_line, nothing
from pipeline.store.cases import CaseStore
from pipeline.store.proposals import ProposalStore

CASES = "raw/set/cases.csv"
SPLITS = "raw/set/splits_final.json"
SCORES = "qc/scores.csv"
_COLUMNS = {"data.case_table": {"file": "cases.csv", "group": "patient", "split": "split"}}
_GIVEN = {"splits.given": {"file": "splits_final.json"}}
_NAMES = [f"case_{number:02d}" for number in range(8)]

_table = partial(Bad, kind="The case table", start="pictures", line=PREPARE, knobs=_COLUMNS)
_split = partial(Bad, kind="Sizes of splits and `splits_final.json`", start="pictures", line=PREPARE)
_scored = partial(
    Bad,
    kind="Tables of scores",
    start="run",
    line=judge_line("mine"),
    knobs={"tables": {"mine": {"kind": "table", "path": SCORES}}},
)


def _rows(*rows: str, header: str = "case_id,patient,split", encoding: str = "utf-8") -> Make:
    return text(CASES, "\n".join([header, *rows]) + "\n", encoding)


def _folds(*folds: Any) -> Make:
    return text(SPLITS, json.dumps(folds))


def scores(
    *changed: str, header: str = "case_id,proposal,score", encoding: str = "utf-8", keep: int | None = None
) -> Make:
    """A right table of scores, with these rows in place of the first ones. `keep`: number of rows."""

    def make() -> None:
        cases, proposals = CaseStore(Path("data/cases")), ProposalStore(Path("data/proposals"))
        keys = proposals.table.join(cases.table.select("case_id", "split"), on="case_id").sort("case_id", "proposal")
        rows = [f"{row['case_id']},{row['proposal']},0.5" for row in keys.iter_rows(named=True)]
        lines = [header, *changed, *rows[len(changed) : keep]]
        text(SCORES, "\n".join(lines) + "\n", encoding)()

    return make


def first() -> tuple[str, int]:
    """Case and slot of the first row of the scores."""
    found = ProposalStore(Path("data/proposals")).table.sort("case_id", "proposal").row(0, named=True)
    return found["case_id"], found["proposal"]


def _cells(case: str | None = None, proposal: str | None = None, score: str = "0.5") -> Make:
    """The first row of the scores has these cells."""

    def make() -> None:
        known = first()
        scores(f"{known[0] if case is None else case},{known[1] if proposal is None else proposal},{score}")()

    return make


def _other_mask() -> None:
    case, slot = first()
    rows = [f"{case},{slot},0.5,0123456789abcdef"]
    scores(*rows, header="case_id,proposal,score,mask")()
    lines = Path(SCORES).read_text().splitlines()
    Path(SCORES).write_text("\n".join([*lines[:2], *(f"{line}," for line in lines[2:])]) + "\n")


def _with(mark: str, old: str) -> Make:
    """The scores with another mark in every row."""

    def make() -> None:
        scores()()
        Path(SCORES).write_text(Path(SCORES).read_text().replace(old, mark))

    return make


_COMMA = _rows("case_00;p0;", header="case_id;patient;split")

TABLE = [
    _table("a file that is not there", nothing, "cases.csv"),
    _table("a column that is not there", _rows("case_00,p0", header="case_id,subject"), "cases.csv"),
    _table("a case that the data set lacks", _rows("case_99,p0,"), "cases.csv"),
    _table("a case in two rows", _rows("case_00,p0,", "case_01,p1,", "case_00,p2,"), "cases.csv"),
    _table("an empty case id", _rows("case_00,p0,", ",p1,"), "cases.csv"),
    _table("a split that does not exist", _rows("case_00,p0,train"), "cases.csv"),
    _table(
        "a column that is there twice", _rows("case_00,p0,,p1", header="case_id,patient,split,patient"), "cases.csv"
    ),
    _table("a row with a cell too many", _rows("case_00,p0,,x"), "cases.csv"),
    _table("a quote that does not end", _rows('case_00,"p0,'), "cases.csv"),
    _table("semicolons", _COMMA, "cases.csv"),
    _table("UTF-16", _rows("case_00,p0,", encoding="utf-16"), "cases.csv"),
    _table("a name in Latin-1", _rows("case_00,Müller,", encoding="latin-1"), "cases.csv"),
    _table("a workbook behind `.csv`", raw(CASES, b"PK\x03\x04" + bytes(40)), "cases.csv"),
    _table("an empty file", raw(CASES, b""), "cases.csv"),
    _table("a patient in two given splits", _rows("case_00,p0,labelled", "case_01,p0,test"), "'p0'"),
    _table(
        "a test case without a mask",
        lambda: (_rows("case_03,p0,test")(), remove("raw/set/masks/case_03.png")()),
        "case_03",
    ),
    _table(
        "a path outside the data set", nothing, "case_table.file", knobs={"data.case_table": {"file": "../cases.csv"}}
    ),
]

SPLIT = [
    _split("more cases than there are", nothing, "splits", knobs={"splits.labelled": 20}),
    _split("fractions above 1 in all", nothing, "splits", knobs={"splits.labelled": 0.8, "splits.validation": 0.5}),
    _split("a negative size", nothing, "splits.labelled", knobs={"splits.labelled": -1}),
    _split("`rest` twice", nothing, "splits", knobs={"splits.labelled": "rest"}),
    _split("a split that stays empty", nothing, "splits", knobs={"splits.labelled": 4, "splits.validation": 3}),
    _split("no splits file", nothing, "splits_final.json", knobs=_GIVEN),
    _split(
        "a fold that is not there",
        _folds({"train": [], "val": []}),
        "splits_final.json",
        knobs={"splits.given": {"fold": 3}},
    ),
    _split(
        "a case that the data set lacks", _folds({"train": ["case_99"], "val": []}), "splits_final.json", knobs=_GIVEN
    ),
    _split(
        "a case in train and in val",
        _folds({"train": ["case_00"], "val": ["case_00"]}),
        "splits_final.json",
        knobs=_GIVEN,
    ),
    _split("an object in place of a list", text(SPLITS, '{"train": []}'), "splits_final.json", knobs=_GIVEN),
    _split("a splits file that is cut off", text(SPLITS, '[{"train": ["case_00"'), "splits_final.json", knobs=_GIVEN),
]

SCORED = [
    _scored("a file that is not there", nothing, "scores.csv"),
    _scored("a column that is not there", scores(header="case_id,proposal,dice"), "scores.csv"),
    _scored("`NA` in place of a score", _cells(score="NA"), "scores.csv"),
    _scored("`90%` in place of a score", _cells(score="90%"), "scores.csv"),
    _scored("an infinite score", _cells(score="inf"), "scores.csv"),
    _scored("an empty case id", _cells(case=""), "scores.csv"),
    _scored("a case without proposals", _cells(case="case_99"), "scores.csv"),
    _scored("a proposal of 1.5", _cells(proposal="1.5"), "scores.csv"),
    _scored("a proposal that does not exist", _cells(proposal="77"), "scores.csv"),
    _scored("a row that is there twice", lambda: scores(*[f"{first()[0]},0,0.5"] * 2)(), "scores.csv"),
    _scored("proposals without a row", scores(keep=3), "scores.csv"),
    _scored("no score at all", _with(",\n", ",0.5\n"), "scores.csv"),
    _scored("semicolons and decimal commas", _with(";", ","), "scores.csv"),
    _scored("a decimal comma in quotes", _cells(score='"0,5"'), "scores.csv"),
    _scored("UTF-16", scores(encoding="utf-16"), "scores.csv"),
    _scored("a Parquet file behind `.csv`", raw(SCORES, b"PAR1" + bytes(40)), "scores.csv"),
    _scored(
        "a damaged Parquet file",
        raw("qc/scores.parquet", b"PAR1" + bytes(40)),
        "scores.parquet",
        knobs={"tables": {"mine": {"kind": "table", "path": "qc/scores.parquet"}}},
    ),
    _scored("a score of another mask", _other_mask, "scores.csv"),
]
