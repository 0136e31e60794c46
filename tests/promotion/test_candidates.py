"""Which students may be promoted: a contract over all objectives, and what else a student may have used."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline.params import Params, load_params
from pipeline.promotion.candidates import objections
from tests.fixtures.chain import ROOT, TINY, with_changes
from tests.students.test_objectives import KINDS, example

EXPECTED: dict[str, str | None] = {
    "preference": None,
    "mapo": None,
    "sft": None,
    "distill": None,
    "imitate": None,
    "pseudo_label": None,
    "mean_teacher": None,
    "supervised": None,
    "validation_labels": "objective 'validation_labels' uses the labels of split validation",
    "full": "objective 'full' uses the labels of split pool",
    "threshold": "objective 'threshold' uses the labels of split validation",
    "proposal": "objective 'proposal' takes a proposal of every case, so the student has no weights",
}
"""Why a student of each kind is no candidate. A kind that is listed in the union but not here fails the contract."""

DROPPED = (
    "its pair set drops pairs by p_correct, which is fitted to the labels of split validation (min_p_correct: 0 keeps "
    "all pairs)"
)
UNFILTERED = {"kind": "top_bottom", "min_p_correct": 0.0}
ANCHORED = {"objective": {"kind": "preference"}, "anchor": {"supervised": 1.0}}


def against(student: dict[str, Any], pairs: dict[str, Any] | None = None, **blocks: Any) -> str | None:
    """The objection to a student of the pair set `own`, or of the set of the student's entry."""
    sets = {**TINY["pairs"], **({} if pairs is None else {"own": pairs})}
    content = with_changes(pairs=sets, students={"one": {"pairs": "own", **student}}, **blocks)
    params = Params.model_validate_json(json.dumps(content))
    return objections(params.students, params.pairs, params.judges, params.consensus, params.training.optimisation)[
        "one"
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_every_objective_says_whether_its_student_is_a_candidate(kind: str) -> None:
    objective = example(kind)
    student: dict[str, Any] = {
        "pairs": "mined" if objective.feeds == "pairs" else "none",
        "objective": objective.model_dump(mode="json"),
    }
    if objective.feeds in ("pairs", "pool"):
        student["anchor"] = {"supervised": 1.0}
    assert against(student) == EXPECTED[kind]
    assert (against(student) is None) == (objective.has_weights and set(objective.labels_from) <= {"labelled"})


JUDGES = {
    "agreement": {"kind": "agreement"},
    "oracle": {"kind": "oracle"},
    "planted": {"kind": "synthetic", "gaussian": 0.1},
}
BOTH = {"both": {"kind": "rank_mean", "judges": ["agreement", "planted"]}}


@pytest.mark.parametrize("judge", ["oracle", "planted", "both"])
def test_a_judge_that_reads_the_truth_makes_no_candidate(judge: str) -> None:
    """Not through a consensus either."""
    pairs = {"judge": judge, "strategy": {"kind": "top_bottom"}}
    found = against(ANCHORED, pairs, judges=JUDGES, consensus=BOTH)
    assert found == f"judge '{judge}' of its pair set reads the truth of split pool"


def test_the_truth_of_labelled_cases_is_everyone_s() -> None:
    """The offline form of MAPO: pairs of labelled cases, in the order of their labels."""
    pairs = {"judge": "oracle", "split": "labelled", "strategy": UNFILTERED}
    assert against(ANCHORED, pairs, judges=JUDGES) is None


@pytest.mark.parametrize(("least", "split"), [(None, "pool"), (0.5, "pool"), (0.3, "pool"), (None, "labelled")])
def test_pairs_that_validation_labels_dropped_make_no_candidate(least: float | None, split: str) -> None:
    """`p_correct` is fitted to validation, whatever the split whose pairs it drops."""
    pairs = {"judge": "agreement", "split": split, "strategy": {"kind": "top_base", "min_p_correct": least}}
    assert against(ANCHORED, pairs) == DROPPED
    unfiltered = {**pairs, "strategy": {"kind": "top_base", "min_p_correct": 0.0}}
    assert against(ANCHORED, unfiltered) is None


@pytest.mark.parametrize(
    ("otherwise", "expected"), [(None, None), (UNFILTERED, None), ({"kind": "top_bottom"}, DROPPED)]
)
def test_answers_of_reviewers_are_no_labels(otherwise: dict[str, Any] | None, expected: str | None) -> None:
    """Only the pairs of the judge that fill the gaps are dropped by `p_correct`."""
    judge = "none" if otherwise is None else "agreement"
    pairs = {"judge": judge, "strategy": {"kind": "reviewed", "otherwise": otherwise}}
    assert against(ANCHORED, pairs) == expected


def test_error_rates_that_were_fitted_on_validation_make_no_candidate() -> None:
    pairs = {"judge": "agreement", "strategy": UNFILTERED}
    link = {"kind": "cdpo", "e": "calibrated"}
    student = {**ANCHORED, "objective": {"kind": "preference", "link": link}}
    assert against(student, pairs) == (
        "its error rates are 1 - p_correct (e: calibrated), which is fitted to the labels of split validation"
    )
    fixed = {**student, "objective": {"kind": "preference", "link": {**link, "e": 0.2}}}
    assert against(fixed, pairs) is None
    of_reviewers = {"judge": "none", "strategy": {"kind": "reviewed"}}
    assert against(student, of_reviewers) is None


def test_judges_that_were_weighed_on_validation_make_no_candidate() -> None:
    judges = {"agreement": {"kind": "agreement"}, "dice": {"kind": "expected_dice"}}
    pairs = {"judge": "both", "strategy": UNFILTERED}
    entries = {kind: {"both": {"kind": kind, "judges": ["agreement", "dice"]}} for kind in ("weighted", "rank_mean")}
    assert against(ANCHORED, pairs, judges=judges, consensus=entries["weighted"]) == (
        "consensus 'both' of its pair set weighs judges by the labels of split validation"
    )
    assert against(ANCHORED, pairs, judges=judges, consensus=entries["rank_mean"]) is None


def test_the_shipped_students_with_weights_are_candidates() -> None:
    params = load_params(ROOT / "params.yaml")
    found = objections(params.students, params.pairs, params.judges, params.consensus, params.training.optimisation)
    trained = [name for name, student in params.students.items() if student.objective.has_weights]
    assert [name for name, objection in found.items() if objection is None] == trained


def test_offsets_that_were_fitted_on_validation_make_no_candidate() -> None:
    student = {**ANCHORED, "pairs": "mined"}
    assert against({**student, "offsets": "validation"}) == "its offsets were fitted on the labels of split validation"
    assert against({**student, "offsets": "held_out", "start": "fold_0"}) is None
    assert against({**student, "offsets": "pool"}) is None


def test_steps_that_were_chosen_on_validation_make_no_candidate() -> None:
    student = {**ANCHORED, "pairs": "mined"}
    training = {"optimisation": {**TINY["training"]["optimisation"], "patience": 2}}
    assert against(student, training=training) == (
        "its last step was chosen by the labels of split validation (training.optimisation.patience)"
    )


def test_a_share_that_was_chosen_on_validation_makes_no_candidate() -> None:
    student = {**ANCHORED, "pairs": "mined", "interpolate": [0.5, 1.0]}
    assert against(student) == (
        "its share in the interpolation with the base was chosen by the labels of split validation"
    )
