"""What the answers of reviewers say of the judges and pair sets of a panel."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import polars as pl

from pipeline.audit.answers import Answers, Measured, by_judge, by_pairs
from pipeline.audit.pair_sets import with_filters
from pipeline.measures.intervals import Interval
from pipeline.pairs.calibration import Calibration, PairCalibration, ValidationPairs, calibrate
from pipeline.pairs.mine import PairSet, mine, widest
from pipeline.pairs.reviewed import judged
from pipeline.pairs.strategies.none import NoPairs
from pipeline.pairs.strategies.reviewed import Reviewed
from pipeline.store import schema
from pipeline.store.proposals import ProposalStore


@dataclass(frozen=True)
class Asked:
    """Answers of reviewers beside the panel of all judges."""

    answers: Answers
    panel: pl.LazyFrame
    proposals: ProposalStore
    seed: int

    @cached_property
    def _rows(self) -> pl.DataFrame:
        """Rows of the panel of the cases with an answer, without true Dice."""
        cases = self.answers.drawn["case_id"].unique().implode()
        return self.panel.drop("true_dice").filter(pl.col("case_id").is_in(cases)).collect()

    def judge(self, name: str, own: bool, on_labels: Interval) -> Measured:
        """A judge, held against the answers. `own`: whether a review of this name draws pairs of the judge."""
        scores = self._rows.select("case_id", "proposal", score=f"score_{name}")
        return Measured("judge", name, by_judge(self.answers.drawn, scores), on_labels, name if own else None)

    def pairs(self, name: str, pairs: PairSet, calibrated: PairCalibration, on_labels: Interval) -> Measured:
        """A pair set, held against the answers on pairs that `mine` would find today in the splits of the answers.

        Of strategy `reviewed`, the pairs that the judge orders (`otherwise`) are measured, as a review draws them. The
        noise rate on labels is that of the whole set, and does not stand beside the measure if reviewers saw labelled
        cases.

        A curve that was fitted to the answers would drop the pairs that these answers call wrong, and the rest would
        look better than it is. `p_correct` of a patient with answers then comes from a curve without this patient.
        """
        splits = self.answers.drawn["split"].unique().sort().to_list()
        part = judged(pairs)
        assert part is not None
        found = [self._today(part, split, calibrated) for split in splits]
        table = pl.concat([pl.DataFrame(schema=schema.PAIRS.columns), *found])
        measured = Measured("pairs", name, by_pairs(self.answers.drawn, table), on_labels, name, len(table))
        if not isinstance(pairs.strategy, Reviewed):
            return measured
        if "validation" in self.answers.table["split"]:
            measured = replace(measured, on_labels=Interval(None, None, None))
        return replace(measured, measures="the pairs of its judge")

    def _today(self, pairs: PairSet, split: str, calibrated: PairCalibration) -> pl.DataFrame:
        strategy = pairs.strategy
        assert not isinstance(strategy, NoPairs | Reviewed)
        unfiltered = with_filters(pairs, min_p_correct=None, keep_fraction=1.0)
        table = mine(self.panel.drop("true_dice"), self.proposals, unfiltered, split, self.seed)[0]
        if calibrated.curve is not None:
            margin = table["margin"].to_numpy()
            p = calibrated.curve(margin)
            if calibrated.summary["source"] == "answers" and (held_out := calibrated.held_out) is not None:
                of_case = dict(self.answers.drawn.select("case_id", "group").iter_rows())
                group = np.array([of_case.get(case, "") for case in table["case_id"]], np.str_)
                seen = np.isin(group, held_out.groups.astype(np.str_))
                p[seen] = held_out(margin[seen], group[seen])
            table = table.filter(pl.Series(p >= strategy.least_p_correct))
        return widest(table, strategy.keep_fraction)

    def calibration(self, pairs: PairSet, knobs: Calibration) -> PairCalibration | None:
        """Calibration of a pair set on the answers. None for answers of fewer than `min_cases` patients."""
        unfiltered = with_filters(pairs, min_margin=0.0, min_p_correct=None, keep_fraction=1.0)
        table = mine(self._rows.lazy(), self.proposals, unfiltered, pairs.split, self.seed)[0]
        drawn = self.answers.drawn
        order = pl.min_horizontal("chosen", "rejected"), pl.max_horizontal("chosen", "rejected")
        margin = table.select("case_id", "case", "margin", slot_a=order[0], slot_b=order[1])
        found = drawn.with_columns(right=1 - by_pairs(drawn, table)).filter(pl.col("right").is_not_nan())
        found = found.join(margin, on=["case_id", "slot_a", "slot_b"], how="inner", maintain_order="left")
        if found["group"].n_unique() < knobs.min_cases:
            return None
        tried = ValidationPairs(*(found[name].to_numpy() for name in ("margin", "right", "case", "group")))
        made = calibrate(tried, knobs, self.seed)
        note = "no pair of labelled validation cases: p_correct is the probability that a reviewer agrees"
        return made._replace(summary={**made.summary, "source": "answers", "note": note})
