"""Weights from elsewhere as the base: in every shape of file the same network, and no code of the file is run."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file

from pipeline.compute import Compute
from pipeline.errors import BadInput
from pipeline.segmenter.imported.weight_file import read_state, read_torch
from pipeline.segmenter.knobs import MODELS, Network
from pipeline.segmenter.models import Model, family
from pipeline.segmenter.seen import SEEN, Seen
from pipeline.segmenter.student_record import STUDENT_FILE
from pipeline.segmenter.weights import save_weights
from pipeline.store.cases import INPUT, CaseStore, LabelledCases
from pipeline.store.manifest import check_manifest
from tests.fixtures.builders import case_store
from tests.fixtures.foreign import NETWORK, Canary, base_of, discs, history, imported, network
from tests.fixtures.phantoms import disc
from tests.fixtures.trained import RECORDED


def same(model: Model, state: dict[str, torch.Tensor]) -> bool:
    found = model.load().state_dict()
    return found.keys() == state.keys() and all(torch.equal(found[name], state[name]) for name in state)


def plain(state: dict[str, torch.Tensor], path: Path) -> None:
    torch.save(state, path)


SHAPES: dict[str, Any] = {
    "model.safetensors": lambda state, path: save_file(state, path),
    "model.pt": plain,
    "lightning.ckpt": lambda state, path: plain({"state_dict": state, "epoch": 3}, path),  # type: ignore[dict-item]
    "nnunet.pth": lambda state, path: plain({"network_weights": state}, path),  # type: ignore[dict-item]
    "parallel.pt": lambda state, path: plain(
        {"model": {f"module.{name}": value for name, value in state.items()}},  # type: ignore[dict-item]
        path,
    ),
}
SAID = {
    "lightning.ckpt": ["lightning.ckpt: the weights were read from the key 'state_dict'"],
    "nnunet.pth": ["nnunet.pth: the weights were read from the key 'network_weights'"],
    "parallel.pt": [
        "parallel.pt: the weights were read from the key 'model'",
        "parallel.pt: the prefix 'module.' was removed from all names",
    ],
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_file_of_weights_becomes_a_base_like_a_trained_one(tmp_path, capsys, name):
    """The same bits, however they are kept, and what was done to find them is said."""
    state = network().state_dict()
    SHAPES[name](state, tmp_path / name)
    out = imported(tmp_path, discs(tmp_path / "cases"), tmp_path / name, kind="checkpoint", network=NETWORK)
    assert same(Model(out), state)
    check_manifest(out, content=True)
    assert family(out).members == family(out).snapshots == {}
    assert (out / INPUT).is_file()
    (row,) = history(tmp_path)
    assert (row["model"], row["step"], row["loss"], row["best"]) == ("base", 0, None, True)
    assert 0 <= row["validation_dice"] <= 1
    assert json.loads((out / MODELS).read_text())["imported"]["notes"] == SAID.get(name, [])
    assert capsys.readouterr().err.splitlines() == [f"base: {note}" for note in SAID.get(name, [])]


def test_large_cases_are_measured_from_disk(tmp_path, monkeypatch):
    """Cases of 10x10 and a window of 6x6: the same Dice as of arrays in memory, and none is read whole."""
    plain(network().state_dict(), tmp_path / "plain.pt")
    knobs = {"kind": "checkpoint", "network": {**NETWORK, "window": [6, 6]}}
    cases = discs(tmp_path / "cases")
    one = Model(imported(tmp_path, cases, tmp_path / "plain.pt", **knobs))
    validation = cases.split("validation")
    images, labels = [cases.image(case) for case in validation], [cases.label(case) for case in validation]
    expected = one.segmenter(Compute()).dice(LabelledCases(validation, images, labels))
    for name in ("image", "label"):
        monkeypatch.setattr(CaseStore, name, lambda self, case: pytest.fail(f"{case.case_id} is read whole"))
    imported(tmp_path / "2", cases, tmp_path / "plain.pt", **knobs)
    (row,) = history(tmp_path / "2")
    assert row["validation_dice"] == expected


@pytest.mark.parametrize(
    "prefixes", [("module.", "module."), ("_orig_mod.", "module."), ("module.", "_orig_mod."), ("module.",) * 3]
)
def test_prefixes_are_taken_off_one_after_the_other(tmp_path, prefixes):
    state = network().state_dict()
    torch.save({"".join(prefixes) + name: value for name, value in state.items()}, tmp_path / "model.pt")
    found, notes = read_state(tmp_path / "model.pt")
    assert found.keys() == state.keys()
    assert notes == [f"model.pt: the prefix '{''.join(prefixes)}' was removed from all names"]


def test_weights_are_found_under_several_keys(tmp_path):
    state = network().state_dict()
    torch.save({"model": {"state_dict": state, "epoch": 3}, "optimizer": {}}, tmp_path / "model.pt")
    found, notes = read_state(tmp_path / "model.pt")
    assert found.keys() == state.keys()
    assert notes == [f"model.pt: the weights were read from the key '{key}'" for key in ("model", "state_dict")]


@pytest.mark.parametrize(
    ("number", "message"),
    [(torch.nan, "expected finite numbers, found 1 of"), (None, "expected floats, found torch.int64")],
)
def test_weights_that_make_no_mask_are_refused_and_nothing_is_written(tmp_path, number, message):
    """A base of these weights would have a Dice of 0."""
    state = network().state_dict()
    last = list(state)[-1]
    state[last] = state[last].long() if number is None else state[last].clone()
    if number is not None:
        state[last].view(-1)[0] = number
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(BadInput, match=rf"model.pt: '{last}': {message}"):
        imported(tmp_path, discs(tmp_path / "cases"), tmp_path / "model.pt", kind="checkpoint", network=NETWORK)
    assert not (tmp_path / "models").exists()


def test_a_mismatch_names_keys_and_shapes(tmp_path):
    state = network().state_dict()
    first, *_, last = state
    other = {name: value for name, value in state.items() if name != first}
    other |= {last: torch.zeros(7), "further": torch.zeros(2, 3)}
    torch.save(other, tmp_path / "model.pt")
    with pytest.raises(BadInput) as caught:
        imported(tmp_path, discs(tmp_path / "cases"), tmp_path / "model.pt", kind="checkpoint", network=NETWORK)
    said = str(caught.value)
    assert said.startswith(f"{tmp_path / 'model.pt'}: weights of another network: ")
    assert f"missing '{first}' {tuple(state[first].shape)}" in said
    assert "unexpected 'further' (2, 3)" in said
    assert f"'{last}' expected {tuple(state[last].shape)}, found (7,)" in said
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("core", ["_core", "core"])
def test_a_checkpoint_with_the_measures_of_its_trainer(tmp_path, core):
    """NumPy's scalars under the module names of NumPy 1 and 2, which differ by one underscore; then a list of them."""
    state = network().state_dict()
    numbers = [np.float64(0.5), np.float32(0.5), np.float16(0.5), np.int64(3), np.int32(3), np.bool_(True)]
    content = {"network_weights": state, "_best_ema": np.float64(0.7), "logging": {"dice": numbers}}
    torch.save(content, tmp_path / "of_2.pth")
    with zipfile.ZipFile(tmp_path / "of_2.pth") as old, zipfile.ZipFile(tmp_path / "model.pth", "w") as new:
        for name in old.namelist():
            found = old.read(name)
            new.writestr(name, found.replace(b"numpy._core.", f"numpy.{core}.".encode()))
    found, notes = read_state(tmp_path / "model.pth")
    assert all(torch.equal(found[name], value) for name, value in state.items())
    assert notes == ["model.pth: the weights were read from the key 'network_weights'"]
    measures = read_torch(tmp_path / "model.pth")
    assert measures["_best_ema"] == 0.7
    assert measures["logging"]["dice"] == numbers


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (np.complex128(1), "numpy.dtypes.Complex128DType"),
        (np.array(["a"]), "numpy._core.multiarray._reconstruct"),
        (Path("x"), "pathlib.PosixPath"),
        (Network, "pipeline.segmenter.knobs.Network"),
        (print, "print"),
    ],
)
def test_an_object_of_any_other_class_is_named(tmp_path, value, name):
    torch.save({"network_weights": network().state_dict(), "more": value}, tmp_path / "model.pth")
    with pytest.raises(BadInput, match=rf"model.pth: expected tensors, plain .*, found the code '{name}'; if you"):
        read_state(tmp_path / "model.pth")


def test_pickled_code_is_not_run(tmp_path):
    """A file whose unpickling creates a folder; torch's own unsafe loading shows that it would."""
    torch.save({"state_dict": network().state_dict(), "hook": Canary(tmp_path / "ran")}, tmp_path / "model.pt")
    with pytest.raises(
        BadInput,
        match=r"model.pt: expected tensors, plain values and NumPy .*found the code 'posix.mkdir'; .*save network",
    ):
        imported(tmp_path, discs(tmp_path / "cases"), tmp_path / "model.pt", kind="checkpoint", network=NETWORK)
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "model.pt", weights_only=False)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "expected tensors by name, plain or under one of"),
        ({"optimizer": {"lr": 0.1}}, "expected tensors by name, plain or under one of .*'dict'"),
        ({}, "expected tensors by name"),
    ],
)
def test_files_without_weights(tmp_path, content, message):
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(BadInput, match=message):
        read_state(tmp_path / "model.pt")


def test_files_that_are_something_else(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"no weights")
    with pytest.raises(BadInput, match=r"expected a state_dict by torch.save"):
        read_state(tmp_path / "model.pt")
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(BadInput, match="not a readable safetensors file"):
        read_state(tmp_path / "model.safetensors")
    torch.jit.trace(network(), torch.zeros(1, 1, 8, 8)).save(tmp_path / "model.pt")
    with pytest.raises(BadInput, match=r"expected weights, found a program; use base.kind 'program'"):
        read_state(tmp_path / "model.pt")


# ---- folders ---------------------------------------------------------------------------------------------------


def folder_of(path: Path, *names: str, record: dict[str, Any] | None = None) -> dict[str, dict[str, torch.Tensor]]:
    """A folder of this project with weights of these names, each from a seed of its own; their states."""
    from pipeline.segmenter.architecture import Architecture

    architecture = Architecture("UNet", NETWORK["arguments"], 2, 1, 2, "softmax", (10, 10))  # type: ignore[arg-type]
    architecture.save(path)
    states = {}
    for seed, name in enumerate(names):
        built = architecture.build(seed)
        save_weights(built, path / f"{name}.safetensors")
        states[name] = built.state_dict()
    if record is not None:
        (path / STUDENT_FILE).write_text(json.dumps({**RECORDED, **record}))
    return states


def test_a_student_s_folder(tmp_path):
    """Its last weights, bit for bit, and late steps as the snapshots of the sampler of that name."""
    student = tmp_path / "student"
    states = folder_of(student, "last", "best", "step_000002", "step_000004", record={})
    cases = discs(tmp_path / "cases")
    out = imported(tmp_path / "usual", cases, student, kind="checkpoint")
    assert same(Model(out), states["last"])
    assert (out / "base.safetensors").read_bytes() == (student / "last.safetensors").read_bytes()
    steps = ["step_000002", "step_000004"]
    out = imported(
        tmp_path / "best", cases, student, kind="checkpoint", weights="best", members=["last"], snapshots=steps
    )
    found = family(out)
    assert same(Model(out), states["best"])
    assert list(found.members) == ["last"]
    assert same(found.members["last"], states["last"])
    assert list(found.snapshots) == steps
    assert same(found.snapshots[steps[0]], states[steps[0]])
    assert [row["model"] for row in history(tmp_path / "best")] == ["base", "last"]


def test_a_base_s_folder_with_a_member_of_another_architecture(tmp_path):
    base = tmp_path / "base"
    states = folder_of(base, "base", "member_1")
    (base / MODELS).write_text("{}")
    folder_of(base / "other", "base")
    from pipeline.segmenter.architecture import Architecture

    architecture = Architecture("BasicUNet", {"features": [4] * 6}, 2, 1, 2, "softmax", (32, 32))
    architecture.save(base / "other")
    save_weights(architecture.build(0), base / "other/base.safetensors")
    cases = discs(tmp_path / "cases")
    out = imported(tmp_path, cases, base, kind="checkpoint", members=["member_1", "other"])
    members = family(out).members
    assert same(Model(out), states["base"])
    assert same(members["member_1"], states["member_1"])
    assert members["other"].architecture == architecture
    assert (out / "other" / INPUT).is_file()
    with pytest.raises(BadInput, match=r"base.snapshots: 'other' is of another network than 'base'"):
        imported(tmp_path, cases, base, kind="checkpoint", snapshots=["other"])


def test_an_export_has_one_file(tmp_path):
    states = folder_of(tmp_path / "export", "model")
    cases = discs(tmp_path / "cases")
    assert same(Model(imported(tmp_path, cases, tmp_path / "export", kind="checkpoint")), states["model"])
    folder_of(tmp_path / "export", "model", "another")
    with pytest.raises(BadInput, match=r"base.weights: missing; .*export has 'another', 'model'; name one"):
        imported(tmp_path, cases, tmp_path / "export", kind="checkpoint")
    with pytest.raises(BadInput, match=r"base: .*nothing.safetensors: no such weights; .* has 'another', 'model'"):
        imported(tmp_path, cases, tmp_path / "export", kind="checkpoint", weights="nothing")


def test_offsets_of_a_student_are_in_the_base(tmp_path):
    """A threshold of one half changes no weight. Members and snapshots get the offsets too."""
    cases = discs(tmp_path / "cases")
    states = folder_of(tmp_path / "half", "last", record={"offsets": [0.0]})
    assert same(Model(imported(tmp_path / "a", cases, tmp_path / "half", kind="checkpoint")), states["last"])
    folder_of(tmp_path / "student", "last", "step_000004", record={"offsets": [0.5]})
    out = imported(tmp_path / "b", cases, tmp_path / "student", kind="checkpoint", snapshots=["step_000004"])
    image = torch.randn((1, 1, 10, 10), generator=torch.Generator().manual_seed(0))
    for name, student in (("base", "last"), ("step_000004", "step_000004")):
        with torch.no_grad():
            moved = Model(out, name).load()(image) - Model(tmp_path / "student", student).load()(image)
        assert torch.allclose(moved, torch.tensor([0.0, 0.5]).view(1, 2, 1, 1).expand_as(moved), atol=1e-5)


@pytest.mark.parametrize("record", [{"offsets": [0.5], "steps": 0}, {"slot": 3}])
def test_arms_without_weights_of_their_own(tmp_path, record):
    folder_of(tmp_path / "student", "last", record=record)
    with pytest.raises(BadInput, match=r"student.json: the student is a tuned threshold or a fixed proposal"):
        imported(tmp_path, discs(tmp_path / "cases"), tmp_path / "student", kind="checkpoint")


def test_a_folder_says_what_its_images_are(tmp_path):
    """The same is taken, another preparation is refused with what to set, and can be ignored by name."""
    cases = discs(tmp_path / "cases")
    folder_of(tmp_path / "model", "base")
    cases.write_input(tmp_path / "model")
    imported(tmp_path / "same", cases, tmp_path / "model", kind="checkpoint")
    stated = json.loads((tmp_path / "model" / INPUT).read_text())
    stated["preprocess"]["normalise"] = "minmax"
    (tmp_path / "model" / INPUT).write_text(json.dumps(stated))
    with pytest.raises(BadInput) as caught:
        imported(tmp_path / "other", cases, tmp_path / "model", kind="checkpoint")
    assert '"normalise": "zscore"' in str(caught.value)
    assert f"set `preprocess: {json.dumps(stated['preprocess'])}`" in str(caught.value)
    imported(tmp_path / "ignored", cases, tmp_path / "model", kind="checkpoint", ignore=["preprocess"])


def test_a_knob_that_is_newer_than_the_folder_has_its_default(tmp_path):
    cases = discs(tmp_path / "cases")
    folder_of(tmp_path / "model", "base")
    cases.write_input(tmp_path / "model")
    stated = json.loads((tmp_path / "model" / INPUT).read_text())
    del stated["preprocess"]["resample"]
    (tmp_path / "model" / INPUT).write_text(json.dumps(stated))
    imported(tmp_path, cases, tmp_path / "model", kind="checkpoint")


def dealt(folder: Path, splits: list[str], groups: list[str] | None = None) -> CaseStore:
    """Cases `c0` to `c4`, whose images are known by their names, in these splits."""
    return case_store(folder, [disc((10, 10), 2 + 0.5 * row) for row in range(5)], splits, groups=groups)


FIRST = ["labelled", "labelled", "pool", "validation", "test"]
"""Splits of the run that made the model: it learned from c0 and c1 and was chosen by c3."""


def seen_in_a_run(folder: Path) -> Path:
    """A model folder of that run."""
    folder_of(folder / "model", "base")
    Seen(complete=True).also(dealt(folder / "first", FIRST), ("labelled",), ("validation",)).save(folder / "model")
    return folder / "model"


def test_what_a_model_has_not_seen_may_be_dealt_anew(tmp_path):
    """c2 and c4 may be of test, and c3 stays in validation."""
    model = seen_in_a_run(tmp_path)
    cases = dealt(tmp_path / "cases", ["labelled", "pool", "test", "validation", "pool"])
    out = imported(tmp_path / "out", cases, model, kind="checkpoint")
    assert (out / SEEN).read_bytes() == (model / SEEN).read_bytes()
    assert Seen.of(out).complete
    assert [len(Seen.of(out).learned), len(Seen.of(out).chosen_by)] == [2, 1]


@pytest.mark.parametrize(
    ("splits", "groups", "leaks"),
    [
        (["labelled", "test", "test", "validation", "pool"], None, r"1 of 2 test cases \(first: 'c1'\)"),
        (["labelled", "pool", "pool", "test", "validation"], None, r"1 of 1 test cases \(first: 'c3'\)"),
        (["validation", "labelled", "pool", "validation", "test"], None, r"1 of 2 validation cases \(first: 'c0'\)"),
        (FIRST, ["a", "b", "c", "d", "a"], r"1 of 1 test cases \(first: 'c4'\)"),  # of the patient of c0
    ],
)
def test_a_model_that_has_seen_test_or_learned_from_validation_is_refused(tmp_path, capsys, splits, groups, leaks):
    """As a folder and as a file of it; where that is allowed, the base and its card say so."""
    model = seen_in_a_run(tmp_path)
    cases = dealt(tmp_path / "cases", splits, groups)
    refusal = f"expected a model that has not seen .* found {leaks} that the model, or a model it started from"
    with pytest.raises(BadInput, match=refusal):
        imported(tmp_path / "out", cases, model, kind="checkpoint")
    with pytest.raises(BadInput, match=leaks):
        imported(tmp_path / "out", cases, model / "base.safetensors", kind="checkpoint", network=NETWORK)
    assert not (tmp_path / "out").exists()
    out = imported(tmp_path / "out", cases, model, kind="checkpoint", ignore=["seen"])
    (note,) = json.loads((out / MODELS).read_text())["imported"]["notes"]
    assert re.fullmatch(f"the model has seen {leaks}, so measures on these cases are too good", note)
    assert capsys.readouterr().err == f"base: {note}\n"


def test_of_a_model_from_elsewhere_nothing_is_known(tmp_path):
    folder_of(tmp_path / "model", "base")
    out = imported(tmp_path / "out", dealt(tmp_path / "cases", FIRST), tmp_path / "model", kind="checkpoint")
    assert Seen.of(out) == Seen(frozenset(), frozenset(), complete=False)


def test_a_member_that_does_not_run_on_its_window(tmp_path):
    """Its window is not a multiple of its stride: nothing is written, and the file is named."""
    from dataclasses import replace

    folder_of(tmp_path / "model", "base")
    folder_of(tmp_path / "model/other", "base")
    odd = replace(Model(tmp_path / "model/other").architecture, window=(9, 9))
    odd.save(tmp_path / "model/other")
    with pytest.raises(
        BadInput,
        match=r"other.base.safetensors: model 'other': expected logits \[1, 2, 9, 9\] .* found \[1, 2, 10, 10\]",
    ):
        imported(tmp_path, discs(tmp_path / "cases"), tmp_path / "model", kind="checkpoint", members=["other"])
    assert not (tmp_path / "models").exists()


# ---- what does not fit -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("space", "channels", "message"),
    [
        ((10, 10), 3, r"model 'base': expected 3 channels, as the data has, found 1"),
        ((10, 10, 4), 1, r"model 'base': expected 3 spatial axes, as the data has, found 2"),
    ],
)
def test_a_network_for_other_data(tmp_path, space, channels, message):
    folder_of(tmp_path / "model", "base")
    with pytest.raises(BadInput, match=message):
        imported(tmp_path, discs(tmp_path / "cases", space, channels), tmp_path / "model", kind="checkpoint")
    assert not (tmp_path / "models").exists()


def test_a_network_for_other_classes(tmp_path):
    torch.save(network(outputs=3).state_dict(), tmp_path / "model.pt")
    with pytest.raises(BadInput, match=r"expected \(2,\), found \(3,\)"):
        imported(tmp_path, discs(tmp_path / "cases"), tmp_path / "model.pt", kind="checkpoint", network=NETWORK)


def test_a_model_that_is_not_there(tmp_path):
    cases = discs(tmp_path / "cases")
    with pytest.raises(BadInput, match=r"model: .*nowhere: no such file or folder"):
        imported(tmp_path, cases, tmp_path / "nowhere", kind="checkpoint")
    torch.save(network().state_dict(), tmp_path / "model.pt")
    with pytest.raises(BadInput, match=r"base.network: missing; name the network of the weights in .*model.pt"):
        imported(tmp_path, cases, tmp_path / "model.pt", kind="checkpoint")
    (tmp_path / "model.onnx").touch()
    with pytest.raises(BadInput, match=r"model.onnx: expected a folder with a model, or a file .safetensors, .pt"):
        imported(tmp_path, cases, tmp_path / "model.onnx", kind="checkpoint", network=NETWORK)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"network": NETWORK, "weights": "best"}, "network: a file has one network, and .* are of a folder"),
        ({"weights": "a", "members": ["a"]}, r"weights \['a'\] are named twice"),
        ({"members": ["fold_0"]}, "'fold_0' cannot be a relative of the base"),
        ({"snapshots": ["../x"]}, r"'\.\./x' cannot be a relative of the base"),
    ],
)
def test_knobs_that_contradict_each_other(knobs, message):
    with pytest.raises(ValidationError, match=message):
        base_of(kind="checkpoint", **knobs)


def test_a_damaged_file_is_not_called_code(tmp_path):
    """Cut off, and the pointer that git-lfs leaves in place of a file."""
    torch.save(network().state_dict(), tmp_path / "model.pt")
    content = (tmp_path / "model.pt").read_bytes()
    for wrong in (content[: len(content) // 2], b"version https://git-lfs.github.com/spec/v1\n", b""):
        (tmp_path / "model.pt").write_bytes(wrong)
        with pytest.raises(BadInput, match=r"model.pt: expected a state_dict by torch.save, found .*; fetch it again"):
            read_state(tmp_path / "model.pt")


def test_a_folder_that_is_no_model(tmp_path):
    (tmp_path / "other").mkdir()
    with pytest.raises(BadInput, match=r"model: .*other: expected the folder of a base, .*, found no network.json"):
        imported(tmp_path, discs(tmp_path / "cases"), tmp_path / "other", kind="checkpoint")
