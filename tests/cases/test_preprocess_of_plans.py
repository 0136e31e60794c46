"""Which configuration `preprocess: plans` takes, and which folders it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.cases.preprocess import Preprocess
from pipeline.cases.preprocess_of_plans import PreprocessOfPlans
from pipeline.cases.readers.nnunet import NnUNet
from pipeline.errors import BadInput
from tests.fixtures.phantoms import write_nnunet
from tests.fixtures.results_folder import results_folder


def folder(root: Path, *names: str, called: str = "model") -> PreprocessOfPlans:
    """A results folder whose plans hold configurations of these names."""
    path = results_folder(root / called, (16, 16), (1.0, 1.0))
    plans = json.loads((path / "plans.json").read_text())
    (content,) = plans["configurations"].values()
    plans["configurations"] = {name: {**content, "spacing": [number + 1.0] * 2} for number, name in enumerate(names)}
    (path / "plans.json").write_text(json.dumps(plans))
    return PreprocessOfPlans(model=path)


@pytest.mark.parametrize(
    ("names", "called", "spacing"),
    [
        (("2d", "2d_large"), "nnUNetTrainer__nnUNetPlans__2d_large", (2.0, 2.0)),
        (("2d", "2d_large"), "2d", None),
        (("2d",), "model", None),
        (("2d",), "nnUNetTrainer__nnUNetPlans__3d_fullres", None),
    ],
)
def test_the_configuration_is_named_by_the_folder_or_the_only_one(tmp_path, names, called, spacing):
    """Pictures have no spacing, and plans with edges of 1 ask for none."""
    sources = NnUNet(path=write_nnunet(tmp_path / "raw", ending=".png")).scan()
    found = folder(tmp_path, *names, called=called).for_sources(sources)
    assert found == Preprocess(resample="nnunet", spacing=spacing)


def test_folders_that_name_no_configuration_are_refused(tmp_path):
    several = folder(tmp_path, "2d", "2d_large", called="nnUNetTrainer__nnUNetPlans__other")
    expected = (
        r"__other/plans.json: `preprocess: plans` expected one configuration, or a folder TRAINER__PLANS__CONFIGURATION"
        r" that names one of several, found the configurations 2d, 2d_large in the folder 'nnUNet.*__other'; give the "
        "folder the name that nnU-Net gave it, or write a block"
    )
    with pytest.raises(BadInput, match=expected):
        several.for_sources([])
    with pytest.raises(BadInput, match="found the configurations none in the folder 'model'"):
        folder(tmp_path).stamp  # noqa: B018
    with pytest.raises(BadInput, match=r"plans.json: `preprocess: plans` expected the plans of nnU-Net, found no such"):
        PreprocessOfPlans(model=tmp_path / "nowhere").stamp  # noqa: B018
    with pytest.raises(BadInput, match=r"found the folder of model, nnUNet.*; set `model` to the results folder"):
        PreprocessOfPlans(model=tmp_path).stamp  # noqa: B018


def test_plans_of_other_images_are_refused(tmp_path):
    sources = NnUNet(path=write_nnunet(tmp_path / "raw")).scan()
    with pytest.raises(BadInput, match="found a network of 2D windows, and 3D images in the data"):
        folder(tmp_path, "2d").for_sources(sources)
