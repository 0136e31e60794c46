"""Resampling of labels and masks between the grid of the source image and the working grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.cases.as_nnunet import slice_axis, splined
from pipeline.cases.voxels import back, resized, turned, working_axes
from pipeline.errors import BadInput
from pipeline.store.cases import Case


def to_working(label: np.ndarray, case: Case) -> np.ndarray:
    """Label u8 `[*working]` from `[*source]`: the value whose indicator is largest after linear resampling.

    Indicators are resampled like images. 255 competes as a class of its own. Ties go to the lower value. The same array
    is returned if the grids are equal. Labels outside of the case's crop are dropped. Raises `BadInput` for a label on
    another grid.
    """
    _expect(label.shape, case.original_shape, case, "source's grid")
    label = turned(label if case.crop is None else label[case.box], case.orientation)
    if label.shape == case.shape:
        return label
    values = np.unique(label)
    indicators = [resized((label == value).astype(np.float32), case.shape) for value in values[:-1]]
    # The resampled indicators of all values sum to 1, so the last indicator needs no resampling.
    last = 1 - sum(indicators, np.zeros(case.shape, np.float32))
    return values[np.argmax([*indicators, last], axis=0)]


def to_source(probability: np.ndarray, case: Case) -> np.ndarray:
    """Probability f32 `[class, *source]` from `[class, *working]`, interpolated linearly between voxel centres.

    The same array is returned if the grids are equal. Classes that sum to 1 still sum to 1. Outside of the case's crop
    the background has 1. Raises `BadInput` for probabilities on another grid.
    """
    _expect(probability.shape[1:], case.shape, case, "working grid")
    return _pasted(back(probability, case.cropped_shape, case.orientation), case, background=1, others=0)


def logits_to_source(logits: np.ndarray, case: Case, spacing: Sequence[float] | None) -> np.ndarray:
    """Logits f32 `[class, *source]` from `[class, *working]` of a softmax, as nnU-Net brings them back.

    They are interpolated linearly, and slice by slice as `as_nnunet.slice_axis` says of the knob `preprocess.spacing`
    (`spacing`), in mm per working axis. The voxel edges of the working grid differ a little from the knob. Outside of
    the case's crop the background has 0, and all other classes have minus infinity. Raises `BadInput` for logits on
    another grid.
    """
    _expect(logits.shape[1:], case.shape, case, "working grid")
    shape = tuple(case.cropped_shape[axis] for axis in working_axes(case.orientation, len(case.shape)))
    axis = None if spacing is None else slice_axis(spacing, source_edges(case))
    found = np.stack([splined(channel, shape, axis, order=1) for channel in logits])
    return _pasted(back(found, case.cropped_shape, case.orientation), case, background=0, others=-np.inf)


def _pasted(values: np.ndarray, case: Case, background: float, others: float) -> np.ndarray:
    """Values f32 `[class, *source]` from `[class, *box]`, with a value outside of the box for the classes above 0."""
    if case.crop is None:
        return values
    whole = np.full((len(values), *case.original_shape), others, np.float32)
    whole[0] = background
    whole[(slice(None), *case.box)] = values
    return whole


def source_edges(case: Case) -> tuple[float, ...]:
    """Voxel edges of the source in mm, in the order of the working axes. Raises `BadInput` if they are unknown."""
    if case.original_spacing_mm is None:
        raise BadInput(f"case '{case.case_id}': expected a known spacing, found none; save it with the image")
    return tuple(case.original_spacing_mm[axis] for axis in working_axes(case.orientation, len(case.shape)))


def _expect(found: tuple[int, ...], expected: tuple[int, ...], case: Case, grid: str) -> None:
    if found != expected:
        raise BadInput(
            f"case '{case.case_id}': expected {expected} voxels, the {grid}, found {found}; resample to that grid"
        )


def working_affine(case: Case) -> np.ndarray | None:
    """Affine f64 `[4, 4]` from voxels of the working grid to the space of the source's affine, in mm.

    Voxel centres of both grids are aligned as in resampling: the grids share their outer edges. None if the source has
    no affine.
    """
    if case.affine is None:
        return None
    orientation = case.orientation or range(1, len(case.shape) + 1)
    to_source_voxel = np.eye(4)
    for axis, (towards, part) in enumerate(zip(orientation, case.box, strict=True)):
        working = abs(towards) - 1
        ratio = (part.stop - part.start) / case.shape[working]
        first = (ratio - 1) / 2  # source voxel at the centre of the first working voxel
        to_source_voxel[axis, axis] = 0.0
        to_source_voxel[axis, working] = ratio if towards > 0 else -ratio
        to_source_voxel[axis, 3] = part.start + first if towards > 0 else part.stop - 1 - first
    return np.asarray(case.affine, np.float64).reshape(4, 4) @ to_source_voxel


def on_source_grid(mask: np.ndarray, case: Case, classes: int) -> np.ndarray:
    """Label map u8 `[*source]` from `[*working]`: the class with the largest signed distance to its border.

    Distances are interpolated instead of indicators, because interpolated indicators keep the steps of the working
    grid. On discs resized from 256 to 360 pixels, distances gain 2 points of Dice. The same array is returned if the
    grids are equal.
    """
    if not case.resampled:
        return mask
    inside = [mask == label for label in range(classes)]
    distances = back(np.stack([_signed_distance(one) for one in inside]), case.cropped_shape, case.orientation)
    whole = np.zeros(case.original_shape, np.uint8)
    whole[case.box] = distances.argmax(0)
    return whole


def _signed_distance(mask: np.ndarray) -> np.ndarray:
    """Signed distance f32 `[*space]` in voxels to the border of a bool mask, above 0 inside.

    An empty mask has a large negative distance everywhere, a full mask a large positive distance.
    """
    from scipy.ndimage import distance_transform_edt

    far = float(sum(mask.shape))
    if not mask.any() or mask.all():
        return np.full(mask.shape, far if mask.any() else -far, np.float32)
    # The centre of a voxel at the border is half a voxel away from the border.
    distance = np.where(mask, distance_transform_edt(mask) - 0.5, 0.5 - distance_transform_edt(~mask))
    return distance.astype(np.float32)
