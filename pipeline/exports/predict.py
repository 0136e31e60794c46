"""A trained model on new image files: a mask per image, on the image's own grid."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import polars as pl

from pipeline.cases.files.mask_file import mask_ending, write_mask, write_probability
from pipeline.compute import Compute
from pipeline.errors import BadInput
from pipeline.evaluation.prediction import class_probabilities, predicted_mask
from pipeline.execution import CaseFailures, Execution, Shard, fingerprint, run, shards_of
from pipeline.exports.model_input import ModelInput
from pipeline.exports.new_images import NewImage, new_images
from pipeline.segmenter.knobs import RECORD
from pipeline.segmenter.program import FORMATS
from pipeline.segmenter.weights import ARCHITECTURE, Model
from pipeline.store.cases import INPUT
from pipeline.store.manifest import sha256, write_json

DONE = ".predict"
"""Folder in the output: per finished case, what it was made of and the hashes of its files."""

PROBABILITY_FOLDER = "probability"
"""Folder in the output for class probabilities."""


_EXPORTS = {
    "program.json": "the export of a program, which runs without segpref as its program.json says",
    "configs/inference.json": "a MONAI bundle, which MONAI runs: `python -m monai.bundle run`",
}
"""Files of exports that are no model folder, and what such a folder is."""


@dataclass(frozen=True)
class ReadyModel:
    """One set of weights of a model folder, with all that is needed to use it."""

    model: Model
    input: ModelInput
    offsets: tuple[float, ...]  # on the logits of the foreground classes

    @property
    def files(self) -> list[Path]:
        """What its predictions follow from."""
        return [self.model.weights, self.model.folder / ARCHITECTURE, self.model.folder / INPUT]


def trained(folder: Path, weights: str | None = None, device: str = "cpu") -> ReadyModel:
    """The weights of this name in the folder of a base, a student or an exported model.

    Without a name: the only ones there, else `last` of a student (what its metrics call sustained is of late
    checkpoints) and `base` of a base. Raises `BadInput` for a student without weights.
    """
    record = json.loads((folder / RECORD).read_text()) if (folder / RECORD).is_file() else None
    if record is not None and record["slot"] is not None:
        raise BadInput(
            f"{folder}: takes proposal {record['slot']} ({record['proposal']}) of every case and has no weights of its "
            "own; choose another student, or the base"
        )
    if not (folder / ARCHITECTURE).is_file():
        raise BadInput(_no_model(folder))
    there = sorted(path.stem for path in folder.iterdir() if path.suffix in (".safetensors", *FORMATS.values()))
    usual = there[0] if len(there) == 1 else "base" if record is None else "last"
    name = weights or usual
    if name not in there:
        raise BadInput(f"{folder}: has no weights '{name}'; there are {', '.join(there) or 'none'}")
    offsets = () if record is None else tuple(record["offsets"] or ())
    return ReadyModel(Model(folder, name, device), ModelInput.load(folder), offsets)


def _no_model(folder: Path) -> str:
    """What a folder without a network is, and what to give in its place."""
    hint = "give a folder of models/, or an export as safetensors of exports/"
    if folder.is_file():
        return f"{folder}: expected the folder of a model, found a file; {hint}"
    if not folder.is_dir():
        beside = folder.parent
        there = sorted(path.name for path in beside.iterdir() if path.is_dir()) if beside.is_dir() else []
        listed = f"{beside} has the folders {', '.join(there)}" if there else f"there are no folders in {beside}"
        return f"{folder}: no such folder, and {listed}; {hint}"
    for file, kind in _EXPORTS.items():
        if (folder / file).is_file():
            return (
                f"{folder}: expected the folder of a model, found {kind}; to predict here, give the model's folder of "
                "models/, or export it to exports/ with `--format safetensors`"
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

        # One thread whatever the number of workers: thread counts move the last bits.
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
        asked = (model, voxels, case, self.compute, self.trained.offsets)
        mask, probability = _outputs(image)
        if self.probabilities:
            found = class_probabilities(*asked)
            write_probability(found, image.files[0], self.out / probability)
            write_mask(found.argmax(0).astype("uint8"), image.files[0], self.out / mask)
        else:
            write_mask(predicted_mask(*asked), image.files[0], self.out / mask)
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
    """Write `CASE.nii.gz`, `CASE.png` or `CASE.tif` per image of a file or folder, and `probability/CASE` on demand.

    A mask that was made of the same model, image and code is left as it is. Returns how many masks there are and how
    many were there before. Raises `BadInput` with the failures of all images after the others have finished, and for a
    program without `trust`.
    """
    if found.model.architecture.program and not trust:
        raise BadInput(
            f"{found.model.weights}: a program, and loading it runs code that is in the file; add --trust if you trust "
            "where it is from"
        )
    if out.resolve() == (given if given.is_dir() else given.parent).resolve():
        raise BadInput(f"{out}: expected another folder than that of the images; masks may have the names of images")
    if out.is_dir() and any(out.iterdir()) and not (out / DONE).is_dir():
        raise BadInput(f"{out}: expected a new or empty folder, or one of earlier predictions, found other files")
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
    """Mask and probability of an image, relative to the output."""
    ending = mask_ending(image.files[0])
    of_probability = ending if ending.startswith(".nii") else ".npz"
    return f"{image.case_id}{ending}", f"{PROBABILITY_FOLDER}/{image.case_id}{of_probability}"


def _made_of(key: str, image: NewImage) -> str:
    """Key of a case: model, code, knobs, and the content of the image's files and of what says its spacing."""
    spacing = image.spacing_file and sha256(image.spacing_file)
    content = [key, [sha256(file) for file in image.files], spacing]
    return blake2b(json.dumps(content).encode(), digest_size=10).hexdigest()


def _finished(image: NewImage, key: str, out: Path) -> bool:
    """Whether the files of this very model and image are there, unchanged."""
    path = out / DONE / f"{image.case_id}.json"
    if not path.is_file():
        return False
    done = json.loads(path.read_text())
    files = done["files"].items()
    return done["made_of"] == _made_of(key, image) and all(
        (out / name).is_file() and sha256(out / name) == expected for name, expected in files
    )
