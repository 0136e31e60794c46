"""Results of a run, read by the names in `params.yaml`. Files of removed entries are never read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from pipeline.audit.verdicts import LEAST
from pipeline.errors import BadInput
from pipeline.judges.consensus import reads_truth
from pipeline.measures.numbers import Estimate
from pipeline.promotion.record import PROMOTION_FILE, PromotionRecord
from pipeline.segmenter.knobs import MODELS
from pipeline.segmenter.student_record import STUDENT_FILE, StudentRecord
from pipeline.store import schema
from pipeline.store.cases import CaseStore
from pipeline.store.proposals import ProposalStore
from pipeline.store.tables import read_foreign_table, read_table, scan_table

if TYPE_CHECKING:
    from pipeline.params import Params
    from pipeline.students.student import Student


@dataclass(frozen=True)
class Arm:
    """An arm of the comparison: the base (without `student`) or a student, with the content of `metrics/NAME.json`."""

    name: str
    metrics: dict[str, Any]
    student: Student | None = None
    judge: str = ""
    """Name of the judge of the student's pair set; empty for the base."""
    research: bool = False
    """Whether the arm learned from truth of the pool, which is not available in practice."""

    @property
    def gain(self) -> Estimate:
        """Gain in sustained test Dice over the base."""
        return Estimate.read(self.metrics["gain_over_base"]["dice"])


@dataclass(frozen=True)
class RunWarning:
    """A warning of the audit, its pair set, and the students that train on this pair set."""

    text: str
    pairs: str | None = None
    students: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    """Folders and files of a run, with the names of `dvc.yaml`, and the parameters."""

    params: Params
    audit: Path
    cases: CaseStore
    pairs: Path
    panel_file: Path
    proposals: ProposalStore
    evaluation: Path
    history: Path
    metrics: Path
    students: Path
    judge_models: Path = Path("models/judges")
    """Folder of the trained judges and of their error maps."""
    base: Path = Path("models/base")
    promoted: Path = Path("models/promoted")

    @cached_property
    def panel(self) -> pl.LazyFrame:
        return scan_table(self.panel_file, schema.panel(self.params.judge_names))

    @cached_property
    def arms(self) -> list[Arm]:
        """The base first, then the students in the order of `params.yaml`."""
        found = [Arm("base", read_json(self.metrics / "base.json"))]
        for name, student in self.params.students.items():
            judge = self.params.pairs[student.pairs].judge
            truth = student.objective.kind == "full" or self.reads_truth(judge)
            found.append(Arm(name, read_json(self.metrics / f"{name}.json"), student, judge, truth))
        return found

    def record(self, student: str) -> StudentRecord:
        """Record of a student. Raises `BadInput` for a student without a record."""
        found = StudentRecord.of(self.students / student)
        if found is None:
            raise BadInput(f"{self.students / student / STUDENT_FILE}: no such file; run `dvc repro train@{student}`")
        return found

    @cached_property
    def promotion(self) -> PromotionRecord:
        """The choice of the student that may replace the base. Raises `BadInput` if no choice was made."""
        found = PromotionRecord.of(self.promoted)
        if found is None:
            raise BadInput(f"{self.promoted / PROMOTION_FILE}: no such file; run `dvc repro promote`")
        return found

    def kind_of(self, judge: str) -> str:
        """Kind of a judge, a score table or a consensus entry."""
        known = {**self.params.judges, **self.params.tables, **self.params.consensus}
        return known[judge].kind

    def reads_truth(self, judge: str) -> bool:
        """Whether a judge, or a judge of a consensus entry, reads the truth of the cases that it scores."""
        return reads_truth(judge, self.params.judges, self.params.consensus)

    @cached_property
    def mined(self) -> list[str]:
        """Names of the pair sets that a strategy mines, in the order of `params.yaml`."""
        return [name for name, pairs in self.params.pairs.items() if pairs.strategy.kind != "none"]

    @cached_property
    def base_notes(self) -> list[str]:
        """Notes on an imported base. A base that was trained in the run has no notes."""
        imported = read_json(self.base / MODELS).get("imported")
        return [f"The base: {note}." for note in imported["notes"]] if imported else []

    @property
    def rgb(self) -> bool:
        """Whether images are shown in colour."""
        return self.cases.info["channel_names"] == ["red", "green", "blue"]

    def pairs_of(self, name: str) -> pl.DataFrame:
        return read_table(self.pairs / f"{name}.parquet", schema.PAIRS)

    def drops_of(self, name: str) -> dict[str, Any]:
        """Number of mined cases, and the number of cases without a pair by reason."""
        return read_json(self.pairs / f"{name}.drops.json")

    def audited(self, file: str, table: schema.TableSchema) -> pl.DataFrame:
        """A table of the audit. With fewer than `LEAST` patients the ends of intervals are null, as in the verdicts."""
        found = read_table(self.audit / f"{file}.parquet", table)
        if self.patients >= LEAST:
            return found
        return found.with_columns(
            pl.lit(None, pl.Float64).alias(c) for c in found.columns if c.endswith(("_low", "_high"))
        )

    @cached_property
    def patients(self) -> int:
        """Number of groups of the labelled validation cases with proposals."""
        known = self.panel.filter((pl.col("split") == "validation") & pl.col("true_dice").is_not_null())
        return known.select(pl.col("group").n_unique()).collect().item()

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Content of `summary.json` of the audit."""
        return read_json(self.audit / "summary.json")

    @cached_property
    def warnings(self) -> list[RunWarning]:
        """Warnings of the audit, in the order of `summary.json`."""
        return [RunWarning(w["text"], w["pairs"], self.trained_on(w["pairs"])) for w in self.summary["warnings"]]

    def trained_on(self, pairs: str | None) -> tuple[str, ...]:
        """Names of the students that train on a pair set."""
        return tuple(name for name, student in self.params.students.items() if student.pairs == pairs)

    def evaluated(self, name: str) -> pl.DataFrame:
        return read_table(self.evaluation / f"{name}.parquet", schema.EVALUATION)

    def curve(self, name: str, words: tuple[str, ...] = ()) -> pl.DataFrame:
        """Content of `history/NAME.csv`. All columns but `words` are f64."""
        frame = read_foreign_table(self.history / f"{name}.csv")
        return frame.with_columns(pl.exclude(words).cast(pl.Float64))


def read_json(path: Path) -> dict[str, Any]:
    """Content of a JSON file of a stage. Raises `BadInput` for a missing file."""
    if not path.is_file():
        raise BadInput(f"{path}: no such file; run the stage that writes it with `dvc repro`")
    return json.loads(path.read_text())
