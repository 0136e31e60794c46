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

from pipeline.errors import BadInput
from pipeline.measures.overlap import region
from pipeline.pairs import mine as mining
from pipeline.pairs.calibration import Curve, knots
from pipeline.pairs.mine import PairSet, calibration_of, mine, mine_to
from pipeline.pairs.strategies import Mined
from pipeline.store import schema
from pipeline.store.cases import CaseStore
from pipeline.store.proposals import ProposalStore
from pipeline.store.schema import UNKNOWN
from pipeline.store.tables import read_table, write_table
from tests.fixtures.builders import bars, case_store, panel_of, proposal_store

NAMES = [get_args(kind.model_fields["kind"].annotation)[0] for kind in get_args(Mined)]
BY_TOP = [name for name in NAMES if name.startswith("top_")]
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


def test_pairs_with_their_disagreement_and_reasons(scene):
    """c0: .9 (slot 2, length 11) over .1 (slot 4, length 2): |D| = 9. c1: .8 (slot 3, 16) over .2 (slot 0, 8): 8."""
    scores = [[0.5, 0.6, 0.9, 0.3, 0.1], [0.2, 0.4, 0.6, 0.8, N], ABSTAIN, ABSTAIN]
    pairs, drops = mined(scene, scores, "top_bottom")
    assert pairs == [(0, 2, 4, 9), (1, 3, 0, 8)]
    assert drops == {"cases": 4, "cases_with_pairs": 2, "pairs": 2, "dropped": {"fewer_than_two_scored": 2}}


def test_a_base_on_top_has_its_own_reason(scene):
    """c0: .9 (11) over the base at .5 (8): 3. c1: the base is the best. c2: no score for the base. c3: .5 ties it."""
    scores = [[0.5, 0.6, 0.9, 0.3, 0.1], [0.9, 0.4, 0.6, 0.8, 0.1], [N, 0.4, 0.5, 0.6, 0.7], [0.5, 0.5, N, N, N]]
    pairs, drops = mined(scene, scores, "top_base")
    assert pairs == [(0, 2, 0, 3)]
    assert drops["dropped"] == {"base_is_top": 1, "fewer_than_two_scored": 1, "tie": 1}


def test_ties_are_dropped_and_never_broken_by_index(scene):
    """c0: two proposals share the top. c1: two share the bottom. c2: all are equal."""
    scores = [[0.5, 0.9, 0.9, 0.3, 0.1], [0.5, 0.6, 0.9, 0.1, 0.1], [0.5] * 5, ABSTAIN]
    pairs, drops = mined(scene, scores, "top_bottom")
    assert (pairs, drops["dropped"]) == ([], {"tie": 3, "fewer_than_two_scored": 1})
    pairs, drops = mined(scene, scores, "top_base")
    assert (pairs, drops["dropped"]) == ([(1, 2, 0, 4)], {"tie": 2, "fewer_than_two_scored": 1})


@pytest.mark.parametrize("kind", BY_TOP)
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


RISING = Curve(np.array([0.0, 0.8]), np.array([0.4, 0.8]))
"""P = .4 + margin / 2 up to a margin of .8."""


def test_a_calibration_fills_p_correct_and_drops_what_is_more_likely_wrong(scene):
    """top_base, margins .4, .1, .4, .5: p = .6, .45, .6, .65. Below one half is dropped, but for a threshold of 0."""
    scores = [[0.5, N, 0.9, N, N], [0.5, N, N, 0.6, N], [0.5, 0.9, N, N, N], [0.4, N, N, 0.9, N]]
    panel = scene.panel(scores).lazy()
    table, drops = mine(panel, scene.proposals, strategy("top_base"), "pool", 0, RISING)
    assert table["p_correct"].to_list() == pytest.approx([0.6, 0.6, 0.65])
    assert drops["dropped"] == {"p_correct": 1}
    table, drops = mine(panel, scene.proposals, strategy("top_base", min_p_correct=0.0), "pool", 0, RISING)
    assert table["p_correct"].to_list() == pytest.approx([0.6, 0.45, 0.6, 0.65])
    assert drops["dropped"] == {}


def test_pairs_that_are_too_likely_wrong_are_dropped(scene):
    """At least .5 loses c1 (.45); at least .62 leaves c3 (.65) alone. The margin is looked at first."""
    scores = [[0.5, N, 0.9, N, N], [0.5, N, N, 0.6, N], [0.5, 0.9, N, N, N], [0.4, N, N, 0.9, N]]
    panel = scene.panel(scores).lazy()
    for least, left, dropped in ((0.5, [0, 2, 3], 1), (0.62, [3], 3)):
        wanted = strategy("top_base", min_p_correct=least)
        table, drops = mine(panel, scene.proposals, wanted, "pool", 0, RISING)
        assert (table["case"].to_list(), drops["dropped"]) == (left, {"p_correct": dropped})
    wanted = strategy("top_base", min_p_correct=0.62, min_margin=0.2)
    assert mine(panel, scene.proposals, wanted, "pool", 0, RISING)[1]["dropped"] == {"margin": 1, "p_correct": 2}


def test_a_threshold_on_p_needs_a_calibration(scene):
    wanted = strategy("top_base", min_p_correct=0.6)
    message = r"min_p_correct is 0.6, but pairs of judge 'j' by 'top_base' are not calibrated. .* min_p_correct to null"
    with pytest.raises(BadInput, match=message):
        mine(scene.panel([ABSTAIN] * 4).lazy(), scene.proposals, wanted, "pool", 0)


@pytest.mark.parametrize("least", [-0.1, 1.0])
def test_a_threshold_on_p_is_a_probability_below_1(least):
    with pytest.raises(ValidationError):
        strategy("top_base", min_p_correct=least)


def test_the_cases_with_the_largest_margins_are_kept(scene):
    """Widest margins .4, .1, .3, .5. Half of four cases: c0 and c3, with all of their pairs. .6 of 4 = 2.4: two
    cases; .7 of 4 = 2.8: three; .01: at least one."""
    scores = [[0.5, 0.6, 0.9, N, N], [0.5, N, N, 0.6, N], [0.5, 0.8, N, N, N], [0.25, N, N, 0.75, N]]
    for fraction, left in (
        (0.5, [0, 0, 3]),
        (0.6, [0, 0, 3]),
        (0.7, [0, 0, 2, 3]),
        (0.01, [3]),
        (1.0, [0, 0, 1, 2, 3]),
    ):
        pairs, drops = mined(scene, scores, "top_base", max_pairs_per_case=2, keep_fraction=fraction)
        assert [case for case, *_ in pairs] == left
        lost = 4 - len(set(left))
        assert drops["dropped"] == ({"fraction": lost} if lost else {})


def test_the_fraction_is_of_the_cases_that_have_a_pair_left(scene):
    """c1 falls by its margin, c2 by |D| = 1; half of the two others is one, c3."""
    scores = [[0.5, N, 0.9, N, N], [0.5, N, N, 0.6, N], [0.5, 0.9, N, N, N], [0.25, N, N, 0.75, N]]
    pairs, drops = mined(scene, scores, "top_base", min_margin=0.2, min_disagreement=3, keep_fraction=0.5)
    assert [case for case, *_ in pairs] == [3]
    assert drops["dropped"] == {"margin": 1, "disagreement": 1, "fraction": 1}


def test_cases_that_share_the_margin_at_the_cut_are_dropped_together(scene):
    """Margins .5, .25, .25, .25: half of four would be c0 and one of three alike."""
    scores = [[0.25, N, 0.75, N, N], [0.5, N, N, 0.75, N], [0.5, 0.75, N, N, N], [0.5, N, N, 0.75, N]]
    pairs, drops = mined(scene, scores, "top_base", keep_fraction=0.5)
    assert ([case for case, *_ in pairs], drops["dropped"]) == ([0], {"fraction": 3})


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
    filters = {"max_pairs_per_case": 2, "keep_fraction": 0.7}
    together = mined(scene, scores, kind, **filters)
    assert together[0]
    monkeypatch.setattr(mining, "BLOCK", cases)
    assert mined(scene, scores, kind, **filters) == together


def test_a_judge_outside_the_panel_is_named(scene):
    wanted = PairSet.model_validate({"judge": "other", "strategy": {"kind": "top_base"}})
    with pytest.raises(
        BadInput, match="judge 'other' is not in the panel; name an entry of judges, tables or consensus"
    ):
        mine(scene.panel([ABSTAIN] * 4).lazy(), scene.proposals, wanted, "pool", 0)


def test_rows_in_another_order_are_refused(scene):
    panel = scene.panel([[0.5, 0.6, 0.9, 0.3, 0.1]] * 4)
    expected = (
        r"panel: expected the rows in the order of case_id and proposal, with the proposals 0 to 4 of every case; "
        r"found another order from case 'c0' on; run `dvc repro panel`"
    )
    for wrong in (panel.sort("proposal", descending=True).sort("case", maintain_order=True), panel[:-1]):
        with pytest.raises(BadInput, match=expected):
            mine(wrong.lazy(), scene.proposals, strategy("top_base"), "pool", 0)


def test_an_infinite_score_is_refused(scene):
    panel = scene.panel([ABSTAIN, [0.5, 0.6, float("-inf"), 0.3, 0.1], ABSTAIN, ABSTAIN]).lazy()
    with pytest.raises(BadInput, match="judge 'j': case 'c1' has an infinite score; scores are finite, or null"):
        mine(panel, scene.proposals, strategy("top_base"), "pool", 0)


@pytest.mark.parametrize(
    "bad",
    [
        {"min_margin": -0.1},
        {"min_disagreement": 0},
        {"max_pairs_per_case": 0},
        {"keep_fraction": 0.0},
        {"keep_fraction": 1.1},
        {"top": 1},
    ],
)
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


@pytest.fixture
def files(scene, tmp_path: Path) -> Path:
    """A panel file of one judge whose top pick beats the base by .4 in c0, and a calibration of the pair set `good`."""
    scores = [[0.5, 0.6, 0.9, 0.3, 0.1], ABSTAIN, ABSTAIN, ABSTAIN]
    write_table(scene.panel(scores), schema.panel(["j"]), tmp_path / "panel.parquet", "a test")
    table = knots("good", "j", "top_base", RISING)
    write_table(table, schema.CALIBRATION, tmp_path / "audit/calibration.parquet", "a test")
    return tmp_path


def test_the_audit_s_calibration_is_looked_up_by_name(scene, files):
    for name, p in (("good", 0.6), ("unknown", None)):
        out = files / f"{name}.parquet"
        mine_to(
            files / "panel.parquet",
            ["j"],
            scene.proposals,
            strategy("top_base"),
            0,
            out,
            calibration_of(files / "audit", name, strategy("top_base")),
        )
        assert read_table(out, schema.PAIRS)["p_correct"].to_list() == [pytest.approx(p) if p else None]


def test_a_calibration_of_another_strategy_is_refused(scene, files):
    expected = (
        r"calibration.parquet: pair set 'good' is calibrated for judge and strategy \('j', 'top_base'\), "
        r"expected \('j', 'top_bottom'\); run `dvc repro audit`"
    )
    other = strategy("top_bottom")
    with pytest.raises(BadInput, match=expected):
        calibration_of(files / "audit", "good", other)


# ---- properties ------------------------------------------------------------------------------------------------

scored = st.lists(
    st.lists(
        st.one_of(st.none(), st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), st.floats(-5, 5)), min_size=5, max_size=5
    ),
    min_size=4,
    max_size=4,
)


@settings(max_examples=60)
@given(
    scores=scored,
    kind=st.sampled_from(NAMES),
    most=st.integers(1, 4),
    margin=st.sampled_from([0.0, 0.3]),
    size=st.integers(1, 4),
    fraction=st.sampled_from([0.5, 1.0]),
    seed=st.integers(0, 5),
)
def test_every_pair_set(scene, scores, kind, most, margin, size, fraction, seed):
    """Chosen scores above rejected by the margin; |D| is that of the masks; no duplicate; every case is counted."""
    knobs = {"max_pairs_per_case": most, "min_margin": margin, "min_disagreement": size, "keep_fraction": fraction}
    panel = scene.panel(scores)
    table, drops = mine(panel.lazy(), scene.proposals, strategy(kind, **knobs), "pool", seed)
    score = {(case, slot): value for case, row in enumerate(scores) for slot, value in enumerate(row)}
    for row in table.iter_rows(named=True):
        case, chosen, rejected = row["case"], row["chosen"], row["rejected"]
        assert row["chosen_score"] == score[case, chosen] > score[case, rejected] == row["rejected_score"]
        assert row["margin"] == row["chosen_score"] - row["rejected_score"] >= margin
        assert row["disagreement"] == abs(LENGTHS[case][chosen] - LENGTHS[case][rejected]) >= size
        assert (case, 4) not in {(3, chosen), (3, rejected)}
        if most == 1 and case != 3 and kind in BY_TOP:
            rivals = scores[case][kind == "top_base" :]
            assert row["chosen_score"] == max(s for s in rivals if s is not None)
    counts = table["case"].value_counts()["count"]
    assert counts.max() is None or counts.max() <= most
    assert drops["cases"] == drops["cases_with_pairs"] + sum(drops["dropped"].values()) == 4
    assert drops["pairs"] == len(table)
    assert table.equals(table.sort(schema.PAIRS.key))


@settings(max_examples=15)
@given(scores=scored, kind=st.sampled_from(NAMES), seed=st.integers(0, 5))
def test_a_case_is_mined_alone(scene, scores, kind, seed):
    """Other cases may abstain altogether: the pairs of c1 stay."""
    alone = [row if case == 1 else ABSTAIN for case, row in enumerate(scores)]
    of_all, of_one = (mined(scene, given_, kind, seed=seed, max_pairs_per_case=2)[0] for given_ in (scores, alone))
    assert [pair for pair in of_all if pair[0] == 1] == of_one
