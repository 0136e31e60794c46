"""Stage `provenance`: the code that the results of each stage follow from, in files that DVC watches.

DVC watches the path `model` as a whole, for the stages `check` and `base`. `preprocess: plans` reads one file there, so
the stamp of this file stands beside the code of `prepare`: other weights or splits do not read the cases again.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline.cases.preprocess_of_plans import PreprocessOfPlans
from pipeline.params import Params
from pipeline.source_code import PREFIX, code_of
from pipeline.store.manifest import write_json

PLANS = "preprocess: plans"
"""Key of `prepare.json` with the configuration and the SHA-256 of the plans, beside the keys of code."""


def write_provenance(params: Params, out: Path) -> list[Path]:
    """Write one JSON per stage and entry, such as `judge/agreement.json`, which maps each code file to its hash.

    Returns the paths of the files. Raises `BadInput` for `preprocess: plans` without plans of one configuration.
    """
    plans = params.preprocessing
    more = {"prepare": {PLANS: plans.stamp}} if isinstance(plans, PreprocessOfPlans) else {}
    files = []
    for name, stage, knobs in stages_and_knobs(params):
        files.append(out / f"{name}.json")
        write_json(files[-1], {**code_of(f"{PREFIX}stages.{stage}", knobs), **more.get(name, {})})
    return files


def stages_and_knobs(params: Params) -> Iterator[tuple[str, str, object]]:
    """Name, module below `stages` and knobs of every stage and entry that `dvc.yaml` runs."""
    augmentation, compute = params.augmentation, params.compute
    yield "prepare", "prepare", (params.data, params.preprocessing, params.splits)
    scored, pairs = (params.judges, params.experts), params.pairs
    yield "check", "check", (params.base, params.propose, scored, pairs, params.students)
    yield "base", "base", (params.base, augmentation, compute)
    yield "propose", "propose", (params.propose, augmentation, compute)
    yield from ((f"judge/{name}", "judge", (judge, augmentation, compute)) for name, judge in params.judges.items())
    yield from ((f"table/{name}", "judge", table) for name, table in params.tables.items())
    yield from ((f"expert/{name}", "judge", (expert, compute)) for name, expert in params.experts.items())
    yield "panel", "panel", params.consensus
    # The verdict of a judge depends on `research` of its class.
    yield "audit", "audit", (params.audit, params.pairs, params.consensus, scored)
    yield from ((f"mine/{name}", "mine", pairs) for name, pairs in params.pairs.items())
    for name, student in params.students.items():
        yield f"train/{name}", "train", (student, params.training, augmentation, compute)
    yield "evaluate", "evaluate", (params.evaluation, compute)
    yield "validate", "validate", (params.evaluation, compute)
    # Whether a student is a candidate depends on properties of the classes of its objective and its judge.
    yield "promote", "promote", (params.promotion, params.students, params.pairs, params.consensus, scored)
    # Families of arms and passes of proposals are properties of the classes.
    used = (params.propose, params.students, params.consensus, scored)
    yield "report", "report", used
