"""What a results folder of nnU-Net holds: folds, network and preparation of images, and the knobs that follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from pipeline.cases.files.checks import case_id_of
from pipeline.cases.nnunet_plans import Plans
from pipeline.cases.preprocess_of_plans import PreprocessOfPlans
from pipeline.errors import BadInput
from pipeline.project.look import Look
from pipeline.segmenter.architecture import ARCHITECTURE
from pipeline.segmenter.imported.nnunet import NnUNetFolder
from pipeline.segmenter.imported.nnunet_folds import SPLITS_FILE, Folds
from pipeline.segmenter.planned import planned_class
from pipeline.segmenter.seen import SEEN

_MOST = 6
"""Most pool images and labelled cases in a training step, as for projects without a model."""
_FEWEST = 4
"""Fewest labelled cases that are new to the model: two to measure on validation, and two on test."""
_OTHERS = {
    ARCHITECTURE: "a model folder of segpref (kind 'checkpoint')",
    "configs": "a MONAI bundle (kind 'bundle')",
    "plans.json": "plans without a checkpoint fold_0/checkpoint_final.pth or checkpoint_best.pth",
}
"""Files that mark a folder that is no results folder, and what the folder is."""


@dataclass(frozen=True)
class LookedModel:
    """Blocks of `params.yaml` that fit a results folder and a data set, and what was found."""

    base: dict[str, Any]
    """The block `base`."""
    preprocess: dict[str, Any]
    """The block `preprocess` that the plans ask for."""
    named: bool
    """Whether `preprocess: plans` finds the configuration."""
    mirrored: list[int]
    """Axes of the images over which the training mirrors."""
    planned: int
    """Windows in a training step of nnU-Net."""
    window: list[int]
    """Window of the network, per axis of the images."""
    network: str
    """Class of the network."""
    learns: bool
    """Whether a labelled case can have proposals out of fold, so that learned judges learn."""
    trained: list[str]
    """Ids of the labelled cases that a fold was trained on, for a table that keeps them labelled. Empty: no table."""
    held: list[str]
    """Ids of other labelled cases for the table: a fold held them out, and judges learn from them."""
    checks: list[str]
    """What a user has to check, one line each."""

    @property
    def images(self) -> int:
        """Pool images in a training step, and as many labelled cases, so that a step holds about `planned` windows."""
        return min(_MOST, max(1, self.planned // 2))

    @property
    def said(self) -> list[str]:
        """What was found, one line each."""
        folds = ", ".join(map(str, self.base["folds"]))
        return [
            f"model: {self.network} of nnU-Net, windows of {'x'.join(map(str, self.window))}, folds {folds}",
            *(f"check: {line}" for line in self.checks),
        ]


def look_at_model(model: Path, found: Look) -> LookedModel:
    """What the results folder at `model` holds, for a data set.

    Raises `BadInput` for another model, for a network that cannot be built, for plans that are not supported, and for
    data of other axes, or with other numbers of channels or classes.
    """
    folds, checkpoint = _folds(model)
    best = {"checkpoint": "best"} if checkpoint == "best" else {}
    base = {"kind": "nnunet", "folds": folds, "base_fold": folds[0], "mirror": True, **best}
    knobs = NnUNetFolder.model_validate({**base, "folds": tuple(folds)})
    plans, mirrored = knobs.planned(model)
    name = str(plans.configuration["architecture"]["network_class_name"])
    planned_class(name)
    axes = plans.axes(found.dimensions)
    _check_fits(plans, found)
    splits = Folds.of(model, knobs.folds)
    trained = _trained(splits, found)
    divides = _divides(trained, found)
    held = _held(splits, trained, found) if divides else []
    kept = {*trained, *held} if divides else {case_id_of(one.case_id) for one in found.labelled}
    return LookedModel(
        base,
        plans.block([source.spacing_mm for source in found.sources], found.dimensions).stated,
        PreprocessOfPlans(model=model.resolve()).configuration == plans.name,
        sorted(axes[axis] for axis in mirrored),
        int(plans.configuration.get("batch_size", 2)),
        [int(length) for length in plans.on_our_axes(plans.configuration["patch_size"], found.dimensions)],
        name.rsplit(".", 1)[-1],
        splits is not None and bool(splits.held & kept),
        trained if divides else [],
        held,
        [*_on_splits(model, splits, found), *_on_speed(found)],
    )


def _folds(model: Path) -> tuple[list[int | str], str]:
    """Folds of a results folder that have a checkpoint, and its name: `final`, or `best` if none has `final`.

    `all` is left out beside numbers, because it has seen every case of the training. Raises `BadInput` for a folder
    without a checkpoint.
    """
    for checkpoint in ("final", "best"):
        files = model.glob(f"fold_*/checkpoint_{checkpoint}.pth")
        names = {file.parent.name.removeprefix("fold_") for file in files}
        if numbers := sorted(int(name) for name in names if name.isdecimal()):
            return [*numbers], checkpoint
        if "all" in names:
            return ["all"], checkpoint
    raise BadInput(
        f"--model: {model}: expected the results folder TRAINER__PLANS__CONFIGURATION of nnU-Net v2, found "
        f"{_found(model)}"
    )


def _found(model: Path) -> str:
    if not model.exists():
        return "nothing; correct the path"
    inner = sorted({path.parents[1].name for path in model.glob("*/fold_*/checkpoint_*.pth")}) if model.is_dir() else []
    if inner:
        return f"the folder of {', '.join(inner)}; give --model {model / inner[0]}"
    kind = next((kind for name, kind in _OTHERS.items() if (model / name).exists()), "another folder")
    kind = kind if model.is_dir() else "a file (kinds 'checkpoint' and 'program')"
    return (
        f'{kind}; make the project without --model, then set `model` and `base` in params.yaml (the page "Models" of '
        "segpref's documentation)"
    )


def _check_fits(plans: Plans, found: Look) -> None:
    """Refuse data with other numbers of channels or classes. Other names and files are left to the stage `base`."""
    for what, expected, given in (
        ("channels", plans.channel_names, found.channels),
        ("classes", plans.class_names, found.classes),
    ):
        if len(expected) != len(given):
            raise BadInput(
                f"--model: {plans.path}: expected data with the {what} of the model ({', '.join(expected)}), found "
                f"{', '.join(given)}; give the data that the model is for"
            )


def _on_splits(model: Path, splits: Folds | None, found: Look) -> list[str]:
    """What to do about cases of the training."""
    if (model / SEEN).is_file():
        return [
            f"{model / SEEN} lists the images that the model has seen: give them the splits of the project that made "
            "the model, or the stage base refuses the model"
        ]
    if splits is None:
        return [
            f"copy {SPLITS_FILE} of the training into {model} and make the project again: without the file, measures "
            "are too good on cases of the training, and no judge learns"
        ]
    known = _trained(splits, found)
    if not known or _divides(known, found):
        return []
    return [
        f"{len(known)} of {len(found.labelled)} cases with a mask are of the training of these folds, so they cannot "
        'be validation or test cases; set `splits` and `data.case_table`, or fewer folds (the page "nnU-Net" of '
        'segpref\'s documentation, "Which cases are measured")'
    ]


def _trained(splits: Folds | None, found: Look) -> list[str]:
    """Ids of the labelled cases that a fold was trained on."""
    ids = [case_id_of(source.case_id) for source in found.labelled]
    return [] if splits is None else [case_id for case_id in ids if case_id in splits.trained]


def _held(splits: Folds | None, trained: Sequence[str], found: Look) -> list[str]:
    """A fifth of the labelled cases that a fold held out, if no case of the training is among them.

    With a single fold in use, all cases that it held out are new to the model. Without some of them, no labelled case
    had proposals out of fold.
    """
    if splits is None or splits.held & set(trained):
        return []
    held = [case_id for one in found.labelled if (case_id := case_id_of(one.case_id)) in splits.held]
    return held[: min(ceil(len(held) / 5), len(found.labelled) - len(trained) - _FEWEST)]


def _divides(trained: Sequence[str], found: Look) -> bool:
    """Whether a table of the cases of the training leaves cases to measure, and is not in the way of another table."""
    return len(found.labelled) - len(trained) >= _FEWEST and "case_table" not in found.data


def _on_speed(found: Look) -> Sequence[str]:
    if found.dimensions == 2:
        return ()
    return ("nnU-Net plans 3D networks for a GPU: set compute.device to cuda where there is one",)
