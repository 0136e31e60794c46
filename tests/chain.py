"""The chain on tiny data, as a user runs it: one command per stage, in this process or under DVC."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent

TINY: dict[str, Any] = {
    "seed": 3,
    "data": {"kind": "phantom", "path": "pipeline/cases/phantom.py", "cases": 30, "size": [32, 32], "classes": 3},
    "preprocess": {"normalise": "zscore"},
    "splits": {"labelled": 6, "pool": 10, "validation": 6, "test": 6},
    "augmentation": {"flips": [0, 1]},
    "base": {
        "network": {"name": "UNet", "arguments": {"channels": [4, 8], "strides": [2]}, "multiple": 2},
        "optimisation": {"steps": 12, "learning_rate": 5e-3, "evaluate_every": 6, "patience": 2},
        "batch": 2,
        "members": 1,
    },
    "propose": {
        "imports": "pipeline/samplers/imported.py",
        "samplers": {
            "dropout": {"kind": "mc_dropout", "rates": [0.3, 0.6], "at": "all"},
            "thresholds": {"kind": "threshold", "thresholds": [0.3, 0.7]},
            "ensemble": {"kind": "ensemble"},
            "consensus": {"kind": "consensus"},
        },
    },
    "judges": {"agreement": {"kind": "agreement"}, "expected_dice": {"kind": "expected_dice"}},
    "tables": {},
    "consensus": {},
    "audit": {"bootstrap": 50},
    "pairs": {
        "none": {"judge": "none", "strategy": {"kind": "none"}},
        # A judge of such small networks may be worse than a coin; the chain goes on all the same.
        "mined": {"judge": "agreement", "strategy": {"kind": "top_bottom", "min_p_correct": 0.0}},
    },
    "training": {
        "optimisation": {"steps": 4, "learning_rate": 1e-3, "evaluate_every": 2},
        "images": 2,
        "labelled": 2,
    },
    "students": {
        "supervised": {"pairs": "none", "objective": {"kind": "supervised"}},
        "rn_dpo": {"pairs": "mined", "objective": {"kind": "preference"}, "anchor": {"supervised": 1.0}},
    },
    "evaluation": {"nsd_tolerance": 1.0, "bootstrap": 50},
    "compute": {"threads": 1},
    "execution": {"scheduler": "synchronous", "workers": 1, "progress": "none"},
}


def with_changes(**changes: Any) -> dict[str, Any]:
    """`TINY` with whole blocks replaced; a None removes the block."""
    return {key: value for key, value in {**TINY, **changes}.items() if value is not None}


def write_params(folder: Path, params: dict[str, Any]) -> None:
    """`params.yaml`; JSON is YAML."""
    with (folder / "params.yaml").open("w") as file:
        YAML(typ="safe").dump(json.loads(json.dumps(params)), file)


def commands(params: dict[str, Any]) -> list[str]:
    """What DVC would run, in order."""
    stages = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
    lines = []
    for stage in stages.values():
        if "foreach" not in stage:
            lines.append(stage["cmd"])
            continue
        for key, item in params[stage["foreach"].strip("${}")].items():
            line = stage["do"]["cmd"].replace("${key}", key)
            lines.append(line.replace("${item.pairs}", item.get("pairs", "") if isinstance(item, dict) else ""))
    return lines


def invoke(line: str) -> None:
    """Run `python -m stages.NAME ...` in this process, in the current folder; raise with its output if it fails."""
    import importlib

    _, _, module, *arguments = line.split()
    result = CliRunner().invoke(importlib.import_module(module).main, arguments, catch_exceptions=False)
    if result.exit_code:
        raise RuntimeError(f"{line}: exit code {result.exit_code}: {result.output}")


def run_chain(folder: Path, params: dict[str, Any], skip: tuple[str, ...] = ()) -> None:
    """All stages in `folder`, but those of these names."""
    folder.mkdir(parents=True, exist_ok=True)
    write_params(folder, params)
    if not (folder / "pipeline").exists():
        (folder / "pipeline").symlink_to(ROOT / "pipeline")
    before = Path.cwd()
    os.chdir(folder)
    try:
        for line in commands(params):
            if line.split()[2].removeprefix("stages.") not in skip:
                invoke(line)
    finally:
        os.chdir(before)


OUTPUTS = ("data", "models", "history", "audit", "evaluation", "metrics", "reports")


def hashes(folder: Path, without: str = "data/cases") -> dict[str, str]:
    """SHA-256 of every output file by its path, but those below `without`."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for root in OUTPUTS
        for path in sorted((folder / root).rglob("*"))
        if path.is_file() and not (without and path.is_relative_to(folder / without))
    }


def checkout(folder: Path, params: dict[str, Any]) -> None:
    """A git repository with the project's code, as a user has after cloning it, and these parameters."""
    folder.mkdir(parents=True)
    for name in ("pipeline", "stages"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", ".dvcignore", ".gitignore"):
        shutil.copy(ROOT / name, folder / name)
    (folder / ".dvc").mkdir()
    for name in ("config", ".gitignore"):
        shutil.copy(ROOT / ".dvc" / name, folder / ".dvc" / name)
    write_params(folder, params)
    for line in ("git init -q", "git add -A", "git -c user.name=t -c user.email=t@t commit -q -m start"):
        subprocess.run(line.split(), cwd=folder, check=True)


def dvc(folder: Path, *arguments: str) -> str:
    """Output of a DVC command; its stages use this Python."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def stages_run(output: str) -> set[str]:
    """Names of the stages that a `dvc repro` ran."""
    return {line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")}


def locked(folder: Path, *stages: str) -> dict[str, list[dict[str, Any]]]:
    """What `dvc.lock` says of the outputs of these stages, hashes included."""
    found = YAML(typ="safe").load(folder / "dvc.lock")["stages"]
    return {stage: found[stage]["outs"] for stage in stages}
