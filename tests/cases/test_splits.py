"""Splits: counts by hand, whole groups, and independence of order."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.cases.nnunet_split import GivenSplit, with_given_split
from pipeline.cases.readers.reader import Source
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


@pytest.mark.parametrize(
    ("pool", "in_pool", "test"),
    [
        (0, 5, 4),  # all without label
        (5, 5, 4),  # the same, counted
        (7, 7, 2),  # and two whose label is hidden
        (0.2, 7, 2),  # a fifth of the 10 labels is hidden
    ],
)
def test_cases_without_label_are_the_first_of_the_pool(pool: float, in_pool: int, test: int) -> None:
    """10 with label, of which labelled takes 4 and validation 2, and 5 without."""
    found = counts(cases(*[1] * 10, unlabelled=5), labelled=4, pool=pool, validation=2, test="rest")
    assert found == {"labelled": 4, "pool": in_pool, "validation": 2, "test": test}


def test_a_pool_that_is_the_rest_takes_all_that_is_left() -> None:
    found = counts(cases(*[1] * 10, unlabelled=5), labelled=4, pool="rest", validation=2, test=2)
    assert found == {"labelled": 4, "pool": 7, "validation": 2, "test": 2}


def test_a_small_pool_leaves_cases_without_label_out() -> None:
    """3 of 5, the same for the same seed; nothing of it goes to the split that is the rest."""
    sources = cases(*[1] * 6, unlabelled=5)
    knobs = {"labelled": 2, "pool": 3, "validation": 2, "test": "rest"}
    assigned, notes = assign(sources, Splits.model_validate(knobs))
    assert Counter(assigned.values()) == {"labelled": 2, "pool": 3, "validation": 2, "test": 2}
    assert notes == [
        "splits: pool 3 leaves out 2 cases without a label; `pool: 0` takes all",
        "splits: 2 of 11 cases are in no split and left out",
    ]
    assert assign(sources[::-1], Splits.model_validate(knobs))[0] == assigned
    drawn = {frozenset(assign(sources, Splits.model_validate({**knobs, "seed": seed}))[0]) for seed in range(9)}
    assert len(drawn) > 1


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
        "splits: test has 2 cases with a label, expected 3: groups stay whole",
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
    assert notes == ["splits: test has 2 cases with a label, expected 1: the given split has more"]


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
        with pytest.raises(BadInput, match=r"expected counts of at most .* lower the counts"):
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
        BadInput, match=r"at most 6, the cases with a label .* found 8 \(labelled 3, pool 1, validation 2, test 2"
    ):
        assign(cases(*[1] * 6), Splits(labelled=3, pool=1, validation=2, test=2))


def test_an_empty_split_is_refused_with_the_counts() -> None:
    """Two groups of 3 cannot give one test case, and nothing is left for the pool after the others."""
    message = r"not 0, found none in labelled, test \(labelled 0, pool 3, validation 3, test 0; 6 cases, .*up to 3\)"
    with pytest.raises(BadInput, match=message):
        assign(cases(3, 3), Splits(labelled=1, pool="rest", validation=3, test=1))


def test_a_set_without_any_label_is_all_pool() -> None:
    """No label, so only 0 can be asked for; asking for one validation case is refused, and so is `rest` of none."""
    sources = cases(unlabelled=3)
    assert counts(sources, labelled=0, pool=0, validation=0, test=0) == {"pool": 3}
    assert counts(sources, labelled=0, pool="rest", validation=0, test=0) == {"pool": 3}
    with pytest.raises(BadInput, match=r"at most 0, the cases with a label .* found 1 \("):
        counts(sources, labelled=0, pool=0, validation=1, test=0)
    for size in ("rest", 0.5):
        with pytest.raises(BadInput, match=r"every split that is not 0, found none in test \(labelled 0, pool 3"):
            counts(sources, labelled=0, pool=0, validation=0, test=size)


def test_a_split_of_0_is_empty_and_no_case_at_all_is_refused() -> None:
    assert counts(cases(1, 1, 1, 1), labelled=2, pool=0, validation=2, test=0) == {"labelled": 2, "validation": 2}
    with pytest.raises(BadInput, match=r"found none in labelled, pool, validation, test \(.*4 cases, 4 with label"):
        counts(cases(1, 1, 1, 1), labelled=0, pool=0, validation=0, test=0)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        (
            {"labelled": "rest", "pool": "rest", "validation": 1, "test": 1},
            "at most one split can be 'rest', found several",
        ),
        ({"labelled": 0.5, "pool": 0.5, "validation": 0.1, "test": 1}, "add up to at most 1, found 1.1; lower"),
        ({"labelled": -1, "pool": 1, "validation": 1, "test": 1}, "greater than or equal to 0"),
        ({"labelled": 1, "pool": 1, "validation": 1.5, "test": 1}, "less than 1"),
        ({"labelled": 1, "pool": 1, "validation": True, "test": 1}, "valid integer"),
    ],
)
def test_knobs_that_cannot_be(knobs: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Splits(**knobs)


# ---- nnU-Net's splits_final.json ----------------------------------------------------------------------------------


def folds(root: Path, *content: object) -> Path:
    (root / "splits_final.json").write_text(json.dumps(content))
    return root


def by_split(sources: list[Source], root: Path, given: GivenSplit, **counts: object) -> dict[str, list[str]]:
    sources = with_given_split(sources, given, root)
    found: dict[str, list[str]] = {}
    for case_id, split in sorted(assign(sources, Splits(**{**ASKED, **counts}))[0].items()):
        found.setdefault(split, []).append(case_id)
    return found


ASKED: dict[str, object] = {"labelled": 0, "pool": 0, "validation": 0, "test": 0}
IDS = [f"g00{group}_0" for group in range(6)]


def test_a_fold_gives_train_and_validation_and_the_rest_is_free(tmp_path: Path) -> None:
    """Six cases: fold 1 trains on 2 and validates on 2; the 2 others are drawn for test; no label means pool."""
    folds(tmp_path, {"train": IDS[:4], "val": IDS[4:]}, {"train": IDS[:2], "val": IDS[2:4]})
    sources = cases(*[1] * 6, unlabelled=1)
    found = by_split(sources, tmp_path, GivenSplit(fold=1), test="rest")
    assert found == {"labelled": IDS[:2], "validation": IDS[2:4], "test": IDS[4:], "pool": ["u000"]}
    _, notes = assign(with_given_split(sources, GivenSplit(), tmp_path), Splits(**ASKED))
    assert notes == [], "0 asks for no other than the given"


def test_a_fold_can_be_the_test_set_and_its_training_cases_drawn_from(tmp_path: Path) -> None:
    folds(tmp_path, {"train": IDS[:4], "val": IDS[4:]})
    given = GivenSplit(train="free", val="test")
    found = by_split(cases(*[1] * 6), tmp_path, given, labelled=1, validation=1, pool="rest")
    assert found["test"] == IDS[4:]
    assert sorted(map(len, found.values())) == [1, 1, 2, 2]
    found = by_split(cases(*[1] * 6), tmp_path, GivenSplit(train="pool"))
    assert found == {"pool": IDS[:4], "validation": IDS[4:]}
    assert with_given_split(cases(1), None, tmp_path) == cases(1)


def test_the_validation_cases_of_a_fold_can_be_drawn_from(tmp_path: Path) -> None:
    """A network that was trained on four cases is measured on the two that its fold held out, one in each split."""
    folds(tmp_path, {"train": IDS[:4], "val": IDS[4:]})
    found = by_split(cases(*[1] * 6), tmp_path, GivenSplit(val="free"), validation=1, test="rest")
    assert found["labelled"] == IDS[:4]
    assert sorted([*found["validation"], *found["test"]]) == IDS[4:]
    assert (len(found["validation"]), len(found["test"])) == (1, 1)


@pytest.mark.parametrize(
    ("content", "fold", "message"),
    [
        ([{"train": ["zz"], "val": IDS[:1]}], 0, r"fold 0: expected cases of the data set, found 1 unknown, e.g. 'zz'"),
        ([{"train": IDS[:1], "val": IDS[1:2]}], 1, "expected a list with fold 1, found 1 folds; correct `splits.given"),
        ({"train": [], "val": []}, 0, "expected a list with one entry per fold, found dict"),
        ([["a"]], 0, "fold 0: expected lists of case ids under `train` and `val`"),
        ([{"train": IDS}], 0, "expected lists of case ids"),
        ([{"train": [1], "val": []}], 0, "expected lists of case ids"),
        ([{"train": IDS[:2], "val": IDS[1:3]}], 0, "every case once in train or val, found 'g001_0' twice"),
        ([{"train": [IDS[0], IDS[0]], "val": []}], 0, "found 'g000_0' twice"),
    ],
)
def test_folds_that_cannot_be(content: object, fold: int, message: str, tmp_path: Path) -> None:
    (tmp_path / "splits_final.json").write_text(json.dumps(content))
    with pytest.raises(BadInput, match=message):
        with_given_split(cases(*[1] * 6), GivenSplit(fold=fold), tmp_path)


def test_a_missing_file_of_folds_and_a_fold_against_the_table(tmp_path: Path) -> None:
    with pytest.raises(
        BadInput, match=r"splits_final.json: expected nnU-Net's splits as JSON, found no file; copy splits_final"
    ):
        with_given_split(cases(1), GivenSplit(), tmp_path)
    with pytest.raises(BadInput, match=r"splits.given.file: expected a path below"):
        with_given_split(cases(1), GivenSplit(file="../splits_final.json"), tmp_path)
    folds(tmp_path, {"train": ["a"], "val": []})
    table = [Source("a", (4, 4), "i", "l", split="test")]
    with pytest.raises(
        BadInput, match="case 'a' is in split labelled, expected test, its split in the case table or data set"
    ):
        with_given_split(table, GivenSplit(), tmp_path)


def test_a_patient_on_both_sides_of_a_fold_is_refused(tmp_path: Path) -> None:
    folds(tmp_path, {"train": ["g000_0"], "val": ["g000_1"]})
    with pytest.raises(BadInput, match="group 'g000': expected one split, found 'g000_0' in labelled, 'g000_1' in val"):
        by_split(cases(2, 1, 1), tmp_path, GivenSplit())


def test_a_training_case_without_label_is_refused(tmp_path: Path) -> None:
    folds(tmp_path, {"train": ["u000"], "val": ["g000_0"]})
    with pytest.raises(BadInput, match="case 'u000' has no label: expected split pool, found labelled; correct the"):
        by_split(cases(1, unlabelled=1), tmp_path, GivenSplit())


def test_a_splits_file_as_windows_saves_it(tmp_path: Path) -> None:
    content = json.dumps([{"train": ["g000_0"], "val": ["g001_0"]}])
    (tmp_path / "splits_final.json").write_text(content, encoding="utf-8-sig")
    found = with_given_split(cases(1, 1), GivenSplit(), tmp_path)
    assert [source.split for source in found] == ["labelled", "validation"]


def test_a_splits_file_that_is_cut_off_is_not_to_be_copied(tmp_path: Path) -> None:
    (tmp_path / "splits_final.json").write_text('[{"train": ["g000_0"')
    with pytest.raises(
        BadInput, match=r"splits_final.json: expected nnU-Net's splits as JSON, found .*; correct it, or fetch"
    ):
        with_given_split(cases(1), GivenSplit(), tmp_path)
