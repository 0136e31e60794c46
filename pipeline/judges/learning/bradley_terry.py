"""Bradley-Terry: the worth of a mask as a weighted sum of its features, learned from pairs with a known order.

P(mask i is better than mask j) = sigmoid(worth_i - worth_j) (Bradley and Terry, Biometrika 39, 1952).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from pipeline.judges.judge import Evidence
from pipeline.judges.learning.features import features
from pipeline.measures.intervals import mean_over_groups
from pipeline.seeding import numpy_generator

_FARTHEST = 4.0  # spreads from the case's median at which a feature is cut: labelled cases may not reach further
_LEAST_SPREAD = 1e-9  # a smaller spread is rounding of a constant feature, not to be scaled up


@dataclass(frozen=True)
class MaskFeatures:
    """Features of the distinct masks of a case."""

    slots: np.ndarray  # i64 [mask], first slot with the mask
    columns: dict[str, np.ndarray]  # by feature, f64 [mask], mean over the proposals with the mask

    @classmethod
    def of(cls, evidence: Evidence, samplers: bool) -> MaskFeatures:
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


def spread_of(raw: Sequence[np.ndarray]) -> np.ndarray:
    """Root mean squared difference of two masks of a case, f64 `[feature]`, from f64 `[mask, feature]` of each case.

    A feature without differences has 0.
    """
    # Twice the variance is the mean squared difference of two proposals.
    spread = np.sqrt(2 * np.mean([values.var(0, ddof=1) for values in raw], axis=0))
    spread[spread < _LEAST_SPREAD] = 0
    return spread


class Ordered(Protocol):
    """Pairs of masks of one case, the better mask first."""

    @property
    def group(self) -> str: ...

    @property
    def difference(self) -> np.ndarray:
        """f64 `[pair, feature]`, better less worse mask, scaled."""
        ...

    @property
    def weight(self) -> np.ndarray:
        """f64 `[pair]`, sums to 1."""
        ...


AnyPairs = TypeVar("AnyPairs", bound=Ordered)


def log_loss_and_order(pairs: Ordered, weight: np.ndarray) -> tuple[float, np.ndarray]:
    """Weighted log-loss of the pairs, and f64 `[pair]`: 1 in the right order, 0 in the wrong, 0.5 for equal worth."""
    odds = np.einsum("pf,f->p", pairs.difference, weight)
    loss = (pairs.weight * np.logaddexp(0, -odds)).sum()
    return float(loss), (1 + np.sign(odds)) / 2


def fitted(pairs: Sequence[Ordered], ridge: float) -> np.ndarray:
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


def folds_of_groups(groups: Sequence[str], folds: int, seed: int, name: str) -> dict[str, int]:
    """Fold of each group, at random. `name` makes the order that of one kind of judge."""
    distinct = sorted(set(groups))
    order = numpy_generator(seed, name, "folds").permutation(len(distinct))
    return {distinct[at]: number % folds for number, at in enumerate(order.tolist())}


def chosen_ridge(
    pairs: Sequence[AnyPairs],
    fold_of: dict[str, int],
    ridges: Sequence[float],
    measured: Callable[[AnyPairs, np.ndarray], dict[str, float]],
) -> tuple[float, list[dict[str, float]]]:
    """Penalty with the least `log_loss` on the groups left out, and the measures of every penalty.

    Measures are means over the cases of a group, then over groups. With one group: the largest penalty, and no
    measures.
    """
    if len({part.group for part in pairs}) < 2:
        return max(ridges), []
    tried = []
    for ridge in sorted(ridges, reverse=True):
        found, of_group = [], []
        for fold in sorted(set(fold_of.values())):
            rest = [part for part in pairs if fold_of[part.group] != fold]
            weight = fitted(rest, ridge)
            left_out = [part for part in pairs if fold_of[part.group] == fold]
            found += [measured(part, weight) for part in left_out]
            of_group += [part.group for part in left_out]
        means = {name: mean_over_groups([one[name] for one in found], of_group) for name in found[0]}
        tried.append({"ridge": ridge, **means})
    best = min(tried, key=lambda row: row["log_loss"])
    return best["ridge"], tried


@dataclass(frozen=True)
class Worth:
    """Fitted weights, which give the scores of a case."""

    names: tuple[str, ...]
    weight: np.ndarray  # f64 [feature], per spread
    spread: np.ndarray  # f64 [feature]

    def scores(self, evidence: Evidence, samplers: bool) -> np.ndarray:
        """Mean difference of worth to the siblings, f64 `[proposal]`; 0 in a case with one distinct mask."""
        original = evidence.originals
        distinct, row = np.unique(original, return_inverse=True)
        if len(distinct) < 2:
            return np.zeros(len(original))
        seen = MaskFeatures.of(evidence, samplers)
        worth = np.einsum("pf,f->p", scaled(seen.matrix(self.names), self.spread), self.weight)
        # Mean difference to the siblings: the mean over all masks holds the mask itself, which is no sibling.
        return ((worth - worth.mean()) * len(distinct) / (len(distinct) - 1))[row]

    def described(self) -> dict[str, dict[str, float]]:
        """Weight and spread by feature, for a file that people can read."""
        learned = zip(self.names, self.weight.tolist(), self.spread.tolist(), strict=True)
        return {name: {"weight": per_spread, "spread": one} for name, per_spread, one in learned}
