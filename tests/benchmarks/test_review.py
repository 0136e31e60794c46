"""A simulated reviewer: the intervals hold the planted noise, and the runner of the students fits the knobs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.review import DRAWS, Reviewer, interval_rows, review_parameters
from pipeline.params import Params


def test_the_interval_of_the_noise_holds_the_truth() -> None:
    """100 seeds of 50 answers, 5 of them on pairs seen before, by a reviewer who errs on 5 %: judges and pair sets."""
    rows = interval_rows(100, errors=(0.05,), numbers=(50,), judged=("flip",))
    assert [(row["kind"], row["judge"]) for row in rows] == [(kind, "flip") for kind in ("judge", "pairs")]
    assert min(row["covered"] for row in rows) >= 90, rows


def test_the_reviewer_errs_as_often_as_said() -> None:
    """Mask 0 is better. 1800 pairs are shown once and 200 of them again, each with an error of its own."""
    dice = {(f"c{at}", slot): 0.9 - 0.1 * slot for at in range(1800) for slot in (0, 1)}
    shown = [
        {"case_id": f"c{at}", "slot_a": 0, "slot_b": 1, "disagreement": 1, "stratum": "s", "population": 9}
        | {"draw": "audit", "target": "j"}
        for at in range(1800)
    ]
    answers = Reviewer(dice, 0.2, ("test",)).answers(shown, 2000, {f"c{at}": f"c{at}" for at in range(1800)})
    assert (answers["draw"] == "repeat").sum() == 200
    for part in (answers[:1800], answers[1800:]):
        assert (part["answer"] == "b").mean() == pytest.approx(0.2, abs=0.08)


@pytest.mark.parametrize("draw", ["none", *DRAWS])
def test_the_knobs_of_the_students_are_valid(draw: str) -> None:
    params = Params.model_validate_json(json.dumps(review_parameters(0, Path("data"), draw)))
    assert len(params.students) == (2 if draw == "none" else 3)
    assert {one.pairs for one in params.students.values()} <= set(params.pairs)
