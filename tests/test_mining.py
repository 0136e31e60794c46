"""Mining pairs from the scores of one judge, on bars whose disagreement is the difference of their lengths."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from pipeline import mining, schema
from pipeline.dataset import CaseStore, ProposalStore
from pipeline.errors import BadInput
from pipeline.mining import NoPairs, PairSet, Strategy, mine, mine_to
from pipeline.overlap import region
from pipeline.schema import UNKNOWN
from pipeline.store import read_table, write_table
from tests.builders import bars, case_store, panel_of, proposal_store

KINDS = [kind for kind in get_args(get_args(Strategy)[0]) if kind is not NoPairs]
NAMES = [get_args(kind.model_fields["kind"].annotation)[0] for kind in KINDS]
Scores = Sequence[Sequence[float | None]]


@dataclass
class Scene:
    """Four cases of five bars each; the last bar of c3 is the same mask as its second."""

    cases: CaseStore
    proposals: ProposalStore

    def panel(self, scores: Scores) -> pl.DataFrame:
        return panel_of(self.cases, self.proposals, {"j": scores})


LENGTHS = ([8, 10, 11, 5, 2], [8, 9, 12, 16, 0], [4, 5, 6, 7, 8], [8, 10, 12, 14, 10])


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> Scene:
    folder = tmp_path_factory.mktemp("mining")
    masks = [bars(lengths) for lengths in LENGTHS]
    cases = case_store(folder / "cases", [bars([9])[0]] * 4, ["pool"] * 4)
    return Scene(cases, proposal_store(folder / "proposals", masks))


def strategy(kind: str, **knobs: Any) -> PairSet:
    judge = "none" if kind == "none" else "j"
    return TypeAdapter(PairSet).validate_python({"judge": judge, "strategy": {"kind": kind, **knobs}})


def mined(scene: Scene, scores: Scores, kind: str, seed: int = 0, **knobs: Any) -> tuple[list[tuple], dict[str, Any]]:
    """Pairs as (case, chosen, rejected, |D|), and the reasons."""
    table, drops = mine(scene.panel(scores).lazy(), scene.proposals, strategy(kind, **knobs), "pool", seed)
    return list(table.select("case", "chosen", "rejected", "disagreement").iter_rows()), drops


N = None
ABSTAIN: list[float | None] = [N] * 5


# ---- by hand ---------------------------------------------------------------------------------------------------


def test_top_bottom(scene):
    """c0: .9 (slot 2, length 11) over .1 (slot 4, length 2): |D| = 9. c1: .8 (slot 3, 16) over .2 (slot 0, 8): 8."""
    scores = [[0.5, 0.6, 0.9, 0.3, 0.1], [0.2, 0.4, 0.6, 0.8, N], ABSTAIN, ABSTAIN]
    pairs, drops = mined(scene, scores, "top_bottom")
    assert pairs == [(0, 2, 4, 9), (1, 3, 0, 8)]
    assert drops == {"cases": 4, "cases_with_pairs": 2, "pairs": 2, "dropped": {"fewer_than_two_scored": 2}}


def test_top_bottom_goes_inwards(scene):
    """Five scores make two pairs, best over worst and second over second worst; the middle stays single.

    c0: .9 over .1 (11 against 2: 9) and .6 over .3 (10 against 5: 5). c1 has three scores: one pair.
    """
    scores = [[0.5, 0.6, 0.9, 0.3, 0.1], [0.2, 0.4, 0.6, N, N], ABSTAIN, ABSTAIN]
    pairs, drops = mined(scene, scores, "top_bottom", max_pairs_per_case=3)
    assert pairs == [(0, 1, 3, 5), (0, 2, 4, 9), (1, 2, 0, 4)]
    assert (drops["pairs"], drops["cases_with_pairs"]) == (3, 2)


def test_top_base(scene):
    """c0: .9 (11) over the base at .5 (8): 3. c1: the base is the best. c2: no score for the base."""
    scores = [[0.5, 0.6, 0.9, 0.3, 0.1], [0.9, 0.4, 0.6, 0.8, 0.1], [N, 0.4, 0.5, 0.6, 0.7], ABSTAIN]
    pairs, drops = mined(scene, scores, "top_base")
    assert pairs == [(0, 2, 0, 3)]
    assert drops["dropped"] == {"base_is_top": 1, "fewer_than_two_scored": 2}


def test_top_base_takes_all_that_beat_the_base(scene):
    """c0 at most 3: .9 and .6 beat .5, .3 does not: |D| = 11 - 8 and 10 - 8. c1 at .4, .4: the base ties the top."""
    scores = [[0.5, 0.6, 0.9, 0.3, 0.1], [0.4, 0.4, 0.3, 0.2, 0.1], ABSTAIN, ABSTAIN]
    pairs, drops = mined(scene, scores, "top_base", max_pairs_per_case=3)
    assert pairs == [(0, 1, 0, 2), (0, 2, 0, 3)]
    assert drops["dropped"] == {"tie": 1, "fewer_than_two_scored": 2}


def test_top_random(scene):
    """The top of c0 (slot 2) over all others: lengths 8, 10, 5, 2 against 11. At most 1: one of these, by the seed."""
    scores = [[0.5, 0.6, 0.9, 0.3, 0.1], ABSTAIN, ABSTAIN, ABSTAIN]
    everything, _ = mined(scene, scores, "top_random", max_pairs_per_case=9)
    assert everything == [(0, 2, 0, 3), (0, 2, 1, 1), (0, 2, 3, 6), (0, 2, 4, 9)]
    drawn = [mined(scene, scores, "top_random", seed=seed)[0] for seed in range(30)]
    assert all(len(pairs) == 1 for pairs in drawn)
    assert {pairs[0] for pairs in drawn} == set(everything)


def test_ties_are_dropped_and_never_broken_by_index(scene):
    """c0: two proposals share the top. c1: two share the bottom. c2: all are equal."""
    scores = [[0.5, 0.9, 0.9, 0.3, 0.1], [0.5, 0.6, 0.9, 0.1, 0.1], [0.5] * 5, ABSTAIN]
    pairs, drops = mined(scene, scores, "top_bottom")
    assert (pairs, drops["dropped"]) == ([], {"tie": 3, "fewer_than_two_scored": 1})
    pairs, drops = mined(scene, scores, "top_base")
    assert (pairs, drops["dropped"]) == ([(1, 2, 0, 4)], {"tie": 2, "fewer_than_two_scored": 1})
    pairs, drops = mined(scene, scores, "top_random")
    assert [case for case, *_ in pairs] == [1]
    assert drops["dropped"] == {"tie": 2, "fewer_than_two_scored": 1}


def test_a_tie_below_the_top_costs_its_own_pair_only(scene):
    """c0: .9 beats the base at .1; the two at .5 tie for the second place, so only one pair is left."""
    scores = [[0.1, 0.5, 0.9, 0.5, 0.0], ABSTAIN, ABSTAIN, ABSTAIN]
    assert mined(scene, scores, "top_base", max_pairs_per_case=3)[0] == [(0, 2, 0, 3)]


@pytest.mark.parametrize("kind", NAMES)
def test_duplicates_are_left_out(scene, kind):
    """c3: slot 4 is the mask of slot 1, so its score .9 (above all) is not there: slot 2 is the top."""
    scores = [ABSTAIN, ABSTAIN, ABSTAIN, [0.5, 0.4, 0.8, 0.1, 0.9]]
    pairs, _ = mined(scene, scores, kind)
    assert [(case, chosen) for case, chosen, _, _ in pairs] == [(3, 2)]
    only = [ABSTAIN, ABSTAIN, ABSTAIN, [N, 0.4, N, N, 0.9]]
    assert mined(scene, only, kind)[1]["dropped"] == {"fewer_than_two_scored": 4}


def test_thresholds_and_their_reasons(scene):
    """top_base. c0: margin .4, |D| = 3. c1: margin .1, |D| = 8. c2: margin .4, |D| = 1. c3: margin .5, |D| = 6."""
    scores = [[0.5, N, 0.9, N, N], [0.5, N, N, 0.6, N], [0.5, 0.9, N, N, N], [0.4, N, N, 0.9, N]]
    none, _ = mined(scene, scores, "top_base")
    assert none == [(0, 2, 0, 3), (1, 3, 0, 8), (2, 1, 0, 1), (3, 3, 0, 6)]
    pairs, drops = mined(scene, scores, "top_base", min_margin=0.3, min_disagreement=3)
    assert pairs == [(0, 2, 0, 3), (3, 3, 0, 6)], "a threshold is the least value that is kept"
    assert drops == {"cases": 4, "cases_with_pairs": 2, "pairs": 2, "dropped": {"margin": 1, "disagreement": 1}}


def test_a_case_has_one_reason_that_of_its_widest_candidate(scene):
    """top_bottom, c0: the first candidate (.9 over .1) has margin .8 and |D| = |2 - 5| = 3 and fails by |D|;
    the second (.6 over .5) fails by its margin."""
    scores = [[0.6, 0.5, N, 0.1, 0.9], ABSTAIN, ABSTAIN, ABSTAIN]
    thresholds = {"min_margin": 0.5, "min_disagreement": 4, "max_pairs_per_case": 2}
    pairs, drops = mined(scene, scores, "top_bottom", **thresholds)
    assert (pairs, drops["dropped"]) == ([], {"disagreement": 1, "fewer_than_two_scored": 3})


def test_a_row_of_the_table(scene):
    """Scores, their difference, samplers of both, judge and strategy; p_correct is null: nothing is calibrated."""
    scores = [[0.5, 0.25, 0.75, 0.5, 0.5], ABSTAIN, ABSTAIN, ABSTAIN]
    table, _ = mine(scene.panel(scores).lazy(), scene.proposals, strategy("top_base"), "pool", 0)
    assert table.rows(named=True) == [
        {
            "case_id": "c0",
            "case": 0,
            "chosen": 2,
            "rejected": 0,
            "chosen_score": 0.75,
            "rejected_score": 0.5,
            "margin": 0.25,
            "p_correct": None,
            "disagreement": 3,
            "chosen_sampler": "s",
            "rejected_sampler": "base",
            "judge": "j",
            "strategy": "top_base",
        }
    ]
    assert table.columns == list(schema.PAIRS.columns)


def test_strategy_none_is_empty(scene):
    panel = scene.panel([ABSTAIN] * 4)
    table, drops = mine(panel.lazy(), scene.proposals, strategy("none"), "pool", 0)
    assert table.schema == schema.PAIRS.columns
    assert len(table) == 0
    assert drops == {"cases": 0, "cases_with_pairs": 0, "pairs": 0, "dropped": {}}


@pytest.mark.parametrize("kind", NAMES)
def test_nothing_scored_is_an_empty_table(scene, kind):
    table, drops = mine(scene.panel([ABSTAIN] * 4).lazy(), scene.proposals, strategy(kind), "pool", 0)
    assert table.columns == list(schema.PAIRS.columns)
    assert drops == {"cases": 4, "cases_with_pairs": 0, "pairs": 0, "dropped": {"fewer_than_two_scored": 4}}


def test_only_the_split_is_mined(scene):
    panel = scene.panel([[0.5, 0.6, 0.9, 0.3, 0.1]] * 4).with_columns(
        pl.when(pl.col("case") < 3)
        .then(pl.lit("validation"))
        .otherwise(pl.lit("pool"))
        .cast(pl.Enum(schema.SPLITS))
        .alias("split")
    )
    table, drops = mine(panel.lazy(), scene.proposals, strategy("top_base"), "pool", 0)
    assert (table["case"].to_list(), drops["cases"]) == ([3], 1)


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("cases", [1, 3])
def test_blocks_of_cases_change_nothing(scene, monkeypatch, kind, cases):
    """One case or three at a time, where all four fit into one block."""
    scores = [[0.5, 0.6, 0.9, 0.3, 0.1], [0.9, 0.4, 0.6, 0.8, N], [0.1, 0.1, 0.1, 0.1, 0.1], [0.3, 0.9, 0.6, 0.3, 0.1]]
    together = mined(scene, scores, kind, max_pairs_per_case=2)
    assert together[0]
    monkeypatch.setattr(mining, "BLOCK", cases)
    assert mined(scene, scores, kind, max_pairs_per_case=2) == together


def test_a_judge_outside_the_panel_is_named(scene):
    wanted = PairSet.model_validate({"judge": "other", "strategy": {"kind": "top_base"}})
    with pytest.raises(BadInput, match="judge 'other' is not in the panel; name an entry of judges or tables"):
        mine(scene.panel([ABSTAIN] * 4).lazy(), scene.proposals, wanted, "pool", 0)


@pytest.mark.parametrize("bad", [{"min_margin": -0.1}, {"min_disagreement": 0}, {"max_pairs_per_case": 0}, {"top": 1}])
@pytest.mark.parametrize("kind", NAMES)
def test_thresholds_outside_their_range_are_refused(kind, bad):
    with pytest.raises(ValidationError):
        strategy(kind, **bad)


def test_region_of_two_slots():
    """101x against 011x: pixels 0 and 1 differ; 255 in either is outside."""
    masks = np.array([[1, 0, 1, UNKNOWN, 1], [0, 1, 1, UNKNOWN, UNKNOWN]], np.uint8)
    assert region(masks[0], masks[1]).tolist() == [True, True, False, False, False]


def test_the_pool_is_mined_to_files(scene, tmp_path: Path):
    """The panel file may hold the truth of validation; the pair file and the reasons beside it are written."""
    scores = [[0.5, 0.6, 0.9, 0.3, 0.1], [0.9, 0.4, 0.6, 0.8, 0.1], ABSTAIN, ABSTAIN]
    write_table(scene.panel(scores), schema.panel(["j"]), tmp_path / "panel.parquet", "a test")
    out = tmp_path / "pairs" / "mine.parquet"
    mine_to(tmp_path / "panel.parquet", ["j"], scene.proposals, strategy("top_base"), 0, out)
    assert read_table(out, schema.PAIRS).select("case_id", "chosen", "rejected").rows() == [("c0", 2, 0)]
    drops = json.loads((out.parent / "mine.drops.json").read_text())
    assert drops == {
        "cases": 4,
        "cases_with_pairs": 1,
        "pairs": 1,
        "dropped": {"base_is_top": 1, "fewer_than_two_scored": 2},
    }


# ---- properties ------------------------------------------------------------------------------------------------

scored = st.lists(
    st.lists(
        st.one_of(st.none(), st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), st.floats(-5, 5)), min_size=5, max_size=5
    ),
    min_size=4,
    max_size=4,
)


@settings(max_examples=60, deadline=None)
@given(
    scores=scored,
    kind=st.sampled_from(NAMES),
    most=st.integers(1, 4),
    margin=st.sampled_from([0.0, 0.3]),
    size=st.integers(1, 4),
    seed=st.integers(0, 5),
)
def test_every_pair_set(scene, scores, kind, most, margin, size, seed):
    """Chosen scores above rejected by the margin; |D| is that of the masks; no duplicate; every case is counted."""
    knobs = {"max_pairs_per_case": most, "min_margin": margin, "min_disagreement": size}
    panel = scene.panel(scores)
    table, drops = mine(panel.lazy(), scene.proposals, strategy(kind, **knobs), "pool", seed)
    score = {(case, slot): value for case, row in enumerate(scores) for slot, value in enumerate(row)}
    for row in table.iter_rows(named=True):
        case, chosen, rejected = row["case"], row["chosen"], row["rejected"]
        assert row["chosen_score"] == score[case, chosen] > score[case, rejected] == row["rejected_score"]
        assert row["margin"] == row["chosen_score"] - row["rejected_score"] >= margin
        assert row["disagreement"] == abs(LENGTHS[case][chosen] - LENGTHS[case][rejected]) >= size
        assert (case, 4) not in {(3, chosen), (3, rejected)}
        assert row["chosen_score"] == max(s for s in scores[case] if s is not None) or most > 1 or case == 3
    counts = table["case"].value_counts()["count"]
    assert counts.max() is None or counts.max() <= most
    assert drops["cases"] == drops["cases_with_pairs"] + sum(drops["dropped"].values()) == 4
    assert drops["pairs"] == len(table)
    again, _ = mine(
        panel.sample(fraction=1, shuffle=True, seed=seed).lazy(), scene.proposals, strategy(kind, **knobs), "pool", seed
    )
    assert again.equals(table), "the order of the panel's rows plays no part"


@settings(max_examples=15, deadline=None)
@given(scores=scored, kind=st.sampled_from(NAMES), seed=st.integers(0, 5))
def test_a_case_is_mined_alone(scene, scores, kind, seed):
    """Other cases may abstain altogether: the pairs of c1 stay."""
    alone = [row if case == 1 else ABSTAIN for case, row in enumerate(scores)]
    of_all, of_one = (mined(scene, given_, kind, seed=seed, max_pairs_per_case=2)[0] for given_ in (scores, alone))
    assert [pair for pair in of_all if pair[0] == 1] == of_one
