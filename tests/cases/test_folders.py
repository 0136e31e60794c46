"""Folders reader: colours and kinds of masks, and every fault by its message."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from pipeline.cases.files.checks import refuse_dicom
from pipeline.cases.readers.folders import Folders
from pipeline.cases.readers.reader import Source
from pipeline.errors import BadInput
from tests.fixtures.phantoms import disc, save_image, save_without_directions, write_folders


def test_folders_pairs_by_stem_and_leaves_the_rest_to_the_pool(tmp_path: Path) -> None:
    reader = Folders(path=write_folders(tmp_path, cases=3, shape=(20, 24), unlabelled=1))
    (tmp_path / "images" / "._case_00.png").write_bytes(b"attributes")
    found = reader.scan()
    assert found[0] == Source("case_00", (20, 24), "images/case_00.png", "masks/case_00.png")
    assert [source.label for source in found] == ["masks/case_00.png", "masks/case_01.png", None]
    image, label = reader.read(found[0])
    assert np.array_equal(label, disc((20, 24), 4))
    assert image.shape == (1, 20, 24)
    assert reader.channel_names() == ["grey"]


def save(root: Path, name: str, pixels: np.ndarray, **knobs: Any) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **knobs)


def test_folders_rgb_is_channels_first_and_converts(tmp_path: Path) -> None:
    """(200, 100, 50) is 0.299 200 + 0.587 100 + 0.114 50 = 124.2 in grey."""
    save(tmp_path, "images/a.bmp", np.full((3, 4, 3), (200, 100, 50), np.uint8))
    save(tmp_path, "masks/a.png", np.eye(3, 4, dtype=np.uint8))
    rgb = Folders(path=tmp_path)
    image, label = rgb.read(rgb.scan()[0])
    assert rgb.channel_names() == ["red", "green", "blue"]
    assert image[:, 0, 0].tolist() == [200, 100, 50]
    assert np.array_equal(label, np.eye(3, 4))
    grey = Folders(path=tmp_path, channels="grey")
    assert grey.read(grey.scan()[0])[0][0, 0, 0] == 124


def test_folders_sixteen_bits_stay(tmp_path: Path) -> None:
    save(tmp_path, "images/a.png", np.full((3, 4), 4000, np.uint16))
    (tmp_path / "masks").mkdir()
    reader = Folders(path=tmp_path)
    assert reader.read(reader.scan()[0])[0].max() == 4000
    coloured = Folders(path=tmp_path, channels="rgb").read(reader.scan()[0])[0]
    assert coloured.shape == (3, 3, 4)
    assert coloured.min() == 4000


def test_folders_mixed_colours_need_a_decision(tmp_path: Path) -> None:
    save(tmp_path, "images/a.png", np.zeros((3, 4, 3), np.uint8))
    save(tmp_path, "images/b.png", np.zeros((3, 4), np.uint8))
    (tmp_path / "masks").mkdir()
    with pytest.raises(
        BadInput, match=r"b.png: case 'b': expected a rgb image like .*a.png, found grey; set `channels"
    ):
        Folders(path=tmp_path).scan()
    for channels, count in (("grey", 1), ("rgb", 3)):
        reader = Folders(path=tmp_path, channels=channels)
        assert [len(reader.read(source)[0]) for source in reader.scan()] == [count, count]


def test_folders_foreground_above_reads_bright_masks(tmp_path: Path) -> None:
    """127 is background and 128 foreground; colour masks and JPEG are allowed here, 255 is not `ignore`."""
    save(tmp_path, "images/a.png", np.zeros((1, 4), np.uint8))
    save(tmp_path, "images/b.png", np.zeros((8, 8), np.uint8))
    save(tmp_path, "masks/a.png", np.array([[0, 127, 128, 255]], np.uint8))
    save(tmp_path, "masks/b.jpg", np.repeat((disc((8, 8), 3) * 255)[..., None], 3, axis=2), quality=95)
    reader = Folders(path=tmp_path, foreground_above=127)
    a, b = reader.scan()
    assert reader.read(a)[1].tolist() == [[0, 0, 1, 1]]  # type: ignore[union-attr]
    assert np.array_equal(reader.read(b)[1], disc((8, 8), 3))
    with pytest.raises(BadInput, match="expected class indices in a lossless format, found JPEG, which changes"):
        Folders(path=tmp_path).read(b)
    with pytest.raises(ValidationError, match="foreground_above makes 2 classes, found 3"):
        Folders(path=tmp_path, foreground_above=127, classes=("a", "b", "c"))


def test_folders_palette_masks_are_their_indices(tmp_path: Path) -> None:
    save(tmp_path, "images/a.png", np.zeros((1, 3), np.uint8))
    (tmp_path / "masks").mkdir()
    palette = Image.new("P", (3, 1))
    palette.putdata([0, 2, 1])
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    palette.save(tmp_path / "masks/a.png")
    reader = Folders(path=tmp_path, classes=("background", "red", "green"))
    assert reader.read(reader.scan()[0])[1].tolist() == [[0, 2, 1]]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((3, 5), np.uint8), r"a.png: case 'a': expected the image's shape \(3, 4\), found \(3, 5\); resample"),
        (np.full((3, 4), 2, np.uint8), r"masks/a.png: case 'a': expected labels 0 to 1 .* found 2;"),
        (np.zeros((3, 4, 3), np.uint8), "expected one channel of class indices, found mode RGB"),
    ],
)
def test_folders_mask_faults(mask: np.ndarray, message: str, tmp_path: Path) -> None:
    save(tmp_path, "images/a.png", np.zeros((3, 4), np.uint8))
    save(tmp_path, "masks/a.png", mask)
    reader = Folders(path=tmp_path)
    with pytest.raises(BadInput, match=message):
        reader.read(reader.scan()[0])


def test_folders_set_faults(tmp_path: Path) -> None:
    reader = Folders(path=tmp_path)
    with pytest.raises(BadInput, match="images: expected a folder of images, found none"):
        reader.scan()
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    with pytest.raises(BadInput, match=r"images: expected images \(.nii.gz, .*, .tiff, .png, .*\), found none"):
        reader.scan()
    with pytest.raises(BadInput, match="found none"):
        reader.channel_names()
    save(tmp_path, "masks/a.png", np.zeros((3, 4), np.uint8))
    save(tmp_path, "images/b.png", np.zeros((3, 4), np.uint8))
    with pytest.raises(BadInput, match=r"masks/a.png: expected an image 'a' .* found none \(1 masks without image\)"):
        reader.scan()
    save(tmp_path, "images/a.png", np.zeros((3, 4), np.uint8))
    save(tmp_path, "images/a.jpg", np.zeros((3, 4), np.uint8))
    with pytest.raises(BadInput, match=r"expected one file for case 'a', found a.jpg as well"):
        reader.scan()
    (tmp_path / "images/a.jpg").rename(tmp_path / "images/a.gif")
    with pytest.raises(BadInput, match=r"a.gif: expected .nii.gz, .*; convert it, e.g. to .nii.gz, or move"):
        reader.scan()
    (tmp_path / "images/a.gif").rename(tmp_path / "images/a.dcm")
    with pytest.raises(BadInput, match=r"a.dcm: found DICOM, .* dcm2niix"):
        reader.scan()


def test_folders_names_unreadable_truncated_and_turned_files(tmp_path: Path) -> None:
    write_folders(tmp_path, cases=3, shape=(64, 64))
    reader = Folders(path=tmp_path)
    file = tmp_path / "images/case_00.png"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInput, match=r"case_00.png: case 'case_00': expected 64 x 64 pixels, found a truncated"):
        reader.read(reader.scan()[0])
    file.write_bytes(whole)
    (tmp_path / "images/case_01.png").write_bytes(b"no picture")
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "images/case_02.png").unlink()
    save(tmp_path, "images/case_02.jpg", np.zeros((64, 64), np.uint8), exif=exif)
    with pytest.raises(BadInput) as raised:
        reader.scan()
    first, second = str(raised.value).splitlines()
    assert "case_01.png: case 'case_01': expected a picture, found an unreadable file" in first
    assert "case_02.jpg: case 'case_02': expected an upright picture, found orientation 6" in second


def test_folders_without_masks_are_all_pool(tmp_path: Path) -> None:
    save(tmp_path, "images/a.png", np.zeros((3, 4), np.uint8))
    with pytest.raises(BadInput, match="masks: expected a folder of images, found none"):
        Folders(path=tmp_path).scan()
    (source,) = Folders(path=tmp_path, masks=None).scan()
    assert source.label is None


def test_dicom_is_told_by_suffix_or_content(tmp_path: Path) -> None:
    for name in ("a.dcm", "IM0001"):
        (tmp_path / name).write_bytes(bytes(128) + b"DICM")
        with pytest.raises(
            BadInput, match=r"found DICOM, expected NIfTI or pictures; convert the series, e.g. with dcm2niix"
        ):
            refuse_dicom(tmp_path / name)
    (tmp_path / "b.nii").write_bytes(b"DICM" + bytes(200))
    refuse_dicom(tmp_path / "b.nii")


def test_folders_one_bit_masks_are_bright(tmp_path: Path) -> None:
    """A mask of one bit per pixel is white where its class is: with foreground_above it must not become background."""
    root = write_folders(tmp_path / "raw", cases=1)
    label = disc((20, 24), 4)
    Image.fromarray(label.astype(bool)).save(root / "masks" / "case_00.png")
    reader = Folders(path=root, foreground_above=127)
    _, found = reader.read(reader.scan()[0])
    assert found is not None
    assert (found == label).all()


def test_folders_class_indices_are_not_bright(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "raw", cases=1)
    reader = Folders(path=root, foreground_above=127)
    with pytest.raises(BadInput, match=r"expected a mask of 0 and 255 \(foreground_above: 127\), found 0 and 1"):
        reader.read(reader.scan()[0])


def test_a_link_to_nothing_and_a_folder_are_no_wrong_ending(tmp_path: Path) -> None:
    write_folders(tmp_path, cases=2)
    (tmp_path / "images/case_00.png").unlink()
    (tmp_path / "images/case_00.png").symlink_to("gone.png")
    with pytest.raises(BadInput, match=r"images/case_00.png: expected a file, found a link to nothing; mend the link"):
        Folders(path=tmp_path).scan()
    (tmp_path / "images/case_00.png").unlink()
    (tmp_path / "images/case_00.png").mkdir()
    with pytest.raises(BadInput, match=r"images/case_00.png: expected a file, found a folder; move it"):
        Folders(path=tmp_path).scan()


# ---- volumes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("endings", [(".nii.gz", ".nii"), (".nrrd", ".nrrd"), (".mha", ".nii.gz"), (".nii", ".mha")])
def test_folders_of_volumes_have_the_grid_of_their_files(endings: tuple[str, str], tmp_path: Path) -> None:
    """A name with dots; spacing and affine from the image, and a mask on another grid is refused."""
    voxels, label = np.arange(120, dtype=np.float32).reshape(6, 5, 4), disc((6, 5, 4), 2)
    save_image(tmp_path / f"images/a.b{endings[0]}", voxels)
    save_image(tmp_path / f"masks/a.b{endings[1]}", label)
    save_image(tmp_path / f"images/c{endings[0]}", voxels)
    reader = Folders(path=tmp_path)
    source, pool = reader.scan()
    assert (source.case_id, source.shape, source.spacing_mm) == ("a.b", (6, 5, 4), (1.0, 0.5, 2.0))
    assert source.affine == (1, 0, 0, 0, 0, 0.5, 0, 0, 0, 0, 2, 0, 0, 0, 0, 1)
    assert (pool.case_id, pool.label) == ("c", None)
    assert reader.channel_names() == ["grey"]
    image, mask = reader.read(source)
    assert np.array_equal(image[0], voxels)
    assert np.array_equal(mask, label)
    save_image(tmp_path / f"masks/a.b{endings[1]}", label * 255)
    assert np.array_equal(reader.model_copy(update={"foreground_above": 127}).read(source)[1], label)
    moved = (*source.affine[:3], 1.0, *source.affine[4:])
    with pytest.raises(BadInput, match=r"masks/a.b.*: case 'a.b': expected the image's affine .* of 1; resample"):
        reader.read(replace(source, affine=moved))


@pytest.mark.parametrize("above", [None, 127])
def test_a_mask_of_another_spacing_for_an_image_without_directions(above: int | None, tmp_path: Path) -> None:
    """The mask states where it lies, the image does not: the voxel edges are compared, 1 mm and 2 mm."""
    ball = disc((6, 5, 4), 2) * 255
    save_without_directions(tmp_path / "images/a.mha", ball, (1, 0.5, 2))
    reader = Folders(path=tmp_path, foreground_above=above)
    for ending in (".nii.gz", ".nrrd"):
        save_image(tmp_path / f"masks/a{ending}", ball)
        (source,) = reader.scan()
        assert reader.read(source)[1] is not None
        other = replace(source, spacing_mm=(2.0, 0.5, 2.0))
        with pytest.raises(BadInput, match=r"masks/a.*: expected the image's voxel edges \(2, 0.5, 2\) mm within"):
            reader.read(other)
        (tmp_path / f"masks/a{ending}").unlink()


def test_several_channels_in_a_volume_are_refused_with_a_layout_for_them(tmp_path: Path) -> None:
    save_image(tmp_path / "images/a.nii.gz", np.zeros((6, 5, 4, 2), np.float32))
    with pytest.raises(BadInput, match=r"found shape \(6, 5, 4, 2\); save each channel as a file .*layout `decathlon`"):
        Folders(path=tmp_path, masks=None).scan()


def test_folders_of_volumes_and_pictures_are_not_mixed(tmp_path: Path) -> None:
    """A 2D NIfTI file has the axes x and y, and a picture rows and columns: the mask of one does not fit the other."""
    save_image(tmp_path / "images/a.nrrd", np.zeros((4, 4), np.uint8))
    save_image(tmp_path / "masks/a.png", np.zeros((4, 4), np.uint8))
    with pytest.raises(BadInput, match=r"images/a.nrrd: expected the order of axes of masks/a.png .* two data sets"):
        Folders(path=tmp_path).scan()
    (tmp_path / "masks/a.png").unlink()
    (tmp_path / "images/b.mhd").write_text("ObjectType = Image")
    with pytest.raises(BadInput, match=r"b.mhd: expected image and header in one file, found a header \(.mhd\) whose"):
        Folders(path=tmp_path).scan()
