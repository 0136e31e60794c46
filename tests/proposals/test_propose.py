"""The proposals of every case: their table, their arrays, and what is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from pipeline.compute import Compute
from pipeline.errors import BadInput
from pipeline.execution import Execution, Runtime
from pipeline.knobs import Knobs
from pipeline.lock import WORK
from pipeline.proposals.knobs import Propose
from pipeline.proposals.propose import propose, propose_out_of_fold
from pipeline.proposals.samplers.ensemble import Ensemble
from pipeline.proposals.samplers.sampler import CaseModels, Draw, Setup
from pipeline.proposals.samplers.snapshots import Snapshots
from pipeline.proposals.samplers.threshold import Threshold
from pipeline.proposals.samplers.tta import TTA
from pipeline.segmenter.architecture import Architecture
from pipeline.segmenter.knobs import MODELS, Network
from pipeline.segmenter.logits import labels, probability
from pipeline.segmenter.models import Model
from pipeline.segmenter.weights import save_weights
from pipeline.store import schema
from pipeline.store.arrays import open_array
from pipeline.store.cases import CaseStore
from pipeline.store.manifest import write_json, write_manifest
from pipeline.store.proposals import ProposalStore
from tests.fixtures.builders import case_store
from tests.fixtures.networks import noise, segmenter_of

ONE = Execution(scheduler="synchronous", workers=1, progress="none")
SPLITS = ["labelled", "pool", "pool", "validation", "test"]


def base_folder(
    folder: Path, seed: int = 0, members: int = 0, constant: bool = False, snapshots: tuple[str, ...] = ()
) -> Path:
    """An untrained base and its relatives; a `constant` one answers logits -1 and 1 everywhere: all foreground."""
    network = Network(name="UNet", arguments={"channels": [4, 8], "strides": [2]}, multiple=2)
    architecture = Architecture.of(network, 1, 2, (6, 6))
    architecture.save(folder)
    names = [f"member_{i}" for i in range(1, members + 1)]
    for offset, name in enumerate(["base", *names, *snapshots]):
        built = architecture.build(seed + offset)
        if constant:
            with torch.no_grad():
                for weight in built.parameters():
                    weight.copy_(torch.tensor([-1.0, 1.0]) if weight.shape == (2,) else torch.zeros_like(weight))
        save_weights(built, folder / f"{name}.safetensors")
    write_json(folder / MODELS, {"members": names, "folds": {}, "fold_of": {}, "snapshots": list(snapshots)})
    write_manifest(folder, "a test")
    return folder


@pytest.fixture
def cases(tmp_path, monkeypatch) -> CaseStore:
    """Five cases over all splits, one of 4x4 and the others of 6x6, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    shapes = [(6, 6), (4, 4), (6, 6), (6, 6), (6, 6)]
    images = [noise(shape, f"c{i}") for i, shape in enumerate(shapes)]
    return case_store(tmp_path / "cases", [np.zeros(s, np.uint8) for s in shapes], SPLITS, images)


TOYS = ["half", "nothing", "everything", "half again"]


class Toy(Knobs):
    """Half, nothing, everything, half again; fails for the case `fails`."""

    kind: Literal["toy"] = "toy"
    fails: str = ""

    def settings(self, name: str, setup: Setup) -> list[str]:
        return TOYS

    def draw(self, name: str, case: CaseModels) -> Iterator[Draw]:
        if case.case_id == self.fails:
            raise ArithmeticError("the toy broke")
        space = case.image.shape[1:]
        half = np.zeros(space, np.uint8)
        half[: space[0] // 2] = 1
        for setting, mask in zip(TOYS, (half, 0 * half, 0 * half + 1, half), strict=True):
            yield Draw(mask.astype(np.uint8), name, setting)


def with_toy(**knobs: Any) -> Propose:
    """Knobs with a sampler that is not in the union."""
    return Propose.model_construct(samplers={"toy": Toy(**knobs)}, splits=("pool", "validation"))


def proposed(
    cases: CaseStore, base: Path, knobs: Propose, out: str = "out", execution: Execution = ONE
) -> ProposalStore:
    propose(cases, base, knobs, Path(out), Runtime(Compute(), 0, execution))
    return ProposalStore(Path(out))


def test_the_table_by_hand(cases, tmp_path):
    """The base says foreground everywhere in 4x4: half of it has Dice 2*8/(8+16) = 2/3, nothing 0, everything 1.

    `everything` is the base again (slot 0), `half again` is slot 1.
    """
    found = proposed(cases, base_folder(tmp_path / "base", constant=True), with_toy())
    rows = found.table.filter(case_id="c1").sort("proposal")
    assert rows["sampler"].to_list() == ["base", "toy", "toy", "toy", "toy"]
    assert rows["setting"].to_list() == ["base", "half", "nothing", "everything", "half again"]
    assert rows["voxels"].to_list() == [[0, 16], [8, 8], [16, 0], [0, 16], [8, 8]]
    assert rows["dice_to_base"].to_list() == pytest.approx([1, 2 / 3, 0, 1, 2 / 3])
    assert rows["duplicate_of"].to_list() == [None, None, None, 0, 1]
    case = cases.all[1]
    assert found.masks(case).shape == (5, 4, 4)
    assert found.disagreement(case).tolist() == [
        [0, 8, 16, 0, 8],
        [8, 0, 8, 8, 0],
        [16, 8, 0, 16, 8],
        [0, 8, 16, 0, 8],
        [8, 0, 8, 8, 0],
    ]


def test_the_mean_probability_is_of_predictions_only(cases, tmp_path):
    """Logits -1 and 1: probabilities 1/(1 + e^2) = .1192 and .8808, in steps of 1/255: 30 and 225. The toy has none."""
    found = proposed(cases, base_folder(tmp_path / "base", constant=True), with_toy())
    stored = found.probability(cases.all[1]) * 255
    assert stored[:, 0, 0] == pytest.approx([30, 225])
    assert (stored == stored[:, :1, :1]).all()


def out_of_fold(cases: CaseStore, base: Path, knobs: Propose) -> ProposalStore:
    propose_out_of_fold(cases, base, knobs, Path("folds"), Runtime(Compute(), 0, ONE))
    return ProposalStore(Path("folds"))


def test_out_of_fold_proposals_come_from_the_models_of_the_fold(tmp_path, monkeypatch):
    """Labelled cases alone; slot 0 is the fold's model, the ensemble that of the members which the folds have.

    The base has two members and the folds one; one fold has kept both snapshots, the other one stopped before the last.
    """
    monkeypatch.chdir(tmp_path)
    images = [noise((6, 6), f"c{i}") for i in range(4)]
    cases = case_store(
        tmp_path / "cases", [np.zeros((6, 6), np.uint8)] * 4, ["labelled", "labelled", "pool", "validation"], images
    )
    folder = base_folder(tmp_path / "base", members=2, snapshots=("snapshot_000002", "snapshot_000004"))
    names = [f"fold_{f}{of}" for f in (0, 1) for of in ("", "_member_1", "_snapshot_000002")]
    for seed, name in enumerate(names, start=10):
        save_weights(Model(folder).architecture.build(seed), folder / f"{name}.safetensors")
    listed = json.loads((folder / MODELS).read_text())
    kept = {"members": ["member_1"], "snapshots": ["snapshot_000002"]}
    listed["folds"] = {"fold_0": {**kept, "snapshots": listed["snapshots"]}, "fold_1": kept}
    listed["fold_of"] = {"c0": "fold_1", "c1": "fold_0"}
    write_json(folder / MODELS, listed)
    samplers: dict[str, Any] = {"others": {"kind": "ensemble"}, "early": {"kind": "snapshots"}}
    knobs = Propose.model_validate({"samplers": samplers})
    found = out_of_fold(cases, folder, knobs)
    assert found.case_ids() == ["c0", "c1"]
    settings = [("base", "base"), ("others", "member_1"), ("others", "mean"), ("early", "snapshot_000002")]
    for case, fold in zip(cases.split("labelled"), ("fold_1", "fold_0"), strict=True):
        assert found.table.filter(case_id=case.case_id).select("sampler", "setting").rows() == settings
        for slot, model in ((0, fold), (1, f"{fold}_member_1"), (3, f"{fold}_snapshot_000002")):
            network = Model(folder, model).load()
            expected = labels(probability(segmenter_of(network, (6, 6)).logits(cases.image(case))))
            assert (found.masks(case)[slot] == expected).all()
    assert len(proposed(cases, folder, knobs).table.filter(case_id="c2")) == 6, "base, two members, mean, two snapshots"


def test_out_of_fold_samplers_that_have_nothing_to_draw_from_are_left_out(cases, tmp_path):
    folder = base_folder(tmp_path / "base", members=1)
    save_weights(Model(folder).architecture.build(5), folder / "fold_0.safetensors")
    listed = json.loads((folder / MODELS).read_text())
    listed |= {"folds": {"fold_0": {"members": [], "snapshots": []}}, "fold_of": {"c0": "fold_0"}}
    write_json(folder / MODELS, listed)
    samplers: dict[str, Any] = {"others": {"kind": "ensemble"}, "cut": {"kind": "threshold", "thresholds": (0.3,)}}
    found = out_of_fold(cases, folder, Propose.model_validate({"samplers": samplers}))
    assert found.table.select("case_id", "sampler").rows() == [("c0", "base"), ("c0", "cut")]


def test_a_fold_may_be_the_base_itself_and_leave_cases_without_proposals(tmp_path, monkeypatch):
    """As the folds of an nnU-Net: only c0 was held out, and the ensemble has no member in a fold."""
    monkeypatch.chdir(tmp_path)
    images = [noise((6, 6), f"c{i}") for i in range(2)]
    cases = case_store(tmp_path / "cases", [np.zeros((6, 6), np.uint8)] * 2, ["labelled"] * 2, images)
    folder = base_folder(tmp_path / "base", members=1)
    listed = json.loads((folder / MODELS).read_text())
    listed |= {"folds": {"fold_0": {"model": "base", "members": [], "snapshots": []}}, "fold_of": {"c0": "fold_0"}}
    write_json(folder / MODELS, listed)
    found = out_of_fold(cases, folder, Propose(samplers={"others": Ensemble(kind="ensemble")}))
    assert found.table.select("case_id", "sampler").rows() == [("c0", "base")]
    logits = segmenter_of(Model(folder).load(), Model(folder).architecture.window).logits(cases.image(cases.all[0]))
    assert (found.masks(cases.all[0])[0] == labels(probability(logits))).all()


def test_without_folds_there_is_no_out_of_fold_proposal(cases, tmp_path):
    found = out_of_fold(cases, base_folder(tmp_path / "base"), with_toy())
    assert found.case_ids() == []
    assert not list(Path("folds").glob("*.zarr"))


def test_slot_0_is_the_base_prediction(cases, tmp_path):
    base = base_folder(tmp_path / "base")
    knobs = Propose(samplers={"low": Threshold(kind="threshold", thresholds=(0.4,))})
    found = proposed(cases, base, knobs)
    model = Model(base)
    for case in cases.split("pool", "validation"):
        logits = segmenter_of(model.load(), model.architecture.window).logits(cases.image(case))
        assert (found.masks(case)[0] == labels(probability(logits))).all()
        assert len(np.unique(found.masks(case)[0])) == 2


def test_other_splits_stay_unknown(cases, tmp_path):
    """Labelled and test cases have no rows, 255 in every mask; so has the padding of the smaller case."""
    found = proposed(cases, base_folder(tmp_path / "base"), with_toy())
    assert found.case_ids() == ["c1", "c2", "c3"]
    masks = np.asarray(open_array(found.folder, schema.MASKS)[:])
    assert masks.shape == (5, 5, 6, 6)
    assert (masks[[0, 4]] == 255).all()
    assert (masks[1, :, 4:] == 255).all()
    assert (masks[1, :, :, 4:] == 255).all()
    assert masks[1, :, :4, :4].max() == 1
    assert masks[[2, 3]].max() == 1


def test_samplers_in_the_order_of_the_knobs(cases, tmp_path):
    knobs = Propose(
        samplers={
            "z": Threshold(kind="threshold", thresholds=(0.3, 0.6)),
            "members": Ensemble(kind="ensemble"),
            "a": TTA(kind="tta", flips=((0,),), mean=False),
        },
        splits=("labelled",),
    )
    found = proposed(cases, base_folder(tmp_path / "base", members=2), knobs)
    rows = found.table.select("proposal", "sampler", "setting").rows()
    assert rows == [
        (0, "base", "base"),
        (1, "z", "p>=0.3"),
        (2, "z", "p>=0.6"),
        (3, "members", "member_1"),
        (4, "members", "member_2"),
        (5, "members", "mean"),
        (6, "a", "flip=0"),
    ]
    assert found.case_ids() == ["c0"]


def test_members_and_snapshots_of_the_base_folder(cases, tmp_path):
    """A member of another architecture has a folder and a window of its own: 8x8, where the base's is 6x6."""
    base = base_folder(tmp_path / "base", members=1, snapshots=("snapshot_000010",))
    other = Network(
        name="SegResNet", arguments={"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]}, multiple=8
    )
    architecture = Architecture.of(other, 1, 2, (6, 6))
    architecture.save(base / "resnet")
    save_weights(architecture.build(7), base / "resnet" / "base.safetensors")
    content = json.loads((base / MODELS).read_text())
    write_json(base / MODELS, {**content, "members": ["member_1", "resnet"]})
    write_manifest(base, "a test")
    knobs = Propose(
        samplers={"e": Ensemble(kind="ensemble", members=("resnet",), mean=False), "s": Snapshots(kind="snapshots")}
    )
    found = proposed(cases, base, knobs)
    rows = found.table.filter(case_id="c1").select("sampler", "setting").rows()
    assert rows == [("base", "base"), ("e", "resnet"), ("s", "snapshot_000010")]
    case = cases.all[1]
    for slot, model in ((1, Model(base / "resnet")), (2, Model(base, "snapshot_000010"))):
        logits = segmenter_of(model.load(), model.architecture.window).logits(cases.image(case))
        assert (found.masks(case)[slot] == labels(probability(logits))).all()


def test_proposals_of_test_cases(cases, tmp_path):
    found = proposed(cases, base_folder(tmp_path / "base"), with_toy().model_copy(update={"splits": ("test",)}))
    assert found.case_ids() == ["c4"]


def test_sided_classes_change_places_in_flips(cases, tmp_path):
    """The base says class 1 everywhere. Classes 0 and 1 are sides of axis 1: flipped along it, class 0 everywhere."""
    base = base_folder(tmp_path / "base", constant=True)
    knobs = Propose(samplers={"flips": TTA(kind="tta", flips=((0,), (1,)), mean=False)}, splits=("pool",))
    propose(cases, base, knobs, Path("out"), Runtime(Compute(), 0, ONE), swap_labels=((1, 0, 1),))
    masks = ProposalStore(Path("out")).masks(cases.all[2])
    assert [np.unique(mask).tolist() for mask in masks] == [[1], [1], [0]]


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        (
            Propose(samplers={"base": Threshold(kind="threshold")}),
            r"propose.samplers: the name 'base' belongs to slot 0; choose another name",
        ),
        (
            Propose(samplers={}),
            r"propose.samplers: expected at least two proposals per case, found the base prediction alone; add a "
            r"sampler",
        ),
        (
            Propose(samplers={"t": Threshold(kind="threshold", thresholds=())}),
            r"expected at least two proposals per case, found the base prediction alone",
        ),
        (
            Propose(samplers={"e": Ensemble(kind="ensemble")}),
            r"propose.samplers.e: sampler 'ensemble' needs members of the base, found none",
        ),
        (
            Propose(samplers={"s": Snapshots(kind="snapshots")}),
            r"propose.samplers.s: sampler 'snapshots' needs base.snapshots of at least 1, found 0",
        ),
        (
            Propose(samplers={"t": Threshold(kind="threshold")}, splits=()),
            r"propose: expected cases in the splits that the stage works on, found none",
        ),
    ],
)
def test_what_is_refused(cases, tmp_path, knobs, message):
    """Before anything is written."""
    base = base_folder(tmp_path / "base")
    with pytest.raises(BadInput, match=message):
        proposed(cases, base, knobs)
    assert not Path("out").exists()


@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
def test_a_failing_case_is_named_and_the_others_are_kept(cases, tmp_path, scheduler):
    """c2 fails; c1 and c3 are done, and a run without the failure gives what a run from nothing gives."""
    base = base_folder(tmp_path / "base", constant=True)
    execution = Execution(scheduler=scheduler, workers=2, progress="none")
    with pytest.raises(BadInput) as error:
        proposed(cases, base, with_toy(fails="c2"), execution=execution)
    lines = str(error.value).splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("case 'c2': ArithmeticError: the toy broke (test_propose.py:")
    assert lines[1] == "propose: 1 of 3 shards failed; finished shards are kept"
    assert not Path("out").exists()
    assert len(list(WORK.rglob("done/*.arrow"))) == 2


def test_only_what_is_missing_is_done_again(cases, tmp_path, monkeypatch, capsys):
    """The toy breaks for c2 once; the rerun draws c2 alone, with the bytes of a run that never broke."""
    base = base_folder(tmp_path / "base")
    whole = proposed(cases, base, with_toy(), "whole")
    seen: list[str] = []
    draw = Toy.draw

    def watched(self: Toy, name: str, case: CaseModels) -> Iterator[Draw]:
        seen.append(case.case_id)
        if seen.count("c2") == 1 and case.case_id == "c2":
            raise ArithmeticError("once")
        return draw(self, name, case)

    monkeypatch.setattr(Toy, "draw", watched)
    with pytest.raises(BadInput, match="case 'c2': ArithmeticError: once"):
        proposed(cases, base, with_toy())
    assert sorted(seen) == ["c1", "c2", "c3"]
    again = proposed(cases, base, with_toy())
    assert seen[3:] == ["c2"]
    assert "propose: resuming, 2 of 3 shards are done" in capsys.readouterr().err
    assert hashes(again.folder) == hashes(whole.folder)
    assert not WORK.exists() or not list(WORK.iterdir())


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }
