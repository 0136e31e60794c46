"""Students of an imported nnU-Net, back as a results folder of nnU-Net with one fold per student."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from pipeline.compute import Compute
from pipeline.errors import BadInput
from pipeline.exports.card import CARD, FACTS, FinishedRun
from pipeline.exports.export import export_models, models_of
from pipeline.exports.predict import apply_model, ready_model
from pipeline.exports.results_folder import CHECKPOINT
from pipeline.params import load_params
from pipeline.segmenter.imported.nnunet_origin import ORIGIN
from pipeline.segmenter.models import Model
from pipeline.segmenter.seen import Seen
from pipeline.segmenter.weights import save_weights
from pipeline.store.cases import INPUT, CaseStore
from pipeline.store.manifest import write_json, write_manifest
from stages.export import main
from tests.exports.test_export import ONE
from tests.exports.test_predict import write_png
from tests.fixtures.chain import with_changes, write_params
from tests.fixtures.foreign import imported
from tests.fixtures.networks import noise
from tests.fixtures.results_folder import plain_network
from tests.fixtures.trained import RECORDED, model_folder
from tests.segmenter.test_nnunet import KNOBS, pictures, prepared, volumes

STUDENT = {"pairs": "none", "objective": {"kind": "supervised"}}


def of_pictures(folder: Path, **students: Any) -> FinishedRun:
    """A run in `folder` whose base is a 2D nnU-Net. `students` are offsets by name."""
    cases = prepared(folder / "cases")
    imported(folder, cases, pictures(folder), **KNOBS)
    return with_students(folder, cases, **students)


def with_students(folder: Path, cases: CaseStore, **students: Any) -> FinishedRun:
    """Students with weights near those of the base."""
    base = folder / "models/base"
    for seed, (name, offsets) in enumerate(students.items()):
        out = folder / "models/students" / name
        network, generator = Model(base).load(), torch.Generator().manual_seed(seed)
        for parameter in network.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
        save_weights(network, out / "last.safetensors")
        for file in ("network.json", INPUT):
            shutil.copy(base / file, out / file)
        Seen(frozenset(name), frozenset("v"), complete=seed == 0).save(out)
        write_json(out / "student.json", RECORDED | {"name": name, "offsets": offsets})
        write_manifest(out, "a test")
    write_params(folder, with_changes(students=dict.fromkeys(["one", "two"], STUDENT)))
    params = load_params(folder / "params.yaml")
    return FinishedRun(params, cases.folder, *(folder / n for n in "pam"), base=folder / "models/base")


def exported(folder: Path, run: FinishedRun, *names: str, **models: Path) -> Path:
    """The results folder of students by name, or of `models`."""
    found = {name: ready_model(folder / "models/students" / name) for name in names}
    found |= {name: ready_model(path) for name, path in models.items()}
    card = export_models(found, run, "nnunet", folder / "out")
    assert card.is_file()
    return card.parents[1]


def content_of(folder: Path, fold: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(folder / f"fold_{fold}" / CHECKPOINT, weights_only=True)
    return found


def network_of(folder: Path, fold: int = 0) -> torch.nn.Module:
    """nnU-Net's own network, made of `plans.json` and `dataset.json` alone, with the weights of the checkpoint."""
    plans, dataset = (json.loads((folder / f"{name}.json").read_text()) for name in ("plans", "dataset"))
    content = content_of(folder, fold)
    block = plans["configurations"][content["init_args"]["configuration"]]["architecture"]
    kind = block["network_class_name"].rsplit(".", 1)[1]
    network = plain_network(block["arch_kwargs"], kind, len(dataset["channel_names"]), len(dataset["labels"]), 0)
    network.load_state_dict(content["network_weights"])
    return network.eval()


def test_a_student_is_a_results_folder_with_its_offsets_in_the_bias(tmp_path):
    """log 3 more of class 1, at the output of full resolution alone."""
    run = of_pictures(tmp_path, one=[float(np.log(3))])
    folder = exported(tmp_path, run, "one")
    assert folder == tmp_path / "out/nnUNetTrainer__one__2d"
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {"plans.json", "dataset.json", "seen.json", *(f"fold_0/{x}" for x in (CHECKPOINT, CARD, FACTS))}
    base = tmp_path / "nnUNetTrainer__nnUNetPlans__2d"
    plans, before = (json.loads((one / "plans.json").read_text()) for one in (folder, base))
    assert plans == before | {"plans_name": "one"}
    assert list(plans) == list(before)
    assert json.loads((folder / "dataset.json").read_text()) == json.loads((base / "dataset.json").read_text())
    content = content_of(folder)
    assert content["trainer_name"] == "nnUNetTrainer"
    assert content["inference_allowed_mirroring_axes"] == (0, 1)
    assert content["init_args"]["plans"] == plans
    student = Model(tmp_path / "models/students/one", "last").load()
    image = torch.from_numpy(noise((1, 8, 16)))
    with torch.no_grad():
        ours, (main, deep) = student(image), network_of(folder)(image)
    torch.testing.assert_close(main, ours + torch.tensor([0.0, np.log(3)]).float().view(1, 2, 1, 1))
    assert torch.equal(deep, student.forward(image)[1])
    facts = json.loads((folder / "fold_0" / FACTS).read_text())
    assert ORIGIN not in facts["network"]["arguments"]
    text = (folder / "fold_0" / CARD).read_text()
    assert "nnU-Net's PlainConvUNet (mean over mirrorings of the axes 0, 1)" in text
    assert "weights of a results folder of nnU-Net" in text
    with pytest.raises(BadInput, match="found a results folder of nnU-Net, which nnU-Net runs"):
        ready_model(folder)


def test_the_way_there_and_back(tmp_path):
    """Weights, architecture, masks and the list of seen images are those of the student."""
    run = of_pictures(tmp_path, one=None)
    folder = exported(tmp_path, run, "one")
    student = tmp_path / "models/students/one"
    again = imported(tmp_path / "2", CaseStore(run.cases), folder, kind="nnunet", folds=[0])
    assert Model(again).weights.read_bytes() == Model(student, "last").weights.read_bytes()
    before, after = Model(student, "last").architecture, Model(again).architecture
    assert before.arguments.pop(ORIGIN)["plans"] != after.arguments.pop(ORIGIN)["plans"]
    assert before == after
    assert Seen.of(again) == Seen.of(student)
    write_png(tmp_path / "images/a.png", (13, 21))
    for model, masks in ((student, "first"), (again, "second")):
        apply_model(ready_model(model), tmp_path / "images", tmp_path / masks, Compute(), ONE)
    masks = [(tmp_path / name / "a.png").read_bytes() for name in ("first", "second")]
    assert masks[0] == masks[1]


def test_mirroring_is_over_axes_of_nnunet(tmp_path, capsys):
    """A volume x, y, z is read as z, y, x and transposed to x, z, y: nnU-Net's axes 0 and 1 are x and z here."""
    model = volumes(tmp_path, transpose_forward=[2, 0, 1], transpose_backward=[1, 2, 0])
    for file in model.glob("fold_*/checkpoint_final.pth"):
        content = torch.load(file, weights_only=False)
        torch.save(content | {"inference_allowed_mirroring_axes": (0, 1)}, file)
    cases = prepared(tmp_path / "cases", (6, 8, 9))
    base = imported(tmp_path, cases, model, **KNOBS)
    assert Model(base).architecture.mirror == (0, 2)
    run = with_students(tmp_path, cases)
    assert content_of(exported(tmp_path, run, base=base))["inference_allowed_mirroring_axes"] == (0, 1)
    assert "export: preprocess.spacing is null, so `segpref predict` keeps the voxels" in capsys.readouterr().err


def test_no_mirroring_is_no_tuple(tmp_path):
    """nnU-Net takes the largest of the axes, and fails if there is none."""
    cases = prepared(tmp_path / "cases")
    base = imported(tmp_path, cases, pictures(tmp_path), **KNOBS, mirror=False)
    folder = exported(tmp_path, with_students(tmp_path, cases), base=base)
    assert content_of(folder)["inference_allowed_mirroring_axes"] is None


def test_students_become_folds_in_their_order(tmp_path):
    run = of_pictures(tmp_path, one=None, two=[0.5])
    folder = exported(tmp_path, run, "two", "one")
    assert folder.name == "nnUNetTrainer__two-one__2d"
    for fold, name in enumerate(("two", "one")):
        assert json.loads((folder / f"fold_{fold}" / FACTS).read_text())["name"] == name
        assert content_of(folder, fold)["init_args"]["fold"] == fold
        # The offsets change the last output layer alone.
        student = Model(tmp_path / "models/students" / name, "last").load().state_dict()
        written = content_of(folder, fold)["network_weights"]
        assert written.keys() == student.keys()
        changed = {key for key in student if not torch.equal(student[key], written[key])}
        assert changed == ({"decoder.seg_layers.1.bias"} if name == "two" else set())
    # Of two lists, of which one is not complete.
    assert Seen.of(folder) == Seen(frozenset({*"one", *"two"}), frozenset("v"), complete=False)


def test_numbers_that_json_of_this_project_lacks_come_back(tmp_path):
    """nnU-Net writes NaN for the intensities of a training set without foreground."""
    model = pictures(tmp_path, foreground_intensity_properties_per_channel={"0": {"mean": float("nan")}})
    cases = prepared(tmp_path / "cases")
    base = imported(tmp_path, cases, model, **KNOBS)
    folder = exported(tmp_path, with_students(tmp_path, cases), base=base)
    plans = json.loads((folder / "plans.json").read_text())
    assert np.isnan(plans["foreground_intensity_properties_per_channel"]["0"]["mean"])


def changed(folder: Path, file: str, **keys: Any) -> None:
    write_json(folder / file, json.loads((folder / file).read_text()) | keys)
    write_manifest(folder, "a test")


def test_what_nnunet_cannot_hold_is_named(tmp_path):
    run = of_pictures(tmp_path, one=None, two=None)
    two = tmp_path / "models/students/two"
    architecture = Model(two).architecture

    def refused(message: str) -> None:
        with pytest.raises(BadInput, match=message):
            exported(tmp_path, run, "one", "two")
        assert not (tmp_path / "out").exists()

    given = json.loads((two / INPUT).read_text())
    changed(two, INPUT, preprocess=given["preprocess"] | {"normalise": "minmax"})
    refused(r"two: preprocess: expected Preprocess\(normalise='zscore'.* as in nnU-Net, found .*normalise='minmax'")
    changed(two, INPUT, preprocess=given["preprocess"], files="nifti")
    refused("two: files: expected 'pictures', as in nnU-Net, found 'nifti'")
    changed(two, INPUT, files="pictures")
    replace(architecture, arguments=architecture.arguments | {"mirror": [0]}).save(two)
    refused(r"two: expected the network, plans and mirroring of .*one, found others: .*; export the models one by one")
    plain = {key: value for key, value in architecture.arguments.items() if key != ORIGIN}
    replace(architecture, arguments=plain).save(two)
    refused(r"two: expected the plans of nnU-Net in network.json, found none, .*; run `dvc repro`")
    shutil.rmtree(two)
    model_folder(two, (8, 16), weights=("last",), head="sigmoid", classes=2, record={"name": "two"})
    refused("two: expected a network of a base of kind 'nnunet', found UNet, which nnU-Net does not build; export as")


def test_names_that_do_not_go_together(tmp_path, monkeypatch):
    run = of_pictures(tmp_path, one=None, two=None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match="expected every model once, found 'one' twice"):
        models_of(["one", "one"], run.params, None, None)
    with pytest.raises(BadInput, match="--model: expected one NAME, found one, two"):
        models_of(["one", "two"], run.params, tmp_path, None)
    with pytest.raises(BadInput, match="--format safetensors: expected one NAME, found one, two; export them one by"):
        export_models(models_of(["one", "two"], run.params, None, None), run, "safetensors", tmp_path / "out")


def test_the_command(tmp_path, monkeypatch):
    of_pictures(tmp_path, one=None, two=None)
    monkeypatch.chdir(tmp_path)
    line = ["one", "two", "--format", "nnunet", "--cases", "cases", "--license", "cc-by-4.0"]
    done = CliRunner().invoke(main, line)
    card = f"exports/one-two_nnunet/nnUNetTrainer__one-two__2d/fold_0/{CARD}"
    said = f"export: nnunet of one, two in exports/one-two_nnunet; read {card} before you share it\n"
    assert (done.exit_code, done.output) == (0, said)
    assert (tmp_path / card).read_text().startswith('---\nlicense: "cc-by-4.0"\nlibrary_name: "nnunetv2"\n')
