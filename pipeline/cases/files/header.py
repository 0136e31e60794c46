"""Channels and grid of an image file."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Header:
    """Channels and grid of an image file, read without the voxels."""

    channels: int
    shape: tuple[int, ...]  # spatial, in voxels
    spacing_mm: tuple[float, ...] | None = None  # one voxel edge per axis; None if unknown
    affine: tuple[float, ...] | None = None  # 16 numbers, row by row; None if the file has no orientation
