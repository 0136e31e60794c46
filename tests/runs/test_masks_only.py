"""Preferences between masks of other tools, without any model: by hand, and all stages as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import polars as pl
import pytest
from PIL import Image

from pipeline.compute import Compute
from pipeline.errors import BadInput
from pipeline.execution import Execution, Runtime
from pipeline.proposals import propose as proposals
from pipeline.proposals.knobs import Propose
from pipeline.proposals.propose import propose
from pipeline.proposals.samplers.imported import Imported, Masks
from pipeline.proposals.samplers.morphology import Morphology
from pipeline.proposals.samplers.threshold import Threshold
from pipeline.segmenter.augmentation import Augmentation
from pipeline.segmenter.base import train_base
from pipeline.store import schema
from pipeline.store.cases import CaseStore
from pipeline.store.proposals import ProposalStore
from pipeline.store.tables import read_table
from tests.fixtures.builders import case_store
from tests.fixtures.chain import TINY, invoke

ONE = Execution(scheduler="synchronous", workers=1, progress="none")


def proposed(cases: CaseStore, knobs: Propose) -> ProposalStore:
    """Proposals without a model, below the current folder."""
    train_base(cases, None, Augmentation(), Runtime(Compute(), 0, ONE), Path("base"), Path("history.csv"))
    propose(cases, Path("base"), knobs, Path("out"), Runtime(Compute(), 0, ONE))
    return ProposalStore(Path("out"))


def masks_only(folder: Path, **sources: list[list[int]]) -> Propose:
    """Each source says the same of the pool's case c1, 4x4: these rows, repeated."""
    for source, rows in sources.items():
        (folder / source).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.resize(np.array(rows, np.uint8), (4, 4))).save(folder / source / "c1.png")
    knobs = {name: Masks(path=name, file="{case_id}.png") for name in sources}
    samplers = {"tools": Imported(kind="imported", sources=knobs)}
    return Propose(samplers=samplers, splits=("pool",), imports=folder)


@pytest.fixture
def one_case(tmp_path, monkeypatch) -> CaseStore:
    monkeypatch.chdir(tmp_path)
    labels = [np.zeros((6, 6), np.uint8), np.zeros((4, 4), np.uint8)]
    return case_store(tmp_path / "cases", labels, ["labelled", "pool"])


def test_masks_alone_by_hand(one_case, tmp_path):
    """Rows 0 1 1 1, 0 0 1 255 and 0 0 1 0, 4 times. Slot 0 is the first source. Voxels that are 255 are in no class
    and in no D: first and second differ in one column. Second and third agree wherever both are known, but are two
    masks. Dice to slot 0, where both are known: 2*4/(8+4) = 2/3 and 2*4/(12+4) = 1/2.

    Votes for class 1: 0, 1 of 3, 3 of 3, 1 of 2.
    """
    knobs = masks_only(tmp_path / "masks", a=[[0, 1, 1, 1]], b=[[0, 0, 1, 255]], c=[[0, 0, 1, 0]])
    found = proposed(one_case, knobs)
    rows = found.table.sort("proposal")
    assert rows["sampler"].to_list() == ["tools"] * 3
    assert rows["setting"].to_list() == ["a", "b", "c"]
    assert rows["voxels"].to_list() == [[4, 12], [8, 4], [12, 4]]
    assert rows["dice_to_base"].to_list() == pytest.approx([1, 2 / 3, 1 / 2])
    assert rows["duplicate_of"].to_list() == [None, None, None]
    case = one_case.all[1]
    assert found.disagreement(case).tolist() == [[0, 4, 8], [4, 0, 0], [8, 0, 0]]
    assert (found.probability(case)[1, 0] * 255).tolist() == pytest.approx([0, 85, 255, 128])


def test_the_same_mask_twice_is_a_duplicate(one_case, tmp_path):
    knobs = masks_only(tmp_path / "masks", a=[[0, 1, 1, 255]], b=[[0, 0, 1, 1]], c=[[0, 1, 1, 255]])
    found = proposed(one_case, knobs)
    assert found.table.sort("proposal")["duplicate_of"].to_list() == [None, None, 0]


@pytest.mark.parametrize(
    ("samplers", "message"),
    [
        ({}, r"expected a first sampler of kind 'imported', because base is null, found the kinds \[\]; import"),
        ({"t": Threshold(kind="threshold")}, r"expected a first sampler of kind 'imported'"),
        ({"m": Morphology(kind="morphology")}, r"because base is null, found the kinds \['morphology'\]"),
    ],
)
def test_without_a_model_masks_come_first(one_case, tmp_path, samplers, message):
    with pytest.raises(BadInput, match=message):
        proposed(one_case, Propose(samplers=samplers))


def test_one_imported_mask_is_no_choice(one_case, tmp_path):
    knobs = masks_only(tmp_path / "masks", a=[[0, 1, 1, 1]])
    with pytest.raises(
        BadInput, match=r"expected at least two proposals per case, found one imported mask; add a source"
    ):
        proposed(one_case, knobs)
    later = knobs.model_copy(update={"samplers": {**knobs.samplers, "t": Threshold(kind="threshold")}})
    with pytest.raises(BadInput, match=r"propose.samplers.t: expected a base segmenter, found base: null"):
        proposed(one_case, later)


def test_work_on_other_masks_is_not_resumed(one_case, tmp_path, monkeypatch, capsys):
    """A run breaks behind the masks, which then change: what was done of the old ones is not used."""
    monkeypatch.setattr(proposals, "write_table", lambda *_: 1 / 0)
    knobs = masks_only(tmp_path / "masks", a=[[0, 1, 1, 1]], b=[[0, 0, 1, 1]])
    with pytest.raises(ZeroDivisionError):
        proposed(one_case, knobs)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    masks_only(tmp_path / "masks", b=[[1, 1, 0, 0]])
    found = proposed(one_case, knobs)
    assert found.masks(one_case.all[1])[1, 0].tolist() == [1, 1, 0, 0]
    assert "resuming" not in capsys.readouterr().err


# ---- as a user runs it -----------------------------------------------------------------------------------------

AFFINE = np.diag([1.5, 1.5, 3.0, 1.0])


def organs(space: tuple[int, ...], start: int, width: int = 4) -> np.ndarray:
    """Class 1 in columns `start` to `start + width`, class 2 in the two columns behind it; rows 2 to 6."""
    label = np.zeros(space, np.uint8)
    label[2:6, start : start + width] = 1
    label[2:6, start + width : start + width + 2] = 2
    return label


def save(values: np.ndarray, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".png":
        Image.fromarray(values).save(file)
    else:
        nibabel.save(nibabel.Nifti1Image(values, AFFINE), file)


def raw_data(folder: Path, space: tuple[int, ...]) -> dict[str, Any]:
    """Ten images, the first four with a mask, as pictures (2D) or volumes (3D); the `data` block that reads them."""
    ids = [f"case_{i}" for i in range(10)]
    for number, case_id in enumerate(ids):
        truth = organs(space, number % 4)
        image = truth * 80 + np.arange(space[1], dtype=np.uint8)[:, None].T.reshape(1, -1, *[1] * (len(space) - 2))
        image = image.astype(np.uint8)
        if len(space) == 2:
            save(image, folder / f"images/{case_id}.png")
            if number < 4:
                save(truth, folder / f"masks/{case_id}.png")
        else:
            save(image, folder / f"images/{case_id}.nii.gz")
            save(truth, folder / f"labels/{case_id}.nii.gz")
    if len(space) == 2:
        return {"kind": "folders", "path": "raw", "classes": ["background", "liver", "tumour"]}
    index = {
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "liver", "2": "tumour"},
        "training": [{"image": f"images/{i}.nii.gz", "label": f"labels/{i}.nii.gz"} for i in ids[:4]],
        "test": [f"images/{i}.nii.gz" for i in ids[4:]],
    }
    (folder / "dataset.json").write_text(json.dumps(index))
    return {"kind": "decathlon", "path": "raw"}


def tools(folder: Path, space: tuple[int, ...]) -> dict[str, Any]:
    """Three sources: the truth with a narrower class 1; the truth with other numbers; and one that is far off."""
    ending = "png" if len(space) == 2 else "nii.gz"
    for number in range(10):
        case_id, start = f"case_{number}", number % 4
        narrow, exact, off = organs(space, start, 3), organs(space, start), organs(space, start + 5)
        save(np.array([0, 5, 7], np.uint8)[exact], folder / f"numbered/{case_id}_seg.{ending}")
        save(off, folder / f"off/{case_id}.{ending}")
        for name, label in (("liver", 1), ("tumour", 2)):
            save((narrow == label).astype(np.uint8), folder / f"total/{case_id}/{name}.nii.gz")
    return {
        "total": {"path": "total", "classes": {"liver.nii.gz": 1, "tumour.nii.gz": 2}},
        "numbered": {"path": "numbered", "file": f"{{case_id}}_seg.{ending}", "values": {"5": 1, "7": 2}},
        "off": {"path": "off", "file": f"{{case_id}}.{ending}"},
    }


@pytest.mark.parametrize("space", [(8, 12), (8, 12, 3)], ids=["pictures", "volumes"])
def test_masks_of_three_tools_become_pairs(space, tmp_path, monkeypatch):
    """No model and no code: proposals, judges, panel, audit and pairs, from files and params.yaml alone.

    The tool that is off is rejected for one of the others, in every case of the pool. Of the
    validation cases the second tool has the truth: true Dice 1. The first has class 1 in 3 of 4 columns (2*3/7), and
    class 2 one column to the left (2*1/4): (6/7 + 1/2) / 2 = .679.
    """
    monkeypatch.chdir(tmp_path)
    params = {
        **TINY,
        "data": raw_data(Path("raw"), space),
        "splits": {"labelled": 0, "pool": 0, "validation": 4, "test": 0},
        "base": None,
        "propose": {
            "imports": "tools",
            "samplers": {
                "tools": {"kind": "imported", "sources": tools(Path("tools"), space)},
                "changed": {"kind": "morphology", "dilate": [], "largest_component": False, "fill_holes": False},
                "consensus": {"kind": "consensus", "of": ["majority"]},
            },
        },
        "students": {},
    }
    # JSON is YAML, and keeps the order of the samplers.
    Path("params.yaml").write_text(json.dumps(params))
    inputs = "--cases data/cases --proposals data/proposals"
    invoke("python -m stages.prepare --out data/cases")
    invoke("python -m stages.base --cases data/cases --out models/base --history history/base.csv")
    invoke("python -m stages.propose --cases data/cases --base models/base --out data/proposals")
    for judge in params["judges"]:
        invoke(f"python -m stages.judge {judge} {inputs} --out data/scores/{judge}.parquet")
    invoke(f"python -m stages.panel {inputs} --scores data/scores --out data/panel.parquet")
    invoke(f"python -m stages.audit {inputs} --panel data/panel.parquet --out audit")
    panel_and_proposals = "--panel data/panel.parquet --proposals data/proposals"
    invoke(f"python -m stages.mine mined {panel_and_proposals} --out data/pairs/mined.parquet")

    found = ProposalStore(Path("data/proposals")).table.filter(case_id="case_7").sort("proposal")
    assert found.select("sampler", "setting").rows() == [
        ("tools", "total"),
        ("tools", "numbered"),
        ("tools", "off"),
        ("changed", "erode=1"),
        ("consensus", "majority"),
    ]
    panel = read_table(Path("data/panel.parquet"), schema.panel(params["judges"]))
    true = panel.filter(split="validation").group_by("proposal").agg(pl.col("true_dice").unique()).sort("proposal")
    assert [values[0] for values in true["true_dice"][:2]] == pytest.approx([(6 / 7 + 1 / 2) / 2, 1])
    assert panel["score_agreement"].null_count() == 0
    assert panel["score_expected_dice"].null_count() == 0
    pairs = read_table(Path("data/pairs/mined.parquet"), schema.PAIRS)
    assert sorted(pairs["case_id"].to_list()) == [f"case_{i}" for i in range(4, 10)]
    assert set(pairs["rejected"]) == {2}
    assert 2 not in set(pairs["chosen"])
