"""Realistic corruptions of a label map: errors that a segmenter could make."""

from __future__ import annotations

from math import pi

import numpy as np

from pipeline.proposals.samplers.morphology import moved
from pipeline.store.schema import UNKNOWN

MOST = 3
"""Most corruptions of one mask, applied one after the other."""
EMPTY = 0.02
"""Probability that a mask is emptied in place of its corruptions, whatever the mask holds."""


def corrupted(mask: np.ndarray, classes: int, generator: np.random.Generator) -> np.ndarray:
    """Label map u8 `[*space]` with one to three corruptions drawn at random.

    A corruption erodes, dilates or elastically shifts the outline, moves the whole foreground, removes a component or a
    part, adds a false component, or exchanges classes in a part (with more than one foreground class). With probability
    `EMPTY` no foreground is left. Sizes are drawn relative to the size of the foreground, from hardly visible to gross.
    255 stays 255, and no other voxel becomes 255. A mask without foreground gets a false component or stays empty. Some
    draws change nothing.
    """
    unknown = mask == UNKNOWN
    known = np.where(unknown, 0, mask).astype(np.uint8)
    if generator.random() < EMPTY:
        known = np.zeros_like(known)
    else:
        kinds = [outline, outline, elastic, translated, part_missing, false_component]
        kinds += [swapped] if classes > 2 else []
        for _ in range(int(generator.integers(1, MOST + 1))):
            kind = kinds[generator.integers(len(kinds))] if known.any() else false_component
            known = kind(known, classes, generator)
    known[unknown] = UNKNOWN
    return known


def radius_of(known: np.ndarray) -> float:
    """Radius in voxels, at least 1, of the disc or ball with as many voxels as the foreground.

    An empty mask has an eighth of the shortest edge of the image.
    """
    voxels = np.count_nonzero(known)
    if not voxels:
        return max(1.0, min(known.shape) / 8)
    ball = {1: 2.0, 2: pi, 3: 4 * pi / 3}[known.ndim]
    return max(1.0, (voxels / ball) ** (1 / known.ndim))


def _severity(draw: np.random.Generator) -> float:
    """Relative size of an error, 0.001 to 1.001, small sizes more often: most errors of a segmenter are small."""
    return 1 - draw.random() ** 0.5 + 1e-3


def outline(known: np.ndarray, classes: int, draw: np.random.Generator) -> np.ndarray:
    """Foreground eroded or dilated as a whole; borders between foreground classes stay."""
    kind = ("erode", "dilate")[draw.integers(2)]
    # Erosion by half the radius of a disc leaves a quarter of its area, dilation by half more than doubles the area.
    radius = max(1.0, 0.5 * radius_of(known) * _severity(draw))
    # Distances are expensive: a box around the foreground, with room to grow and background to erode from, is enough.
    around = _around(known, int(np.ceil(radius)) + 1)
    out = known.copy()
    out[around] = moved(known[around], kind, radius)
    return out


def _around(known: np.ndarray, margin: int) -> tuple[slice, ...]:
    """Box around the foreground (at least one voxel), widened by a margin in voxels within the image."""
    from scipy.ndimage import find_objects

    (box,) = find_objects((known != 0).astype(np.uint8))
    return tuple(slice(max(0, part.start - margin), part.stop + margin) for part in box)


def translated(known: np.ndarray, classes: int, draw: np.random.Generator) -> np.ndarray:
    """All classes moved together by up to one radius; voxels that leave the image are lost."""
    direction = draw.standard_normal(known.ndim)
    direction *= radius_of(known) * _severity(draw) / np.linalg.norm(direction)
    out = np.zeros_like(known)
    source, target = [], []
    for length, step in zip(known.shape, np.round(direction).astype(int).tolist(), strict=True):
        step = max(-length, min(length, step))
        source.append(slice(max(0, -step), length - max(0, step)))
        target.append(slice(max(0, step), length + min(0, step)))
    out[tuple(target)] = known[tuple(source)]
    return out


def elastic(known: np.ndarray, classes: int, draw: np.random.Generator) -> np.ndarray:
    """Every voxel takes the class of a nearby place; the displacement varies smoothly, over about one radius."""
    from scipy.ndimage import map_coordinates, zoom

    radius = radius_of(known)
    amplitude = 0.5 * radius * _severity(draw)
    # A margin of three standard deviations: hardly any displacement is larger.
    around = _around(known, int(np.ceil(3 * amplitude)))
    shape = known[around].shape
    knots = tuple(max(2, round(length / radius) + 1) for length in shape)
    places = []
    for axis, length in enumerate(shape):
        factors = [have / want for have, want in zip(shape, knots, strict=True)]
        field = zoom(draw.standard_normal(knots), factors, order=1, mode="nearest", grid_mode=True)
        edges = np.arange(length).reshape([-1 if other == axis else 1 for other in range(known.ndim)])
        places.append(edges + amplitude * field)
    out = known.copy()
    out[around] = map_coordinates(known[around], places, order=0, mode="nearest")
    return out


def part_missing(known: np.ndarray, classes: int, draw: np.random.Generator) -> np.ndarray:
    """Foreground without one component, or without an ellipse or ellipsoid around one of its voxels.

    A component is removed in three of four draws if there are several components.
    """
    from scipy.ndimage import label

    components, count = label(known != 0, np.ones((3,) * known.ndim))
    if count > 1 and draw.random() < 0.75:
        return np.where(components == draw.integers(1, count + 1), 0, known).astype(np.uint8)
    radius = radius_of(known) * (0.3 + _severity(draw))
    return np.where(_blob(known.shape, _voxel_of(known, draw), radius, draw), 0, known).astype(np.uint8)


def false_component(known: np.ndarray, classes: int, draw: np.random.Generator) -> np.ndarray:
    """Mask with an ellipse or ellipsoid of one foreground class on the background, anywhere in the image."""
    centre = np.array([draw.integers(length) for length in known.shape])
    blob = _blob(known.shape, centre, radius_of(known) * (0.15 + 0.6 * _severity(draw)), draw)
    return np.where(blob & (known == 0), draw.integers(1, classes), known).astype(np.uint8)


def swapped(known: np.ndarray, classes: int, draw: np.random.Generator) -> np.ndarray:
    """One foreground class becomes another within an ellipse or ellipsoid around one of its voxels.

    In half of the draws the other class also becomes the first.
    """
    centre = _voxel_of(known, draw)
    first = int(known[tuple(centre)])
    second = int(draw.choice([label for label in range(1, classes) if label != first]))
    within = _blob(known.shape, centre, radius_of(known) * (0.3 + 1.5 * _severity(draw)), draw)
    out = known.copy()
    out[within & (known == first)] = second
    if draw.random() < 0.5:
        out[within & (known == second)] = first
    return out


def _voxel_of(known: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Place of a random foreground voxel, i64 `[axis]`."""
    inside = np.flatnonzero(known)
    return np.array(np.unravel_index(inside[draw.integers(len(inside))], known.shape))


def _blob(shape: tuple[int, ...], centre: np.ndarray, radius: float, draw: np.random.Generator) -> np.ndarray:
    """Ellipse or ellipsoid along the axes around a centre voxel, bool `[*shape]`, with at least this voxel inside."""
    radii = np.maximum(0.5, radius * draw.uniform(0.7, 1.4, len(shape)))
    squares = np.zeros(())
    for axis, length in enumerate(shape):
        line = ((np.arange(length) - centre[axis]) / radii[axis]) ** 2
        squares = squares + line.reshape([-1 if other == axis else 1 for other in range(len(shape))])
    return squares <= 1
