"""How an image lies on a page: which axis is cut, which axes are rows and columns, and which way they go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pipeline.store.cases import Case, CaseStore

_OPPOSITE = dict(zip("LRAPSI", "RLPAIS", strict=True))
_RIGHTWARDS, _DOWNWARDS = "LP", "PI"
"""Directions that go to the right and down on a page, as radiologists look at slices."""
_WORDS = {
    "L": "left of the patient",
    "R": "right of the patient",
    "A": "front",
    "P": "back",
    "S": "head",
    "I": "feet",
}
STORED = "as stored: the files do not say how the patient lies"
STORED_UP = "as stored, with rows from below upwards: the files do not say how the patient lies"
_SAME = 0.99
"""Voxel edges count as equal from this share of the largest on. Rounding would else choose the axis that is cut."""


class OnPage(NamedTuple):
    """Slices of an image, whose rows go down and whose columns go to the right on the page."""

    cut: int | None  # axis that is cut into slices; None for a 2D image, which is one slice
    rows: int  # axis of the rows
    columns: int  # axis of the columns
    flip_rows: bool
    flip_columns: bool
    aspect: float  # height of a voxel over its width
    edges: tuple[str, str, str, str] | None  # directions at the left, right, top and bottom; None if unknown
    display: str  # how the slices lie, in words; empty for a 2D picture

    def laid(self, block: np.ndarray) -> np.ndarray:
        """View `[leading, slice, row, column]` of a block `[leading, *space]`."""
        space = block[:, None] if self.cut is None else np.moveaxis(block, 1 + self.cut, 1)
        if self.rows > self.columns:
            space = space.swapaxes(2, 3)
        return space[:, :, :: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]


def on_page(spacing: Sequence[float], orientation: str | None, files: str | None) -> OnPage:
    """How an image with this voxel spacing per axis lies on a page.

    A volume is cut across its axis of largest spacing (of axes equal within 1 % the last, in a stack of pictures the
    first). `orientation` has a letter per axis, the direction in which the axis goes, such as `RAS`; any other text
    means that it is unknown. An image of known orientation lies as radiologists look at it: axial and coronal slices
    have the patient's right on the left of the page. `files` is the key of `input.json`. Pictures have rows before
    columns. All other files have x before y, with y upwards.
    """
    axes = len(spacing)
    rows_first = files == "pictures" or (axes == 2 and files is None)
    longest = [axis for axis in range(axes) if spacing[axis] >= _SAME * max(spacing)]
    cut = None if axes == 2 else longest[0 if rows_first else -1]
    one, two = (axis for axis in range(axes) if axis != cut)
    edges, display = None, "" if axes == 2 and rows_first else STORED
    if rows_first:
        return OnPage(cut, one, two, False, False, spacing[one] / spacing[two], edges, display)
    if not orientation or not set(orientation) <= set(_OPPOSITE) or len(orientation) != axes:
        return OnPage(cut, two, one, True, False, spacing[two] / spacing[one], edges, STORED_UP)
    # Left and right lie across the page. In a sagittal slice, front and back do.
    columns = next((axis for axis in (one, two) if orientation[axis] in "LR"), None)
    if columns is None:
        columns = next(axis for axis in (one, two) if orientation[axis] in "AP")
    rows = two if columns == one else one
    flip_rows, flip_columns = orientation[rows] not in _DOWNWARDS, orientation[columns] not in _RIGHTWARDS
    right, down = (
        _OPPOSITE[orientation[axis]] if flip else orientation[axis]
        for axis, flip in ((columns, flip_columns), (rows, flip_rows))
    )
    edges = (_OPPOSITE[right], right, _OPPOSITE[down], down)
    display = f"radiological: {_WORDS[edges[0]]} on the left of the page"
    return OnPage(cut, rows, columns, flip_rows, flip_columns, spacing[rows] / spacing[columns], edges, display)


def case_on_page(cases: CaseStore, case: Case) -> OnPage:
    """How the image of a case lies on a page. Unknown spacing counts as 1.

    All volumes have one orientation. A 2D image has the directions of its own affine.
    """
    from nibabel import aff2axcodes

    orientation = cases.info.get("orientation")
    axes = len(case.shape)
    if axes == 2 and case.affine is not None:
        letters = aff2axcodes(np.asarray(case.affine).reshape(4, 4))[:2]
        orientation = "".join(map(str, letters))
    return on_page(case.spacing_mm or (1.0,) * axes, orientation, cases.info["files"])
