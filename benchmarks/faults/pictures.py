"""Faults of pictures, TIFF files and their masks, in the layout `folders`."""

from __future__ import annotations

import os
import struct
from functools import partial
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from benchmarks.faults.damage import Make, cut, each, flip_bit, move, picture, raw, remove, text
from benchmarks.faults.entry import PREPARE, Bad, nothing
from tests.fixtures.picture_files import chunk, exif, frames, png, tag

IMAGE = "raw/set/images/case_03.png"
MASK = "raw/set/masks/case_03.png"
_TIFF = "raw/set/images/case_03.tif"

_image = partial(Bad, kind="Pictures and TIFF images (`folders`)", start="pictures", line=PREPARE)
_mask = partial(Bad, kind="Masks in pictures and TIFF files (`folders`)", start="pictures", line=PREPARE)


def _tiff(file: str, values: np.ndarray, **knobs: object) -> Make:
    """A TIFF file in place of the picture with the same name."""

    def make() -> None:
        Path(file).with_suffix(".png").unlink()
        tifffile.imwrite(file, values, **knobs)  # type: ignore[arg-type]

    return make


def _grey(values: np.ndarray, **knobs: object) -> Make:
    return _tiff(_TIFF, values, photometric="minisblack", **knobs)


def _mask_tiff(photometric: str, **knobs: object) -> Make:
    return _tiff("raw/set/masks/case_03.tif", np.eye(20, 24, dtype=np.uint8), photometric=photometric, **knobs)


def _cut_between_pages() -> None:
    _grey(np.zeros((6, 20, 24), np.uint8))()
    os.truncate(_TIFF, Path(_TIFF).stat().st_size - 600)


def _huge() -> None:
    """A header of 20000 x 20000 pixels, and no pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 20000, 20000, 8, 0, 0, 0, 0))
    raw(IMAGE, b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b""))()


def _dicom() -> None:
    raw("raw/set/images/slice7", bytes(128) + b"DICM" + bytes(64))()


def _drawn_in_alpha() -> None:
    """Masks of 0 and 255, one of which is black with its foreground in the alpha channel."""
    each("raw/set/masks", lambda file: picture(file, lambda v: v * 255))()
    picture(MASK, lambda v: np.stack([0 * v, 0 * v, 0 * v, v], axis=-1))()


def _inverted(file: str) -> None:
    with Image.open(file) as found:
        mask = Image.fromarray(1 - np.array(found))
    mask.putpalette([255, 255, 255, 0, 0, 0])
    mask.save(file)


def _same_twice() -> None:
    Path("raw/set/images/case_04.png").write_bytes(Path(IMAGE).read_bytes())


PLAIN = np.full((20, 24), 7, np.uint8)


def _grey_copy() -> None:
    Image.fromarray(PLAIN).save(IMAGE.replace("case_03", "case 03"))


IMAGES = [
    _image("a PNG that is cut off", cut(IMAGE), "case_03.png"),
    _image("a PNG of which one bit is flipped", flip_bit(IMAGE), "case_03.png"),
    _image("an empty file", raw(IMAGE, b""), "case_03.png"),
    _image("text behind `.png`", text(IMAGE, "not found"), "case_03.png"),
    _image("a GIF behind `.png`", picture(IMAGE, lambda v: v, format="GIF"), "case_03.png"),
    _image("a JPEG that is turned by a tag", picture(IMAGE, lambda v: v, format="JPEG", exif=exif(6)), "case_03.png"),
    _image("a PNG that is turned by a tag after the pixels", raw(IMAGE, png(PLAIN, 8, late=tag(3))), "case_03.png"),
    _image(
        "a TIFF that is turned by a tag",
        _grey(PLAIN, extratags=[(274, "H", 1, 6, True)], metadata=None),
        "case_03.tif",
    ),
    _image("an animated PNG", lambda: frames("PNG")(Path(IMAGE)), "case_03.png"),
    _image("a phone's JPEG with two pictures", lambda: frames("MPO")(Path(IMAGE)), "case_03.png"),
    _image("a colour PNG of 16 bits", raw(IMAGE, png(np.zeros((20, 24, 3)), 16, colour=2)), "case_03.png"),
    _image("more pixels than Pillow opens", _huge, "case_03.png"),
    _image("a colour picture among grey ones", picture(IMAGE, lambda v: np.stack([v] * 3, -1)), "case_03.png"),
    _image("a TIFF stack among pictures", _grey(np.zeros((3, 20, 24), np.uint8)), "case_03.tif"),
    _image("a TIFF with a time axis", _grey(np.zeros((3, 20, 24), np.uint8), metadata={"axes": "TYX"}), "case_03.tif"),
    _image("a TIFF stack that is cut off between two slices", _cut_between_pages, "case_03.tif"),
    _image("a TIFF where 0 is white", _tiff(_TIFF, PLAIN, photometric="miniswhite"), "case_03.tif"),
    _image("a TIFF with complex numbers", _grey(PLAIN.astype(np.complex64)), "case_03.tif"),
    _image("a TIFF with NaN", _grey(np.full((20, 24), np.nan, np.float32)), "case_03.tif"),
    _image("a DICOM file among the images", _dicom, "slice7"),
    _image("`Thumbs.db` among the images", text("raw/set/images/Thumbs.db", ""), "Thumbs.db"),
    _image("a folder among the images", lambda: Path("raw/set/images/more").mkdir(), "raw/set/images/more"),
    _image("a link to a file that is gone", lambda: (remove(IMAGE)(), Path(IMAGE).symlink_to("gone.png")), IMAGE),
    _image("two images of one name", lambda: Image.fromarray(PLAIN).save(IMAGE.replace("png", "jpg")), "case_03"),
    _image(
        "a name without a letter or digit", lambda: (move(IMAGE, "raw/set/images/(!).png")(), remove(MASK)()), "(!)"
    ),
    _image("two names that become one case id", _grey_copy, "case 03.png"),
    _image(
        "a name of 240 bytes", lambda: (move(IMAGE, f"raw/set/images/{'a' * 236}.png")(), remove(MASK)()), "a" * 100
    ),
    _image("no folder of images", lambda: Path("raw/set/images").rename("raw/set/scans"), "raw/set/images"),
    _image("an empty folder of images", each("raw/set/images", remove), "raw/set/images"),
    _image(
        "an image of values above 255 with `unit`",
        _grey(PLAIN.astype(np.uint16) * 99),
        "case_03",
        {"preprocess.normalise": "unit"},
    ),
    _image(
        "one picture under two names, where that is refused", _same_twice, "case_03", {"splits.duplicates": "refuse"}
    ),
]

MASKS = [
    _mask("a mask without an image", remove(IMAGE), "masks/case_03.png"),
    _mask("a mask of another size", picture(MASK, lambda v: v[:-1]), "masks/case_03.png"),
    _mask("a class that is not declared", picture(MASK, lambda v: v * 7), "masks/case_03.png"),
    _mask(
        "a mask of 0 and 255 in every case", each("raw/set/masks", lambda f: picture(f, lambda v: v * 255)), "raw/set"
    ),
    _mask("a mask that is 255 everywhere", picture(MASK, lambda v: v * 0 + 255), "case_03"),
    _mask("masks without foreground", each("raw/set/masks", lambda f: picture(f, lambda v: v * 0)), "raw/set"),
    _mask("a mask in colour", picture(MASK, lambda v: np.stack([v * 255, 0 * v, 0 * v], -1)), "masks/case_03.png"),
    _mask(
        "a mask drawn in the alpha channel",
        _drawn_in_alpha,
        "masks/case_03.png",
        {"data.foreground_above": 127},
    ),
    _mask("a mask of 0 and 1 with `foreground_above`", nothing, "masks/case_0", {"data.foreground_above": 127}),
    _mask("class indices in a JPEG behind `.png`", picture(MASK, lambda v: v, format="JPEG"), "masks/case_03.png"),
    _mask("a colour table in which index 0 is white", lambda: _inverted(MASK), "masks/case_03.png"),
    _mask("a TIFF mask where 0 is white", _mask_tiff("miniswhite"), "masks/case_03.tif"),
    _mask(
        "a TIFF mask with a colour channel",
        _tiff("raw/set/masks/case_03.tif", np.zeros((20, 24, 3), np.uint8), photometric="rgb"),
        "masks/case_03.tif",
    ),
    _mask(
        "a TIFF mask of fractions",
        _tiff("raw/set/masks/case_03.tif", np.full((20, 24), 0.5, np.float32), photometric="minisblack"),
        "masks/case_03.tif",
    ),
    _mask(
        "three classes with `foreground_above`",
        nothing,
        "data",
        {"data.foreground_above": 127, "data.classes": ["a", "b", "c"]},
    ),
    _mask("two classes of one name", nothing, "raw/set", {"data.classes": ["organ", "organ"]}),
    _mask("a class named `ignore`", nothing, "raw/set", {"data.classes": ["background", "organ", "Ignore label"]}),
]
