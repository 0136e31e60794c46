"""Stage `judge`: one judge scores every proposal, after learning what it needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pipeline.compute import Compute
from pipeline.errors import BadInput
from pipeline.execution import CaseFailures, Execution, Shard, publish, run, shards_of, workspace
from pipeline.judges.error_maps import ErrorMapper, as_steps
from pipeline.judges.judge import Evidence, Judge, JudgeInputs, Scorer
from pipeline.store import schema
from pipeline.store.arrays import cases_per_shard, create_array, open_array, shard_cases
from pipeline.store.cases import Case, CaseStore
from pipeline.store.manifest import MANIFEST, write_json
from pipeline.store.proposals import ProposalStore
from pipeline.store.tables import write_table

JUDGE_FILE = "judge.json"
"""Beside what a judge has learned: which judge it is."""


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
                if isinstance(self.scorer, ErrorMapper) and self.scorer.mapped(case):
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


def scored_proposals(cases: CaseStore, proposals: ProposalStore) -> pl.DataFrame:
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
    expected = scored_proposals(cases, proposals).select("case_id", "proposal")
    known = set(expected["case_id"].unique().to_list())
    rows = [case for case in cases.all if case.case_id in known]
    stores = (cases, proposals, out_of_fold)
    inputs = [*(store.folder / MANIFEST for store in stores), *knobs.inputs()]
    with workspace(f"judge_{name}", __name__, (name, knobs, compute, seed, flips), inputs) as work:
        learned = work / "models"
        learned.mkdir(exist_ok=True)
        scorer = knobs.ready(JudgeInputs(seen, proposals, out_of_fold, learned, compute, seed, flips))
        size = cases_per_shard(len(cases.all), 1)
        if isinstance(scorer, ErrorMapper) and any(scorer.mapped(case) for case in rows):
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
        write_json(learned / JUDGE_FILE, {"judge": name, "knobs": repr(knobs)})
        publish(learned, models)
        write_table(scores, schema.SCORES, out, knobs)
