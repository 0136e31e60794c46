"""MONAI bundles as the base: the prediction that MONAI makes of them, and nothing run or left out unasked."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from pipeline.cases.prepare import prepare
from pipeline.cases.preprocess import Preprocess
from pipeline.cases.readers.decathlon import Decathlon
from pipeline.cases.splits import Splits
from pipeline.compute import Compute
from pipeline.errors import BadInput
from pipeline.evaluation.prediction import NetworkPrediction
from pipeline.execution import Execution
from pipeline.segmenter.models import Model
from pipeline.store.cases import CaseStore
from pipeline.store.manifest import write_json
from tests.fixtures.builders import case_store
from tests.fixtures.foreign import SPLITS, discs, imported, network, write_bundle
from tests.fixtures.phantoms import disc, write_decathlon

ONE = Execution(scheduler="synchronous", workers=1, progress="none")
NETWORK = {
    "_target_": "monai.networks.nets.UNet",
    "spatial_dims": 2,
    "in_channels": 1,
    "out_channels": 2,
    "channels": [4, 8],
    "strides": [2],
}
ZSCORE = {"_target_": "NormalizeIntensityd", "keys": "image", "channel_wise": True}
ARGMAX = {"_target_": "AsDiscreted", "keys": "pred", "argmax": True}
RANGE = {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": -1, "a_max": 3, "b_min": 0, "b_max": 1}

RESIZE = {"_target_": "Resized", "keys": "image", "spatial_size": [10, 10]}


def steps(*transforms: dict[str, Any]) -> dict[str, Any]:
    return {"_target_": "Compose", "transforms": list(transforms)}


def config(*before: dict[str, Any], after: tuple[dict[str, Any], ...] = (), **blocks: Any) -> dict[str, Any]:
    content: dict[str, Any] = {"network_def": NETWORK}
    content |= {"preprocessing": steps(*before)} if before else {}
    content |= {"postprocessing": steps(*after)} if after else {}
    return {**content, **blocks}


def refused(folder: Path, content: dict[str, Any], cases: CaseStore | None = None, **knobs: Any) -> str:
    bundle = write_bundle(folder / "bundle", content)
    with pytest.raises(BadInput) as caught:
        imported(folder, cases or discs(folder / "cases"), bundle, kind="bundle", **knobs)
    assert not (folder / "models").exists()
    return str(caught.value)


# ---- the same prediction as in MONAI ---------------------------------------------------------------------------

VOLUMES: dict[str, Any] = {
    "network_def": {
        "_target_": "SegResNet",
        "spatial_dims": "@axes",
        "in_channels": 1,
        "out_channels": "@classes",
        "init_filters": 4,
        "blocks_down": [1, 1],
        "blocks_up": [1],
        "norm": ["GROUP", {"num_groups": 2}],
    },
    "axes": 3,
    "classes": 3,
    "device": "$torch.device('cpu')",
    "network": "$@network_def.to(@device)",
    "preprocessing": steps(
        {"_target_": "LoadImaged", "keys": "image"},
        {"_target_": "EnsureChannelFirstd", "keys": "image"},
        {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
        {"_target_": "Spacingd", "keys": "image", "pixdim": [1.0, 0.5, 2.0], "mode": "bilinear"},
        {**RANGE, "clip": True},
        {"_target_": "EnsureTyped", "keys": "image", "device": "@device"},
    ),
    "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [8, 8, 8], "overlap": 0.5, "mode": "gaussian"},
    "postprocessing": steps(
        {"_target_": "Activationsd", "keys": "pred", "softmax": True},
        {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "image"},
        {**ARGMAX},
        {"_target_": "SaveImaged", "keys": "pred", "output_dir": "$'out' + 'put'"},
    ),
}
PREPARED = Preprocess.model_validate_json(
    json.dumps({"normalise": {"range": [-1.0, 3.0]}, "spacing": [1.0, 0.5, 2.0], "orientation": "RAS"})
)


def test_a_bundle_predicts_as_in_monai(tmp_path, monkeypatch):
    """MONAI's parser, transforms and inferer on the files, against this project's on its prepared cases."""
    monkeypatch.chdir(tmp_path)
    raw = write_decathlon(tmp_path / "raw")
    splits = Splits(labelled=1, pool=1, validation=2, test=2)
    prepare(Decathlon(path=raw), PREPARED, splits, tmp_path / "cases", ONE)
    cases = CaseStore(tmp_path / "cases")
    parser = ConfigParser(json.loads(json.dumps(VOLUMES)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        theirs = parser.get_parsed_content("network_def").eval()
    bundle = write_bundle(tmp_path / "bundle", VOLUMES, theirs.state_dict())
    out = imported(tmp_path, cases, bundle, kind="bundle")
    ours = NetworkPrediction(cases, Model(out), Compute())
    transform, inferer = (parser.get_parsed_content(name) for name in ("preprocessing", "inferer"))
    argmax = parser.get_parsed_content("postprocessing::transforms::2")
    masks = []
    for case in cases.all:
        image = transform({"image": str(raw / f"imagesTr/{case.case_id}.nii.gz")})["image"]
        assert np.abs(np.asarray(image) - cases.image(case)).max() < 1e-5
        with torch.no_grad():
            found = argmax({"pred": inferer(image[None], theirs)[0]})["pred"]
        masks.append(np.asarray(found)[0].astype(np.uint8))
        np.testing.assert_array_equal(ours(case), masks[-1])
    assert set(np.unique(masks)) == {0, 1, 2}


# ---- expressions -----------------------------------------------------------------------------------------------


def test_an_expression_runs_only_where_it_is_trusted(tmp_path):
    """It creates a folder and gives a plain number, which is then stored."""
    ran = tmp_path / "ran"
    code = f"$[__import__('os').mkdir({str(ran)!r}), 1][1]"
    content = config(network_def={**NETWORK, "num_res_units": code})
    said = refused(tmp_path, content)
    assert "configs/inference.json: network_def::num_res_units: '$[__import__" in said
    assert "is an expression, and evaluating it runs code of the bundle; set base.trust: true" in said
    assert not ran.exists()
    with torch.random.fork_rng(devices=[]):
        built = ConfigParser({"net": {**NETWORK, "num_res_units": 1}}).get_parsed_content("net")
    bundle = write_bundle(tmp_path / "trusted", content, built.state_dict())
    out = imported(tmp_path, discs(tmp_path / "cases_too"), bundle, kind="bundle", trust=True)
    assert ran.is_dir()
    assert Model(out).architecture.arguments == {"channels": [4, 8], "strides": [2], "num_res_units": 1}


@pytest.mark.parametrize(
    "place",
    [
        {"network_def": {**NETWORK, "_target_": "$'UNet'"}},
        {"network_def": {**NETWORK, "channels": "@sizes"}, "sizes": "$[4, 8]"},
        {"network_def": {**NETWORK, "channels": "%configs/other.json::sizes"}},
        {"inferer": {"_target_": "SlidingWindowInferer", "roi_size": "$[8] * 2"}},
        {"preprocessing": steps({**ZSCORE, "nonzero": "$1 > 0"})},
        {"preprocessing": steps({**ZSCORE, "_disabled_": "$True"})},
        {"postprocessing": steps({**ARGMAX, "argmax": "$True"})},
    ],
)
def test_expressions_are_refused_wherever_they_are_needed(tmp_path, place):
    assert "is an expression, and evaluating it runs code" in refused(tmp_path, config(**place))


def test_references_to_plain_values_need_no_trust(tmp_path):
    content = config(network_def={**NETWORK, "channels": "@sizes::all"}, sizes={"all": ["@first", 8]}, first=4)
    out = imported(tmp_path, discs(tmp_path / "cases"), write_bundle(tmp_path / "bundle", content), kind="bundle")
    assert Model(out).architecture.arguments["channels"] == [4, 8]
    assert "'@none' refers to nothing" in refused(tmp_path / "2", config(network_def={**NETWORK, "channels": "@none"}))
    circle = config(network_def={**NETWORK, "channels": "@a"}, a="@b", b="@a")
    assert "refers to itself" in refused(tmp_path / "3", circle)


def test_pickled_code_in_the_weights_is_not_run(tmp_path):
    from tests.fixtures.foreign import Canary

    state = {**network().state_dict(), "hook": Canary(tmp_path / "ran")}
    bundle = write_bundle(tmp_path / "bundle", config(), state)  # type: ignore[arg-type]
    with pytest.raises(
        BadInput, match="expected tensors, plain values and NumPy numbers, which load without running code"
    ):
        imported(tmp_path, discs(tmp_path / "cases"), bundle, kind="bundle", trust=True)
    assert not (tmp_path / "ran").exists()


# ---- transforms ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (config(ZSCORE, {"_target_": "CropForegroundd", "keys": "image"}), "'CropForegroundd' is not known here"),
        (config({**ZSCORE, "nonzero": True}), "NormalizeIntensityd with nonzero: True is not known here"),
        (config({**ZSCORE, "shift": 3}), "NormalizeIntensityd with shift is not known here"),
        (config(ZSCORE, RANGE), "'ScaleIntensityRanged' sets normalise a second time"),
        (
            config(ZSCORE, after=({"_target_": "KeepLargestConnectedComponentd"},)),
            "'KeepLargestConnectedComponentd' is",
        ),
        (config(ZSCORE, after=({**ARGMAX, "argmax": False, "threshold": 0.3},)), "AsDiscreted with threshold: 0.3"),
        (
            config(ZSCORE, after=({**ARGMAX, "argmax": False, "threshold": 0.5},)),
            "AsDiscreted with threshold: 0.5 and no Activations with sigmoid: true before it is not known here; list",
        ),
        (
            config(ZSCORE, {"_target_": "Resized", "keys": "image", "spatial_size": [8, 6], "mode": "nearest"}),
            "Resized with mode: nearest",
        ),
        (
            config({**ZSCORE, "keys": ["img", "seg"]}),
            "preprocessing: expected transforms of the key 'image', found img, seg; rename the key",
        ),
        (config(preprocessing="$Compose([])"), "preprocessing: expected a list of transforms"),
        (config(inferer={"_target_": "PatchInferer"}), "inferer: 'PatchInferer' is not known here"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)
def test_what_is_not_known_is_refused_by_name(tmp_path, content, said):
    assert said in refused(tmp_path, content)


def test_what_is_ignored_is_left_out(tmp_path):
    content = config(ZSCORE, {"_target_": "CropForegroundd", "keys": "image"}, inferer={"_target_": "PatchInferer"})
    bundle = write_bundle(tmp_path / "bundle", content)
    imported(tmp_path, discs(tmp_path / "cases"), bundle, kind="bundle", ignore=["CropForegroundd", "inferer"])
    notes = json.loads((tmp_path / "models/base/models.json").read_text())["imported"]["notes"]
    assert notes[0] == "base.ignore leaves out: CropForegroundd, inferer"


def test_a_bundle_of_this_project_comes_back_by_its_weights(tmp_path):
    own = {"_target_": "scripts.transforms.ToWorkingGridd", "spec": "@spec"}
    assert "segpref export NAME --format safetensors" in refused(tmp_path, config(own, ZSCORE))


@pytest.mark.parametrize(
    ("before", "knobs"),
    [
        ([RANGE], {"normalise": {"range": [-1.0, 3.0], "to": [0.0, 1.0], "clip": False}}),
        ([{"_target_": "ScaleIntensity"}], {"normalise": "minmax"}),
        (
            [{"_target_": "NormalizeIntensityd", "subtrahend": 100, "divisor": 50}],
            {"normalise": {"range": [100.0, 150.0], "to": [0.0, 1.0], "clip": False}},
        ),
        ([ZSCORE, {"_target_": "Resized", "spatial_size": [8, 6]}], {"resize": [8, 6]}),
        ([ZSCORE, {"_target_": "Spacingd", "pixdim": [2, 1.5]}], {"spacing": [2.0, 1.5]}),
        ([ZSCORE, {"_target_": "Orientationd", "axcodes": "RAS"}], {"orientation": "RAS"}),
        (
            [{"_target_": "EnsureChannelFirstd"}],
            {"normalise": {"range": [0.0, 1.0], "to": [0.0, 1.0], "clip": False}},
        ),
    ],
    ids=["range", "minmax", "fixed mean", "resize", "spacing", "orientation", "as it is"],
)
def test_another_preparation_is_refused_with_the_block_to_set(tmp_path, before, knobs):
    """The cases are prepared by the defaults: `zscore` on their own grid. The block is one that loads."""
    blocks = re.findall(r"`preprocess: ({.*?})`", refused(tmp_path, config(*before)))
    expected, found = map(Preprocess.model_validate_json, blocks)
    assert expected == Preprocess.model_validate_json(json.dumps(knobs))
    assert found == Preprocess()


def test_transforms_of_other_keys_do_not_count(tmp_path, capsys):
    """The label is resized, the image is not; of two keys, the second mode is that of the image."""
    resize = {"_target_": "Resized", "keys": ["label"], "spatial_size": [8, 6], "mode": "nearest"}
    other = {"_target_": "Activationsd", "keys": "uncertainty", "sigmoid": True}
    bundle = write_bundle(tmp_path / "bundle", config({**ZSCORE, "keys": ["image"]}, resize, after=(other, ARGMAX)))
    assert Model(imported(tmp_path, discs(tmp_path / "cases"), bundle, kind="bundle")).architecture.head == "softmax"
    assert capsys.readouterr().err == ""
    both = {**resize, "keys": ["label", "image"], "mode": ["nearest", "bilinear"]}
    assert '"resize":[8,6]' in refused(tmp_path / "2", config(both, ZSCORE))


@pytest.mark.parametrize(
    ("before", "said"),
    [
        (({**RESIZE, "mode": "bilinear"}, ZSCORE), []),
        ((RESIZE, ZSCORE), ["preprocessing::transforms::0: Resized averages areas, this project interpolates"]),
        (
            (ZSCORE, {**RESIZE, "mode": "bilinear"}),
            ["preprocessing::transforms::1: Resized resamples normalised images, this project normalises resampled"],
        ),
    ],
    ids=["as here", "area", "normalised first"],
)
def test_how_resampling_differs_is_said(tmp_path, monkeypatch, capsys, before, said):
    cases = discs(tmp_path / "cases")
    monkeypatch.setitem(cases.info, "preprocess", Preprocess(resize=(10, 10)).model_dump(mode="json"))
    imported(tmp_path, cases, write_bundle(tmp_path / "bundle", config(*before)), kind="bundle")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(said)
    for line, start in zip(lines, said, strict=True):
        assert line.startswith(f"base: {start}")


def test_pictures_are_turned_over_by_monai(tmp_path):
    """The cases are read from PNG files, which MONAI reads with the width first."""
    load = {"_target_": "LoadImaged", "keys": "image"}
    cases = discs(tmp_path / "cases")
    write_json(cases.folder / "cases.json", {**cases.info, "files": "pictures"})
    cases = CaseStore(cases.folder)
    assert "MONAI reads pictures with the width first" in refused(tmp_path, config(load, ZSCORE), cases)
    upright = config({**load, "reverse_indexing": False}, ZSCORE)
    imported(tmp_path, cases, write_bundle(tmp_path / "2", upright), kind="bundle")


def test_a_bundle_that_states_nothing_is_taken_with_a_note(tmp_path, capsys):
    inferer = {"_target_": "SlidingWindowInferer", "roi_size": [6, 12]}
    bundle = write_bundle(tmp_path / "bundle", config(inferer=inferer))
    out = imported(tmp_path, discs(tmp_path / "cases"), bundle, kind="bundle")
    assert Model(out).architecture.window == (6, 12)
    first, second, third = capsys.readouterr().err.splitlines()
    assert first.startswith("base: inference.json states no preprocessing")
    assert second.startswith("base: windows of larger cases overlap by half with Gaussian blending here, and by 0.25")
    assert third.startswith("base: 5 of 5 cases are smaller than the window [6, 12] and are padded at their ends here")


# ---- heads and networks ----------------------------------------------------------------------------------------


def test_a_sigmoid_of_one_output(tmp_path):
    """Said by the post-processing, or by the one output."""
    net = {**NETWORK, "out_channels": 1}
    after = ({"_target_": "Activationsd", "sigmoid": True}, {"_target_": "AsDiscreted", "threshold": 0.5})
    for turn, content in enumerate((config(network_def=net, after=after), config(network_def=net))):
        folder = tmp_path / str(turn)
        bundle = write_bundle(folder / "bundle", content, network(outputs=1).state_dict())
        out = imported(folder, discs(folder / "cases"), bundle, kind="bundle")
        assert Model(out).architecture.head == "sigmoid"


def test_classes_that_overlap(tmp_path):
    """A sigmoid per class, of two and of three classes."""
    after = ({"_target_": "Activationsd", "sigmoid": True},)
    assert "expected out_channels: 1, for this data and a sigmoid, found 2" in refused(tmp_path, config(after=after))
    cases = case_store(tmp_path / "three", [disc((10, 10), 3)] * 5, SPLITS, classes=3)
    said = refused(tmp_path / "3", config(network_def={**NETWORK, "out_channels": 3}, after=after), cases)
    assert "found a sigmoid per class; overlapping classes are not supported" in said


@pytest.mark.parametrize(
    ("net", "said"),
    [
        ({**NETWORK, "in_channels": 4}, "expected in_channels: 1, for this data and a softmax, found 4"),
        ({**NETWORK, "spatial_dims": 3}, "expected spatial_dims: 2, for this data and a softmax, found 3"),
        ({**NETWORK, "out_channels": 5}, "expected out_channels: 2, for this data and a softmax, found 5"),
        ({**NETWORK, "_target_": "scripts.net.MyNet"}, "expected a network of monai.networks.nets, found 'scripts.net"),
        ({**NETWORK, "_target_": "MyNet"}, "MONAI has no network 'MyNet'"),
        ("$UNet()", "expected a block with the `_target_` of the network, found '$UNet()'"),
    ],
)
def test_networks_that_do_not_fit(tmp_path, net, said):
    assert said in refused(tmp_path, config(network_def=net))


def test_folders_that_are_no_bundle(tmp_path):
    cases = discs(tmp_path / "cases")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=r"expected the folder of a MONAI bundle, found no .*configs/inference.json"):
        imported(tmp_path, cases, tmp_path / "empty", kind="bundle")
    bundle = write_bundle(tmp_path / "bundle", config())
    (bundle / "models/model.pt").rename(bundle / "models/other.pt")
    with pytest.raises(BadInput, match=r"model.safetensors or model.pt, found neither; name the file in base.weights"):
        imported(tmp_path, cases, bundle, kind="bundle")
    imported(tmp_path, cases, bundle, kind="bundle", weights="models/other.pt")


def test_yaml(tmp_path):
    from ruamel.yaml import YAML

    bundle = write_bundle(tmp_path / "bundle", config(ZSCORE))
    content = json.loads((bundle / "configs/inference.json").read_text())
    (bundle / "configs/inference.json").unlink()
    YAML(typ="safe").dump(content, bundle / "configs/inference.yaml")
    imported(tmp_path, discs(tmp_path / "cases"), bundle, kind="bundle")
