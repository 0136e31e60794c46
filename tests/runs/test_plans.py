"""`preprocess: plans`: the same cases as with the block, and `prepare` runs again only if the plans have changed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.store.cases import CaseStore
from tests.fixtures.chain import checkout, invoke, repro, with_changes, write_params
from tests.fixtures.phantoms import write_nnunet
from tests.fixtures.results_folder import results_folder

MODEL = "raw/nnUNetTrainer__nnUNetPlans__3d_fullres"
BLOCK: dict[str, Any] = {
    "normalise": {"range": [-100.0, 300.0], "to": [-4.0, 4.0]},
    "spacing": [1.0, 0.5, 4.0],
    "resample": "nnunet",
}
"""What the plans ask for: CT of mean 100 and deviation 50, and 4, 0.5 and 1 mm along z, y and x."""


def params(preprocess: Any) -> dict[str, Any]:
    return with_changes(
        data={"kind": "nnunet", "path": "raw/Dataset001_Balls"},
        preprocess=preprocess,
        splits={"labelled": 2, "pool": 0, "validation": 2, "test": "rest"},
        augmentation={"flips": []},
        model=MODEL,
        base={"kind": "nnunet", "folds": [0, 1]},
        judges={},
        pairs={},
        students={},
    )


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Volumes of 1 x 0.5 x 2 mm and an nnU-Net of other slices, with prepared cases."""
    folder = tmp_path_factory.mktemp("plans") / "project"
    checkout(folder, params("plans"))
    write_nnunet(folder / "raw/Dataset001_Balls")
    results_folder(folder / MODEL, (4, 8, 8), (4.0, 0.5, 1.0), schemes=("CTNormalization",))
    assert repro(folder, "prepare") == {"prepare"}
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_cases_are_those_of_the_block(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Byte by byte, so every later stage, model and export knows the block alone."""
    (project / "block").mkdir()
    write_params(project / "block", params(BLOCK))
    monkeypatch.chdir(project)
    invoke("python -m stages.prepare --out block/cases --params block/params.yaml")
    found = files(project / "block/cases")
    assert CaseStore(project / "data/cases").info["preprocess"]["spacing"] == BLOCK["spacing"]
    assert {"cases.json", "cases.parquet", "manifest.json"} < found.keys()
    assert files(project / "data/cases") == found


def test_prepare_says_the_block_and_needs_no_torch(project: Path) -> None:
    code = "import sys; sys.argv = ['prepare', '--out=elsewhere']; from stages.prepare import main; main()"
    check = f"import atexit, sys; atexit.register(lambda: print('torch' in sys.modules)); {code}"
    done = subprocess.run([sys.executable, "-c", check], cwd=project, check=True, capture_output=True, text=True)
    *_, told, torch = done.stdout.splitlines()
    assert json.loads(told.removeprefix("prepare: `plans` is preprocess: ")) == BLOCK
    assert torch == "False"


def test_other_plans_run_prepare_again_and_other_files_of_the_model_do_not(project: Path) -> None:
    """`prepare` reads no checkpoint and no `splits_final.json`. Folders of two configurations have the same plans."""
    (project / MODEL / "splits_final.json").write_text("[]")
    (project / MODEL / "fold_1/checkpoint_final.pth").write_bytes(b"other weights")
    assert repro(project, "prepare") == set()
    plans = json.loads((project / MODEL / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["normalization_schemes"] = ["RescaleTo01Normalization"]
    plans["configurations"]["3d_lowres"] = {"inherits_from": "3d_fullres", "spacing": [8.0, 1.0, 2.0]}
    (project / MODEL / "plans.json").write_text(json.dumps(plans))
    assert repro(project, "prepare") == {"prepare"}
    found = CaseStore(project / "data/cases").info["preprocess"]
    assert (found["normalise"], found["spacing"]) == ("minmax", [1.0, 0.5, 4.0])
    other = MODEL.replace("fullres", "lowres")
    (project / MODEL).rename(project / other)
    write_params(project, {**params("plans"), "model": other})
    assert repro(project, "prepare") == {"prepare"}
    assert CaseStore(project / "data/cases").info["preprocess"]["spacing"] == [2.0, 1.0, 8.0]
