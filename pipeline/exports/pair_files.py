"""Images and masks of exported pairs as bytes of image files: PNG for 2D pictures, NIfTI for volumes."""

from __future__ import annotations

import gzip
import io
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.cases.grid import working_affine
from pipeline.store.cases import Case, CaseStore

File = dict[str, Any]
"""Cell of a table with an image file: its `bytes`, and the name that the file would have as `path`."""


@dataclass(frozen=True)
class Pictures:
    """2D images as PNG of whole numbers. An intensity is `number * scale + offset`, with both per channel.

    A single channel has 16 bits. Red, green and blue have 8 bits each, because Pillow reads no more of a picture in
    colour. Other channels are a list of PNG files of 16 bits. The numbers span the intensities of the image and
    channel. Channels normalised by `unit` span 0 to 1, so that 8 bits of the source are kept exactly.
    """

    unit: tuple[bool, ...]  # whether a channel is normalised by `unit`
    rgb: bool

    @property
    def listed(self) -> bool:
        """Whether the cell of an image is a list of files."""
        return len(self.unit) > 1 and not self.rgb

    @property
    def features(self) -> dict[str, Any]:
        """Features of the columns with files, as the package `datasets` stores them."""
        one = {"_type": "Image"}
        return {"image": {"_type": "List", "feature": one} if self.listed else one, "chosen": one, "rejected": one}

    @property
    def text(self) -> str:
        """How intensities are stored, in words."""
        bits = "8 bits per channel" if self.rgb else "16 bits"
        each = "a list of PNG files, one per channel," if self.listed else "a PNG file"
        return (
            f"`image` is {each} of whole numbers of {bits}. An intensity is `number * scale + offset`, with `scale` "
            "and `offset` per channel. It differs from the intensity in the run by at most half of `scale`."
        )

    @property
    def reading(self) -> str:
        """Python that makes arrays of a `row`, with `numpy` as `np`."""
        numbers = 'np.stack(row["image"], axis=-1)' if self.listed else 'np.asarray(row["image"])'
        return (
            f'image = {numbers} * row["scale"] + row["offset"]  # intensities; several channels are the last axis\n'
            'chosen, rejected = (np.asarray(row[name]) for name in ("chosen", "rejected"))  # [row, column]'
        )

    def image(self, image: np.ndarray, case: Case) -> dict[str, Any]:
        """Cells `image`, `scale` and `offset` of an image f32 `[channel, row, column]`."""
        levels = 255 if self.rgb else 65_535
        stored = [_numbers(channel, unit, levels) for channel, unit in zip(image, self.unit, strict=True)]
        channels, scales, offsets = map(list, zip(*stored, strict=True))
        cell: File | list[File]
        if self.rgb:
            cell = _png(np.stack(channels, axis=-1), f"{case.case_id}.png")
        elif self.listed:
            cell = [_png(channel, f"{case.case_id}_{place:04d}.png") for place, channel in enumerate(channels)]
        else:
            cell = _png(channels[0], f"{case.case_id}.png")
        return {"image": cell, "scale": scales, "offset": offsets}

    def mask(self, mask: np.ndarray, case: Case, name: str) -> File:
        """Cell of a label map u8 `[row, column]`."""
        return _png(mask, f"{case.case_id}_{name}.png")


def _numbers(channel: np.ndarray, unit: bool, levels: int) -> tuple[np.ndarray, float, float]:
    """Whole numbers 0 to `levels` (u8 or u16) of a channel f32, with the scale and the offset of the way back."""
    low, high = (0.0, 1.0) if unit else (float(channel.min()), float(channel.max()))
    scale = (high - low) / levels or 1.0  # a constant channel is its offset
    numbers = np.rint((channel.astype(np.float64) - low) / scale)
    return numbers.astype(np.min_scalar_type(levels)), scale, low


def _png(pixels: np.ndarray, path: str) -> File:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="png")
    return {"bytes": file.getvalue(), "path": path}


_LEVEL = 3
"""Level of gzip. On masks level 9, the default of Python, is 30 times slower than level 3, and halves the bytes."""


@dataclass(frozen=True)
class Volumes:
    """Images as compressed NIfTI of float32, exactly as prepared, and masks of u8, with the affine of the working grid.

    2D images that were read from NIfTI have a third axis of one slice.
    """

    axes: str  # names of the spatial axes

    @property
    def features(self) -> dict[str, Any]:
        """Features of the columns with files, as the package `datasets` stores them."""
        return {name: {"_type": "Nifti"} for name in ("image", "chosen", "rejected")}

    @property
    def text(self) -> str:
        """How intensities are stored, in words."""
        return (
            f"`image` is a NIfTI file of float32 with exactly the intensities in the run. Its axes are {self.axes}, "
            "and channel if there are several channels. The affine is that of the working grid. Both of its codes are "
            "0 if the source has no affine."
        )

    @property
    def reading(self) -> str:
        """Python that makes arrays of a `row`, with `numpy` as `np`."""
        return (
            'image = np.asarray(row["image"].dataobj)  # intensities; several channels are the last axis\n'
            'chosen, rejected = (np.asarray(row[name].dataobj) for name in ("chosen", "rejected"))'
            f"  # [{self.axes}]"
        )

    def image(self, image: np.ndarray, case: Case) -> dict[str, Any]:
        """Cell `image` of an image f32 `[channel, *space]`."""
        spread = _spread(image, 4)
        return {"image": _nifti(spread[0] if len(spread) == 1 else np.moveaxis(spread, 0, -1), case, case.case_id)}

    def mask(self, mask: np.ndarray, case: Case, name: str) -> File:
        """Cell of a label map u8 `[*space]`."""
        return _nifti(_spread(mask, 3), case, f"{case.case_id}_{name}")


def _spread(values: np.ndarray, axes: int) -> np.ndarray:
    """The values with a last axis of one slice if they have fewer axes."""
    return values if values.ndim == axes else values[..., None]


def _nifti(values: np.ndarray, case: Case, stem: str) -> File:
    import nibabel

    image = nibabel.Nifti1Image(values, working_affine(case))
    if case.spacing_mm is not None:
        image.header.set_xyzt_units("mm")
        if case.affine is None:
            image.header["pixdim"][1 : 1 + len(case.spacing_mm)] = case.spacing_mm
    # Without the time in the head of gzip, equal voxels give equal bytes.
    return {"bytes": gzip.compress(image.to_bytes(), _LEVEL, mtime=0), "path": f"{stem}.nii.gz"}


def files_of(cases: CaseStore) -> Pictures | Volumes:
    """Form of the files for the cases of a store."""
    # 2D images of NIfTI files stay NIfTI: their first axis is x, and the first axis of a picture is y.
    if cases.info["files"] == "nifti":
        return Volumes("x, y, z")
    if len(cases.padded) == 3:
        return Volumes("slice, row, column" if cases.info["files"] == "pictures" else "x, y, z")
    how = cases.info["preprocess"]["normalise"]
    hows = how if isinstance(how, list) else [how] * cases.channels
    return Pictures(tuple(one == "unit" for one in hows), cases.rgb)
