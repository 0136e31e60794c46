"""Results of a run, read by the names in `params.yaml`. Files of removed entries are never read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from pipeline.cases.duplicates import crossing, duplicates_text
from pipeline.errors import BadInput
from pipeline.judges.consensus import reads_truth
from pipeline.measures.numbers import Estimate
from pipeline.promotion.record import PROMOTION_FILE, PromotionRecord
from pipeline.proposals.fit_thresholds import FITTED_FILE, TRIED_FILE
from pipeline.proposals.samplers.sampler import Passes, Setup, passes_by_slot
from pipeline.segmenter.knobs import MODELS
from pipeline.segmenter.student_record import STUDENT_FILE, StudentRecord
from pipeline.segmenter.validation_curve import ValidationCurve
from pipeline.store import schema
from pipeline.store.cases import CaseStore
from pipeline.store.manifest import read_json
from pipeline.store.proposals import ProposalStore
from pipeline.store.tables import read_foreign_table, read_table, scan_table

if TYPE_CHECKING:
    from pipeline.params import Params
    from pipeline.students.objectives.objective import ArmFamily
    from pipeline.students.student import Student


@dataclass(frozen=True)
class Arm:
    """An arm of the comparison: the base (without `student`) or a student, with its summary `evaluation/NAME.json`."""

    name: str
    metrics: dict[str, Any]
    student: Student | None = None
    judge: str = ""
    """Name of the judge of the student's pair set; empty for the base."""
    research: bool = False
    """Whether the arm learned from truth of the pool, which is not available in practice."""

    @property
    def family(self) -> ArmFamily:
        """Group of the arm. Every arm that learned from truth of the pool is a ceiling."""
        if self.student is None:
            return "no training"
        return "ceilings" if self.research else self.student.objective.family

    @property
    def gain(self) -> Estimate:
        """Gain in sustained test Dice over the base."""
        return Estimate.read(self.metrics["gain_over_base"]["dice"])


@dataclass(frozen=True)
class RunWarning:
    """A warning of the audit with its pair set and the students that train on this pair set, or a note of a stage."""

    text: str
    pairs: str | None = None
    students: tuple[str, ...] = ()


@dataclass(frozen=True)
class WarningKind:
    """Warnings whose texts differ in names and numbers only."""

    first: str
    """Text of the first warning."""
    count: int
    students: tuple[str, ...]
    """Students that train on the pair sets of these warnings."""


_NAMES_AND_NUMBERS = re.compile(r"'[^']*'|^[\w.]+(?=: )|[-+]?\d+(\.\d+)?")


def kinds_of(warnings: Sequence[RunWarning]) -> list[WarningKind]:
    """Warnings that touch what was trained or measured, one entry per kind, in order of the first of each kind.

    A warning about a pair set that no student trains on touches neither.
    """
    found: dict[str, list[RunWarning]] = {}
    for warning in warnings:
        if warning.pairs is None or warning.students:
            found.setdefault(_NAMES_AND_NUMBERS.sub("", warning.text), []).append(warning)
    return [
        WarningKind(same[0].text, len(same), tuple(dict.fromkeys(name for one in same for name in one.students)))
        for same in found.values()
    ]


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
    students: Path
    judge_models: Path = Path("models/judges")
    """Folder of the trained judges and of their error maps."""
    base: Path = Path("models/base")
    promoted: Path = Path("models/promoted")
    notes: Path = Path("data/notes.json")
    """Notes of the check. Runs of older versions have no such file."""
    out_of_fold: Path = Path("data/out_of_fold")
    validation: Path = Path("validation")

    @cached_property
    def panel(self) -> pl.LazyFrame:
        return scan_table(self.panel_file, schema.panel(self.params.judge_names))

    @cached_property
    def arms(self) -> list[Arm]:
        """The base first, then the students in the order of `params.yaml`."""
        found = [Arm("base", read_json(self.evaluation / "base.json"))]
        for name, student in self.params.students.items():
            pairs = self.params.pairs[student.pairs]
            judge = pairs.judge
            # The truth of labelled cases is available in practice.
            ordered = self.reads_truth(judge) and pairs.split != "labelled"
            truth = student.objective.family == "ceilings" or ordered
            found.append(Arm(name, read_json(self.evaluation / f"{name}.json"), student, judge, truth))
        return found

    def record(self, student: str) -> StudentRecord:
        """Record of a student. Raises `BadInput` for a student without a record."""
        found = StudentRecord.of(self.students / student)
        if found is None:
            raise BadInput(f"{self.students / student / STUDENT_FILE}: no such file; run `dvc repro train@{student}`")
        return found

    @cached_property
    def promotion(self) -> PromotionRecord:
        """The choice of the student that may replace the base. Raises `BadInput` without a choice of these students."""
        found = PromotionRecord.of(self.promoted)
        if found is None:
            raise BadInput(f"{self.promoted / PROMOTION_FILE}: no such file; run `dvc repro promote`")
        names, expected = [one.name for one in found.students], list(self.params.students)
        if names != expected:
            raise BadInput(
                f"{self.promoted / PROMOTION_FILE}: expected a choice of the students of params.yaml, {expected}, "
                f"found {names}; run `dvc repro promote`"
            )
        return found

    def kind_of(self, judge: str) -> str:
        """Kind of a judge, a score table or a consensus entry."""
        known = {**self.params.scored, **self.params.consensus}
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
        return [f"base: {note}" for note in imported["notes"]] if imported else []

    @cached_property
    def base_curve(self) -> ValidationCurve | None:
        """Validation Dice of the base during its training. None for a base that was not trained in the run."""
        return ValidationCurve.of_base(self.history / "base.csv")

    def student_curve(self, student: str) -> ValidationCurve | None:
        """Validation Dice of a student during its training. None for a student that was not trained."""
        return ValidationCurve.of_student(self.history / f"{student}.csv", self.record(student).best_step)

    @property
    def units(self) -> str:
        """Word for the groups of cases: `patients`, or `cases` if the data name no patients and no exams."""
        return "cases" if all(case.group == case.case_id for case in self.cases.all) else "patients"

    def pairs_of(self, name: str) -> pl.DataFrame:
        return read_table(self.pairs / f"{name}.parquet", schema.PAIRS)

    def drops_of(self, name: str) -> dict[str, Any]:
        """Number of mined cases, and the number of cases without a pair by reason."""
        return read_json(self.pairs / f"{name}.drops.json")

    def audited(self, file: str, table: schema.TableSchema) -> pl.DataFrame:
        """A table of the audit."""
        return read_table(self.audit / f"{file}.parquet", table)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Content of `summary.json` of the audit."""
        return read_json(self.audit / "summary.json")

    @cached_property
    def warnings(self) -> list[RunWarning]:
        """Images in several splits, notes on an imported base, notes of the check, then warnings of the audit."""
        notes = [*self.base_notes, *(read_json(self.notes) if self.notes.is_file() else [])]
        if crossed := crossing(self.cases.info["duplicates"], splits := {c.case_id: c.split for c in self.cases.all}):
            text = duplicates_text(crossed, splits)
            notes = [f"{text}: what is measured on them was seen in training, or in choosing", *notes]
        audited = [RunWarning(w["text"], w["pairs"], self.trained_on(w["pairs"])) for w in self.summary["warnings"]]
        return [*map(RunWarning, notes), *audited]

    def trained_on(self, pairs: str | None) -> tuple[str, ...]:
        """Names of the students that train on a pair set."""
        return tuple(name for name, student in self.params.students.items() if student.pairs == pairs)

    def evaluated(self, name: str) -> pl.DataFrame:
        """Metrics of an arm on the test cases."""
        return read_table(self.evaluation / f"{name}.parquet", schema.EVALUATION)

    def validated(self, name: str) -> pl.DataFrame:
        """Metrics of an arm on the validation cases."""
        return read_table(self.validation / f"{name}.parquet", schema.EVALUATION)

    @cached_property
    def _passes(self) -> list[Passes | None]:
        """Forward passes that the proposal in each slot needs."""
        models = read_json(self.base / MODELS)
        members, snapshots = (*models["members"], *models["folds"]), tuple(models["snapshots"])
        setup = Setup(len(self.cases.class_names), self.params.base is not None, members, snapshots)
        return passes_by_slot(self.params.propose.samplers, setup)

    def passes(self, arm: Arm) -> int | None:
        """Number of forward passes that a prediction of the arm needs. None if unknown, as for masks of other tools."""
        if arm.student is None:
            return None if self.params.base is None else 1
        slot = self.record(arm.name).slot
        if slot is None:
            return 1
        found = self._passes[slot]
        return None if found is None else len(found)

    @cached_property
    def fitted(self) -> dict[str, Any]:
        """Content of `fitted.json` by sampler. Empty without a sampler that fits thresholds."""
        file = self.proposals.folder / FITTED_FILE
        return read_json(file) if file.is_file() else {}

    @cached_property
    def tried(self) -> pl.DataFrame | None:
        """Dice of every threshold on labelled cases out of fold. None if no threshold was tried."""
        file = self.out_of_fold / TRIED_FILE
        return read_table(file, schema.THRESHOLDS) if file.is_file() else None

    def curve(self, name: str, words: tuple[str, ...] = ()) -> pl.DataFrame:
        """Content of `history/NAME.csv`. All columns but `words` are f64."""
        frame = read_foreign_table(self.history / f"{name}.csv")
        return frame.with_columns(pl.exclude(words).cast(pl.Float64))
