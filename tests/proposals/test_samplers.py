"""Samplers: one contract for all kinds, and each kind on networks whose answer is known."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

import nibabel
import numpy as np
import pytest
import torch
from torch import nn

from pipeline.errors import BadInput
from pipeline.knobs import Knobs
from pipeline.measures.overlap import first_equal
from pipeline.proposals.samplers import Sampler
from pipeline.proposals.samplers.consensus import ConsensusSampler
from pipeline.proposals.samplers.ensemble import Ensemble
from pipeline.proposals.samplers.sampler import BASE_PASS, CaseModels, Draw, Setup, passes_by_slot
from pipeline.proposals.samplers.snapshots import Snapshots
from pipeline.segmenter.sliding import PLAIN
from tests.fixtures.networks import Constant, case_of, given, models, noise, sampler_of, segmenter_of, small

KINDS = get_args(get_args(Sampler)[0])
MEMBERS = ["member_1", "member_2"]
SNAPSHOTS = ["snapshot_000010", "snapshot_000020"]
EXAMPLES: dict[str, dict[str, Any]] = {
    "mc_dropout": {},
    "tta": {},
    "threshold": {"offsets": [{"1": 1.0}]},
    "ensemble": {},
    "mean": {"thresholds": [0.3], "offsets": [{"1": 1.0}]},
    "snapshots": {},
    "morphology": {"open": [1], "close": [1], "drop_component": [1]},
    "imported": {"sources": {"tool": {"path": "tool"}, "other": {"path": "tool", "values": {"1": 1}}}},
    "consensus": {},
    "regions": {"fixed": "base"},
}
"""Knobs that make each kind draw; a new kind needs a line here."""
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


def configured(kind: type[Knobs]) -> Any:
    name = get_args(kind.model_fields["kind"].annotation)[0]
    return sampler_of(name, **EXAMPLES[name])


def content(draws: Sequence[Draw]) -> list[tuple[bytes, str, bytes | None]]:
    return [
        (d.mask.tobytes(), d.setting, d.probability if d.probability is None else d.probability.numpy().tobytes())
        for d in draws
    ]


# ---- the contract ----------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def masks_of_a_tool(tmp_path, monkeypatch):
    """Imported masks of the contract's cases, below the current folder."""
    monkeypatch.chdir(tmp_path)
    for number in range(6):
        for name, space in (("", (6, 8)), ("v", (4, 6, 5))):
            values = (noise(space, f"tool{number}")[0] > 0).astype(np.uint8)
            Path("masks/tool").mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), f"masks/tool/{name}c{number}.nii.gz")


IMPORTS = Path("masks")


def trio(dimensions: int = 2, outputs: int = 3) -> list[nn.Module]:
    return [small(dimensions, outputs, seed) for seed in range(5)]


def contract_case(
    dimensions: int, outputs: int, number: int = 0, networks: list[nn.Module] | None = None
) -> CaseModels:
    """A case with two members and two snapshots."""
    space, prefix = ((6, 8), "c") if dimensions == 2 else ((4, 6, 5), "vc")
    case_id = f"{prefix}{number}"
    base, *others = networks or trio(dimensions, outputs)
    members, snapshots = dict(zip(MEMBERS, others[:2], strict=True)), dict(zip(SNAPSHOTS, others[2:], strict=True))
    case = models(base, noise(space, case_id), case_id, members, snapshots=snapshots)
    case.imports = IMPORTS
    return case


def setup_of(*cases: CaseModels, classes: int = 3, **fields: Any) -> Setup:
    given: dict[str, Any] = {"members": tuple(MEMBERS), "snapshots": tuple(SNAPSHOTS), "imports": IMPORTS, **fields}
    return Setup(classes, cases=tuple(case.row for case in cases), **given)


def test_every_kind_has_an_example():
    assert {get_args(kind.model_fields["kind"].annotation)[0] for kind in KINDS} == set(EXAMPLES)


@every_kind
@pytest.mark.parametrize(("dimensions", "outputs"), [(2, 1), (2, 3), (3, 1), (3, 3)])
def test_every_sampler_draws_its_settings(kind, dimensions, outputs):
    """One u8 mask per setting, of the case's shape and classes; the same again, also after pickling."""
    sampler = configured(kind)
    case = contract_case(dimensions, outputs)
    draws = list(sampler.draw("name", case))
    assert [draw.setting for draw in draws] == sampler.settings("name", setup_of(case, classes=case.classes))
    assert draws
    assert len({draw.setting for draw in draws}) == len(draws)
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
    """Same weights, same answer, no hooks, torch's global generator untouched; slot 0 as it was."""
    case = contract_case(2, 3)
    before = case.predict(case.segmenter).numpy().tobytes()
    mask = case.draws[0].mask.tobytes()
    state = torch.random.get_rng_state().numpy().tobytes()
    list(configured(kind).draw("name", case))
    assert case.predict(case.segmenter).numpy().tobytes() == before
    assert case.draws[0].mask.tobytes() == mask
    assert torch.random.get_rng_state().numpy().tobytes() == state
    for module in case.segmenter.network.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert "forward" not in vars(module)


@every_kind
def test_every_sampler_draws_a_case_by_itself(kind):
    """After other cases, in any order, and in two threads at once, the bytes are those of the case alone."""

    def draws_of(number: int, networks: list[nn.Module]) -> list[tuple]:
        return content(list(configured(kind).draw("name", contract_case(2, 3, number, networks))))

    alone = {number: draws_of(number, trio()) for number in range(6)}
    shared = trio()
    for number in range(6)[::-1]:
        assert draws_of(number, shared) == alone[number]
    # Torch's global generator, which makes the weights, is shared by the threads: networks of their own, made before.
    own = [trio() for _ in range(6)]
    with ThreadPoolExecutor(2) as pool:
        together = pool.map(draws_of, range(6), own)
        assert dict(zip(range(6), together, strict=True)) == alone


@every_kind
def test_every_sampler_says_what_it_lacks_before_any_work(kind):
    """Without a base it refuses, naming itself, or it draws from imported masks alone."""
    sampler = configured(kind)
    row = contract_case(2, 3).row
    setup = Setup(3, base=False, cases=(row,), imports=IMPORTS)
    if sampler.kind not in ("imported", "morphology", "consensus"):
        with pytest.raises(BadInput) as error:
            sampler.settings("mine", setup)
        assert str(error.value) == (
            "propose.samplers.mine: expected a base segmenter, found base: null; configure `base`, or remove this "
            "sampler"
        )
        return
    alone = case_of((6, 8), 3, row=row, imports=IMPORTS)
    alone.keep(next(sampler_of("imported", **EXAMPLES["imported"]).draw("tool", alone)))
    assert [draw.setting for draw in sampler.draw("mine", alone)] == sampler.settings("mine", setup)


@every_kind
def test_every_sampler_names_the_passes_that_its_draws_need(kind, monkeypatch):
    """As many as the networks make beside slot 0. Masks of a tool come from an unknown number."""
    sampler, case = configured(kind), contract_case(2, 3)
    made: dict[Any, int] = {}
    logits = CaseModels.logits

    def counted(self: CaseModels, key: Any, make: Any, view: Any) -> torch.Tensor:
        found = logits(self, key, make, view)
        made[key] = len(found) // 3
        return found

    monkeypatch.setattr(CaseModels, "logits", counted)
    draws = list(sampler.draw("name", case))
    made.pop((id(case.segmenter.network), PLAIN), None)
    passes = sampler.forward_passes("name", setup_of(case), [frozenset({BASE_PASS})])
    assert len(passes) == len(draws)
    if sampler.kind == "imported":
        assert set(passes) == {None}
        return
    assert all(passes)
    assert len(frozenset().union(*passes) - {BASE_PASS}) == sum(made.values())


@every_kind
@pytest.mark.parametrize("label", [0, 1])
def test_every_sampler_copes_with_an_empty_and_a_full_slot_0(kind, label):
    """The base says one class everywhere: masks of the right shape, no error."""
    case = contract_case(2, 1, networks=[Constant(0.1 + 0.8 * label), *trio(2, 1)[1:]])
    assert (case.draws[0].mask == label).all()
    sampler = configured(kind)
    if sampler.kind == "mc_dropout":
        pytest.skip("needs layers to drop, and this network has none")
    assert all(draw.mask.shape == (6, 8) for draw in sampler.draw("name", case))


# ---- forward passes --------------------------------------------------------------------------------------------


def test_passes_of_proposals_that_share_them():
    """Base 1, two members 1 each, their mean 3; flips 1 each, their mean 3; a mean of 3 models and 2 views 6, of which
    the base, the members and one flip of the base were made before; all of these together 7."""
    samplers = {
        "thresholds": sampler_of("threshold", thresholds=[0.3]),
        "ensemble": sampler_of("ensemble"),
        "flips": sampler_of("tta", flips=[[0], [1]]),
        "all": sampler_of("mean", flips=[[1]], fitted=False),
        "outline": sampler_of("morphology", erode=[1], dilate=[], largest_component=False, fill_holes=False),
        "consensus": sampler_of("consensus"),
    }
    found = passes_by_slot(samplers, setup_of())
    assert [len(passes or ()) for passes in found] == [1, 1, 1, 1, 3, 1, 1, 3, 6, 1, 7, 5]


def test_passes_of_masks_of_a_tool_are_unknown():
    """So are those of a vote with such masks. The mean probability has the passes of the networks alone."""
    imported = sampler_of("imported", **EXAMPLES["imported"])
    samplers = {"tool": imported, "consensus": sampler_of("consensus")}
    assert passes_by_slot(samplers, setup_of()) == [{"base"}, None, None, None, {"base"}]
    assert passes_by_slot(samplers, setup_of(base=False)) == [None] * 4


# ---- ensemble --------------------------------------------------------------------------------------------------


def test_ensemble():
    """Base .1, members .3 and .95 (sigmoid): 0, 0, 1; the mean is .45: 0. Without the mean, its members alone."""
    members = {"member_1": Constant(0.3), "member_2": Constant(0.95)}
    case = models(Constant(0.1), np.zeros((1, 1, 1), np.float32), members=members)
    draws = list(Ensemble(kind="ensemble").draw("e", case))
    assert [(d.setting, d.mask.item()) for d in draws] == [("member_1", 0), ("member_2", 1), ("mean", 0)]
    assert [d.counts for d in draws] == [True, True, False]
    for draw in draws:
        case.keep(draw)
    assert case.mean_probability()[1].item() == pytest.approx(0.45)
    assert Ensemble(kind="ensemble", mean=False).settings("e", setup_of()) == MEMBERS


def test_chosen_members_have_windows_of_their_own():
    """Base .1 and the chosen member .95, whose window is 4x4 where the base's is 2x2: mean (.1 + .95) / 2 = .525: 1."""
    case = models(Constant(0.1), np.zeros((1, 2, 2), np.float32), members={"member_1": Constant(0.3)})
    case.members["unetr"] = segmenter_of(Constant(0.95), (4, 4))
    sampler = Ensemble(kind="ensemble", members=("unetr",))
    assert sampler.settings("e", setup_of(members=("member_1", "unetr"))) == ["unetr", "mean"]
    draws = list(sampler.draw("e", case))
    assert [(d.setting, d.mask.tolist()) for d in draws] == [("unetr", [[1, 1]] * 2), ("mean", [[1, 1]] * 2)]


def test_an_ensemble_needs_members():
    with pytest.raises(
        BadInput, match=r"samplers.e: sampler 'ensemble' needs members of the base, found none; set bas"
    ):
        Ensemble(kind="ensemble").settings("e", setup_of(members=()))


@pytest.mark.parametrize("chosen", [(), ("member_9",), ("member_1", "member_1")])
def test_members_that_cannot_be_chosen(chosen):
    with pytest.raises(BadInput) as error:
        Ensemble(kind="ensemble", members=chosen).settings("e", setup_of())
    assert str(error.value) == (
        f"propose.samplers.e.members: expected some of ['member_1', 'member_2'], each once, found {list(chosen)}"
    )


# ---- snapshots -------------------------------------------------------------------------------------------------


def test_snapshots():
    """Sigmoid heads of .2 and .7: nothing, then everything; both count in the mean, (.1 + .2 + .7) / 3."""
    snapshots = {"snapshot_000010": Constant(0.2), "snapshot_000020": Constant(0.7)}
    case = models(Constant(0.1), np.zeros((1, 1, 1), np.float32), snapshots=snapshots)
    for draw in Snapshots(kind="snapshots").draw("s", case):
        case.keep(draw)
    assert [(d.setting, d.mask.item()) for d in case.draws[1:]] == [("snapshot_000010", 0), ("snapshot_000020", 1)]
    assert case.mean_probability()[1].item() == pytest.approx(1 / 3)


def test_snapshots_need_snapshots():
    with pytest.raises(BadInput, match=r"samplers.s: sampler 'snapshots' needs base.snapshots of at least 1, found 0"):
        Snapshots(kind="snapshots").settings("s", setup_of(snapshots=()))


# ---- consensus -------------------------------------------------------------------------------------------------


def test_consensus():
    """Votes per pixel: 0,0,1 are 0; 1,1,0 are 1; 2,2,1 are 2; 0,1,2 are 0, the lowest of equals; 1,2,1 are 1.

    The mean is of probabilities alone: here those of the base, so it is the base again.
    """
    base = np.eye(3)[[0, 1, 2, 0, 1]].T
    case = given(base, masks=[[0, 1, 2, 1, 2], [1, 0, 1, 2, 1]])
    majority, mean = ConsensusSampler(kind="consensus").draw("c", case)
    assert majority.mask.tolist() == [0, 1, 2, 0, 1]
    assert mean.mask.tolist() == [0, 1, 2, 0, 1]
    assert (majority.counts, mean.counts) == (False, False)


def test_the_majority_and_the_mean_may_disagree():
    """Foreground .4, .4 and .9: two of three say 0, the mean .57 says 1."""
    case = given(*([[1 - p], [p]] for p in (0.4, 0.4, 0.9)))
    majority, mean = ConsensusSampler(kind="consensus").draw("c", case)
    assert (majority.mask.item(), mean.mask.item()) == (0, 1)
    (only,) = ConsensusSampler(kind="consensus", of=("mean",)).draw("c", case)
    assert only.setting == "mean"


def test_a_consensus_of_masks_that_do_not_know_a_voxel():
    """Votes 1, 255 and 1 are 1; 255, 255 and 0 are 0; what nobody knows stays 255, in the mean as well."""
    masks = [[1, 255, 255], [255, 255, 255], [1, 0, 255]]
    case = case_of((3,))
    for mask in masks:
        values = np.array(mask, np.uint8)
        case.keep(Draw(values, "s", "1", torch.tensor(np.stack([values == 0, values == 1])).float(), True))
    majority, mean = ConsensusSampler(kind="consensus").draw("c", case)
    assert majority.mask.tolist() == [1, 0, 255]
    assert mean.mask.tolist() == [1, 0, 255]
    assert case.mean_probability().tolist() == [[0, 1, 0], [1, 0, 0]]


@pytest.mark.parametrize("kind", ["consensus", "morphology"])
def test_what_needs_a_draw_before_it(kind):
    with pytest.raises(
        BadInput,
        match=r"propose.samplers.c: expected (proposals|slot 0) before this sampler, found none; list it after",
    ):
        list(sampler_of(kind).draw("c", case_of((3, 3))))


def test_the_first_of_equal_masks():
    """Unknown voxels make |D| 0 between different masks; only the very same mask is a duplicate."""
    masks = np.array([[1, 1, 0], [255, 255, 0], [0, 0, 0], [1, 1, 0]], np.uint8)
    assert first_equal(masks).tolist() == [0, 1, 2, 0]
