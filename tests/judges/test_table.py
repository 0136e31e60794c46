"""Scores of another tool as a judge: what is read, and what the file may not be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipeline.errors import BadInput
from pipeline.judges.judge import Evidence
from pipeline.judges.kinds.table import ScoreTable
from pipeline.store.cases import CaseStore
from pipeline.store.proposals import ProposalStore
from tests.fixtures.builders import bars, case_store, proposal_store
from tests.fixtures.judging import given

ROWS = ("c0,0,0.5", "c0,1,0.25", "c1,0,2", "c1,1,-1")


@dataclass
class Scene:
    """Cases with proposals, and the file of a user's scores."""

    cases: CaseStore
    proposals: ProposalStore
    table: Path


def scene(folder: Path, masks: Sequence[np.ndarray], table: Path | None = None) -> Scene:
    cases = case_store(folder / "cases", [None] * len(masks), space=masks[0].shape[1:])
    return Scene(cases, proposal_store(folder / "proposals", masks), table or folder / "scores.csv")


@pytest.fixture
def two_cases(tmp_path) -> Scene:
    return scene(tmp_path, [bars([8, 4]), bars([3, 9])])


def write_scores(at: Scene, *rows: str, header: str = "case_id,proposal,score") -> None:
    at.table.write_text("\n".join([header, *rows]) + "\n")


def table_scores(at: Scene, **knobs: Any) -> list[list[float]]:
    table = ScoreTable(kind="table", path=at.table, **knobs)
    scorer = table.ready(given(at.cases, at.proposals, at.table.parent))
    return [scorer.score(Evidence(at.cases, at.proposals, case)).tolist() for case in at.cases.all]


def test_table(two_cases):
    write_scores(two_cases, *ROWS[::-1])
    assert table_scores(two_cases) == [[0.5, 0.25], [2, -1]]


def test_table_of_errors_is_turned_around(two_cases):
    write_scores(two_cases, *ROWS)
    assert table_scores(two_cases, higher_is_better=False) == [[-0.5, -0.25], [-2, 1]]


def test_table_with_other_column_names_and_more_columns(two_cases):
    write_scores(two_cases, *(f"x,{row}" for row in ROWS), header="note,image,slot,quality")
    assert table_scores(two_cases, case="image", proposal="slot", score="quality") == [[0.5, 0.25], [2, -1]]


def test_parquet_table(two_cases, tmp_path):
    write_scores(two_cases, *ROWS)
    file = tmp_path / "scores.parquet"
    pl.read_csv(two_cases.table).write_parquet(file)
    assert table_scores(Scene(two_cases.cases, two_cases.proposals, file)) == [[0.5, 0.25], [2, -1]]


@pytest.mark.parametrize("cell", ["", "NaN", "nan"])
def test_an_empty_cell_or_nan_abstains(two_cases, cell):
    write_scores(two_cases, f"c0,0,{cell}", *ROWS[1:])
    found = table_scores(two_cases)
    assert np.isnan(found[0][0])
    assert found[0][1:] == [0.25]


def test_a_missing_row_abstains_or_is_an_error(two_cases):
    write_scores(two_cases, *ROWS[:3])
    found = table_scores(two_cases, missing="abstain")
    assert found[1][0] == 2
    assert np.isnan(found[1][1])
    with pytest.raises(BadInput) as caught:
        table_scores(two_cases)
    assert str(caught.value) == (
        f"{two_cases.table}: 1 of 4 proposals have no row, first: case 'c1', proposal 1; "
        "add rows, or set missing: abstain to leave these proposals without a score"
    )


def test_test_cases_need_no_row_and_may_have_one(tmp_path):
    """A sheet of the judged proposals, or of all: the second case is of the test split."""
    cases = case_store(tmp_path / "cases", [None, None], ["pool", "test"], space=(1, 16))
    masks = [bars([8, 4]), bars([3, 9])]
    at = Scene(cases, proposal_store(tmp_path / "proposals", masks), tmp_path / "scores.csv")
    for rows in (ROWS[:2], ROWS):
        write_scores(at, *rows)
        assert table_scores(at)[0] == [0.5, 0.25]
    write_scores(at, *ROWS[1:])
    with pytest.raises(BadInput, match=r"1 of 2 proposals have no row, first: case 'c0', proposal 0"):
        table_scores(at)


SLOT = "expected a whole number from 0, the slot of a proposal"
NUMBER = "expected a number with a decimal point, such as 0.9, or an empty cell to abstain"


@pytest.mark.parametrize("missing", ["abstain", "error"])
@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("c1,1,good", f"row 5, column 'score': {NUMBER}, found 'good'"),
        ("c1,1,NA", f"row 5, column 'score': {NUMBER}, found 'NA'"),
        ("c1,1,90%", f"row 5, column 'score': {NUMBER}, found '90%'"),
        ('c1,1,"0,5"', f"row 5, column 'score': {NUMBER}, found '0,5'"),
        ("c1,1,True", f"row 5, column 'score': {NUMBER}, found 'True'"),
        ("c1,1,inf", "row 5, column 'score': expected a finite number, found 'inf'"),
        ("c1,1,-1e999", "row 5, column 'score': expected a finite number, found '-1e999'"),
        ("c1,one,3", f"row 5, column 'proposal': {SLOT}, found 'one'"),
        ("c1,0.5,3", f"row 5, column 'proposal': {SLOT}, found '0.5'"),
        ("c1,-1,3", f"row 5, column 'proposal': {SLOT}, found '-1'"),
        ("c1,,3", f"row 5, column 'proposal': {SLOT}, found an empty cell"),
        (",1,3", "row 5, column 'case_id': expected the id of a case, found an empty cell"),
        ("c1,2,3", "row 5, column 'proposal': expected a proposal of case 'c1', found '2'"),
        ("c7,0,3", "row 5, column 'case_id': expected a case with proposals, found 'c7'"),
        ("c0,0,0.5", "row 5, column 'proposal': expected one row for proposal 0 of case 'c0', found row 2 too"),
        ("c0,0.0,0.7", "row 5, column 'proposal': expected one row for proposal 0 of case 'c0', found row 2 too"),
    ],
)
def test_a_bad_row_is_shown(two_cases, missing, row, problem):
    write_scores(two_cases, *ROWS[:3], row)
    with pytest.raises(BadInput) as caught:
        table_scores(two_cases, missing=missing)
    assert str(caught.value) == f"{two_cases.table}: {problem}; correct or remove the row"


def test_the_number_of_bad_rows_is_said(two_cases):
    write_scores(two_cases, *ROWS[:2], "c1,0,90%", "", "c1,1,80 %")
    with pytest.raises(BadInput, match=r"row 4, column 'score': expected .*, found '90%' \(2 such rows\); correct"):
        table_scores(two_cases)


@pytest.mark.parametrize("end", ["", "\n", "\n\n \n", ",,\n,,\n"])
def test_empty_rows_at_the_end_are_skipped(two_cases, end):
    write_scores(two_cases, *ROWS, end)
    assert table_scores(two_cases) == [[0.5, 0.25], [2, -1]]


@pytest.mark.parametrize("missing", ["abstain", "error"])
def test_a_sheet_that_nobody_filled_in_is_refused(two_cases, missing):
    """A judge that never gives a score would look like a judge that knows nothing."""
    write_scores(two_cases, *(f"{row.rsplit(',', 1)[0]}," for row in ROWS))
    with pytest.raises(BadInput, match="column 'score': expected scores, found 4 empty cells in all 4 rows; fill in"):
        table_scores(two_cases, missing=missing)


def test_a_column_that_is_there_twice_is_refused(two_cases):
    write_scores(two_cases, *(f"{row},9" for row in ROWS), header="case_id,proposal,score,score")
    with pytest.raises(BadInput, match="expected different names of columns, found 'score' twice"):
        table_scores(two_cases)


def test_a_fraction_of_a_slot_is_no_slot_in_parquet_either(two_cases, tmp_path):
    file = tmp_path / "scores.parquet"
    pl.DataFrame({"case_id": ["c0", "c0"], "proposal": [0.0, 1.5], "score": [1.0, 2.0]}).write_parquet(file)
    with pytest.raises(BadInput, match=r"row 2, column 'proposal': expected a whole number from 0, .* found '1.5'"):
        table_scores(Scene(two_cases.cases, two_cases.proposals, file))


def test_case_ids_of_digits_keep_their_zeros(tmp_path):
    """`001` is a name, not the number 1."""
    file = tmp_path / "scores.csv"
    file.write_text("case_id,proposal,score\n001,0,0.5\n")
    at = scene(tmp_path, [bars([8])])
    with pytest.raises(BadInput, match="row 2, column 'case_id': expected a case with proposals, found '001'"):
        table_scores(Scene(at.cases, at.proposals, file))


def test_a_missing_column_is_named(two_cases):
    write_scores(two_cases, *ROWS, header="case_id,proposal,quality")
    with pytest.raises(BadInput) as caught:
        table_scores(two_cases)
    assert str(caught.value) == (
        f"{two_cases.table}: expected a column 'score', found ['case_id', 'proposal', 'quality']; "
        "set the name of the column under tables in params.yaml"
    )


def test_a_file_that_is_not_there_or_not_a_table(two_cases, tmp_path):
    with pytest.raises(BadInput, match=r"nowhere.csv: no such file; paths are relative to the folder of params.yaml"):
        table_scores(Scene(two_cases.cases, two_cases.proposals, tmp_path / "nowhere.csv"))
    (tmp_path / "broken.parquet").write_text("not parquet")
    with pytest.raises(BadInput, match=r"broken.parquet: not a readable Parquet file"):
        table_scores(Scene(two_cases.cases, two_cases.proposals, tmp_path / "broken.parquet"))


def test_scores_of_another_mask_are_refused(two_cases):
    """The sheet's hashes belong to the masks that were scored, not to slots."""
    hashes = {case.case_id: two_cases.proposals.mask_hashes(case) for case in two_cases.cases.all}
    rows = [f"{case_id},{slot},0.5,{found}" for case_id, known in hashes.items() for slot, found in enumerate(known)]
    header = "case_id,proposal,score,mask"
    write_scores(two_cases, *rows, header=header)
    assert len(table_scores(two_cases)) == len(hashes)
    first = next(iter(hashes))
    rewritten = [rows[0].replace(hashes[first][0], "1.23457E+15"), *rows[1:]]
    write_scores(two_cases, *rewritten, header=header)
    with pytest.raises(
        BadInput,
        match=rf"row 2, column 'mask': expected {hashes[first][0]}, the mask of proposal 0 of case '{first}', found "
        r"'1.23457E\+15', a number that a spreadsheet made of it; open the file with this column as text",
    ):
        table_scores(two_cases)
    stale = [rows[0].replace(hashes[first][0], "0123456789abcdef"), *rows[1:]]
    write_scores(two_cases, *stale, header=header)
    with pytest.raises(
        BadInput,
        match=rf"row 2, column 'mask': expected {hashes[first][0]}, the mask of proposal 0 of case '{first}', found "
        "'0123456789abcdef', so the score is of another mask; export the proposals and score them again",
    ):
        table_scores(two_cases)


def test_a_table_that_is_not_there_is_the_user_s(two_cases):
    """Not the output of a stage that could be run."""
    with pytest.raises(BadInput, match=r"scores.csv: no such file; paths are relative to the folder of params.yaml"):
        ScoreTable(kind="table", path=two_cases.table).inputs()
