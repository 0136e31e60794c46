"""Every network goes the whole way, in 2D and 3D: base, injected dropout, one preference step, evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from pipeline.compute import Compute
from pipeline.errors import BadInput
from pipeline.evaluation.evaluate import EvaluationFiles, evaluate_model
from pipeline.evaluation.metrics import Evaluation
from pipeline.execution import Execution, Runtime
from pipeline.proposals.knobs import Propose
from pipeline.proposals.propose import propose
from pipeline.segmenter.augmentation import Augmentation
from pipeline.segmenter.base import train_base
from pipeline.segmenter.heads import all_heads
from pipeline.segmenter.knobs import Base, Network, Optimisation
from pipeline.segmenter.models import Model
from pipeline.store import schema
from pipeline.store.proposals import ProposalStore
from pipeline.store.tables import read_table
from pipeline.students.objectives.preference import Preference
from pipeline.students.student import Anchor
from tests.fixtures.builders import case_store, proposal_store
from tests.fixtures.networks import case_of, noise, row_of, sampler_of, segmenter_of
from tests.fixtures.phantoms import disc
from tests.fixtures.students import Setting

NETWORKS: dict[str, dict[str, Any]] = {
    "UNet": {"channels": [4, 8, 8], "strides": [2, 2], "dropout": 0.1},
    "BasicUNet": {"features": [4, 4, 4, 8, 8, 4], "norm": ["group", {"num_groups": 2}]},
    "AttentionUnet": {"channels": [4, 8, 8], "strides": [2, 2]},
    "SegResNet": {"init_filters": 8, "blocks_down": [1, 1, 1], "blocks_up": [1, 1]},
    "DynUNet": {"filters": [4, 4, 8, 8], "deep_supervision": True},
    "VNet": {},
    "UNETR": {"feature_size": 4, "hidden_size": 12, "mlp_dim": 16, "num_heads": 2},
    "SwinUNETR": {"feature_size": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "norm_name": "batch"},
    "BasicUNetPlusPlus": {
        "features": [4, 4, 4, 4, 8, 4],
        "deep_supervision": True,
        "norm": ["group", {"num_groups": 2}],
    },
    "SegResNetDS": {"init_filters": 8, "blocks_down": [1, 1, 1], "dsdepth": 2},
    "MedNeXt": {
        "init_filters": 4,
        "blocks_down": [1] * 4,
        "blocks_up": [1] * 4,
        "deep_supervision": True,
    },
    "HighResNet": {
        "layer_params": [
            {"name": "conv_0", "n_features": 4, "kernel_size": 3},
            {"name": "res_1", "n_features": 8, "kernels": [3, 3], "repeat": 1},
            {"name": "conv_1", "n_features": 8, "kernel_size": 1},
            {"name": "conv_2", "kernel_size": 1},
        ]
    },
    "Quicknat": {"num_filters": 4},
}
WINDOW = {2: (30, 37), 3: (11, 13, 10)}
FOUND = {
    "UNet": ((32, 40), (12, 16, 12)),
    "BasicUNet": ((30, 37), (16, 16, 16)),
    "AttentionUnet": ((32, 40), (12, 16, 12)),
    "SegResNet": ((32, 40), (12, 16, 12)),
    "DynUNet": ((32, 40), (12, 16, 12)),
    "VNet": ((32, 48), (16, 16, 16)),
    "UNETR": ((32, 48), (16, 16, 16)),
    "SwinUNETR": ((32, 64), (32, 32, 32)),
    "BasicUNetPlusPlus": ((30, 37), (16, 16, 16)),
    "SegResNetDS": ((32, 40), (12, 16, 12)),
    "MedNeXt": ((32, 48), None),
    "HighResNet": ((30, 37), (11, 13, 10)),
    "Quicknat": ((32, 48), None),
}
"""30 and 37 by 4 and 8: 32 and 40; by 16: 32 and 48. BasicUNet pads what it has halved itself, if there is enough to
halve four times. 11, 13 and 10 by 4: 12, 16 and 12."""
WITHOUT_DROPOUT = ("SegResNet", "DynUNet", "SegResNetDS", "MedNeXt")
ONE_RESOLUTION = ("HighResNet",)
HEADS = {"DynUNet": 2, "BasicUNetPlusPlus": 4, "SegResNetDS": 2, "MedNeXt": 5}
ALL = [(name, dimensions) for name in NETWORKS for dimensions in (2, 3) if FOUND[name][dimensions - 2]]
ONE = Execution(scheduler="synchronous", workers=1, progress="none")
SPLITS = ["labelled", "labelled", "pool", "pool", "validation", "test"]
PLAIN = Augmentation(flips=(), rotate_degrees=0, scale=0, intensity=0, noise=0)
STEP = Optimisation(steps=1, learning_rate=1e-3, evaluate_every=1)


@dataclass
class Trained:
    """A base after one step on cases of the window's size, smaller and (of the pool) larger, and its proposals."""

    setting: Setting
    name: str

    def model(self, folder: str = "base", weights: str = "base") -> Model:
        return Model(self.setting.folder / folder, weights)


def cases_of(folder: Path, dimensions: int) -> Any:
    window = WINDOW[dimensions]
    small, large = tuple(length - 3 for length in window), (*window[:-1], 70 if dimensions == 2 else 36)
    shapes = [window, small, window, large, small, small]
    labels = [disc(shape, 4 + 0.5 * i) for i, shape in enumerate(shapes)]
    images = [(x + 0.3 * noise(x.shape, f"c{i}")[0])[None].astype(np.float32) for i, x in enumerate(labels)]
    return case_store(folder, labels, SPLITS, images)


@pytest.fixture(scope="module", params=ALL, ids=[f"{name}-{dimensions}D" for name, dimensions in ALL])
def trained(request, tmp_path_factory) -> Iterator[Trained]:
    name, dimensions = request.param
    folder = tmp_path_factory.mktemp(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        cases = cases_of(folder / "cases", dimensions)
        network = Network(name=name, arguments=NETWORKS[name], window=WINDOW[dimensions])
        runtime, knobs = Runtime(Compute(), 0, ONE), Base(network=network, optimisation=STEP, batch=2, members=0)
        train_base(cases, knobs, PLAIN, runtime, folder / "base", folder / "base.csv")
        samplers = {"dropout": sampler_of("mc_dropout", rates=[0.3, 0.6])}
        propose(cases, folder / "base", Propose(samplers=samplers), folder / "proposals", runtime)
        yield Trained(Setting(cases, ProposalStore(folder / "proposals"), Model(folder / "base"), folder), name)
    rmtree(folder)


def test_the_window_is_found_and_kept(trained):
    architecture = trained.model().architecture
    assert architecture.window == FOUND[trained.name][architecture.dimensions - 2]
    assert (trained.setting.folder / "base/network.json").is_file()


def test_logits_have_the_size_of_the_case(trained):
    """Padded where the window is larger and slid where it is smaller; and equal for weights that are read anew."""
    model, cases = trained.model(), trained.setting.cases
    window, again = model.architecture.window, model.load()
    for case in cases.all[2:5]:
        image = cases.image(case)
        logits = model.segmenter(Compute()).logits(image)
        assert (logits.shape, logits.dtype) == ((2, *case.shape), torch.float32)
        assert logits.isfinite().all()
        assert torch.equal(logits, segmenter_of(again, window).logits(image))
    assert cases.all[3].shape[-1] > window[-1]


def test_heads_weigh_one_and_the_first_is_what_inference_sees(trained):
    model = trained.model()
    images = torch.from_numpy(noise(model.architecture.window))[None]
    with torch.no_grad():
        heads = all_heads(model.load(), images)
        assert torch.equal(heads[0].logits, model.load()(images))
    assert len(heads) == HEADS.get(trained.name, 1)
    assert sum(head.weight for head in heads) == pytest.approx(1)
    assert heads[0].weight == max(head.weight for head in heads)


@pytest.mark.parametrize("at", ["bottleneck", "decoder", "all", "own"])
def test_dropout(trained, at):
    """Rates differ from each other and from the base, everywhere the same in repetition; or a clear error."""
    model = trained.model()
    space = tuple(length - 3 for length in model.architecture.window)
    base = model.segmenter(Compute())
    image = noise(space)
    sampler = sampler_of("mc_dropout", rates=[0.2, 0.5], at=at)

    def drawn() -> list[bytes]:
        case = case_of(space, image=image, row=row_of(space), base=base)
        return [draw.probability.numpy().tobytes() for draw in sampler.draw("d", case)]

    if (trained.name in ONE_RESOLUTION and at == "decoder") or (trained.name in WITHOUT_DROPOUT and at == "own"):
        with pytest.raises(BadInput, match=f"mc_dropout at '{at}': the network has no such layer; use at: all"):
            drawn()
        return
    case = case_of(space, image=image, row=row_of(space), base=base)
    found = drawn()
    assert len({case.predict(base).numpy().tobytes(), *found}) == 3
    assert drawn() == found


def test_a_preference_step_and_its_evaluation(trained):
    """The pair with the most disagreement; one step moves weights of all heads, and the test case is measured."""
    setting = trained.setting
    setting = replace(
        setting,
        proposals=proposal_store(
            setting.folder / "masks", [np.stack([x, 1 - x]) for x in map(setting.cases.label, setting.cases.all)]
        ),
    )
    _, last = setting.train(
        Preference(kind="preference"), [(2, 0, 1), (3, 0, 1)], Anchor(supervised=1.0), steps=1, learning_rate=1e-3
    )
    assert last["loss"] > 0
    assert last["supervised"] > 0
    assert last["rewards/accuracies"] is not None
    before, after = trained.model().load(), trained.model("student", "last").load().state_dict()
    still = {name for name, weight in before.named_parameters() if torch.equal(weight, after[name])}
    # Without anything to attend across, UNETR does not use these.
    assert {name for name in still if "norm_cross_attn" not in name} == set()
    rows = {}
    for name in ("base", "student"):
        out = setting.folder / f"{name}.parquet"
        folder = setting.folder
        files = EvaluationFiles(folder / name, out, folder / f"{name}.json")
        knobs, runtime = Evaluation(nsd_tolerance=1.0, bootstrap=20), Runtime(Compute(), 0, ONE)
        evaluate_model(name, setting.data, files, None, knobs, runtime)
        rows[name] = read_table(out, schema.EVALUATION)
        assert rows[name].select("case_id", "class").rows() == [("c5", 1)]
        assert rows[name].select(pl.col("dice").is_between(0, 1)).item()
