"""What a run left behind, read by the names in `params.yaml`: files of entries that were removed are never seen."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from pipeline.audit.verdicts import LEAST
from pipeline.errors import BadInput
from pipeline.measures.numbers import Estimate
from pipeline.segmenter.knobs import MODELS
from pipeline.store import schema
from pipeline.store.cases import CaseStore
from pipeline.store.proposals import ProposalStore
from pipeline.store.tables import read_foreign_table, read_table, scan_table

if TYPE_CHECKING:
    from pipeline.params import Params
    from pipeline.students.student import Student


@dataclass(frozen=True)
class Arm:
    """The base (without `student`) or a student, with the contents of its `metrics/NAME.json`."""

    name: str
    metrics: dict[str, Any]
    student: Student | None = None
    judge: str = ""
    """Of its pair set."""
    research: bool = False
    """Whether it has learned from truth that the pool does not have in practice."""

    @property
    def gain(self) -> Estimate:
        """Gain in sustained test Dice over the base."""
        return Estimate.read(self.metrics["gain_over_base"]["dice"])


@dataclass(frozen=True)
class RunWarning:
    """A warning of the audit, the pair set that it is about, and the students that train on that."""

    text: str
    pairs: str | None = None
    students: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    """Folders and files of a run, as `dvc.yaml` names them, and the parameters."""

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
    """What judges have learned, and the error maps that they stored."""
    base: Path = Path("models/base")

    @cached_property
    def panel(self) -> pl.LazyFrame:
        return scan_table(self.panel_file, schema.panel(self.params.judge_names))

    @cached_property
    def arms(self) -> list[Arm]:
        """The base, then the students in the order of `params.yaml`."""
        found = [Arm("base", read_json(self.metrics / "base.json"))]
        for name, student in self.params.students.items():
            judge = self.params.pairs[student.pairs].judge
            truth = student.objective.kind == "full" or self.reads_truth(judge)
            found.append(Arm(name, read_json(self.metrics / f"{name}.json"), student, judge, truth))
        return found

    def kind_of(self, judge: str) -> str:
        """Kind of a judge, a score table or a consensus entry."""
        known = {**self.params.judges, **self.params.tables, **self.params.consensus}
        return known[judge].kind

    def reads_truth(self, judge: str) -> bool:
        """Whether a judge, or one that a consensus entry names, looks at the truth of the cases that it scores."""
        return self.params.reads_truth(judge)

    @cached_property
    def mined(self) -> list[str]:
        """Names of the pair sets that are mined from something."""
        return [name for name, pairs in self.params.pairs.items() if pairs.strategy.kind != "none"]

    @cached_property
    def base_notes(self) -> list[str]:
        """What was said of a base that comes from elsewhere; nothing of one that was trained here."""
        imported = read_json(self.base / MODELS).get("imported")
        return [f"The base: {note}." for note in imported["notes"]] if imported else []

    @property
    def rgb(self) -> bool:
        """Whether images are shown in colour."""
        return self.cases.info["channel_names"] == ["red", "green", "blue"]

    def pairs_of(self, name: str) -> pl.DataFrame:
        return read_table(self.pairs / f"{name}.parquet", schema.PAIRS)

    def drops_of(self, name: str) -> dict[str, Any]:
        """How many cases of the pool were looked at, and the counted reasons of those without a pair."""
        return read_json(self.pairs / f"{name}.drops.json")

    def audited(self, file: str, table: schema.TableSchema) -> pl.DataFrame:
        """A table of the audit, without the ends of intervals where its verdicts do not believe them either."""
        found = read_table(self.audit / f"{file}.parquet", table)
        if self.patients >= LEAST:
            return found
        return found.with_columns(
            pl.lit(None, pl.Float64).alias(c) for c in found.columns if c.endswith(("_low", "_high"))
        )

    @cached_property
    def patients(self) -> int:
        """Groups of the labelled validation cases that have proposals."""
        known = self.panel.filter((pl.col("split") == "validation") & pl.col("true_dice").is_not_null())
        return known.select(pl.col("group").n_unique()).collect().item()

    @cached_property
    def summary(self) -> dict[str, Any]:
        """`summary.json` of the audit."""
        return read_json(self.audit / "summary.json")

    @cached_property
    def warnings(self) -> list[RunWarning]:
        """What the audit warns of, in its order."""
        return [RunWarning(w["text"], w["pairs"], self.trained_on(w["pairs"])) for w in self.summary["warnings"]]

    def trained_on(self, pairs: str | None) -> tuple[str, ...]:
        """Students that train on a pair set."""
        return tuple(name for name, student in self.params.students.items() if student.pairs == pairs)

    def evaluated(self, name: str) -> pl.DataFrame:
        return read_table(self.evaluation / f"{name}.parquet", schema.EVALUATION)

    def curve(self, name: str, words: tuple[str, ...] = ()) -> pl.DataFrame:
        """`history/NAME.csv`: f64, but for the columns of words."""
        frame = read_foreign_table(self.history / f"{name}.csv")
        return frame.with_columns(pl.exclude(words).cast(pl.Float64))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that a stage wrote."""
    if not path.is_file():
        raise BadInput(f"{path}: no such file; run the stage that writes it with `dvc repro`")
    return json.loads(path.read_text())
