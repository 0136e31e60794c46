"""Faults of masks of other tools (sampler `imported`), and of the arguments of samplers."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from PIL import Image

from benchmarks.faults.damage import Make, cut, each, picture, remove
from benchmarks.faults.entry import PROPOSE, Bad, nothing

MASK = "raw/masks/tool/case_03.png"
VOLUME = "raw/masks/tool/vol_03.nii.gz"
_TOOL = "propose.samplers.mine.sources.tool"

_mask = partial(Bad, kind="Masks of other tools", start="imports", line=PROPOSE)
_volume = partial(Bad, kind="Masks of other tools", start="imported volumes", line=PROPOSE)


def _masks(what: str, make: Make, place: str, **knobs: Any) -> Bad:
    return _mask(what, make, place, {f"{_TOOL}.{key}": value for key, value in knobs.items()})


def _as_jpeg() -> None:
    with Image.open(MASK) as found:
        found.save(MASK, format="JPEG")


def _per_class(overlap: int) -> Make:
    """A folder per case with a file per class. The files share their first `overlap` slices of class 2."""

    def make() -> None:
        for file in sorted(Path("raw/masks/tool").glob("*.nii.gz")):
            image: Any = nibabel.load(file)
            label = np.asarray(image.dataobj)
            one = label == 1
            one[:overlap] |= label[:overlap] == 2
            folder = Path("raw/masks/parts") / file.name.removesuffix(".nii.gz")
            folder.mkdir(parents=True)
            for name, mask in (("a", one), ("b", label == 2)):
                nibabel.save(nibabel.Nifti1Image(mask.astype(np.uint8), image.affine), folder / f"{name}.nii.gz")

    return make


def _three_values() -> None:
    _per_class(0)()
    shutil.copy(VOLUME, "raw/masks/parts/vol_03/a.nii.gz")


def _shifted() -> None:
    image: Any = nibabel.load(VOLUME)
    affine = image.affine.copy()
    affine[0, 3] += 2
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), affine), VOLUME)


def _fractions() -> None:
    image: Any = nibabel.load(VOLUME)
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj) * np.float32(0.3), image.affine), VOLUME)


_PARTS = {"path": "parts", "classes": {"a.nii.gz": 1, "b.nii.gz": 2}}

IMPORTED = [
    _masks("no mask of a case", remove(MASK), "case_03"),
    _masks("a folder that is not there", nothing, "propose.samplers.mine", path="another"),
    _masks("a path outside the imports", nothing, "propose.samplers", path="../tool"),
    _masks("a mask of another size", picture(MASK, lambda v: v[:-1]), "case_03"),
    _masks("a mask that is cut off", cut(MASK), "case_03"),
    _masks("masks of 0 and 255", each("raw/masks/tool", lambda f: picture(f, lambda v: v * 255)), "tool/case_0"),
    _masks("a mask that is 255 everywhere", picture(MASK, lambda v: v * 0 + 255), "case_03"),
    _masks("class indices in a JPEG", _as_jpeg, "case_03"),
    _masks("a class that is not declared", picture(MASK, lambda v: v * 9), "case_03"),
    _masks("values that become an unknown class", nothing, _TOOL, values={"1": 4}),
    _masks("a mask of 0 and 1 with `foreground_above`", nothing, "case_0", foreground_above=127),
    _volume("one voxel in two classes", _per_class(8), "parts/vol_0", {_TOOL: _PARTS}),
    _volume("three values in a file of one class", _three_values, "vol_03", {_TOOL: _PARTS}),
    _masks("a file name without `{case_id}`", nothing, _TOOL, file="mask.png"),
    _mask("no folder of imports", nothing, "propose.imports", {"propose.imports": "raw/other"}),
    _volume("a volume at another place", _shifted, "vol_03"),
    _volume("a volume of fractions", _fractions, "vol_03"),
]
