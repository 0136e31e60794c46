"""Preprocessing of images: orientation, working grid and normalisation of intensities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from pipeline.cases.as_nnunet import inside, nonzero_box, slice_axis, splined, zscore_inside
from pipeline.cases.grid import source_edges
from pipeline.cases.voxels import normalised, on_working_grid, to_ras, turned, voxels_at, working_axes
from pipeline.errors import BadInput
from pipeline.knobs import Knobs

if TYPE_CHECKING:
    from pipeline.cases.readers.reader import Source
    from pipeline.store.cases import Case


class FixedRange(Knobs):
    """Linear map from a fixed range of intensities, such as a CT window in Hounsfield units, to another range."""

    range: tuple[float, float]
    """Lowest and highest intensity of the image."""
    to: tuple[float, float] = (0.0, 1.0)
    """Values that the lowest and the highest intensity are mapped to."""
    clip: bool = True
    """Whether intensities outside the range are set to the nearer end of the range."""

    @model_validator(mode="after")
    def _some_width(self) -> FixedRange:
        if not (self.range[0] < self.range[1] and self.to[0] < self.to[1]):
            raise ValueError(f"expected ranges from low to high, found {list(self.range)} to {list(self.to)}")
        return self


Normalise = Literal["zscore", "zscore_nonzero", "percentile", "minmax", "unit"] | FixedRange

UNKNOWN_ORIENTATION = "unknown"
"""Orientation of volumes whose files have no orientation."""


@dataclass(frozen=True)
class Grid:
    """The working grid of a case. `orientation` and `crop` are columns of `schema.CASES`."""

    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...] | None
    orientation: tuple[int, ...] | None
    crop: tuple[int, ...] | None


class Preprocess(Knobs):
    """Normalisation of intensities and of grids, so that cases are comparable."""

    normalise: Normalise | tuple[Normalise, ...] = "zscore"
    """Normalisation of intensities, per case and channel. A list has one entry per channel.

    - `zscore`: mean 0, standard deviation 1.
    - `zscore_nonzero`: the same over the voxels that are not 0, and 0 elsewhere (`use_mask_for_norm` of nnU-Net). For
      `resample: nnunet`.
    - `percentile`: clipped to the percentiles 0.5 and 99.5, then `zscore`.
    - `minmax`: 0 to 1.
    - `unit`: divided by 255, for pictures.
    - A fixed range for all cases, for CT: `{range: [-57, 164], to: [0, 1]}`."""
    orientation: Literal["RAS"] | None = None
    """Axes of the working grid. `RAS` flips and swaps whole axes, so that they point nearest to right, anterior and
    superior, and refuses cases without an affine. Null keeps the axes as stored, and refuses volumes of several
    orientations."""
    spacing: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    """Voxel edges of the working grid in mm, per working axis, rounded so that whole voxels fill the grid. Cases of
    unknown spacing are refused. Set `spacing` or `resize`, not both. Null keeps the source's voxels."""
    resize: tuple[Annotated[int, Field(ge=1)], ...] | None = None
    """Working grid of all cases in voxels per working axis. Null keeps the source's grid or the grid of `spacing`."""

    resample: Literal["linear", "nnunet"] = "linear"
    """How images reach the grid of `spacing`.

    - `linear`: resampled linearly with anti-aliasing, then normalised.
    - `nnunet`: cropped to the box outside which all channels are 0, normalised, then resampled by cubic splines, and
      slice by slice if one voxel edge is more than three times another. For a base of nnU-Net."""

    @model_validator(mode="after")
    def _one_grid(self) -> Preprocess:
        if self.spacing is not None and self.resize is not None:
            raise ValueError("spacing and resize both set the working grid; set one to null")
        if self.resample == "nnunet" and self.resize is not None:
            raise ValueError("resample: 'nnunet' resamples to a spacing, found resize; set resize to null")
        hows = self.normalise if isinstance(self.normalise, tuple) else (self.normalise,)
        if self.resample != "nnunet" and "zscore_nonzero" in hows:
            raise ValueError("normalise: 'zscore_nonzero' goes with resample: nnunet; set both, or use 'zscore'")
        return self

    @property
    def crops(self) -> bool:
        """Whether the working grid covers a box of the source that depends on the voxels."""
        return self.resample == "nnunet"

    def crop(self, image: np.ndarray) -> tuple[int, ...] | None:
        """Column `crop` of an image f32 `[channel, *source]`; None if nothing is cropped."""
        if not self.crops:
            return None
        box = nonzero_box(image)
        whole = all((part.start, part.stop) == (0, length) for part, length in zip(box, image.shape[1:], strict=True))
        return None if whole else tuple(end for part in box for end in (part.start, part.stop))

    @property
    def canonical(self) -> Preprocess:
        """This block, with one normalisation for all channels if all channels have the same. For comparisons."""
        how = self.normalise
        one = isinstance(how, tuple) and all(each == how[0] for each in how)
        return self.model_copy(update={"normalise": how[0]}) if one and isinstance(how, tuple) else self

    @property
    def stated(self) -> dict[str, Any]:
        """The block as content of `params.yaml`: `normalise`, and the other knobs that differ from their defaults."""
        content = self.model_dump(mode="json")
        return {"normalise": content["normalise"], **self.model_dump(mode="json", exclude_defaults=True)}

    def for_sources(self, sources: Sequence[Source]) -> Preprocess:
        """This block, for any cases. `preprocess: plans` has another block for other cases."""
        return self

    def grid(self, source: Source, crop: tuple[int, ...] | None = None) -> Grid:
        """The working grid of a case: source -> crop -> orientation -> `spacing` or `resize`.

        The spacing of the grid follows from whole voxels and differs slightly from the knob `spacing`. Raises
        `BadInput` with the name of the case for knobs with another number of axes, for unknown spacing, and for a case
        without orientation.
        """
        orientation = None if self.orientation is None else _orientation(source)
        axes = working_axes(orientation, len(source.shape))
        cropped = source.shape if crop is None else tuple(np.diff(crop)[::2].tolist())
        before = tuple(cropped[axis] for axis in axes)
        edges = None if source.spacing_mm is None else tuple(source.spacing_mm[axis] for axis in axes)
        shape = self._shape(source, before, edges)
        spacing = edges and tuple(edge * old / new for edge, old, new in zip(edges, before, shape, strict=True))
        return Grid(shape, spacing, orientation, crop)

    def _shape(self, source: Source, before: tuple[int, ...], edges: tuple[float, ...] | None) -> tuple[int, ...]:
        for name in ("spacing", "resize"):
            asked = getattr(self, name)
            if asked is not None and len(asked) != len(before):
                raise BadInput(
                    f"preprocess.{name}: expected {len(before)} axes as case '{source.case_id}' has, found "
                    f"{list(asked)}; give one value per axis"
                )
        if self.resize is not None:
            return self.resize
        if self.spacing is None:
            return before
        if edges is None:
            raise BadInput(
                f"{source.image}: case '{source.case_id}': expected a known spacing for preprocess.spacing, found "
                "none; use preprocess.resize, or save the spacing with the image"
            )
        return voxels_at(before, edges, self.spacing)

    def image(self, image: np.ndarray, case: Case) -> np.ndarray:
        """Image f32 `[channel, *working]` from `[channel, *source]`, cropped, resampled and normalised per channel.

        The knob `resample` says how and in which order. A constant channel becomes 0, except with `unit` and a fixed
        range. Raises `BadInput` if the list of normalisations does not have one entry per channel, and for `unit` if
        intensities are not from 0 to 255.
        """
        hows = self.normalise if isinstance(self.normalise, tuple) else (self.normalise,) * len(image)
        if len(hows) != len(image):
            raise BadInput(
                f"preprocess.normalise: expected {len(image)} entries, one for each channel, found {len(hows)}; "
                "give one for all, or one for each"
            )
        try:
            plain = [how if isinstance(how, str) else how.model_dump() for how in hows]
            if self.resample == "nnunet":
                axis = None if self.spacing is None else slice_axis(source_edges(case), self.spacing)
                part = image[(slice(None), *case.box)]
                where = inside(part) if "zscore_nonzero" in plain else np.ones(())
                ready = [
                    zscore_inside(channel, where) if how == "zscore_nonzero" else normalised(channel, how)
                    for channel, how in zip(part, plain, strict=True)
                ]
                return np.stack([splined(turned(c, case.orientation), case.shape, axis, order=3) for c in ready])
            return on_working_grid(image, plain, case.shape, case.orientation)
        except ValueError as error:
            raise BadInput(f"case '{case.case_id}': {error}") from error


def one_orientation(sources: list[Source]) -> str | None:
    """Orientation that all volumes have as stored, e.g. `LAS`. `unknown` without an affine. None for 2D images.

    Raises `BadInput` for volumes of several orientations, because flips, sided classes and resizing act on axes.
    """
    from nibabel import aff2axcodes

    first: dict[str, Source] = {}
    for source in sources:
        if len(source.shape) == 3:
            affine = None if source.affine is None else np.asarray(source.affine).reshape(4, 4)
            first.setdefault(UNKNOWN_ORIENTATION if affine is None else "".join(map(str, aff2axcodes(affine))), source)
    if len(first) > 1:
        (one, a), (two, b) = list(first.items())[:2]
        raise BadInput(
            f"{b.image}: expected volumes of one orientation, found {one} (case '{a.case_id}') and {two} (case "
            f"'{b.case_id}'); set `preprocess.orientation: RAS`, or, for an nnU-Net whose plans ask for null, bring "
            "all files, images and masks, to one orientation"
        )
    return next(iter(first), None)


def _orientation(source: Source) -> tuple[int, ...] | None:
    """Orientation of a volume as in `schema.CASES`. None if the axes already point right, anterior and superior."""
    if len(source.shape) != 3 or source.affine is None:
        raise BadInput(
            f"{source.image}: case '{source.case_id}': expected a volume with an affine for preprocess.orientation, "
            f"found {len(source.shape)} axes and {'no' if source.affine is None else 'an'} affine; set the knob to null"
        )
    try:
        return to_ras(source.affine)
    except ValueError as error:
        raise BadInput(f"{source.image}: case '{source.case_id}': {error}; correct the header") from error
