"""Judge `rca`: reverse classification accuracy of a classifier fitted to a proposal (Valindria 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from pipeline.errors import BadInput
from pipeline.judges.judge import Evidence, JudgeInputs, JudgeKnobs
from pipeline.measures.overlap import dice
from pipeline.seeding import numpy_generator
from pipeline.store.cases import Case, CaseStore
from pipeline.store.schema import UNKNOWN

_LEAST_VARIANCE = 1e-6  # added to the variance of a feature; images are normalised, so less means a constant
_MAJORITY, _MINORITY, _NOWHERE = 2, 1, 0


class Rca(JudgeKnobs):
    """Dice (0 to 1) on labelled references of a linear discriminant fitted to image and proposal.

    The features of a voxel are every channel as it is, and at each of `scales` the smoothed channel and its gradient
    magnitude. The classifier has the classes of the proposal, with their shares as priors, so an empty or full proposal
    predicts its one class everywhere. The Dice of a class counts on references that have the class. An empty mask
    therefore has 0 and gains nothing from an empty reference. Where the truth is empty, any other proposal can win.
    The score is the best or the mean Dice of a class over the references, then the mean over the classes that a
    reference has.

    References are labelled cases, chosen so that every class is in a reference if their number allows. References of
    the judged patient are left out. The judge abstains if no reference is left, and on proposals without a known voxel
    among the voxels drawn. The judge needs a labelled case with foreground; otherwise the stage ends with an error. The
    judge is coarse: the classifier sees grey values, no shape, and favours masks of voxels that look alike, such as
    eroded masks.

    Cost on one core with the defaults and one channel: per case 4 ms at 128x128 and 50 ms at 48x64x48 for the features,
    then per proposal 5 and 9 ms, at most proportional to `voxels` times `references`.
    """

    kind: Literal["rca"]
    aggregate: Literal["best", "mean"] = "best"
    """Combination of the Dice over references: `best` needs one similar reference, `mean` needs a classifier that
    holds in all references."""
    references: Annotated[int, Field(ge=1)] = 8
    """Most labelled cases that a classifier is applied to. Features of all references stay in memory."""
    voxels: Annotated[int, Field(ge=16)] = 8192
    """Most voxels that are drawn per image. In a judged image, equally many are drawn where no proposal has foreground,
    where at most half of the proposals have it, and where more than half have it. In a reference, equally many are
    drawn of each class. Weights restore the true shares."""
    scales: tuple[Annotated[float, Field(gt=0)], ...] = (1.0, 2.0)
    """Standard deviations of the Gaussian smoothing, in voxels along the axis with the finest spacing."""
    position: bool = False
    """Whether a voxel's place in the image is a feature. Set to true for data with one field of view."""
    ridge: Annotated[float, Field(gt=0)] = 0.01
    """Regularisation of the classifier: share of a feature's variance that is added to the variance within classes."""

    def ready(self, given: JudgeInputs) -> RcaScores:
        cases, seed = given.cases, given.seed
        chosen = self._chosen(cases, seed)
        return RcaScores(self, seed, tuple(self._reference(cases, case, seed) for case in chosen))

    def _chosen(self, cases: CaseStore, seed: int) -> list[Case]:
        """Labelled cases with foreground: each next case has the class that is rarest among those chosen before."""
        labelled = cases.known("labelled")
        classes = len(cases.class_names)
        has = np.array([[(cases.label(case) == label).any() for label in range(1, classes)] for case in labelled])
        order = numpy_generator(seed, "rca", "references").permutation(len(labelled))
        left = [row for row in order.tolist() if has[row].any()]
        if not left:
            raise BadInput(
                f"{cases.folder}: judge 'rca' tries its classifiers on labelled cases with foreground; expected at "
                f"least one, found none among {len(labelled)} labelled cases; label such a case or remove the judge"
            )
        chosen: list[int] = []
        while left and len(chosen) < self.references:
            seen = has[chosen].sum(0)
            rarest = min(np.flatnonzero(has[left].any(0)).tolist(), key=lambda label: seen[label])
            chosen.append(next(row for row in left if has[row, rarest]))
            left.remove(chosen[-1])
        return [labelled[row] for row in chosen]

    def _reference(self, cases: CaseStore, case: Case, seed: int) -> Reference:
        label = cases.label(case).ravel()
        at, weight = _drawn(label, self.voxels, numpy_generator(seed, case.case_id, "rca", "reference"))
        return Reference(case.group, self.features(cases.image(case), case, at), label[at], weight)

    def features(self, image: np.ndarray, case: Case, at: np.ndarray) -> np.ndarray:
        """Features f64 `[voxel, feature]` of an image f32 `[channel, *space]` at flat voxel indices i64 `[voxel]`."""
        from scipy.ndimage import gaussian_filter, gaussian_gradient_magnitude

        edges = np.array(case.spacing_mm or (1.0,) * len(case.shape))
        found = []
        for channel in image:
            found.append(channel.ravel()[at])
            for scale in self.scales:
                # Smoothing of equal width in mm: fewer voxels along axes with a coarse spacing.
                sigma = scale * edges.min() / edges
                found += [f(channel, sigma).ravel()[at] for f in (gaussian_filter, gaussian_gradient_magnitude)]
        if self.position:
            places = np.unravel_index(at, case.shape)
            found += [(place + 0.5) / length for place, length in zip(places, case.shape, strict=True)]
        return np.stack(found, 1).astype(np.float64)


@dataclass(frozen=True)
class Reference:
    """Voxels drawn at random from one labelled case."""

    group: str
    features: np.ndarray  # f64 [voxel, feature]
    label: np.ndarray  # u8 [voxel], without 255
    weight: np.ndarray  # f64 [voxel], number of voxels of the case that a drawn voxel stands for


@dataclass(frozen=True)
class RcaScores:
    """Scores against the references; the draw of voxels depends on seed, case and all masks of the case."""

    knobs: Rca
    seed: int
    references: tuple[Reference, ...]

    def score(self, evidence: Evidence) -> np.ndarray:
        scores = np.full(len(evidence.masks), np.nan)
        references = [reference for reference in self.references if reference.group != evidence.case.group]
        masks = evidence.masks.reshape(len(evidence.masks), -1)
        draw = numpy_generator(self.seed, evidence.case.case_id, "rca")
        at, weight = _drawn(_strata(masks), self.knobs.voxels, draw)
        if not references or not len(at):
            return scores
        features = self.knobs.features(evidence.image, evidence.case, at)
        middle = features.mean(0)  # centred features keep sums of squares from cancelling
        for slot, mask in enumerate(masks[:, at]):
            known = mask != UNKNOWN
            if known.any():
                classifier = Discriminant.fitted(
                    features[known] - middle, mask[known], weight[known], self.knobs.ridge, evidence.classes
                )
                scores[slot] = self._dice(classifier, middle, references, evidence.classes)
        return scores

    def _dice(
        self, classifier: Discriminant, middle: np.ndarray, references: Sequence[Reference], classes: int
    ) -> float:
        """Dice of a classifier: best or mean over references, then mean over the classes that a reference has."""
        found = np.stack(
            [
                reference_dice(classifier.predict(reference.features - middle), reference, classes)
                for reference in references
            ]
        )  # [reference, foreground class]
        has = ~np.isnan(found)
        judged = has.any(0)
        if self.knobs.aggregate == "best":
            return float(np.where(has, found, 0)[:, judged].max(0).mean())
        return float((np.where(has, found, 0).sum(0)[judged] / has.sum(0)[judged]).mean())


def reference_dice(predicted: np.ndarray, reference: Reference, classes: int) -> np.ndarray:
    """Weighted Dice f64 `[foreground class]` of classes i64 `[voxel]`; NaN where the reference lacks the class."""
    pairs = reference.label.astype(np.int64) * classes + predicted
    counts = np.bincount(pairs, reference.weight, classes**2).reshape(classes, classes)  # [true, predicted]
    true, both = counts.sum(1), np.diag(counts)
    return np.where(true > 0, dice(both, true + counts.sum(0)), np.nan)[1:]


@dataclass(frozen=True)
class Discriminant:
    """Linear discriminant: normally distributed features with one covariance for all classes."""

    present: np.ndarray  # i64 [known class], the classes that have voxels
    slope: np.ndarray  # f64 [known class, feature]
    offset: np.ndarray  # f64 [known class]

    @classmethod
    def fitted(
        cls, features: np.ndarray, label: np.ndarray, weight: np.ndarray, ridge: float, classes: int
    ) -> Discriminant:
        """Fit to features f64 `[voxel, feature]`, classes u8 `[voxel]` and weights f64 `[voxel]` of at least one voxel.

        A class without voxels is never predicted. Constant features have no influence.
        """
        # einsum in place of BLAS: sums of BLAS may depend on the number of threads.
        total = np.bincount(label, weight, classes)
        present = np.flatnonzero(total)
        member = weight[:, None] * (label[:, None] == present)  # [voxel, known class]
        means = np.einsum("vc,vf->cf", member, features) / total[present, None]
        residual = features - means[np.searchsorted(present, label)]
        within = np.einsum("vf,vg->fg", weight[:, None] * residual, residual) / total.sum()
        overall = np.einsum("v,vf->f", weight, features) / total.sum()
        variance = np.einsum("v,vf->f", weight, (features - overall) ** 2) / total.sum()
        within += np.diag(ridge * variance + _LEAST_VARIANCE)
        slope = np.linalg.solve(within, means.T).T
        offset = np.log(total[present] / total.sum()) - 0.5 * (slope * means).sum(1)
        return cls(present, slope, offset)

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Most likely class i64 `[voxel]`; of equally likely classes the lowest."""
        likely = np.einsum("vf,cf->cv", features, self.slope) + self.offset[:, None]
        return self.present[likely.argmax(0)]


def _strata(masks: np.ndarray) -> np.ndarray:
    """Stratum u8 `[voxel]`: no, a minority or a majority of the proposals `[proposal, voxel]` has foreground.

    255 where all proposals are 255. Exactly half of the proposals is a minority.
    """
    known = masks != UNKNOWN
    foreground = ((masks != 0) & known).sum(0)
    strata = np.where(2 * foreground > len(masks), _MAJORITY, np.where(foreground > 0, _MINORITY, _NOWHERE))
    return np.where(known.any(0), strata, UNKNOWN).astype(np.uint8)


def _drawn(strata: np.ndarray, most: int, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Flat indices i64 of at most `most` voxels, and the number f64 of voxels that each of them stands for.

    Every stratum but 255 has an equal part of `most`; a stratum with fewer voxels is taken whole.
    """
    names = np.flatnonzero(np.bincount(strata, minlength=UNKNOWN)[:UNKNOWN]).tolist()
    indices, weights = [np.empty(0, np.int64)], [np.empty(0)]
    for name in names:
        inside = np.flatnonzero(strata == name)
        taken = inside
        if len(inside) > most // len(names):
            taken = np.sort(draw.choice(inside, max(1, most // len(names)), replace=False))
        indices.append(taken)
        weights.append(np.full(len(taken), len(inside) / len(taken)))
    return np.concatenate(indices), np.concatenate(weights)
