"""Pictures and TIFF files that a library hands over turned, inverted, cut or in part: read as written, or refused."""

from __future__ import annotations

import struct
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from pipeline.cases.files import image_file, picture
from pipeline.cases.readers.folders import Folders
from pipeline.errors import BadInput
from tests.fixtures.phantoms import disc, save_image
from tests.fixtures.picture_files import COLOUR, GREY, MINISBLACK, TAGGED, chunk, frames, png, write

MASK = disc((6, 8), 2.5, 1)
TURNED = 6


def palette(indices: np.ndarray, colours: list[int], **knobs: Any) -> Callable[[Path], Path]:
    def save(file: Path) -> Path:
        file.parent.mkdir(parents=True, exist_ok=True)
        drawn = Image.new("P", indices.shape[::-1])
        drawn.putdata(indices.ravel().tolist())
        drawn.putpalette(colours)
        drawn.save(file, **knobs)
        return file

    return save


def folders(root: Path, **knobs: Any) -> Folders:
    (root / "masks").mkdir(parents=True, exist_ok=True)
    return Folders(path=root, **knobs)


def read(reader: Folders) -> tuple[np.ndarray, np.ndarray | None]:
    (source,) = reader.scan()
    return reader.read(source)


def with_mask(root: Path, name: str, save: Callable[[Path], object] | np.ndarray | bytes, **knobs: Any) -> Folders:
    """The image GREY, and a mask: by a function, of pixels or of bytes."""
    write(root / "images/a.png", GREY)
    file = root / "masks" / name
    if callable(save):
        file.parent.mkdir(parents=True, exist_ok=True)
        save(file)
    else:
        write(file, save)
    return folders(root, **knobs)


def label_of(reader: Folders) -> np.ndarray:
    label = read(reader)[1]
    assert label is not None
    return label


# ---- turned ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(TAGGED))
@pytest.mark.parametrize("turn", [2, 3, TURNED, 8])
def test_a_rotation_tag_is_refused_in_every_format(kind: str, turn: int, tmp_path: Path) -> None:
    """The pixels and their mask are turned apart by software that follows the tag."""
    name, save = TAGGED[kind](turn)
    (tmp_path / "images").mkdir()
    save(tmp_path / "images" / name)
    message = rf"{name}: case 'a': expected an upright picture, found orientation {turn} in its .*; rotate the pixels"
    with pytest.raises(BadInput, match=message):
        read(folders(tmp_path))
    save(tmp_path / "masks" / name)
    (tmp_path / "images" / name).unlink()
    write(tmp_path / "images/a.png", GREY)
    for knobs in ({"foreground_above": 20}, {"classes": tuple(str(number) for number in range(48))}):
        with pytest.raises(BadInput, match=message):
            read(folders(tmp_path, **knobs))


@pytest.mark.parametrize("kind", list(TAGGED))
@pytest.mark.parametrize("turn", [0, 1])
def test_a_tag_that_turns_nothing_changes_nothing(kind: str, turn: int, tmp_path: Path) -> None:
    """1 is upright, and 0 means nothing."""
    name, save = TAGGED[kind](turn)
    (tmp_path / "images").mkdir()
    save(tmp_path / "images" / name)
    image, _ = read(folders(tmp_path))
    expected = np.moveaxis(COLOUR, -1, 0) if kind == "webp" else GREY[None]
    assert np.abs(image - expected).max() <= (3 if name.endswith("jpg") else 0)


def test_every_page_of_a_stack_is_upright(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with tifffile.TiffWriter(tmp_path / "images/a.tif") as file:
        file.write(GREY, metadata=None, **MINISBLACK)
        file.write(GREY, metadata=None, extratags=[(274, "H", 1, 3, True)], **MINISBLACK)
    with pytest.raises(BadInput, match=r"a.tif: case 'a': expected an upright picture, found orientation 3"):
        folders(tmp_path, masks=None).scan()


# ---- inverted --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [1, 8])
@pytest.mark.parametrize("knobs", [{}, {"foreground_above": 0}])
def test_tiff_masks_where_0_is_white_are_refused(bits: int, knobs: dict, tmp_path: Path) -> None:
    """Their values are the exact inverse of what a viewer shows; where 0 is black they are read as written."""
    values = MASK.astype(bool) if bits == 1 else MASK
    for photometric in ("minisblack", "miniswhite"):
        root = tmp_path / photometric
        reader = with_mask(
            root, "a.tif", lambda file, kind=photometric: tifffile.imwrite(file, values, photometric=kind), **knobs
        )
        if photometric == "minisblack":
            assert np.array_equal(label_of(reader), MASK)
            continue
        with pytest.raises(
            BadInput, match=r"a.tif: case 'a': expected .* 0 is black.*|bright is large.*, found MINISW"
        ):
            read(reader)


def test_a_stack_with_a_page_where_0_is_white_is_refused(tmp_path: Path) -> None:
    write_stack = tmp_path / "masks"
    write_stack.mkdir()
    with tifffile.TiffWriter(write_stack / "a.tif") as file:
        for kind in ("minisblack", "miniswhite"):
            file.write(MASK, metadata=None, photometric=kind)
    with pytest.raises(BadInput, match=r"a.tif: case 'a': expected"):
        image_file.read_mask(write_stack / "a.tif", "a", (2, 6, 8), None, 2)


WHITE, BLACK, RED = [255, 255, 255], [0, 0, 0], [255, 0, 0]


@pytest.mark.parametrize(
    ("colours", "knobs", "message"),
    [
        (
            WHITE + BLACK,
            {},
            r"in which index 0 is the background, found 0: \[255, 255, 255, 255\], 1: \[0, 0, 0, 255\]; save",
        ),
        ([255] * 3 + [254] * 3, {}, "in which index 0 is the background"),
        ([2, 2, 2, *BLACK], {}, "in which index 0 is the background"),
        ([*BLACK, 2, 2, 2], {}, "in which index 0 is the background"),
        (WHITE + WHITE, {"transparency": b"\xff\0"}, "in which index 0 is the background"),
        (BLACK + RED, {"transparency": b"\xff\0"}, "in which index 0 is the background"),
        (BLACK + WHITE, {}, ""),
        (BLACK + RED, {}, ""),
        (WHITE + RED, {}, ""),
        ([*BLACK, 1, 1, 1], {}, ""),
        (BLACK + BLACK, {}, ""),
        (BLACK + RED, {"transparency": 0}, ""),
        (BLACK + RED, {"transparency": b"\0\x80"}, ""),
    ],
)
def test_colour_tables_say_the_same_as_their_indices(
    colours: list[int], knobs: dict, message: str, tmp_path: Path
) -> None:
    """Black and white in the other order, class numbers in another order, a class that is drawn as transparent."""
    reader = with_mask(tmp_path, "a.png", palette(MASK, colours, **knobs))
    if not message:
        assert np.array_equal(label_of(reader), MASK)
        return
    with pytest.raises(BadInput, match=rf"a.png: case 'a': expected a colour table {message}"):
        read(reader)


@pytest.mark.parametrize("ending", [".bmp", ".tif"])
def test_colour_tables_of_other_formats(ending: str, tmp_path: Path) -> None:
    assert np.array_equal(label_of(with_mask(tmp_path / "1", f"a{ending}", palette(MASK, BLACK + RED))), MASK)
    with pytest.raises(BadInput, match=r"index 0 is the background"):
        read(with_mask(tmp_path / "2", f"a{ending}", palette(MASK, WHITE + BLACK)))
    bright = with_mask(tmp_path / "3", f"a{ending}", palette(MASK, WHITE + BLACK), foreground_above=127)
    if ending == ".bmp":
        assert np.array_equal(label_of(bright), 1 - MASK)
    else:
        with pytest.raises(BadInput, match="found PALETTE; convert it"):
            read(bright)


def test_an_empty_mask_of_one_colour_is_not_a_guess(tmp_path: Path) -> None:
    """A table that holds white alone is a mask of nothing but foreground to a viewer."""
    with pytest.raises(BadInput, match="index 0 is the background"):
        read(with_mask(tmp_path, "a.png", palette(np.zeros_like(MASK), WHITE)))


# ---- drawn in the alpha channel --------------------------------------------------------------------------------


def alpha_masks() -> dict[str, np.ndarray | Callable[[Path], Path]]:
    drawn = (MASK * 255)[..., None]
    white = np.full((6, 8, 3), 255, np.uint8)
    return {
        "RGBA": np.concatenate([white, drawn], -1),
        "RGBA, black": np.concatenate([white * 0, drawn], -1),
        "RGBA, inverse": np.concatenate([white, 255 - drawn], -1),
        "RGBA, half": np.concatenate([white, drawn // 2], -1),
        "LA": np.concatenate([white[..., :1], drawn], -1),
        "palette": palette(MASK, WHITE + WHITE, transparency=b"\0\xff"),
        "palette, one colour": palette(MASK, WHITE + RED, transparency=0),
        "RGB with a transparent colour": lambda file: write(
            file, png(white * MASK[..., None], 8, 2, chunk(b"tRNS", bytes(6)))
        ),
        "grey with a transparent value": lambda file: write(file, png(MASK * 255, 8, 0, chunk(b"tRNS", bytes(2)))),
    }


@pytest.mark.parametrize("kind", list(alpha_masks()))
def test_masks_drawn_in_the_alpha_channel_are_refused(kind: str, tmp_path: Path) -> None:
    reader = with_mask(tmp_path, "a.png", alpha_masks()[kind], foreground_above=127)
    message = r"a.png: case 'a': expected an opaque mask, found alpha from 0 to (127|255); save the mask as grey. If it"
    with pytest.raises(BadInput, match=message) as caught:
        read(reader)
    assert "foreground_above" not in str(caught.value)
    if kind in ("RGBA", "LA"):
        with pytest.raises(BadInput, match=message):
            read(with_mask(tmp_path, "a.png", alpha_masks()[kind]))


def test_the_way_out_of_the_message_works(tmp_path: Path) -> None:
    for number, kind in enumerate(["RGBA", "LA", "palette"]):
        reader = with_mask(tmp_path / str(number), "a.png", alpha_masks()[kind], foreground_above=127)
        file = tmp_path / str(number) / "masks/a.png"
        Image.open(file).convert("RGBA").getchannel("A").save(file)
        assert np.array_equal(label_of(reader), MASK)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_an_opaque_alpha_channel_is_no_fault(mode: str, tmp_path: Path) -> None:
    channels = [MASK * 255] * (len(mode) - 1) + [np.full_like(MASK, 255)]
    reader = with_mask(tmp_path, "a.png", np.stack(channels, -1), foreground_above=127)
    assert np.array_equal(label_of(reader), MASK)


def test_tiff_with_alpha_is_refused(tmp_path: Path) -> None:
    values = np.stack([np.full_like(MASK, 255)] * 3 + [MASK * 255], -1)
    save = lambda file: tifffile.imwrite(file, values, photometric="rgb", extrasamples=["unassalpha"])  # noqa: E731
    with pytest.raises(BadInput, match="expected grey or RGB without alpha, found 4 channels"):
        read(with_mask(tmp_path, "a.tif", save, foreground_above=127))


# ---- what a file is follows from its content -------------------------------------------------------------------


@pytest.mark.parametrize("content", ["JPEG", "WEBP", "GIF", "JPEG2000", "TIFF", "PPM", "AVIF"])
def test_lossy_content_behind_png_is_no_mask_of_classes(content: str, tmp_path: Path) -> None:
    """JPEG and WebP move class indices; GIF renumbers them."""
    label = disc((32, 40), 9) * 2 + disc((32, 40), 4)
    reader = with_mask(tmp_path, "a.png", lambda file: write(file, label * 40, format=content), classes=tuple("abcd"))
    write(tmp_path / "images/a.png", label)
    known = content in ("JPEG", "WEBP")
    message = (
        "class indices in a lossless format, found (JPEG|WEBP), which"
        if known
        else "a file of the format PNG, .* found "
    )
    with pytest.raises(BadInput, match=rf"a.png: case 'a': expected {message}"):
        read(reader)


@pytest.mark.parametrize("ending", [".jpg", ".jpeg", ".bmp"])
def test_lossless_content_behind_another_name_is_read(ending: str, tmp_path: Path) -> None:
    reader = with_mask(tmp_path, f"a{ending}", lambda file: write(file, MASK, format="PNG"))
    assert np.array_equal(label_of(reader), MASK)


def test_tiff_with_lossy_compression_is_no_mask_of_classes(tmp_path: Path) -> None:
    save = lambda file: Image.fromarray(np.kron(MASK, np.ones((16, 16), np.uint8))).save(file, compression="jpeg")  # noqa: E731
    (tmp_path / "m").mkdir()
    save(tmp_path / "m/a.tif")
    with pytest.raises(
        BadInput, match=r"a.tif: case 'a': expected class indices in a lossless compression, found JPEG"
    ):
        image_file.read_mask(tmp_path / "m/a.tif", "a", (96, 128), None, 2)


# ---- cut or in part --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (4, 2), (6, 4)])
@pytest.mark.parametrize("where", ["images", "masks"])
def test_sixteen_bits_of_colour_are_refused(colour: int, channels: int, where: str, tmp_path: Path) -> None:
    """Pillow would hand over the upper 8 bits: 4001 becomes 15. As TIFF the same picture is whole."""
    samples = np.full((6, 8, channels), 4001, np.uint16)
    write(tmp_path / "images/a.png", GREY)
    write(tmp_path / where / "a.png", png(samples, 16, colour))
    with pytest.raises(BadInput, match=r"a.png: case 'a': expected 8 bits per channel, .* found 16 bits .* as TIFF"):
        read(folders(tmp_path, foreground_above=127))
    if channels == 3 and where == "images":
        (tmp_path / "images/a.png").unlink()
        tifffile.imwrite(tmp_path / "images/a.tif", samples, photometric="rgb")
        assert (read(folders(tmp_path / "."))[0] == 4001).all()


@pytest.mark.parametrize(("kind", "name"), [("PNG", "a.png"), ("MPO", "a.jpg"), ("WEBP", "a.png"), ("GIF", "a.png")])
def test_several_frames_are_refused(kind: str, name: str, tmp_path: Path) -> None:
    """As TIFF is; a file of one frame is a picture."""
    frames(kind)((tmp_path / "images").mkdir() or tmp_path / "images" / name)
    message = (
        "found GIF; convert" if kind == "GIF" else rf"expected one picture in the file, found 3 \({kind}\); save each"
    )
    with pytest.raises(BadInput, match=rf"{name}: case 'a': .*{message}"):
        folders(tmp_path).scan()
    (tmp_path / "images" / name).rename(tmp_path / "masks" / name)
    write(tmp_path / "images/a.png", GREY)
    for knobs in ({}, {"foreground_above": 127}):
        with pytest.raises(BadInput, match=message):
            read(folders(tmp_path, **knobs))


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("colour", [0, 3])
def test_masks_of_every_depth_are_their_samples(bits: int, colour: int, tmp_path: Path) -> None:
    """Pillow stretches grey of 2 and 4 bits to 0, 85, 170, 255 and to 0, 17, 34, ..."""
    if colour == 3 and bits == 16:
        return
    classes = min(4, 2**bits)
    label = np.arange(48).reshape(6, 8) % classes
    table = chunk(b"PLTE", bytes(BLACK + RED + [0, 255, 0] + [0, 0, 255])) if colour == 3 else b""
    reader = with_mask(tmp_path, "a.png", png(label, bits, colour, table), classes=tuple("abcd"))
    assert np.array_equal(label_of(reader), label)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_bright_masks_of_every_depth(bits: int, tmp_path: Path) -> None:
    reader = with_mask(tmp_path, "a.png", png(MASK.astype(np.uint16) * (2**bits - 1), bits), foreground_above=127)
    assert np.array_equal(label_of(reader), MASK)


@pytest.mark.parametrize("kind", ["bool", "uint8", "uint16", "float32", "rgb", "rgb16"])
def test_bright_masks_of_tiff(kind: str, tmp_path: Path) -> None:
    values = MASK.astype(bool) if kind == "bool" else MASK * np.float64(65535 if kind.endswith("16") else 255)
    values = values.astype({"rgb": "uint8", "rgb16": "uint16"}.get(kind, kind))
    knobs = {"photometric": "rgb" if kind.startswith("rgb") else "minisblack"}
    values = np.stack([values] * 3, -1) if kind.startswith("rgb") else values
    reader = with_mask(tmp_path, "a.tif", lambda file: tifffile.imwrite(file, values, **knobs), foreground_above=127)
    assert np.array_equal(label_of(reader), MASK)


def test_a_picture_above_the_limit_of_pillow_says_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same pixels as TIFF are read."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    write(tmp_path / "images/a.png", GREY)
    with pytest.raises(
        BadInput, match=r"a.png: case 'a': .* found too many pixels; save it as TIFF, or cut it into ti"
    ):
        folders(tmp_path).scan()
    (tmp_path / "images/a.png").unlink()
    save_image(tmp_path / "images/a.tif", GREY)
    assert np.array_equal(read(folders(tmp_path))[0][0], GREY)


@pytest.mark.parametrize(
    "content", [b"", b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\0\xff", b"II*\0\xff\xff\xff\xff", b"no tags"]
)
def test_a_broken_tag_is_no_traceback(content: bytes, tmp_path: Path) -> None:
    """A picture whose tags cannot be read has none, or the file is named."""
    for place in ("early", "late"):
        write(tmp_path / "images/a.png", png(GREY, 8, **{place: chunk(b"eXIf", content)}))
        try:
            found = read(folders(tmp_path))[0][0]
        except BadInput as error:
            message = str(error)
            assert "a.png: case 'a': expected" in message
        else:
            assert np.array_equal(found, GREY)


# ---- damaged ---------------------------------------------------------------------------------------------------


def test_a_flipped_bit_in_a_png_is_never_another_picture(tmp_path: Path) -> None:
    """Pillow stops before the checksums of the pixels; BMP, JPEG and plain TIFF have none."""
    noise = np.random.default_rng(0).integers(0, 2, (8, 10), dtype=np.uint8)
    file = write(tmp_path / "a.png", noise)
    whole = file.read_bytes()
    end = len(whole) - 12  # a fault of the last, empty chunk is no fault of the picture
    for bit in range(8 * end):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        for read_file in (picture.image, picture.mask, picture.brightness):
            with pytest.raises(BadInput, match=r"a.png: case 'a': expected .*(damaged|unreadable|format)"):
                read_file(file, "a")


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_flipped_bit_in_a_tiff_is_no_traceback(compression: Any, tmp_path: Path) -> None:
    """The tags are not protected: what is read has whole numbers of rows and columns, or the file is named."""
    tifffile.imwrite(tmp_path / "a.tif", GREY[:3, :3], compression=compression, metadata=None, **MINISBLACK)
    whole = (tmp_path / "a.tif").read_bytes()
    refused = 0
    for bit in range(0, 8 * len(whole), 3):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        (tmp_path / "a.tif").write_bytes(damaged)
        for read_file in (image_file.image, lambda *given: image_file.read_mask(*given, None, 200)):
            try:
                read_file(tmp_path / "a.tif", "a", image_file.header(tmp_path / "a.tif", "a").shape)
            except BadInput as error:
                refused += "a.tif: case 'a': expected" in str(error)
    assert refused > len(whole) / 3


def test_tiff_of_4_bits_says_what_to_do(tmp_path: Path) -> None:
    """tifffile unpacks 1, 8, 16 and more bits; 4 bits need a library that is not installed."""
    tags = [(256, 4), (257, 2), (258, 4), (259, 1), (262, 1), (273, 8), (277, 1), (278, 2), (279, 4)]
    content = b"II*\0" + struct.pack("<I", 12) + bytes([0x01, 0x23, 0x21, 0x10]) + struct.pack("<H", len(tags))
    content += b"".join(struct.pack("<HHII", number, 4, 1, value) for number, value in tags) + bytes(4)
    write(tmp_path / "a.tif", content)
    if find_spec("imagecodecs") is not None:
        assert image_file.read_mask(tmp_path / "a.tif", "a", (2, 4), None, 4).tolist() == [[0, 1, 2, 3], [2, 1, 1, 0]]
        return
    with pytest.raises(BadInput, match=r"a.tif: case 'a': expected .* or depth that is not installed .* and 8 or 16"):
        image_file.read_mask(tmp_path / "a.tif", "a", (2, 4), None, 4)
