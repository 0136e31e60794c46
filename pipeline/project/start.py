"""`segpref init`: the folder of a new project, for a data set or for phantoms."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from pipeline.errors import BadInput
from pipeline.knobs import NOTHING
from pipeline.project.look import Look, look
from pipeline.project.look_at_model import LookedModel, look_at_model
from pipeline.promotion.knobs import Promotion
from pipeline.segmenter.strong_views import Modality

COPIED = (
    str(NOTHING),
    "models/students/.gitkeep",
    "params.schema.json",
    ".gitignore",
    ".dvcignore",
    ".dvc/config",
    ".dvc/.gitignore",
    ".dvc/plots/by_model.json",
)
"""Files of a clone that every project has."""
TRAINED = "cases_of_training.csv"
"""Table of the cases that stay labelled: those that the user's own model was trained on, and some that a fold held out.
`init` writes nothing into the folder of the data."""
FEW = Promotion.model_fields["min_patients"].default
"""Patients of validation below which nothing is promoted."""
KINDS = """# Kinds of your own

A class in a Python file of this folder joins its family: a judge, sampler, reader, strategy, link or objective. Its
`kind` then works in `params.yaml`. The page "Extending" of segpref's documentation shows a judge.
"""


def start(folder: Path, data: Path | None, model: Path | None = None) -> list[str]:
    """Make a project in `folder`, and say what was found and guessed, one line each.

    Without `data` the project runs on phantoms. `model` is a results folder of nnU-Net that becomes the base. Raises
    `BadInput` for a data set that cannot be read, for a model that does not fit the data, and for a folder that holds a
    project already.
    """
    new = {"dvc.yaml": dvc_file(), "kinds/README.md": KINDS}
    said: list[str] = []
    if data is None:
        if model is not None:
            raise BadInput("--model: expected the data of the model too, found none; give --data")
        new["params.yaml"] = shipped("params.yaml").read_text()
        said.append("phantoms, which need no data")
    else:
        found = look(data)
        found.data["path"] = str(_from(folder, data))
        looked = None if model is None else look_at_model(model, found)
        path = NOTHING if model is None else _from(folder, model)
        if looked is not None:
            found.mirrored, found.trained = looked.mirrored, [*looked.trained, *looked.held]
        if found.trained:
            found.data["case_table"] = {"file": TRAINED, "split": "split"}
            new[TRAINED] = "case_id,split\n" + "".join(f"{case_id},labelled\n" for case_id in found.trained)
        new["params.yaml"] = params_file(found, looked, path)
        said = [*described(found), *([] if looked is None else looked.said)]
        if looked is not None and found.trained:
            parts = [f"the {len(looked.trained)} cases of the model's training"] if looked.trained else []
            parts += [f"{len(looked.held)} cases that a fold held out, from which judges learn,"] if looked.held else []
            said.append(
                f"to do: copy {folder / TRAINED} to {data}: the table keeps {' and '.join(parts)} out of validation "
                "and test"
            )
    for name in (*new, *COPIED):
        if (folder / name).exists():
            raise BadInput(
                f"{folder / name}: expected a folder without a project, found one; choose another folder, or remove "
                "the file"
            )
    for name, text in new.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    for name in COPIED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(shipped(name), folder / name)
    if not (folder / ".git").exists():
        commit(folder, "Start of the project", [*new, *COPIED])
    return said


def shipped(name: str) -> Path:
    """A file of the repository's top level, which an installation holds in the folder `project`."""
    above = Path(__file__).parents[2]
    return (above / "project" if (above / "project").is_dir() else above) / name


def dvc_file() -> str:
    """`dvc.yaml` of a project outside a clone: the stages are commands of `segpref`.

    DVC cannot watch the code of an installation. So `provenance` runs every time, which takes a second, and the others
    depend on what `provenance` writes.
    """
    text = shipped("dvc.yaml").read_text().replace("python -m stages.", "segpref ")
    return re.sub(r"    deps:\n(      [-#].*\n)+", "    always_changed: true\n", text, count=1)


def params_file(found: Look, model: LookedModel | None = None, path: Path = NOTHING) -> str:
    """`params.yaml` for a data set, with a comment for every choice. `path` is that of the user's own model."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    flips, dimensions = found.flips, found.dimensions
    splits = found.splits
    folds = 2 if int(splits["labelled"]) >= 3 else 0
    # Nothing is composed over a mean of several models of nnU-Net, and a single one cannot measure the gain.
    composes = model is None and folds > 0
    values = {
        "data": found.data,
        "model": model,
        "path": path.as_posix(),
        "dimensions": dimensions,
        "normalise": "unit" if found.modality == "photograph" else "percentile" if found.modality == "ct" else "zscore",
        "why_normalise": _WHY_NORMALISE.get(found.modality or "", "Intensities have no absolute scale."),
        "resize": found.resize,
        "smaller": found.resize is not None and max(found.resize) < np.max([one.shape for one in found.sources]),
        "spacing": found.spacing,
        "orientation": dimensions == 3 and all(source.affine is not None for source in found.sources),
        "splits": splits,
        "without": len(found.sources) - len(found.labelled),
        "flips": flips,
        "why_flips": _why_flips(found),
        "tta": [] if model else [[flip] for flip in flips] + ([flips] if len(flips) == 2 else []),
        "window": found.window,
        "folds": folds,
        "composes": composes,
        "target": "regions composed" if composes else "mean fitted",
        "many": model is None or len(model.base["folds"]) > 1,
        "images": model.images if model else 6 if dimensions == 2 else 2,
        "learns": model.learns if model else int(splits["labelled"]) >= 3,
        "modality": found.modality,
        "millimetres": all(source.spacing_mm is not None for source in found.sources),
        "tolerance": _tolerance(found),
    }
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    environment.globals |= {"block": _block, "commented": _commented}
    return environment.get_template("params.yaml.jinja").render(values)


_WHY_NORMALISE = {
    "photograph": "Photographs have an absolute scale of intensities, which this normalisation keeps.",
    "mri": "Intensities of MRI have no absolute scale, so each case is normalised on its own.",
    "ct": "A fixed window in Hounsfield units is better if you know one: {range: [-57, 164], to: [0, 1]}.",
}


def described(found: Look) -> list[str]:
    """What was found and guessed, one line each."""
    masked, total = len(found.labelled), len(found.sources)
    shapes = [source.shape for source in found.sources]
    smallest, largest = ("x".join(map(str, extreme(shapes, axis=0))) for extreme in (np.min, np.max))
    lines = [
        f"layout {found.data['kind']}: {total} cases, {masked} with a mask",
        f"{len(found.channels)} channel{'s' * (len(found.channels) > 1)} ({', '.join(found.channels)}), {smallest}"
        + (f" to {largest}" if smallest != largest else ""),
        f"classes: {', '.join(found.classes)}",
    ]
    if found.read:
        lines.append(f"masks without foreground: {found.empty} of {found.read} that were looked at")
    lines += [f"guessed: {line}" for line in found.guessed]
    unknown = f"unknown (training.views.modality: one of {', '.join(get_args(Modality))})"
    lines.append(f"guessed: modality {found.modality or unknown}, {_flips_text(found)}")
    splits = found.splits
    test = masked - sum(int(splits[split]) for split in ("labelled", "pool", "validation"))
    lines.append(
        f"splits: labelled {splits['labelled']}, validation {splits['validation']}, test {test}, pool "
        f"{splits['pool'] or total - masked}"
    )
    if 0 < int(splits["validation"]) < FEW:
        lines.append(f"check: fewer than {FEW} validation cases promote no student; more masks show more")
    if (patients := found.patients()) is not None:
        count, first, second = patients
        lines.append(
            f"check: names such as '{first}' and '{second}' look like one patient ({count} in all); name the patients "
            "in data.case_table, or one patient may be on both sides of a split"
        )
    if 0 in (found.splits["labelled"], found.splits["validation"]):
        lines.append(
            f"check: {masked} cases have a mask, and a run needs some for training, validation and test; add masks, or "
            "import a model (`model`, `base`)"
        )
    return lines


def _why_flips(found: Look) -> str:
    if not found.sides and found.mirrored is not None:
        return "The training of nnU-Net mirrored these axes."
    if not found.sides:
        return "A flipped image must be plausible. Leave an axis out if it is not."
    return (
        f"Classes have sides ({', '.join(found.sides)}), so no image is flipped. `swap_labels`, which lists classes "
        "that change places, allows flips."
    )


def _flips_text(found: Look) -> str:
    if found.sides:
        return f"no flips, because classes have sides ({', '.join(found.sides)}; see augmentation.swap_labels)"
    if not found.flips:
        return "no flips"
    return f"flips along {'axis' if len(found.flips) == 1 else 'the axes'} {', '.join(map(str, found.flips))}"


def commit(folder: Path, message: str, files: Sequence[str] = ()) -> None:
    """Make the folder a git repository with these files, or all, which DVC asks for.

    Raises `BadInput` if git is missing or refuses.
    """
    identity = ("-c", "user.name=segpref", "-c", "user.email=segpref@localhost")
    for command in (("init", "-q"), ("add", *(files or ["-A"])), (*identity, "commit", "-q", "-m", message)):
        try:
            subprocess.run(["git", *command], cwd=folder, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            said = ((getattr(error, "stderr", None) or "").strip() or str(error)).splitlines()[-1]
            raise BadInput(
                f"{folder}: expected a git repository, which DVC needs, found an error of git: {said}; all other files "
                "are complete: run `git init && git add -A && git commit -m start` there"
            ) from error


def check_repository(folder: Path) -> None:
    """Raise `BadInput` if DVC will not run in a folder, as in a copy that was made without its hidden files."""
    whole = folder.resolve()
    if not (whole / ".dvc/config").is_file():
        raise BadInput(
            f"{whole}: expected the folder .dvc of a project, found none; copy the project with its hidden files, or "
            "make a new one with `segpref init`"
        )
    if not any((each / ".git").exists() for each in (whole, *whole.parents)):
        raise BadInput(
            f"{whole}: expected a git repository, which DVC needs, found none; run `git init && git add -A && git "
            "commit -m start` there"
        )


def _from(folder: Path, data: Path) -> Path:
    """The path of the data as the project's stages see it: relative if the data lie inside the project."""
    whole, inside = data.resolve(), folder.resolve()
    return whole.relative_to(inside) if whole.is_relative_to(inside) else whole


def _tolerance(found: Look) -> float:
    """About one voxel of a volume in mm, or a hundredth of a picture in pixels."""
    if found.dimensions == 3 and all(source.spacing_mm is not None for source in found.sources):
        return round(float(np.median([source.spacing_mm for source in found.sources])), 2)
    return float(max(1, round(float(np.median([source.shape for source in found.sources])) / 100)))


def _commented(lines: str) -> str:
    return "\n".join(f"# {line}" for line in lines.splitlines())


def _block(values: dict[str, Any]) -> str:
    """Entries of a block as YAML lines, indented by two spaces: a line each, lists in brackets."""
    from io import StringIO

    from ruamel.yaml import YAML
    from ruamel.yaml.comments import CommentedMap, CommentedSeq

    content = CommentedMap()
    for key, value in values.items():
        content[key] = value
        if isinstance(value, list | dict):
            content[key] = CommentedSeq(value) if isinstance(value, list) else CommentedMap(value)
            content[key].fa.set_flow_style()
    text = StringIO()
    YAML().dump(content, text)
    return "\n".join(f"  {line}" for line in text.getvalue().splitlines())
