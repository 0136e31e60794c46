"""The training loop on a network of one number: what it evaluates, keeps and refuses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.errors import BadInput
from pipeline.measures.overlap import dice_to
from pipeline.segmenter import sliding
from pipeline.segmenter.knobs import Optimisation
from pipeline.segmenter.logits import labels
from pipeline.segmenter.loop import Average, TrainedWeights, interpolated, optimise
from pipeline.store.cases import LabelledCases
from pipeline.students.watching import validation_measures
from tests.fixtures.builders import case_store
from tests.fixtures.networks import Ramp, noise, row_of, seeded, segmenter_of, small
from tests.fixtures.phantoms import disc


class Number(nn.Module):
    """One weight, 0 at the start."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))


def knobs(steps: int, every: int, **more: Any) -> Optimisation:
    plain = {"learning_rate": 0.1, "schedule": "constant", "weight_decay": 0.0}
    return Optimisation(**{**plain, "steps": steps, "evaluate_every": every, **more})


def train(curve: Sequence[float] | None, options: Optimisation, snapshot_every: int = 0) -> TrainedWeights:
    """Loss -w, a constant gradient of -1, so that AdamW moves w by the step size; Dice as given, else always .5."""
    network = Number()
    values = iter(curve or ())

    def evaluate(_: nn.Module) -> dict[str, float | None]:
        return {"validation_dice": next(values) if curve is not None else 0.5, "w": network.w.item()}

    def step_loss(step: int) -> tuple[Tensor, dict[str, float | None]]:
        return -network.w.sum(), {"number": float(step), "absent": None}

    return optimise(network, step_loss, evaluate, options, snapshot_every=snapshot_every)


def column(trained: TrainedWeights, name: str) -> list[float | None]:
    return [row.get(name) for row in trained.history]


def test_the_history_has_one_row_per_evaluation():
    """5 steps, every 2: steps 0, 2, 4 and the last. Numbers are means since the last row: 1.5, 3.5, 5.

    w after n steps is .1 n, and the loss of step n is -.1 (n - 1): means -.05, -.25, -.4.
    """
    trained = train(None, knobs(5, 2))
    assert column(trained, "step") == [0, 2, 4, 5]
    assert column(trained, "number") == [None, 1.5, 3.5, 5.0]
    assert column(trained, "w") == pytest.approx([0, 0.2, 0.4, 0.5], abs=1e-5)
    assert column(trained, "loss")[0] is None
    assert column(trained, "loss")[1:] == pytest.approx([-0.05, -0.25, -0.4], abs=1e-5)
    assert not any("absent" in row for row in trained.history)


def test_the_last_step_is_evaluated_once():
    assert column(train(None, knobs(4, 2)), "step") == [0, 2, 4]


def test_best_and_last():
    """Dice .1 .4 .3 .4 at steps 0 to 3: the first of equals is best, w = .1 there and .3 at the end."""
    trained = train([0.1, 0.4, 0.3, 0.4], knobs(3, 1))
    assert trained.best_step == 1
    assert trained.best["w"].item() == pytest.approx(0.1, abs=1e-5)
    assert trained.last["w"].item() == pytest.approx(0.3, abs=1e-5)


def test_a_training_that_only_hurts_keeps_step_0_as_best():
    trained = train([0.9, 0.4, 0.3], knobs(2, 1))
    assert (trained.best_step, trained.best["w"].item()) == (0, 0.0)


@pytest.mark.parametrize(
    ("steps", "every", "late"),
    [
        (400, 20, [340, 360, 380, 400]),  # 20 evaluations: the last 4
        (100, 1, [96, 97, 98, 99, 100]),  # 100 evaluations: 20, of which 5 are kept
        (10, 2, [10]),  # 5 evaluations: the last
        (4, 2, [4]),  # less than one is one
        (3, 5, [3]),
    ],
)
def test_the_last_fifth_is_kept(steps, every, late):
    trained = train(None, knobs(steps, every))
    assert sorted(trained.late) == late
    assert [trained.late[step]["w"].item() for step in late] == pytest.approx([step / 10 for step in late], rel=1e-3)


def test_patience_stops():
    """Best at step 2, then three evaluations that are not better: stops at 5 of 100."""
    trained = train([0.1, 0.2, 0.5, 0.4, 0.5, 0.3], knobs(100, 1, patience=3))
    assert column(trained, "step") == [0, 1, 2, 3, 4, 5]
    assert trained.best_step == 2
    assert sorted(trained.late) == [5]


def test_patience_waits_for_evaluations_not_steps_and_starts_again_at_a_better_one():
    trained = train([0.5, 0.4, 0.6, 0.5, 0.55], knobs(100, 10, patience=2))
    assert column(trained, "step") == [0, 10, 20, 30, 40]


def test_patience_begins_with_the_first_improvement():
    """A trained start falls before it rises: .9 at step 0 is beaten at step 4, and two evaluations later it ends."""
    trained = train([0.9, 0.1, 0.2, 0.3, 0.95, 0.4, 0.5], knobs(100, 1, patience=2))
    assert trained.history[-1]["step"] == 6
    assert trained.best_step == 4
    never = train([0.9] + [0.1] * 8, knobs(8, 1, patience=2))
    assert (never.history[-1]["step"], never.best_step) == (8, 0)


def test_the_last_fifth_of_a_training_that_stopped_early():
    """Better until the 10th evaluation, then 5 that are not: 15 evaluations, whose last fifth is 3."""
    curve = [i / 100 for i in range(11)] + [0.0] * 5
    trained = train(curve, knobs(1000, 2, patience=5))
    assert trained.history[-1]["step"] == 30
    assert sorted(trained.late) == [26, 28, 30]


def test_the_poly_schedule_goes_down():
    """Steps of .1 (1 - (s-1)/4)^.9: .1, .0772, .0536, .0287."""
    w = np.array(column(train(None, knobs(4, 1, schedule="poly")), "w"), float)
    assert np.diff(w) == pytest.approx([0.1, 0.0772, 0.0536, 0.0287], abs=2e-4)


def test_snapshots_are_kept_at_equal_distances():
    trained = train(None, knobs(6, 6), snapshot_every=2)
    assert {step: round(state["w"].item(), 4) for step, state in trained.snapshots.items()} == {2: 0.2, 4: 0.4, 6: 0.6}
    assert train(None, knobs(6, 6)).snapshots == {}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite(value):
    network = Number()

    def step_loss(step: int) -> tuple[Tensor, dict[str, float | None]]:
        return network.w.sum() + (value if step == 3 else 0.0), {}

    with pytest.raises(BadInput, match=rf"training diverged: the loss at step 3 is {value}; lower the learning rate"):
        optimise(network, step_loss, lambda _: {"validation_dice": 0.5}, knobs(5, 5))


class Layered(nn.Module):
    """Normalisation with statistics and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Conv2d(4, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        return self.layers(image)


def layered(train_mode: bool) -> tuple[list[float], dict[str, Tensor], list[bool]]:
    """Losses of six steps on one image, the state afterwards, and whether each forward pass was in training mode."""
    network = seeded(Layered)
    image = torch.linspace(-1, 3, 64).view(1, 1, 8, 8)
    losses, modes = [], []

    def step_loss(step: int) -> tuple[Tensor, dict[str, float | None]]:
        network.train(train_mode)
        modes.append(network.training)
        loss = (network(image) - 1).square().mean()
        losses.append(loss.item())
        return loss, {}

    def evaluate(network: nn.Module) -> dict[str, float | None]:
        assert not network.training
        return {"validation_dice": 0.5}

    # The smallest step size leaves the loss as it is, so that only dropout can move it.
    optimise(network, step_loss, evaluate, knobs(6, 2, learning_rate=1e-9))
    return losses, network.state_dict(), modes


def test_eval_mode_leaves_dropout_off_and_statistics_frozen():
    torch.manual_seed(0)
    losses, state, modes = layered(train_mode=False)
    assert modes == [False] * 6
    assert losses == pytest.approx([losses[0]] * 6, abs=1e-6)
    assert state["layers.1.running_mean"].tolist() == [0.0] * 4
    assert state["layers.1.running_var"].tolist() == [1.0] * 4
    assert state["layers.1.num_batches_tracked"].item() == 0


def test_train_mode_turns_both_on_after_every_evaluation():
    torch.manual_seed(0)
    losses, state, modes = layered(train_mode=True)
    assert modes == [True] * 6
    assert len({round(loss, 6) for loss in losses}) == 6
    assert state["layers.1.num_batches_tracked"].item() == 6


def regression() -> TrainedWeights:
    network: Any = seeded(lambda: nn.Linear(3, 1))
    target = torch.tensor([[1.0, 2.0, 3.0]])

    def step_loss(step: int) -> tuple[Tensor, dict[str, float | None]]:
        return (network(target * step) - 1).square().mean(), {}

    def evaluate(net: Callable[[Tensor], Tensor]) -> dict[str, float | None]:
        with torch.no_grad():
            return {"validation_dice": 1 / (1 + abs(net(target).item() - 1))}

    return optimise(network, step_loss, evaluate, knobs(20, 5, schedule="poly", weight_decay=1e-2))


def test_training_twice_gives_the_same_bytes():
    first, second = regression(), regression()
    assert first.history == second.history
    for one, two in ((first.best, second.best), (first.last, second.last)):
        assert {k: v.numpy().tobytes() for k, v in one.items()} == {k: v.numpy().tobytes() for k, v in two.items()}
    assert first.history[0]["validation_dice"] != first.history[-1]["validation_dice"]


def test_kept_weights_are_copies():
    """Later steps do not write into what was kept."""
    trained = train([0.9, 0.1, 0.1], knobs(2, 1))
    assert trained.best["w"].item() == 0.0
    assert trained.last["w"].item() != 0.0


def test_validation_dice():
    """Foreground predicted in the second half of 4 rows. Truth: the same, 1; the last row only, 2*1/(2+1) = 2/3."""
    image = np.zeros((1, 4, 1), np.float32)
    truths = [np.array([[0], [0], [1], [1]], np.uint8), np.array([[0], [0], [0], [1]], np.uint8)]
    cases = LabelledCases([row_of((4, 1))] * 2, [image] * 2, truths)
    found = segmenter_of(Ramp(), (4, 1)).dice(cases)
    assert found == pytest.approx((1 + 2 / 3) / 2)


def test_validation_dice_is_a_mean_over_patients():
    """Patient p has the case of Dice 1 once, patient q the case of Dice 2/3 three times: (1 + 2/3) / 2, not 3/4."""
    image = np.zeros((1, 4, 1), np.float32)
    truths = [np.array([[0], [0], [1], [1]], np.uint8), *[np.array([[0], [0], [0], [1]], np.uint8)] * 3]
    cases = LabelledCases([row_of((4, 1), group=group) for group in "pqqq"], [image] * 4, truths)
    assert segmenter_of(Ramp(), (4, 1)).dice(cases) == pytest.approx((1 + 2 / 3) / 2)


def test_a_label_that_is_unknown_everywhere_is_left_out():
    """Beside the case of Dice 2/3 stands one of 255 alone, in which every mask would be right."""
    image, unknown = np.zeros((1, 4, 1), np.float32), np.full((4, 1), 255, np.uint8)
    truth = np.array([[0], [0], [0], [1]], np.uint8)
    rows = [row_of((4, 1), group=group) for group in "pq"]
    segmenter = segmenter_of(Ramp(), (4, 1))
    assert segmenter.dice(LabelledCases(rows, [image] * 2, [unknown, truth])) == pytest.approx(2 / 3)
    measured = validation_measures(segmenter, LabelledCases(rows, [image] * 2, [unknown, truth]))
    assert measured["validation_dice"] == pytest.approx(2 / 3)
    assert measured == validation_measures(segmenter, LabelledCases(rows[1:], [image], [truth]))
    with pytest.raises(BadInput, match=r"expected a label .* found 255 \(unknown\) everywhere in all 2 cases"):
        segmenter.dice(LabelledCases(rows, [image] * 2, [unknown] * 2))


# ---- averages, stopping, interpolation ---------------------------------------------------------------------------


def test_a_moving_average_by_hand():
    """w is .1, .2, .3 after steps 1 to 3; the average keeps min(.5, 2/11), min(.5, 3/12), min(.5, 4/13) of itself.

    .1 * 9/11 = .0818; .0818 * .25 + .2 * .75 = .1705; .1705 * 4/13 + .3 * 9/13 = .2601. It is what is evaluated.
    """
    network = Number()
    average = Average(network, 0.5)
    seen = []

    def evaluate(shown: Any) -> dict[str, float | None]:
        seen.append(shown.w.item())
        return {"validation_dice": 0.5}

    trained = optimise(network, lambda step: (-network.w.sum(), {}), evaluate, knobs(3, 1), average=average)
    assert seen == pytest.approx([0, 0.0818, 0.1705, 0.2601], abs=1e-4)
    assert trained.last["w"].item() == pytest.approx(seen[-1])
    assert network.w.item() == pytest.approx(0.3, abs=1e-5)


def test_a_weight_under_two_names_is_averaged_once():
    """From 0 to 1 with 2/11 of itself kept: 9/11, and not 1 - (2/11)^2 as of two updates."""
    layer = nn.Linear(1, 1, bias=False)
    network = nn.ModuleDict({"one": layer, "two": layer})
    nn.init.zeros_(layer.weight)
    average = Average(network, 0.5)
    nn.init.ones_(layer.weight)
    average.update(network)
    (weight,) = average.network.parameters()
    assert weight.item() == pytest.approx(9 / 11)


def test_what_stops_a_training_is_not_kept():
    """Stopped at step 4: kept are the steps up to 3, of which the last fifth is one; step 0 is never a reason."""
    network = Number()

    def evaluate(_: nn.Module) -> dict[str, float | None]:
        return {"validation_dice": 0.5, "w": network.w.item()}

    trained = optimise(
        network,
        lambda step: (-network.w.sum(), {}),
        evaluate,
        knobs(10, 1),
        stop=lambda row: "far" if (row["w"] or 0) > 0.35 or row["step"] == 0 else None,
    )
    assert column(trained, "step") == [0, 1, 2, 3, 4]
    assert trained.stopped == "far"
    assert list(trained.late) == [3]
    assert trained.last["w"].item() == pytest.approx(0.3, abs=1e-5)


def test_interpolation_by_hand():
    """From w = 0 to .3: the value 1 - |w - .15| is highest at share .5, and best, last and late all move."""
    trained = train([0.1, 0.2, 0.3, 0.4], knobs(3, 1))

    def value(network: Any) -> float:
        return 1 - abs(network.w.item() - 0.15)

    assert interpolated(trained, Number(), [0.0, 0.5, 1.0], value) == 0.5
    assert trained.last["w"].item() == pytest.approx(0.15, abs=1e-5)
    assert trained.best["w"].item() == pytest.approx(0.15, abs=1e-5)
    assert [state["w"].item() for state in trained.late.values()] == pytest.approx([0.15], abs=1e-5)


def test_of_equal_shares_the_smallest():
    trained = train([0.1, 0.2], knobs(1, 1))
    assert interpolated(trained, Number(), [1.0, 0.5], lambda network: 0.5) == 0.5


def test_validation_dice_of_a_large_case_is_counted_in_bands(tmp_path, monkeypatch):
    """20x9 under a window of 8x8, in bands of one row: the Dice of the whole prediction with the whole truth."""
    truth, image = disc((20, 9), 4), noise((20, 9))
    store = case_store(tmp_path, [truth], images=[image])
    network = small(2, 2)
    expected = dice_to(truth, labels(segmenter_of(network, (8, 8)).logits(image))[None], 2)[0]
    monkeypatch.setattr(sliding, "BAND_BYTES", 4 * 9)
    assert 0 < expected < 1
    segmenter = segmenter_of(network, (8, 8))
    assert segmenter.dice(store.with_labels(store.all, segmenter.window)) == expected
