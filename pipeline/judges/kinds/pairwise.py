"""Judge `pairwise`: odds between two proposals, learned from pairs of labelled cases (Bradley and Terry 1952)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from pipeline.errors import BadInput
from pipeline.judges.judge import Evidence, JudgeInputs, JudgeKnobs
from pipeline.judges.learning.features import features
from pipeline.measures.intervals import mean_over_groups
from pipeline.measures.overlap import dice_to
from pipeline.seeding import numpy_generator
from pipeline.store.manifest import write_json

WEIGHTS_FILE = "pairwise.json"
"""File with the fitted weights, which people can read too."""
_FARTHEST = 4.0  # spreads from the case's median at which a feature is cut: labelled cases may not reach further

_LEAST_SPREAD = 1e-9  # a smaller spread is rounding of a constant feature, not to be scaled up


class Pairwise(JudgeKnobs):
    """Mean log-odds that a proposal is better than a sibling, by logistic regression on differences of features.

    Siblings are the distinct masks of the case. A mask that was proposed several times has one score. In a case with
    one distinct mask every proposal has 0. The features are those of `pipeline.judges.learning.features`, and with
    `samplers` the sampler and setting that proposed the mask. A feature is measured from the case's median in spreads,
    and cut at 4 spreads. The spread of a feature is the root mean squared difference of two proposals of a labelled
    case. The regression has no intercept, since the order within a pair means nothing. The regression is fitted to the
    out-of-fold proposals of labelled cases: all pairs that differ in true Dice, with equal weight per case.

    The penalty of the regression has the least log-loss of pairs on labelled groups that are left out. The goal is a
    high Dice of the top pick, but this Dice moves by whole proposals and is too coarse a criterion with few cases. With
    one labelled group nothing can be left out, and the largest penalty is taken. The judge needs out-of-fold proposals,
    and a labelled case whose proposals differ in true Dice; otherwise the stage ends with an error.

    `pairwise.json` holds weights (per spread) and spreads. For every penalty it also holds the log-loss, the share of
    pairs in the right order, and the lift of the top pick over slot 0 (in Dice) on the groups left out. The numbers of
    the chosen penalty are a little too good. The judge has few features and few labels: where the judge trusts
    agreement and likelihood, the judge shares their errors.

    Cost on one core with 16 proposals: per case 2 ms at 128x128 and 22 ms at 48x64x48 with two classes beside the
    background, then per proposal 3 and 13 ms; the same for every labelled case, once.
    """

    kind: Literal["pairwise"]
    samplers: bool = True
    """Whether the sampler and setting that proposed a mask are features. Always taking one setting, such as the mean
    of the ensemble, is a strong rule. A setting without out-of-fold proposals has no influence."""
    weigh: Literal["equal", "gap"] = "equal"
    """Weights of the pairs of one case. `equal`: all pairs alike. `gap`: by the gap in true Dice, so that small gaps,
    which are noise, count less, and proposals far behind the others count more."""
    ridges: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = (0.003, 0.01, 0.03, 0.1, 0.3, 1)
    """Penalties to choose from. A penalty multiplies half the sum of the squared weights of the scaled features, and
    the product is added to the mean log-loss of a pair."""
    folds: Annotated[int, Field(ge=2)] = 10
    """Most parts into which the labelled groups are split to choose the penalty. Each part is left out once."""

    @property
    def learns(self) -> bool:
        return True

    def ready(self, given: JudgeInputs) -> PairwiseScores:
        # Fitting takes seconds and always gives the same weights, so nothing of a killed run is kept.
        cases = given.learned_from(self.kind)
        seen = [LabelledFeatures.of(Evidence(given.cases, given.out_of_fold, case), self.samplers) for case in cases]
        truth = [
            dice_to(given.cases.label(case), given.out_of_fold.masks(case)[one.slots], len(given.cases.class_names))
            for case, one in zip(cases, seen, strict=True)
        ]
        kept = [row for row, dice in enumerate(truth) if np.ptp(dice) > 0]
        if not kept:
            raise BadInput(
                f"{given.out_of_fold.folder}: judge 'pairwise' learns from labelled cases whose proposals differ in "
                f"true Dice; expected at least one such case, found none among {len(cases)}; propose more masks per "
                "case, or remove the judge"
            )
        names = tuple(sorted({name for row in kept for name in seen[row].columns}))
        raw = [seen[row].matrix(names) for row in kept]
        # Twice the variance is the mean squared difference of two proposals.
        spread = np.sqrt(2 * np.mean([values.var(0, ddof=1) for values in raw], axis=0))
        spread[spread < _LEAST_SPREAD] = 0
        pairs = [
            Pairs.of(scaled(values, spread), truth[row], cases[row].group, self.weigh)
            for values, row in zip(raw, kept, strict=True)
        ]
        ridge, left_out = self._ridge(pairs, given.seed)
        weight = fitted(pairs, ridge)
        learned = zip(names, weight.tolist(), spread.tolist(), strict=True)
        summary = {
            "cases": len(pairs),
            "groups": len({part.group for part in pairs}),
            "pairs": sum(len(part.difference) for part in pairs),
            "ridge": ridge,
            "left_out": left_out,
            "features": {name: {"weight": per_spread, "spread": one} for name, per_spread, one in learned},
        }
        write_json(given.models / WEIGHTS_FILE, summary)
        return PairwiseScores(self, names, weight, spread)

    def _ridge(self, pairs: Sequence[Pairs], seed: int) -> tuple[float, list[dict[str, float]]]:
        """Penalty with the least log-loss on the groups left out, and the measures of every penalty.

        Measures are means over the cases of a group, then over groups. With one group: the largest penalty, and no
        measures.
        """
        groups = sorted({part.group for part in pairs})
        if len(groups) < 2:
            return max(self.ridges), []
        order = numpy_generator(seed, "pairwise", "folds").permutation(len(groups))
        fold_of = {groups[at]: number % self.folds for number, at in enumerate(order.tolist())}
        tried = []
        for ridge in sorted(self.ridges, reverse=True):
            found, of_group = [], []
            for fold in sorted(set(fold_of.values())):
                weight = fitted([part for part in pairs if fold_of[part.group] != fold], ridge)
                left_out = [part for part in pairs if fold_of[part.group] == fold]
                found += [part.measured(weight) for part in left_out]
                of_group += [part.group for part in left_out]
            means = [mean_over_groups(values, of_group) for values in zip(*found, strict=True)]
            tried.append({"ridge": ridge, **dict(zip(("log_loss", "pair_accuracy", "lift"), means, strict=True))})
        best = min(tried, key=lambda row: row["log_loss"])
        return best["ridge"], tried


@dataclass(frozen=True)
class PairwiseScores:
    """Scores by the fitted weights."""

    knobs: Pairwise
    names: tuple[str, ...]
    weight: np.ndarray  # f64 [feature], per spread
    spread: np.ndarray  # f64 [feature]

    def score(self, evidence: Evidence) -> np.ndarray:
        original = evidence.originals
        distinct, row = np.unique(original, return_inverse=True)
        if len(distinct) < 2:
            return np.zeros(len(original))
        seen = LabelledFeatures.of(evidence, self.knobs.samplers)
        worth = np.einsum("pf,f->p", scaled(seen.matrix(self.names), self.spread), self.weight)
        # Mean difference to the siblings: the mean over all masks holds the mask itself, which is no sibling.
        return ((worth - worth.mean()) * len(distinct) / (len(distinct) - 1))[row]


@dataclass(frozen=True)
class LabelledFeatures:
    """Features of the distinct masks of a case."""

    slots: np.ndarray  # i64 [mask], first slot with the mask
    columns: dict[str, np.ndarray]  # by feature, f64 [mask], mean over the proposals with the mask

    @classmethod
    def of(cls, evidence: Evidence, samplers: bool) -> LabelledFeatures:
        slots, row, count = np.unique(evidence.originals, return_inverse=True, return_counts=True)
        found = features(evidence) if len(slots) > 1 else {}
        if samplers:
            # Rows are sorted by case, so a binary search replaces a scan of the whole table.
            table = evidence.proposals.table
            first, last = (table["case_id"].search_sorted(evidence.case.case_id, side) for side in ("left", "right"))
            rows = table[first:last].select("sampler", "setting").iter_rows()
            drawn = np.array([f"{sampler} {setting}" for sampler, setting in rows])
            found |= {f"sampler {name}": (drawn == name).astype(np.float64) for name in np.unique(drawn).tolist()}
        return cls(slots, {name: np.bincount(row, values) / count for name, values in found.items()})

    def matrix(self, names: Sequence[str]) -> np.ndarray:
        """f64 `[mask, feature]`; 0 for features that this case lacks."""
        nothing = np.zeros(len(self.slots))
        return np.stack([self.columns.get(name, nothing) for name in names], 1)


def scaled(values: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Distance from the case's median in spreads, f64 `[mask, feature]`, at most 4; 0 for a feature of spread 0."""
    far = (values - np.median(values, axis=0)) / np.where(spread > 0, spread, np.inf)
    return np.clip(far, -_FARTHEST, _FARTHEST)


@dataclass(frozen=True)
class Pairs:
    """All pairs of masks of one labelled case that differ in true Dice, the better mask first."""

    group: str
    values: np.ndarray  # f64 [mask, feature], scaled
    dice: np.ndarray  # f64 [mask], true
    difference: np.ndarray  # f64 [pair, feature], better less worse mask
    weight: np.ndarray  # f64 [pair], sums to 1

    @classmethod
    def of(cls, values: np.ndarray, dice: np.ndarray, group: str, weigh: str) -> Pairs:
        better, worse = np.nonzero(dice[:, None] > dice)
        gap = dice[better] - dice[worse]
        weight = gap if weigh == "gap" else np.ones_like(gap)
        return cls(group, values, dice, values[better] - values[worse], weight / weight.sum())

    def measured(self, weight: np.ndarray) -> tuple[float, float, float]:
        """Weighted log-loss of the pairs, share of pairs in the right order, and lift of the top pick.

        Pairs of equal score count one half. Lift is the true Dice of the top pick less the true Dice of slot 0.
        """
        odds = np.einsum("pf,f->p", self.difference, weight)
        top = np.einsum("mf,f->m", self.values, weight).argmax()
        loss = (self.weight * np.logaddexp(0, -odds)).sum()
        return float(loss), float((1 + np.sign(odds)).mean() / 2), float(self.dice[top] - self.dice[0])


def fitted(pairs: Sequence[Pairs], ridge: float) -> np.ndarray:
    """Weights f64 `[feature]` that minimise the mean log-loss over cases plus `ridge` / 2 |weights|^2."""
    from scipy.optimize import minimize
    from scipy.special import expit

    difference = np.concatenate([part.difference for part in pairs])
    share = np.concatenate([part.weight for part in pairs]) / len(pairs)

    def loss(weight: np.ndarray) -> tuple[float, np.ndarray]:
        # einsum in place of BLAS: sums of BLAS may depend on the number of threads.
        odds = np.einsum("pf,f->p", difference, weight)
        slope = -np.einsum("pf,p->f", difference, share * expit(-odds))
        return float((share * np.logaddexp(0, -odds)).sum() + ridge / 2 * (weight**2).sum()), slope + ridge * weight

    start = np.zeros(difference.shape[1])
    return minimize(loss, start, jac=True, method="L-BFGS-B", options={"gtol": 1e-7, "ftol": 0, "maxiter": 1000}).x
