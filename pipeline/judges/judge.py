"""What a judge is: it scores every proposal of a case, higher is better, NaN = it abstains."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import polars as pl

from pipeline.errors import BadInput
from pipeline.execution import CaseFailures, Execution, Shard, publish, run, shards_of, workspace
from pipeline.knobs import Knobs
from pipeline.measures.overlap import first_equal
from pipeline.segmenter.knobs import Compute
from pipeline.store import schema
from pipeline.store.cases import Case, CaseStore, ProposalStore
from pipeline.store.tables import (
    MANIFEST,
    cases_per_shard,
    create_array,
    open_array,
    shard_cases,
    write_json,
    write_table,
)

RECORD = "judge.json"
"""Beside what a judge has learned: which judge it is."""
ERROR_STEPS = 254
"""Stored number of an error that is certain; 255 is unknown."""


class LabelFree(CaseStore):
    """Cases as a judge that is not for research sees them: only labels of the labelled split can be read."""

    def __reduce__(self) -> tuple[type[LabelFree], tuple[Path]]:
        return LabelFree, (self.folder,)

    def label(self, case: Case) -> np.ndarray:
        return super().label(_readable(case))

    def truth(self, case: Case) -> np.ndarray:
        return super().truth(_readable(case))


def _readable(case: Case) -> Case:
    if case.split != "labelled":
        raise BadInput(
            f"case '{case.case_id}': a judge without `research = True` asked for the label of a {case.split} case; "
            "expected labels of the labelled split only"
        )
    return case


@dataclass(frozen=True)
class Evidence:
    """One case as a judge sees it; each part is read when it is first used."""

    cases: CaseStore
    proposals: ProposalStore
    case: Case
    research: bool = False
    """Whether the judge may look at the truth."""

    @cached_property
    def image(self) -> np.ndarray:
        """f32 `[channel, *space]`."""
        return self.cases.image(self.case)

    @cached_property
    def masks(self) -> np.ndarray:
        """u8 `[proposal, *space]`."""
        return self.proposals.masks(self.case)

    @cached_property
    def probability(self) -> np.ndarray:
        """f32 `[class, *space]`, the mean probability, in steps of 1/255."""
        return self.proposals.probability(self.case)

    @cached_property
    def disagreement(self) -> np.ndarray:
        """u32 `[proposal, proposal]`: |D|, voxels on which two proposals differ."""
        return self.proposals.disagreement(self.case)

    @property
    def originals(self) -> np.ndarray:
        """i64 `[proposal]`: the first slot with the same mask; its own slot for all but duplicates."""
        return first_equal(self.masks)

    @property
    def samplers(self) -> list[str]:
        """Name of the sampler of each proposal."""
        table = self.proposals.table  # in the order of its key, so that a case is found without reading all rows
        first, last = (table["case_id"].search_sorted(self.case.case_id, side) for side in ("left", "right"))
        return table["sampler"][first:last].to_list()

    @property
    def classes(self) -> int:
        """Number of classes, background included."""
        return len(self.cases.class_names)

    def truth(self) -> np.ndarray | None:
        """u8 `[*space]`, or None for a case without label; raises `BadInput` for a judge that is not for research."""
        if not self.research:
            raise BadInput(
                f"case '{self.case.case_id}': a judge without `research = True` asked for the truth; expected a score "
                "from image, masks and probability alone"
            )
        return self.cases.label(self.case) if self.case.has_label else None


@dataclass(frozen=True)
class Given:
    """What a judge may learn from before it scores."""

    cases: CaseStore
    """Labels of the labelled split alone can be read, but by judges for research."""
    proposals: ProposalStore
    out_of_fold: ProposalStore
    """Proposals of labelled cases by models that have not seen them; empty where the base has no folds."""
    models: Path
    """Folder for what is learned. What a killed run of the same knobs and inputs has finished is still there."""
    compute: Compute
    seed: int
    flips: tuple[int, ...] = ()
    """Spatial axes along which images may be mirrored in training."""

    def learned_from(self, kind: str) -> list[Case]:
        """Labelled cases that have out-of-fold proposals; raises `BadInput` where there is none."""
        known = set(self.out_of_fold.case_ids())
        found = [case for case in self.cases.split("labelled") if case.case_id in known]
        if not found:
            raise BadInput(
                f"{self.out_of_fold.folder}: a judge of kind '{kind}' learns from out-of-fold proposals of "
                "labelled cases, found none; expected base.folds of at least 2, which takes a base that is trained here"
            )
        return found


class Scorer(Protocol):
    """A judge that is ready to score; picklable."""

    def score(self, evidence: Evidence) -> np.ndarray:
        """f64 `[proposal]`; NaN where the judge abstains."""
        ...


@runtime_checkable
class Mapping(Scorer, Protocol):
    """A scorer that can also say where a proposal is wrong."""

    def mapped(self, case: Case) -> bool:
        """Whether the errors of this case's proposals are stored."""
        ...

    def errors(self, evidence: Evidence) -> np.ndarray:
        """Error probability f32 `[proposal, *space]`; NaN where it is unknown."""
        ...


class Judge(Protocol):
    """Frozen knobs (`JudgeKnobs`) with a literal `kind`."""

    research: ClassVar[bool]

    def inputs(self) -> list[Path]:
        """Files beyond cases and proposals that scores follow from."""
        ...

    @property
    def kind(self) -> str:
        """Name of the kind in `params.yaml`."""
        ...

    def ready(self, given: Given) -> Scorer:
        """Read, check or learn what scoring needs. Raises `BadInput`."""
        ...


class JudgeKnobs(Knobs):
    """Knobs of a judge; one that needs nothing but the case is ready as it is."""

    research: ClassVar[bool] = False
    """Whether it reads the truth of what it scores, so that what follows from it is for research only."""

    def inputs(self) -> list[Path]:
        """Files beyond cases and proposals that scores follow from."""
        return []

    def ready(self, given: Given) -> Any:
        return self


@dataclass(frozen=True)
class _Scoring:
    cases: CaseStore
    proposals: ProposalStore
    scorer: Scorer
    name: str
    research: bool
    learned: Path

    def __call__(self, shard: Shard) -> pl.DataFrame:
        rows: list[dict[str, object]] = []
        errors: dict[int, np.ndarray] = {}
        failures = CaseFailures()
        for case in shard.members:
            with failures.of(case.case_id):
                evidence = Evidence(self.cases, self.proposals, case, self.research)
                scores = np.asarray(self.scorer.score(evidence), np.float64)
                if scores.ndim != 1 or np.isinf(scores).any():
                    raise BadInput(
                        f"case '{case.case_id}': judge '{self.name}' gave {scores}; expected one finite number per "
                        "proposal, or NaN to abstain"
                    )
                rows += [
                    {"case_id": case.case_id, "proposal": slot, "judge": self.name, "score": None if np.isnan(s) else s}
                    for slot, s in enumerate(scores.tolist())
                ]
                if isinstance(self.scorer, Mapping) and self.scorer.mapped(case):
                    errors[case.case] = as_steps(self.scorer.errors(evidence))
        failures.raise_any()
        if errors:
            self._store(errors)
        return pl.DataFrame(rows, schema=schema.SCORES.columns)

    def _store(self, errors: dict[int, np.ndarray]) -> None:
        """Write the maps u8 `[proposal, *space]` of cases by row: all that their shard of the array ever holds."""
        array = open_array(self.learned, schema.ERROR, "r+")
        size = shard_cases(array)
        start = min(errors) // size * size
        block = np.full((min(size, array.shape[0] - start), *array.shape[1:]), array.fill_value, np.uint8)
        for row, steps in errors.items():
            space: tuple[Any, ...] = tuple(slice(0, length) for length in steps.shape[1:])
            block[(row - start, slice(None), *space)] = steps
        array[start : start + len(block)] = block


def as_steps(errors: np.ndarray) -> np.ndarray:
    """Error probability f32 `[proposal, *space]` as `schema.ERROR` stores it; NaN is 255."""
    return np.where(np.isnan(errors), schema.UNKNOWN, np.rint(errors * ERROR_STEPS)).astype(np.uint8)


def error_maps(folder: Path, case: Case) -> np.ndarray:
    """Error probability f32 `[proposal, *space]` of a case, stored by a judge in its folder `models/judges/NAME`.

    NaN where it is unknown, which it is everywhere for cases that the judge stored none of. Raises `BadInput` where the
    judge stores none at all.
    """
    steps = np.asarray(open_array(folder, schema.ERROR)[(case.case, slice(None), *case.space)])
    return np.where(steps == schema.UNKNOWN, np.nan, steps / np.float32(ERROR_STEPS)).astype(np.float32)


def judged(cases: CaseStore, proposals: ProposalStore) -> pl.DataFrame:
    """Rows of the proposals table that judges score: all but those of test cases, whose truth no judge may meet."""
    test = cases.table.filter(pl.col("split") == "test")["case_id"]
    return proposals.table.filter(~pl.col("case_id").is_in(test.implode()))


def judge(
    name: str,
    knobs: Judge,
    cases: CaseStore,
    proposals: ProposalStore,
    out_of_fold: ProposalStore,
    models: Path,
    compute: Compute,
    seed: int,
    out: Path,
    execution: Execution,
    flips: tuple[int, ...] = (),
) -> None:
    """Score every proposal but those of test cases with one judge and write `data/scores/NAME.parquet`.

    What it has learned goes to the folder `models`, beside `judge.json`, which says what judge it is. Raises `BadInput`
    naming every case that failed and where a judge's scores do not match the proposals.
    """
    seen = cases if knobs.research else LabelFree(cases.folder)
    expected = judged(cases, proposals).select("case_id", "proposal")
    known = set(expected["case_id"].unique().to_list())
    rows = [case for case in cases.all if case.case_id in known]
    stores = (cases, proposals, out_of_fold)
    inputs = [*(store.folder / MANIFEST for store in stores), *knobs.inputs()]
    with workspace(f"judge_{name}", (name, knobs, compute, seed, flips), inputs) as work:
        learned = work / "models"
        learned.mkdir(exist_ok=True)
        scorer = knobs.ready(Given(seen, proposals, out_of_fold, learned, compute, seed, flips))
        size = cases_per_shard(len(cases.all), 1)
        if isinstance(scorer, Mapping) and any(scorer.mapped(case) for case in rows):
            shape = (len(cases.all), int(expected["proposal"].to_numpy().max()) + 1, *cases.padded)
            size = cases_per_shard(len(cases.all), int(np.prod(shape[1:])))
            if not (learned / f"{schema.ERROR.name}.zarr" / "zarr.json").is_file():
                create_array(learned, schema.ERROR, shape, size)
        # By rows of the arrays, so that what a task writes is a shard of its own.
        shards = shards_of(rows, size, key=lambda case: case.case)
        task = _Scoring(seen, proposals, scorer, name, knobs.research, learned)
        scores = run(task, shards, work, execution, f"judge {name}")
        if not scores.select("case_id", "proposal").sort("case_id", "proposal").equals(expected):
            raise BadInput(
                f"judge '{name}': gave {len(scores)} scores, expected one for each of {len(expected)} proposals"
            )
        write_json(learned / RECORD, {"judge": name, "knobs": repr(knobs)})
        publish(learned, models)
        write_table(scores, schema.SCORES, out, knobs)
