"""Faults of NIfTI files and of `dataset.json`, in the layouts `decathlon` and `nnunet`."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from benchmarks.faults.damage import Make, cut, edit_json, flip_bit, move, remove, text
from benchmarks.faults.entry import PREPARE, Bad
from tests.fixtures.phantoms import write_nifti

IMAGE = "raw/set/imagesTr/vol_03.nii.gz"
LABEL = "raw/set/labelsTr/vol_03.nii.gz"
INDEX = "raw/set/dataset.json"
_HEADER = 348
SPACING = (1.0, 0.5, 2.0)

_nifti = partial(Bad, kind="NIfTI files (`decathlon`)", start="volumes", line=PREPARE)
_index = partial(Bad, kind="`dataset.json` of the layout `decathlon`", start="volumes", line=PREPARE)
_nnunet = partial(Bad, kind="The layout `nnunet`", start="nnunet", line=PREPARE)
_stack = partial(Bad, kind="The layout `nnunet`", start="stacks", line=PREPARE)


def _header(file: str, change: Callable[[Any], object]) -> Make:
    """The header of a NIfTI file is changed as it is stored, without what the library would mend."""

    def make() -> None:
        with gzip.open(file) as stream:
            content = stream.read()
        header = nibabel.Nifti1Header(content[:_HEADER], check=False)
        change(header)
        with gzip.open(file, "wb") as stream:
            stream.write(header.binaryblock + content[_HEADER:])

    return make


def _voxels(file: str, change: Callable[[np.ndarray], np.ndarray]) -> Make:
    def make() -> None:
        image: Any = nibabel.load(file)
        write_nifti(Path(file), change(np.asarray(image.dataobj)), SPACING)

    return make


def _no_sform(header: Any) -> None:
    header["srow_x"], header["srow_y"], header["srow_z"] = 0, 0, 0


def _pixdim(*edges: float) -> Callable[[Any], None]:
    def change(header: Any) -> None:
        header["pixdim"][1:4] = edges

    return change


def _flipped(file: str) -> Make:
    """The first axis points the other way, in the header and in the voxels."""

    def make() -> None:
        image: Any = nibabel.load(file)
        affine = image.affine.copy()
        affine[0] = -affine[0]
        nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), affine), file)

    return make


def _plain(file: str, share: float) -> None:
    """An uncompressed file that is cut off, listed in place of the compressed one."""
    nibabel.save(nibabel.load(file), file.removesuffix(".gz"))
    cut(file.removesuffix(".gz"), share)()
    Path(INDEX).write_text(Path(INDEX).read_text().replace("imagesTr/vol_03.nii.gz", "imagesTr/vol_03.nii"))


def _both(*names: str) -> list[dict[str, str]]:
    return [{"image": f"imagesTr/{name}.nii.gz", "label": f"labelsTr/{name}.nii.gz"} for name in names]


def _training(*more: Any) -> Make:
    """The index lists the cases 00 to 02, and these entries."""
    return edit_json(INDEX, training=[*_both("vol_00", "vol_01", "vol_02"), *more])


def _key_twice() -> None:
    content = Path(INDEX).read_text()
    Path(INDEX).write_text('{"training": [],' + content[1:])


NIFTI = [
    _nifti("one flipped bit in a `.nii.gz`", flip_bit(IMAGE), "vol_03"),
    _nifti("a `.nii.gz` that is cut off", cut(IMAGE), "vol_03"),
    _nifti("a `.nii` that is cut off", lambda: _plain(IMAGE, 0.9), "vol_03"),
    _nifti("text behind `.nii.gz`", text(IMAGE, "<html>"), "vol_03"),
    _nifti("edges in `pixdim` other than in the sform", _header(IMAGE, _pixdim(1, 1, 1)), "vol_03"),
    _nifti("edges of 0 in `pixdim`", _header(IMAGE, _pixdim(1, 0, 2)), "vol_03"),
    _nifti("an sform of zeros", _header(IMAGE, _no_sform), "vol_03"),
    _nifti("an undefined unit", _header(IMAGE, lambda h: h["xyzt_units"].put(0, 5)), "vol_03"),
    _nifti("volumes of two orientations", _flipped(IMAGE), "vol_03"),
    _nifti("a channel axis that the index does not know", _voxels(IMAGE, lambda v: np.stack([v] * 4, -1)), "vol_03"),
    _nifti("complex voxels", _voxels(IMAGE, lambda v: v.astype(np.complex64)), "vol_03"),
    _nifti("voxels that are NaN", _voxels(IMAGE, lambda v: v * np.nan), "vol_03"),
    _nifti("a label of another shape", _voxels(LABEL, lambda v: v[:-1]), "labelsTr/vol_03"),
    _nifti("a label with another affine", _flipped(LABEL), "labelsTr/vol_03"),
    _nifti("a label of fractions", _voxels(LABEL, lambda v: v * np.float32(0.5)), "labelsTr/vol_03"),
    _nifti("a label with a class that is not declared", _voxels(LABEL, lambda v: v * 4), "labelsTr/vol_03"),
]

DECATHLON = [
    _index("no `dataset.json`", remove(INDEX), "dataset.json"),
    _index("broken JSON", cut(INDEX), "dataset.json"),
    _index("a key that is there twice", _key_twice, "dataset.json"),
    _index("cases under `validation`", edit_json(INDEX, validation=_both("vol_00")), "dataset.json"),
    _index("a label under `test`", edit_json(INDEX, test=_both("vol_00")), "dataset.json"),
    _index("labels in a list", _training({"image": "imagesTr/vol_03.nii.gz", "label": ["a", "b"]}), "dataset.json"),
    _index("a file per channel", _training({"image": ["imagesTr/vol_03.nii.gz"]}), "dataset.json"),
    _index("fewer cases than `numTraining`", edit_json(INDEX, numTraining=7), "dataset.json"),
    _index("`numTraining` in quotes", edit_json(INDEX, numTraining="6"), "dataset.json"),
    _index("a file outside the data set", _training({"image": "../vol_03.nii.gz"}), "dataset.json"),
    _index("a file that is not there", _training(*_both("vol_99")), "vol_99"),
    _index("a case that is listed twice", _training(*_both("vol_01")), "vol_01"),
    _index("labels with a gap", edit_json(INDEX, labels={"0": "background", "2": "ball"}), "dataset.json"),
    _index("an empty list of cases", edit_json(INDEX, training=[]), "raw/set"),
]

_NNUNET_IMAGE = "raw/set/imagesTr/case_03_0001.nii.gz"

NNUNET = [
    _nnunet("a channel whose file is missing", remove(_NNUNET_IMAGE), "case_03"),
    _nnunet("a first channel whose file is missing", remove(_NNUNET_IMAGE.replace("0001", "0000")), "case_03"),
    _nnunet(
        "a file without a channel number", move(_NNUNET_IMAGE, "raw/set/imagesTr/case_03.nii.gz"), "case_03.nii.gz"
    ),
    _nnunet("channels of two shapes", _voxels(_NNUNET_IMAGE, lambda v: v[:-1]), "case_03_0001"),
    _nnunet(
        "a label without an image",
        lambda: [remove(_NNUNET_IMAGE.replace("0001", end))() for end in ("0000", "0001")],
        "labelsTr/case_03",
    ),
    _nnunet("labels in quotes", edit_json(INDEX, labels={"background": "0", "ball": "1"}), "dataset.json"),
    _nnunet("regions", edit_json(INDEX, labels={"background": 0, "whole": [1, 2], "core": 2}), "dataset.json"),
    _nnunet("`dataset.json` of version 1", edit_json(INDEX, labels={"0": "background", "1": "ball"}), "dataset.json"),
    _nnunet(
        "`Ignore` beside `ignore`", edit_json(INDEX, labels={"background": 0, "Ignore": 1, "ignore": 2}), "raw/set"
    ),
    _nnunet("another `file_ending`", edit_json(INDEX, file_ending=".mhd"), "dataset.json"),
    _nnunet("files other than `file_ending`", text("raw/set/imagesTr/case_09_0000.nrrd", ""), "case_09_0000.nrrd"),
    _nnunet("lists of files", edit_json(INDEX, dataset={"case_00": {}}), "dataset.json"),
    _nnunet("channels that count from 1", edit_json(INDEX, channel_names={"1": "T1", "2": "T2"}), "dataset.json"),
    _nnunet("fewer cases than `numTraining`", edit_json(INDEX, numTraining=9), "dataset.json"),
    _stack(
        "a spacing of text beside a TIFF",
        text("raw/set/imagesTr/case_03.json", json.dumps({"spacing": ["1", "1", "1"]})),
        "case_03.json",
    ),
]
