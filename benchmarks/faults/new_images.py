"""Faults of new images, and of the model that is applied to them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from PIL import Image

from benchmarks.faults.damage import cut, flip_bit, picture, raw, remove, text
from benchmarks.faults.entry import Bad, nothing
from tests.fixtures.phantoms import save_image
from tests.fixtures.picture_files import exif, frames, png
from tests.fixtures.trained import model_folder

_KIND = "New images (`predict`)"
_ONE = "--scheduler synchronous --progress none"
_picture = partial(Bad, kind=_KIND, start="predict", line=f"predict model new masks {_ONE}")
_volume = partial(Bad, kind=_KIND, start="predict", line=f"predict model3d volumes masks {_ONE}")
A = "new/a.png"
VOLUME = "volumes/a.nii.gz"


def _alone() -> None:
    """Only the image with the fault."""
    remove("new/b.png")()


def _only(make: Any) -> Any:
    return lambda: (_alone(), make())


def _volume_of(change: Any) -> Any:
    def make() -> None:
        image: Any = nibabel.load(VOLUME)
        nibabel.save(nibabel.Nifti1Image(change(np.asarray(image.dataobj)), image.affine), VOLUME)

    return make


def _other_orientation() -> None:
    """A model of volumes as stored, which were of another orientation."""
    model_folder(Path("model3d"), (8, 8, 8), orientation="LPI")


NEW = [
    _picture("a folder that is not there", nothing, "images", line=f"predict model images masks {_ONE}"),
    _picture("an empty folder", lambda: (_alone(), remove(A)()), "new"),
    _picture("a model that is not there", nothing, "models/promoted", line=f"predict models/promoted new masks {_ONE}"),
    _picture("weights that are not there", nothing, "model", line=f"predict model new masks --weights best {_ONE}"),
    _picture("a model without `input.json`", remove("model/input.json"), "input.json"),
    _picture("a damaged `input.json`", cut("model/input.json"), "input.json"),
    _picture("a damaged `network.json`", cut("model/network.json"), "network.json"),
    _picture("a `network.json` of another program", text("model/network.json", '{"layers": 3}'), "network.json"),
    _picture("weights that are cut off", cut("model/base.safetensors"), "base.safetensors"),
    _picture(
        "weights of another network",
        lambda: (
            model_folder(Path("other"), (8, 8), classes=2),
            Path("other/base.safetensors").replace("model/base.safetensors"),
        ),
        "base.safetensors",
    ),
    _picture("masks into the folder of the images", nothing, "new", line=f"predict model new new {_ONE}"),
    _picture("masks into a folder of other files", text("masks/notes.txt", ""), "masks"),
    _picture("a folder in the folder", lambda: (_only(lambda: Path("new/more").mkdir())(), remove(A)()), "new/more"),
    _picture("a damaged picture", _only(flip_bit(A)), "new/a.png"),
    _picture(
        "a picture that is turned by a tag", _only(picture(A, lambda v: v, format="JPEG", exif=exif(6))), "new/a.png"
    ),
    _picture("an animation", _only(lambda: frames("PNG")(Path(A))), "new/a.png"),
    _picture("a colour PNG of 16 bits", _only(raw(A, png(np.zeros((8, 9, 3)), 16, colour=2))), "new/a.png"),
    _picture("a colour picture for a model of grey", _only(picture(A, lambda v: np.stack([v] * 3, -1))), "new/a.png"),
    _picture("a format that is not read", _only(lambda: Path(A).rename("new/a.webp")), "new/a.webp"),
    _picture("DICOM", _only(lambda: (remove(A)(), raw("new/slice", bytes(128) + b"DICM")())), "new/slice"),
    _picture(
        "a volume for a model of pictures",
        _only(lambda: (remove(A)(), save_image(Path("new/a.nii.gz"), np.zeros((8, 8, 8), np.uint8)))),
        "new/a.nii.gz",
    ),
    _picture(
        "two images of one name", _only(lambda: Image.fromarray(np.zeros((8, 9), np.uint8)).save("new/a.bmp")), "'a'"
    ),
    _volume(
        "a picture for a model of volumes",
        lambda: (remove(VOLUME)(), save_image(Path("volumes/a.png"), np.zeros((8, 8), np.uint8))),
        "volumes/a.png",
    ),
    _volume("a volume with NaN", _volume_of(lambda v: v * np.float32(np.nan)), "volumes/a.nii.gz"),
    _volume("a volume that is cut off", cut(VOLUME), "volumes/a.nii.gz"),
    _volume("a volume of two channels", _volume_of(lambda v: np.stack([v, v], -1)), "volumes/a.nii.gz"),
    _volume(
        "a channel that is missing",
        lambda: (
            text("model3d/input.json", Path("model3d/input.json").read_text().replace('"channel_0"', '"T1", "T2"'))(),
            Path(VOLUME).rename("volumes/a_0000.nii.gz"),
        ),
        "volumes/a_0000.nii.gz",
    ),
    _volume("a volume of another orientation", _other_orientation, "volumes/a.nii.gz"),
]
