"""Judge `table`: scores from any other tool, in a CSV or Parquet file with one row per proposal."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

from pipeline.errors import BadInput
from pipeline.judges.judge import Evidence, JudgeInputs, JudgeKnobs
from pipeline.judges.score import scored_proposals
from pipeline.store.cases import CaseStore
from pipeline.store.proposals import ProposalStore
from pipeline.store.tables import read_foreign_table


class ScoreTable(JudgeKnobs):
    """Scores of the user's own QC tool or of an expert, for the proposals that `stages.export_proposals` wrote."""

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
        return [self.path]

    def ready(self, given: JudgeInputs) -> TableScores:
        """Check the file against the proposals and read the scores.

        Raises `BadInput` for missing columns, cells of a wrong type, repeated rows, rows without a proposal, proposals
        without a row, and scores of masks that changed since their export.
        """
        cases, proposals = given.cases, given.proposals
        frame = read_foreign_table(self.path)
        for column in (self.case, self.proposal, self.score):
            if column not in frame.columns:
                raise BadInput(
                    f"{self.path}: expected a column '{column}', found {frame.columns}; set the name of the "
                    "column under tables in params.yaml"
                )
        number = pl.col(self.proposal).cast(pl.Float64, strict=False)
        score = pl.col(self.score).cast(pl.Float64, strict=False)
        found = frame.select(
            pl.col(self.case).cast(pl.String).alias("case_id"),
            # A cast alone would cut 1.5 down to slot 1.
            pl.when(number == number.round()).then(number).cast(pl.Int32, strict=False).alias("proposal"),
            score.fill_nan(None).alias("score"),
            (pl.col(self.score).is_not_null() & score.is_null()).alias("text"),
            pl.col(self.proposal).cast(pl.String).alias("cell"),
        )
        for problem, rows in (
            ("proposal is not a whole number", found.filter(pl.col("proposal").is_null())),
            ("score is not a number", found.filter("text")),
            ("score is infinite", found.filter(pl.col("score").is_infinite())),
            ("row is repeated", found.filter(pl.struct("case_id", "proposal").is_duplicated())),
            ("no such proposal", found.join(proposals.table, on=["case_id", "proposal"], how="anti")),
        ):
            if len(rows):
                case_id, cell = rows.select("case_id", "cell").row(0)
                raise BadInput(
                    f"{self.path}: {problem}: {len(rows)} rows, first: case '{case_id}', proposal {cell}; correct or "
                    "remove these rows"
                )
        expected = scored_proposals(cases, proposals)
        absent = expected.join(found, on=["case_id", "proposal"], how="anti")
        if len(absent) and self.missing == "error":
            case_id, proposal = absent.select("case_id", "proposal").row(0)
            raise BadInput(
                f"{self.path}: {len(absent)} of {len(expected)} proposals have no row, first: case '{case_id}', "
                f"proposal {proposal}; add rows, or set missing: abstain to leave these proposals without a score"
            )
        if "mask" in frame.columns:
            _check_masks(self.path, frame.select(self.case, self.proposal, "mask"), cases, proposals)
        sign = 1.0 if self.higher_is_better else -1.0
        scores: dict[str, dict[int, float]] = {}
        for case_id, proposal, value in found.select("case_id", "proposal", "score").drop_nulls().iter_rows():
            scores.setdefault(case_id, {})[proposal] = sign * value
        return TableScores(scores)


def _check_masks(path: Path, rows: pl.DataFrame, cases: CaseStore, proposals: ProposalStore) -> None:
    """Raise `BadInput` for a row whose mask hash differs from the hash of the proposal; rows without a hash pass."""
    known = {case.case_id: case for case in cases.all}
    for (case_id,), group in rows.group_by(rows.columns[0], maintain_order=True):
        hashes = proposals.mask_hashes(known[str(case_id)])
        for _, proposal, found in group.iter_rows():
            if found is not None and found != hashes[int(float(proposal))]:
                raise BadInput(
                    f"{path}: case '{case_id}', proposal {proposal}: the score is of another mask (expected mask "
                    f"{hashes[int(float(proposal))]}, found {found}); export the proposals and score them again"
                )


@dataclass(frozen=True)
class TableScores:
    """Scores by case id and slot; the judge abstains on every other proposal."""

    scores: dict[str, dict[int, float]]

    def score(self, evidence: Evidence) -> np.ndarray:
        known = self.scores.get(evidence.case.case_id, {})
        return np.array([known.get(slot, np.nan) for slot in range(len(evidence.masks))])
