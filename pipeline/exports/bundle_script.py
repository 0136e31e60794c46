"""Transforms of a bundle: find images, bring images to the working grid, write masks on the grids of the images.

`scripts/transforms.py` of an exported bundle is a copy of this file. This file imports nothing of the library but the
two files that lie beside the copy. The transforms make the masks of `segpref predict` and refuse the same images.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data.utils import compute_importance_map
from monai.inferers import Inferer

from pipeline.cases.files.mask_file import in_values, mask_ending, write_mask
from pipeline.cases.voxels import (
    DOCUMENTS,
    GREY_MODES,
    TOO_LARGE,
    back,
    converted,
    nifti_affine,
    nifti_edges,
    nifti_voxels,
    on_working_grid,
    picture_fault,
    pixels,
    to_ras,
    verify,
    voxels_at,
    working_axes,
)

_ENDINGS = {"nifti": (".nii.gz", ".nii"), "pictures": (".png", ".bmp", ".jpg", ".jpeg")}
_CHANNEL = re.compile(r"(.+)_(\d{4})")
_AFFINE_TOLERANCE = 1e-3


def images_of(folder: str, spec: dict[str, Any]) -> list[dict[str, Any]]:
    """Images of a folder, each with the keys `image` (files of the channels), `file` (the first file) and `case`.

    Files named CASE_0000, CASE_0001, ... are the channels of one image. A numbered file that holds all channels is an
    image of its own. For a model of one channel, CASE_0000 is the image CASE if all files have the number 0000.
    Raises `ValueError` for a file of another kind, missing channels and a folder without images.
    """
    files = [path for path in sorted(Path(folder).iterdir()) if path.is_file() and not path.name.startswith(".")]
    for file in files:
        if file.suffix.lower() in DOCUMENTS:
            print(f"warning: {file}: skipped, is no image", file=sys.stderr)
    files = [file for file in files if file.suffix.lower() not in DOCUMENTS]
    if not files:
        raise ValueError(f"{folder}: expected images, found none")
    names = {file: _stem(file) for file in files}
    numbered = {file: _CHANNEL.fullmatch(name) for file, name in names.items()}
    several = len(spec["channel_names"]) > 1
    one = not several and all(match and match[2] == "0000" for match in numbered.values())
    groups: dict[str, list[Path]] = defaultdict(list)
    for file, match in numbered.items():
        part = match is not None and (one or (several and not _holds_all(file, spec)))
        groups[match[1] if part and match is not None else names[file]].append(file)
    for case, group in groups.items():
        numbers = [match and int(match[2]) for match in map(numbered.get, group)]
        if len(group) > 1 and numbers != list(range(len(group))):
            raise ValueError(
                f"{folder}: case '{case}': expected one file, or the channels {case}_0000 and on without gaps, found "
                f"{', '.join(file.name for file in group)}; rename or remove files"
            )
    return [
        {"image": [str(file) for file in group], "file": str(group[0]), "case": case} for case, group in groups.items()
    ]


class ToWorkingGridd:
    """Replaces the files in `image` by voxels f32 `[channel, *working]`, resampled and normalised."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        files = [data["image"]] if isinstance(data["image"], (str, Path)) else list(data["image"])
        voxels = _voxels([Path(file) for file in files], self.spec)
        _, shape, orientation = _grids(Path(files[0]), self.spec)
        normalise = self.spec["preprocess"]["normalise"]
        hows = normalise if isinstance(normalise, list) else [normalise] * len(voxels)
        with _named(Path(files[0])):
            image = torch.from_numpy(on_working_grid(voxels, hows, shape, orientation))
        return {**data, "image": image, "file": str(files[0])}


class ToSourceGridd:
    """Replaces the logits `[output, *working]` in `pred` by a label map u8 `[*space]` on the grid of the image file."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        logits = torch.as_tensor(data["pred"]).float()
        shape, _, orientation = _grids(Path(data["file"]), self.spec)
        offsets = self.spec["offsets"]
        if offsets:
            each = torch.tensor(offsets if logits.shape[0] == 1 else [0.0, *offsets]).to(logits)
            logits = logits + each.view(-1, *([1] * (logits.ndim - 1)))
        if logits.shape[0] == 1:
            foreground = torch.sigmoid(logits)
            probability = torch.cat([1 - foreground, foreground])
        else:
            probability = torch.softmax(logits, dim=0)
        mask = back(np.asarray(probability.cpu()), shape, orientation).argmax(0).astype(np.uint8)
        return {**data, "pred": in_values(mask, self.spec["mask_values"])}


class SaveMaskd:
    """Writes `pred` to the output folder as CASE plus the ending of the image's kind, with the image's geometry."""

    def __init__(self, output_dir: str) -> None:
        self.output_dir = Path(output_dir)

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        image = Path(data["file"])
        write_mask(data["pred"], image, self.output_dir / f"{data['case']}{mask_ending(image)}")
        return data


class PaddedWindow(Inferer):
    """Logits by one pass if the image fits the window, otherwise by windows that overlap by half.

    An image smaller than the window is padded with 0 at the ends of its axes. Windows are blended as by MONAI's
    `SlidingWindowInferer` with mode `gaussian`. The sums have the order of segpref, since another order changes the
    last bits of the logits, and with them now and then a voxel of a mask.
    """

    def __init__(self, roi_size: Sequence[int]) -> None:
        super().__init__()
        self.window = tuple(roi_size)

    def __call__(self, inputs: Any, network: Any, *args: Any, **kwargs: Any) -> Any:
        """Logits f32 `[image, output, *space]` of images f32 `[image, channel, *space]`."""
        images = torch.as_tensor(inputs)
        return torch.cat([self._one(image[None], network) for image in images])

    def _one(self, image: torch.Tensor, network: Any) -> torch.Tensor:
        space = tuple(image.shape[2:])
        cut = tuple(min(have, want) for have, want in zip(space, self.window, strict=True))
        if cut == space:
            return self._pass(image, network)
        starts = [_starts(have, want) for have, want in zip(space, self.window, strict=True)]
        # Windows step along the longest axis, as in segpref: this is the order of the sums.
        axis = int(np.argmax(space))
        steps = starts.pop(axis)
        weights = compute_importance_map(self.window, mode="gaussian")[tuple(slice(0, length) for length in cut)]
        total: torch.Tensor | None = None
        count = torch.zeros(space)
        for step, corner in product(steps, product(*starts)):
            place = [*corner[:axis], step, *corner[axis:]]
            box = tuple(slice(at, at + size) for at, size in zip(place, cut, strict=True))
            logits = self._pass(image[(slice(None), slice(None), *box)], network)[0].cpu()
            total = torch.zeros((len(logits), *space)) if total is None else total
            total[(slice(None), *box)] += logits * weights
            count[box] += weights
        assert total is not None
        return (total / count)[None].to(image.device)

    def _pass(self, image: torch.Tensor, network: Any) -> torch.Tensor:
        space = image.shape[2:]
        edges = [edge for want, have in zip(self.window[::-1], space[::-1], strict=True) for edge in (0, want - have)]
        logits = network(torch.nn.functional.pad(image, edges)).float()
        return logits[(slice(None), slice(None), *(slice(0, length) for length in space))]


def _starts(have: int, want: int) -> list[int]:
    """First voxels of the windows along an axis, half a window apart; the last window ends with the image."""
    last = max(0, have - want)
    return [*range(0, last, max(1, want // 2)), last]


def _kind(file: Path) -> str:
    kind = next((kind for kind, endings in _ENDINGS.items() if file.name.lower().endswith(endings)), None)
    if kind is None:
        known = ", ".join(ending for endings in _ENDINGS.values() for ending in endings)
        raise ValueError(f"{file}: this bundle reads {known}; convert the file, or use `segpref predict`")
    return kind


def _stem(file: Path) -> str:
    return next(file.name[: -len(end)] for end in _ENDINGS[_kind(file)] if file.name.lower().endswith(end))


@contextmanager
def _named(file: Path) -> Iterator[None]:
    """Context whose errors name the file. Readers raise errors of many types, and few of them name the damaged file."""
    try:
        yield
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith(f"{file}: "):
            raise
        if type(error).__name__ == "DecompressionBombError":
            raise ValueError(f"{file}: {TOO_LARGE} ({error})") from error
        raise ValueError(
            f"{file}: expected a whole image that this bundle can prepare, found {type(error).__name__}: {error}; "
            "fetch the file again, or remove it from the folder"
        ) from error


def _holds_all(file: Path, spec: dict[str, Any]) -> bool:
    """Whether one file holds all channels."""
    with _named(file):
        if _kind(file) == "pictures":
            from PIL import Image

            with Image.open(file) as picture:
                return len(spec["channel_names"]) == (1 if picture.mode in GREY_MODES else 3)
        import nibabel

        shape = nibabel.load(file).shape  # type: ignore[attr-defined]
        return len(_trimmed(shape[:-1])) == spec["dimensions"] and shape[-1] == len(spec["channel_names"])


def _trimmed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape without trailing axes of length 1; at least two axes remain."""
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _space(nifti: Any, spec: dict[str, Any]) -> tuple[int, ...]:
    """Spatial shape of a NIfTI file that holds one channel, or all channels along its last axis."""
    shape, channels = nifti.shape, len(spec["channel_names"])
    whole = channels > 1 and shape[-1] == channels and len(_trimmed(shape[:-1])) == spec["dimensions"]
    return _trimmed(shape[:-1] if whole else shape)


def _grids(file: Path, spec: dict[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...] | None]:
    """Shape as stored, shape on the working grid, and the orientation from one to the other (None: the same axes)."""
    knobs = spec["preprocess"]
    edges: tuple[float, ...] | None = None
    affine: tuple[float, ...] | None = None
    if _kind(file) == "nifti":
        import nibabel

        nifti: Any = nibabel.load(file)
        shape = _space(nifti, spec)
        with _named(file):
            edges, affine = nifti_edges(nifti, len(shape)), nifti_affine(nifti, len(shape))
    else:
        from PIL import Image

        with Image.open(file) as picture:
            shape = (picture.height, picture.width)
    _check(file, shape, affine, spec)
    orientation = None if knobs["orientation"] is None or affine is None else to_ras(affine)
    axes = working_axes(orientation, len(shape))
    before = tuple(shape[axis] for axis in axes)
    if knobs["resize"] is not None:
        return shape, tuple(knobs["resize"]), orientation
    if knobs["spacing"] is None:
        return shape, before, orientation
    if edges is None:
        raise ValueError(f"{file}: expected a known spacing, found none; give NIfTI files to this model")
    return shape, voxels_at(before, [edges[axis] for axis in axes], knobs["spacing"]), orientation


def _check(file: Path, shape: tuple[int, ...], affine: tuple[float, ...] | None, spec: dict[str, Any]) -> None:
    """Refuse a kind of file, a number of axes and an orientation other than those of the training images."""
    if spec["files"] not in (None, _kind(file)):
        raise ValueError(f"{file}: expected {spec['files']} like the training images, found {_kind(file)}; convert it")
    if len(shape) != spec["dimensions"]:
        raise ValueError(
            f"{file}: expected {spec['dimensions']} spatial axes, found shape {shape}; give images to a 2D model and "
            "volumes to a 3D model"
        )
    if len(shape) != 3:
        return
    from nibabel import aff2axcodes

    found = "unknown" if affine is None else "".join(map(str, aff2axcodes(np.asarray(affine).reshape(4, 4))))
    if spec["preprocess"]["orientation"] is None and found != spec["orientation"]:
        raise ValueError(
            f"{file}: expected a volume of orientation {spec['orientation']}, found {found}; reorient the volume"
        )
    if spec["preprocess"]["orientation"] is not None and affine is None:
        raise ValueError(f"{file}: expected an affine with the orientation of the volume, found none; add an affine")


def _channels(file: Path, spec: dict[str, Any]) -> np.ndarray:
    """Channels of one file as stored, f32 `[channel, *space]`."""
    with _named(file):
        if _kind(file) == "nifti":
            import nibabel

            nifti: Any = nibabel.load(file)
            values = nifti_voxels(file).astype(np.float32)
            return np.ascontiguousarray(np.moveaxis(values.reshape(*_space(nifti, spec), -1), -1, 0))
        from PIL import Image

        verify(file)
        with Image.open(file) as picture:
            found = picture_fault(picture)
            values = pixels(picture)
            # A PNG may hold the tag that turns it after the pixels.
            if fault := found or picture_fault(picture):
                raise ValueError(f"{file}: {fault}")
            return values


def _refuse_other_affine(file: Path, first: Path, axes: int) -> None:
    """Refuse a channel on another grid than the first channel. Rounding of headers is tolerated.

    Voxel edges are compared in place of affines that are unknown.
    """
    if file == first or _kind(file) != "nifti":
        return
    import nibabel

    with _named(file):
        opened = [nibabel.load(path) for path in (file, first)]
        found, expected = (nifti_affine(nifti, axes) or nifti_edges(nifti, axes) for nifti in opened)
    off = float(np.abs(np.subtract(found, expected)).max()) if len(found) == len(expected) else np.inf
    if not off <= _AFFINE_TOLERANCE:
        raise ValueError(f"{file}: expected the affine of {first.name}, found a difference of {off:g}; resample it")


def _voxels(files: list[Path], spec: dict[str, Any]) -> np.ndarray:
    """Image of all channel files, f32 `[channel, *space]`, as stored but for the conversion to grey or RGB."""
    parts = []
    for file in files:
        parts.append(_channels(file, spec))
        if parts[-1].shape[1:] != parts[0].shape[1:]:
            raise ValueError(f"{file}: expected the shape {parts[0].shape[1:]} of {files[0].name}, found another")
        _refuse_other_affine(file, files[0], spec["dimensions"])
    image = np.concatenate(parts)
    if spec["convert"] is not None and len(image) in (1, 3):
        image = converted(image, spec["convert"])
    if len(image) != len(spec["channel_names"]):
        raise ValueError(f"{files[0]}: expected the channels {spec['channel_names']}, found {len(image)} channels")
    if not np.isfinite(image).all():
        raise ValueError(f"{files[0]}: expected finite intensities, found NaN or infinite voxels")
    return image
