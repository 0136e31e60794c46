"""Imitation on the pool: its losses by hand, and what students with it learn from."""

from __future__ import annotations

from math import log

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from pipeline.errors import BadInput
from pipeline.measures.overlap import dice_to
from pipeline.segmenter.knobs import Optimisation
from pipeline.segmenter.losses import dice_ce
from pipeline.segmenter.strong_views import StrongViews
from pipeline.store import schema
from pipeline.store.tables import read_table
from pipeline.students.imitation import PoolTerm, Target, imitation_loss
from pipeline.students.links.cdpo import ConservativeDPO
from pipeline.students.objectives.imitate import Imitate
from pipeline.students.objectives.preference import Preference
from pipeline.students.objectives.sft import ImitateChosen
from pipeline.students.objectives.supervised import Supervised
from pipeline.students.pool_images import PoolImages
from pipeline.students.student import Anchor, Student, Training
from tests.fixtures.networks import segmenter_of
from tests.fixtures.preferences import bars, batch
from tests.fixtures.students import Setting, made


def training() -> Training:
    return Training(optimisation=Optimisation(steps=1, learning_rate=1e-3))


@pytest.fixture
def setting(tmp_path) -> Setting:
    return made(tmp_path)


def test_losses_by_hand():
    """Logits 0 are one half everywhere: cross-entropy log 2 whatever the target, of the known voxels alone."""
    logits = torch.zeros(1, 1, 64)
    mask = bars(20)
    mask[0, 40:] = 255
    hard, soft, full = Target(loss="cross_entropy", proposal="a"), Target(loss="cross_entropy"), Target(proposal="a")
    half = torch.tensor([0.25, 0.75]).view(1, 2, 1).expand(1, 2, 64)
    seen = batch(logits, bars()[:0], bars()[:0], [], targets=dict.fromkeys((hard, soft, full), mask), probability=half)
    assert imitation_loss(seen, hard).item() == pytest.approx(log(2))
    assert imitation_loss(seen, soft).item() == pytest.approx(log(2))
    assert imitation_loss(seen, full).item() == pytest.approx(dice_ce(logits, mask).item())
    moved = torch.full((1, 1, 64), 2.0)
    seen = batch(moved, bars()[:0], bars()[:0], [], targets={hard: mask})
    # 20 voxels of foreground at log(1 + e^-2), 20 of background at log(1 + e^2); 24 are unknown.
    expected = (np.log1p(np.exp(-2)) + np.log1p(np.exp(2))) / 2
    assert imitation_loss(seen, hard).item() == pytest.approx(expected)


def test_a_student_learns_the_proposal_that_it_imitates(setting):
    """Slot 2 is a disc of radius 4, which no truth is."""
    setting.train(Imitate(kind="imitate", proposal="s 2"), [], steps=80, every=80, learning_rate=2e-2)
    target = setting.proposals.masks(setting.cases.all[2])[2]
    assert dice_to(target, setting.predicted("last", 2)[None], 2)[0] > 0.9


def test_an_unknown_proposal_is_refused_with_the_known_names(setting):
    with pytest.raises(BadInput, match=r"found 'mean fitted'; the proposals are \['base', 's 1', 's 2'\]"):
        setting.train(Imitate(kind="imitate", proposal="mean fitted"), [])


VOTES = Preference(kind="preference", normaliser="voxel", link=ConservativeDPO(e="votes"))


def test_drift_is_measured_without_strong_views(setting):
    """With steps of nearly 0 the student is the base, so nothing has drifted, however strong the views are."""
    rows = setting.train(Preference(kind="preference"), steps=2, learning_rate=1e-12, views=StrongViews(strength=2))
    assert (rows[-1]["kl_inside"], rows[-1]["kl_outside"]) == pytest.approx((0, 0), abs=1e-6)
    assert rows[-1]["volume_ratio"] == 1
    assert rows[-1]["rewards/chosen"] == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("objective", [Preference(kind="preference"), ImitateChosen(kind="sft"), VOTES])
def test_a_term_on_the_pool_learns_from_images_without_pairs(setting, objective):
    """One of two pool cases has pairs; with the term both are drawn, and a batch without pairs is no error."""
    anchor = Anchor(supervised=0.0, imitate=PoolTerm(proposal="s 2"))
    setting.train(objective, [(2, 0, 1)], anchor=anchor, steps=80, every=80, learning_rate=2e-2)
    assert setting.record()["images"] == 2
    alone = Anchor(supervised=0.0)
    setting.train(objective, [(2, 0, 1)], anchor=alone, out="alone")
    assert setting.record("alone")["images"] == 1


def test_labelled_images_with_pairs_are_not_imitated_on(setting):
    """Pairs of labelled case 0 alone: the pool cases are drawn for the term, and the labelled case has no target."""
    anchor = Anchor(supervised=0.0, imitate=PoolTerm(proposal="s 2"))
    setting.train(Preference(kind="preference"), [(0, 0, 1)], anchor=anchor)
    assert setting.record()["images"] == 3
    pairs = read_table(setting.folder / "pairs/mined.parquet", schema.PAIRS)
    images = PoolImages(setting.data, pairs, segmenter_of(setting.base.load(), (8, 8)), training())
    labelled, pool = (images.target(anchor.imitate.target, setting.cases.all[case], None) for case in (0, 2))
    assert (labelled == schema.UNKNOWN).all()
    assert (pool != schema.UNKNOWN).all()


def test_the_same_views_for_every_arm(setting, monkeypatch):
    """The seeds of the views are those of seed, step and case: two arms see the same images."""
    seen: dict[str, list[int]] = {}
    for name, objective in (("imitate", Imitate(kind="imitate")), ("rn_dpo", Preference(kind="preference"))):
        drawn = seen.setdefault(name, [])

        def varied(self, image, seed, drawn=drawn):
            drawn.append(seed)
            return image

        monkeypatch.setattr(StrongViews, "varied", varied)
        setting.train(objective, steps=3, out=name, views=StrongViews())
    assert seen["imitate"] == seen["rn_dpo"]
    assert len(set(seen["imitate"])) == 6


def test_labelled_views_are_a_knob(setting):
    """Strong labelled views change what `supervised` learns; the student's own knob overrides the shared one."""
    found = {}
    for name, shared, own in (("off", False, None), ("on", True, None), ("own_off", True, False)):
        views = StrongViews(labelled=shared)
        student = {"labelled_views": own}
        setting.train(
            Supervised(kind="supervised"), [], out=name, views=views, steps=4, learning_rate=1e-2, student=student
        )
        found[name] = (setting.folder / name / "last.safetensors").read_bytes()
    assert found["off"] == found["own_off"]
    assert found["off"] != found["on"]


def test_offsets_of_a_student_are_those_of_its_last_weights(setting):
    """One validation case is too few to fit on: the threshold is .5, and the record says why."""
    setting.train(Imitate(kind="imitate"), [], student={"offsets": "validation"})
    record = setting.record()
    assert (record["offsets"], record["thresholds"]) == ([0.0], [0.5])
    assert record["threshold_note"].startswith("expected at least 8 patients")


def test_held_out_offsets_need_a_fold():
    with pytest.raises(ValidationError, match="offsets: 'held_out' needs labelled cases that the start has not seen"):
        Student(pairs="none", objective=Imitate(kind="imitate"), anchor=None, offsets="held_out")
