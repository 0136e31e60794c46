"""Image files by their ending: axes and channels of TIFF, and masks of every format on the grid of an image."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from pipeline.cases.files import image_file, tiff
from pipeline.cases.readers.folders import Folders
from pipeline.errors import BadInput
from tests.fixtures.phantoms import disc, save_image, write_nifti

STACK = np.arange(4 * 6 * 5, dtype=np.uint16).reshape(4, 6, 5)
GREY: dict[str, Any] = {"photometric": "minisblack"}


@pytest.mark.parametrize(
    ("voxels", "knobs", "channels", "expected"),
    [
        (STACK[0], GREY, 1, STACK[0]),
        (STACK, GREY, 1, STACK),
        (STACK, {**GREY, "metadata": None}, 1, STACK),
        (STACK, {**GREY, "metadata": {"axes": "ZYX"}}, 1, STACK),
        (STACK, {**GREY, "metadata": {"axes": "CYX"}}, 4, STACK),
        (np.stack([STACK, STACK + 7]), {**GREY, "metadata": {"axes": "CZYX"}}, 2, np.stack([STACK, STACK + 7])),
        (np.stack([STACK, STACK + 7], 1), {**GREY, "metadata": {"axes": "ZCYX"}}, 2, np.stack([STACK, STACK + 7])),
        (np.moveaxis(STACK[:3], 0, -1), {"photometric": "rgb"}, 3, STACK[:3]),
        (STACK.astype(np.float32) - 0.5, {**GREY, "compression": "zlib"}, 1, STACK - 0.5),
        (STACK[0] > 4, GREY, 1, STACK[0] > 4),
    ],
)
def test_tiff_axes_by_hand(
    voxels: np.ndarray, knobs: dict, channels: int, expected: np.ndarray, tmp_path: Path
) -> None:
    """Channels come first, then slices, rows and columns; values are as stored."""
    tifffile.imwrite(tmp_path / "a.tif", voxels, **knobs)
    header = image_file.header(tmp_path / "a.tif", "a")
    found = image_file.image(tmp_path / "a.tif", "a", header.shape)
    assert header.channels == channels
    assert found.dtype == np.float32
    assert found.shape == (channels, *header.shape)
    assert np.array_equal(found.squeeze(), expected)


@pytest.mark.parametrize(
    ("voxels", "knobs", "message"),
    [
        (
            STACK,
            {**GREY, "metadata": {"axes": "TYX"}},
            "expected the axes YX or ZYX, with C or S .* found TYX of shape",
        ),
        (np.stack([STACK, STACK]), GREY, "expected the axes YX or ZYX, .* found QQYX of shape"),
        (STACK[0] + 1j, GREY, "expected real numbers, found type complex"),
        (
            STACK[0],
            {"photometric": "miniswhite"},
            "expected grey where bright is large, or RGB, found MINISWHITE; conv",
        ),
    ],
)
def test_tiff_of_other_kinds_is_refused(voxels: np.ndarray, knobs: dict, message: str, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", voxels, **knobs)
    with pytest.raises(BadInput, match=rf"a.tif: case 'a': {message}"):
        tiff.image(tmp_path / "a.tif", "a")


def test_tiff_of_several_images_is_refused(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(STACK[0], **GREY)
        file.write(STACK[0, :3], **GREY)
    with pytest.raises(BadInput, match=r"expected one image or stack in the file, found 2 of the shapes \[\(6, 5\), "):
        tiff.header(tmp_path / "a.tif", "a")


@pytest.mark.skipif(find_spec("imagecodecs") is not None, reason="imagecodecs reads LZW")
def test_tiff_compressed_by_what_is_not_installed_says_what_to_do(tmp_path: Path) -> None:
    Image.fromarray(STACK[0].astype(np.uint8)).save(tmp_path / "a.tif", compression="tiff_lzw")
    with pytest.raises(BadInput, match=r"LZW: 5> requires the 'imagecodecs' .* save it with deflate or uncompressed"):
        tiff.mask(tmp_path / "a.tif", "a")


@pytest.mark.parametrize("metadata", [None, {"axes": "ZYX"}])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.6, 0.8])
def test_a_tiff_that_breaks_off_is_never_a_shorter_stack(
    metadata: Any, compression: Any, share: float, tmp_path: Path
) -> None:
    """A stack cut between two pages would open as fewer slices."""
    noise = np.random.default_rng(0).integers(0, 255, (5, 20, 24), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", noise, metadata=metadata, compression=compression, **GREY)
    content = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(content[: int(share * len(content))])
    with pytest.raises(BadInput, match=r"a.tif: case 'a': expected .*(unreadable|truncated or damaged)"):
        tiff.image(tmp_path / "a.tif", "a")


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".tif", ".tiff", ".png", ".bmp", ".TIF"])
def test_masks_of_every_format(ending: str, tmp_path: Path) -> None:
    label = disc((8, 10), 3) * 2
    label[0] = 255
    (tmp_path / "m").mkdir()
    save_image(tmp_path / f"m/a{ending.lower()}", label)
    file = (tmp_path / f"m/a{ending.lower()}").rename(tmp_path / f"m/a{ending}")
    assert np.array_equal(image_file.read_mask(file, "a", (8, 10), None, 3), label)
    with pytest.raises(BadInput, match=r"case 'a': expected the image's shape \(8, 9\), found \(8, 10\); resample"):
        image_file.read_mask(file, "a", (8, 9), None, 3)
    with pytest.raises(BadInput, match=r"case 'a': expected labels 0 to 1 \(and 255 for ignore\), found 2;"):
        image_file.read_mask(file, "a", (8, 10), None, 2)
    with pytest.raises(BadInput, match=r"case 'a': expected labels 0 to 2, found 255;"):
        image_file.read_mask(file, "a", (8, 10), None, 3, None)
    with pytest.raises(BadInput, match=r"none.nii: case 'a': expected a file, found none"):
        image_file.read_mask(tmp_path / "none.nii", "a", (8, 10), None, 3)


def test_masks_with_an_affine_must_have_the_one_of_the_image(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii", np.ones((2, 3, 4), np.uint8))
    eye = tuple(np.eye(4).ravel().tolist())
    image_file.read_mask(tmp_path / "a.nii", "a", (2, 3, 4), eye, 2)
    flipped = tuple(np.diag([-1.0, 1, 1, 1]).ravel().tolist())
    with pytest.raises(BadInput, match=r"expected the image's affine within 0.001, found a difference of 2;"):
        image_file.read_mask(tmp_path / "a.nii", "a", (2, 3, 4), flipped, 2)


def test_colour_masks_and_unknown_endings_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((4, 5, 3), np.uint8), photometric="rgb")
    with pytest.raises(BadInput, match=r"expected one channel of class indices, found 3 \(axes YXS\); save the index"):
        image_file.read_mask(tmp_path / "a.tif", "a", (4, 5), None, 2)
    with pytest.raises(BadInput, match=r"a.mgz: expected \.nii\.gz, .*, found '\.mgz'; convert it"):
        image_file.header(tmp_path / "a.mgz", "a")
    with pytest.raises(BadInput, match=r"a.dcm: found DICOM"):
        image_file.header(tmp_path / "a.dcm", "a")


# ---- folders of TIFF --------------------------------------------------------------------------------------------


def test_folders_of_stacks_and_of_many_channels(tmp_path: Path) -> None:
    """A stack with its mask; pictures of four channels are four, and cannot become grey."""
    save_image(tmp_path / "stacks/images/a.tif", STACK.astype(np.uint8))
    save_image(tmp_path / "stacks/masks/a.tif", (STACK > 40).astype(np.uint8))
    stacks = Folders(path=tmp_path / "stacks")
    (source,) = stacks.scan()
    image, label = stacks.read(source)
    assert (source.shape, stacks.channel_names()) == ((4, 6, 5), ["grey"])
    assert np.array_equal(image[0], STACK)
    assert np.array_equal(label, STACK > 40)
    bright = Folders(path=tmp_path / "stacks", foreground_above=0)
    assert np.array_equal(bright.read(source)[1], STACK > 40)
    (tmp_path / "many/images").mkdir(parents=True)
    tifffile.imwrite(tmp_path / "many/images/a.tif", STACK, metadata={"axes": "CYX"}, **GREY)
    many = Folders(path=tmp_path / "many", masks=None)
    assert many.channel_names() == ["channel_0", "channel_1", "channel_2", "channel_3"]
    assert many.read(many.scan()[0])[0].shape == (4, 6, 5)
    grey = Folders(path=tmp_path / "many", masks=None, channels="grey")
    with pytest.raises(
        BadInput, match="expected 1 or 3 channels for `channels: grey`, found 4; set `channels` to null"
    ):
        grey.read(grey.scan()[0])
