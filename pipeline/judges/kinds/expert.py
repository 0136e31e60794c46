"""Judge `expert`: odds between two proposals, learned from the answers of reviewers (Bradley and Terry 1952)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import polars as pl
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
from pipeline.store.manifest import write_json
from pipeline.store.verdicts import read_verdicts

EXPERT_FILE = "expert.json"
"""File with the fitted weights and the number of answers, which people can read too."""


class Expert(JudgeKnobs):
    """Mean log-odds that reviewers prefer a proposal to a sibling, by logistic regression on differences of features.

    Features and regression are those of judge `pairwise`, and the order of a pair is the answer of a reviewer in place
    of true Dice. So the judge needs no label and no out-of-fold proposals. An answer `equal` counts one half for each
    mask. An answer `unusable` does not count. All answers on a case together weigh as much as those on another case.

    The answers are split by patient into `folds` parts. A case with an answer, and every other case of its patient, is
    scored by weights that were fitted without its part. So the audit may hold the scores against the same answers. All
    other cases are scored by weights that were fitted to all answers. The penalty of the regression has the least
    log-loss on the parts that are left out.

    `expert.json` holds the numbers of answers, cases and reviewers, weights (per spread) and spreads. For every penalty
    it also holds the log-loss and the share of answers in the right order on the parts left out, which are a little too
    good for the chosen penalty. With fewer preferences than `least`, the stage ends with an error.
    """

    kind: Literal["expert"]
    least: Annotated[int, Field(ge=2)] = 20
    """Smallest number of answers that prefer a mask. With fewer answers the weights are chance."""
    samplers: bool = True
    """Whether the sampler and setting that proposed a mask are features."""
    ridges: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = (0.003, 0.01, 0.03, 0.1, 0.3, 1)
    """Penalties to choose from, as those of judge `pairwise`."""
    folds: Annotated[int, Field(ge=2)] = 10
    """Most parts into which the patients with answers are split."""

    def ready(self, given: JudgeInputs) -> ExpertScores:
        answers = read_verdicts(given.verdicts, given.cases, given.proposals).filter(pl.col("answer") != "unusable")
        preferring = answers.filter(pl.col("answer") != "equal")
        groups = sorted(set(preferring["group"]))
        if len(preferring) < self.least or len(groups) < 2:
            raise BadInput(
                f"{given.verdicts}: a judge of kind 'expert' learns from answers of reviewers; expected at least "
                f"{self.least} answers that prefer a mask, of at least 2 patients, found {len(preferring)} answers of "
                f"{len(groups)} patients; answer more pairs, set `least` to a smaller number, or remove the expert"
            )
        cases = {case.case_id: case for case in given.cases.all}
        answered = {str(name): part for (name,), part in answers.group_by("case_id", maintain_order=True)}
        seen = {
            name: MaskFeatures.of(Evidence(given.cases, given.proposals, cases[name]), self.samplers)
            for name in sorted(answered)
        }
        names = tuple(sorted({feature for one in seen.values() for feature in one.columns}))
        raw = {name: one.matrix(names) for name, one in seen.items()}
        spread = spread_of(list(raw.values()))
        pairs = [
            Preferences.of(scaled(raw[name], spread), seen[name].slots, answered[name], cases[name].group)
            for name in seen
        ]
        fold_of = folds_of_groups([part.group for part in pairs], self.folds, given.seed, self.kind)
        ridge, left_out = chosen_ridge(pairs, fold_of, self.ridges, Preferences.measured)
        whole = Worth(names, fitted(pairs, ridge), spread)
        without = {
            fold: Worth(names, fitted([part for part in pairs if fold_of[part.group] != fold], ridge), spread)
            for fold in sorted(set(fold_of.values()))
        }
        summary = {
            "answers": len(answers),
            "preferring": len(preferring),
            "cases": len(pairs),
            "groups": len(fold_of),
            "reviewers": answers["reviewer"].n_unique(),
            "ridge": ridge,
            "left_out": left_out,
            "features": whole.described(),
        }
        write_json(given.models / EXPERT_FILE, summary)
        return ExpertScores(self, whole, {group: without[fold] for group, fold in fold_of.items()})


@dataclass(frozen=True)
class ExpertScores:
    """Scores by the fitted weights."""

    knobs: Expert
    whole: Worth
    without: Mapping[str, Worth]
    """Weights that were fitted without the answers on a patient, by patient."""

    def score(self, evidence: Evidence) -> np.ndarray:
        return self.without.get(evidence.case.group, self.whole).scores(evidence, self.knobs.samplers)


@dataclass(frozen=True)
class Preferences:
    """Answers on one case as pairs of masks, the preferred mask first. A tie is two pairs of half the weight."""

    group: str
    difference: np.ndarray  # f64 [pair, feature], preferred less other mask
    weight: np.ndarray  # f64 [pair], sums to 1

    @classmethod
    def of(cls, values: np.ndarray, slots: np.ndarray, answers: pl.DataFrame, group: str) -> Preferences:
        """From the scaled features f64 `[mask, feature]` of the masks in `slots` and the answers on the case."""
        first, second = (np.searchsorted(slots, answers[name].to_numpy()) for name in ("slot_a", "slot_b"))
        share = answers["answer"].cast(pl.String).replace_strict({"a": 1.0, "b": 0.0, "equal": 0.5}).to_numpy()
        difference = values[first] - values[second]
        weight = np.concatenate([share, 1 - share])
        kept = weight > 0
        return cls(group, np.concatenate([difference, -difference])[kept], weight[kept] / weight.sum())

    def measured(self, weight: np.ndarray) -> dict[str, float]:
        """`log_loss` and `pair_accuracy` of the answers. An answer `equal` is right by one half."""
        loss, right = log_loss_and_order(self, weight)
        return {"log_loss": loss, "pair_accuracy": float((self.weight * right).sum())}
