"""Stage `judge`: one judge learns, if its kind does, and then scores every proposal."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pipeline.errors import BadInput
from pipeline.execution import CaseFailures, Runtime, Shard, run, shards_of
from pipeline.judges.error_maps import ErrorMapper, as_steps
from pipeline.judges.judge import Evidence, Judge, JudgeInputs, Scorer
from pipeline.knobs import NOTHING
from pipeline.progress import showing
from pipeline.store import schema
from pipeline.store.arrays import cases_per_shard, create_array, open_array, shard_cases
from pipeline.store.cases import Case, CaseStore, Volume
from pipeline.store.manifest import MANIFEST, write_json
from pipeline.store.proposals import Data, ProposalStore
from pipeline.store.tables import write_table
from pipeline.workspace import publish, workspace

JUDGE_FILE = "judge.json"
"""File beside the learned files of a judge: the name and the knobs of the judge."""


class LabelFree(CaseStore):
    """Cases for judges that are not for research: every label outside the labelled split raises `BadInput`."""

    def stored_label(self, case: Case, source_grid: bool = False) -> Volume:
        if case.split != "labelled":
            raise BadInput(
                f"case '{case.case_id}': a judge without `research = True` asked for the label of a {case.split} case; "
                "expected labels of the labelled split only"
            )
        return super().stored_label(case, source_grid)


@dataclass(frozen=True)
class _Scoring:
    """The task of one shard: a table of scores; error maps go straight to the array in the folder `learned`."""

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
                if isinstance(self.scorer, ErrorMapper) and self.scorer.mapped(case):
                    errors[case.case] = as_steps(self.scorer.errors(evidence))
        failures.raise_any()
        if errors:
            self._store(errors)
        return pl.DataFrame(rows, schema=schema.SCORES.columns)

    def _store(self, errors: dict[int, np.ndarray]) -> None:
        """Write the error maps u8 `[proposal, *space]` of cases by row; no other task writes to their shard."""
        array = open_array(self.learned, schema.ERROR, "r+")
        size = shard_cases(array)
        start = min(errors) // size * size
        block = np.full((min(size, array.shape[0] - start), *array.shape[1:]), array.fill_value, np.uint8)
        for row, steps in errors.items():
            space: tuple[Any, ...] = tuple(slice(0, length) for length in steps.shape[1:])
            block[(row - start, slice(None), *space)] = steps
        array[start : start + len(block)] = block


def scored_proposals(cases: CaseStore, proposals: ProposalStore) -> pl.DataFrame:
    """Rows of the proposals table that judges score: all except test cases, whose truth no judge may meet."""
    test = cases.table.filter(pl.col("split") == "test")["case_id"]
    return proposals.table.filter(~pl.col("case_id").is_in(test.implode()))


@dataclass(frozen=True)
class JudgeFiles:
    """Outputs of a judge."""

    models: Path
    """Folder `models/judges/NAME` for everything that the judge has learned."""
    scores: Path
    """Score table `data/scores/NAME.parquet`."""


def judge(
    name: str,
    knobs: Judge,
    data: Data,
    out_of_fold: ProposalStore,
    files: JudgeFiles,
    runtime: Runtime,
    flips: tuple[int, ...] = (),
) -> None:
    """Score every proposal except those of test cases with one judge.

    Everything that the judge has learned goes to the folder `files.models`, beside `judge.json`, which names the judge.
    Raises `BadInput` naming every case that failed, and for a judge whose scores do not match the proposals.
    """
    cases, proposals, compute, seed = data.cases, data.proposals, runtime.compute, runtime.seed
    seen = cases if knobs.research else LabelFree(cases.folder)
    expected = scored_proposals(cases, proposals).select("case_id", "proposal")
    known = set(expected["case_id"].unique().to_list())
    rows = [case for case in cases.all if case.case_id in known]
    stores = (cases, proposals, out_of_fold)
    answers = [] if data.verdicts == NOTHING else [data.verdicts]
    inputs = [*(store.folder / MANIFEST for store in stores), *knobs.inputs(), *answers]
    with workspace(f"judge_{name}", __name__, (name, knobs, compute, seed, flips), inputs) as work:
        learned = work / "models"
        learned.mkdir(exist_ok=True)
        with showing(runtime.execution.progress, f"judge {name}"):
            given = JudgeInputs(seen, proposals, out_of_fold, learned, compute, seed, flips, data.verdicts)
            scorer = knobs.ready(given)
        size = cases_per_shard(len(cases.all), 1)
        if isinstance(scorer, ErrorMapper) and any(scorer.mapped(case) for case in rows):
            shape = (len(cases.all), int(expected["proposal"].to_numpy().max()) + 1, *cases.padded)
            size = cases_per_shard(len(cases.all), int(np.prod(shape[1:])))
            if not (learned / f"{schema.ERROR.name}.zarr" / "zarr.json").is_file():
                create_array(learned, schema.ERROR, shape, size)
        # Grouped by rows of the arrays, so that every task writes one shard of the error maps by itself.
        shards = shards_of(rows, size, key=lambda case: case.case)
        task = _Scoring(seen, proposals, scorer, name, knobs.research, learned)
        scores = run(task, shards, work, runtime.execution, f"judge {name}")
        if not scores.select("case_id", "proposal").sort("case_id", "proposal").equals(expected):
            raise BadInput(
                f"judge '{name}': expected one score for each of {len(expected)} proposals, found {len(scores)}; "
                "return one number per mask from `score`, NaN where the judge abstains"
            )
        write_json(learned / JUDGE_FILE, {"judge": name, "knobs": repr(knobs)})
        publish(learned, files.models)
        write_table(scores, schema.SCORES, files.scores, knobs)
