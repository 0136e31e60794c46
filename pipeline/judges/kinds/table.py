"""Judge `table`: scores from any other tool, in a CSV or Parquet file with one row per proposal."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

import numpy as np
import polars as pl

from pipeline.errors import BadInput
from pipeline.judges.judge import Evidence, JudgeInputs, JudgeKnobs
from pipeline.judges.score import scored_proposals
from pipeline.store.cases import CaseStore
from pipeline.store.proposals import ProposalStore
from pipeline.store.tables import ROW, read_foreign_table, refuse_no_table


class ScoreTable(JudgeKnobs):
    """Scores of the user's own QC tool or of an expert, for the proposals that `segpref export-proposals` wrote."""

    kind: Literal["table"]
    path: Path
    """CSV or Parquet file with the scores; DVC depends on the file."""
    case: str = "case_id"
    """Name of the column with the case id."""
    proposal: str = "proposal"
    """Name of the column with the slot of the proposal: 0, 1, ..."""
    score: str = "score"
    """Name of the column with the score. An empty cell or NaN means that the judge abstains."""
    higher_is_better: bool = True
    """Set to false for measures of error or uncertainty: the sign of every score is then reversed."""
    missing: Literal["abstain", "error"] = "error"
    """Meaning of a proposal without a row: `abstain` gives the proposal no score, `error` refuses the file. Proposals
    of test cases need no rows; rows of test cases are checked and not used."""

    def inputs(self) -> list[Path]:
        refuse_no_table(self.path)
        return [self.path]

    def ready(self, given: JudgeInputs) -> TableScores:
        """Check the file against the proposals and read the scores.

        Raises `BadInput` for missing columns, cells of a wrong type, repeated rows, rows without a proposal, proposals
        without a row, a file without any score, and scores of masks that changed since their export.
        """
        cases, proposals = given.cases, given.proposals
        frame = read_foreign_table(self.path, ROW)
        for column in (self.case, self.proposal, self.score):
            if column not in frame.columns:
                raise BadInput(
                    f"{self.path}: expected a column '{column}', found {frame.columns[1:]}; set the name of the "
                    "column under tables in params.yaml"
                )
        found = self._checked(frame, proposals)
        expected = scored_proposals(cases, proposals)
        absent = expected.join(found, on=["case_id", "proposal"], how="anti")
        if len(absent) and self.missing == "error":
            case_id, proposal = absent.select("case_id", "proposal").row(0)
            raise BadInput(
                f"{self.path}: {len(absent)} of {len(expected)} proposals have no row, first: case '{case_id}', "
                f"proposal {proposal}; add rows, or set missing: abstain to leave these proposals without a score"
            )
        if "mask" in frame.columns:
            _check_masks(self.path, found.drop("score").with_columns(frame["mask"]), cases, proposals)
        sign = 1.0 if self.higher_is_better else -1.0
        scores: dict[str, dict[int, float]] = {}
        for case_id, proposal, value in found.select("case_id", "proposal", "score").drop_nulls().iter_rows():
            scores.setdefault(case_id, {})[proposal] = sign * value
        return TableScores(scores)

    def _checked(self, frame: pl.DataFrame, proposals: ProposalStore) -> pl.DataFrame:
        """Row, `case_id`, `proposal` and `score` of every row. Raises `BadInput` that shows the first wrong cell."""
        number = pl.col(self.proposal).cast(pl.Float64, strict=False)
        score = pl.col(self.score).cast(pl.Float64, strict=False)
        found = frame.select(
            ROW,
            pl.col(self.case).cast(pl.String).alias("case_id"),
            # A cast alone would cut 1.5 down to slot 1.
            pl.when((number == number.round()) & (number >= 0))
            .then(number)
            .cast(pl.Int32, strict=False)
            .alias("proposal"),
            score.fill_nan(None).alias("score"),
            (pl.col(self.score).is_not_null() & score.is_null()).alias("text"),
            pl.struct(pl.col(self.case, self.proposal, self.score).cast(pl.String)).alias("cells"),
        )
        key = ["case_id", "proposal"]
        cases_there = proposals.table.select("case_id").unique()
        for column, expected, rows in (
            (self.case, "the id of a case", found.filter(pl.col("case_id").is_null())),
            (
                self.proposal,
                "a whole number from 0, the slot of a proposal",
                found.filter(pl.col("proposal").is_null()),
            ),
            (
                self.score,
                "a number with a decimal point, such as 0.9, or an empty cell to abstain",
                found.filter("text"),
            ),
            (self.score, "a finite number", found.filter(pl.col("score").is_infinite())),
            (self.case, "a case with proposals", found.join(cases_there, on="case_id", how="anti")),
            (self.proposal, "a proposal of case '{case_id}'", found.join(proposals.table, on=key, how="anti")),
        ):
            if len(rows):
                _refuse(self.path, rows, column, expected)
        if len(again := found.filter(~pl.struct(key).is_first_distinct())):
            case_id, proposal = again.select(key).row(0)
            first = found.filter(case_id=case_id, proposal=proposal)[ROW][0]
            once = f"one row for proposal {proposal} of case '{case_id}'"
            _refuse(self.path, again, self.proposal, once, f"row {first} too")
        if len(found) and found["score"].is_null().all():
            raise BadInput(
                f"{self.path}: column '{self.score}': expected scores, found {len(found)} empty cells in all "
                f"{len(found)} rows; fill in the column"
            )
        return found.select(ROW, *key, "score")


def _refuse(path: Path, rows: pl.DataFrame, column: str, expected: str, found: str | None = None) -> NoReturn:
    """Raise `BadInput` that shows the cell of this column in the first of some rows."""
    first = rows.row(0, named=True)
    cell = first["cells"][column]
    shown = found or ("an empty cell" if cell is None else f"'{cell}'")
    others = f" ({len(rows)} such rows)" if len(rows) > 1 else ""
    raise BadInput(
        f"{path}: row {first[ROW]}, column '{column}': expected {expected.format(case_id=first['case_id'])}, found "
        f"{shown}{others}; correct or remove the row"
    )


def _check_masks(path: Path, rows: pl.DataFrame, cases: CaseStore, proposals: ProposalStore) -> None:
    """Raise `BadInput` for a row whose mask hash differs from the hash of the proposal; rows without a hash pass."""
    known = {case.case_id: case for case in cases.all}
    for (case_id,), group in rows.group_by("case_id", maintain_order=True):
        hashes = proposals.mask_hashes(known[str(case_id)])
        for row, _, proposal, found in group.iter_rows():
            if found is not None and found != hashes[proposal]:
                # A spreadsheet takes a hash of digits with at most one `e` for a number.
                rewritten = any(mark in str(found) for mark in ".+")
                told = (
                    "a number that a spreadsheet made of it; open the file with this column as text"
                    if rewritten
                    else "so the score is of another mask; export the proposals and score them again"
                )
                raise BadInput(
                    f"{path}: row {row}, column 'mask': expected {hashes[proposal]}, the mask of proposal {proposal} "
                    f"of case '{case_id}', found '{found}', {told}"
                )


@dataclass(frozen=True)
class TableScores:
    """Scores by case id and slot; the judge abstains on every other proposal."""

    scores: dict[str, dict[int, float]]

    def score(self, evidence: Evidence) -> np.ndarray:
        known = self.scores.get(evidence.case.case_id, {})
        return np.array([known.get(slot, np.nan) for slot in range(len(evidence.masks))])
