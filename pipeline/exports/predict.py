"""Masks of a trained model on new image files, each on the grid of its image."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import polars as pl

from pipeline.cases.files.image_file import mask_ending, probability_ending, write_mask
from pipeline.cases.files.mask_file import in_values, write_probability
from pipeline.compute import Compute
from pipeline.errors import BadInput
from pipeline.evaluation.prediction import class_probabilities, predicted_mask
from pipeline.execution import CaseFailures, Execution, Shard, run, shards_of
from pipeline.exports.model_input import ModelInput
from pipeline.exports.new_images import NewImage, new_images
from pipeline.promotion.record import PromotionRecord
from pipeline.segmenter.architecture import ARCHITECTURE
from pipeline.segmenter.models import Model
from pipeline.segmenter.program import FORMATS
from pipeline.segmenter.student_record import StudentRecord
from pipeline.store.cases import INPUT
from pipeline.store.manifest import read_json, sha256, write_json
from pipeline.workspace import fingerprint

DONE = ".predict"
"""Folder in the output with one JSON file per finished case: a key of its inputs, and the hashes of its files."""

PROBABILITY_FOLDER = "probability"
"""Folder in the output with the class probabilities."""


_EXPORTS = {
    "program.json": "the export of a program, which runs without segpref; see its program.json",
    "fold_0/checkpoint_final.pth": "a results folder of nnU-Net, which nnU-Net runs: "
    "`nnUNetv2_predict_from_modelfolder`",
    "configs/inference.json": "a MONAI bundle, which MONAI runs: `python -m monai.bundle run`",
}
"""Files that mark an export that is no model folder, and a description of the export."""


@dataclass(frozen=True)
class ReadyModel:
    """One set of weights of a model folder, with its input description and offsets."""

    model: Model
    input: ModelInput
    offsets: tuple[float, ...]  # on the logits of the foreground classes
    student: str | None = None  # name of the student; None for a model that is no student

    @property
    def files(self) -> list[Path]:
        """Files that the predictions depend on."""
        return [self.model.weights, self.model.folder / ARCHITECTURE, self.model.folder / INPUT]


def ready_model(folder: Path, weights: str | None = None) -> ReadyModel:
    """The weights of a name in the folder of a base, a student or an exported model.

    Without a name, the only weights are used. A folder with several weights gives `last` of a student and `base` of a
    base: the sustained metrics of a student are those of late checkpoints. Raises `BadInput` for a folder without a
    model (with the reason where no student was promoted), for an unknown name and for a student without weights.
    """
    record = StudentRecord.of(folder)
    if record is not None and record.slot is not None:
        raise BadInput(
            f"{folder}: this student takes proposal {record.slot} ({record.proposal}) of every case and has no weights "
            "of its own; choose another student, or the base"
        )
    if not (folder / ARCHITECTURE).is_file():
        raise BadInput(_no_model(folder))
    there = sorted(path.stem for path in folder.iterdir() if path.suffix in (".safetensors", *FORMATS.values()))
    usual = there[0] if len(there) == 1 else "base" if record is None else "last"
    name = weights or usual
    if name not in there:
        raise BadInput(f"{folder}: the folder has no weights '{name}'; there are {', '.join(there) or 'none'}")
    offsets = () if record is None else record.offsets or ()
    student = None if record is None else record.name
    return ReadyModel(Model(folder, name), ModelInput.load(folder), offsets, student)


def _no_model(folder: Path) -> str:
    """Message on a folder without a network: its kind, and the folder to give instead."""
    hint = "give a folder of models/, or an export as safetensors of exports/"
    if folder.is_file():
        return f"{folder}: expected the folder of a model, found a file; {hint}"
    if not folder.is_dir():
        beside = folder.parent
        there = sorted(path.name for path in beside.iterdir() if path.is_dir()) if beside.is_dir() else []
        listed = f"{beside} has the folders {', '.join(there)}" if there else f"there are no folders in {beside}"
        return f"{folder}: no such folder, and {listed}; {hint}"
    if (promotion := PromotionRecord.of(folder)) is not None:
        return (
            f"{folder}: expected the student that was promoted, found none. {promotion.reason} Use the base "
            "(models/base), or choose a student of models/students yourself"
        )
    for file, kind in _EXPORTS.items():
        if (folder / file).is_file():
            return (
                f"{folder}: expected the folder of a model, found {kind}; to predict with segpref, give the model's "
                "folder of models/, or export it to exports/ with `--format safetensors`"
            )
    return f"{folder}: expected the folder of a model, found no {ARCHITECTURE}; {hint}"


@dataclass(frozen=True)
class _Applying:
    trained: ReadyModel
    compute: Compute
    key: str
    out: Path
    probabilities: bool

    def __call__(self, shard: Shard) -> pl.DataFrame:
        import torch

        # One thread for any number of workers, since the number of threads changes the last bits of logits.
        torch.set_num_threads(1)
        failures = CaseFailures()
        for image in shard.members:
            with failures.of(image.case_id):
                self._case(image)
        failures.raise_any()
        return pl.DataFrame({"case_id": [image.case_id for image in shard.members]})

    def _case(self, image: NewImage) -> None:
        model = self.trained.model
        case, voxels = self.trained.input.read(image, model.architecture.dimensions)
        asked = (
            model.segmenter(self.compute),
            voxels,
            case,
            self.trained.input.preprocess.spacing,
            self.trained.offsets,
        )
        mask, probability = _outputs(image)
        if self.probabilities:
            found = class_probabilities(*asked)
            write_probability(found, image.files[0], self.out / probability)
            classes = found.argmax(0).astype("uint8")
        else:
            classes = predicted_mask(*asked)
        write_mask(in_values(classes, self.trained.input.mask_values), image.files[0], self.out / mask)
        written = [mask, *([probability] if self.probabilities else [])]
        files = {name: sha256(self.out / name) for name in written}
        write_json(self.out / DONE / f"{image.case_id}.json", {"made_of": _made_of(self.key, image), "files": files})


def apply_model(
    found: ReadyModel,
    given: Path,
    out: Path,
    compute: Compute,
    execution: Execution,
    probabilities: bool = False,
    trust: bool = False,
) -> tuple[int, int]:
    """Write a mask `CASE` per image of a file or folder, in its format, and `probability/CASE` on demand.

    A mask that the same model and code made of the same image is kept. Returns the number of all masks and the number
    of kept masks. Raises `BadInput` with the failures of all images after the other images are finished, for a program
    without `trust`, and for an unsuitable folder `out`.
    """
    if found.model.architecture.program and not trust:
        raise BadInput(
            f"{found.model.weights}: the model is a program, and loading a program runs code in its file; add --trust "
            "if you trust its origin"
        )
    if out.resolve() == (given if given.is_dir() else given.parent).resolve():
        raise BadInput(f"{out}: expected another folder than that of the images; masks can have the names of images")
    if out.is_dir() and any(out.iterdir()) and not (out / DONE).is_dir():
        raise BadInput(
            f"{out}: expected a new or empty folder, or one of earlier predictions, found other files; choose another"
        )
    architecture = found.model.architecture
    images, failures = new_images(given, len(found.input.channel_names), architecture.dimensions, out)
    key = fingerprint(__name__, (found.offsets, compute, probabilities), found.files)
    waiting = [image for image in images if not _finished(image, key, out)]
    (out / DONE).mkdir(parents=True, exist_ok=True)
    if waiting:
        task = _Applying(found, compute, key, out, probabilities)
        with tempfile.TemporaryDirectory() as work:
            (Path(work) / "done").mkdir()
            try:
                run(task, shards_of(waiting, 1), Path(work), execution, "predict", unit="images")
            except BadInput as error:
                failures.append(str(error))
    if failures:
        raise BadInput.all(failures)
    return len(images), len(images) - len(waiting)


def _outputs(image: NewImage) -> tuple[str, str]:
    """Files of the mask and the probability of an image, relative to the output folder."""
    first = image.files[0]
    probability = f"{PROBABILITY_FOLDER}/{image.case_id}{probability_ending(first)}"
    return f"{image.case_id}{mask_ending(first)}", probability


def _made_of(key: str, image: NewImage) -> str:
    """Key of a case: hash of model, code and knobs (`key`), of the image's files, and of its spacing file."""
    spacing = image.spacing_file and sha256(image.spacing_file)
    content = [key, [sha256(file) for file in image.files], spacing]
    return blake2b(json.dumps(content).encode(), digest_size=10).hexdigest()


def _finished(image: NewImage, key: str, out: Path) -> bool:
    """Whether the output holds the unchanged files of this model and image. A damaged record counts as none."""
    try:
        done = read_json(out / DONE / f"{image.case_id}.json", "files", "made_of")
    except BadInput:
        return False
    files = done["files"].items()
    return done["made_of"] == _made_of(key, image) and all(
        (out / name).is_file() and sha256(out / name) == expected for name, expected in files
    )
