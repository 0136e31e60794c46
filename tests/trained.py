"""Model folders as the stages leave them, with raw weights, and image files for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from pipeline.cases.preprocess import Preprocess
from pipeline.dataset import INPUT
from pipeline.recipe import RECORD
from pipeline.segmenter import Architecture, save_weights
from pipeline.store import write_json

OBLIQUE = np.eye(4)
"""Turned by 30 degrees about the third axis and 20 about the first; 0.8 x 1.1 x 2.5 mm."""
_A, _B = np.pi / 6, np.pi / 9
_TURN = np.array([[np.cos(_A), -np.sin(_A), 0], [np.sin(_A), np.cos(_A), 0], [0, 0, 1]])
_TILT = np.array([[1, 0, 0], [0, np.cos(_B), -np.sin(_B)], [0, np.sin(_B), np.cos(_B)]])
OBLIQUE[:3, :3] = _TURN @ _TILT @ np.diag([0.8, 1.1, 2.5])
OBLIQUE[:3, 3] = (-31.7, 12.3, 7.9)


RECORDED: dict[str, Any] = {
    "name": "rn_dpo",
    "slot": None,
    "offsets": None,
    "pairs": "none",
    "objective": {"kind": "supervised"},
    "anchor": None,
    "steps": 160,
    "best_step": 96,
}


def model_folder(
    folder: Path,
    window: tuple[int, ...],
    preprocess: Preprocess | None = None,
    channels: int = 1,
    classes: int = 3,
    weights: tuple[str, ...] = ("base",),
    head: str = "softmax",
    record: dict[str, Any] | None = None,
    **described: Any,
) -> Path:
    """A UNet with weights drawn from one seed for each name; `described` replaces keys of `input.json`."""
    arguments = {"channels": [4, 8], "strides": [2], "num_res_units": 1}
    architecture = Architecture("UNet", arguments, len(window), channels, classes, head, window)
    architecture.save(folder)
    for seed, name in enumerate(weights):
        save_weights(architecture.build(seed + 1), folder / f"{name}.safetensors")
    content = {
        "class_names": ["background", *(f"class_{i}" for i in range(1, classes))],
        "channel_names": [f"channel_{i}" for i in range(channels)],
        "preprocess": (preprocess or Preprocess()).model_dump(mode="json"),
        "orientation": None if len(window) == 2 else (preprocess and preprocess.orientation) or "LAS",
        "convert": None,
        "files": "pictures" if len(window) == 2 else "nifti",
    }
    write_json(folder / INPUT, content | described)
    if record is not None:
        write_json(folder / RECORD, RECORDED | record)
    return folder


def textured(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Blobs of noise u8, so that raw networks see several classes."""
    from scipy.ndimage import gaussian_filter

    smooth = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5)
    low, high = smooth.min(), smooth.max()
    return np.round(255 * (smooth - low) / (high - low)).astype(np.uint8)


def write_oblique(path: Path, shape: tuple[int, ...] = (14, 17, 9), seed: int = 0) -> Any:
    """A volume whose header says scanner coordinates by its qform, a template's by its sform, mm and seconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(textured(shape, seed).astype(np.int16) * 3, OBLIQUE)
    image.header.set_xyzt_units("mm", "sec")
    image.set_sform(OBLIQUE, 4)
    image.set_qform(OBLIQUE, 1)
    image.header["descrip"] = b"patient X"
    nibabel.save(image, path)
    return nibabel.load(path)
