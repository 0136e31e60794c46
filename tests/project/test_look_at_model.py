"""`segpref init --model`: a project whose base is a trained nnU-Net, and models that make no project."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from ruamel.yaml import YAML

from pipeline.cases.prepare import prepare
from pipeline.cases.preprocess import Preprocess
from pipeline.check import check
from pipeline.errors import BadInput
from pipeline.params import Params, load_params
from pipeline.project.start import start
from pipeline.proposals.samplers.tta import TTA
from pipeline.segmenter.imported.nnunet import NnUNetFolder
from pipeline.segmenter.imported.nnunet_network import network_of
from pipeline.segmenter.seen import Seen
from pipeline.store.cases import CaseStore
from segpref import command
from tests.fixtures.phantoms import write_nnunet
from tests.fixtures.results_folder import results_folder


def pictures(root: Path, **more: Any) -> Path:
    """28 pictures with a mask and 4 without; and a 2D model of two folds."""
    write_nnunet(root / "raw/Dataset001_Balls", cases=32, ending=".png", unlabelled=4)
    return results_folder(root / "raw/nnUNetTrainer__nnUNetPlans__2d", (16, 16), (1.0, 1.0), **more)


def volumes(root: Path, spacing: tuple[float, ...]) -> Path:
    """Volumes of 1 x 0.5 x 2 mm; and a 3D model of plans with this spacing, z first."""
    write_nnunet(root / "raw/Dataset001_Balls", cases=28)
    name = "nnUNetTrainer__nnUNetPlans__3d_fullres"
    return results_folder(root / "raw" / name, (4, 8, 8), spacing, schemes=("CTNormalization",))


def started(root: Path, model: Path, name: str = "project") -> tuple[list[str], Params]:
    folder = root / name
    return start(folder, root / "raw/Dataset001_Balls", model), load_params(folder / "params.yaml")


@pytest.mark.parametrize("kind", ["pictures", "volumes", "other spacing"])
def test_the_base_of_the_project_is_the_model(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`preprocess: plans`, and in a comment the block, or the stage `base` would refuse the cases."""
    spacing = {"volumes": (2.0, 0.5, 1.0), "other spacing": (2.0, 1.0, 1.5)}.get(kind)
    model = volumes(tmp_path, spacing) if spacing else pictures(tmp_path)
    # Inside the folder of the project, paths are relative, so that the project can be moved.
    line = [str(tmp_path), "--data", str(tmp_path / "raw/Dataset001_Balls"), "--model", str(model)]
    done = CliRunner().invoke(command("init"), line)
    assert done.exit_code == 0, done.output
    monkeypatch.chdir(tmp_path)
    params = load_params(Path("params.yaml"))
    assert params.model == model.relative_to(tmp_path)
    expected = {"kind": "nnunet", "folds": (0, 1), "base_fold": 0, "mirror": True, "checkpoint": "final"}
    assert isinstance(params.base, NnUNetFolder)
    assert params.base.model_dump() == expected
    assert params.preprocess == "plans"
    prepare(params.data, params.preprocessing, params.splits, tmp_path / "cases", params.execution)
    cases = CaseStore(tmp_path / "cases")
    above = Path("params.yaml").read_text().split("\npreprocess: plans\n")[0].split("\n\n# As in nnU-Net: ")[1]
    block = re.sub("^# ? ?", "", above.split("was:\n")[1], flags=re.M)
    told = Preprocess.model_validate_json(json.dumps(YAML(typ="safe").load(block)))
    assert told.spacing == (spacing and spacing[::-1])
    assert told.model_dump(mode="json") == cases.info["preprocess"]
    assert check(params, cases)
    plans, mirrored = params.base.planned(params.model)
    plans.check(cases)
    assert network_of(plans, cases, mirrored).mirror == params.augmentation.flips


def test_a_folder_of_another_name_has_its_block_written(tmp_path: Path) -> None:
    """Of two configurations the checkpoint names one, and `prepare` reads no checkpoint."""
    model = pictures(tmp_path).rename(tmp_path / "raw/model")
    plans = json.loads((model / "plans.json").read_text())
    plans["configurations"]["3d_fullres"] = {}
    (model / "plans.json").write_text(json.dumps(plans))
    _, params = started(tmp_path, model)
    assert params.preprocess == Preprocess(resample="nnunet")


def test_knobs_follow_from_the_plans(tmp_path: Path) -> None:
    """A step of 12 windows is 6 pool images and 6 labelled cases. Flipped views would repeat the mirrored base."""
    model = pictures(tmp_path, batch_size=12)
    for file in model.glob("fold_*/*.pth"):
        torch.save(torch.load(file, weights_only=False) | {"inference_allowed_mirroring_axes": (1,)}, file)
    said, params = started(tmp_path, model)
    assert params.model == model.resolve()
    assert said[-2:] == [
        "model: PlainConvUNet of nnU-Net, windows of 16x16, folds 0, 1",
        f"check: copy splits_final.json of the training into {model} and make the project again: without the file, "
        "measures are too good on cases of the training, and no judge learns",
    ]
    assert any(line.endswith("flips along axis 1") for line in said)
    assert params.augmentation.flips == (1,)
    assert (params.training.images, params.training.labelled) == (6, 6)
    assert not [one for one in params.propose.samplers.values() if isinstance(one, TTA)]
    assert "pairwise" not in params.judges


def listed(model: Path, count: int) -> None:
    """`splits_final.json` of two folds, which held out half of the first `count` cases each."""
    ids = [f"case_{number:02d}" for number in range(count)]
    one, other = ids[: count // 2], ids[count // 2 :]
    (model / "splits_final.json").write_text(json.dumps([{"train": other, "val": one}, {"train": one, "val": other}]))


def test_cases_of_the_training_are_labelled(tmp_path: Path) -> None:
    """Of 28 cases with a mask, 16 are of the training. Of the other 12, 4 are of validation, and 8 of test.

    The 4 cases without a mask are the pool.
    """
    model, data = pictures(tmp_path), tmp_path / "raw/Dataset001_Balls"
    listed(model, 16)
    said, params = started(tmp_path, model)
    table = tmp_path / "project/cases_of_training.csv"
    assert said[-1] == (
        f"to do: copy {table} to {data}: the table keeps the 16 cases of the model's training out of validation and "
        "test"
    )
    assert params.pairs["favourite"].judge == "pairwise"
    with pytest.raises(BadInput, match=r"cases_of_training.csv: expected a CSV file in UTF-8, found none"):
        prepare(params.data, params.preprocessing, params.splits, tmp_path / "cases", params.execution)
    shutil.copy(table, data)
    prepare(params.data, params.preprocessing, params.splits, tmp_path / "cases", params.execution)
    cases = CaseStore(tmp_path / "cases")
    assert {case.case_id for case in cases.split("labelled")} == {f"case_{number:02d}" for number in range(16)}
    assert {split: len(cases.split(split)) for split in ("pool", "validation", "test")} == {
        "pool": 4,
        "validation": 4,
        "test": 8,
    }


def test_some_cases_that_a_single_fold_held_out_are_labelled(tmp_path: Path) -> None:
    """The fold was trained on 10 of 20 listed cases, and held out 10, of which 2 are labelled. 16 are measured."""
    model, data = pictures(tmp_path), tmp_path / "raw/Dataset001_Balls"
    shutil.rmtree(model / "fold_1")
    listed(model, 20)
    said, params = started(tmp_path, model)
    assert said[-1].endswith(
        "the table keeps the 10 cases of the model's training and 2 cases that a fold held out, from which judges "
        "learn, out of validation and test"
    )
    shutil.copy(tmp_path / "project/cases_of_training.csv", data)
    prepare(params.data, params.preprocessing, params.splits, tmp_path / "cases", params.execution)
    cases = CaseStore(tmp_path / "cases")
    assert params.pairs["favourite"].judge == "pairwise"
    check(params, cases)
    assert isinstance(params.base, NnUNetFolder)
    assert params.base.held_out(params.model, cases) == {"case_00": "fold_0", "case_01": "fold_0"}
    assert [len(cases.split(split)) for split in ("labelled", "validation", "test")] == [12, 6, 10]


def test_the_table_of_data_without_the_training_is_named_too(tmp_path: Path) -> None:
    """The data are 10 cases that the fold held out, of which 2 are labelled, and cases that the lists do not name."""
    model = pictures(tmp_path)
    shutil.rmtree(model / "fold_1")
    split = {"train": ["other_0", "other_1"], "val": [f"case_{number:02d}" for number in range(10)]}
    (model / "splits_final.json").write_text(json.dumps([split]))
    said, params = started(tmp_path, model)
    assert said[-1].endswith(
        "the table keeps 2 cases that a fold held out, from which judges learn, out of validation and test"
    )
    assert "judges learn." in (tmp_path / "project/params.yaml").read_text()
    assert "pairwise" in params.judges


def test_a_fold_of_all_cases_teaches_no_judge(tmp_path: Path) -> None:
    model = pictures(tmp_path, numTraining=16)
    shutil.rmtree(model / "fold_1")
    (model / "fold_0").rename(model / "fold_all")
    listed(model, 16)
    _, params = started(tmp_path, model)
    assert params.splits.labelled == 16
    assert params.pairs["favourite"].judge == "agreement"


def test_an_export_of_a_student_says_itself_what_it_has_seen(tmp_path: Path) -> None:
    """Lists of nnU-Net beside seen.json are those of another model."""
    model = pictures(tmp_path)
    Seen().save(model)
    listed(model, 16)
    said, params = started(tmp_path, model)
    assert said[-1].startswith(f"check: {model / 'seen.json'} lists the images that the model has seen: give them the")
    assert params.data.case_table is None
    assert "pairwise" not in params.judges


def test_cases_of_the_training_alone_cannot_be_divided(tmp_path: Path) -> None:
    model = pictures(tmp_path)
    listed(model, 26)
    said, params = started(tmp_path, model)
    assert said[-1].startswith("check: 26 of 28 cases with a mask are of the training of these folds, so they cannot")
    assert params.data.case_table is None


def test_a_single_fold_of_the_best_weights(tmp_path: Path) -> None:
    """A base without members has no ensemble, and its mean is the base itself."""
    model = pictures(tmp_path)
    for fold in (0, 1):
        (model / f"fold_{fold}/checkpoint_final.pth").rename(model / f"fold_{fold}/checkpoint_best.pth")
    (model / "fold_0").rename(model / "fold_all")
    _, params = started(tmp_path, model)
    assert params.base is not None
    found = params.base.model_dump()
    assert (found["folds"], found["base_fold"], found["checkpoint"]) == ((1,), 1, "best")
    assert set(params.propose.samplers) == {"dropout", "mean"}
    assert [params.students[name].proposals for name in ("imitate", "rn_dpo")] == [["mean fitted"]] * 2
    assert "mean_fitted" not in params.students
    (model / "fold_1").rename(tmp_path / "fold_1")
    _, params = started(tmp_path, model, "another")
    assert params.base is not None
    assert params.base.model_dump()["folds"] == ("all",)


def test_sided_classes_are_not_flipped_although_nnunet_mirrors_them(tmp_path: Path) -> None:
    model = pictures(tmp_path)
    file = tmp_path / "raw/Dataset001_Balls/dataset.json"
    file.write_text(file.read_text().replace('"ball"', '"left kidney"'))
    _, params = started(tmp_path, model)
    assert params.augmentation.flips == ()


def bad(root: Path, kind: str) -> Path:
    model = pictures(root)
    match kind:
        case "nothing":
            return root / "nowhere"
        case "one above":
            return model.parent
        case "no fold":
            for fold in (0, 1):
                (model / f"fold_{fold}/checkpoint_final.pth").unlink()
        case "weights":
            return model / "fold_0/checkpoint_final.pth"
        case "model folder":
            (root / "model").mkdir()
            (root / "model/network.json").touch()
            return root / "model"
        case "bundle":
            (root / "bundle/configs").mkdir(parents=True)
            return root / "bundle"
        case "channels":
            return results_folder(root / "two", (16, 16), (1.0, 1.0), schemes=("ZScoreNormalization",) * 2)
        case "classes":
            return results_folder(root / "three", (16, 16), (1.0, 1.0), classes=3)
        case "volumes":
            return results_folder(root / "3d", (4, 8, 8), (1.0, 1.0, 1.0))
    return model


FAULTS = {
    "nothing": "expected the results folder TRAINER__PLANS__CONFIGURATION of nnU-Net v2, found nothing; correct the p",
    "one above": "found the folder of nnUNetTrainer__nnUNetPlans__2d; give --model .*/nnUNetTrainer__nnUNetPlans__2d",
    "no fold": "found plans without a checkpoint fold_0/checkpoint_final.pth or checkpoint_best.pth",
    "weights": r"found a file \(kinds 'checkpoint' and 'program'\); make the project without --model, then set `model`",
    "model folder": r"found a model folder of segpref \(kind 'checkpoint'\); make the project without --model",
    "bundle": r"found a MONAI bundle \(kind 'bundle'\); make the project without --model",
    "channels": r"expected data with the channels of the model \(channel_0, channel_1\), found MR0; give the data",
    "classes": r"expected data with the classes of the model \(background, class_1, class_2\), found background, ball",
    "volumes": "found a network of 3D windows, and 2D images in the data",
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_model_that_makes_no_project_is_named(kind: str, tmp_path: Path) -> None:
    model = bad(tmp_path, kind)
    with pytest.raises(BadInput, match=FAULTS[kind]):
        started(tmp_path, model)
    assert not (tmp_path / "project").exists()


def test_a_model_needs_its_data_and_its_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = pictures(tmp_path)
    with pytest.raises(BadInput, match="--model: expected the data of the model too, found none; give --data"):
        start(tmp_path / "project", None, model)
    for name in [name for name in sys.modules if name.startswith("dynamic_network_architectures")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "dynamic_network_architectures", None)
    with pytest.raises(BadInput, match=r"run `pip install 'segpref\[nnunet\]'`"):
        started(tmp_path, model)
