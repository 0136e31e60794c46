"""The chain on tiny data, as a user runs it: one command per stage, in this process or under DVC."""

from __future__ import annotations

import hashlib
import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent

TINY: dict[str, Any] = {
    "seed": 3,
    "data": {"kind": "phantom", "path": "pipeline/cases/phantom.py", "cases": 30, "size": [32, 32], "classes": 3},
    "preprocess": {"normalise": "zscore"},
    "splits": {"labelled": 6, "pool": 10, "validation": 6, "test": 6},
    "augmentation": {"flips": [0, 1]},
    "model": "pipeline/base.py",
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
    """Run `python -m stages.NAME ...` in this process, in the current folder; raise if it fails."""
    _, _, module, *arguments = line.split()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [module, *arguments])
        try:
            runpy.run_module(module, run_name="__main__")
        except SystemExit as ended:
            if ended.code:
                raise RuntimeError(f"{line}: exit code {ended.code}; standard error says why") from None


def run_chain(folder: Path, params: dict[str, Any], skip: tuple[str, ...] = ()) -> None:
    """All stages in `folder`, but those of these names."""
    folder.mkdir(parents=True, exist_ok=True)
    write_params(folder, params)
    if not (folder / "pipeline").exists():
        (folder / "pipeline").symlink_to(ROOT / "pipeline")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for line in commands(params):
            if line.split()[2].removeprefix("stages.") not in skip:
                invoke(line)


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


def dvc_process(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """A DVC command that has started, in a session of its own; its stages use this Python."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=folder,
        env=environment,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def dvc(folder: Path, *arguments: str) -> str:
    """Output of a DVC command that ends well, and of the stages that it runs."""
    with dvc_process(folder, *arguments) as running:
        output = running.communicate()[0]
    assert running.returncode == 0, output
    return output


def repro(folder: Path, *targets: str) -> set[str]:
    """Names of the stages that `dvc repro` runs, each in this process: most of a tiny stage is to import torch."""
    from dvc.repo import Repo

    ran = set()

    def run(executable: str, command: str, *, env: dict[str, str], **_: Any) -> None:
        ran.add(env["DVC_STAGE"])
        invoke(command)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("dvc.stage.run._run", run)
        with Repo() as project:
            project.reproduce(list(targets))
    return ran


def locked(folder: Path, *stages: str) -> dict[str, list[dict[str, Any]]]:
    """What `dvc.lock` says of the outputs of these stages, hashes included."""
    found = YAML(typ="safe").load(folder / "dvc.lock")["stages"]
    return {stage: found[stage]["outs"] for stage in stages}
