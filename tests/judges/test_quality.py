"""Judge `quality`: its losses by hand, what it writes, and that it learns what the mean probability does not know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.compute import Compute
from pipeline.errors import BadInput
from pipeline.judges.judge import Evidence, JudgeInputs
from pipeline.judges.kinds.quality import REPORT, DiceNetwork, Quality
from pipeline.judges.learning.learned_dice import ranking_loss, reliability, soft_pick
from pipeline.judges.score import LabelFree
from pipeline.seeding import numpy_generator
from tests.fixtures.builders import case_store, no_proposals, proposal_store
from tests.fixtures.judging import Scene, evidence_of, folds_of
from tests.fixtures.phantoms import disc

TINY = {
    "network": {"name": "DenseNet", "arguments": {"init_features": 8, "growth_rate": 4, "block_config": [2, 2]}},
    "optimisation": {"steps": 4, "learning_rate": 1e-3, "evaluate_every": 2},
    "batch": 4,
    "networks": 2,
}


def quality(**knobs: Any) -> Quality:
    return Quality.model_validate_json(json.dumps({"kind": "quality", **TINY, **knobs}))


class Constant(nn.Module):
    """Adds the same to the logit of every class, and keeps what it was shown."""

    def __init__(self, value: float, classes: int = 1) -> None:
        super().__init__()
        self.value, self.classes = value, classes
        self.shown = torch.empty(0)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.shown = inputs
        return torch.full((len(inputs), self.classes), self.value)


def dice_network(network: nn.Module, shrink: int) -> DiceNetwork:
    """For one foreground class."""
    return DiceNetwork(network, (1, 1), 2, shrink, Compute())


def seen(mask: list[float], probability: list[float]) -> torch.Tensor:
    """One channel of image, one foreground class, `[1, 3, 1, n]`."""
    return torch.tensor([[mask, mask, probability]])[:, :, None]


def test_predicted_dice_starts_at_the_soft_dice_of_mask_and_probability():
    """Overlap 3, volumes 4 and 5: (2 * 3 + 1) / (4 + 5 + 1) = 0.7; with 1 added to the logit, 1 / (1 + 3/7 e^-1)."""
    inputs = seen([1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 0, 1, 1, 0])
    assert dice_network(Constant(0), 1).corrected_dice(inputs).tolist() == [[pytest.approx(0.7)]]
    assert dice_network(Constant(1), 1).corrected_dice(inputs).item() == pytest.approx(1 / (1 + 3 / 7 * np.exp(-1)))


def test_predicted_dice_of_nothing_is_nearly_one():
    """Neither has the class: 1, held back to 0.999 so that its logit is finite."""
    assert dice_network(Constant(0), 1).corrected_dice(seen([0, 0], [0, 0])).item() == pytest.approx(0.999)


def test_shrinking_averages_voxels_for_the_network_alone():
    network, inputs = Constant(0), torch.zeros(1, 3, 2, 4)
    inputs[0, 1, :, :1], inputs[0, 2] = 1.0, 0.5
    full = dice_network(Constant(0), 1).corrected_dice(inputs)
    assert (dice_network(network, 2).corrected_dice(inputs) == full).all()
    assert network.shown[0, 1].tolist() == [[0.5, 0.0]]


def test_ranking_loss_of_two_pairs():
    """Dice .8 and .6 in the right order, apart by .05: log(1 + e^-1); .9 and .5 of another image in the wrong one by
    .1: log(1 + e^2). Their gaps .2 and .4 weigh them. Masks of different images are not compared."""
    predicted, dice = torch.tensor([0.75, 0.7, 0.2, 0.3]), torch.tensor([0.8, 0.6, 0.9, 0.5])
    expected = (0.2 * np.log1p(np.exp(-1)) + 0.4 * np.log1p(np.exp(2))) / 0.6
    assert ranking_loss(predicted, dice, torch.tensor([0, 0, 1, 1])).item() == pytest.approx(expected)
    assert ranking_loss(predicted, dice, torch.arange(4)).item() == 0
    assert ranking_loss(predicted, torch.full((4,), 0.5), torch.zeros(4)).item() == 0


def test_reliability_of_two_cases():
    """First case: slot 1 on top, 0.1 better than slot 0, two of three pairs right. Second: one proposal."""
    truths = [np.array([[0.6], [0.7], [0.5]]), np.array([[0.4]])]
    predicted = [np.array([[0.5], [0.9], [0.6]]), np.array([[0.4]])]
    found = reliability(predicted, truths, ["p", "q"])
    assert found == {
        "error": pytest.approx((0.4 / 3 + 0) / 2),
        "pair_accuracy": pytest.approx(2 / 3),
        "lift": pytest.approx(0.05),
    }
    assert reliability(predicted[1:], truths[1:], ["q"])["pair_accuracy"] is None


def test_reliability_is_a_mean_over_patients():
    """The first case twice, of one patient, and the second of another: the same as once each."""
    truths = [np.array([[0.6], [0.7], [0.5]]), np.array([[0.4]])]
    predicted = [np.array([[0.5], [0.9], [0.6]]), np.array([[0.4]])]
    twice = reliability([predicted[0], *predicted], [truths[0], *truths], ["p", "p", "q"])
    assert twice == pytest.approx(reliability(predicted, truths, ["p", "q"]))
    assert soft_pick([predicted[0], *predicted], [truths[0], *truths], ["p", "p", "q"]) == pytest.approx(
        soft_pick(predicted, truths, ["p", "q"])
    )


def test_soft_pick_is_between_the_mean_and_the_top():
    """Scores apart by SCALE = .05 weigh e to 1: (.8 e + .6) / (e + 1); equal scores give the mean."""
    truth = [np.array([[0.8], [0.6]])]
    assert soft_pick([np.array([[0.55], [0.5]])], truth, ["p"]) == pytest.approx((0.8 * np.e + 0.6) / (np.e + 1))
    assert soft_pick([np.array([[0.5], [0.5]])], truth, ["p"]) == pytest.approx(0.7)


# ---- learning --------------------------------------------------------------------------------------------------


def lesions(folder: Path, labelled: int, groups: list[str] | None = None, folds: bool = True) -> Scene:
    """Bright discs that proposals miss by 3 pixels to either side or hit; the mean probability prefers a miss.

    The disc of right size is proposal 0, 1 or 2 in turn. Cases `c0` to `c3` are the pool.
    """
    space = (24, 24)
    truths, masks, images = [], [], []
    for row in range(4 + labelled):
        draw = numpy_generator("lesions", row)
        centre = int(draw.integers(-3, 4))
        truth = disc(space, 5, centre)
        three = np.array([disc(space, 5, centre + shift) for shift in (0, 3, -3)])
        truths.append(truth.astype(np.uint8))
        masks.append(np.roll(three, row % 3, 0).astype(np.uint8))
        images.append((truth + 0.3 * draw.normal(size=space)).astype(np.float32)[None])
    splits = ["pool"] * 4 + ["labelled"] * labelled
    sure = [0.5 * m.max(0) + 0.2 * m[(row + 1) % 3] for row, m in enumerate(masks)]
    probabilities = [np.stack([1 - p, p]).astype(np.float32) for p in sure]
    cases = case_store(folder / "cases", truths, splits, images, (24, 24), groups=groups)
    proposals = proposal_store(folder / "proposals", masks, probabilities)
    return Scene(cases, proposals, folder, proposals if folds else no_proposals(folder / "none"))


def given_of(at: Scene, folder: Path, seed: int = 0) -> JudgeInputs:
    folder.mkdir(exist_ok=True)
    return JudgeInputs(LabelFree(at.cases.folder), at.proposals, folds_of(at), folder, Compute(), seed)


def test_it_learns_to_see_what_the_mean_probability_does_not(tmp_path):
    """The mean probability prefers a disc that is not there; the image shows which one is."""
    at = lesions(tmp_path, 12)
    knobs = quality(
        optimisation={"steps": 40, "learning_rate": 1e-2, "evaluate_every": 20}, networks=1, batch=8, corrupted=0.3
    )
    scorer = knobs.ready(given_of(at, tmp_path / "models"))
    report = json.loads((tmp_path / "models" / REPORT).read_text())["quality_0"]
    assert report["history"][0]["pair_accuracy"] < 0.9
    assert next(row for row in report["history"] if row["step"] == report["best_step"])["pair_accuracy"] > 0.9
    for row in range(4):
        assert scorer.score(evidence_of(knobs, at, row)).argmax() == row % 3


def test_what_it_writes(tmp_path):
    at = lesions(tmp_path, 5)
    quality().ready(given_of(at, tmp_path / "models"))
    files = sorted(path.name for path in (tmp_path / "models").iterdir())
    assert files == [REPORT, "network.json", *(f"quality_{n}.{end}" for n in (0, 1) for end in ("json", "safetensors"))]
    report = json.loads((tmp_path / "models" / REPORT).read_text())
    assert list(report) == ["quality_0", "quality_1"]
    # Five groups in five parts: every network leaves another one out.
    assert [row["cases"] for row in report.values()] == [1, 1]
    assert len({group for row in report.values() for group in row["groups"]}) == 2
    assert [row["step"] for row in report["quality_0"]["history"]] == [0, 2, 4]
    assert {"error", "pair_accuracy", "lift", "validation_dice"} <= report["quality_0"]["history"][0].keys()


def test_a_killed_run_goes_on_with_equal_bytes(tmp_path):
    at = lesions(tmp_path, 5)
    quality().ready(given_of(at, tmp_path / "models"))
    whole = {path.name: path.read_bytes() for path in (tmp_path / "models").iterdir()}
    (tmp_path / "models" / REPORT).unlink()
    (tmp_path / "models" / "quality_1.safetensors").unlink()
    (tmp_path / "models" / "quality_1.json").unlink()
    quality().ready(given_of(at, tmp_path / "models"))
    assert {path.name: path.read_bytes() for path in (tmp_path / "models").iterdir()} == whole


def test_what_was_learned_is_not_learned_again(tmp_path):
    """Without anything to learn from, the files that are there are enough."""
    at = lesions(tmp_path, 3)
    first = quality().ready(given_of(at, tmp_path / "models"))
    later = Scene(at.cases, at.proposals, at.table, no_proposals(tmp_path / "none"))
    second = quality().ready(given_of(later, tmp_path / "models"))
    evidence = evidence_of(quality(), at)
    assert first.score(evidence).tobytes() == second.score(evidence).tobytes()


def test_another_seed_learns_something_else(tmp_path):
    at = lesions(tmp_path, 3)
    scorers = [quality().ready(given_of(at, tmp_path / str(seed), seed)) for seed in (0, 1)]
    evidence = evidence_of(quality(), at)
    assert scorers[0].score(evidence).tobytes() != scorers[1].score(evidence).tobytes()


def test_a_mask_without_a_known_voxel_has_no_score(tmp_path):
    at = lesions(tmp_path, 3)
    masks = [np.stack([disc((24, 24), 5).astype(np.uint8), np.full((24, 24), 255, np.uint8)])]
    scorer = quality().ready(given_of(at, tmp_path / "models"))
    store = proposal_store(tmp_path / "unknown", masks)
    scores = scorer.score(Evidence(at.cases, store, at.cases.all[0]))
    assert np.isnan(scores).tolist() == [False, True]


def test_one_group_is_not_enough(tmp_path):
    at = lesions(tmp_path, 3, groups=[f"g{max(row, 4)}"[:2] for row in range(7)][:4] + ["same"] * 3)
    with pytest.raises(BadInput, match=r"kind 'quality' leaves labelled groups out .* at least 2, found \['same'\]"):
        quality().ready(given_of(at, tmp_path / "models"))


def test_without_folds_it_refuses(tmp_path):
    with pytest.raises(BadInput, match=r"kind 'quality' learns from out-of-fold proposals .* base.folds of at least 2"):
        quality().ready(given_of(lesions(tmp_path, 3, folds=False), tmp_path / "models"))


def test_a_window_that_is_too_small_is_refused(tmp_path):
    knobs = quality(network={**TINY["network"], "window": [16, 32]})  # type: ignore[dict-item]
    with pytest.raises(BadInput, match=r"network.window \[16, 32\] does not hold the largest case \[24, 24\]"):
        knobs.ready(given_of(lesions(tmp_path, 3), tmp_path / "models"))
