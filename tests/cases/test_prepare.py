"""From raw data to the case store: order, grids, resume, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

from pipeline.cases import prepare as prepare_module
from pipeline.cases.prepare import _label_notes, prepare
from pipeline.cases.preprocess import Preprocess
from pipeline.cases.readers.decathlon import Decathlon
from pipeline.cases.readers.folders import Folders
from pipeline.cases.readers.nnunet import NnUNet
from pipeline.cases.readers.phantom import Phantom
from pipeline.cases.readers.reader import CaseTable
from pipeline.cases.splits import Splits
from pipeline.errors import BadInput
from pipeline.execution import Execution
from pipeline.lock import WORK
from pipeline.store import schema
from pipeline.store.arrays import open_array
from pipeline.store.cases import CaseStore
from pipeline.store.manifest import MANIFEST, check_manifest, sha256
from pipeline.store.tables import made_by
from tests.fixtures.phantoms import (
    disc,
    poison_labels,
    write_decathlon,
    write_folders,
    write_nifti,
    write_nnunet,
    write_table,
)

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
ALONE = Execution(scheduler="synchronous", workers=1, progress="none")
FEW = Splits(labelled=2, pool="rest", validation=1, test=2)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def prepared(
    reader: Any, out: str = "cases", splits: Splits = FEW, execution: Execution = ALONE, **knobs: Any
) -> CaseStore:
    prepare(reader, Preprocess(**knobs), splits, Path(out), execution)
    return CaseStore(Path(out))


# ---- the store --------------------------------------------------------------------------------------------------


def test_phantom_store_holds_what_the_reader_draws() -> None:
    """40 cases in shards of ceil(40 / 16) = 3; every row finds its own image and label."""
    reader = Phantom(cases=40, size=(16, 20), classes=3)
    splits = Splits(labelled=6, pool="rest", validation=5, test=7)
    cases = prepared(reader, splits=splits)
    assert [len(cases.split(name)) for name in schema.SPLITS] == [6, 22, 5, 7]
    by_id = {source.case_id: source for source in reader.scan()}
    for case in cases.all:
        image, label = reader.read(by_id[case.case_id])
        assert np.array_equal(cases.image(case), Preprocess().image(image, case))
        assert np.array_equal(cases.label(case), label)
        assert case.group == by_id[case.case_id].group
        assert case.spacing_mm == (0.8, 0.8)
    assert [(schema.SPLITS.index(case.split), case.case_id) for case in cases.all] == sorted(
        (schema.SPLITS.index(case.split), case.case_id) for case in cases.all
    )
    assert cases.info == {
        "class_names": ["background", "organ", "core"],
        "channel_names": ["intensity"],
        "kind": "phantom",
        "notes": [],
        "duplicates": [],
        "preprocess": {
            "normalise": "zscore",
            "orientation": None,
            "spacing": None,
            "resize": None,
            "resample": "linear",
        },
        "orientation": None,
        "convert": None,
        "files": None,
        "mask_values": None,
    }
    assert cases.table["sources"].to_list() == [[]] * 40
    assert not (cases.folder / "truth.zarr").exists()
    assert not WORK.exists() or not any(WORK.rglob("*.arrow"))


def test_volumes_are_padded_and_pool_cases_without_label_are_unknown(tmp_path: Path) -> None:
    """One volume is longer: the arrays have its length, and beyond a case is 255; the pool case is 255 throughout."""
    write_decathlon(tmp_path / "raw", cases=6, pool=1)
    longer = np.concatenate([disc((10, 12, 8), 3.5)] * 2)
    write_nifti(tmp_path / "raw/imagesTr/vol_00.nii.gz", longer.astype(np.float32), (1.0, 0.5, 2.0))
    write_nifti(tmp_path / "raw/labelsTr/vol_00.nii.gz", longer, (1.0, 0.5, 2.0))
    cases = prepared(Decathlon(path=tmp_path / "raw"), splits=Splits(labelled=2, pool=0, validation=1, test=2))
    assert cases.padded == (20, 12, 8)
    raw = np.asarray(open_array(cases.folder, schema.LABELS)[:])
    for case in cases.all:
        beyond = raw[case.case].copy()
        beyond[case.space] = 255
        assert (beyond == 255).all()
        assert case.affine is not None
        assert case.original_spacing_mm == case.spacing_mm == (1.0, 0.5, 2.0)
    (pool,) = cases.split("pool")
    assert (pool.case_id, pool.has_label) == ("vol_05", False)
    assert (raw[pool.case] == 255).all()
    with pytest.raises(BadInput, match="case 'vol_05' has no label"):
        cases.label(pool)
    row = cases.table.filter(pl.col("case_id") == "vol_00").row(0, named=True)
    assert row["sources"] == ["imagesTr/vol_00.nii.gz", "labelsTr/vol_00.nii.gz"]
    assert row["sha256"] == [sha256(tmp_path / "raw" / file) for file in row["sources"]]


def test_resampled_cases_keep_their_truth_and_the_way_back(tmp_path: Path) -> None:
    """10 x 12 x 8 voxels of 1 x 0.5 x 2 mm on 5 x 6 x 4 become 2 x 1 x 4 mm; truth is the file's label."""
    reader = Decathlon(path=write_decathlon(tmp_path / "raw"))
    cases = prepared(reader, resize=(5, 6, 4))
    for case, source in zip(sorted(cases.all, key=lambda case: case.case_id), reader.scan(), strict=True):
        assert case.resampled
        assert (case.shape, case.original_shape) == ((5, 6, 4), (10, 12, 8))
        assert case.spacing_mm == (2.0, 1.0, 4.0)
        assert np.array_equal(cases.truth(case), reader.read(source)[1])
        assert cases.label(case).shape == cases.image(case).shape[1:] == (5, 6, 4)


def test_a_working_grid_that_is_the_original_needs_no_truth(tmp_path: Path) -> None:
    cases = prepared(Decathlon(path=write_decathlon(tmp_path / "raw")), resize=(10, 12, 8))
    assert not any(case.resampled for case in cases.all)
    assert not (cases.folder / "truth.zarr").exists()


@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_scheduler_and_path_change_no_byte(scheduler: Any, tmp_path: Path) -> None:
    one = prepared(Folders(path=write_folders(tmp_path / "raw")), "one")
    shutil.copytree(tmp_path / "raw", tmp_path / "moved")
    execution = Execution(scheduler=scheduler, workers=2, progress="none")
    two = prepared(Folders(path=tmp_path / "moved"), "two", execution=execution)
    assert (one.folder / MANIFEST).read_text() == (two.folder / MANIFEST).read_text()
    assert str(tmp_path) not in made_by(one.folder / "cases.parquet")


def test_poisoned_pool_labels_change_only_labels_and_hashes(tmp_path: Path) -> None:
    raw = write_folders(tmp_path / "raw")
    before = prepared(Folders(path=raw), "before")
    pool = [case.case_id for case in before.split("pool")]
    poison_labels(raw, pool)
    after = prepared(Folders(path=raw), "after")
    assert before.table.drop("sha256").equals(after.table.drop("sha256"))
    for old, new in zip(before.all, after.all, strict=True):
        assert np.array_equal(before.image(old), after.image(new))
        assert np.array_equal(before.label(old), after.label(new)) == (old.split != "pool")


def test_groups_and_splits_of_the_table_reach_the_store(tmp_path: Path) -> None:
    raw = write_folders(tmp_path / "raw")
    write_table(raw, "case_id,patient,part,site", "case_00,p,,Oslo", "case_01,p,,", "case_02,,test,")
    table = CaseTable(file="cases.csv", group="patient", split="part", site="site")
    cases = {case.case_id: case for case in prepared(Folders(path=raw, case_table=table)).all}
    assert cases["case_00"].group == cases["case_01"].group == "p"
    assert cases["case_00"].split == cases["case_01"].split
    assert (cases["case_02"].split, cases["case_02"].group) == ("test", "case_02")


def test_cases_in_no_split_are_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reader = Folders(path=write_folders(tmp_path / "raw", cases=8))
    cases = prepared(reader, splits=Splits(labelled=2, pool=1, validation=1, test=1))
    assert len(cases.all) == 5
    assert "splits: 3 of 8 cases are in no split and left out" in capsys.readouterr().err


def test_a_second_run_replaces_the_store(tmp_path: Path) -> None:
    reader = Decathlon(path=write_decathlon(tmp_path / "raw"))
    prepared(reader, resize=(5, 6, 4))
    cases = prepared(reader)
    assert cases.padded == (10, 12, 8)
    assert not (cases.folder / "truth.zarr").exists()
    check_manifest(cases.folder)


# ---- failures ---------------------------------------------------------------------------------------------------


def test_all_bad_cases_are_named_and_a_repaired_set_is_prepared(tmp_path: Path) -> None:
    """Two of 40 cases are bad: both are named, nothing is written; repaired, the store is as without faults."""
    raw = write_folders(tmp_path / "raw", cases=40)
    good = prepared(Folders(path=raw), "good")
    whole = {name: (raw / name).read_bytes() for name in ("masks/case_03.png", "images/case_30.png")}
    Image.fromarray(np.full((20, 24), 9, np.uint8)).save(raw / "masks/case_03.png")
    (raw / "images/case_30.png").write_bytes(whole["images/case_30.png"][:200])
    with pytest.raises(BadInput) as raised:
        prepared(Folders(path=raw), "out")
    message = str(raised.value)
    assert "masks/case_03.png: case 'case_03': expected labels 0 to 1 (and 255 for ignore), found 9" in message
    assert "images/case_30.png: case 'case_30': expected 20 x 24 pixels, found a truncated" in message
    assert not Path("out").exists()
    for name, content in whole.items():
        (raw / name).write_bytes(content)
    repaired = prepared(Folders(path=raw), "out")
    assert (repaired.folder / MANIFEST).read_text() == (good.folder / MANIFEST).read_text()


def test_a_stopped_run_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The reader breaks off at the fifth case; the second run makes the missing shards only, and equal bytes."""
    reader = Phantom(cases=32, size=(16, 16))  # 2 cases in each of 16 shards
    good = prepared(reader, "good")
    read, calls = Phantom.read, []

    def breaks_off(self: Phantom, source: Any) -> Any:
        calls.append(source.case_id)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return read(self, source)

    monkeypatch.setattr(Phantom, "read", breaks_off)
    with pytest.raises(KeyboardInterrupt):
        prepared(reader, "out")
    assert not Path("out").exists()
    resumed = prepared(reader, "out")
    assert len(calls) == 5 + 28
    assert "prepare: resuming, 2 of 16 shards are done" in capsys.readouterr().err
    assert (resumed.folder / MANIFEST).read_text() == (good.folder / MANIFEST).read_text()


def test_a_run_killed_while_publishing_starts_over(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Phantom(cases=20, size=(16, 16))
    good = prepared(reader, "good")
    publish = prepare_module.publish

    def killed(source: Path, target: Path) -> None:
        if source.name == "labels.zarr":
            raise KeyboardInterrupt
        publish(source, target)

    monkeypatch.setattr(prepare_module, "publish", killed)
    with pytest.raises(KeyboardInterrupt):
        prepared(reader, "out")
    monkeypatch.setattr(prepare_module, "publish", publish)
    again = prepared(reader, "out")
    assert (again.folder / MANIFEST).read_text() == (good.folder / MANIFEST).read_text()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_infinite_intensities_are_refused(value: float, tmp_path: Path) -> None:
    write_decathlon(tmp_path / "raw")
    image = np.zeros((10, 12, 8), np.float32)
    image[0, 0, :3] = value
    write_nifti(tmp_path / "raw/imagesTr/vol_02.nii.gz", image, (1.0, 0.5, 2.0))
    message = r"vol_02.nii.gz: case 'vol_02': expected finite intensities, found 3 NaN or infinite voxels; replace"
    with pytest.raises(BadInput, match=message):
        prepared(Decathlon(path=tmp_path / "raw"))


def test_images_among_volumes_are_refused(tmp_path: Path) -> None:
    write_decathlon(tmp_path / "raw")
    write_nifti(tmp_path / "raw/imagesTr/vol_04.nii.gz", np.zeros((10, 12), np.float32))
    with pytest.raises(
        BadInput, match="'vol_04': expected 3 axes like case 'vol_00', found 2; keep images and volumes"
    ):
        prepared(Decathlon(path=tmp_path / "raw"))


def test_labels_that_resampling_leaves_without_a_known_voxel_are_noted(tmp_path: Path) -> None:
    rows = pl.DataFrame(
        {"case_id": ["a", "b"], "has_label": True, "foreground": True, "only_ignore": False, "lost": [False, True]}
    )
    reader = Folders(path=tmp_path)
    (note,) = _label_notes(rows, reader)
    assert note.startswith("labels: 1 cases hold only 255 (ignore) on the working grid, e.g. 'b'")
    assert _label_notes(rows[:1], reader) == []


def test_advice_is_never_what_is_set_already(tmp_path: Path) -> None:
    """With `foreground_above`, masks without foreground are too dark; nnU-Net's layout has no such knob."""
    raw = write_folders(tmp_path / "raw")
    for file in (raw / "masks").iterdir():
        Image.fromarray(np.asarray(Image.open(file)) * np.uint8(100)).save(file)
    with pytest.raises(BadInput, match=r"found no pixel brighter than 127 \(`foreground_above`\); lower the") as caught:
        prepared(Folders(path=raw, foreground_above=127))
    assert "set `foreground_above" not in str(caught.value)
    write_nnunet(tmp_path / "nnunet", ending=".png", unlabelled=1)
    for file in (tmp_path / "nnunet/labelsTr").iterdir():
        Image.fromarray(np.asarray(Image.open(file)) * np.uint8(255)).save(file)
    with pytest.raises(BadInput, match="expected labels 0 to 1, found 255"):
        prepared(NnUNet(path=tmp_path / "nnunet"))


def test_notes_on_the_case_table_are_said_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The report reads them from `cases.json`."""
    root = write_folders(tmp_path / "raw")
    write_table(root, "case_id,patient", "case_00,NA", "case_01,nan", "case_02,7", "case_03,7.0")
    reader = Folders(path=root, case_table=CaseTable(file="cases.csv", group="patient"))
    cases = prepared(reader)
    first, second = cases.info["notes"][:2]
    assert "column 'patient': 2 cells such as 'NA' (row 2) are read as unknown" in first
    assert "'7' (row 4) and '7.0' (row 5) may be one patient written in two ways" in second
    assert capsys.readouterr().err.splitlines()[:2] == [first, second]
    assert {case.group for case in cases.all if case.case_id in ("case_00", "case_01")} == {"case_00", "case_01"}


@pytest.mark.parametrize("name", ["Ignore", "ignore", "IGNORE", " Ignore ", "ignored", "ignore_label"])
@pytest.mark.parametrize("kind", ["nnunet", "decathlon", "folders"])
def test_a_class_that_sounds_like_ignore_is_asked_about(name: str, kind: str, tmp_path: Path) -> None:
    """Only `ignore` is nnU-Net's name for voxels of no known class. Any other spelling would be a class to learn."""
    reader: Any
    if kind == "nnunet":
        reader = NnUNet(path=write_nnunet(tmp_path / "raw", cases=6))
        index = {"background": 0, "ball": 1, name: 2}
    elif kind == "decathlon":
        reader = Decathlon(path=write_decathlon(tmp_path / "raw"))
        index = {"0": "background", "1": "ball", "2": name}
    else:
        reader = Folders(path=write_folders(tmp_path / "raw"), classes=("background", "disc", name))
    if kind != "folders":
        file = tmp_path / "raw/dataset.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "labels": index}))
    if kind == "nnunet" and name == "ignore":
        assert prepared(reader).info["class_names"] == ["background", "ball"]
        return
    with pytest.raises(
        BadInput,
        match=f"raw: expected names of classes, found '{name}'; voxels of no known class are 255, or in nnU-Net's "
        "dataset.json the label 'ignore': store them so, or rename the class if it is one",
    ):
        prepared(reader)


def test_masks_stored_as_0_and_255_are_told_from_ignore(tmp_path: Path) -> None:
    raw = write_folders(tmp_path / "raw")
    for file in (raw / "masks").iterdir():
        Image.fromarray(np.asarray(Image.open(file)) * np.uint8(255)).save(file)
    with pytest.raises(BadInput, match=r"expected foreground in at least one label, .* set `foreground_above: 127`"):
        prepared(Folders(path=raw))
    cases = prepared(Folders(path=raw, foreground_above=127))
    assert np.array_equal(
        cases.label(cases.all[0]), np.asarray(Image.open(raw / "masks" / f"{cases.all[0].case_id}.png")) > 0
    )


def test_repeated_class_names_and_empty_sets_are_refused(tmp_path: Path) -> None:
    raw = write_decathlon(tmp_path / "raw")
    with pytest.raises(BadInput, match="expected 2 to 255 classes with different names"):
        prepared(Folders(path=write_folders(tmp_path / "pictures"), classes=("a", "a")))
    index = json.loads((raw / "dataset.json").read_text())
    (raw / "dataset.json").write_text(json.dumps({**index, "training": []}))
    with pytest.raises(BadInput, match="raw: expected cases, found none"):
        prepared(Decathlon(path=raw))


# ---- real data --------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is not here")
def test_hippocampus_is_prepared_by_person() -> None:
    table = CaseTable(file="groups.csv", group="group")
    reader = Decathlon(path=DATA / "Task04_Hippocampus", case_table=table)
    cases = prepared(reader, splits=Splits(labelled=4, pool=4, validation=4, test=4))
    assert len(cases.all) == 16
    assert len({(case.group, case.split) for case in cases.all}) == len({case.group for case in cases.all})
    image = cases.image(cases.all[0])
    assert abs(float(image.mean())) < 1e-4
    assert set(np.unique(cases.label(cases.all[0]))) == {0, 1, 2}
