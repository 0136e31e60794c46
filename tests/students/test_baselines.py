"""Arms on a schedule of their own or without training: validation labels, tuned offsets, one fixed proposal."""

from __future__ import annotations

import json
from math import log
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from pipeline.compute import Compute
from pipeline.errors import BadInput
from pipeline.evaluation.prediction import FixedProposal, NetworkPrediction, predictions
from pipeline.segmenter.knobs import Optimisation
from pipeline.segmenter.logits import shifted
from pipeline.store.proposals import Data
from pipeline.students.objectives.proposal import Proposal
from pipeline.students.objectives.threshold import TunedThreshold
from pipeline.students.objectives.validation_labels import ValidationLabels
from tests.fixtures.builders import bars, case_store, proposal_store
from tests.fixtures.students import Setting, made
from tests.fixtures.trained import RECORDED


@pytest.fixture
def setting(tmp_path) -> Setting:
    return made(tmp_path)


# ---- validation labels -----------------------------------------------------------------------------------------


def test_validation_labels_are_trained_on_and_choose_nothing(setting):
    """2 labelled cases and 1 of validation; its best weights are its last, whatever the validation Dice."""
    own = Optimisation(steps=3, learning_rate=1e-2, evaluate_every=1)
    rows = setting.train(ValidationLabels(kind="validation_labels", optimisation=own, batch=2), [], steps=3)
    record = setting.record()
    assert (record["labelled"], record["best_step"]) == (3, 3)
    files = [(setting.folder / "student" / f"{name}.safetensors").read_bytes() for name in ("best", "last")]
    assert files[0] == files[1]
    assert rows[-1]["loss"] > 0


def test_validation_labels_leave_nothing_for_patience():
    own = Optimisation(steps=3, learning_rate=1e-2, patience=2)
    with pytest.raises(ValidationError, match="trains on the cases that patience would measure; remove `patience`"):
        ValidationLabels(kind="validation_labels", optimisation=own)


# ---- tuned threshold -------------------------------------------------------------------------------------------


def test_offsets_shift_foreground_logits():
    """Softmax: +1 on class 1 and -1 on class 2, background untouched; a sigmoid head has one logit."""
    import torch

    logits = torch.zeros(3, 1, 1)
    assert shifted(logits, (1.0, -1.0)).flatten().tolist() == [0, 1, -1]
    assert shifted(torch.zeros(1, 1, 1), (0.5,)).flatten().tolist() == [0.5]
    assert shifted(logits, ()) is logits


def test_tuned_offsets_are_at_least_as_good_as_none(setting):
    """Offset 0 is always tried, so the Dice on validation cannot fall; what was chosen is what evaluation applies."""
    rows = setting.train(TunedThreshold(kind="threshold"), [])
    base_dice = setting.train(Proposal(kind="proposal", pick="base"), [], out="other")[0]
    assert rows[0]["step"] == 0
    offsets, dice = TunedThreshold(kind="threshold").tuned(setting.cases, setting.base, Compute())
    none, plain = TunedThreshold(kind="threshold", offsets=(0.0,)).tuned(setting.cases, setting.base, Compute())
    assert none == (0.0,)
    assert dice >= plain
    assert rows[0]["validation_dice"] == pytest.approx(dice)
    assert base_dice["validation_dice"] is not None
    record = setting.record()
    assert record["offsets"] == list(offsets)
    found = predictions(setting.folder / "student", setting.data, Compute())
    assert isinstance(found.best, NetworkPrediction)
    assert found.best.offsets == offsets
    assert len(found.sustained) == 1


def test_offsets_are_tuned_over_patients(tmp_path):
    """Offset +1 adds the pixels of logit -.75. Patient p, one case: Dice 1/2 becomes 1. Patient q, three cases: 1
    becomes 2/3. Over patients .75 becomes 5/6. Over cases .875 would become .75."""
    import torch

    low, high = -3.0, 3.0
    images = [np.array([[[high, -0.75, -0.75, low]]]), *[np.array([[[high, -0.75, low, low]]])] * 3]
    labels = [np.array([[1, 1, 1, 0]], np.uint8), *[np.array([[1, 0, 0, 0]], np.uint8)] * 3]
    images = [image.astype(np.float32) for image in images]
    cases = case_store(tmp_path, labels, ["validation"] * 4, images=images, groups=list("pqqq"))
    segmenter = SimpleNamespace(logits=torch.from_numpy)
    base: Any = SimpleNamespace(architecture=SimpleNamespace(classes=2), segmenter=lambda compute: segmenter)
    found = TunedThreshold(kind="threshold", offsets=(1.0,)).tuned(cases, base, Compute())
    assert found == ((1.0,), pytest.approx(5 / 6))


def test_an_offset_is_a_threshold():
    """P(foreground) >= t where logit + log((1 - t) / t) >= 0: p = .3 is foreground at t = .25, not at t = .35."""
    import torch

    logit = torch.full((1, 1, 1), log(0.3 / 0.7))
    for t, foreground in ((0.25, True), (0.35, False)):
        assert bool(shifted(logit, (log((1 - t) / t),)) >= 0) is foreground


# ---- one fixed proposal ----------------------------------------------------------------------------------------


def fixed(folder, splits=("validation", "validation", "test")):
    """Truth: 4 voxels. Slots 2, 4 and 6 voxels long: Dice 2*2/6 = .667, 1 and 2*4/10 = .8."""
    cases = case_store(folder / "cases", [bars([4])[0]] * 3, list(splits))
    return cases, proposal_store(folder / "proposals", [bars([2, 4, 6])] * 3)


def test_the_best_fixed_proposal(tmp_path):
    cases, proposals = fixed(tmp_path)
    assert Proposal(kind="proposal").picked(Data(cases, proposals)) == (1, "s 1", pytest.approx(1.0))
    assert Proposal(kind="proposal", pick="s 2").picked(Data(cases, proposals)) == (2, "s 2", pytest.approx(0.8))
    found = FixedProposal(proposals, 1)(cases.all[2])
    assert found.tolist() == bars([4])[0].tolist()


def test_the_best_fixed_proposal_over_patients(tmp_path):
    """Slots of 4 and 8 voxels. Patient p, truth 8: Dice 2/3 and 1. Patient q, truth 5, three cases: 8/9 and 10/13.

    Over patients slot 1 is better, .885 against .778. Over cases slot 0 would be, .833 against .827.
    """
    labels = [bars([8])[0], *[bars([5])[0]] * 3]
    cases = case_store(tmp_path / "cases", labels, ["validation"] * 4, groups=list("pqqq"))
    proposals = proposal_store(tmp_path / "proposals", [bars([4, 8])] * 4)
    slot, _, dice = Proposal(kind="proposal").picked(Data(cases, proposals))
    assert (slot, dice) == (1, pytest.approx((1 + 10 / 13) / 2))


def test_validation_labels_that_are_unknown_everywhere_choose_nothing(tmp_path):
    """In c0, of 255 alone, every slot would have Dice 1. Only c1 counts: slot 1."""
    labels = [np.full_like(bars([4])[0], 255), bars([4])[0]]
    cases = case_store(tmp_path / "cases", labels, ["validation"] * 2)
    proposals = proposal_store(tmp_path / "proposals", [bars([2, 6])] * 2)
    assert Proposal(kind="proposal").picked(Data(cases, proposals)) == (1, "s 1", pytest.approx(0.8))


def test_a_proposal_that_is_not_there(tmp_path):
    cases, proposals = fixed(tmp_path)
    with pytest.raises(BadInput, match=r"pick: no proposal 'ensemble mean'; there are \['base', 's 1', 's 2'\]"):
        Proposal(kind="proposal", pick="ensemble mean").picked(Data(cases, proposals))


def test_an_arm_that_takes_a_proposal_has_no_weights(setting):
    setting.train(Proposal(kind="proposal"), [])
    out = setting.folder / "student"
    assert {path.name for path in out.iterdir()} == {"student.json", "manifest.json"}
    record = setting.record()
    assert (record["slot"], record["proposal"]) == (0, "base")
    assert record["late"] == []
    found = predictions(out, setting.data, Compute())
    assert found.best is None
    mask = found.sustained[0](setting.cases.all[4])
    assert np.array_equal(mask, setting.proposals.masks(setting.cases.all[4])[0])


def test_test_cases_must_be_proposed_for(tmp_path):
    """The proposals of the third case are missing."""
    folder = tmp_path
    cases = case_store(folder / "cases", [bars([4])[0]] * 3, ["validation", "validation", "test"])
    proposals = proposal_store(folder / "proposals", [bars([2, 4, 6])] * 2)
    student = folder / "student"
    student.mkdir()
    (student / "student.json").write_text(json.dumps({**RECORDED, "slot": 1}))
    with pytest.raises(
        BadInput,
        match=r"the student takes proposal 1 of every case, and 1 test cases have no proposals \(first: 'c2'\); add "
        r"'test' to propose",
    ):
        predictions(student, Data(cases, proposals), Compute())
