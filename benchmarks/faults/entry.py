"""An input with a fault, an odd input without one, and the projects that both start from."""

from __future__ import annotations

import copy
import importlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, chdir, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner
from ruamel.yaml import YAML

from pipeline.cases.preprocess import Preprocess
from tests.fixtures.chain import TINY, with_changes, write_params
from tests.fixtures.phantoms import save_image, write_decathlon, write_folders, write_nnunet
from tests.fixtures.trained import model_folder, textured, write_oblique

SET = Path("raw/set")
"""Data root of the projects."""
PREPARE = "prepare --out data/cases"
CHECK = "check --cases data/cases --out data/checked --notes data/notes.json"
BASE = "base --cases data/cases --out models/base --history history/base.csv"
PROPOSE = "propose --cases data/cases --base models/base --out data/proposals"
PANEL = "panel --cases data/cases --proposals data/proposals --scores data/scores --out data/panel.parquet"


def judge_line(name: str) -> str:
    """The stage `judge` for this judge or score table."""
    return f"judge {name} --cases data/cases --proposals data/proposals --out data/scores/{name}.parquet"


Change = Callable[[], object]
Expected = Sequence[tuple[str, Callable[[], np.ndarray], np.ndarray]]
"""What a stage must have written: name, reader, and the values."""


@dataclass(frozen=True)
class Bad:
    """An input with one fault, and the stage that must refuse it."""

    what: str
    """The fault in a few words."""
    make: Change
    """Makes the fault in the current folder, which is the project."""
    place: str
    """Text that every error line must hold: the file, the case or the knob with the fault."""
    knobs: dict[str, Any] = field(default_factory=dict)
    """Values of `params.yaml` by key path."""
    kind: str = field(kw_only=True)
    start: str = field(kw_only=True)
    """Project that the input starts from: a key of `STARTS`."""
    line: str = field(kw_only=True)
    """Stage and its arguments, as behind `python -m stages.`."""
    during: Callable[[], AbstractContextManager[object]] = field(kw_only=True, default=nullcontext)
    """Context in which the stage runs."""


@dataclass(frozen=True)
class Good:
    """An odd input that is right."""

    what: str
    make: Callable[[], Expected]
    """Makes the input in the current folder, and returns what the stage must write."""
    knobs: dict[str, Any] = field(default_factory=dict)
    kind: str = field(kw_only=True)
    start: str = field(kw_only=True)
    line: str = field(kw_only=True)


def nothing() -> None:
    """For faults that are in `params.yaml` alone."""


_PICTURES = with_changes(
    data={"kind": "folders", "path": "raw/set"},
    splits={"labelled": 2, "pool": 1, "validation": 2, "test": "rest"},
    preprocess={"normalise": {"range": [0.0, 1.0], "to": [0.0, 1.0], "clip": False}},
    judges={"agreement": {"kind": "agreement"}},
)
"""Knobs that leave the intensities as stored."""
_VOLUMES = {**_PICTURES, "data": {"kind": "decathlon", "path": "raw/set"}, "base": None, "students": {}}


def _pictures() -> dict[str, Any]:
    """Eight pictures `case_00`... with masks of two classes."""
    write_folders(SET, cases=8)
    return _PICTURES


def _volumes() -> dict[str, Any]:
    """Six volumes `vol_00`... of the layout `decathlon`, with three classes."""
    write_decathlon(SET, cases=6)
    return _VOLUMES


def _nnunet(ending: str, channels: int) -> dict[str, Any]:
    """Six cases `case_00`... of the layout `nnunet`, with two classes."""
    write_nnunet(SET, cases=6, ending=ending, channels=channels)
    return {**_VOLUMES, "data": {"kind": "nnunet", "path": "raw/set"}}


def _cases() -> dict[str, Any]:
    """Pictures that are prepared."""
    return _after(_pictures(), PREPARE)


def _imports() -> dict[str, Any]:
    """Prepared pictures, no model, and a mask of another tool for each picture."""
    shutil.copytree(write_folders(SET, cases=8) / "masks", "raw/masks/tool")
    return _imported({**_PICTURES, "base": None, "students": {}}, "{case_id}.png")


def _imported_volumes() -> dict[str, Any]:
    """Prepared volumes, no model, and a mask of another tool for each volume."""
    shutil.copytree(write_decathlon(SET, cases=6) / "labelsTr", "raw/masks/tool")
    return _imported(_VOLUMES, "{case_id}.nii.gz")


def _imported(params: dict[str, Any], file: str) -> dict[str, Any]:
    """Proposals are drawn from the masks, and removed as DVC does before a stage."""
    shutil.copytree("raw/masks/tool", "raw/masks/second")
    sources = {name: {"path": name, "file": file} for name in ("tool", "second")}
    propose = {
        "imports": "raw/masks",
        "splits": ["labelled", "pool", "validation", "test"],
        "samplers": {"mine": {"kind": "imported", "sources": sources}},
    }
    _after({**params, "propose": propose}, PREPARE, BASE, PROPOSE)
    shutil.rmtree("data/proposals")
    return {**params, "propose": propose}


def _run() -> dict[str, Any]:
    """Pictures with a trained base, proposals, scores of a judge and the panel."""
    return _after(_pictures(), PREPARE, BASE, PROPOSE, judge_line("agreement"), PANEL)


def _predict() -> dict[str, Any]:
    """A model of grey pictures with two new pictures, and a model of volumes with a new volume."""
    model_folder(Path("model"), (8, 8))
    model_folder(Path("model3d"), (8, 8, 8), Preprocess(orientation="RAS"))
    for name in ("a", "b"):
        save_image(Path(f"new/{name}.png"), textured((8, 9)))
    write_oblique(Path("volumes/a.nii.gz"))
    return TINY


STARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "nothing": lambda: TINY,
    "pictures": _pictures,
    "volumes": _volumes,
    "nnunet": partial(_nnunet, ".nii.gz", 2),
    "stacks": partial(_nnunet, ".tif", 1),
    "nrrd": partial(_nnunet, ".nrrd", 1),
    "metaimage": partial(_nnunet, ".mha", 1),
    "cases": _cases,
    "imports": _imports,
    "imported volumes": _imported_volumes,
    "run": _run,
    "predict": _predict,
}
"""Projects by name. Each is made in the current folder, and returns its parameters."""


def run_stage(line: str) -> tuple[int, str, str]:
    """Exit code, standard error, and the exception that is no message for a user, of `python -m stages.LINE`."""
    name, *arguments = line.split()
    result = CliRunner().invoke(importlib.import_module(f"stages.{name}").main, arguments)
    crashed = result.exception is not None and not isinstance(result.exception, SystemExit)
    return result.exit_code, result.stderr, repr(result.exception) if crashed else ""


def _after(params: dict[str, Any], *lines: str) -> dict[str, Any]:
    write_params(Path(), params)
    for line in lines:
        code, said, crashed = run_stage(line)
        assert code == 0, f"{line}: {crashed or said}"
    return params


class Projects:
    """Projects in a folder. Each start is made once and then copied."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def copy(self, entry: Bad | Good) -> Iterator[Path]:
        """Context in a new project of an entry, with its knobs. The current folder is the project."""
        made = self._folder / entry.start
        project = self._folder / "project"
        if not made.exists():
            (made / "raw").mkdir(parents=True)
            (made / "raw/none").touch()
            with chdir(made):
                write_params(Path(), STARTS[entry.start]())
        shutil.copytree(made, project, ignore=shutil.ignore_patterns(".work"))
        try:
            with chdir(project):
                params = YAML(typ="safe").load(Path("params.yaml"))
                for keys, value in entry.knobs.items():
                    _set(params, keys.split("."), value)
                write_params(Path(), params)
                yield project
        finally:
            shutil.rmtree(project)


def _set(params: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    *path, last = keys
    for key in path:
        params = params.setdefault(key, {})
    params[last] = copy.deepcopy(value)
