"""Decathlon reader: grids and channels of the file, and every fault by its message."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from pipeline.cases.case_table import described
from pipeline.cases.readers.decathlon import Decathlon
from pipeline.cases.readers.reader import Source
from pipeline.errors import BadInput
from tests.fixtures.phantoms import write_decathlon, write_index, write_nifti


def test_decathlon_reads_axes_spacing_and_affine_of_the_file(tmp_path: Path) -> None:
    """A single voxel of 7 at index (1, 2, 3) stays there; zooms 1, 0.5, 2 mm; the affine is their diagonal."""
    voxels = np.zeros((4, 5, 6), np.int16)
    voxels[1, 2, 3] = 7
    write_nifti(tmp_path / "imagesTr/a.nii.gz", voxels, (1.0, 0.5, 2.0))
    write_index(tmp_path, test=[{"image": "imagesTr/a.nii.gz"}])
    reader = Decathlon(path=tmp_path)
    (source,) = reader.scan()
    assert source == Source(
        "a",
        (4, 5, 6),
        "imagesTr/a.nii.gz",
        None,
        (1.0, 0.5, 2.0),
        (1.0, 0.0, 0.0, 0.0, 0.0, 0.5, 0.0, 0.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0, 0.0, 1.0),
    )
    image, label = reader.read(source)
    assert label is None
    assert image.shape == (1, 4, 5, 6)
    assert image[0, 1, 2, 3] == 7


def test_decathlon_test_list_is_the_pool_and_macos_files_are_skipped(tmp_path: Path) -> None:
    reader = Decathlon(path=write_decathlon(tmp_path, cases=4, pool=2))
    index = json.loads((tmp_path / "dataset.json").read_text())
    index["training"].append({"image": "imagesTr/._vol_00.nii.gz", "label": "labelsTr/._vol_00.nii.gz"})
    (tmp_path / "dataset.json").write_text(json.dumps(index))
    found = [(source.case_id, source.label) for source in reader.scan()]
    assert found == [
        ("vol_00", "labelsTr/vol_00.nii.gz"),
        ("vol_01", "labelsTr/vol_01.nii.gz"),
        ("vol_02", None),
        ("vol_03", None),
    ]


@pytest.mark.parametrize(
    ("stored", "channels", "shape"),
    [((6, 7, 5, 2), 2, (6, 7, 5)), ((6, 7, 1, 2), 2, (6, 7)), ((6, 7, 2), 2, (6, 7)), ((6, 7, 1), 1, (6, 7))],
)
def test_decathlon_channels_are_the_last_axis(stored: tuple, channels: int, shape: tuple, tmp_path: Path) -> None:
    voxels = np.arange(np.prod(stored), dtype=np.float32).reshape(stored)
    write_nifti(tmp_path / "a.nii.gz", voxels)
    write_index(tmp_path, test=["a.nii.gz"], modality={str(c): f"m{c}" for c in range(channels)})
    reader = Decathlon(path=tmp_path)
    (source,) = reader.scan()
    image, _ = reader.read(source)
    assert image.shape == (channels, *shape)
    assert np.array_equal(image[-1], voxels[..., -1].reshape(shape))


def test_decathlon_microns_become_mm(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz", np.zeros((4, 4, 4), np.float32), (250.0, 250.0, 500.0))
    nifti = nibabel.load(tmp_path / "a.nii.gz")
    nifti.header.set_xyzt_units("micron")
    nibabel.save(nifti, tmp_path / "b.nii.gz")
    write_index(tmp_path, test=["b.nii.gz"])
    assert Decathlon(path=tmp_path).scan()[0].spacing_mm == (0.25, 0.25, 0.5)


def one_volume(root: Path, image: np.ndarray, label: np.ndarray, **label_knobs: Any) -> Decathlon:
    write_nifti(root / "i.nii.gz", image)
    write_nifti(root / "l.nii.gz", label, **label_knobs)
    write_index(root, training=[{"image": "i.nii.gz", "label": "l.nii.gz"}])
    return Decathlon(path=root)


@pytest.mark.parametrize(
    ("label", "spacing", "message"),
    [
        (
            np.zeros((5, 5, 4), np.uint8),
            (1.0, 1.0, 1.0),
            r"case 'i': expected the image's shape \(5, 5, 5\), found \(5, 5, 4\)",
        ),
        (np.zeros((5, 5, 5), np.uint8), (1.0, 1.0, 1.25), "affine within 0.001, found a difference of 0.25;"),
        (np.full((5, 5, 5), 3, np.uint8), (1.0, 1.0, 1.0), r"expected labels 0 to 2 \(and 255 for ignore\), found 3;"),
        (np.full((5, 5, 5), 0.5, np.float32), (1.0, 1.0, 1.0), "found 0.5; declare the classes, or correct"),
        (np.full((5, 5, 5), np.nan, np.float32), (1.0, 1.0, 1.0), "found nan;"),
        (np.full((5, 5, 5), -1, np.int16), (1.0, 1.0, 1.0), "found -1;"),
    ],
)
def test_decathlon_label_faults(label: np.ndarray, spacing: tuple, message: str, tmp_path: Path) -> None:
    reader = one_volume(tmp_path, np.zeros((5, 5, 5), np.float32), label, spacing_mm=spacing)
    (source,) = reader.scan()
    with pytest.raises(BadInput, match=message):
        reader.read(source)


def test_decathlon_small_affine_differences_and_ignored_voxels_pass(tmp_path: Path) -> None:
    label = np.full((5, 5, 5), 255, np.uint8)
    label[0] = 2
    reader = one_volume(tmp_path, np.zeros((5, 5, 5), np.float32), label, spacing_mm=(1.0, 1.0, 1.0005))
    assert np.array_equal(reader.read(reader.scan()[0])[1], label)


def test_decathlon_names_truncated_and_foreign_files(tmp_path: Path) -> None:
    write_decathlon(tmp_path, cases=3)
    whole = (tmp_path / "imagesTr/vol_00.nii.gz").read_bytes()
    (tmp_path / "imagesTr/vol_00.nii.gz").write_bytes(whole[: len(whole) // 2])
    reader = Decathlon(path=tmp_path)
    with pytest.raises(
        BadInput,
        match=r"vol_00.nii.gz: case 'vol_00': expected .*, found a truncated or damaged file .* fetch it again",
    ):
        reader.scan()
    (tmp_path / "imagesTr/vol_00.nii.gz").write_bytes(b"not a volume")
    (tmp_path / "imagesTr/vol_01.nii.gz").unlink()
    (tmp_path / "imagesTr/vol_02.nii.gz").write_bytes(bytes(128) + b"DICM" + bytes(64))
    with pytest.raises(BadInput) as raised:
        reader.scan()
    lines = str(raised.value).splitlines()
    assert len(lines) == 3
    assert "expected NIfTI, found an unreadable file" in lines[0]
    assert "vol_01.nii.gz: case 'vol_01': expected a file, found none" in lines[1]
    assert "found DICOM" in lines[2]
    assert "dcm2niix" in lines[2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"labels": {"background": 0, "organ": 1}}, r'`labels` expected names under the keys "0", "1"'),
        ({"labels": {"0": "background", "2": "organ"}}, "without gaps"),
        ({"labels": {"0": "background", "1": ["a", "b"]}}, "unions of labels are not supported"),
        ({"modality": None}, r"`modality` expected names"),
        ({"training": [3]}, "expected entries with `image` and `label`, found 3"),
        ({"test": ["../outside.nii.gz"]}, r"expected a path below .*, found '\.\./outside.nii.gz'"),
        ({"test": ["/etc/passwd"]}, "expected a path below"),
        ({"test": ["a.nii.gz"], "modality": {"0": "T1", "1": "T2"}}, r"expected 2 channels .* found shape \(4, 4, 4\)"),
        ({"test": ["four.nii.gz"]}, r"with 1 channels, found shape \(4, 4, 4, 3\)"),
        ({"test": ["complex.nii.gz"]}, "expected real numbers, found type complex64"),
        ({"test": "a.nii.gz"}, r"`test` expected a list of cases, found 'a.nii.gz'; correct the list"),
        ({"training": {"a": "a.nii.gz"}}, r"`training` expected a list of cases, found \{"),
        (
            {"training": [{"image": "a.nii.gz", "label": ["a.nii.gz", "four.nii.gz"]}]},
            r"`training` expected one file under `label` of 'a.nii.gz', found \['a.nii.gz', 'four.nii.gz'\]; save the "
            "classes in one file",
        ),
        ({"training": [{"image": "a.nii.gz", "label": 1}]}, "expected one file under `label` of 'a.nii.gz', found 1"),
        (
            {"training": [{"image": ["a.nii.gz", "b.nii.gz"]}]},
            r"expected one file under `image`, found \['a.nii.gz', 'b.nii.gz'\]; save the channels as the last axis",
        ),
        (
            {"test": [{"image": "a.nii.gz", "label": "a.nii.gz"}]},
            r"`test` expected images alone, which join the pool, found the label 'a.nii.gz'; move the case to "
            "`training`, and set its split in the case table",
        ),
    ],
)
def test_decathlon_index_faults(content: dict, message: str, tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz", np.zeros((4, 4, 4), np.float32))
    write_nifti(tmp_path / "four.nii.gz", np.zeros((4, 4, 4, 3), np.float32))
    write_nifti(tmp_path / "complex.nii.gz", np.zeros((4, 4, 4), np.complex64))
    write_index(tmp_path, **content)
    reader = Decathlon(path=tmp_path)
    with pytest.raises(BadInput, match=message):
        reader.class_names(), reader.channel_names(), reader.scan()


@pytest.mark.parametrize("key", ["validation", "testing", "val", "fold_1", "Training"])
@pytest.mark.parametrize(
    "value",
    [
        [{"image": "imagesTr/vol_00.nii.gz", "label": "labelsTr/vol_00.nii.gz"}],
        ["./imagesTr/vol_00.nii"],
        {"folds": [{"val": ["imagesTr/vol_00.nii.gz"]}]},
    ],
)
def test_a_list_of_cases_that_nobody_reads_is_refused_by_its_name(key: str, value: object, tmp_path: Path) -> None:
    """As MONAI's lists of cases have them. The cases would vanish."""
    reader = Decathlon(path=write_decathlon(tmp_path, cases=3))
    index = json.loads((tmp_path / "dataset.json").read_text())
    (tmp_path / "dataset.json").write_text(json.dumps({**index, key: value}))
    with pytest.raises(
        BadInput,
        match=rf"dataset.json: expected cases under `training` and `test` alone, found files under `{key}`; move the "
        "cases to `training`, and set their splits in the case table",
    ):
        reader.scan()


def test_other_keys_and_empty_lists_mean_nothing(tmp_path: Path) -> None:
    reader = Decathlon(path=write_decathlon(tmp_path, cases=3, pool=1))
    index = json.loads((tmp_path / "dataset.json").read_text())
    more = {"validation": [], "testing": None, "tensorImageSize": "3D", "description": "from a.nii.gz", "release": [1]}
    (tmp_path / "dataset.json").write_text(json.dumps({**index, **more, "numTraining": 2, "numTest": 1}))
    assert len(reader.scan()) == 3


@pytest.mark.parametrize("empty", ["training", "test"])
def test_a_list_that_is_null_is_empty(empty: str, tmp_path: Path) -> None:
    reader = Decathlon(path=write_decathlon(tmp_path, cases=3, pool=1))
    index = json.loads((tmp_path / "dataset.json").read_text())
    for nothing in ({empty: None}, {}):
        rest = {key: value for key, value in index.items() if key != empty}
        (tmp_path / "dataset.json").write_text(json.dumps({**rest, **nothing}))
        assert len(reader.scan()) == {"training": 1, "test": 2}[empty]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"numTraining": 3}, r"`numTraining` expected 3 cases under `training`, found 2; add the missing cases, or"),
        ({"numTraining": 1}, r"`numTraining` expected 1 cases under `training`, found 2"),
        ({"numTest": 0}, r"`numTest` expected 0 cases under `test`, found 1"),
        ({"numTraining": "2"}, r"`numTraining` expected a number without quotes, found '2'; correct it"),
        ({"numTraining": [2]}, r"`numTraining` expected a number without quotes, found \[2\]"),
    ],
)
def test_numbers_of_cases_that_disagree(content: dict, message: str, tmp_path: Path) -> None:
    reader = Decathlon(path=write_decathlon(tmp_path, cases=3, pool=1))
    index = json.loads((tmp_path / "dataset.json").read_text())
    (tmp_path / "dataset.json").write_text(json.dumps({**index, **content}))
    with pytest.raises(BadInput, match=f"dataset.json: {message}"):
        reader.scan()


def test_files_of_macos_count_or_do_not(tmp_path: Path) -> None:
    reader = Decathlon(path=write_decathlon(tmp_path, cases=2))
    index = json.loads((tmp_path / "dataset.json").read_text())
    index["training"].append({"image": "imagesTr/._vol_00.nii.gz", "label": "labelsTr/._vol_00.nii.gz"})
    for number in (2, 3):
        (tmp_path / "dataset.json").write_text(json.dumps({**index, "numTraining": number}))
        assert len(reader.scan()) == 2


def test_an_index_with_a_key_twice_is_refused(tmp_path: Path) -> None:
    """The first list of cases would vanish."""
    reader = Decathlon(path=write_decathlon(tmp_path, cases=2))
    text = (tmp_path / "dataset.json").read_text()
    (tmp_path / "dataset.json").write_text(text[:-1] + ', "training": []}')
    with pytest.raises(BadInput, match=r"dataset.json: expected every key once, found 'training' twice; remove one"):
        reader.scan()
    (tmp_path / "dataset.json").write_text("\ufeff" + text)
    assert len(reader.scan()) == 2


def test_decathlon_without_a_readable_index(tmp_path: Path) -> None:
    reader = Decathlon(path=tmp_path)
    with pytest.raises(BadInput, match=r"dataset.json: expected the JSON index of the data set"):
        reader.scan()
    (tmp_path / "dataset.json").write_text("[]")
    with pytest.raises(BadInput, match="expected a JSON object, found list"):
        reader.scan()


def test_a_header_that_says_no_orientation_has_no_affine(tmp_path: Path) -> None:
    """Without `sform_code` and `qform_code` the axes may point anywhere: nibabel would make up LAS."""
    image = nibabel.Nifti1Image(np.zeros((4, 5, 6), np.float32), None)
    image.header.set_zooms((1.0, 2.0, 3.0))
    nibabel.save(image, tmp_path / "a.nii.gz")
    assert nibabel.aff2axcodes(nibabel.load(tmp_path / "a.nii.gz").affine) == ("L", "A", "S")
    write_index(tmp_path, test=["a.nii.gz"])
    (source,) = Decathlon(path=tmp_path).scan()
    assert (source.affine, source.spacing_mm) == (None, (1.0, 2.0, 3.0))


def test_faults_of_the_index_say_what_to_do(tmp_path: Path) -> None:
    """A case that is listed twice need not be renamed, and a damaged index is at the right place."""
    root = write_decathlon(tmp_path, cases=2)
    entry = {"image": "imagesTr/vol_00.nii.gz", "label": "labelsTr/vol_00.nii.gz"}
    write_index(root, training=[entry, entry])
    reader = Decathlon(path=root)
    with pytest.raises(BadInput, match=r"case id 'vol_00' .*found imagesTr/vol_00.nii.gz twice; remove one entry"):
        described(reader.scan(), root, None)
    write_index(root, training=[{"image": "../vol_00.nii.gz"}])
    with pytest.raises(BadInput, match=rf"{root}/dataset.json: expected a path below {root}, found '../vol_00.nii.gz'"):
        reader.scan()
    (root / "dataset.json").write_text('{"training": [')
    with pytest.raises(BadInput, match=r"dataset.json: expected the JSON index .*, found .*; correct it, or fetch"):
        reader.scan()
    (root / "dataset.json").unlink()
    with pytest.raises(BadInput, match=r"dataset.json: expected the JSON index of the data set, found no file; check"):
        reader.scan()
