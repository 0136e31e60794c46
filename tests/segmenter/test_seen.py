"""What a model has seen is written beside it: by the stages that make models, and by exports."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.compute import Compute
from pipeline.errors import BadInput
from pipeline.execution import Runtime
from pipeline.judges.kinds.agreement import Agreement
from pipeline.segmenter.augmentation import Augmentation
from pipeline.segmenter.base import train_base
from pipeline.segmenter.knobs import Base, Consistency, Network, Optimisation
from pipeline.segmenter.seen import Seen
from pipeline.students.objectives.full import Full
from pipeline.students.objectives.mapo import Mapo
from pipeline.students.objectives.mean_teacher import MeanTeacher
from pipeline.students.objectives.preference import Preference
from pipeline.students.objectives.sft import ImitateChosen
from pipeline.students.objectives.supervised import Supervised
from pipeline.students.objectives.threshold import TunedThreshold
from pipeline.students.objectives.validation_labels import ValidationLabels
from tests.fixtures.builders import case_store
from tests.fixtures.phantoms import disc
from tests.fixtures.students import made
from tests.segmenter.test_base import ONE

STEPS = Optimisation(steps=1, learning_rate=1e-3, evaluate_every=1)
SPLITS = ["labelled", "pool", "validation", "test"]


def hashes(cases, *splits: str) -> set[str]:
    return {cases.image_hashes[case.case_id] for case in cases.split(*splits)}


@pytest.mark.parametrize(("teacher", "learned"), [(None, ["labelled"]), (Consistency(), ["labelled", "pool"])])
def test_a_trained_base(tmp_path: Path, monkeypatch, teacher, learned):
    """The mean teacher learns from the pool too; nothing has seen a test case, and that is all there is to know."""
    monkeypatch.chdir(tmp_path)
    cases = case_store(tmp_path / "cases", [disc((10, 10), 3.0)] * 4, SPLITS)
    network = Network(arguments={"channels": [4, 8], "strides": [2]}, multiple=2)
    knobs = Base(network=network, optimisation=STEPS, batch=1, members=0, mean_teacher=teacher)
    history = tmp_path / "base.csv"
    train_base(cases, knobs, Augmentation(flips=()), Runtime(Compute(), 0, ONE), tmp_path / "base", history)
    expected = Seen(frozenset(hashes(cases, *learned)), frozenset(hashes(cases, "validation")), complete=True)
    assert Seen.of(tmp_path / "base") == expected
    assert len(cases.image_hashes) == 4


@pytest.mark.parametrize("content", ["[1]", "{}", "not JSON"])
def test_another_file_of_its_name(tmp_path, content):
    (tmp_path / "seen.json").write_text(content)
    expected = r"seen.json: expected a list of the images that a model has seen, found other content"
    with pytest.raises(BadInput, match=expected):
        Seen.of(tmp_path)


@pytest.mark.parametrize("complete", [True, False])
def test_a_student_has_seen_what_its_base_has_and_what_it_learned_from(tmp_path, complete):
    """`supervised` reads no pool. Whether that is all depends on the base."""
    setting = made(tmp_path)
    Seen(frozenset("a"), frozenset("b"), complete).save(setting.base.folder)
    setting.train(Supervised(kind="supervised"))
    learned, chosen_by = hashes(setting.cases, "labelled"), hashes(setting.cases, "validation")
    assert Seen.of(tmp_path / "student") == Seen(frozenset({"a", *learned}), frozenset({"b", *chosen_by}), complete)


@pytest.mark.parametrize(
    ("objective", "splits"),
    [
        (Preference(kind="preference"), {"labelled", "pool"}),
        (ImitateChosen(kind="sft"), {"labelled", "pool"}),
        (MeanTeacher(kind="mean_teacher"), {"labelled", "pool"}),
        (Mapo(kind="mapo"), {"labelled"}),
        (Mapo(kind="mapo", ranker=Agreement(kind="agreement")), {"labelled", "pool"}),
        (Supervised(kind="supervised"), {"labelled"}),
        (Full(kind="full", optimisation=STEPS), {"labelled", "pool"}),
        (ValidationLabels(kind="validation_labels", optimisation=STEPS), {"labelled", "validation"}),
        (TunedThreshold(kind="threshold"), set()),
    ],
)
def test_the_splits_that_weights_follow_from(objective, splits):
    assert set(objective.learns_from) == splits
