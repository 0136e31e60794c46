"""Samplers: one contract for all kinds, and each kind on networks whose answer is known."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.errors import BadInput
from pipeline.knobs import Knobs
from pipeline.recipe import Compute
from pipeline.samplers import Sampler
from pipeline.samplers.consensus import Consensus
from pipeline.samplers.ensemble import Ensemble
from pipeline.samplers.sampler import CaseModels, Draw, drawn
from pipeline.samplers.threshold import Threshold
from pipeline.samplers.tta import TTA
from tests.networks import Constant, Ramp, models, noise, seeded, small

KINDS = get_args(get_args(Sampler)[0])
MEMBERS = ["member_1", "member_2"]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


def given(*probabilities: Sequence[Any], masks: Sequence[Any] = ()) -> CaseModels:
    """A case whose draws are these class probabilities `[class, *space]` and, behind them, these masks."""
    case = CaseModels("c0", np.zeros((1, 1), np.float32), nn.Identity(), {}, (1,), Compute(), 0)
    case.draws += [drawn("base", "base", torch.tensor(np.array(p))) for p in probabilities]
    case.draws += [Draw(np.array(mask, np.uint8), "s", "1") for mask in masks]
    return case


def configured(kind: type[Knobs]) -> Any:
    return kind.model_validate({"kind": get_args(kind.model_fields["kind"].annotation)[0]})


def content(draws: Sequence[Draw]) -> list[tuple[bytes, str, bytes | None]]:
    return [
        (d.mask.tobytes(), d.setting, d.probability if d.probability is None else d.probability.numpy().tobytes())
        for d in draws
    ]


# ---- the contract ----------------------------------------------------------------------------------------------


def contract_case(dimensions: int, outputs: int, case_id: str = "c0") -> CaseModels:
    space = (6, 8) if dimensions == 2 else (4, 6, 5)
    members = {name: small(dimensions, outputs, seed) for seed, name in enumerate(MEMBERS, 1)}
    return models(small(dimensions, outputs), noise(space, case_id), case_id, members)


@every_kind
@pytest.mark.parametrize(("dimensions", "outputs"), [(2, 1), (2, 3), (3, 1), (3, 3)])
def test_every_sampler_draws_its_settings(kind, dimensions, outputs):
    """One u8 mask per setting, of the case's shape and classes; the same again, also after pickling."""
    sampler = configured(kind)
    case = contract_case(dimensions, outputs)
    draws = list(sampler.draw("name", case))
    assert [draw.setting for draw in draws] == sampler.settings(MEMBERS)
    assert draws
    for draw in draws:
        assert (draw.sampler, draw.mask.dtype, draw.mask.shape) == ("name", np.uint8, case.image.shape[1:])
        assert draw.mask.max() < max(2, outputs)
        if draw.probability is not None:
            assert draw.probability.shape == (max(2, outputs), *case.image.shape[1:])
            assert draw.probability.sum(0).numpy() == pytest.approx(1, abs=1e-5)
    assert case.draws[1:] == [], "the caller keeps the draws"
    other = pickle.loads(pickle.dumps(sampler))
    assert content(list(other.draw("name", contract_case(dimensions, outputs)))) == content(draws)


@every_kind
def test_every_sampler_leaves_the_networks_as_they_were(kind):
    """Same weights, same answer, no hooks, torch's global generator untouched."""
    case = contract_case(2, 3)
    before = case.predict(case.base).numpy().tobytes()
    state = torch.random.get_rng_state().numpy().tobytes()
    list(configured(kind).draw("name", case))
    assert case.predict(case.base).numpy().tobytes() == before
    assert torch.random.get_rng_state().numpy().tobytes() == state
    assert not any(module._forward_hooks for module in case.base.modules())


@every_kind
def test_every_sampler_draws_a_case_by_itself(kind):
    """After other cases, in any order, and in two threads at once, the bytes are those of the case alone."""

    def trio() -> tuple[nn.Module, dict[str, nn.Module]]:
        return small(2, 3), {name: small(2, 3, seed) for seed, name in enumerate(MEMBERS, 1)}

    def draws_of(case_id: str, base: nn.Module, members: dict[str, nn.Module]) -> list[tuple]:
        case = models(base, noise((6, 8), case_id), case_id, members)
        return content(list(configured(kind).draw("name", case)))

    ids = [f"c{i}" for i in range(6)]
    alone = {case_id: draws_of(case_id, *trio()) for case_id in ids}
    shared = trio()
    for case_id in ids[::-1]:
        assert draws_of(case_id, *shared) == alone[case_id]
    # Torch's global generator, which makes the weights, is shared by the threads: one trio each, made before.
    own = [trio() for _ in ids]
    with ThreadPoolExecutor(2) as pool:
        together = pool.map(draws_of, ids, *zip(*own, strict=True))
        assert dict(zip(ids, together, strict=True)) == alone


# ---- tta -------------------------------------------------------------------------------------------------------


def tta(**knobs: Any) -> TTA:
    return TTA(kind="tta", **{"flips": (), "mean": False, **knobs})


@pytest.mark.parametrize("space", [(8, 8), (4, 6, 6)])
def test_flips_and_turns_are_undone(space):
    """A network that sees one voxel at a time answers exactly as the base."""
    conv = nn.Conv2d if len(space) == 2 else nn.Conv3d
    case = models(seeded(lambda: conv(1, 3, 1)), 3 * noise(space))
    flips = ((0,), (1,), (0, 1), (len(space) - 1,))
    draws = list(tta(flips=flips, quarter_turns=(1, 2, 3)).draw("t", case))
    assert len(draws) == 7
    assert len(np.unique(case.draws[0].mask)) > 1
    for draw in draws:
        assert draw.probability.equal(case.base_probability())


def test_a_turned_image_that_is_not_square_is_undone_too():
    """8x12 becomes 12x8, larger than the window in one axis, so the window slides: equal up to rounding."""
    case = models(seeded(lambda: nn.Conv2d(1, 3, 1)), noise((8, 12)))
    (draw,) = tta(quarter_turns=(1,)).draw("t", case)
    assert draw.probability.numpy() == pytest.approx(case.base_probability().numpy(), abs=1e-5)


def test_what_a_varied_image_answers():
    """The base says 'second half of the rows'. Rows flipped and flipped back: the first half; columns: no change.

    A quarter turn, undone, leaves the answer in the first columns; a half turn in the first rows.
    """
    case = models(Ramp(), np.zeros((1, 2, 2), np.float32))
    assert case.draws[0].mask.tolist() == [[0, 0], [1, 1]]
    draws = {
        d.setting: d.mask.tolist() for d in tta(flips=((0,), (1,), (0, 1)), quarter_turns=(1, 2, 3)).draw("t", case)
    }
    assert draws == {
        "flip=0": [[1, 1], [0, 0]],
        "flip=1": [[0, 0], [1, 1]],
        "flip=01": [[1, 1], [0, 0]],
        "turn=1": [[1, 0], [1, 0]],
        "turn=2": [[1, 1], [0, 0]],
        "turn=3": [[0, 1], [0, 1]],
    }


def test_the_mean_is_of_the_base_and_all_variants():
    """Logits -1 and 2 in the halves: p = .27 and .88. Base and flip have the mean .57 everywhere: foreground.

    The mean is no prediction of its own: the mean probability of the case counts its parts once.
    """
    case = models(Ramp(), np.zeros((1, 2, 2), np.float32))
    flipped, mean = tta(flips=((0,),), mean=True).draw("t", case)
    assert mean.setting == "mean"
    assert mean.mask.tolist() == [[1, 1], [1, 1]]
    assert flipped.probability is not None
    assert mean.probability is None


def test_intensity():
    """Foreground where x > .5: of .4 and .1 none; times 1.5 (.6, .15) the first."""
    layer = nn.Conv2d(1, 1, 1)
    nn.init.ones_(layer.weight)
    nn.init.constant_(layer.bias, -0.5)
    case = models(layer, np.array([[[0.4, 0.1]]], np.float32))
    (draw,) = tta(intensity=(1.5,)).draw("t", case)
    assert (case.draws[0].mask.tolist(), draw.mask.tolist(), draw.setting) == ([[0, 0]], [[1, 0]], "intensity=1.5")


# ---- threshold -------------------------------------------------------------------------------------------------


def test_thresholds():
    """Foreground .1 to .9: at .2 four are in, at .45 three, at .8 one."""
    p = np.array([0.1, 0.3, 0.5, 0.7, 0.9])
    draws = list(Threshold(kind="threshold", thresholds=(0.2, 0.45, 0.8)).draw("t", given([1 - p, p])))
    masks = {d.setting: d.mask.tolist() for d in draws}
    assert masks == {"p>=0.2": [0, 1, 1, 1, 1], "p>=0.45": [0, 0, 1, 1, 1], "p>=0.8": [0, 0, 0, 0, 1]}
    assert all(d.probability is None for d in draws)


def test_thresholds_of_several_classes():
    """Background .6, classes .1 and .3: foreground .4, class 2 the likelier. Background .3, .4, .3: class 1."""
    case = given([[0.6, 0.3], [0.1, 0.4], [0.3, 0.3]])
    low, high = Threshold(kind="threshold", thresholds=(0.35, 0.65)).draw("t", case)
    assert low.mask.tolist() == [2, 1]
    assert high.mask.tolist() == [0, 1]


def test_thresholds_are_nested():
    case = models(small(2, 3), noise((8, 8)))
    thresholds = tuple(np.linspace(0.05, 0.95, 19).tolist())
    masks = [d.mask > 0 for d in Threshold(kind="threshold", thresholds=thresholds).draw("t", case)]
    assert len({mask.sum() for mask in masks}) > 3
    assert all((larger >= smaller).all() for larger, smaller in pairwise(masks))


# ---- ensemble --------------------------------------------------------------------------------------------------


def test_ensemble():
    """Base .1, members .3 and .95 (sigmoid): 0, 0, 1; the mean is .45: 0. Without the mean, its members alone."""
    members = {"member_1": Constant(0.3), "member_2": Constant(0.95)}
    case = models(Constant(0.1), np.zeros((1, 1, 1), np.float32), members=members)
    draws = list(Ensemble(kind="ensemble").draw("e", case))
    assert [(d.setting, d.mask.item()) for d in draws] == [("member_1", 0), ("member_2", 1), ("mean", 0)]
    assert [d.probability is None for d in draws] == [False, False, True]
    case.draws += draws
    assert case.mean_probability()[1].item() == pytest.approx(0.45)
    assert Ensemble(kind="ensemble", mean=False).settings(MEMBERS) == MEMBERS


def test_an_ensemble_needs_members():
    with pytest.raises(BadInput, match=r"sampler 'ensemble' needs base.members of at least 1, found 0"):
        Ensemble(kind="ensemble").settings([])


# ---- consensus -------------------------------------------------------------------------------------------------


def test_consensus():
    """Votes per pixel: 0,0,1 are 0; 1,1,0 are 1; 2,2,1 are 2; 0,1,2 are 0, the lowest of equals; 1,2,1 are 1.

    The mean is of probabilities alone: here those of the base, so it is the base again.
    """
    base = np.eye(3)[[0, 1, 2, 0, 1]].T
    case = given(base, masks=[[0, 1, 2, 1, 2], [1, 0, 1, 2, 1]])
    majority, mean = Consensus(kind="consensus").draw("c", case)
    assert majority.mask.tolist() == [0, 1, 2, 0, 1]
    assert mean.mask.tolist() == [0, 1, 2, 0, 1]
    assert (majority.probability, mean.probability) == (None, None)


def test_the_majority_and_the_mean_may_disagree():
    """Foreground .4, .4 and .9: two of three say 0, the mean .57 says 1."""
    case = given(*([[1 - p], [p]] for p in (0.4, 0.4, 0.9)))
    majority, mean = Consensus(kind="consensus").draw("c", case)
    assert (majority.mask.item(), mean.mask.item()) == (0, 1)
    (only,) = Consensus(kind="consensus", of=("mean",)).draw("c", case)
    assert only.setting == "mean"


class Sided(nn.Module):
    """Class 1 in the bright voxels of the first half of the first axis, class 2 in those of the second half."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        left = (torch.arange(image.shape[2]) < image.shape[2] / 2).view(1, 1, -1, 1).expand_as(image)
        bright = image > 0
        return torch.cat([~bright, bright & left, bright & ~left], dim=1).float() * 10


def test_sided_classes_change_places_in_a_flip_and_back():
    """Image + - - + + - + -: the base says 1 0 0 1 2 0 2 0. The flipped image is - + - + + - - +, whose answer
    0 1 0 1 2 0 0 2, turned back, is 2 0 0 2 1 0 1 0: left and right must change places too."""
    image = np.broadcast_to(np.array([1, -1, -1, 1, 1, -1, 1, -1], np.float32)[None, :, None], (1, 8, 2)).copy()
    sampler = TTA(kind="tta", flips=((0,),), mean=False)
    case = models(Sided(), image)
    assert case.draws[0].mask[:, 0].tolist() == [1, 0, 0, 1, 2, 0, 2, 0]
    (draw,) = sampler.draw("flips", case)
    assert draw.mask[:, 0].tolist() == [2, 0, 0, 2, 1, 0, 1, 0], "classes without sides stay as the network says"
    case.swap_labels = ((0, 1, 2),)
    (draw,) = sampler.draw("flips", case)
    assert np.array_equal(draw.mask, case.draws[0].mask)
    case.swap_labels = ((1, 1, 2),)
    (draw,) = sampler.draw("flips", case)
    assert draw.mask[:, 0].tolist() == [2, 0, 0, 2, 1, 0, 1, 0], "of another axis"
