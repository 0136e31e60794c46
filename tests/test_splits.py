"""Splits: counts by hand, whole groups, and independence of order."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.cases.reader import Source
from pipeline.cases.splits import Splits, assign
from pipeline.errors import BadInput


def cases(*groups: int, unlabelled: int = 0) -> list[Source]:
    """Labelled cases in groups of these sizes, then cases without label in groups of their own."""
    labelled = [
        Source(f"g{group:03d}_{member}", (4, 4), "i", "l", group=f"g{group:03d}")
        for group, size in enumerate(groups)
        for member in range(size)
    ]
    return labelled + [Source(f"u{case:03d}", (4, 4), "i", None) for case in range(unlabelled)]


def counts(sources: list[Source], **knobs: object) -> dict[str, int]:
    return dict(Counter(assign(sources, Splits(**knobs))[0].values()))


def test_counts_and_rest_by_hand() -> None:
    """20 cases: 3 labelled, 4 validation, 5 test, and the rest is 20 - 12 = 8."""
    found = counts(cases(*[1] * 20), labelled=3, pool="rest", validation=4, test=5)
    assert found == {"labelled": 3, "pool": 8, "validation": 4, "test": 5}


def test_fractions_fill_what_they_add_up_to() -> None:
    """10 cases in quarters are 2.5 each: 2 each makes 8, and the two left go to the first splits."""
    found = counts(cases(*[1] * 10), labelled=0.25, pool=0.25, validation=0.25, test=0.25)
    assert sorted(found.values()) == [2, 2, 3, 3]


def test_cases_without_label_come_on_top_of_the_pool() -> None:
    """10 labelled: 4 + 2 + 2 and a pool of 2; 5 without label make the pool 7."""
    found = counts(cases(*[1] * 10, unlabelled=5), labelled=4, pool=2, validation=2, test="rest")
    assert found == {"labelled": 4, "pool": 7, "validation": 2, "test": 2}


def test_pool_of_unlabelled_cases_alone() -> None:
    found = counts(cases(*[1] * 6, unlabelled=3), labelled="rest", pool=0, validation=2, test=2)
    assert found == {"labelled": 2, "pool": 3, "validation": 2, "test": 2}


def test_whole_groups_meet_counts_that_greedy_filling_misses() -> None:
    """Groups of 2, 2, 2, 3, 3, 4: 3 test, 3 validation, 4 labelled fit only as {3}, {3}, {4} or {2, 2}."""
    for seed in range(20):
        found = counts(cases(2, 2, 2, 3, 3, 4), labelled=4, pool="rest", validation=3, test=3, seed=seed)
        assert found == {"labelled": 4, "pool": 6, "validation": 3, "test": 3}


def test_what_whole_groups_cannot_meet_is_met_from_below_and_said() -> None:
    """Pairs only: 3 test cases become 2, the even counts are exact, and the 14 - 8 = 6 others are left out."""
    assigned, notes = assign(cases(*[2] * 7), Splits(labelled=2, pool=2, validation=2, test=3))
    assert Counter(assigned.values()) == {"labelled": 2, "pool": 2, "validation": 2, "test": 2}
    assert notes == [
        "splits: test has 2 cases that have a label where 3 were asked: groups stay whole",
        "splits: 6 of 14 cases are in no split and left out",
    ]


def test_more_labelled_cases_leave_test_and_validation_as_they_are() -> None:
    sources = cases(*[1, 2, 3] * 10)
    few, many = (assign(sources, Splits(labelled=count, pool="rest", validation=10, test=12))[0] for count in (5, 20))
    for split in ("validation", "test"):
        assert {c for c, s in few.items() if s == split} == {c for c, s in many.items() if s == split}


def test_another_seed_draws_other_cases() -> None:
    sources = cases(*[1] * 30)
    knobs = {"labelled": 5, "pool": "rest", "validation": 5, "test": 5}
    assert assign(sources, Splits(**knobs, seed=0))[0] != assign(sources, Splits(**knobs, seed=1))[0]


def test_given_splits_win_and_count() -> None:
    """Two test cases are given, so 3 test cases means one more."""
    sources = cases(*[1] * 10)
    sources[0] = Source("a", (4, 4), "i", "l", split="test")
    sources[1] = Source("b", (4, 4), "i", "l", split="test")
    assigned, notes = assign(sources, Splits(labelled=2, pool="rest", validation=2, test=3))
    assert assigned["a"] == assigned["b"] == "test"
    assert Counter(assigned.values())["test"] == 3
    assert notes == []
    _, notes = assign(sources, Splits(labelled=2, pool="rest", validation=2, test=1))
    assert notes == ["splits: test has 2 cases that have a label where 1 were asked: the case table gives more"]


@given(
    groups=st.lists(st.integers(1, 4), min_size=12, max_size=40),
    unlabelled=st.integers(0, 4),
    test=st.integers(4, 8),
    seed=st.integers(0, 3),
    order=st.randoms(use_true_random=False),
)
def test_properties(groups: list[int], unlabelled: int, test: int, seed: int, order: object) -> None:
    """Groups are whole, counts are not exceeded, and the order of the scan does not matter."""
    sources = cases(*groups, unlabelled=unlabelled)
    knobs = Splits(labelled=4, pool="rest", validation=4, test=test, seed=seed)
    assume(8 + test != sum(groups))  # whole groups may or may not leave one for the pool
    if 8 + test > sum(groups):
        with pytest.raises(BadInput, match="asked for"):
            assign(cases(*groups), knobs)
        return
    assigned, _ = assign(sources, knobs)
    assert len({(s.group, assigned[s.case_id]) for s in sources if s.group}) == len(groups)
    assert Counter(assigned.values())["test"] <= test
    assert all(assigned[s.case_id] == "pool" for s in sources if s.label is None)
    order.shuffle(sources)  # type: ignore[attr-defined]
    assert assign(sources, knobs)[0] == assigned


def test_one_group_in_two_given_splits_is_refused() -> None:
    sources = cases(1, 1, 1, 1)
    sources += [
        Source("a", (4, 4), "i", "l", group="p", split="test"),
        Source("b", (4, 4), "i", "l", group="p", split="labelled"),
    ]
    with pytest.raises(BadInput, match=r"group 'p': expected one split, found 'a' in test, 'b' in labelled; put all"):
        assign(sources, Splits(labelled=1, pool=1, validation=1, test="rest"))


def test_unlabelled_case_given_to_another_split_is_refused() -> None:
    sources = [*cases(1, 1, 1, 1), Source("a", (4, 4), "img.png", None, split="test")]
    with pytest.raises(BadInput, match=r"img.png: case 'a' has no label: expected split pool, found test"):
        assign(sources, Splits(labelled=1, pool=1, validation=1, test="rest"))


def test_asking_for_more_than_there_are_is_refused() -> None:
    """6 cases, 3 + 2 + 2 + 1 = 8 asked."""
    with pytest.raises(
        BadInput, match=r"at most 6 cases .* found 8 asked for \(labelled 3, pool 1, validation 2, test 2"
    ):
        assign(cases(*[1] * 6), Splits(labelled=3, pool=1, validation=2, test=2))


def test_an_empty_split_is_refused_with_the_counts() -> None:
    """Two groups of 3 cannot give one test case, and nothing is left for the pool after the others."""
    message = (
        r"found none in labelled, test \(labelled 0, pool 3, validation 3, test 0; 6 cases, 6 with label; .*up to 3\)"
    )
    with pytest.raises(BadInput, match=message):
        assign(cases(3, 3), Splits(labelled=1, pool="rest", validation=3, test=1))


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"labelled": "rest", "pool": "rest", "validation": 1, "test": 1}, "at most one split can be 'rest'"),
        ({"labelled": 0.5, "pool": 0.5, "validation": 0.1, "test": 1}, "add up to more than 1"),
        ({"labelled": 0, "pool": 1, "validation": 1, "test": 1}, "greater than or equal to 1"),
        ({"labelled": 1, "pool": 1, "validation": 1.5, "test": 1}, "less than 1"),
        ({"labelled": 1, "pool": 1, "validation": True, "test": 1}, "valid integer"),
    ],
)
def test_knobs_that_cannot_be(knobs: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Splits(**knobs)
