"""Pairs of reviewers: what their answers make of two masks, alone and beside the pairs of a judge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.pairs.calibration import Curve
from pipeline.pairs.mine import PairSet
from pipeline.pairs.reviewed import Curves, judged, mine_reviewed, mine_reviewed_to, read_answers, reviewer_curve
from pipeline.store import schema
from pipeline.store.cases import CaseStore
from pipeline.store.proposals import Data, ProposalStore
from pipeline.store.tables import read_table, write_table
from tests.fixtures.answering import answered, write_answers
from tests.fixtures.builders import bars, case_store, panel_of, proposal_store

ALONE = PairSet.model_validate({"judge": "none", "strategy": {"kind": "reviewed"}})
BESIDE = PairSet.model_validate({"judge": "j", "strategy": {"kind": "reviewed", "otherwise": {"kind": "top_bottom"}}})
SCORES = [[0.5, 0.9, 0.1]] * 4


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> tuple[CaseStore, ProposalStore]:
    """Four cases of the pool with bars of the lengths 8, 10 and 4: |D| is 2, 4 and 6."""
    folder = tmp_path_factory.mktemp("reviewed")
    cases = case_store(folder / "cases", [bars([9])[0]] * 4, ["pool"] * 4)
    return cases, proposal_store(folder / "proposals", [bars([8, 10, 4])] * 4)


def said(case: str, a: int, b: int, *answers: str, **columns: Any) -> list[dict[str, Any]]:
    return [{"case_id": case, "slot_a": a, "slot_b": b, "answer": answer, **columns} for answer in answers]


def mined(stores, pairs: PairSet, rows: list[dict[str, Any]], curves: Curves = Curves()):  # noqa: B008
    panel = panel_of(*stores, {"j": SCORES}).lazy().drop("true_dice")
    return mine_reviewed(panel, stores[1], pairs, "pool", 0, answered(rows), curves)


def test_an_answer_makes_a_pair_and_no_preference_makes_none(stores):
    """c0: mask 2 over mask 1. c1: two of three answers for mask 0. c2: repeats contradict. c3: equal, then unusable."""
    rows = [
        *said("c0", 1, 2, "b"),
        *said("c1", 0, 1, "a", "b", "a"),
        *said("c2", 0, 2, "a", "b"),
        *said("c3", 0, 1, "equal", "unusable"),
    ]
    table, counts = mined(stores, ALONE, rows)
    columns = ("case_id", "chosen", "rejected", "chosen_score", "rejected_score", "margin", "disagreement", "judge")
    assert table.select(columns).rows() == [
        ("c0", 2, 1, 1.0, 0.0, 1.0, 6, "none"),
        ("c1", 0, 1, 2.0, 1.0, 1.0, 2, "none"),
    ]
    assert table["p_correct"].null_count() == 2, "without repeats nothing is known of the reviewer"
    assert counts == {
        "cases": 4,
        "cases_with_pairs": 2,
        "pairs": 2,
        "dropped": {"undecided": 1, "tie": 1},
        "reviewed": {"pairs": 2, "answers": 4, "reviewers": 1},
    }


def test_cases_without_an_answer_and_small_regions_are_counted(stores):
    pairs = ALONE.model_copy(update={"strategy": ALONE.strategy.model_copy(update={"min_disagreement": 3})})
    table, counts = mined(stores, pairs, [*said("c0", 0, 1, "a"), *said("c1", 0, 2, "a")])
    assert table["case_id"].to_list() == ["c1"]
    assert counts["dropped"] == {"not_reviewed": 2, "disagreement": 1}


def test_the_judge_orders_the_cases_without_a_pair_of_reviewers(stores):
    """The judge likes mask 1 most and mask 2 least. The reviewer of c0 says the reverse, the one of c2 nothing."""
    table, counts = mined(stores, BESIDE, [*said("c0", 1, 2, "b"), *said("c2", 0, 1, "equal")])
    assert table.select("case_id", "chosen", "rejected", "judge", "strategy").rows() == [
        ("c0", 2, 1, "none", "reviewed"),
        *((case, 1, 2, "j", "top_bottom") for case in ("c1", "c2", "c3")),
    ]
    assert (counts["pairs"], counts["cases_with_pairs"], counts["reviewed"]["pairs"]) == (4, 4, 1)
    table, counts = mined(stores, BESIDE, said("c2", 1, 2, "equal"))
    assert table["case_id"].to_list() == ["c0", "c1", "c3"], "the reviewer saw the pair of the judge, and no difference"
    assert counts["dropped"] == {"undecided": 1}


def test_p_correct_of_a_pair_of_reviewers(stores):
    """e = .2: one answer is right with .8, two answers with .64 / (.64 + .04) = .941, and 2 of 3 as one."""
    rows = [*said("c0", 0, 1, "a"), *said("c1", 0, 1, "a", "a"), *said("c2", 0, 1, "a", "b", "a")]
    curves = Curves(reviewer_curve(0.2), Curve(pl.Series([0.0]).to_numpy(), pl.Series([0.6]).to_numpy()))
    table, _ = mined(stores, BESIDE, rows, curves)
    assert table["p_correct"].to_list() == pytest.approx([0.8, 0.64 / 0.68, 0.8, 0.6])
    assert reviewer_curve(None) is None


def test_what_a_judge_orders():
    assert judged(ALONE) is None
    part = judged(BESIDE)
    assert (part.judge, part.strategy.kind) == ("j", "top_bottom")
    assert judged(part) == part


def test_the_table_on_disk_names_no_reviewer(stores, tmp_path: Path):
    panel = panel_of(*stores, {"j": SCORES})
    write_table(panel, schema.panel(["j"]), tmp_path / "panel.parquet", "a test")
    rows = [*said("c0", 0, 1, "a", reviewer="x"), *said("c1", 0, 1, "b", reviewer="y")]
    data = Data(*stores, write_answers(tmp_path / "verdicts.parquet", rows, *stores))
    mine_reviewed_to(tmp_path / "panel.parquet", ["j"], data, ALONE, 0, tmp_path / "p.parquet", Curves())
    assert read_table(tmp_path / "p.parquet", schema.PAIRS).select("chosen", "rejected").rows() == [(0, 1), (1, 0)]
    assert json.loads((tmp_path / "p.drops.json").read_text())["reviewed"] == {"pairs": 2, "answers": 2, "reviewers": 2}


def test_masks_that_changed_places_keep_their_answer(stores, tmp_path: Path):
    """The answer prefers the mask that is in slot 2 now. The mask in slot 0 was mask `b` of the review."""
    rows = said("c0", 2, 0, "a")
    found = read_answers(Data(*stores, write_answers(tmp_path / "verdicts.parquet", rows, *stores)))
    assert found.select("slot_a", "slot_b", "answer").rows() == [(0, 2, "b")]
    assert read_answers(Data(*stores)).is_empty()


@given(st.lists(st.tuples(st.sampled_from([(0, 1), (0, 2), (1, 2)]), st.sampled_from(schema.ANSWERS)), max_size=12))
def test_turning_every_answer_turns_every_pair(stores, given_answers):
    turned = {"a": "b", "b": "a", "equal": "equal", "unusable": "unusable"}
    rows = [row for (a, b), answer in given_answers for row in said("c0", a, b, answer)]
    back = [{**row, "answer": turned[row["answer"]]} for row in rows]
    one, other = (set(mined(stores, ALONE, some)[0].select("chosen", "rejected").rows()) for some in (rows, back))
    assert {(rejected, chosen) for chosen, rejected in one} == other
