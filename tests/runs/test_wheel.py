"""The wheel in a new environment, outside the repository: one name, a project with an own judge, equal hashes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipeline.params import load_params
from pipeline.provenance import write_provenance
from tests.fixtures.chain import TINY

ROOT = Path(__file__).parents[2]
JUDGE = """
from typing import Literal

import numpy as np

from segpref.pipeline.judges.judge import Evidence, JudgeKnobs


class Constant(JudgeKnobs):
    kind: Literal["constant"]

    def score(self, evidence: Evidence) -> np.ndarray:
        return np.full(len(evidence.masks), 0.5)
"""


def run(folder: Path, environment: Path, *command: str) -> str:
    """Output of a command of the new environment, whose programs are found first, as after `activate`."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    path = f"{environment / 'bin'}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [*command],
        cwd=folder,
        env={**variables, "PATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the wheel. The packages that segpref needs come from the environment of the tests."""
    pytest.importorskip("hatchling")
    wheels, folder = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("environment") / "venv"
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", wheels, ROOT], check=True)
    venv.create(folder, with_pip=False, symlinks=True)
    site = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (wheel,) = wheels.glob("segpref-*.whl")
    subprocess.run([*pip, "--python", folder / "bin/python", "install", "--no-deps", wheel], check=True)
    (site / "needed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return folder


def test_an_installation_takes_one_name(environment: Path, tmp_path: Path) -> None:
    code = (
        "import pkgutil, sys, importlib, segpref\n"
        "for module in pkgutil.walk_packages(segpref.__path__, 'segpref.'):\n"
        "    if not module.name.endswith('__main__'): importlib.import_module(module.name)\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('pipeline', 'stages')], len(sys.modules))\n"
    )
    assert run(tmp_path, environment, str(environment / "bin/python"), "-c", code).startswith("[] ")


def test_a_project_with_an_own_judge_runs_outside_the_repository(environment: Path, tmp_path: Path) -> None:
    run(tmp_path, environment, "segpref", "init", "project")
    folder = tmp_path / "project"
    (folder / "kinds/constant.py").write_text(JUDGE)
    with (folder / "params.yaml").open("w") as file:
        YAML().dump({**TINY, "judges": {**TINY["judges"], "mine": {"kind": "constant"}}}, file)
    said = run(folder, environment, "dvc", "repro", "judge")
    assert "segpref judge mine" in said
    assert (folder / "data/scores/mine.parquet").is_file()
    assert "kinds/constant.py" in json.loads((folder / "provenance/judge/mine.json").read_text())
    (folder / "kinds/constant.py").write_text(JUDGE.replace("0.5", "0.25"))
    after = run(folder, environment, "dvc", "repro", "judge")
    assert [line for line in after.splitlines() if line.startswith("Running stage")] == [
        "Running stage 'provenance':",
        "Running stage 'check':",
        "Running stage 'judge@mine':",
    ]
    # The code of a clone has the same hashes, so results of the two are of one code.
    (folder / "kinds/constant.py").unlink()
    with (folder / "params.yaml").open("w") as file:
        YAML().dump(TINY, file)
    run(folder, environment, "segpref", "provenance", "--out", "provenance")
    write_provenance(load_params(folder / "params.yaml"), tmp_path / "clone")
    for file in sorted((tmp_path / "clone").rglob("*.json")):
        assert (folder / "provenance" / file.relative_to(tmp_path / "clone")).read_text() == file.read_text(), file
