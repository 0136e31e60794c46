"""Features of a proposal beside its siblings: the numbers that the judge `pairwise` weighs."""

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

_BAND = 3.0  # width of the band on each side of a border, in voxel edges of the finest axis
_SMOOTHING = 1.0  # standard deviation of the smoothing before the gradient, in voxel edges of the finest axis


def features(evidence: Evidence) -> dict[str, np.ndarray]:
    """Features by name, finite f64 `[proposal]`, mean over the foreground classes; for at least two proposals.

    - `agreement`, `balanced_agreement`, `expected_dice`, `likelihood`, `boundary_entropy`: scores of these judges.
    - `dice_to_first`: Dice with slot 0.
    - `edge`: mean gradient magnitude of the image on the border of a class, over the mean in the whole image.
    - `contrast`: |mean intensity in a band inside the border less mean intensity in a band outside|, over the image's
      standard deviation; root mean square over the channels.
    - `components`: log(1 + n) of n components, whose voxels touch by face, edge or corner.
    - `surface`: log(1 + s) of the border area s, in faces of a cube (edges of a square) of a voxel's volume.
    - `volume`: log(1 + v) of v voxels.
    - `odd_volume`: |`volume` less the median of `volume` over the proposals|.

    Borders are voxel faces between a class and known voxels outside the class, weighted by area. The image edge and
    voxels that are 255 form no border. A class without a border (empty or full) has the mean `edge` and `contrast` of
    the proposals with a border, or 0 if no proposal has one, so that both features speak neither for nor against the
    proposal. `boundary_entropy` is filled in the same way. In a constant image `edge` and `contrast` are 0.
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
    """An image, normalised for the features."""

    channels: np.ndarray  # f64 [channel, *space], each with mean 0 and standard deviation 1, or all 0
    gradient: np.ndarray  # f64 [*space], gradient magnitude over its mean
    edges: np.ndarray  # f64 [axis], of a voxel

    @classmethod
    def of(cls, image: np.ndarray, edges: np.ndarray) -> Image:
        """Normalise f32 `[channel, *space]`; voxel edges f64 `[axis]` may have any unit, since features have none."""
        from scipy.ndimage import gaussian_filter

        space = tuple(range(1, image.ndim))
        centred = image.astype(np.float64) - image.mean(space, np.float64, keepdims=True)
        spread = centred.std(space, keepdims=True)
        # The rounding of a constant channel in float32 is no contrast.
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
    """Features per foreground class of a label map u8 `[*space]`; `edge` and `contrast` are NaN without a border."""
    from scipy.ndimage import find_objects
    from scipy.ndimage import label as pieces

    # With thick slices the next slice may lie outside the band: the reach along this axis is then 0.
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
    """Mean of `gradient` over the border faces, weighted by area, and the area of the border.

    The area is in faces of a cube (edges of a square) of a voxel's volume. The mean is NaN without a border.
    """
    area, total = 0.0, 0.0
    for axis, edge in enumerate(edges):
        within, beyond, values = (np.moveaxis(array, axis, 0) for array in (inside, outside, gradient))
        faces = (within[:-1] & beyond[1:]) | (beyond[:-1] & within[1:])
        # Area of one face, in faces of a cube of the same volume.
        one = edges.prod() / edge / edges.prod() ** (1 - 1 / len(edges))
        area += one * np.count_nonzero(faces)
        total += one * (values[:-1][faces].sum() + values[1:][faces].sum()) / 2
    return (total / area if area else np.nan), area


def _contrast(inside: np.ndarray, outside: np.ndarray, channels: np.ndarray, reach: list[int]) -> float:
    """Difference of the means in the two bands, root mean square over the channels `[channel, *space]`.

    NaN without bands.
    """
    inner, outer = inside & _near(outside, reach), outside & _near(inside, reach)
    if not inner.any():  # bands come in pairs: without an inner band there is no outer band
        return np.nan
    return float(np.sqrt(np.mean((channels[:, inner].mean(1) - channels[:, outer].mean(1)) ** 2)))


def _near(mask: np.ndarray, reach: list[int]) -> np.ndarray:
    """Voxels at most `reach` away from the mask along every axis.

    The neighbourhood is a box, since growth axis by axis costs next to nothing.
    """
    for axis, most in enumerate(reach):
        grown = mask.copy()
        here, there = np.moveaxis(grown, axis, 0), np.moveaxis(mask, axis, 0)
        for step in range(1, most + 1):
            here[step:] |= there[:-step]
            here[:-step] |= there[step:]
        mask = grown
    return mask


def _known(values: np.ndarray) -> np.ndarray:
    """Values f64 `[proposal, ...]` with NaN replaced by the mean over the other proposals, or by 0 if all are NaN."""
    missing = np.isnan(values)
    mean = np.where(missing, 0, values).sum(0) / np.maximum((~missing).sum(0), 1)
    return np.where(missing, mean, values)
