"""Regions of a case on which proposals vote alike, and the mask composed of the regions that are likely right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.measures.overlap import dice
from pipeline.store.schema import UNKNOWN

FEATURES = (
    "share",
    "probability",
    "distance",
    "contrast",
    "surroundings",
    "edge",
    "touch",
    "size",
    "case_size",
    "case_agreement",
    "case_sure",
)
"""Features of a region for a class. For every class after the first foreground class there is one more, `class_C`,
which is 1 for this class."""
_FARTHEST = 4.0  # spreads from the mean at which a feature is cut: labelled cases may not reach further


@dataclass(frozen=True)
class RegionModel:
    """Logistic regression from the features of a region to the share of the region that is of a class."""

    voters: tuple[str, ...]
    """Sampler and setting of the proposals that vote."""
    mean: tuple[float, ...]  # of every feature
    spread: tuple[float, ...]
    weight: tuple[float, ...]  # per spread; 0 for a feature that is constant
    intercept: float
    outside: tuple[float, ...]
    """Voxels of a foreground class outside all regions, as a multiple of the voxels of the class in regions."""

    def share(self, values: np.ndarray) -> np.ndarray:
        """Estimated share of a region that is of the option's class, f64 `[option]`, from f64 `[option, feature]`."""
        from scipy.special import expit

        # einsum in place of BLAS: sums of BLAS may depend on the number of threads.
        return expit(np.einsum("of,f->o", standardised(values, self.mean, self.spread), self.weight) + self.intercept)


def standardised(values: np.ndarray, mean: Sequence[float], spread: Sequence[float]) -> np.ndarray:
    """Distance of features f64 `[option, feature]` from their mean in spreads, at most 4. 0 for a spread of 0."""
    scale = np.array(spread)
    far = (values - np.array(mean)) / np.where(scale > 0, scale, np.inf)
    return np.clip(far, -_FARTHEST, _FARTHEST)


@dataclass(frozen=True)
class Options:
    """Classes that the regions of a case may have. An option is a region and a class with at least one vote in it."""

    region: np.ndarray  # i64 [option]
    label: np.ndarray  # i64 [option], class
    size: np.ndarray  # i64 [option], voxels of the region
    values: np.ndarray  # f64 [option, feature]


@dataclass(frozen=True)
class Regions:
    """Connected parts (by faces) of a case in which every voter has one class.

    Voxels without a vote for the foreground are in no region.
    """

    of_voxel: np.ndarray  # i64 [*space], -1 outside
    size: np.ndarray  # i64 [region]
    votes: np.ndarray  # u8 [voter, region]

    @classmethod
    def of(cls, masks: np.ndarray) -> Regions:
        """Regions of label maps u8 `[voter, *space]`. 255 is a vote for no class."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        flat = masks.reshape(len(masks), -1)
        alike = np.zeros(flat.shape[1], np.int64)
        for mask in flat:
            alike = np.unique(alike * 256 + mask, return_inverse=True)[1]
        inside = np.flatnonzero(((flat > 0) & (flat != UNKNOWN)).any(0))
        some = np.zeros(flat.shape[1], bool)
        some[inside] = True
        first, second = face_pairs(masks.shape[1:])
        joined = (alike[first] == alike[second]) & some[first]
        edges = (np.ones(np.count_nonzero(joined), bool), (first[joined], second[joined]))
        part = connected_components(coo_array(edges, shape=(len(some), len(some))), directed=False)[1]
        _, at, member = np.unique(part[inside], return_index=True, return_inverse=True)
        of_voxel = np.full(len(some), -1, np.int64)
        of_voxel[inside] = member
        return cls(of_voxel.reshape(masks.shape[1:]), np.bincount(member, minlength=len(at)), flat[:, inside[at]])

    def total(self, values: np.ndarray) -> np.ndarray:
        """Sum of values `[*space]` in every region, f64 `[region]`."""
        inside = self.of_voxel >= 0
        return np.bincount(self.of_voxel[inside], values[inside].astype(np.float64), minlength=len(self.size))

    def options(self, probability: np.ndarray, image: np.ndarray, fixed: np.ndarray) -> Options:
        """Options of the case with their features.

        `probability` is the mean probability f32 `[class, *space]`, `image` is f32 `[channel, *space]`, and `fixed` is
        the fixed proposal u8 `[*space]`. Features of a region for a class:

        - `share`: log-odds of the share of voters for the class.
        - `probability`: log-odds of the mean probability.
        - `distance`: mean signed distance to the outline of the fixed proposal, above 0 inside, in radii.
        - `contrast`: distance in intensity to voxels without a vote, minus that to the rest of the fixed proposal.
        - `surroundings`: distance in intensity to the voxels across the border of the region.
        - `edge`: log of the mean step in intensity across the border, as a multiple of that of the whole image.
        - `touch`: share of the border beyond which the fixed proposal has the class.
        - `size`: log of the size as a multiple of the size of the fixed proposal.
        - `case_size`, `case_agreement`, `case_sure`: log of the share of the case that the fixed proposal fills, mean
          share of voters in all regions with a vote, and mean probability in the fixed proposal.

        Intensities are in standard deviations of the channel. A radius is half the side of a cube that is as large as
        the class in the fixed proposal.
        """
        look = _Look.of(self, image)
        parts = [
            self._of_class(label, probability[label], fixed == label, look) for label in range(1, len(probability))
        ]
        extra = len(parts) - 1
        values = [
            np.concatenate([part.values, np.tile(np.eye(extra + 1)[at, 1:], (len(part.region), 1))], 1)
            for at, part in enumerate(parts)
        ]
        region, label, size = (
            np.concatenate([getattr(p, name) for p in parts]) for name in ("region", "label", "size")
        )
        return Options(region, label, size, np.concatenate(values))

    def _of_class(self, label: int, probability: np.ndarray, fixed: np.ndarray, look: _Look) -> Options:
        votes, filled = (self.votes == label).sum(0), int(np.count_nonzero(fixed))
        share, likely = votes / len(self.votes), self.total(probability) / self.size
        radius = max(filled, 1) ** (1 / fixed.ndim) / 2
        contrast, touch = look.against(self, fixed)
        voted = self.size * (votes > 0)
        ones = np.ones(len(self.size))
        columns = {
            "share": _log_odds((votes + 0.5) / (len(self.votes) + 1)),
            "probability": _log_odds(np.clip(likely, 0.01, 0.99)),
            "distance": np.clip(self.total(_signed_distance(fixed)) / self.size / radius, -3, 3),
            "contrast": contrast,
            "surroundings": look.surroundings,
            "edge": np.log(look.edge + 0.1),
            "touch": touch,
            "size": np.log(self.size / max(filled, 1)),
            "case_size": ones * np.log((filled + 1) / fixed.size),
            "case_agreement": ones * (share * voted).sum() / max(voted.sum(), 1),
            "case_sure": ones * (probability[fixed].mean(dtype=np.float64) if filled else 0),
        }
        at = np.flatnonzero(votes)
        values = np.stack([columns[name] for name in FEATURES], 1)[at]
        return Options(at, np.full(len(at), label), self.size[at], values)


def face_pairs(space: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Flat indices i64 `[pair]` of the two voxels of every pair that shares a face."""
    index = np.arange(int(np.prod(space))).reshape(space)
    pairs = [(np.delete(index, -1, axis), np.delete(index, 0, axis)) for axis in range(len(space))]
    first, second = (np.concatenate([pair[side].ravel() for pair in pairs]) for side in (0, 1))
    return first, second


@dataclass(frozen=True)
class _Look:
    """Intensities of the regions of a case and along their borders."""

    scaled: np.ndarray  # f64 [channel, voxel], in standard deviations
    mean: np.ndarray  # f64 [channel, region]
    surroundings: np.ndarray  # f64 [region]
    edge: np.ndarray  # f64 [region]
    inner: np.ndarray  # i64 [border face], region
    beyond: np.ndarray  # i64 [border face], flat index of the voxel across the face

    @classmethod
    def of(cls, regions: Regions, image: np.ndarray) -> _Look:
        spread = image.reshape(len(image), -1).std(1, dtype=np.float64)
        scaled = image.reshape(len(image), -1) / np.where(spread > 0, spread, 1)[:, None]
        mean = np.stack([regions.total(one.reshape(image.shape[1:])) for one in scaled]) / regions.size
        first, second = face_pairs(image.shape[1:])
        step = _distance(scaled[:, first], scaled[:, second])
        member = regions.of_voxel.ravel()
        crossing = np.flatnonzero(member[first] != member[second])
        inner = np.concatenate([member[first[crossing]], member[second[crossing]]])
        beyond = np.concatenate([second[crossing], first[crossing]])
        steps = np.tile(step[crossing], 2)
        kept = inner >= 0
        inner, beyond, steps = inner[kept], beyond[kept], steps[kept]
        around = np.stack([_mean_by(inner, one[beyond], len(regions.size)) for one in scaled])
        whole = float(step.mean()) if len(step) else 0.0
        edge = _mean_by(inner, steps, len(regions.size)) / max(whole, 1e-9)
        return cls(scaled, mean, _distance(mean, around), edge, inner, beyond)

    def against(self, regions: Regions, fixed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Features `contrast` and `touch`, f64 `[region]` each, for a class that fills bool `[*space]`."""
        filled, unvoted = fixed.ravel(), regions.of_voxel.ravel() < 0
        own = regions.total(fixed)
        others = filled.sum() - own
        # A region of the fixed proposal is compared with the rest of the proposal.
        inside = np.stack(
            [one[filled].sum() - regions.total((one * filled).reshape(fixed.shape)) for one in self.scaled]
        ) / np.maximum(others, 1)
        outside = self.scaled[:, unvoted if unvoted.any() else slice(None)].mean(1)[:, None]
        contrast = np.where(others > 0, _distance(self.mean, outside) - _distance(self.mean, inside), 0)
        return contrast, _mean_by(self.inner, filled[self.beyond].astype(np.float64), len(regions.size))


def _distance(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Root mean squared difference over the channels, f64 `[n]`, of f64 `[channel, n]`."""
    return np.sqrt(((one - other) ** 2).mean(0))


def _mean_by(member: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    """Mean of values `[n]` of each member, f64 `[count]`. 0 without a value."""
    return np.bincount(member, values, minlength=count) / np.maximum(np.bincount(member, minlength=count), 1)


def _log_odds(share: np.ndarray) -> np.ndarray:
    return np.log(share) - np.log1p(-share)


def _signed_distance(mask: np.ndarray) -> np.ndarray:
    """Signed distance f64 `[*space]` in voxels to the outline of a bool mask, above 0 inside.

    An empty mask has a large negative distance everywhere, a full mask a large positive distance.
    """
    from scipy.ndimage import distance_transform_edt

    if not mask.any() or mask.all():
        return np.full(mask.shape, float(max(mask.shape)) * (1 if mask.any() else -1))
    return np.where(mask, distance_transform_edt(mask) - 0.5, 0.5 - distance_transform_edt(~mask))


@dataclass(frozen=True)
class Composed:
    """Estimated shares of the regions of a case, and the thresholds that decide which regions are foreground."""

    share: np.ndarray
    """f64 `[class, region]`: the share of the likeliest foreground class of a region, and the rest as background."""
    thresholds: tuple[float, ...]  # one per foreground class

    def labels(self) -> np.ndarray:
        """Class of every region, u8 `[region]`, by the rule of `mask_at`: the highest odds win, ties are foreground."""
        odds = np.array([(1 - t) / t for t in self.thresholds])[:, None] * self.share[1:]
        return np.where(odds.max(0) >= self.share[0], 1 + odds.argmax(0), 0).astype(np.uint8)

    def field(self, regions: Regions) -> np.ndarray:
        """Shares of every voxel, f32 `[class, *space]`. Voxels outside the regions are background."""
        background = np.eye(len(self.share))[:, :1]
        return np.concatenate([self.share, background], 1)[:, regions.of_voxel].astype(np.float32)


def composed(options: Options, share: np.ndarray, outside: Sequence[float]) -> Composed:
    """The regions with the highest expected Dice, one class after the other.

    A region adds to Dice if its share of right voxels exceeds half the Dice. So the best set of regions holds those of
    the highest shares, down to the threshold with the highest expected Dice, 2 E|P and T| / (|P| + E|T|). `share` is
    f64 `[option]`. `outside` is E|T| outside the regions, as a multiple of E|T| inside them, per class. A region may
    only become the class with its highest share. The threshold lies midway between the last share within and the first
    share outside.
    """
    count = int(options.region.max(initial=-1)) + 1
    classes = len(outside) + 1
    found, size = np.zeros((classes, count)), np.zeros(count, np.int64)
    found[options.label, options.region] = share
    size[options.region] = options.size
    found[1:] /= np.maximum(found[1:].sum(0), 1)
    found[0] = 1 - found[1:].sum(0)
    likeliest = found[1:].argmax(0) + 1
    thresholds = []
    for label in range(1, classes):
        mine = np.flatnonzero((likeliest == label) & (found[label] > 0))
        # Regions of one share are taken together, because a threshold cannot tell them apart.
        levels, level = np.unique(-found[label, mine], return_inverse=True)
        voxels = np.cumsum(np.bincount(level, size[mine], minlength=len(levels)))
        right = np.cumsum(np.bincount(level, size[mine] * found[label, mine], minlength=len(levels)))
        truth = (found[label] * size).sum() * (1 + outside[label - 1])
        if not len(levels):
            thresholds.append(0.5)
            continue
        last = int(dice(right, voxels + truth).argmax())
        beyond = -levels[last + 1] if last + 1 < len(levels) else 0.0
        thresholds.append(float(np.clip((beyond - levels[last]) / 2, 1e-6, 1 - 1e-6)))
    # A region has the share of its likeliest class alone, so that the rule of `mask_at` is share >= threshold.
    only = np.zeros_like(found)
    at = np.arange(count)
    only[likeliest, at] = found[likeliest, at]
    only[0] = 1 - only[1:].sum(0)
    return Composed(only, tuple(thresholds))
