"""Data sets of different shapes, spacings and orientations in one store, and sets that say their own splits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, ornt_transform

from pipeline.cases.files import image_file
from pipeline.cases.grid import to_source
from pipeline.cases.nnunet_split import GivenSplit
from pipeline.cases.prepare import prepare
from pipeline.cases.preprocess import Preprocess
from pipeline.cases.readers.decathlon import Decathlon
from pipeline.cases.readers.folders import Folders
from pipeline.cases.readers.nnunet import NnUNet
from pipeline.cases.splits import Splits
from pipeline.errors import BadInput
from pipeline.execution import Execution
from pipeline.store import schema
from pipeline.store.arrays import open_array
from pipeline.store.cases import Case, CaseStore
from pipeline.store.manifest import sha256
from tests.fixtures.phantoms import disc, save_image, write_decathlon, write_index, write_nifti, write_nnunet

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
ALONE = Execution(scheduler="synchronous", workers=1, progress="none")
FEW = Splits(labelled=2, pool="rest", validation=1, test=1)
NONE = Splits(labelled=0, pool="rest", validation=0, test=0)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def prepared(reader: Any, out: str = "cases", splits: Splits = FEW, **knobs: Any) -> CaseStore:
    prepare(reader, Preprocess(**knobs), splits, Path(out), ALONE)
    return CaseStore(Path(out))


def by_id(cases: CaseStore) -> dict[str, Case]:
    return {case.case_id: case for case in cases.all}


def test_the_boxes_of_crops_need_no_label(monkeypatch: pytest.MonkeyPatch) -> None:
    """A label is read once, with the image, and not a second time for the box of the image."""
    read, files = image_file.mask_values, []
    monkeypatch.setattr(image_file, "mask_values", lambda file, *given: files.append(file.name) or read(file, *given))
    prepared(NnUNet(path=write_nnunet(Path("raw"), cases=5)), resample="nnunet")
    assert sorted(files) == [f"case_{number:02d}.nii.gz" for number in range(5)]


def several(root: Path) -> Decathlon:
    """Five volumes, each of its own shape and spacing."""
    names = []
    for number in range(5):
        shape, spacing = (8 + number, 10, 6 - number), (1.0, 0.5 + 0.1 * number, 2.0 + number)
        label = disc(shape, 2.0)
        write_nifti(root / f"i/v{number}.nii.gz", label.astype(np.float32), spacing)
        write_nifti(root / f"l/v{number}.nii.gz", label, spacing)
        names.append({"image": f"i/v{number}.nii.gz", "label": f"l/v{number}.nii.gz"})
    write_index(root, training=names)
    return Decathlon(path=root)


def test_cases_keep_their_own_shapes_and_spacings(tmp_path: Path) -> None:
    """Each volume is at the front of its array, which has the longest of each axis: 12 x 10 x 6."""
    cases = prepared(several(tmp_path / "raw"))
    assert cases.padded == (12, 10, 6)
    for case in cases.all:
        number = int(case.case_id[1:])
        assert case.shape == (8 + number, 10, 6 - number)
        assert case.spacing_mm == pytest.approx((1.0, 0.5 + 0.1 * number, 2.0 + number))
        assert not case.resampled
        assert np.array_equal(cases.label(case), disc(case.shape, 2.0))
        assert cases.image(case).shape == (1, *case.shape)


def test_one_spacing_for_all_and_truth_on_the_grid_of_each_file(tmp_path: Path) -> None:
    """v3 has 11 x 10 x 3 voxels of 1 x 0.8 x 5 mm; on 1 x 1 x 2.5 mm these are 11 x 8 x 6."""
    reader = several(tmp_path / "raw")
    cases = prepared(reader, spacing=(1.0, 1.0, 2.5))
    case = by_id(cases)["v3"]
    assert (case.shape, case.original_shape) == ((11, 8, 6), (11, 10, 3))
    assert case.spacing_mm == pytest.approx((1.0, 1.0, 2.5))
    assert case.original_spacing_mm == pytest.approx((1.0, 0.8, 5.0))
    for source in reader.scan():
        case = by_id(cases)[source.case_id]
        assert np.array_equal(cases.truth(case), reader.read(source)[1])
        assert cases.image(case).shape[1:] == cases.label(case).shape == case.shape


def turned(root: Path, case_id: str, codes: str) -> None:
    """Store this case of `write_decathlon` in another orientation."""
    for folder in ("imagesTr", "labelsTr"):
        path = root / folder / f"{case_id}.nii.gz"
        nifti = nibabel.load(path)
        turn = ornt_transform(nibabel.io_orientation(nifti.affine), axcodes2ornt(codes))
        nibabel.save(nifti.as_reoriented(turn), path)


def test_orientations_become_one_and_truth_stays_on_the_file(tmp_path: Path) -> None:
    """The same data, two volumes stored as SPL and LIA: equal images and labels, truth and way back of each file."""
    plain = prepared(Decathlon(path=write_decathlon(tmp_path / "plain")), "one")
    raw = write_decathlon(tmp_path / "raw")
    turned(raw, "vol_01", "SPL")
    turned(raw, "vol_04", "LIA")
    reader = Decathlon(path=raw)
    with pytest.raises(BadInput, match=r"found RAS \(case 'vol_00'\) and SPL \(case 'vol_01'\); set `preprocess.orien"):
        prepared(reader, "none")
    cases = prepared(reader, "two", orientation="RAS")
    assert cases.padded == (10, 12, 8)
    found = by_id(cases)
    assert {name: case.orientation for name, case in found.items() if case.resampled} == {
        "vol_01": (3, -2, -1),
        "vol_04": (-1, -3, 2),
    }
    assert found["vol_01"].original_shape == (8, 12, 10)
    for source in reader.scan():
        case, other = found[source.case_id], by_id(plain)[source.case_id]
        assert np.allclose(cases.image(case), plain.image(other), atol=1e-5)
        assert np.array_equal(cases.label(case), plain.label(other))
        assert (case.shape, case.spacing_mm) == (other.shape, other.spacing_mm)
        truth = reader.read(source)[1]
        assert np.array_equal(cases.truth(case), truth)
        one_hot = np.stack([cases.label(case) == label for label in range(3)]).astype(np.float32)
        assert np.array_equal(to_source(one_hot, case).argmax(axis=0), truth)


def test_nnunet_data_with_its_own_splits(tmp_path: Path) -> None:
    """Two channels; a fold gives two cases each to train and val, two are left for test, imagesTs is the pool."""
    raw = write_nnunet(tmp_path / "raw", cases=8, channels=2, unlabelled=2)
    ids = [f"case_{number:02d}" for number in range(8)]
    (raw / "splits_final.json").write_text(json.dumps([{"train": ids[:2], "val": ids[2:4]}]))
    splits = Splits(labelled=0, pool=0, validation=0, test="rest", given=GivenSplit())
    cases = prepared(NnUNet(path=raw), splits=splits)
    assert {split: [case.case_id for case in cases.split(split)] for split in schema.SPLITS} == {
        "labelled": ids[:2],
        "pool": ids[6:],
        "validation": ids[2:4],
        "test": ids[4:6],
    }
    assert cases.channels == 2
    assert cases.info["notes"] == []
    row = cases.table.row(0, named=True)
    assert row["sources"] == [
        "imagesTr/case_00_0000.nii.gz",
        "labelsTr/case_00.nii.gz",
        "imagesTr/case_00_0001.nii.gz",
    ]
    assert row["sha256"] == [sha256(raw / file) for file in row["sources"]]


def test_pictures_without_any_mask_are_prepared(tmp_path: Path) -> None:
    for number in range(3):
        save_image(tmp_path / f"raw/images/a{number}.png", disc((8, 9 + number), 3) * 100)
    cases = prepared(Folders(path=tmp_path / "raw", masks=None), splits=NONE)
    assert [(case.split, case.has_label) for case in cases.all] == [("pool", False)] * 3
    assert (np.asarray(open_array(cases.folder, schema.LABELS)[:]) == 255).all()


def test_stacks_with_unknown_spacing_are_not_resampled_to_one(tmp_path: Path) -> None:
    reader = NnUNet(path=write_nnunet(tmp_path / "raw", ending=".tif"))
    with pytest.raises(
        BadInput, match=r"case_\d\d_0000.tif: case 'case_\d\d': expected a known spacing for preprocess"
    ):
        prepared(reader, spacing=(1.0, 1.0, 1.0))
    assert prepared(reader, resize=(3, 5, 4)).padded == (3, 5, 4)


@pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is not here")
def test_real_nuclei_of_three_sizes_and_volumes_in_ras() -> None:
    some = Splits(labelled=2, pool=6, validation=2, test=2)
    cases = prepared(NnUNet(path=DATA / "Dataset038_Nuclei"), "nuclei", some, resize=(128, 128))
    assert cases.padded == (128, 128)
    assert all(cases.truth(case).shape == case.original_shape for case in cases.all)
    volumes = prepared(Decathlon(path=DATA / "Task04_Hippocampus"), "volumes", some, orientation="RAS")
    assert {case.orientation for case in volumes.all} == {None}
    assert all(1 in cases.label(case) for case in cases.split("test"))
