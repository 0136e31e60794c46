"""The base stage: its relatives on disk, what they were trained on, and what is refused before training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from pydantic import ValidationError

from pipeline.compute import Compute
from pipeline.errors import BadInput
from pipeline.execution import Execution, Runtime
from pipeline.segmenter.augmentation import Augmentation
from pipeline.segmenter.base import TEACHER, train_base
from pipeline.segmenter.knobs import MODELS, Base, Consistency, Network, Optimisation
from pipeline.segmenter.models import Model, fold_families, member_models, snapshot_models
from pipeline.store.cases import INPUT, CaseStore
from tests.fixtures.builders import case_store
from tests.fixtures.networks import noise
from tests.fixtures.phantoms import disc

SMALL = Network(name="UNet", arguments={"channels": [4, 8], "strides": [2]}, multiple=2)
OTHER = Network(name="AttentionUnet", arguments={"channels": [4, 8], "strides": [2]}, multiple=4)
ONE = Execution(scheduler="synchronous", workers=1, progress="none")
SPLITS = ["labelled", "labelled", "pool", "pool", "validation"]


def cases_of(folder: Path, pool: float = 1.0) -> CaseStore:
    """Discs in noise on 10x10; images of the pool are scaled by `pool`."""
    labels = [disc((10, 10), 2 + 0.5 * (i % 3)) for i in range(5)]
    images = [(label + 0.3 * noise((10, 10), f"c{i}")[0])[None].astype(np.float32) for i, label in enumerate(labels)]
    images = [image * pool if split == "pool" else image for image, split in zip(images, SPLITS, strict=True)]
    return case_store(folder, labels, SPLITS, images)


def knobs(**more: Any) -> Base:
    own = Optimisation(steps=4, learning_rate=1e-2, evaluate_every=2)
    return Base(**{"network": SMALL, "optimisation": own, "batch": 2, "members": 0, **more})


def train(folder: Path, base: Base | None, cases: CaseStore, compute: Compute | None = None) -> Path:
    out = folder / "base"
    augmentation = Augmentation(flips=(0,))
    train_base(cases, base, augmentation, Runtime(compute or Compute(), 0, ONE), out, folder / "base.csv")
    return out


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_relatives_of_the_base(tmp_path):
    """A seed, another architecture in a folder of its own with its own window, a mean teacher, folds and snapshots.

    Windows: 10 rounded up to a multiple of 2 is 10, of 4 is 12. Snapshots after steps 2 and 4.
    """
    base = knobs(
        members=1, others={"attention": OTHER}, mean_teacher=Consistency(), folds=2, fold_members=1, snapshots=2
    )
    out = train(tmp_path, base, cases_of(tmp_path / "cases"))
    models = json.loads((out / MODELS).read_text())
    assert models["members"] == ["member_1", "attention", TEACHER]
    assert models["snapshots"] == ["snapshot_000002", "snapshot_000004"]
    assert sorted(models["fold_of"].values()) == ["fold_0", "fold_1"]
    for folder in (out, out / "attention"):
        assert json.loads((folder / INPUT).read_text())["class_names"] == ["class_0", "class_1"]
    members = member_models(out)
    assert list(members) == ["member_1", "attention", TEACHER, "fold_0", "fold_1"]
    assert members["attention"].architecture.window == (12, 12)
    assert members[TEACHER].architecture.window == (10, 10)
    states = {name: model.load().state_dict() for name, model in {"base": Model(out), **members}.items()}
    first = {name: next(iter(state.values())) for name, state in states.items() if name != "attention"}
    for one in first:
        for two in first:
            assert (one == two) == torch.equal(first[one], first[two])
    assert len(snapshot_models(out)) == 2
    history = pl.read_csv(tmp_path / "base.csv")
    of_folds = ["fold_0_member_1", "fold_1_member_1"]
    assert history["model"].unique(maintain_order=True).to_list() == ["base", *members, *of_folds]
    for case_id, fold in models["fold_of"].items():
        unseen = fold_families(out)[case_id]
        assert unseen.base == Model(out, fold)
        assert unseen.members == {"member_1": Model(out, f"{fold}_member_1")}
        assert unseen.snapshots == {name: Model(out, f"{fold}_{name}") for name in models["snapshots"]}
        assert all(model.weights.is_file() for model in [*unseen.members.values(), *unseen.snapshots.values()])


def test_a_labelled_case_teaches_no_model_of_its_own_fold(tmp_path):
    """With another label of one case, other models change. Not all must: the best of a model may be its start."""
    weights = []
    for turn, radius in enumerate((2.0, 4.0)):
        here = tmp_path / str(turn)
        labels = [disc((10, 10), 2 + 0.5 * (i % 3)) for i in range(5)]
        labels[0] = disc((10, 10), radius)
        images = [noise((10, 10), f"c{i}") for i in range(5)]
        cases = case_store(here / "cases", labels, SPLITS, images)
        out = train(here, knobs(members=1, folds=2, fold_members=1, snapshots=1), cases)
        weights.append({path.name: path.read_bytes() for path in out.glob("*.safetensors")})
    own = json.loads((out / MODELS).read_text())["fold_of"]["c0"]
    unchanged = {name for name in weights[0] if weights[0][name] == weights[1][name]}
    of_fold = {f"{own}.safetensors", f"{own}_member_1.safetensors", f"{own}_snapshot_000004.safetensors"}
    assert of_fold == {name for name in weights[0] if name.startswith(own)}
    assert of_fold <= unchanged
    assert "snapshot_000004.safetensors" not in unchanged


def test_members_of_folds_are_members():
    with pytest.raises(
        ValidationError,
        match=r"fold_members: expected at most 0 \(folds is 0, so there are no members of folds\), found 1",
    ):
        knobs(members=1, fold_members=1)
    with pytest.raises(ValidationError, match=r"fold_members: expected at most 1 \(members\), found 2"):
        knobs(members=1, folds=2, fold_members=2)


def test_only_the_mean_teacher_sees_the_pool(tmp_path):
    """Other images of the pool change its weights and no other model's."""
    base = knobs(mean_teacher=Consistency(weight=50.0))
    found = []
    for turn, pool in enumerate((1.0, 3.0)):
        here = tmp_path / str(turn)
        out = train(here, base, cases_of(here / "cases", pool))
        found.append({name: (out / f"{name}.safetensors").read_bytes() for name in ("base", TEACHER)})
    assert found[0]["base"] == found[1]["base"]
    assert found[0][TEACHER] != found[1][TEACHER]


def test_without_a_model_the_folder_lists_none(tmp_path):
    out = train(tmp_path, None, cases_of(tmp_path / "cases"))
    assert member_models(out) == snapshot_models(out) == {}
    assert {path.name for path in out.iterdir()} == {MODELS, "manifest.json"}


@pytest.mark.parametrize("name", ["base", "mean", "mean_teacher", "member_1", "fold_x", "snapshot_1"])
def test_names_that_the_stage_uses_itself(name):
    with pytest.raises(ValidationError, match=f"others.{name}: the base stage uses this name itself"):
        knobs(others={name: OTHER})


@pytest.mark.parametrize(
    ("base", "compute", "message"),
    [
        (
            {"network": Network(name="UNet", arguments={"channels": [4, 8, 16], "strides": [2, 2]}, multiple=1)},
            {},
            r"base.network: UNet does not run on a window of \[10, 10\] on device 'cpu': .*; correct `multiple`",
        ),
        (
            {"others": {"vae": Network(name="SegResNetVAE", multiple=8)}},
            {},
            r"base.others.vae: SegResNetVAE does not run on .*: expected logits, or a list of logits of several heads, "
            r"found tuple of a tensor \[2, 2, 16, 16\], a tensor \[\]; correct",
        ),
        ({}, {"device": "gpu"}, r"base.network: UNet does not run on a window of \[10, 10\] on device 'gpu'"),
    ],
    ids=["multiple", "outputs", "device"],
)
def test_a_network_that_does_not_fit_is_refused_before_training(tmp_path, base, compute, message):
    with pytest.raises(BadInput, match=message):
        train(tmp_path, knobs(**base), cases_of(tmp_path / "cases"), Compute(**compute))
    assert not (tmp_path / "base").exists()


def test_an_empty_split(tmp_path):
    labels = [disc((10, 10), 2)] * 3
    cases = case_store(tmp_path / "cases", labels, ["labelled", "labelled", "validation"])
    with pytest.raises(BadInput, match="base: no case in split 'pool'; set base: null"):
        train(tmp_path, knobs(mean_teacher=Consistency()), cases)
