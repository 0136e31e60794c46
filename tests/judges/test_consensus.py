"""Consensus entries: one contract for all kinds, ranks and weights by hand."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from scipy.stats import rankdata, spearmanr

import pipeline.judges.consensus as module
from pipeline.errors import BadInput
from pipeline.judges.consensus import JudgeConsensus, check_consensus, with_consensus
from pipeline.measures.ranking import within_case_spearman

KINDS = [get_args(kind.model_fields["kind"].annotation)[0] for kind in get_args(get_args(JudgeConsensus)[0])]
EXAMPLES: dict[str, dict[str, Any]] = {"rank_mean": {}, "weighted": {}, "unanimous": {"max_spread": 0.5}}
"""Knobs with which each kind keeps the contract."""

Cases = Sequence[Sequence[float | None]]


def entry(kind: str, judges: Sequence[str] = ("a", "b"), **knobs: Any) -> Any:
    return TypeAdapter(JudgeConsensus).validate_python({"kind": kind, "judges": tuple(judges), **knobs})


def panel(
    scores: dict[str, Cases],
    truth: Cases | None = None,
    groups: Sequence[str] | None = None,
    duplicates: Cases | None = None,
) -> pl.DataFrame:
    """Panel rows with scores and true Dice `[case][proposal]`; by default all are distinct and of the pool."""
    shape = [len(case) for case in next(iter(scores.values()))]
    none = [[None] * length for length in shape]
    rows = [(case, slot) for case, length in enumerate(shape) for slot in range(length)]
    return pl.DataFrame(
        {
            "case": pl.Series([case for case, _ in rows], dtype=pl.Int32),
            "proposal": pl.Series([slot for _, slot in rows], dtype=pl.Int32),
            "group": [f"p{case}" if groups is None else groups[case] for case, _ in rows],
            "duplicate_of": pl.Series([d for case in duplicates or none for d in case], dtype=pl.Int32),
            "true_dice": pl.Series([d for case in truth or none for d in case], dtype=pl.Float64),
            **{
                f"score_{judge}": pl.Series([s for case in of_case for s in case], dtype=pl.Float64)
                for judge, of_case in scores.items()
            },
        }
    )


def combined(rows: pl.DataFrame, knobs: Any) -> list[list[float | None]]:
    found = with_consensus(rows, {"x": knobs})
    return [case["score_x"].to_list() for _, case in found.group_by("case", maintain_order=True)]


def noise(cases: int = 6, slots: int = 5) -> pl.DataFrame:
    """Scores with ties, abstentions and duplicates; half of the cases are validation, in pairs of one patient,
    and there a is mostly right."""
    draws = np.random.default_rng(0)
    values = {judge: draws.integers(4, size=(cases, slots)) / 4 for judge in "ab"}
    scores = {
        judge: [[None if v == 0 and n else v for n, v in enumerate(row)] for row in v] for judge, v in values.items()
    }
    dice = values["a"] / 4 + draws.random((cases, slots)) / 2
    truth = [dice[case].tolist() if case < cases // 2 else [None] * slots for case in range(cases)]
    duplicates = [[None, None, 0, None, None]] * cases
    return panel(scores, truth, [f"p{case // 2}" for case in range(cases)], duplicates)


# ---- the contract ----------------------------------------------------------------------------------------------


def test_every_kind_has_an_example():
    assert list(EXAMPLES) == KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_every_entry_scores_between_0_and_1_or_abstains(kind):
    """Null wherever a named judge abstained; duplicates as the first of their mask; the rows are otherwise kept."""
    rows, knobs = noise(), entry(kind, **EXAMPLES[kind])
    found = with_consensus(rows, {"x": knobs})
    assert found.drop("score_x").equals(rows)
    scores = found["score_x"]
    assert scores.null_count() < len(scores)
    assert not scores.is_nan().any()
    assert scores.is_between(0, 1).all()
    first = found.filter(pl.col("duplicate_of").is_null())
    assert first.filter(pl.col("score_a").is_null() | pl.col("score_b").is_null())["score_x"].null_count() > 0
    assert first.filter(pl.col("score_a").is_null() | pl.col("score_b").is_null())["score_x"].is_null().all()
    assert found.filter(pl.col("proposal") == 2)["score_x"].equals(found.filter(pl.col("proposal") == 0)["score_x"])


@pytest.mark.parametrize("kind", KINDS)
def test_every_entry_gives_equal_bits_in_any_order_of_rows_and_blocks(monkeypatch, kind):
    rows, knobs = noise(), entry(kind, **EXAMPLES[kind])
    expected = with_consensus(rows, {"x": knobs})
    assert with_consensus(rows.reverse(), {"x": knobs}).equals(expected)
    assert with_consensus(rows, {"x": pickle.loads(pickle.dumps(knobs))}).equals(expected)
    monkeypatch.setattr(module, "BLOCK", 2)
    assert with_consensus(rows, {"x": knobs}).equals(expected)


@pytest.mark.parametrize("kind", KINDS)
def test_every_entry_depends_on_the_order_of_scores_alone(kind):
    rows, knobs = noise(), entry(kind, **EXAMPLES[kind])
    other = rows.with_columns(pl.col("score_a").exp() * 100 - 7)
    assert combined(rows, knobs) == combined(other, knobs)


@pytest.mark.parametrize("kind", KINDS)
def test_every_entry_on_extremes(kind):
    """A single proposal, equal scores, nothing scored, fewer proposals than other cases; and no rows at all."""
    some = [[1.0], [2.0, 2.0], [None, None], [1.0, 2.0, 3.0]]
    rows = panel({"a": some, "b": some}, some)
    assert combined(rows, entry(kind)) == [[0.5], [0.5, 0.5], [None, None], [0, 0.5, 1]]
    empty = with_consensus(rows.clear(), {"x": entry(kind)})
    assert (len(empty), empty["score_x"].dtype) == (0, pl.Float64)


@pytest.mark.parametrize("kind", KINDS)
def test_every_entry_names_at_least_two_different_judges(kind):
    with pytest.raises(ValidationError, match="at least 2 items"):
        entry(kind, ["a"])
    with pytest.raises(ValidationError, match=r"expected different judges, found \['a', 'b', 'a'\]"):
        entry(kind, ["a", "b", "a"])


def test_names():
    entries = {"x": entry("rank_mean")}
    check_consensus(entries, ["a", "b"])
    with pytest.raises(BadInput, match=r"consensus.x.judges: no judge 'b'; there are \['a', 'c'\]"):
        check_consensus(entries, ["a", "c"])
    with pytest.raises(BadInput, match=r"consensus.x: a judge or score table has the same name; choose another"):
        check_consensus(entries, ["a", "b", "x"])
    with pytest.raises(BadInput, match=r"consensus.y.judges: no judge 'x'"):
        check_consensus({**entries, "y": entry("rank_mean", ["a", "x"])}, ["a", "b"])


# ---- ranks -----------------------------------------------------------------------------------------------------


def test_rank_mean():
    """a ranks 0, 1/2, 1; b, in other units, 1, 0, 1/2: means 1/2, 1/4, 3/4."""
    rows = panel({"a": [[0.1, 0.5, 0.9]], "b": [[30, -1, 2]]})
    assert combined(rows, entry("rank_mean")) == [[0.5, 0.25, 0.75]]


def test_ties_share_their_mean_rank():
    """a: 1.5, 1.5 and 3 of 1 to 3 are 1/4, 1/4 and 1; b: 0, 1/2, 1. Means 1/8, 3/8, 1."""
    rows = panel({"a": [[5, 5, 9]], "b": [[1, 2, 3]]})
    assert combined(rows, entry("rank_mean")) == [[0.125, 0.375, 1]]


def test_equal_mean_ranks_are_a_tie_to_the_last_bit():
    """Seven proposals, ranks in sixths; three judges rank the first three 0 1 2, 1 2 0, 2 0 1."""
    rest = [3.0, 4.0, 5.0, 6.0]
    rows = panel({"a": [[0, 1, 2, *rest]], "b": [[1, 2, 0, *rest]], "c": [[2, 0, 1, *rest]]})
    ((first, second, third, *_),) = combined(rows, entry("rank_mean", "abc"))
    assert first == second == third == pytest.approx(1 / 6)


def test_an_abstention_leaves_the_proposal_out_for_all_judges():
    """b has no score for the third: of the first two, a ranks 0, 1 and b 1, 0."""
    rows = panel({"a": [[0.1, 0.5, 0.9]], "b": [[30, -1, None]]})
    assert combined(rows, entry("rank_mean")) == [[0.5, 0.5, None]]


def test_duplicates_are_ranked_once():
    """Slots 1 and 2 are copies of slot 0, whatever a table says of them: 0 ranks 0 and 3 ranks 1."""
    rows = panel({"a": [[0.1, 7, None, 0.9]], "b": [[1, 8, 2, 2]]}, duplicates=[[None, 0, 0, None]])
    assert combined(rows, entry("rank_mean")) == [[0, 0, 0, 1]]


def test_unanimous():
    """a ranks 0, 1/2, 1; b 1/2, 0, 1: spreads 1/2, 1/2, 0; the limit itself is allowed."""
    rows = panel({"a": [[1, 2, 3]], "b": [[2, 1, 3]]})
    assert combined(rows, entry("unanimous")) == [[None, None, 1]]
    assert combined(rows, entry("unanimous", max_spread=0.5)) == [[0.25, 0.25, 1]]
    assert combined(rows, entry("unanimous", max_spread=0.49)) == [[None, None, 1]]


@given(st.lists(st.lists(st.integers(0, 5), min_size=6, max_size=6), min_size=2, max_size=3))
@settings(max_examples=40)
def test_ranks_are_those_of_scipy(values):
    """Mean of the average ranks, scaled from 1..6 to 0..1."""
    judges = "abc"[: len(values)]
    rows = panel({judge: [[float(v) for v in row]] for judge, row in zip(judges, values, strict=True)})
    expected = np.mean([(rankdata(row) - 1) / 5 for row in values], axis=0)
    assert combined(rows, entry("rank_mean", judges))[0] == pytest.approx(expected.tolist())


# ---- weights ---------------------------------------------------------------------------------------------------

TRUTH = [[0.1, 0.2, 0.3]] * 3 + [[None] * 3]
"""Three validation cases and one of the pool."""
A = [[1, 2, 3], [1, 2, 3], [1, 3, 2], [1, 2, 3]]
"""Spearman with truth 1, 1 and 1 - 6 * 2 / 24 = 1/2: mean 5/6."""
B = [[1, 3, 2], [2, 3, 1], [1, 3, 2], [3, 2, 1]]
"""1/2, 1 - 6 * 6 / 24 = -1/2, 1/2: mean 1/6."""


def test_weights_come_from_validation():
    """Pool: weights 5 to 1, a ranks 0, 1/2, 1 and b 1, 1/2, 0: 1/6, 1/2, 5/6."""
    rows = panel({"a": A, "b": B}, TRUTH)
    assert combined(rows, entry("weighted"))[3] == pytest.approx([1 / 6, 1 / 2, 5 / 6])


def test_a_validation_case_has_weights_from_the_other_patients():
    """First: a has (1 + 1/2) / 2 = 3/4, b (-1/2 + 1/2) / 2 = 0: a's ranks 0, 1/2, 1.

    Second: a 3/4, b 1/2; a ranks 0, 1/2, 1, b 1/2, 1, 0: (0 + 1/4) / (5/4) = 1/5, (3/8 + 1/2) / (5/4) = 7/10,
    (3/4) / (5/4) = 3/5. Third: a 1, b 0: a's ranks 0, 1, 1/2.
    """
    first, second, third, _ = combined(panel({"a": A, "b": B}, TRUTH), entry("weighted"))
    assert first == [0, 0.5, 1]
    assert second == pytest.approx([0.2, 0.7, 0.6])
    assert third == [0, 1, 0.5]


def test_weights_leave_out_all_cases_of_the_patient():
    """First and third are one patient: both have the second's weights, a 1 and b 0 (negative)."""
    found = combined(panel({"a": A, "b": B}, TRUTH, ["p", "q", "p", "r"]), entry("weighted"))
    assert found[0] == [0, 0.5, 1]
    assert found[2] == [0, 1, 0.5]
    found = combined(panel({"a": A, "b": B}, TRUTH, ["p"] * 4), entry("weighted"))
    assert found[0] == pytest.approx([0, (5 / 12 + 1 / 6) / 1, (5 / 6 + 1 / 12) / 1]), "one patient: 5/6 and 1/6"


def test_patients_count_equally():
    """First and second are one patient: a has (1 + 1) / 2 and 1/2, together 3/4, b (1/2 - 1/2) / 2 and 1/2: 1/4.

    Pool: a ranks 0, 1/2, 1 and b 1, 1/2, 0, with weights 3 to 1."""
    found = combined(panel({"a": A, "b": B}, TRUTH, ["p", "p", "q", "r"]), entry("weighted"))
    assert found[3] == pytest.approx([1 / 4, 1 / 2, 3 / 4])


def test_judges_without_reliability_have_no_weight():
    """b is constant, so nothing is known of it; with both unknown or wrong, nothing is scored."""
    constant = [[1, 1, 1]] * 4
    assert combined(panel({"a": A, "b": constant}, TRUTH), entry("weighted"))[3] == [0, 0.5, 1]
    wrong = [[3, 2, 1]] * 4
    assert combined(panel({"a": wrong, "b": constant}, TRUTH), entry("weighted")) == [[None] * 3] * 4


def test_weights_need_validation_cases():
    with pytest.raises(BadInput) as caught:
        with_consensus(panel({"a": A, "b": B}), {"x": entry("weighted")})
    assert str(caught.value) == (
        "consensus.x: no validation proposals to weigh the judges by; add 'validation' to propose.splits"
    )


def test_within_case_spearman():
    draws = np.random.default_rng(0)
    scores, truth = draws.integers(4, size=(2, 5, 6)) / 4, draws.integers(4, size=(5, 6)) / 4
    scores[0, 4] = 0.5
    found = within_case_spearman(scores, truth)
    for judge, case in np.ndindex(2, 5):
        if (judge, case) == (0, 4):
            assert np.isnan(found[judge, case])
        else:
            assert found[judge, case] == pytest.approx(spearmanr(scores[judge, case], truth[case]).statistic)
