"""Offsets of a student from proposals of the pool: found without a label, by the name of the proposal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.errors import BadInput
from pipeline.knobs import MEAN
from pipeline.segmenter.offsets import offset_of
from pipeline.store.proposals import Data
from pipeline.students.imitation import PoolTerm
from pipeline.students.objectives.imitate import Imitate
from pipeline.students.objectives.preference import Preference
from pipeline.students.objectives.supervised import Supervised
from pipeline.students.offsets import MOST, offsets_of_proposal
from pipeline.students.student import Anchor, Student
from tests.fixtures.builders import case_store, proposal_store
from tests.fixtures.networks import noise, segmenter_of
from tests.fixtures.students import made

SPACE = (8, 8)


class Foreground(nn.Module):
    """Logits of background 0, and of foreground the image itself."""

    def forward(self, image: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(image), image], dim=1)


def pool(folder: Path, cases: int, *thresholds: float) -> Data:
    """Unlabelled images of noise; proposal i is foreground where the sigmoid of the image is at least threshold i."""
    images = [noise(SPACE, f"c{case}") for case in range(cases)]
    masks = [np.stack([(image[0] >= -offset_of(t)).astype(np.uint8) for t in thresholds]) for image in images]
    store = case_store(folder / "cases", [None] * cases, images=images, space=SPACE)
    return Data(store, proposal_store(folder / "proposals", masks))


def test_the_threshold_of_the_proposal_comes_back(tmp_path):
    """Masks at .3 are the probabilities cut at .3. At .35 Dice is below 1 in nearly all of 12 cases."""
    data, segmenter = pool(tmp_path, 12, 0.7, 0.3), segmenter_of(Foreground(), SPACE)
    found = offsets_of_proposal(segmenter, data, "s 1", 0)
    assert found == {"offsets": (offset_of(0.3),), "thresholds": (0.3,), "threshold_note": None}
    assert offsets_of_proposal(segmenter, data, "base", 0)["thresholds"] == (0.7,)


def test_the_mean_of_the_proposals_is_what_two_of_three_say(tmp_path):
    """Without probabilities the mean is the share of the votes: foreground where the masks of .3 and .6 agree."""
    data = pool(tmp_path, 12, 0.3, 0.6, 0.8)
    assert offsets_of_proposal(segmenter_of(Foreground(), SPACE), data, MEAN, 0)["thresholds"] == (0.6,)


def test_few_patients_leave_one_half(tmp_path):
    found = offsets_of_proposal(segmenter_of(Foreground(), SPACE), pool(tmp_path, 7, 0.3), "base", 0)
    assert found["thresholds"] == (0.5,)
    assert found["threshold_note"].startswith("expected at least 8 patients")


def test_a_large_pool_is_drawn_from(tmp_path, monkeypatch):
    """Every case takes a forward pass, and 200 cases say enough. Another seed draws others."""
    data, segmenter = pool(tmp_path, MOST + 20, 0.4), segmenter_of(Foreground(), SPACE)
    read: list[str] = []

    def named_mask(case, name, where, ask=data.proposals.named_mask):
        read.append(case.case_id)
        return ask(case, name, where)

    monkeypatch.setattr(type(data.proposals), "named_mask", lambda _, *args: named_mask(*args))
    offsets_of_proposal(segmenter, data, "base", 0)
    first = list(read)
    assert (len(first), len(set(first))) == (MOST, MOST)
    read.clear()
    offsets_of_proposal(segmenter, data, "base", 1)
    assert set(read) != set(first)


@pytest.mark.parametrize(
    ("objective", "anchor", "expected"),
    [
        (Imitate(kind="imitate", proposal="mean fitted"), None, "mean fitted"),
        (Imitate(kind="imitate"), None, MEAN),
        (Preference(kind="preference"), Anchor(imitate=PoolTerm(proposal="regions composed")), "regions composed"),
        (Preference(kind="preference"), Anchor(supervised=1.0), MEAN),
        (Supervised(kind="supervised"), None, MEAN),
    ],
)
def test_the_proposal_is_the_one_that_is_imitated(objective, anchor, expected):
    more = {} if objective.kind == "supervised" else {"anchor": anchor}
    student = Student(pairs="mined", objective=objective, offsets="pool", **more)
    assert (student.agrees_with, student.reads_proposals) == (expected, True)
    assert student.model_copy(update={"offsets": "validation"}).agrees_with is None


@pytest.mark.parametrize("objective", [Imitate(kind="imitate", proposal="s 2"), Supervised(kind="supervised")])
def test_a_trained_student_gets_offsets_and_reads_no_label_of_the_pool(tmp_path, objective):
    """Two pool cases are too few, so the threshold is one half, and the record says why. No pool case has a label."""
    setting = made(tmp_path, without_label=(2, 3))
    setting.train(objective, [], student={"offsets": "pool"})
    record = setting.record()
    assert (record["offsets"], record["thresholds"]) == ([0.0], [0.5])
    assert record["threshold_note"].startswith("expected at least 8 patients")


def test_missing_proposals_are_said_before_the_first_step(tmp_path):
    """Supervised training reads none otherwise, and an array without masks reads as masks of 0."""
    setting = made(tmp_path)
    table = setting.proposals.table
    few = replace(setting.proposals)
    few.__dict__["table"] = table.filter(table["case_id"] != "c3")
    setting.proposals = few
    with pytest.raises(BadInput, match=r"1 pool cases have none \(first: 'c3'\); add 'pool' to propose.splits"):
        setting.train(Supervised(kind="supervised"), [], student={"offsets": "pool"})
    assert not (setting.folder / "student/last.safetensors").exists()
