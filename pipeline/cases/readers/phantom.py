"""Reader of synthetic cases with exact labels: a deformed organ with a rim, among look-alikes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from pipeline.cases.readers.reader import Source
from pipeline.knobs import NOTHING, Knobs
from pipeline.seeding import numpy_generator

_CLASSES = ("background", "organ", "core", "lobe")
_MOST_CASES_PER_PATIENT = 3
_DISTRACTORS = 2
"""Most look-alikes in a case; the number is drawn from 1 to this."""
_INVERTED = 0.04
"""Share of patients whose organ is darker than its surroundings: the rare case on which a base fails."""
_FAINT = 0.08
"""Share of patients with about half of the contrast: the hard case."""

Edge = Annotated[int, Field(ge=16)]
Share = Annotated[float, Field(ge=0, le=1)]
Amount = Annotated[float, Field(ge=0)]


class Phantom(Knobs):
    """Synthetic cases with exact labels. Cases are drawn from the seed whenever they are read; nothing is stored.

    The organ (class 1) is a deformed ellipse with a thin rim. The core (class 2) lies in the organ, the lobe (class 3)
    beside the organ. Look-alikes have about the organ's size and intensity but no rim, or a rim and no interior. Cases
    of a patient share contrast, texture and organ size. The first n cases are the same for every value of `cases`.
    """

    kind: Literal["phantom"] = "phantom"
    path: Path = NOTHING
    """`raw/none`, since phantoms read no file."""
    case_table: None = None
    """Always null: phantoms have no table, and their groups are part of the data set."""
    cases: Annotated[int, Field(ge=1)] = 160
    """Number of cases."""
    size: tuple[Edge, Edge] | tuple[Edge, Edge, Edge] = (64, 64)
    """Voxels per axis, at least 16. Two axes for images, three for volumes."""
    classes: Literal[2, 3, 4] = 2
    """Number of classes: 2 for background and organ, 3 with the core, 4 with core and lobe."""
    spacing_mm: Annotated[float, Field(gt=0)] = 0.8
    """Voxel edge in mm, equal along all axes."""
    noise: Amount = 0.12
    """Standard deviation of the noise. The organ's contrast is about 1."""
    bias: Amount = 0.12
    """Standard deviation of the smooth intensity bias, both of its factor and of its offset."""
    empty: Share = 0.08
    """Share of cases without an organ, whose labels are background only."""
    seed: int = 0
    """Seed of the data set. Another seed gives another data set."""

    def class_names(self) -> list[str]:
        """Names of the classes, background first."""
        return list(_CLASSES[: self.classes])

    def channel_names(self) -> list[str]:
        """Name of the only channel."""
        return ["intensity"]

    def scan(self) -> list[Source]:
        """All cases, one to three per patient. Cases have no files, so `image` and `label` are empty."""
        return [
            Source(
                case_id=f"phantom_{case:04d}",
                shape=self.size,
                image="",
                label="",
                spacing_mm=(self.spacing_mm,) * len(self.size),
                group=f"patient_{patient:04d}",
            )
            for case, patient in enumerate(self._patients())
        ]

    def _patients(self) -> list[int]:
        patients: list[int] = []
        patient = 0
        while len(patients) < self.cases:
            n_cases = int(numpy_generator(self.seed, "patient", patient).integers(1, _MOST_CASES_PER_PATIENT + 1))
            patients += [patient] * n_cases
            patient += 1
        return patients[: self.cases]

    def read(self, source: Source) -> tuple[np.ndarray, np.ndarray | None]:
        """Image f32 `[1, *space]` and label u8 `[*space]`.

        Contrast, texture, radius and softness follow from (seed, patient), all else from (seed, case).
        """
        patient = numpy_generator(self.seed, "appearance", source.group)
        case = numpy_generator(self.seed, "case", source.case_id)
        grid = _grid(self.size)
        contrast = patient.uniform(0.8, 1.2) * (0.55 if patient.random() < _FAINT else 1.0)
        contrast *= -1 if patient.random() < _INVERTED else 1
        radius = patient.uniform(0.36, 0.5)
        texture = _waves(patient, grid, waves=6, longest=1.2, shortest=0.35)
        softness = patient.uniform(0.04, 0.1)

        label = np.zeros(self.size, np.uint8)
        image = 0.12 * texture + 0.06 * _waves(case, grid, waves=6, longest=0.8, shortest=0.2)
        taken: list[np.ndarray] = []
        if case.random() >= self.empty:
            centre = _free_place(case, taken, len(self.size), radius)
            organ = _blob(case, grid, centre, radius * case.uniform(0.85, 1.15))
            image += contrast * (_inside(organ, softness) + _rim(organ))
            label[organ < 0] = 1
            if self.classes > 2:
                core = _blob(case, grid, centre + radius * case.uniform(-0.15, 0.15, len(centre)), 0.55 * radius)
                image += 1.3 * contrast * _inside(np.maximum(core, organ), softness)
                label[(core < 0) & (organ < 0)] = 2
            if self.classes > 3:
                aside = case.normal(size=len(centre))
                lobe = _blob(case, grid, centre + radius * aside / np.linalg.norm(aside), 0.6 * radius)
                image += 0.5 * contrast * _inside(np.maximum(lobe, -organ), softness)
                label[(lobe < 0) & (organ >= 0)] = 3
        for _ in range(int(case.integers(1, _DISTRACTORS + 1))):
            centre = _free_place(case, taken, len(self.size), radius)
            other = _blob(case, grid, centre, radius * case.uniform(0.6, 1.15))
            look = case.random()
            # Look-alikes never paint over a labelled voxel.
            if look < 0.65:
                image += contrast * case.uniform(0.7, 1.1) * _inside(other, softness) * (label == 0)
            else:
                image += contrast * _rim(other) * (label == 0)
        image *= 1 + self.bias * _waves(case, grid, waves=3, longest=3.0, shortest=1.5)
        image += self.bias * _waves(case, grid, waves=3, longest=3.0, shortest=1.5)
        image += case.normal(0, self.noise, self.size)
        return image[None].astype(np.float32), label


def _grid(size: tuple[int, ...]) -> list[np.ndarray]:
    """Coordinates of the voxel centres, -1 to 1 along every axis, as an open grid: an array per axis."""
    return list(np.meshgrid(*((2 * np.arange(n) + 1) / n - 1 for n in size), indexing="ij", sparse=True))


def _waves(
    draw: np.random.Generator, grid: list[np.ndarray], waves: int, longest: float, shortest: float
) -> np.ndarray:
    """Smooth random field of about unit variance: a sum of `waves` cosines.

    The wavelengths lie between `shortest` and `longest`, in units of half the image.
    """
    directions = draw.normal(size=(waves, len(grid)))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    numbers = 2 * np.pi / draw.uniform(shortest, longest, waves)
    phases = draw.uniform(0, 2 * np.pi, waves)
    field = np.zeros(np.broadcast_shapes(*(axis.shape for axis in grid)))
    for direction, number, phase in zip(directions, numbers, phases, strict=True):
        field += np.cos(sum(number * d * axis for d, axis in zip(direction, grid, strict=True)) + phase)
    return field * np.sqrt(2 / waves)


def _blob(draw: np.random.Generator, grid: list[np.ndarray], centre: np.ndarray, radius: float) -> np.ndarray:
    """Approximate signed distance from the border of a deformed ellipse, in units of its radius, below 0 inside."""
    # A random orientation: the orthogonal factor of a matrix of normal numbers.
    turn, _ = np.linalg.qr(draw.normal(size=(len(grid), len(grid))))
    stretch = draw.uniform(0.75, 1.3, len(grid))
    offsets = [axis - middle for axis, middle in zip(grid, centre, strict=True)]
    square = sum(
        (sum(t * offset for t, offset in zip(row, offsets, strict=True)) / (radius * s)) ** 2
        for row, s in zip(turn, stretch, strict=True)
    )
    return np.sqrt(square) - 1 + 0.09 * _waves(draw, grid, waves=4, longest=2.2 * radius, shortest=1.0 * radius)


def _inside(distance: np.ndarray, softness: float) -> np.ndarray:
    """1 inside and 0 outside, with a soft border of width `softness` like a partial-volume effect."""
    return 1 / (1 + np.exp(np.clip(distance / softness, -30, 30)))


def _rim(distance: np.ndarray) -> np.ndarray:
    """A thin bright line just inside the border, which tells the organ from look-alikes."""
    return 1.1 * np.exp(-(((distance + 0.14) / 0.14) ** 2))


def _free_place(draw: np.random.Generator, taken: list[np.ndarray], axes: int, radius: float) -> np.ndarray:
    """Centre that is more than 2.1 radii from the centres in `taken`, or else the farthest of twelve draws.

    The centre is added to `taken`.
    """
    places = draw.uniform(-0.62, 0.62, (12, axes))

    def clear(place: np.ndarray) -> float:
        return min((float(np.linalg.norm(place - other)) for other in taken), default=np.inf)

    best = next((place for place in places if clear(place) > 2.1 * radius), max(places, key=clear))
    taken.append(best)
    return best
