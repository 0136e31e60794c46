"""From the source's grid and intensities to the working grid and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from pipeline.errors import BadInput
from pipeline.knobs import Knobs

if TYPE_CHECKING:
    from pipeline.cases.reader import Source
    from pipeline.dataset import Case

Normalise = Literal["zscore", "percentile", "minmax", "unit"]
_CLIP = (0.5, 99.5)
_UNIT = 255.0


@dataclass(frozen=True)
class Grid:
    """The working grid of a case; `orientation` as in `schema.CASES`."""

    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...] | None
    orientation: tuple[int, ...] | None


class Preprocess(Knobs):
    """How intensities and grids are made comparable between cases."""

    normalise: Normalise | tuple[Normalise, ...] = "zscore"
    """Per case and channel: `zscore` (mean 0, standard deviation 1), `percentile` (clipped to the percentiles 0.5 and
    99.5, then `zscore`), `minmax` (0 to 1), `unit` (divided by 255, for pictures). A list has one for each channel."""
    orientation: Literal["RAS"] | None = None
    """Axes of the working grid. `RAS`: to the right, anterior and superior, as near as whole axes come; volumes with
    an affine only. Null: as stored, and then volumes of several orientations are refused."""
    spacing: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    """Voxel edges of the working grid in mm, per working axis, as near as whole voxels come; null keeps the source's
    voxels. Cases of unknown spacing are refused."""
    resize: tuple[Annotated[int, Field(ge=1)], ...] | None = None
    """Working grid of all cases, voxels per working axis; null keeps the source's grid, or what `spacing` makes."""

    @model_validator(mode="after")
    def _one_grid(self) -> Preprocess:
        if self.spacing is not None and self.resize is not None:
            raise ValueError("preprocess.spacing and preprocess.resize both set the working grid; set one to null")
        return self

    def grid(self, source: Source) -> Grid:
        """The working grid of a case: source -> orientation -> `spacing` or `resize`.

        The spacing is the one that whole voxels give, not the one asked for. Raises `BadInput` naming the case for
        knobs with another number of axes, unknown spacing, and what has no orientation.
        """
        orientation = None if self.orientation is None else _to_ras(source)
        axes = _working_axes(orientation, len(source.shape))
        before = tuple(source.shape[axis] for axis in axes)
        edges = None if source.spacing_mm is None else tuple(source.spacing_mm[axis] for axis in axes)
        shape = self._shape(source, before, edges)
        spacing = edges and tuple(edge * old / new for edge, old, new in zip(edges, before, shape, strict=True))
        return Grid(shape, spacing, orientation)

    def _shape(self, source: Source, before: tuple[int, ...], edges: tuple[float, ...] | None) -> tuple[int, ...]:
        for name in ("spacing", "resize"):
            asked = getattr(self, name)
            if asked is not None and len(asked) != len(before):
                raise BadInput(
                    f"preprocess.{name}: expected {len(before)} axes as case '{source.case_id}' has, found "
                    f"{list(asked)}; correct it"
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
        return tuple(
            max(1, round(length * edge / asked))
            for length, edge, asked in zip(before, edges, self.spacing, strict=True)
        )

    def image(self, image: np.ndarray, case: Case) -> np.ndarray:
        """Image f32 `[channel, *working]`: on the working grid linearly with anti-aliasing, then normalised by channel.

        A constant channel becomes 0. Raises `BadInput` for a list of another length than there are channels.
        """
        hows = (self.normalise,) * len(image) if isinstance(self.normalise, str) else self.normalise
        if len(hows) != len(image):
            raise BadInput(
                f"preprocess.normalise: expected {len(image)} entries, one for each channel, found {len(hows)}"
            )
        turned = (_turned(channel, case.orientation) for channel in image)
        return np.stack(
            [
                _normalised(_resized(channel, case.shape), how, case.case_id)
                for channel, how in zip(turned, hows, strict=True)
            ]
        )


def to_working(label: np.ndarray, case: Case) -> np.ndarray:
    """Label u8 `[*working]` from `[*source]`: the value whose indicator is largest after the resampling of images.

    255 competes as a class of its own; ties go to the lower value. The same array if the grids are equal. Raises
    `BadInput` for a label on another grid.
    """
    _expect(label.shape, case.original_shape, case, "source's grid")
    label = _turned(label, case.orientation)
    if label.shape == case.shape:
        return label
    values = np.unique(label)
    indicators = [_resized((label == value).astype(np.float32), case.shape) for value in values[:-1]]
    last = 1 - sum(indicators, np.zeros(case.shape, np.float32))
    return values[np.argmax([*indicators, last], axis=0)]


def to_source(probability: np.ndarray, case: Case) -> np.ndarray:
    """Probability f32 `[class, *source]` from `[class, *working]`, linearly between voxel centres.

    The same array if the grids are equal. Classes that sum to 1 still do. Raises `BadInput` for another grid.
    """
    _expect(probability.shape[1:], case.shape, case, "working grid")
    before = tuple(case.original_shape[axis] for axis in _working_axes(case.orientation, len(case.shape)))
    if case.shape != before:
        import torch
        from torch.nn.functional import interpolate

        mode = {2: "bilinear", 3: "trilinear"}[len(before)]
        working = torch.from_numpy(np.ascontiguousarray(probability, dtype=np.float32))
        probability = interpolate(working[None], size=before, mode=mode, align_corners=False)[0].numpy()
    if case.orientation is None:
        return probability
    back = np.transpose(probability, [0, *(abs(axis) for axis in case.orientation)])
    return np.ascontiguousarray(back[(slice(None), *_steps(case.orientation))])


def one_orientation(sources: list[Source]) -> None:
    """Refuse volumes whose axes mean different things: flips, sided classes and resizing act on axes."""
    from nibabel import aff2axcodes

    first: dict[str, Source] = {}
    for source in sources:
        if len(source.shape) == 3:
            affine = None if source.affine is None else np.asarray(source.affine).reshape(4, 4)
            first.setdefault("unknown" if affine is None else "".join(map(str, aff2axcodes(affine))), source)
    if len(first) > 1:
        (one, a), (two, b) = list(first.items())[:2]
        raise BadInput(
            f"{b.image}: expected volumes of one orientation, found {one} (case '{a.case_id}') and {two} (case "
            f"'{b.case_id}'); set `preprocess.orientation: RAS`, or bring all files to one orientation"
        )


def _to_ras(source: Source) -> tuple[int, ...] | None:
    """Orientation of a volume as in `schema.CASES`; None if its axes are right, anterior and superior already."""
    if len(source.shape) != 3 or source.affine is None:
        raise BadInput(
            f"{source.image}: case '{source.case_id}': expected a volume with an affine for preprocess.orientation, "
            f"found {len(source.shape)} axes and {'no' if source.affine is None else 'an'} affine; set it to null"
        )
    from nibabel import io_orientation

    found = io_orientation(np.asarray(source.affine, np.float64).reshape(4, 4))
    if not np.isfinite(found).all():
        raise BadInput(
            f"{source.image}: case '{source.case_id}': expected an affine with three directions, found "
            f"{list(source.affine)}; correct the header"
        )
    orientation = tuple(int((axis + 1) * sign) for axis, sign in found)
    return None if orientation == (1, 2, 3) else orientation


def _working_axes(orientation: tuple[int, ...] | None, axes: int) -> list[int]:
    """The source axis behind each working axis."""
    return list(range(axes)) if orientation is None else np.argsort(np.abs(orientation)).tolist()


def _steps(orientation: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(None, None, -1 if axis < 0 else 1) for axis in orientation)


def _turned(values: np.ndarray, orientation: tuple[int, ...] | None) -> np.ndarray:
    """Values `[*source]` along the working axes; the same array if these are the source's."""
    if orientation is None:
        return values
    return np.ascontiguousarray(values[_steps(orientation)].transpose(_working_axes(orientation, values.ndim)))


def _expect(found: tuple[int, ...], expected: tuple[int, ...], case: Case, grid: str) -> None:
    if found != expected:
        raise BadInput(
            f"case '{case.case_id}': expected {expected} voxels, the {grid}, found {found}; resample it to that grid"
        )


def _resized(channel: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if channel.shape == shape:
        return channel
    from skimage.transform import resize

    return resize(channel, shape, order=1, mode="edge", anti_aliasing=True, preserve_range=True).astype(np.float32)


def _normalised(channel: np.ndarray, how: Normalise, case_id: str) -> np.ndarray:
    values = channel.astype(np.float64)
    if how == "unit":
        if values.min() < 0 or values.max() > _UNIT:
            raise BadInput(
                f"case '{case_id}': preprocess.normalise 'unit' expected intensities from 0 to 255, found "
                f"{values.min():g} to {values.max():g}; use another normalisation"
            )
        return (values / _UNIT).astype(np.float32)
    if how == "percentile":
        values = values.clip(*np.percentile(values, _CLIP))
    low, high = values.min(), values.max()
    if low == high:
        return np.zeros(channel.shape, np.float32)
    if how == "minmax":
        return ((values - low) / (high - low)).astype(np.float32)
    return ((values - values.mean()) / values.std()).astype(np.float32)
