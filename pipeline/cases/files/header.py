"""What an image file says about its voxels before they are read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Header:
    """What an image file says about its voxels before they are read."""

    channels: int
    shape: tuple[int, ...]  # spatial
    spacing_mm: tuple[float, ...] | None = None
    affine: tuple[float, ...] | None = None
