"""Faults of projects: stages that did not run, damaged stores, a second process and a full disk."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from benchmarks.faults.damage import Make, cut, edit_json, flip_bit, remove, resealed, text
from benchmarks.faults.entry import BASE, PANEL, PREPARE, PROPOSE, Bad, judge_line, nothing
from pipeline.lock import alone

_missing = partial(Bad, kind="Stages that did not run, and names that do not exist", start="cases")
_store = partial(Bad, kind="Damaged and unfinished stores", start="run")
_at_once = partial(Bad, kind="A second process, and a full disk", start="run")
_STUDENT = "--cases data/cases --model models/students/rn_dpo"
_TRAIN = (
    "train rn_dpo --cases data/cases --proposals data/proposals --pairs data/pairs/mined.parquet --base models/base "
    "--out models/students/rn_dpo --history history/rn_dpo.csv"
)
_MINE = "mine mined --panel data/panel.parquet --proposals data/proposals --out data/pairs/mined.parquet"
_AUDIT = "audit --cases data/cases --proposals data/proposals --panel data/panel.parquet --out audit"
_JUDGE = judge_line("agreement")
_REPORT = "report --out reports"


def _shards(array: str) -> list[str]:
    return sorted(str(path) for path in Path(array).rglob("c/**/*") if path.is_file())


def _flipped(array: str) -> Make:
    """One bit of every shard is the other way round."""
    return lambda: [flip_bit(shard, 0.1)() for shard in _shards(array)]


def _no_shard(array: str) -> Make:
    return lambda: remove(_shards(array)[0])()


def _other_version() -> None:
    file = "data/cases/manifest.json"
    edit_json(file, version=json.loads(Path(file).read_text())["version"] - 1)()


def _full() -> None:
    """The file in which the panel is written is on a device that is always full."""
    remove("data/panel.parquet")()
    Path("data/panel.parquet.partial").symlink_to("/dev/full")


MISSING = [
    _missing("`base` without cases", nothing, "data/other", line=BASE.replace("data/cases", "data/other")),
    _missing("`propose` without a base", nothing, "models/base", line=PROPOSE),
    _missing("`judge` without proposals", nothing, "data/proposals", line=_JUDGE),
    _missing("`panel` without proposals", nothing, "data/proposals", line=PANEL),
    _missing(
        "`panel` without scores", remove("data/scores/agreement.parquet"), "agreement.parquet", start="run", line=PANEL
    ),
    _missing("`mine` without a panel", remove("data/panel.parquet"), "panel.parquet", start="run", line=_MINE),
    _missing("`audit` without a panel", remove("data/panel.parquet"), "panel.parquet", start="run", line=_AUDIT),
    _missing("`train` without pairs", nothing, "mined.parquet", start="run", line=_TRAIN),
    _missing(
        "`evaluate` without a student",
        nothing,
        "models/students/rn_dpo",
        line=(f"evaluate rn_dpo {_STUDENT} --out evaluation/rn_dpo.parquet --metrics metrics/rn_dpo.json"),
    ),
    _missing(
        "`validate` without a base",
        nothing,
        "models/base",
        line=("validate base --cases data/cases --model models/base --out validation/base.parquet"),
    ),
    _missing(
        "`promote` without students",
        nothing,
        "validation",
        line=("promote --validation validation --students models/students --out models/promoted"),
    ),
    _missing("`report` without results", nothing, "evaluation", line=_REPORT),
    _missing(
        "`export` without a promoted student", nothing, "models/promoted", line=("export promoted --format safetensors")
    ),
    _missing("`export` of a student that does not exist", nothing, "nobody", line="export nobody --format safetensors"),
    _missing("`judge` of a judge that does not exist", nothing, "nobody", start="run", line=judge_line("nobody")),
    _missing(
        "`mine` of a pair set that does not exist",
        nothing,
        "nobody",
        start="run",
        line=_MINE.replace("mine mined", "mine nobody"),
    ),
    _missing(
        "`export_proposals` without proposals",
        nothing,
        "data/proposals",
        line=("export_proposals qc --cases data/cases --proposals data/proposals"),
    ),
    _missing("`compare` of a run that is not there", nothing, "other", line="compare other --out compared.html"),
]

STORES = [
    _store(
        "cases without a manifest, as a killed stage leaves them",
        remove("data/cases/manifest.json"),
        "data/cases",
        line=_JUDGE,
    ),
    _store("a manifest that is cut off", cut("data/cases/manifest.json"), "manifest.json", line=_JUDGE),
    _store("a manifest of another version", _other_version, "manifest.json", line=_JUDGE),
    _store("a manifest that is another file", text("data/cases/manifest.json", "[]"), "manifest.json", line=_JUDGE),
    _store("a file of the manifest that is gone", remove("data/cases/images.zarr/zarr.json"), "zarr.json", line=_JUDGE),
    _store("a table that is cut off", cut("data/cases/cases.parquet"), "cases.parquet", line=_JUDGE),
    _store(
        "a table of another tool",
        resealed("data/cases", lambda: Path("data/panel.parquet").rename("data/cases/cases.parquet")),
        "cases.parquet",
        line=_JUDGE,
    ),
    _store("a `cases.json` that is cut off", cut("data/cases/cases.json"), "cases.json", line=PROPOSE),
    _store("masks with a flipped bit", _flipped("data/proposals/masks.zarr"), "masks.zarr", line=_JUDGE),
    _store("an array with a flipped bit", _flipped("data/cases/images.zarr"), "images.zarr", line=PROPOSE),
    _store(
        "numbers of voxels with a flipped bit",
        _flipped("data/proposals/disagreement.zarr"),
        "disagreement.zarr",
        line=_MINE,
    ),
    _store("an array without a shard", _no_shard("data/proposals/masks.zarr"), "masks", line=_JUDGE),
    _store("a `models.json` that is cut off", cut("models/base/models.json"), "models.json", line=PROPOSE),
    _store("weights that are cut off", cut("models/base/base.safetensors"), "base.safetensors", line=PROPOSE),
    _store("scores that are cut off", cut("data/scores/agreement.parquet"), "agreement.parquet", line=PANEL),
    _store("a panel that is cut off", cut("data/panel.parquet"), "panel.parquet", line=_MINE),
]

AT_ONCE = [
    _at_once(
        "an output that another process works on",
        nothing,
        "data/cases",
        line=PREPARE,
        during=lambda: alone(Path("data/cases")),
    ),
    _at_once(
        "a stage that another process does for another output",
        nothing,
        "prepare",
        line="prepare --out data/more",
        during=lambda: alone(Path(".work/prepare")),
    ),
    _at_once("a full disk", _full, "disk is full", line=PANEL),
]
