"""What every judge of a run costs, in seconds of one core: `python -m benchmarks.judges [CASES]`.

Run in a folder with `params.yaml` in which the propose stage has finished. Learning is timed apart from scoring, which
is timed on pool cases drawn at random, reading them included; the first is scored once before the clock starts, so that
imports and loading networks are not counted. Seconds are those of the process on any core, so other work on the machine
does not count; `compute.threads` is 1.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from pipeline.judges.judge import Evidence, Judge, JudgeInputs
from pipeline.judges.score import LabelFree
from pipeline.params import Params, load_params
from pipeline.seeding import numpy_generator
from pipeline.store.cases import CaseStore
from pipeline.store.proposals import ProposalStore

CASES = 40
"""Scored of each judge."""


def measure(name: str, knobs: Judge, params: Params, n_cases: int) -> tuple[float, float, int]:
    """Seconds of learning, seconds of scoring, and proposals that were scored."""
    cases, proposals = CaseStore(Path("data/cases")), ProposalStore(Path("data/proposals"))
    seen = cases if knobs.research else LabelFree(cases.folder)
    known = set(proposals.case_ids())
    pool = [case for case in cases.split("pool") if case.case_id in known]
    order = numpy_generator("benchmark", "judges").permutation(len(pool))[:n_cases]
    evidence = [(seen, proposals, pool[row], knobs.research) for row in order.tolist()]
    with tempfile.TemporaryDirectory() as folder:
        compute = params.compute.model_copy(update={"threads": 1})
        out_of_fold = ProposalStore(Path("data/out_of_fold"))
        start = time.process_time()
        scorer = knobs.ready(
            JudgeInputs(seen, proposals, out_of_fold, Path(folder), compute, params.seed, params.augmentation.unsided)
        )
        learning = time.process_time() - start
        scorer.score(Evidence(*evidence[0]))
        start = time.process_time()
        scored = sum(len(np.asarray(scorer.score(Evidence(*one)))) for one in evidence)
        return learning, time.process_time() - start, scored


def main(n_cases: int) -> None:
    """A Markdown table, one row per judge of `params.yaml`."""
    import torch

    torch.set_num_threads(1)
    params = load_params(Path("params.yaml"))
    print("| judge | kind | learning, s | scoring, s per 1,000 proposals |")
    print("|---|---|---|---|")
    for name, knobs in {**params.judges, **params.tables}.items():
        learning, scoring, scored = measure(name, knobs, params, n_cases)
        print(f"| `{name}` | `{knobs.kind}` | {learning:.1f} | {1000 * scoring / scored:.2f} |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else CASES)
