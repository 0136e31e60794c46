"""Plausibility of a proposal's shape against the labelled masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from pipeline.judges.judge import Evidence, JudgeInputs, JudgeKnobs
from pipeline.store.cases import Case
from pipeline.store.schema import UNKNOWN


class Shape(JudgeKnobs):
    """Log-likelihood of a proposal's shape under robust statistics of the labelled masks, up to a constant.

    Per foreground class, averaged over the classes that at least `fewest` labelled masks have; abstains where there is
    none, and on proposals without a known voxel. With p the share of labelled masks without the class (counts plus one
    half, so never 0 or 1), a class that is empty has log p, and one that is there log(1 - p) + form, where form is 0
    for the median of the labelled masks: so an empty mask is as plausible as it is frequent. Form is the mean over
    features of -(tail + 1) / 2 log(1 + z^2 / tail), Student's t, which no single odd feature rules; the mean, since
    features of one mask are no independent witnesses. z is the distance to the median over 1.4826 times the median
    absolute deviation, at least `floor`.

    Features: logarithms of volume, components, 1 + holes, compactness and elongation; the centre's place per axis; the
    share of the surface that touches each other foreground class. In mm if all cases have a spacing, else in voxels.
    The patient that is judged is left out of the statistics. Blind to the image.

    Cost on one core: 1 ms per proposal and class at 128x128, 4 ms at 48x64x48.
    """

    kind: Literal["shape"]
    fewest: Annotated[int, Field(ge=2)] = 3
    """Labelled masks that must have a class for it to be judged."""
    floor: Annotated[float, Field(gt=0)] = 0.1
    """Least scale of a feature: about a tenth of a volume or count, a tenth of the image's extent, a tenth of the
    surface."""
    tail: Annotated[float, Field(gt=0)] = 4.0
    """Degrees of freedom: the fewer, the less an odd feature costs."""
    position: bool = True
    """Whether the place in the image counts: false for data without a common field of view."""

    def ready(self, given: JudgeInputs) -> ShapeScores:
        cases = given.cases
        physical = all(case.spacing_mm is not None for case in cases.all)
        labelled = [case for case in cases.split("labelled") if case.has_label]
        classes = len(cases.class_names)
        found = [self.features(cases.label(case), _edges(case, physical), classes) for case in labelled]
        empty = np.empty((0, classes - 1, 1))
        return ShapeScores(self, physical, tuple(case.group for case in labelled), np.stack(found) if found else empty)

    def features(self, mask: np.ndarray, edges: np.ndarray, classes: int) -> np.ndarray:
        """f64 `[foreground class, feature]` of a label map with these voxel edges; NaN for a class that is empty."""
        from scipy.ndimage import find_objects

        padded = np.pad(mask, 1, constant_values=UNKNOWN)
        boxes = find_objects(np.where(padded < classes, padded, 0), max_label=classes - 1)
        axes = mask.ndim
        rows = np.full((classes - 1, 5 + (axes if self.position else 0) + classes - 2), np.nan)
        for label, box in enumerate(boxes, start=1):
            if box is not None:
                around = tuple(slice(part.start - 1, part.stop + 1) for part in box)
                form, centre, touched = _measured(padded[around], label, edges)
                corner = np.array([part.start - 1 for part in around])  # of the box in the mask itself
                place = (corner + centre + 0.5) / mask.shape
                others = [touched[other] for other in range(1, classes) if other != label]
                rows[label - 1] = [*form, *(place if self.position else []), *others]
        return rows


@dataclass(frozen=True)
class ShapeScores:
    """Features of the labelled masks, and scores against them."""

    knobs: Shape
    physical: bool
    groups: tuple[str, ...]
    labelled: np.ndarray  # f64 [case, foreground class, feature]

    def score(self, evidence: Evidence) -> np.ndarray:
        masks, classes = evidence.masks, evidence.classes
        edges = _edges(evidence.case, self.physical)
        features = np.stack([self.knobs.features(mask, edges, classes) for mask in masks])
        others = self.labelled[[group != evidence.case.group for group in self.groups]]
        judged = [
            self._log_likelihood(features[:, label], others[:, label])
            for label in range(classes - 1)
            if (~np.isnan(others[:, label, 0])).sum() >= self.knobs.fewest
        ]
        known = (masks != UNKNOWN).reshape(len(masks), -1).any(1)
        return np.where(known, np.mean(judged, axis=0), np.nan) if judged else np.full(len(masks), np.nan)

    def _log_likelihood(self, features: np.ndarray, labelled: np.ndarray) -> np.ndarray:
        """f64 `[proposal]` of one class, from features `[proposal, feature]` and `[labelled case, feature]`."""
        there = labelled[~np.isnan(labelled[:, 0])]
        centre = np.median(there, axis=0)
        scale = np.maximum(1.4826 * np.median(np.abs(there - centre), axis=0), self.knobs.floor)
        empty = (len(labelled) - len(there) + 0.5) / (len(labelled) + 1)
        form = self._form((features - centre) / scale) - np.median(self._form((there - centre) / scale))
        return np.where(np.isnan(features[:, 0]), np.log(empty), np.log1p(-empty) + form)

    def _form(self, z: np.ndarray) -> np.ndarray:
        """Logarithm of Student's t over its peak, mean over the features: f64 `[mask]` from `[mask, feature]`."""
        return -(self.knobs.tail + 1) / 2 * np.log1p(z**2 / self.knobs.tail).mean(1)


def _edges(case: Case, physical: bool) -> np.ndarray:
    """Voxel edges in mm, or 1 each."""
    return np.array(case.spacing_mm if physical and case.spacing_mm else (1.0,) * len(case.shape))


def _measured(around: np.ndarray, label: int, edges: np.ndarray) -> tuple[list[float], np.ndarray, np.ndarray]:
    """Five features of form, the centre in voxels f64 `[axis]`, and the share of the surface f64 `[256]` per neighbour.

    `around` is a label map that holds the class and one voxel more on each side. Components touch by face, edge or
    corner; holes are what else the class encloses. Compactness is 4 pi area / perimeter^2 or 36 pi volume^2 /
    surface^3; the surface is a sum of voxel faces, those at the edge of the image included. Elongation is the longest
    over the shortest principal axis. Own moments instead of scikit-image's `regionprops`, which has no surface of
    volumes and no perimeter for unequal edges, and to which what is one voxel thin has no width.
    """
    from scipy.ndimage import label as components

    axes = around.ndim
    inside = around == label
    pieces = components(inside, np.ones((3,) * axes))[1]
    holes = components(~inside)[1] - 1  # the margin joins all that is outside
    faces = _faces(around, inside, edges)
    volume, surface = inside.sum() * edges.prod(), faces.sum()
    ball = 4 * np.pi if axes == 2 else 36 * np.pi
    compactness = np.log(ball) + (axes - 1) * np.log(volume) - axes * np.log(surface)
    centre, spread = _moments(inside, edges)
    # A voxel's own extent keeps what is one voxel thin from being infinitely long.
    squares = np.linalg.eigvalsh(spread + np.diag(edges**2 / 12))
    elongation = 0.5 * np.log(squares[-1] / squares[0])
    return [np.log(volume), np.log(pieces), np.log1p(holes), compactness, elongation], centre, faces / surface


def _faces(around: np.ndarray, inside: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Surface of what is inside, f64 `[256]`: the area of the voxel faces that it shares with each other value."""
    found = np.zeros(UNKNOWN + 1)
    for axis in range(around.ndim):
        value, within = np.moveaxis(around, axis, 0), np.moveaxis(inside, axis, 0)
        leaving, entering = within[:-1] & ~within[1:], within[1:] & ~within[:-1]
        outer = np.concatenate([value[1:][leaving], value[:-1][entering]])
        found += np.bincount(outer, minlength=UNKNOWN + 1) * edges.prod() / edges[axis]
    return found


def _moments(inside: np.ndarray, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre of what is inside in voxels `[axis]`, and covariance of its voxels' places `[axis, axis]`."""
    axes = range(inside.ndim)
    count = inside.sum()
    places = [np.arange(length) for length in inside.shape]
    # Counts per line and per pair of lines, which need no list of voxels.
    lines = [inside.sum(tuple(other for other in axes if other != axis)) for axis in axes]
    centre = np.array([(line * place).sum() / count for line, place in zip(lines, places, strict=True)])
    spread = np.empty((inside.ndim,) * 2)
    for one in axes:
        spread[one, one] = (lines[one] * (places[one] - centre[one]) ** 2).sum() / count * edges[one] ** 2
        for two in range(one):
            table = inside.sum(tuple(axis for axis in axes if axis not in (one, two)))  # [two, one]
            product = (places[two] - centre[two])[:, None] * (places[one] - centre[one])
            spread[one, two] = spread[two, one] = (table * product).sum() / count * edges[one] * edges[two]
    return centre, spread
