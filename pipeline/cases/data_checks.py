"""Checks of what a reader found: names of classes, axes of the images, and voxels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.cases.readers import Reader
from pipeline.cases.readers.reader import Source
from pipeline.errors import BadInput
from pipeline.store import schema

_IGNORE = re.compile(r"ignored?([ _-]?(label|class|region))?")
"""Names, in lower case, of a class that is most likely no class, but voxels that nobody labelled."""


def names_of(reader: Reader) -> tuple[list[str], list[str]]:
    """Names of classes and of channels. Raises `BadInput` for names of classes that are none."""
    classes, channels = reader.class_names(), reader.channel_names()
    if not 2 <= len(classes) <= schema.UNKNOWN or len(set(classes)) < len(classes):
        raise BadInput(
            f"{reader.path}: expected 2 to {schema.UNKNOWN} classes with different names, background first, found "
            f"{classes}; correct them"
        )
    if doubtful := [name for name in classes if _IGNORE.fullmatch(name.strip().lower())]:
        raise BadInput(
            f"{reader.path}: expected names of classes, found '{doubtful[0]}'; voxels of no known class are "
            f"{schema.UNKNOWN}, or in nnU-Net's dataset.json the label 'ignore': store them so, or rename the class if "
            "it is one"
        )
    return classes, channels


def check_axes(sources: Sequence[Source], reader: Reader) -> None:
    """Refuse a data set without cases, or with both images and volumes."""
    if not sources:
        raise BadInput(f"{reader.path}: expected cases, found none; check `path`")
    first = sources[0]
    for source in sources:
        if len(source.shape) != len(first.shape):
            raise BadInput(
                f"{reader.path / source.image}: case '{source.case_id}': expected {len(first.shape)} axes like case "
                f"'{first.case_id}', found {len(source.shape)}; keep images and volumes in two data sets"
            )


def check_voxels(image: np.ndarray, label: np.ndarray | None, source: Source, channels: int, root: Path) -> None:
    """Refuse an image or label that differs from the header in shape, and intensities that are NaN or infinite.

    A label that is 255 everywhere is refused too. `channels` is the number of channels of the data set.
    """
    where = f"{root / source.image}: case '{source.case_id}'"
    if image.shape != (channels, *source.shape):
        raise BadInput(
            f"{where}: expected {channels} channels of {source.shape} voxels, found {image.shape}; all cases need the "
            "same channels"
        )
    if not np.isfinite(image).all():
        raise BadInput(
            f"{where}: expected finite intensities, found {int((~np.isfinite(image)).sum())} NaN or infinite voxels; "
            "replace them"
        )
    if label is not None and (label == schema.UNKNOWN).all():
        raise BadInput(
            f"{where}: expected a label with at least one known voxel, found {schema.UNKNOWN} (ignore) everywhere; "
            "remove the label, so that the case joins the pool"
        )
    if label is not None and label.shape != source.shape:
        raise BadInput(f"{where}: expected a label of {source.shape} voxels, found {label.shape}; resample the label")
