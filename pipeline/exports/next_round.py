"""Project of the next round: its base is the promoted student, its members are students of the same recipe."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import BadInput
from pipeline.exports.next_round_params import FIRST_BASE, MODEL, NextRound, next_params
from pipeline.knobs import NOTHING
from pipeline.params import Params, load_params
from pipeline.project.start import commit
from pipeline.promotion.record import PROMOTION_FILE, PromotionRecord
from pipeline.segmenter.architecture import ARCHITECTURE
from pipeline.segmenter.models import Model
from pipeline.segmenter.output_bias import with_offsets
from pipeline.segmenter.seen import Seen
from pipeline.segmenter.weights import save_weights
from pipeline.store.cases import INPUT
from pipeline.store.manifest import check_manifest, read_json

if TYPE_CHECKING:
    from pipeline.students.student import Student

PROJECT = ("dvc.yaml", ".dvcignore", ".gitignore", ".dvc/config", ".dvc/.gitignore", "raw/none")
"""Files of a project that are not its data, its knobs or its results."""
IF_THERE = ("pipeline", "stages", "segpref.py", "kinds", "params.schema.json", "models/students/.gitkeep", ".dvc/plots")
"""Further files and folders: the code of a clone, own kinds, a file that keeps a folder in git, templates of plots."""
PROMOTED = Path("models/promoted")
"""Folder of the promoted student in the project of this round."""


def next_round(project: Path, folder: Path) -> NextRound:
    """Make the project of the next round in `folder`: same code, data, splits and seed, with another base.

    A student has no folds. So fitted thresholds and the preferred sampler of judge `fixed` are carried over as numbers
    and names, and everything that needs folds is removed: learned judges, and the consensus entries, pair sets and
    students that use them. Scores and answers about the masks of this round are removed in the same way. Raises
    `BadInput` if nothing was promoted, if the audit shows no headroom, or if `folder` exists.
    """
    params = load_params(project / "params.yaml")
    promoted = _promoted(project, params)
    _check_headroom(project)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadInput(f"{folder}: expected a folder that is new or empty, found other content; name another folder")
    made = NextRound(promoted, _members(params, promoted))
    students = {name: project / "models/students" / student for name, student in made.members.items()}
    models = {"base": project / PROMOTED, **students}
    for model in models.values():
        with_offsets(Model(model, "last"))  # raises before a file is written
    content, notes = next_params(project, folder, params, made)
    made.removed = notes
    # Checked before a file is written, so that a refused round leaves no folder behind.
    with tempfile.TemporaryDirectory() as scratch:
        _write_params(content, Path(scratch))
    _copy_code(project, folder)
    copy_models(models, folder / MODEL)
    first = params.promotion.first_base
    table = project / "validation/base.parquet" if first == NOTHING else project / first
    shutil.copy(table, folder / FIRST_BASE)
    _write_params(content, folder)
    commit(folder, "Next round")
    return made


def _promoted(project: Path, params: Params) -> str:
    folder = project / PROMOTED
    record = PromotionRecord.of(folder)
    if record is None:
        raise BadInput(
            f"{folder / PROMOTION_FILE}: no such file; a next round starts from a promoted student, so run `dvc repro` "
            "first"
        )
    if record.promoted is None:
        raise BadInput(
            f"{folder}: expected a promoted student, found none: {record.reason} Another round needs a student that is "
            "better than its base"
        )
    if record.promoted not in params.students:
        raise BadInput(
            f"{project / 'params.yaml'}: expected the promoted student '{record.promoted}' under students, found "
            f"{list(params.students)}; put its entry back, or run `dvc repro` to promote another"
        )
    check_manifest(folder)
    return record.promoted


def _check_headroom(project: Path) -> None:
    path = project / "audit/summary.json"
    verdict = read_json(path, "headroom")["headroom"]["verdict"]
    if verdict.startswith("no headroom shown"):
        raise BadInput(f"{path}: {verdict}; another round has nothing to learn from")


def _members(params: Params, promoted: str) -> dict[str, str]:
    """Students of the recipe of the promoted one that start from other models, by the name of their member."""

    def recipe(student: Student) -> Student:
        return student.model_copy(update={"start": "base"})

    best = params.students[promoted]
    same = {
        student.start: name
        for name, student in params.students.items()
        if name != promoted and recipe(student) == recipe(best) and student.start != best.start
    }
    # The promoted student is the base now, so the student that started from the base takes the name of its start.
    if "base" in same:
        same[best.start] = same.pop("base")
    # Names of folds belong to trained bases.
    numbers = (f"member_{number}" for number in count(1))
    free = (name for name in numbers if name not in same)
    return {next(free) if start.startswith("fold_") else start: name for start, name in same.items()}


def copy_models(students: Mapping[str, Path], out: Path) -> None:
    """Copy the last weights of students into one model folder `out`. `students` has their folders by the new name.

    A student whose network is another one than that of `base` gets a folder of its own in `out`. Offsets of a student
    go into its last layer. Raises `BadInput` for a network that cannot hold them.
    """
    architecture = Model(students["base"], "last").architecture
    for role, folder in students.items():
        source = Model(folder, "last")
        own = source.architecture != architecture
        target = Model(out / role, "base") if own else Model(out, role)
        target.folder.mkdir(parents=True, exist_ok=True)
        for file in (ARCHITECTURE, INPUT):
            shutil.copy(source.folder / file, target.folder / file)
        weights = target.folder / f"{target.name}{source.weights.suffix}"
        if (network := with_offsets(source)) is None:
            shutil.copy(source.weights, weights)
        else:
            save_weights(network, weights)
    Seen.of_all(list(students.values())).save(out)


def _copy_code(project: Path, folder: Path) -> None:
    for name in (*PROJECT, *IF_THERE):
        source = project / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, folder / name)
        elif name in PROJECT:
            raise BadInput(f"{source}: no such file; run from the folder that holds params.yaml")


def _write_params(content: Mapping[str, Any], folder: Path) -> None:
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.width = 120
    with (folder / "params.yaml").open("w") as file:
        yaml.dump(content, file)
    load_params(folder / "params.yaml")  # raises for a block that does not fit the others
