"""Strategies on bare scores: which two slots are compared, and where only an index would decide."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from itertools import combinations
from typing import Any, get_args

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from pipeline.pairs.strategies import Mined, Strategy
from pipeline.pairs.strategies.none import NoPairs
from pipeline.pairs.strategies.reviewed import Reviewed
from pipeline.pairs.strategies.strategy import Candidates, Scored

EXAMPLES: dict[str, dict[str, Any]] = {
    "top_bottom": {"max_pairs_per_case": 2},
    "top_base": {"max_pairs_per_case": 2},
    "top_random": {"max_pairs_per_case": 2},
    "top_quantile": {"max_pairs_per_case": 2, "deviations": 1.0},
    "random": {"max_pairs_per_case": 2},
    "all_pairs": {"max_pairs_per_case": 3},
}
"""Knobs of every strategy that makes pairs; one that is missing fails the contract."""
NAMES = [get_args(kind.model_fields["kind"].annotation)[0] for kind in get_args(Mined)]
N = float("nan")
Rows = Sequence[Sequence[float]]


def strategy(kind: str, **knobs: Any) -> Any:
    return TypeAdapter(Strategy).validate_python({"kind": kind, **knobs})


def candidates(rows: Rows | np.ndarray, kind: str, seed: int = 0, first: int = 0, **knobs: Any) -> Candidates:
    """Candidates of the cases `c<first>`, ..., one row of scores each."""
    names = pl.Series([f"c{first + row}" for row in range(len(rows))], dtype=pl.String)
    return strategy(kind, **knobs).candidates(Scored(names, np.array(rows, np.float64)), seed)


def pairs(rows: Rows, kind: str, seed: int = 0, **knobs: Any) -> list[tuple[int, int, int]]:
    """(case, chosen, rejected) of the candidates that are no tie, in their order."""
    found = candidates(rows, kind, seed, **knobs)
    return [(int(r), int(c), int(w)) for r, c, w, tie in zip(*found, strict=True) if not tie]


def test_both_unions_list_the_same_strategies():
    assert {*get_args(Mined), NoPairs, Reviewed} == set(get_args(get_args(Strategy)[0]))
    otherwise, _ = get_args(Reviewed.model_fields["otherwise"].annotation)
    assert get_args(get_args(otherwise)[0]) == get_args(Mined)


# ---- by hand ---------------------------------------------------------------------------------------------------


def test_top_bottom():
    """Best over worst; without a score slot 4 of the second case is not there."""
    assert pairs([[0.5, 0.6, 0.9, 0.3, 0.1], [0.2, 0.4, 0.6, 0.8, N]], "top_bottom") == [(0, 2, 4), (1, 3, 0)]


def test_top_bottom_goes_inwards():
    """Five scores make two pairs, .9 over .1 and .6 over .3; the middle stays single. Three scores make one."""
    rows = [[0.5, 0.6, 0.9, 0.3, 0.1], [0.2, 0.4, 0.6, N, N]]
    assert pairs(rows, "top_bottom", max_pairs_per_case=3) == [(0, 2, 4), (0, 1, 3), (1, 2, 0)]


def test_top_base():
    """.9 over the base at .5, then .6; .3 is below it: a candidate of negative margin, which mining counts."""
    rows = [[0.5, 0.6, 0.9, 0.3], [N, 0.4, 0.5, 0.6]]
    assert pairs(rows, "top_base", max_pairs_per_case=3) == [(0, 2, 0), (0, 1, 0), (0, 3, 0)]


def test_a_tie_below_the_top_costs_its_own_pair_only():
    """.9 beats the base at .1; the two at .5 tie for the second place, so only one pair is left, and 0 comes last."""
    assert pairs([[0.1, 0.5, 0.9, 0.5, 0.0]], "top_base", max_pairs_per_case=4) == [(0, 2, 0), (0, 4, 0)]


def test_top_random_draws_each_of_the_others():
    scores = [[0.5, 0.6, 0.9, 0.3, 0.1]]
    everything = {(0, 2, 0), (0, 2, 1), (0, 2, 3), (0, 2, 4)}
    assert set(pairs(scores, "top_random", max_pairs_per_case=9)) == everything
    drawn = [pairs(scores, "top_random", seed=seed) for seed in range(30)]
    assert all(len(one) == 1 for one in drawn)
    assert {one[0] for one in drawn} == everything


def test_top_quantile():
    """Scores 0, .5, .6, .7, .8: mean .52, variance (.2704 + .0004 + .0064 + .0324 + .0784) / 5 = .0776, sd .2786.

    2 sd below the mean is -.037, nearest to 0 (slot 0); 1 sd below is .241, nearest to 0 (.241 away) before .5 (.259);
    at the mean itself it is .5, then .6. The chosen, .8, is never rejected.
    """
    scores = [[0.0, 0.5, 0.6, 0.7, 0.8]]
    assert pairs(scores, "top_quantile") == [(0, 4, 0)]
    assert pairs(scores, "top_quantile", deviations=1.0, max_pairs_per_case=2) == [(0, 4, 0), (0, 4, 1)]
    assert pairs(scores, "top_quantile", deviations=0.0, max_pairs_per_case=9) == [
        (0, 4, 1),
        (0, 4, 2),
        (0, 4, 3),
        (0, 4, 0),
    ]


def test_top_quantile_passes_over_the_outlier_of_many():
    """Twenty scores: .81, .82, ..., .99 (19 of them) and 0. The mean is 17.1 / 20 = .855; the mean of the squares
    (19 x .9^2 + .01^2 x 2 (1 + 4 + ... + 81)) / 20 = (15.39 + .057) / 20 = .77235, so the variance is
    .77235 - .731025 = .041325 and sd .2033. With .3 sd below the mean, .794, the nearest is .81, not 0."""
    scores = [[0.0, *(0.81 + 0.01 * step for step in range(19))]]
    assert pairs(scores, "top_bottom") == [(0, 19, 0)]
    assert pairs(scores, "top_quantile", deviations=0.3) == [(0, 19, 1)]


def test_two_equally_near_proposals_tie():
    """0, .25, .5, .75 and 1 have the mean .5; without .5 itself .25 and .75 are equally near to it."""
    assert pairs([[0.0, 0.25, N, 0.75, 1.0]], "top_quantile", deviations=0.0) == []
    assert pairs([[0.0, 0.25, 0.5, 0.75, 1.0]], "top_quantile", deviations=0.0) == [(0, 4, 2)]


def test_random_pairs_are_ordered_by_score():
    """Three scores have three pairs; the better one is chosen; every pair is drawn by some seed."""
    drawn = {pairs([[0.5, 0.9, 0.1]], "random", seed=seed)[0] for seed in range(40)}
    assert drawn == {(0, 1, 0), (0, 1, 2), (0, 0, 2)}


def test_random_pairs_of_a_case_share_no_proposal():
    for seed in range(10):
        (_, a, b), (_, c, d) = pairs([[0.5, 0.9, 0.1, 0.7, 0.3]], "random", seed=seed, max_pairs_per_case=5)
        assert len({a, b, c, d}) == 4


def test_a_third_proposal_of_equal_score_is_no_tie_of_a_random_pair():
    """.9, .1, .1: only the pair of the two equal ones is a tie."""
    drawn = {tuple(pairs([[0.9, 0.1, 0.1]], "random", seed=seed)) for seed in range(40)}
    assert drawn == {((0, 0, 1),), ((0, 0, 2),), ()}


def test_all_pairs_come_widest_first():
    """Scores 0, 1, 3, 7: margins 7 (3 over 0), 6 (3 over 1), 4 (3 over 2), 3 (2 over 0), 2 (2 over 1), 1 (1 over 0)."""
    everything = [(0, 3, 0), (0, 3, 1), (0, 3, 2), (0, 2, 0), (0, 2, 1), (0, 1, 0)]
    assert pairs([[0.0, 1.0, 3.0, 7.0]], "all_pairs") == everything
    assert pairs([[0.0, 1.0, 3.0, 7.0]], "all_pairs", max_pairs_per_case=4) == everything[:4]


def test_pairs_that_share_the_margin_at_the_cut_tie():
    """Scores 0, 1, 2, 4: margins 4, 3, 2 and 2 (4 over 2, 2 over 0), 1 and 1. Three pairs would split the twos."""
    scores = [[0.0, 1.0, 2.0, 4.0]]
    assert pairs(scores, "all_pairs", max_pairs_per_case=2) == [(0, 3, 0), (0, 3, 1)]
    assert pairs(scores, "all_pairs", max_pairs_per_case=3) == [(0, 3, 0), (0, 3, 1)]
    assert len(pairs(scores, "all_pairs", max_pairs_per_case=4)) == 4


def test_equal_scores_below_one_top_are_two_preferences():
    """1 over both zeros is no matter of an index; the pair of the zeros has no margin."""
    found = candidates([[1.0, 0.0, 0.0]], "all_pairs")
    assert sorted(zip(found.chosen.tolist(), found.rejected.tolist(), strict=True))[:2] == [(0, 1), (0, 2)]
    assert not found.tie[:2].any()


def every_pair(scores: Sequence[float], most: int) -> set[tuple[int, int]]:
    """All pairs by sorting their margins; those that share the first margin that is left out are left out too."""
    known = [slot for slot, score in enumerate(scores) if not np.isnan(score)]
    ordered = [(a, b) if scores[a] > scores[b] else (b, a) for a, b in combinations(known, 2)]
    margins = sorted((scores[a] - scores[b] for a, b in ordered), reverse=True)
    cut = margins[most] if len(margins) > most else -1.0
    return {(a, b) for a, b in ordered if scores[a] - scores[b] > max(cut, 0)}


@settings(max_examples=200)
@given(
    scores=st.lists(st.one_of(st.just(N), st.integers(0, 6).map(float), st.floats(0, 6)), min_size=1, max_size=9),
    most=st.integers(1, 12),
)
def test_all_pairs_are_those_of_the_plain_definition(scores, most):
    found = candidates([scores], "all_pairs", max_pairs_per_case=most)
    kept = {
        (int(c), int(w))
        for _, c, w, tie in zip(*found, strict=True)
        if not tie and scores[int(c)] > scores[int(w)]  # equal scores are a matter of mining
    }
    assert kept == every_pair(scores, most)


# ---- contract --------------------------------------------------------------------------------------------------

ROWS = [
    [0.5, 0.6, 0.9, 0.3, 0.1],
    [N, N, N, N, N],
    [0.4, N, N, N, N],
    [0.5, 0.5, 0.5, 0.5, 0.5],
    [0.2, 0.7, N, 0.9, 0.1],
    [0.9, 0.9, 0.1, 0.1, 0.3],
]
"""Scored, unscored, one proposal, all tied, one unscored, ties at both ends."""


@pytest.mark.parametrize("kind", NAMES)
def test_candidates_are_two_scored_proposals_of_one_case(kind):
    """Slots of cases in order, at most as many as asked for; the better score chosen, but for those below the base."""
    knobs = EXAMPLES[kind]
    found = candidates(ROWS, kind, **knobs)
    scores = np.array(ROWS)
    assert {len(column) for column in found} == {len(found.row)}
    assert all(column.dtype.kind == "i" for column in found[:3])
    assert found.tie.dtype == bool
    assert (np.diff(found.row) >= 0).all()
    assert np.bincount(found.row).max() <= knobs["max_pairs_per_case"]
    margin = scores[found.row, found.chosen] - scores[found.row, found.rejected]
    assert not np.isnan(margin).any()
    assert (found.chosen != found.rejected).all()
    assert (margin >= 0).all() or kind == "top_base"
    assert {0, 3, 4, 5} == set(found.row.tolist()), "a case of two scores is never silent, one of fewer always"


@pytest.mark.parametrize("kind", NAMES)
def test_all_tied_scores_make_no_pair(kind):
    found = candidates([ROWS[3]], kind, **EXAMPLES[kind])
    scores = np.array(ROWS[3])
    assert (found.tie | (scores[found.chosen] == scores[found.rejected])).all()


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("rows", [np.zeros((0, 5)), np.zeros((3, 1)), np.full((2, 4), N)])
def test_no_case_one_slot_and_no_score_have_no_candidates(kind, rows):
    found = candidates(rows, kind, **EXAMPLES[kind])
    assert [len(column) for column in found] == [0, 0, 0, 0]


@pytest.mark.parametrize("kind", NAMES)
def test_a_case_s_candidates_are_its_own(kind):
    """Alone, among others and after pickling: the same candidates. Another seed matters where one is drawn."""
    knobs = EXAMPLES[kind]
    together = list(zip(*candidates(ROWS, kind, **knobs), strict=True))
    alone = [
        (row, *rest)
        for row, scores in enumerate(ROWS)
        for _, *rest in zip(*candidates([scores], kind, first=row, **knobs), strict=True)
    ]
    assert together == alone
    whole = strategy(kind, **knobs)
    copy = pickle.loads(pickle.dumps(whole))
    names = pl.Series([f"c{row}" for row in range(len(ROWS))])
    of_copy = copy.candidates(Scored(names, np.array(ROWS)), 0)
    assert (copy, list(zip(*of_copy, strict=True))) == (whole, together)
    seeds = {tuple(zip(*candidates(ROWS, kind, seed=seed, **knobs), strict=True)) for seed in range(8)}
    assert (len(seeds) > 1) == ("random" in kind)


@pytest.mark.parametrize("kind", NAMES)
def test_scores_are_read_only(kind):
    """Several blocks may share them."""
    scores = np.array(ROWS)
    scores.flags.writeable = False
    names = pl.Series([f"c{row}" for row in range(len(ROWS))])
    strategy(kind, **EXAMPLES[kind]).candidates(Scored(names, scores), 0)
