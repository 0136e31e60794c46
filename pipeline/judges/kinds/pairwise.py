"""Judge `pairwise`: odds between two proposals, learned from pairs of labelled cases (Bradley and Terry 1952)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from pipeline.errors import BadInput
from pipeline.judges.judge import Evidence, JudgeInputs, JudgeKnobs
from pipeline.judges.learning.bradley_terry import (
    MaskFeatures,
    Worth,
    chosen_ridge,
    fitted,
    folds_of_groups,
    log_loss_and_order,
    scaled,
    spread_of,
)
from pipeline.measures.overlap import dice_to
from pipeline.store.manifest import write_json

WEIGHTS_FILE = "pairwise.json"
"""File with the fitted weights, which people can read too."""


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
        seen = [MaskFeatures.of(Evidence(given.cases, given.out_of_fold, case), self.samplers) for case in cases]
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
        spread = spread_of(raw)
        pairs = [
            Pairs.of(scaled(values, spread), truth[row], cases[row].group, self.weigh)
            for values, row in zip(raw, kept, strict=True)
        ]
        fold_of = folds_of_groups([part.group for part in pairs], self.folds, given.seed, self.kind)
        ridge, left_out = chosen_ridge(pairs, fold_of, self.ridges, Pairs.measured)
        worth = Worth(names, fitted(pairs, ridge), spread)
        summary = {
            "cases": len(pairs),
            "groups": len({part.group for part in pairs}),
            "pairs": sum(len(part.difference) for part in pairs),
            "ridge": ridge,
            "left_out": left_out,
            "features": worth.described(),
        }
        write_json(given.models / WEIGHTS_FILE, summary)
        return PairwiseScores(self, worth)


@dataclass(frozen=True)
class PairwiseScores:
    """Scores by the fitted weights."""

    knobs: Pairwise
    worth: Worth

    def score(self, evidence: Evidence) -> np.ndarray:
        return self.worth.scores(evidence, self.knobs.samplers)


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

    def measured(self, weight: np.ndarray) -> dict[str, float]:
        """`log_loss` (weighted) of the pairs, `pair_accuracy`, and `lift` of the top pick.

        Pairs of equal score count one half. Lift is the true Dice of the top pick less the true Dice of slot 0.
        """
        loss, right = log_loss_and_order(self, weight)
        top = np.einsum("mf,f->m", self.values, weight).argmax()
        return {"log_loss": loss, "pair_accuracy": float(right.mean()), "lift": float(self.dice[top] - self.dice[0])}
