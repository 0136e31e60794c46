"""Students: what they start from, what they learn, what they leave, and what is refused."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from pipeline.errors import BadInput
from pipeline.measures.overlap import dice_to
from pipeline.segmenter.architecture import Architecture
from pipeline.segmenter.augmentation import Augmentation
from pipeline.segmenter.knobs import Optimisation
from pipeline.segmenter.models import Model
from pipeline.segmenter.weights import load_weights
from pipeline.store.manifest import check_manifest
from pipeline.students.objectives.full import Full
from pipeline.students.objectives.preference import Preference
from pipeline.students.objectives.sft import ImitateChosen
from pipeline.students.objectives.supervised import Supervised
from pipeline.students.student import Anchor
from pipeline.students.train import HISTORY
from tests.fixtures.students import Setting, made


@pytest.fixture
def setting(tmp_path) -> Setting:
    return made(tmp_path)


# ---- learning --------------------------------------------------------------------------------------------------


def test_step_0_is_the_base(setting):
    """With the smallest of step sizes policy and reference stay equal: margins 0, loss -log sigmoid(0) = log 2."""
    rows = setting.train(Preference(kind="preference"), augmentation=Augmentation(flips=(0, 1)), steps=3)
    assert rows[0]["loss"] is None
    assert rows[0]["validation_dice"] is not None
    for row in rows[1:]:
        assert row["rewards/margins"] == pytest.approx(0, abs=1e-4)
        assert row["rewards/chosen"] == pytest.approx(0, abs=1e-4)
        assert row["rewards/rejected"] == pytest.approx(0, abs=1e-4)
        assert row["loss"] == pytest.approx(np.log(2), abs=1e-4)
        assert row["kl_inside"] == pytest.approx(0, abs=1e-6)
        assert row["disagreement"] == 64
        assert row["supervised"] is None


@pytest.mark.parametrize("normaliser", ["region", "none"])
def test_preference_moves_predictions_towards_chosen(setting, normaliser):
    """Chosen is the truth and rejected its complement: D is the whole image, and its Dice rises well above the base."""
    chosen = setting.proposals.masks(setting.cases.all[2])[0]
    objective = Preference(kind="preference", normaliser=normaliser)
    rows = setting.train(objective, [(2, 0, 1)], steps=60, every=30, learning_rate=2e-2)
    dice = [
        dice_to(chosen, setting.predicted(name, 2, out)[None], 2)[0]
        for name, out in (("base", "base"), ("last", "student"))
    ]
    assert dice[1] > dice[0] + 0.2
    assert dice[1] > 0.8
    assert rows[-1]["rewards/margins"] > 1
    assert rows[-1]["rewards/accuracies"] == 1
    assert rows[-1]["rewards/chosen"] > 0 > rows[-1]["rewards/rejected"]
    assert rows[-1]["loss"] < rows[1]["loss"] < np.log(2)
    assert rows[-1]["kl_inside"] > 0.1
    record = setting.record()
    assert record["flipped_share"] > 0.1
    assert record["base_margin_on_disagreement"] > 0


def test_turned_pairs_move_predictions_the_other_way(setting):
    rejected = setting.proposals.masks(setting.cases.all[2])[0]
    setting.train(Preference(kind="preference"), [(2, 1, 0)], steps=60, every=60, learning_rate=2e-2)
    assert dice_to(rejected, setting.predicted("last", 2)[None], 2)[0] < 0.2


def test_the_anchor_adds_the_supervised_term(setting):
    """At step sizes of nearly 0: loss = log 2 + weight * supervised, and the supervised term does not depend on it."""
    seen = {}
    for weight in (0.5, 2.0):
        anchor = Anchor(supervised=weight)
        rows = setting.train(Preference(kind="preference"), anchor=anchor, out=f"student_{weight}")
        for row in rows[1:]:
            assert row["supervised"] > 0.1
            assert row["loss"] == pytest.approx(np.log(2) + weight * row["supervised"], abs=1e-4)
        seen[weight] = [row["supervised"] for row in rows[1:]]
    assert seen[0.5] == pytest.approx(seen[2.0], abs=1e-5)


def test_an_anchor_of_weight_0_is_no_anchor(setting):
    with_anchor = setting.train(
        Preference(kind="preference"), anchor=Anchor(supervised=0.0), out="a", learning_rate=1e-3
    )
    assert with_anchor == setting.train(Preference(kind="preference"), out="b", learning_rate=1e-3)


def test_imitation_learns_the_chosen_mask(setting):
    chosen = setting.proposals.masks(setting.cases.all[2])[2]
    rows = setting.train(ImitateChosen(kind="sft"), [(2, 2, 0)], steps=60, every=30, learning_rate=2e-2)
    assert dice_to(chosen, setting.predicted("last", 2)[None], 2)[0] > 0.8
    assert rows[-1]["loss"] < rows[1]["loss"]
    assert rows[-1]["rewards/margins"] is None


@pytest.mark.parametrize("objective", [Supervised(kind="supervised"), "full"])
def test_supervision_learns_the_labelled_cases(setting, objective):
    """On labelled cases alone, or with the truth of the pool; pairs are not needed."""
    if objective == "full":
        own = Optimisation(steps=60, learning_rate=2e-2, schedule="constant", evaluate_every=30)
        objective = Full(kind="full", optimisation=own, batch=2)
    rows = setting.train(objective, [], steps=60, every=30, learning_rate=2e-2)
    truth = setting.cases.label(setting.cases.all[0])
    assert dice_to(truth, setting.predicted("last", 0)[None], 2)[0] > 0.8
    assert rows[-1]["loss"] < rows[1]["loss"]
    assert rows[-1]["validation_dice"] > rows[0]["validation_dice"]
    if objective.kind == "full":
        assert setting.record()["labelled"] == 4


def test_arms_start_from_the_same_weights(setting):
    """Step 0 has the validation Dice of the base in every arm."""
    own = Optimisation(steps=2, learning_rate=1e-9, evaluate_every=1)
    arms = [Preference(kind="preference"), ImitateChosen(kind="sft"), Supervised(kind="supervised")]
    first = [setting.train(arm)[0]["validation_dice"] for arm in [*arms, Full(kind="full", optimisation=own)]]
    truth = setting.cases.label(setting.cases.all[4])
    base = dice_to(truth, setting.predicted("base", 4, "base")[None], 2)[0]
    assert first == pytest.approx([base] * 4)


# ---- what is left ----------------------------------------------------------------------------------------------


def test_what_a_student_leaves(setting):
    """10 steps evaluated each: the last fifth is two. `best` is the state of its step, `last` of the last."""
    rows = setting.train(Preference(kind="preference"), anchor=Anchor(), steps=10, learning_rate=1e-2)
    out = setting.folder / "student"
    assert {path.name for path in out.iterdir()} == {
        "network.json",
        "input.json",
        "seen.json",
        "student.json",
        "manifest.json",
        "last.safetensors",
        "best.safetensors",
        "step_000009.safetensors",
        "step_000010.safetensors",
    }
    check_manifest(out, content=True)
    assert tuple(rows[0]) == (*HISTORY, "disagreement/class_1", "push/class_1")
    assert Architecture.load(out) == setting.base.architecture
    last, final = (out / f"{name}.safetensors" for name in ("last", "step_000010"))
    assert last.read_bytes() == final.read_bytes()
    dice = [row["validation_dice"] for row in rows]
    record = setting.record()
    assert record["best_step"] == int(np.argmax(dice))
    assert (record["name"], record["pairs"], record["steps"]) == ("tried", "mined", 10)
    assert record["late"] == ["step_000009", "step_000010"]
    assert record["anchor"] == {"supervised": 1.0, "kl": 0.0, "imitate": None}
    assert (record["stopped"], record["interpolated"], record["offsets"], record["slot"]) == (None,) * 4
    assert record["objective"] == Preference(kind="preference").model_dump(mode="json")
    assert (record["pairs_mined"], record["images"]) == (2, 2)
    assert (record["mean_disagreement"], record["beta_own"], record["aimed_shift"]) == (64, 3, None)
    assert set(record) >= {"base_margin_on_disagreement", "flipped_share"}
    truth = setting.cases.label(setting.cases.all[4])
    assert dice_to(truth, setting.predicted("best", 4)[None], 2)[0] == pytest.approx(max(dice))
    assert dice_to(truth, setting.predicted("last", 4)[None], 2)[0] == pytest.approx(dice[-1])


def test_columns_that_do_not_apply_are_empty(setting):
    rows = setting.train(Supervised(kind="supervised"), [])
    assert tuple(rows[0]) == HISTORY
    filled = {name for name, value in rows[-1].items() if value is not None}
    assert filled == {"step", "loss", "labelled_dice", "validation_assd", "validation_dice"}
    assert setting.record()["anchor"] is None
    assert "pairs_mined" not in setting.record()


@pytest.mark.parametrize("kind", ["preference", "full"])
def test_training_twice_gives_equal_bytes(tmp_path, kind):
    """Flips, anchor (of pairs) and augmentation in; torch's global generator in another state."""
    own = Optimisation(steps=3, learning_rate=1e-2, evaluate_every=1)
    objective = Preference(kind="preference") if kind == "preference" else Full(kind="full", optimisation=own, batch=2)
    found = []
    for turn in range(2):
        torch.manual_seed(turn)
        here = made(tmp_path / str(turn))
        anchor = Anchor() if kind == "preference" else None
        here.train(objective, anchor=anchor, augmentation=Augmentation(), steps=3, learning_rate=1e-2)
        files = [*sorted((here.folder / "student").iterdir()), here.folder / "student.csv"]
        found.append({path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files})
    assert found[0] == found[1]
    weights = [made(tmp_path / "other").base.weights, tmp_path / "0/student/last.safetensors"]
    first, last = (load_weights(Model(tmp_path / "0/base").architecture.build(0), path) for path in weights)
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), last.parameters(), strict=True))


# ---- refused ---------------------------------------------------------------------------------------------------


def test_full_supervision_needs_the_truth_of_the_pool(tmp_path):
    """Nothing is written."""
    here = made(tmp_path, without_label=[3])
    objective = Full(kind="full", optimisation=Optimisation(steps=2, learning_rate=1e-3))
    with pytest.raises(
        BadInput,
        match=r"cases: objective 'full' needs the truth of split pool; 1 of 2 cases have no label \(first: 'c3'\); "
        r"remove the student from params.yaml",
    ):
        here.train(objective)
    assert not (tmp_path / "student").exists()
    assert not (tmp_path / "student.csv").exists()


@pytest.mark.parametrize("objective", [Preference(kind="preference"), ImitateChosen(kind="sft")])
def test_a_pair_set_without_pairs(setting, objective):
    with pytest.raises(
        BadInput,
        match=r"pairs/mined.parquet: student 'tried' needs pairs and pair set 'mined' has none; see "
        r".*pairs/mined.drops.json for the reasons, and lower the thresholds of the pair set",
    ):
        setting.train(objective, [])
    assert not (setting.folder / "student").exists()


def test_a_pool_without_labels_is_no_obstacle_to_pairs(tmp_path):
    rows = made(tmp_path, without_label=[2, 3]).train(Preference(kind="preference"), anchor=Anchor())
    assert rows[-1]["loss"] is not None


def test_a_diverging_student(setting):
    with pytest.raises(BadInput, match=r"training diverged: the loss at step \d+ is (nan|inf)"):
        setting.train(Preference(kind="preference"), steps=5, every=5, learning_rate=1e30)
