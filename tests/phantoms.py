"""Small raw data sets on disk for tests, in the layouts that users bring."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import nibabel
import numpy as np
import tifffile
from PIL import Image

from pipeline.seeding import numpy_generator


def disc(shape: Sequence[int], radius: float, offset: float = 0.0) -> np.ndarray:
    """Label u8: 1 within `radius` voxels of the middle (moved by `offset` along the first axis), else 0."""
    axes = np.ogrid[tuple(slice(0, length) for length in shape)]
    middles = [(length - 1) / 2 for length in shape]
    middles[0] += offset
    square = sum((axis - middle) ** 2 for axis, middle in zip(axes, middles, strict=True))
    return (square <= radius**2).astype(np.uint8)


def write_folders(root: Path, cases: int = 8, shape: Sequence[int] = (20, 24), unlabelled: int = 0) -> Path:
    """Grey PNG images `case_00`... of a disc in noise, and masks of class indices, but for the last `unlabelled`."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for case in range(cases):
        label = disc(shape, 4 + case % 3)
        noise = numpy_generator("folders", case).integers(0, 40, shape)
        Image.fromarray((label * 120 + noise).astype(np.uint8)).save(root / "images" / f"case_{case:02d}.png")
        if case < cases - unlabelled:
            Image.fromarray(label).save(root / "masks" / f"case_{case:02d}.png")
    return root


def poison_labels(root: Path, case_ids: Iterable[str]) -> None:
    """Replace the masks of these cases by noise: nothing that may not read them can change."""
    for case_id in case_ids:
        path = root / "masks" / f"{case_id}.png"
        with Image.open(path) as mask:
            shape = (mask.height, mask.width)
        Image.fromarray(numpy_generator("poison", case_id).integers(0, 2, shape, dtype=np.uint8)).save(path)


def write_nifti(path: Path, voxels: np.ndarray, spacing_mm: Sequence[float] = (1.0, 1.0, 1.0)) -> None:
    """NIfTI file with a diagonal affine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(voxels, np.diag([*spacing_mm, 1.0]))
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)


def write_decathlon(
    root: Path, cases: int = 6, shape: Sequence[int] = (10, 12, 8), channels: int = 1, pool: int = 0
) -> Path:
    """Volumes `vol_00`... of a ball with a smaller one in it (classes 1 and 2); the last `pool` have no label."""
    for case in range(cases):
        label = disc(shape, 3.5) + disc(shape, 1.5)
        noise = numpy_generator("decathlon", case).normal(size=(*shape, channels))
        image = (label[..., None] + 0.1 * noise).astype(np.float32)
        write_nifti(root / f"imagesTr/vol_{case:02d}.nii.gz", image if channels > 1 else image[..., 0], (1.0, 0.5, 2.0))
        if case < cases - pool:
            write_nifti(root / f"labelsTr/vol_{case:02d}.nii.gz", label, (1.0, 0.5, 2.0))
    names = [f"vol_{case:02d}.nii.gz" for case in range(cases)]
    write_index(
        root,
        training=[{"image": f"./imagesTr/{n}", "label": f"./labelsTr/{n}"} for n in names[: cases - pool]],
        test=[f"./imagesTr/{n}" for n in names[cases - pool :]],
        modality={str(channel): f"MR{channel}" for channel in range(channels)},
    )
    return root


def write_index(root: Path, **content: object) -> None:
    """`dataset.json` with three classes, one modality and these entries over it."""
    index = {
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "ball", "2": "core"},
        "training": [],
        "test": [],
        **content,
    }
    (root / "dataset.json").write_text(json.dumps(index))


def write_nnunet(root: Path, cases: int = 6, ending: str = ".nii.gz", channels: int = 1, unlabelled: int = 0) -> Path:
    """nnU-Net v2 raw data: cases `case_00`... of a disc or ball in noise; the last `unlabelled` are in `imagesTs`."""
    shape = (20, 24) if ending in (".png", ".bmp") else (6, 10, 8)
    for case in range(cases):
        label = disc(shape, 3 + case % 2)
        end = "Tr" if case < cases - unlabelled else "Ts"
        for channel in range(channels):
            noise = numpy_generator("nnunet", case, channel).integers(0, 40, shape)
            image = (label * 120 + noise).astype(np.uint8)
            save_image(root / f"images{end}" / f"case_{case:02d}_{channel:04d}{ending}", image)
        if end == "Tr":
            save_image(root / f"labelsTr/case_{case:02d}{ending}", label)
    content = {
        "channel_names": {str(channel): f"MR{channel}" for channel in range(channels)},
        "labels": {"background": 0, "ball": 1},
        "numTraining": cases - unlabelled,
        "file_ending": ending,
    }
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def save_image(path: Path, voxels: np.ndarray) -> None:
    """A NIfTI, TIFF or picture file, told by its ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in (".gz", ".nii"):
        write_nifti(path, voxels, (1.0, 0.5, 2.0))
    elif path.suffix in (".tif", ".tiff"):
        tifffile.imwrite(path, voxels, photometric="minisblack", compression="zlib")
    else:
        Image.fromarray(voxels).save(path)


def write_table(root: Path, *lines: str) -> None:
    """`cases.csv` beside the data."""
    (root / "cases.csv").write_text("\n".join(lines) + "\n")
