"""nnU-Net reader: formats, channels and labels by hand, and every fault by its message."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.cases.readers.nnunet import NnUNet
from pipeline.errors import BadInput
from tests.fixtures.phantoms import disc, save_image, save_without_directions, write_nifti, write_nnunet


def change(root: Path, **content: Any) -> NnUNet:
    """The data set with these entries of `dataset.json` changed; None removes one."""
    index = {**json.loads((root / "dataset.json").read_text()), **content}
    (root / "dataset.json").write_text(json.dumps({k: v for k, v in index.items() if v is not None}))
    return NnUNet(path=root)


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha", ".png", ".bmp", ".tif", ".tiff"])
def test_channels_labels_and_the_pool_in_every_format(ending: str, tmp_path: Path) -> None:
    reader = NnUNet(path=write_nnunet(tmp_path, cases=3, ending=ending, channels=2, unlabelled=1))
    first, _, pool = reader.scan()
    space = (20, 24) if ending in (".png", ".bmp") else (6, 10, 8)
    assert (first.case_id, first.shape) == ("case_00", space)
    assert (first.image, first.beside) == (f"imagesTr/case_00_0000{ending}", (f"imagesTr/case_00_0001{ending}",))
    assert first.label == f"labelsTr/case_00{ending}"
    assert (pool.case_id, pool.image, pool.label) == ("case_02", f"imagesTs/case_02_0000{ending}", None)
    image, label = reader.read(first)
    assert (image.shape, image.dtype) == ((2, *space), np.float32)
    assert np.array_equal(label, disc(space, 3))
    assert not np.array_equal(image[0], image[1])
    assert image[:, label > 0].min() >= 120 > image[:, label == 0].max()
    assert reader.read(pool)[1] is None
    assert (reader.class_names(), reader.channel_names()) == (["background", "ball"], ["MR0", "MR1"])
    volume = ending in (".nii.gz", ".nii", ".nrrd", ".mha")
    assert first.spacing_mm == ((1.0, 0.5, 2.0) if volume else None)
    assert first.affine == ((1, 0, 0, 0, 0, 0.5, 0, 0, 0, 0, 2, 0, 0, 0, 0, 1) if volume else None)


def test_a_colour_picture_is_three_channels(tmp_path: Path) -> None:
    """NaturalImage2DIO keeps red, green and blue in one file; two grey channels do not make the three either."""
    write_nnunet(tmp_path, cases=1, ending=".png")
    save_image(tmp_path / "imagesTr/case_00_0000.png", np.full((20, 24, 3), (9, 8, 7), np.uint8))
    reader = change(tmp_path, channel_names={"0": "R", "1": "G", "2": "B"})
    image, _ = reader.read(reader.scan()[0])
    assert image[:, 0, 0].tolist() == [9, 8, 7]
    with pytest.raises(
        BadInput, match=r"case 'case_00': expected 1 channels .* has 3\), found 3 in case_00_0000.png; add"
    ):
        change(tmp_path, channel_names={"0": "grey"}).scan()


def test_labels_of_lossy_content_are_refused_whatever_their_name(tmp_path: Path) -> None:
    write_nnunet(tmp_path, cases=1, ending=".png")
    reader = NnUNet(path=tmp_path)
    (source,) = reader.scan()
    Image.fromarray(disc((20, 24), 3)).save(tmp_path / "labelsTr/case_00.png", format="JPEG")
    with pytest.raises(BadInput, match=r"case_00.png: case 'case_00': expected class indices .* found JPEG, which"):
        reader.read(source)


def test_classes_are_in_the_order_of_their_values_and_ignore_is_255(tmp_path: Path) -> None:
    """Values 0 to 2 are classes and 3 is ignored; 255 is no value of the file."""
    write_nnunet(tmp_path, cases=1, ending=".png")
    label = np.zeros((20, 24), np.uint8)
    label[:3] = [[1], [2], [3]]
    save_image(tmp_path / "labelsTr/case_00.png", label)
    reader = change(tmp_path, labels={"core": 2, "background": 0, "ignore": 3, "ball": 1})
    assert reader.class_names() == ["background", "ball", "core"]
    found = reader.read(reader.scan()[0])[1]
    assert found is not None
    assert found[:4, 0].tolist() == [1, 2, 255, 0]
    save_image(tmp_path / "labelsTr/case_00.png", np.where(label == 3, 255, label).astype(np.uint8))
    with pytest.raises(BadInput, match=r"expected labels 0 to 2 \(and 3 for ignore\), found 255; declare the classes"):
        reader.read(reader.scan()[0])
    with pytest.raises(BadInput, match=r"expected labels 0 to 1, found 2, 255; declare"):
        change(tmp_path, labels={"background": 0, "ball": 1}).read(reader.scan()[0])


@pytest.mark.parametrize("split", ["pool", "test"])
def test_labels_of_imagests_go_to_the_split_that_is_asked(split: Any, tmp_path: Path) -> None:
    write_nnunet(tmp_path, cases=4, ending=".png", unlabelled=2)
    save_image(tmp_path / "labelsTs/case_03.png", disc((20, 24), 4))
    if split == "test":
        with pytest.raises(
            BadInput, match=r"labelsTs: case 'case_02': expected a label like 1 other cases, found none"
        ):
            NnUNet(path=tmp_path, labels_ts=split).scan()
        save_image(tmp_path / "labelsTs/case_02.png", disc((20, 24), 4))
    found = NnUNet(path=tmp_path, labels_ts=split).scan()
    assert found[3].split == split
    assert [source.split for source in found[:2]] == [None, None]
    assert [source.label for source in found[2:]] == [
        None if split == "pool" else "labelsTs/case_02.png",
        "labelsTs/case_03.png",
    ]


def test_spacing_beside_a_stack_is_of_slices_rows_and_columns(tmp_path: Path) -> None:
    write_nnunet(tmp_path, cases=2, ending=".tif")
    (tmp_path / "imagesTr/case_00.json").write_text('{"spacing": [5, 0.5, 0.25]}')
    (tmp_path / "labelsTr/case_00.json").write_text('{"spacing": [5, 0.5, 0.25]}')
    with_spacing, without = NnUNet(path=tmp_path).scan()
    assert with_spacing.spacing_mm == (5.0, 0.5, 0.25)
    assert with_spacing.beside == ("imagesTr/case_00.json",)
    assert NnUNet(path=tmp_path).read(with_spacing)[0].shape == (1, 6, 10, 8)
    assert (without.spacing_mm, without.beside) == (None, ())
    for wrong in ('{"spacing": [1, 1]}', '{"spacing": [1, 0, 1]}', '{"spacing": null}', '{"spacing": ["a", 1, 1]}'):
        (tmp_path / "imagesTr/case_00.json").write_text(wrong)
        with pytest.raises(BadInput, match=r"case_00.json: case 'case_00': expected `spacing` with 3 numbers above 0"):
            NnUNet(path=tmp_path).scan()


def test_a_missing_label_is_the_pool_only_if_the_number_does_not_count_it(tmp_path: Path) -> None:
    """Else a label that is lost would only make a split smaller. Without any label all cases are pool."""
    write_nnunet(tmp_path, cases=3, ending=".png")
    (tmp_path / "labelsTr/case_01.png").unlink()
    labels = [source.label for source in change(tmp_path, numTraining=2).scan()]
    assert labels == ["labelsTr/case_00.png", None, "labelsTr/case_02.png"]
    for number in (3, None):
        lost = r"labelsTr: case 'case_01': expected a label like 2 other cases, found none \(1 cases without\); add the"
        with pytest.raises(BadInput, match=lost):
            change(tmp_path, numTraining=number).scan()
    for case in (0, 2):
        (tmp_path / f"labelsTr/case_0{case}.png").rename(tmp_path / f"case_0{case}.png")
    assert [source.label for source in change(tmp_path, numTraining=3).scan()] == [None] * 3
    for case in (0, 2):
        (tmp_path / f"case_0{case}.png").rename(tmp_path / f"labelsTr/case_0{case}.png")
    with pytest.raises(BadInput, match=r"`numTraining` expected 4 cases in imagesTr, found 3 \(2 with label\); fetch"):
        change(tmp_path, numTraining=4).scan()
    with pytest.raises(BadInput, match=r"`numTraining` expected a number without quotes, found '3'; correct it"):
        change(tmp_path, numTraining="3").scan()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"labels": {"background": 0, "whole": [1, 2], "core": [2]}, "regions_class_order": [1, 2]},
            r"found the regions 'core', 'whole'; regions \(unions of labels\) are not supported: name the labels",
        ),
        (
            {"labels": {"0": "background", "1": "ball"}},
            r"expected dataset.json of nnU-Net version 2, found `labels` as .* `kind: decathlon`, or convert with",
        ),
        (
            {"channel_names": None, "modality": {"0": "MR"}},
            "nnU-Net version 2, found `modality` where `channel_names` belongs; read the Medical",
        ),
        ({"channel_names": {"0": "MR", "2": "CT"}}, '`channel_names` expected names under the keys "0", "1"'),
        ({"channel_names": None}, "`channel_names` expected names .* found None; renumber"),
        (
            {"labels": {"background": 0, "ball": 2}},
            r"`labels` expected names with the values 0, 1, \.\.\. without gaps",
        ),
        ({"labels": {"background": 0, "ball": 1, "ignore": 1}}, "'ignore' with the highest, found"),
        ({"labels": {"background": 0, "ball": True}}, "`labels` expected names with the values 0, 1"),
        (
            {"labels": {"background": "0", "ball": "1"}},
            r"`labels` expected numbers without quotes, found \{'background': '0', 'ball': '1'\}; remove the quotes",
        ),
        ({"labels": {"background": 0, "ball": "1"}}, "`labels` expected numbers without quotes, found"),
        ({"labels": {"background": 0, "ball": 1, "ignore": "2"}}, "`labels` expected numbers without quotes, found"),
        ({"labels": {"background": 0, "ball": [1]}}, r"found the regions 'ball'; regions"),
        ({"labels": None}, "`labels` expected names with the values 0, 1, .* found None"),
        ({"file_ending": ".mhd"}, r"`file_ending` expected one of \.nii\.gz, .* found '\.mhd'; convert the files"),
        ({"file_ending": ".jpg"}, "found '.jpg'; convert"),
        ({"file_ending": None}, "`file_ending` expected one of .* found None"),
        ({"dataset": {"case_00": {}}}, r"found file lists \(`dataset`\), which are not supported; link the files"),
    ],
)
def test_index_faults(content: dict, message: str, tmp_path: Path) -> None:
    reader = change(write_nnunet(tmp_path, cases=1, ending=".png"), **content)
    with pytest.raises(BadInput, match=message):
        reader.scan()


def test_a_folder_without_an_index(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"dataset.json: expected the JSON index of the data set"):
        NnUNet(path=tmp_path).class_names()


def test_channel_faults(tmp_path: Path) -> None:
    """One of two channels is missing at the end, and one in the middle; one has another grid."""
    write_nnunet(tmp_path, cases=4, channels=2)
    (tmp_path / "imagesTr/case_00_0001.nii.gz").unlink()
    (tmp_path / "imagesTr/case_01_0000.nii.gz").unlink()
    write_nifti(tmp_path / "imagesTr/case_02_0001.nii.gz", np.zeros((6, 10, 9), np.float32), (1.0, 0.5, 2.0))
    write_nifti(tmp_path / "imagesTr/case_03_0001.nii.gz", np.zeros((6, 10, 8), np.float32), (1.0, 0.5, 2.5))
    with pytest.raises(BadInput) as raised:
        NnUNet(path=tmp_path).scan()
    one, two, three, four = str(raised.value).splitlines()
    assert "case 'case_00': expected 2 channels (`channel_names`" in one
    assert "found 1 in case_00_0000.nii.gz; add the missing files" in one
    assert "case 'case_01': expected the file case_01_0000.nii.gz, found the channels [1]; add it" in two
    assert "case_02_0001.nii.gz: case 'case_02': expected the image's shape (6, 10, 8), found (6, 10, 9);" in three
    assert three.endswith("; resample the file to the image's grid")
    assert (
        "case_03_0001.nii.gz: case 'case_03': expected the image's affine within 0.001, found a difference of" in four
    )


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_channels_and_labels_without_directions_have_one_spacing(ending: str, tmp_path: Path) -> None:
    """An affine is known of none of the files. Edges of 1, 1 and 3 mm are not those of 1, 1 and 1 mm."""
    write_nnunet(tmp_path, cases=1, ending=ending, channels=2)
    ball, reader = disc((6, 10, 8), 3), NnUNet(path=tmp_path)
    for name in ("imagesTr/case_00_0000", "imagesTr/case_00_0001", "labelsTr/case_00"):
        save_without_directions(tmp_path / f"{name}{ending}", ball, (1, 1, 3))
    (source,) = reader.scan()
    assert (source.spacing_mm, source.affine) == ((1.0, 1.0, 3.0), None)
    label = reader.read(source)[1]
    assert label is not None
    assert np.array_equal(label, ball)
    expected = r"expected the image's voxel edges \(1, 1, 3\) mm within 0.001, found \(1, 1, 1\); resample"
    save_without_directions(tmp_path / f"labelsTr/case_00{ending}", ball, (1, 1, 1))
    with pytest.raises(BadInput, match=rf"labelsTr/case_00{ending}: case 'case_00': {expected}"):
        reader.read(source)
    save_without_directions(tmp_path / f"imagesTr/case_00_0001{ending}", ball, (1, 1, 1))
    with pytest.raises(BadInput, match=rf"imagesTr/case_00_0001{ending}: case 'case_00': {expected}"):
        reader.scan()


def test_label_faults(tmp_path: Path) -> None:
    write_nnunet(tmp_path, cases=2)
    write_nifti(tmp_path / "labelsTr/case_00.nii.gz", np.zeros((6, 10, 9), np.uint8), (1.0, 0.5, 2.0))
    write_nifti(tmp_path / "labelsTr/case_01.nii.gz", np.zeros((6, 10, 8), np.uint8), (1.0, 0.5, 2.5))
    reader = NnUNet(path=tmp_path)
    first, second = reader.scan()
    with pytest.raises(BadInput, match=r"labelsTr/case_00.nii.gz: case 'case_00': expected the image's shape"):
        reader.read(first)
    with pytest.raises(BadInput, match=r"case_01.nii.gz: case 'case_01': expected the image's affine within 0.001"):
        reader.read(second)


def test_file_faults(tmp_path: Path) -> None:
    write_nnunet(tmp_path, cases=2, ending=".png")
    (tmp_path / "imagesTr/._case_00_0000.png").write_bytes(b"attributes")
    assert len(NnUNet(path=tmp_path).scan()) == 2
    save_image(tmp_path / "labelsTr/other.png", disc((20, 24), 3))
    with pytest.raises(BadInput, match=r"other.png: expected an image 'other_0000.png' .* \(1 labels without image\)"):
        NnUNet(path=tmp_path).scan()
    (tmp_path / "labelsTr/other.png").rename(tmp_path / "imagesTr/other.png")
    with pytest.raises(BadInput, match=r"other.png: expected a name like CASE_0000.png, with the number of the chan"):
        NnUNet(path=tmp_path).scan()
    (tmp_path / "imagesTr/other.png").rename(tmp_path / "imagesTr/other.tif")
    with pytest.raises(BadInput, match=r"other.tif: expected only files ending in .png \(`file_ending`\)"):
        NnUNet(path=tmp_path).scan()
    (tmp_path / "imagesTr/other.tif").rename(tmp_path / "imagesTr/other.dcm")
    with pytest.raises(BadInput, match=r"other.dcm: found DICOM"):
        NnUNet(path=tmp_path).scan()
