"""Students beyond plain preference: pool objectives, anchors, averages, interpolation, stopping without labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from pipeline.errors import BadInput
from pipeline.measures.overlap import dice_to
from pipeline.segmenter.knobs import Consistency
from pipeline.segmenter.logits import probability
from pipeline.segmenter.losses import dice_ce
from pipeline.segmenter.models import Model
from pipeline.students.imitation import PoolTerm
from pipeline.students.links.cdpo import ConservativeDPO
from pipeline.students.loop import StudentTraining
from pipeline.students.objectives.distill import Distill
from pipeline.students.objectives.mean_teacher import MeanTeacher
from pipeline.students.objectives.preference import Preference
from pipeline.students.objectives.pseudo_label import PseudoLabel
from pipeline.students.objectives.supervised import Supervised
from pipeline.students.student import Anchor, Stopping
from pipeline.students.watching import stop_rule
from tests.fixtures.builders import proposal_store
from tests.fixtures.networks import segmenter_of
from tests.fixtures.students import SPACE, Setting, made


@pytest.fixture
def setting(tmp_path) -> Setting:
    return made(tmp_path)


def preference(**knobs: Any) -> Preference:
    return Preference(kind="preference", **knobs)


# ---- objectives on the pool ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "objective", [PseudoLabel(kind="pseudo_label"), Distill(kind="distill"), MeanTeacher(kind="mean_teacher")]
)
def test_pool_objectives_need_no_pairs(setting, objective):
    """All pool images are drawn, anchored, and what is measured on pairs is empty."""
    rows = setting.train(objective, [], anchor=Anchor(), steps=4, every=2, learning_rate=1e-3)
    assert rows[-1]["supervised"] > 0
    assert rows[-1]["kl_inside"] is None
    assert rows[-1]["kl_outside"] > 0
    assert rows[-1]["rewards/margins"] is None
    record = setting.record()
    assert (record["pairs_mined"], record["images"]) == (0, 2)
    assert "flipped_share" not in record


def test_pool_and_labelled_images_share_a_pass(setting, monkeypatch):
    """The same student, but for rounding, without a pass of the labelled images alone in every step."""
    passes: list[StudentTraining] = []
    labelled_batch = StudentTraining.labelled_batch

    def counted(self, *stream):
        passes.append(self)
        return labelled_batch(self, *stream)

    monkeypatch.setattr(StudentTraining, "labelled_batch", counted)
    together = setting.train(preference(), anchor=Anchor(), steps=3, learning_rate=1e-2, out="together")
    assert not passes
    monkeypatch.setattr(StudentTraining, "forward", lambda self, seen: self.policy(seen))
    apart = setting.train(preference(), anchor=Anchor(), steps=3, learning_rate=1e-2, out="apart")
    assert len(passes) == 3
    for one, other in zip(together[1:], apart[1:], strict=True):
        assert one["supervised"] == pytest.approx(other["supervised"], rel=1e-3)
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)


def test_supervision_is_dice_and_cross_entropy_of_the_labelled_cases(setting):
    """With steps of nearly 0 the student is the base: its DiceCE on the two labelled cases, which are one batch."""
    rows = setting.train(Supervised(kind="supervised"), [], steps=1)
    labelled = setting.cases.split("labelled")
    images = torch.from_numpy(np.stack([setting.cases.image(case) for case in labelled]))
    labels = torch.from_numpy(np.stack([setting.cases.label(case) for case in labelled]))
    with torch.no_grad():
        expected = dice_ce(setting.base.load()(images), labels).item()
    assert rows[-1]["loss"] == pytest.approx(expected, abs=1e-6)
    assert setting.record()["stopped"] is None


def test_pseudo_labels_are_the_base_of_the_same_view(setting):
    """With steps of nearly 0 the student is the base: cross-entropy to its own most probable class, which for one
    image is the mean of -log max p, and the share of voxels with p of at least .6 is what is labelled."""
    rows = setting.train(PseudoLabel(kind="pseudo_label", confidence=0.6), [], steps=1)
    shares = []
    for row in (2, 3):
        logits = segmenter_of(setting.base.load(), SPACE).logits(setting.cases.image(setting.cases.all[row]))
        shares.append(float((probability(logits).max(0).values >= 0.6).float().mean()))
    assert 0 < np.mean(shares) < 1
    assert rows[-1]["pseudo_labelled"] == pytest.approx(np.mean(shares))


def test_distillation_learns_the_mean_probability(setting):
    """The mean of the three proposals of a case is at least 1/2 where two of them are 1: that mask is learnt."""
    setting.train(Distill(kind="distill"), [], steps=80, every=80, learning_rate=2e-2)
    case = setting.cases.all[2]
    target = (setting.proposals.masks(case).mean(0) >= 0.5).astype(np.uint8)
    assert dice_to(target, setting.predicted("last", 2)[None], 2)[0] > 0.8


def test_distillation_needs_proposals_of_the_pool(setting):
    """The store has proposals of two cases only, none of them of the pool."""
    discs = [setting.proposals.masks(case) for case in setting.cases.all[:2]]
    setting.proposals = proposal_store(setting.folder / "few", discs)
    with pytest.raises(
        BadInput,
        match=r"few: student 'tried' learns from proposals of the pool, and 2 pool cases have none \(first: 'c2'\); "
        r"add 'pool' to propose.splits",
    ):
        setting.train(Distill(kind="distill"), [])


def test_mean_teacher_keeps_the_average(setting):
    """The kept weights are the moving average's: they lag behind a network that moves in one direction."""
    objective = MeanTeacher(kind="mean_teacher", consistency=Consistency(decay=0.9, noise=0.5, weight=5.0))
    rows = setting.train(objective, [], anchor=Anchor(), steps=20, every=10, learning_rate=1e-2)
    assert rows[1]["consistency"] > 0
    base, kept = setting.base.load(), Model(setting.folder / "student", "last").load()
    moved = [(a - b).abs().max().item() for a, b in zip(base.parameters(), kept.parameters(), strict=True)]
    assert max(moved) > 1e-3


# ---- anchors ---------------------------------------------------------------------------------------------------


def test_anchors_add_their_terms(setting):
    """At steps of nearly 0: loss = log 2 + .5 * supervised + 3 * 0 + 2 * imitate."""
    anchor = Anchor(supervised=0.5, kl=3.0, imitate=PoolTerm(weight=2.0, loss="cross_entropy"))
    for row in setting.train(preference(), anchor=anchor)[1:]:
        assert row["kl"] == pytest.approx(0, abs=1e-6)
        assert row["imitate"] > 0.1
        expected = np.log(2) + 0.5 * row["supervised"] + 2 * row["imitate"]
        assert row["loss"] == pytest.approx(expected, abs=1e-4)


def test_the_kl_anchor_holds_what_is_outside(setting):
    """D of the pair (0, 2) is the rim between two discs; outside, the anchored student stays nearer to the base."""
    drifted = {}
    for weight in (0.0, 50.0):
        rows = setting.train(
            preference(beta=1.0),
            [(2, 0, 2), (3, 0, 2)],
            anchor=Anchor(supervised=0.0, kl=weight),
            steps=40,
            every=40,
            learning_rate=1e-2,
        )
        drifted[weight] = rows[-1]["kl_outside"]
    assert drifted[50.0] < 0.5 * drifted[0.0]


# ---- calibrated pairs ------------------------------------------------------------------------------------------


def test_a_calibrated_link_takes_each_pairs_error(setting):
    """p_correct .7 gives e = .3; at h = 0 cdpo is log 2 whatever e, and 1 - .99 is clipped to .02."""
    objective = preference(link=ConservativeDPO(e="calibrated"))
    rows = setting.train(objective, p_correct=0.7)
    assert rows[-1]["loss"] == pytest.approx(np.log(2), abs=1e-4)


def test_a_calibrated_link_needs_calibration(setting):
    objective = preference(link=ConservativeDPO(e="calibrated"))
    with pytest.raises(
        BadInput,
        match=r"pairs/mined.parquet: student 'tried' needs calibrated pairs, and 2 of 2 have no p_correct; see "
        r"audit/summary.json for why, or give the link a number as `e`",
    ):
        setting.train(objective)


# ---- averages and interpolation --------------------------------------------------------------------------------


def test_a_moving_average_is_what_is_kept(setting):
    """The same training with and without: the average has moved less far from the base."""
    far = {}
    for name, student in (("plain", {}), ("averaged", {"average": 0.99})):
        setting.train(preference(), steps=20, every=20, learning_rate=1e-2, out=name, student=student)
        kept = Model(setting.folder / name, "last").load()
        pairs = zip(setting.base.load().parameters(), kept.parameters(), strict=True)
        far[name] = max((a - b).abs().max().item() for a, b in pairs)
    assert 0 < far["averaged"] < far["plain"]


def test_interpolation_never_ends_below_its_ends(setting):
    """A student pushed away from the truth is taken back to the base: share 0."""
    rows = setting.train(
        preference(),
        [(2, 1, 0), (3, 1, 0)],
        steps=60,
        every=60,
        learning_rate=2e-2,
        student={"interpolate": (0.0, 0.5, 1.0)},
    )
    assert rows[-1]["validation_dice"] < rows[0]["validation_dice"]
    assert setting.record()["interpolated"] == 0.0
    kept = Model(setting.folder / "student", "last").load()
    for a, b in zip(setting.base.load().parameters(), kept.parameters(), strict=True):
        assert torch.equal(a, b)


# ---- stopping without labels -----------------------------------------------------------------------------------


def test_stopping_on_drift_drops_what_it_objects_to(setting):
    """Any drift is above 1e-9 nats, so the first evaluation stops: what is kept is step 0, the base.

    Of the two paired images one is kept from training.
    """
    stopping = Stopping(kl=1e-9, held_out=0.5)
    rows = setting.train(
        preference(),
        [(2, 0, 2), (3, 0, 2)],
        steps=4,
        every=2,
        learning_rate=1e-2,
        student={"stopping": stopping},
    )
    assert [row["step"] for row in rows] == [0, 2]
    assert rows[0]["held_out/kl_outside"] == 0
    assert rows[1]["held_out/kl_outside"] > 1e-9
    record = setting.record()
    assert record["stopped"].startswith("KL outside the disagreement regions")
    assert (record["steps"], record["late"], record["images"]) == (2, ["step_000000"], 1)


def test_a_region_that_is_the_whole_image_leaves_nothing_outside(setting):
    """Chosen is the complement of rejected: the rule sees KL 0 and trains on."""
    stopping = Stopping(kl=1e-9, held_out=0.5)
    rows = setting.train(preference(), steps=4, every=4, learning_rate=1e-2, student={"stopping": stopping})
    assert [row["held_out/kl_outside"] for row in rows] == [0, 0]
    assert setting.record()["stopped"] is None


def rows_of(key: str, *values: float) -> list[dict[str, float | None]]:
    return [{f"held_out/{key}": value} for value in values]


def test_the_rules_by_hand():
    """KL above .1; volume outside .8 to 1.25; two evaluations not above the best accuracy .7."""
    rule = stop_rule(Stopping(kl=0.1))
    found = [rule(row) for row in rows_of("kl_outside", 0.05, 0.1, 0.2)]
    assert found == [None, None, "KL outside the disagreement regions 0.2 above 0.1"]
    rule = stop_rule(Stopping(volume_ratio=(0.8, 1.25)))
    found = [rule(row) for row in rows_of("volume_ratio", 0.8, 1.25, 1.5)]
    assert found == [None, None, "volume ratio 1.5 outside 0.8 to 1.25"]
    rule = stop_rule(Stopping(patience=2))
    found = [rule(row) for row in rows_of("accuracy", 0.6, 0.7, 0.65, 0.7)]
    assert found[:3] == [None] * 3
    assert found[3] == "reward accuracy on held-out pairs not above 0.7 for 2 evaluations"
    assert stop_rule(None)({"held_out/kl_outside": 100.0}) is None


def test_an_accuracy_of_one_does_not_end_training():
    """1 cannot get better. Only the two evaluations below 1 count, and between them the accuracy was 1 again."""
    rule = stop_rule(Stopping(patience=2))
    assert [rule(row) for row in rows_of("accuracy", 0.8, 1.0, 1.0, 1.0, 1.0, 0.9, 1.0, 0.9)] == [None] * 8
    assert rule({"held_out/accuracy": 0.9}) == "reward accuracy on held-out pairs not above 1 for 2 evaluations"


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({}, "names no rule; give kl, volume_ratio or patience"),
        ({"volume_ratio": (1.1, 1.5)}, r"expected a range around 1, found \[1.1, 1.5\]"),
    ],
)
def test_stopping_rules_that_make_no_sense(knobs, message):
    with pytest.raises(ValidationError, match=message):
        Stopping(**knobs)


def test_stopping_needs_images_to_keep(setting):
    with pytest.raises(BadInput, match="stopping needs pool groups to keep from training, and there are 1"):
        setting.train(preference(), [(2, 0, 1)], student={"stopping": Stopping(kl=1.0)})


def test_a_patient_is_kept_from_training_as_a_whole(tmp_path):
    """Both pool images are of one patient: nothing would be left to train on."""
    here = made(tmp_path, groups=["a", "b", "p", "p", "v"])
    with pytest.raises(BadInput, match="stopping needs pool groups to keep from training, and there are 1"):
        here.train(preference(), student={"stopping": Stopping(kl=1.0)})
