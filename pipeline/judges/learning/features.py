"""What a proposal looks like beside its siblings: numbers that a learned judge weighs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from pipeline.judges.judge import Evidence
from pipeline.judges.kinds.agreement import Agreement
from pipeline.judges.kinds.entropy import Entropy
from pipeline.judges.kinds.expected_dice import ExpectedDice
from pipeline.judges.kinds.likelihood import Likelihood
from pipeline.measures.overlap import dice_to
from pipeline.store.schema import UNKNOWN

_BAND = 3.0  # width of the bands on both sides of a border, in edges of the finest axis
_SMOOTHING = 1.0  # standard deviation before the gradient is taken, in the same


def features(evidence: Evidence) -> dict[str, np.ndarray]:
    """Finite f64 `[proposal]` by name, for at least two proposals; means over the foreground classes.

    - `agreement`, `balanced_agreement`, `expected_dice`, `likelihood`, `boundary_entropy`: scores of those judges.
    - `dice_to_first`: Dice with slot 0.
    - `edge`: mean gradient magnitude of the image on the border of a class, over its mean in the whole image.
    - `contrast`: |mean intensity within a band inside the border less that outside|, over the image's standard
      deviation; root mean square over the channels.
    - `components`: log(1 + n), pieces that touch by face, edge or corner.
    - `surface`: log(1 + s), with s the border in faces of a cube (edges of a square) of a voxel's volume.
    - `volume`: log(1 + v) in voxels.
    - `odd_volume`: |that less its median over the proposals|.

    Borders are voxel faces between a class and what is known not to be it, by area; the image's edge and voxels that
    are 255 are no border. `edge` and `contrast` of a class without a border (empty, full) are the mean over the
    proposals that have one, so that they neither speak for nor against it, or 0 where none has; likewise
    `boundary_entropy`. A constant image has 0 for both.
    """
    masks, classes = evidence.masks, evidence.classes
    edges = np.array(evidence.case.spacing_mm or (1.0,) * len(evidence.case.shape))
    image = Image.of(evidence.image, edges)
    looks = np.stack([np.stack([*_looks(mask, classes, image)]) for mask in masks])  # [proposal, class, look]
    volume = looks[:, :, Look._fields.index("volume")]
    found = {
        "agreement": Agreement(kind="agreement").score(evidence),
        "balanced_agreement": Agreement(kind="agreement", balanced=True).score(evidence),
        "expected_dice": ExpectedDice(kind="expected_dice").score(evidence),
        "likelihood": Likelihood(kind="likelihood").score(evidence),
        "boundary_entropy": _known(Entropy(kind="entropy").score(evidence)),
        "dice_to_first": dice_to(masks[0], masks, classes),
        "odd_volume": np.abs(volume - np.median(volume, axis=0)).mean(1),
    }
    return found | dict(zip(Look._fields, np.moveaxis(_known(looks).mean(1), 1, 0), strict=True))


class Look(NamedTuple):
    """Features of one class of one proposal."""

    edge: float
    contrast: float
    components: float
    surface: float
    volume: float


class Image(NamedTuple):
    """An image as the features need it."""

    channels: np.ndarray  # f64 [channel, *space], centred, each with standard deviation 1, or constantly 0
    gradient: np.ndarray  # f64 [*space], magnitude over its mean
    edges: np.ndarray  # f64 [axis], of a voxel

    @classmethod
    def of(cls, image: np.ndarray, edges: np.ndarray) -> Image:
        """From f32 `[channel, *space]` and voxel edges; of any unit, the features have none."""
        from scipy.ndimage import gaussian_filter

        space = tuple(range(1, image.ndim))
        centred = image.astype(np.float64) - image.mean(space, np.float64, keepdims=True)
        spread = centred.std(space, keepdims=True)
        # What float32 makes of a constant is no contrast.
        flat = spread <= 1e-6 * np.abs(image).max(space, keepdims=True, initial=0)
        channels = np.where(flat, 0, centred) / np.where(flat, 1, spread)
        sigma = _SMOOTHING * edges.min() / edges
        squares = np.zeros(image.shape[1:])
        for channel in channels:
            for axis, edge in enumerate(edges):
                order = [int(other == axis) for other in range(len(edges))]
                squares += (gaussian_filter(channel, sigma, order) / edge) ** 2
        gradient = np.sqrt(squares)
        return cls(channels, gradient / (gradient.mean() or 1.0), edges)


def _looks(mask: np.ndarray, classes: int, image: Image) -> Iterator[Look]:
    """Of each foreground class of a label map u8 `[*space]`; NaN for what has no border."""
    from scipy.ndimage import find_objects
    from scipy.ndimage import label as pieces

    # Along axes of thick slices the next slice may be too far to be in the band.
    reach = (_BAND * image.edges.min() / image.edges + 1e-6).astype(int).tolist()
    boxes = find_objects(np.where(mask < classes, mask, 0), max_label=classes - 1)
    for label, box in enumerate(boxes, start=1):
        if box is None:
            yield Look(np.nan, np.nan, 0.0, 0.0, 0.0)
            continue
        around = tuple(
            slice(max(0, part.start - max(1, r)), part.stop + max(1, r)) for part, r in zip(box, reach, strict=True)
        )
        inside = mask[around] == label
        outside = ~inside & (mask[around] != UNKNOWN)
        edge, surface = _border(inside, outside, image.gradient[around], image.edges)
        yield Look(
            edge,
            _contrast(inside, outside, image.channels[(slice(None), *around)], reach),
            np.log1p(pieces(inside, np.ones((3,) * inside.ndim))[1]),
            np.log1p(surface),
            np.log1p(np.count_nonzero(inside)),
        )


def _border(inside: np.ndarray, outside: np.ndarray, gradient: np.ndarray, edges: np.ndarray) -> tuple[float, float]:
    """Mean of `gradient` over the faces between the two by area, NaN without any, and their area over that of a cube
    (edge length of a square) of a voxel's volume."""
    area, total = 0.0, 0.0
    for axis, edge in enumerate(edges):
        within, beyond, values = (np.moveaxis(array, axis, 0) for array in (inside, outside, gradient))
        faces = (within[:-1] & beyond[1:]) | (beyond[:-1] & within[1:])
        one = edges.prod() / edge / edges.prod() ** (1 - 1 / len(edges))
        area += one * np.count_nonzero(faces)
        total += one * (values[:-1][faces].sum() + values[1:][faces].sum()) / 2
    return (total / area if area else np.nan), area


def _contrast(inside: np.ndarray, outside: np.ndarray, channels: np.ndarray, reach: list[int]) -> float:
    """Root mean square over channels `[channel, *space]` of the difference of means in the two bands; NaN without."""
    inner, outer = inside & _near(outside, reach), outside & _near(inside, reach)
    if not inner.any():  # then neither is there an outer one
        return np.nan
    return float(np.sqrt(np.mean((channels[:, inner].mean(1) - channels[:, outer].mean(1)) ** 2)))


def _near(mask: np.ndarray, reach: list[int]) -> np.ndarray:
    """Voxels at most this far from the mask along every axis: a box, since per axis it costs next to nothing."""
    for axis, most in enumerate(reach):
        grown = mask.copy()
        here, there = np.moveaxis(grown, axis, 0), np.moveaxis(mask, axis, 0)
        for step in range(1, most + 1):
            here[step:] |= there[:-step]
            here[:-step] |= there[step:]
        mask = grown
    return mask


def _known(values: np.ndarray) -> np.ndarray:
    """f64 `[proposal, ...]` with the mean of the proposals that have a value in place of NaN; 0 where none has."""
    missing = np.isnan(values)
    mean = np.where(missing, 0, values).sum(0) / np.maximum((~missing).sum(0), 1)
    return np.where(missing, mean, values)
