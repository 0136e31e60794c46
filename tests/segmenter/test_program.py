"""Programs as the base: they propose what their network predicts, and nothing is run that is not trusted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.compute import Compute
from pipeline.errors import BadInput
from pipeline.evaluation.prediction import predictions
from pipeline.execution import Execution, Runtime
from pipeline.exports.predict import apply_model, ready_model
from pipeline.params import load_params
from pipeline.proposals.knobs import Propose
from pipeline.proposals.propose import propose
from pipeline.segmenter.models import Model
from pipeline.store.proposals import ProposalStore
from tests.fixtures.chain import TINY, write_params
from tests.fixtures.foreign import discs, imported, network
from tests.fixtures.networks import noise, sampler_of, segmenter_of
from tests.fixtures.students import made

ONE = Execution(scheduler="synchronous", workers=1, progress="none")
WINDOW = {"window": [10, 10], "trust": True}


def program(path: Path, outputs: int = 2, window: tuple[int, int] = (10, 10)) -> Path:
    """The network of `network()` as TorchScript or, with the suffix .pt2, by torch.export."""
    blank = torch.zeros(1, 1, *window)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".pt2":
        torch.export.save(torch.export.export(network(outputs), (blank,)), path)
    else:
        torch.jit.trace(network(outputs), blank).save(str(path))
    return path


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", ["model.ts", "model.pt2"])
def test_a_program_proposes_what_its_network_predicts(tmp_path, name):
    """Logits of the imported program and of the network that it was made of; slot 0 is their most probable class."""
    cases = discs(tmp_path / "cases")
    out = imported(tmp_path, cases, program(tmp_path / name), kind="program", **WINDOW)
    assert (out / f"base{Path(name).suffix}").read_bytes() == (tmp_path / name).read_bytes()
    model = Model(out)
    knobs = Propose(
        samplers={"flips": sampler_of("tta", flips=[[0]]), "low": sampler_of("threshold", thresholds=[0.3])}
    )
    propose(cases, out, knobs, tmp_path / "proposals", Runtime(Compute(), 0, ONE))
    found = ProposalStore(tmp_path / "proposals")
    for case in cases.split("pool", "validation"):
        image = cases.image(case)
        with torch.no_grad():
            expected = network()(torch.from_numpy(image)[None])[0]
        torch.testing.assert_close(model.segmenter(Compute()).logits(image), expected)
        np.testing.assert_array_equal(found.masks(case)[0], expected.argmax(0).numpy())


def test_programs_slide_over_larger_cases(tmp_path):
    out = imported(tmp_path, discs(tmp_path / "cases", (14, 18)), program(tmp_path / "m.pt2"), kind="program", **WINDOW)
    image = noise((14, 18))
    found = Model(out).segmenter(Compute()).logits(image)
    torch.testing.assert_close(found, segmenter_of(network(), (10, 10)).logits(image))


@pytest.mark.parametrize("name", ["model.ts", "model.pt2"])
def test_a_program_is_not_loaded_unasked(tmp_path, name, monkeypatch):
    """Both formats can hold code that runs when they are loaded."""
    for module in (torch.jit, torch.export):
        monkeypatch.setattr(module, "load", lambda *a, **k: pytest.fail("loaded"))
    with pytest.raises(BadInput, match=r"loading a torch\S+ program runs code that is in the file; set base.trust"):
        imported(tmp_path, discs(tmp_path / "cases"), program(tmp_path / name), kind="program", window=[10, 10])


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"window": [10, 10, 10]}, r"base.window: expected 2 numbers for this data, found \(10, 10, 10\)"),
        ({"head": "sigmoid"}, r"expected logits \[1, 1, 10, 10\] of a window \[1, 1, 10, 10\], found \[1, 2, 10, 10\]"),
        ({"window": [12, 10]}, r"expected logits \[1, 2, 12, 10\] .*, found an error: .*correct `window`"),
    ],
)
def test_programs_that_do_not_fit(tmp_path, knobs, message):
    with pytest.raises(BadInput, match=message):
        imported(
            tmp_path, discs(tmp_path / "cases"), program(tmp_path / "m.pt2"), kind="program", **{**WINDOW, **knobs}
        )
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("name", ["model.ts", "model.pt2"])
def test_a_program_of_weights_that_are_not_finite_is_refused(tmp_path, name):
    """No file of weights can be checked here, but logits can. A base of such logits would have a Dice of 0."""
    broken = network()
    with torch.no_grad():
        next(broken.parameters()).view(-1)[0] = torch.nan
    example = torch.zeros(1, 1, 10, 10)
    if name.endswith("2"):
        torch.export.save(torch.export.export(broken, (example,)), tmp_path / name)
    else:
        torch.jit.trace(broken, example, check_trace=False).save(str(tmp_path / name))
    with pytest.raises(
        BadInput, match=r"expected finite logits .*, found .* NaN or infinite; train or fetch the model"
    ):
        imported(tmp_path, discs(tmp_path / "cases"), tmp_path / name, kind="program", **WINDOW)
    assert not (tmp_path / "models").exists()


def test_a_program_that_normalises_its_window_is_taken(tmp_path):
    """A window of one intensity has no standard deviation, so the logits of a blank window would be NaN."""

    class Normalised(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network()

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.network((image - image.mean()) / image.std())

    torch.jit.trace(Normalised(), torch.randn(1, 1, 10, 10)).save(str(tmp_path / "m.ts"))
    imported(tmp_path, discs(tmp_path / "cases"), tmp_path / "m.ts", kind="program", **WINDOW)


def test_predict_does_not_load_a_program_unasked(tmp_path, monkeypatch):
    """A folder of a program may be anybody's; with trust it predicts."""
    images = tmp_path / "images"
    images.mkdir()
    Image.fromarray(np.arange(100, dtype=np.uint8).reshape(10, 10)).save(images / "a.png")
    out = imported(tmp_path, discs(tmp_path / "cases"), program(tmp_path / "m.ts"), kind="program", **WINDOW)
    asked = ready_model(out), images, tmp_path / "masks", Compute(), ONE
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.segmenter.models.load_program", lambda *args: pytest.fail("the program was loaded"))
        with pytest.raises(
            BadInput, match=r"base.ts: the model is a program, and loading a program runs code .*; add --trust"
        ):
            apply_model(*asked)
    assert not (tmp_path / "masks").exists()
    assert apply_model(*asked, trust=True) == (1, 0)
    assert (tmp_path / "masks/a.png").is_file()


def test_files_that_are_no_program(tmp_path):
    torch.save(network().state_dict(), tmp_path / "weights.pt")
    with pytest.raises(BadInput, match=r"expected a program by torch.export.save or torch.jit.save, found another"):
        imported(tmp_path, discs(tmp_path / "cases"), tmp_path / "weights.pt", kind="program", **WINDOW)


def test_dropout_has_no_layers_to_drop(tmp_path):
    cases = discs(tmp_path / "cases")
    out = imported(tmp_path, cases, program(tmp_path / "model.ts"), kind="program", **WINDOW)
    for at, hint in (("bottleneck", "use at: all"), ("all", "remove the sampler")):
        knobs = Propose(samplers={"dropout": sampler_of("mc_dropout", at=at)})
        with pytest.raises(BadInput, match=f"mc_dropout at '{at}': the network has no such layer; {hint}"):
            propose(cases, out, knobs, tmp_path / "proposals", Runtime(Compute(), 0, ONE))


def test_a_tuned_threshold_of_a_program(tmp_path):
    """An arm that trains nothing predicts with a copy of the program and its offsets."""
    setting = made(tmp_path)
    base = imported(
        tmp_path, setting.cases, program(tmp_path / "m.ts", window=(8, 8)), kind="program", window=[8, 8], trust=True
    )
    setting.base = Model(base)
    from pipeline.students.objectives.threshold import TunedThreshold

    setting.train(TunedThreshold(kind="threshold", offsets=(-9.0, 9.0)))
    found = predictions(tmp_path / "student", setting.data, Compute())
    case = setting.cases.split("validation")[0]
    logits = segmenter_of(network(), (8, 8)).logits(setting.cases.image(case))
    (offset,) = setting.record()["offsets"]
    logits[1] += offset
    assert found.best is not None
    np.testing.assert_array_equal(found.best(case), logits.argmax(0).numpy())


def of_program(**changes: Any) -> dict[str, Any]:
    """Parameters of a base that is a program, without the sampler that it cannot serve."""
    samplers = {name: knobs for name, knobs in TINY["propose"]["samplers"].items() if name != "dropout"}
    block = {
        "base": {"kind": "program", **WINDOW},
        "model": "m.ts",
        "propose": {**TINY["propose"], "samplers": samplers},
    }
    return json.loads(json.dumps({**TINY, **block, **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "students.[a-z_]+: a base of kind 'program' cannot be trained; set base.kind"),
        ({"model": "raw/none", "students": {}}, "model: expected the file or folder of a program"),
    ],
)
def test_what_cannot_be_done_with_a_program_is_said_with_the_parameters(tmp_path, changes, message):
    write_params(tmp_path, of_program(**changes))
    with pytest.raises(BadInput, match=message):
        load_params(tmp_path / "params.yaml")


def test_arms_that_train_nothing_are_allowed(tmp_path):
    students: dict[str, Any] = {"tuned": {"pairs": "none", "objective": {"kind": "threshold"}}}
    write_params(tmp_path, of_program(students=students))
    assert load_params(tmp_path / "params.yaml").students
