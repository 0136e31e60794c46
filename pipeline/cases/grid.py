"""Labels and masks between the grid of the source image and the working grid."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.cases.voxels import back, resized, turned
from pipeline.errors import BadInput
from pipeline.store.cases import Case

if TYPE_CHECKING:
    from pipeline.store.cases import Case


def to_working(label: np.ndarray, case: Case) -> np.ndarray:
    """Label u8 `[*working]` from `[*source]`: the value whose indicator is largest after the resampling of images.

    255 competes as a class of its own; ties go to the lower value. The same array if the grids are equal. Raises
    `BadInput` for a label on another grid.
    """
    _expect(label.shape, case.original_shape, case, "source's grid")
    label = turned(label, case.orientation)
    if label.shape == case.shape:
        return label
    values = np.unique(label)
    indicators = [resized((label == value).astype(np.float32), case.shape) for value in values[:-1]]
    last = 1 - sum(indicators, np.zeros(case.shape, np.float32))
    return values[np.argmax([*indicators, last], axis=0)]


def to_source(probability: np.ndarray, case: Case) -> np.ndarray:
    """Probability f32 `[class, *source]` from `[class, *working]`, linearly between voxel centres.

    The same array if the grids are equal. Classes that sum to 1 still do. Raises `BadInput` for another grid.
    """
    _expect(probability.shape[1:], case.shape, case, "working grid")
    return back(probability, case.original_shape, case.orientation)


def _expect(found: tuple[int, ...], expected: tuple[int, ...], case: Case, grid: str) -> None:
    if found != expected:
        raise BadInput(
            f"case '{case.case_id}': expected {expected} voxels, the {grid}, found {found}; resample it to that grid"
        )


def on_source_grid(mask: np.ndarray, case: Case, classes: int) -> np.ndarray:
    """Label map u8 on the grid of the source image: the class with the largest signed distance to its border.

    Distances are interpolated, not indicators, whose borders would stay steps: on discs resized from 256 to 360 pixels
    that is worth 2 points of Dice.
    """
    if not case.resampled:
        return mask
    inside = [mask == label for label in range(classes)]
    return to_source(np.stack([_signed_distance(one) for one in inside]), case).argmax(0).astype(np.uint8)


def _signed_distance(mask: np.ndarray) -> np.ndarray:
    """Voxels f32 `[*space]` to the border of a bool mask, above 0 inside; far outside everywhere for an empty mask."""
    from scipy.ndimage import distance_transform_edt

    far = float(sum(mask.shape))
    if not mask.any() or mask.all():
        return np.full(mask.shape, far if mask.any() else -far, np.float32)
    # Centres next to the border are half a voxel away from it.
    distance = np.where(mask, distance_transform_edt(mask) - 0.5, 0.5 - distance_transform_edt(~mask))
    return distance.astype(np.float32)
