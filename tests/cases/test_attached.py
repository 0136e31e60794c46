"""NRRD and MetaImage files: the same case as in NIfTI, damage, and headers that are refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from pipeline.cases.files import attached, image_file
from pipeline.cases.files.header import Header
from pipeline.errors import BadInput
from pipeline.seeding import numpy_generator
from tests.fixtures.attached_files import metaimage, nrrd, write_attached
from tests.fixtures.phantoms import disc

SHAPE = (9, 8, 7)
NOISE = numpy_generator("attached").integers(-1000, 1000, SHAPE).astype(np.int16)
ENDINGS = [".nrrd", ".mha"]
_A, _B = np.pi / 6, np.pi / 9
TURN = np.array([[np.cos(_A), -np.sin(_A), 0], [np.sin(_A), np.cos(_A), 0], [0, 0, 1]])
OBLIQUE = TURN @ np.array([[1, 0, 0], [0, np.cos(_B), -np.sin(_B)], [0, np.sin(_B), np.cos(_B)]])
"""Directions of a volume that is turned about one axis, and about two."""


def read(file: Path) -> tuple[Header, np.ndarray]:
    header = image_file.header(file, "a")
    return header, image_file.image(file, "a", header.shape)


def itk_image(voxels: np.ndarray, directions: np.ndarray) -> Any:
    """ITK lists axes in reverse order."""
    image = sitk.GetImageFromArray(voxels.T)
    image.SetSpacing((0.8, 1.1, 2.5)[: voxels.ndim])
    image.SetOrigin((-31.7, 12.3, 7.9)[: voxels.ndim])
    image.SetDirection(directions.ravel())
    return image


# ---- as ITK and NIfTI ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(
    "directions",
    [np.eye(3), OBLIQUE, np.eye(3)[[1, 2, 0]], np.diag([1.0, 1, -1]), np.eye(2), TURN[:2, :2]],
    ids=["LPS", "oblique", "turned", "left-handed", "2D", "2D-turned"],
)
def test_a_case_is_the_same_in_every_format_that_itk_writes(
    directions: np.ndarray, ending: str, packed: bool, tmp_path: Path
) -> None:
    """Voxels and spacing to the bit, and the affine to the last digit of float32."""
    voxels = NOISE if len(directions) == 3 else NOISE[:, :, 0]
    for file in (tmp_path / f"a{ending}", tmp_path / "a.nii.gz"):
        sitk.WriteImage(itk_image(voxels, directions), str(file), packed)
    (found, image), (expected, as_nifti) = read(tmp_path / f"a{ending}"), read(tmp_path / "a.nii.gz")
    assert found == Header(1, voxels.shape, (0.8, 1.1, 2.5)[: voxels.ndim], found.affine)
    assert (found.shape, found.spacing_mm) == (expected.shape, pytest.approx(expected.spacing_mm, rel=1e-6))
    assert found.affine == pytest.approx(expected.affine, rel=2e-7, abs=1e-9)
    assert image.dtype == np.float32
    assert np.array_equal(image, as_nifti)
    assert np.array_equal(image[0], voxels)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("kind", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
def test_every_type_of_numbers_that_itk_writes(kind: str, ending: str, tmp_path: Path) -> None:
    voxels = numpy_generator("types").integers(0, 100, SHAPE).astype(kind)
    voxels[0, 0, 0] = np.iinfo(kind).max if kind[0] in "iu" else 0.1
    sitk.WriteImage(sitk.GetImageFromArray(voxels.T), str(tmp_path / f"a{ending}"), True)
    found = image_file.mask_values(tmp_path / f"a{ending}", "a", SHAPE, None)
    assert found.dtype == voxels.dtype
    assert np.array_equal(found, voxels)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("ending", ENDINGS)
def test_the_first_byte_may_be_the_large_one(ending: str, packed: bool, tmp_path: Path) -> None:
    other: dict[str, Any] = {"endian": "big"} if ending == ".nrrd" else {"BinaryDataByteOrderMSB": "True"}
    write_attached(tmp_path / f"a{ending}", NOISE.astype(">i2"), packed, **other)
    assert np.array_equal(read(tmp_path / f"a{ending}")[1][0], NOISE)


@pytest.mark.parametrize(
    ("space", "signs"),
    [
        ("left-posterior-superior", (-1, -1, 1)),
        ("LPS", (-1, -1, 1)),
        ("right-anterior-superior", (1, 1, 1)),
        ("RAS", (1, 1, 1)),
        ("left-anterior-superior", (-1, 1, 1)),
    ],
)
def test_spaces_of_nrrd_lead_to_that_of_nifti(space: str, signs: tuple[int, ...], tmp_path: Path) -> None:
    """A step along the second axis of the file leads 0.3 along the first axis of space. ITK finds the same affine."""
    fields: dict[str, Any] = {"space_directions": "(1,0,0) (0.3,2,0) (0,0,3)", "space_origin": "(4,5,6)"}
    write_attached(tmp_path / "a.nrrd", NOISE, space=space, **fields)
    found = image_file.header(tmp_path / "a.nrrd", "a")
    rows = np.array([[1, 0.3, 0, 4], [0, 2, 0, 5], [0, 0, 3, 6]]) * np.array(signs)[:, None]
    assert found.affine == pytest.approx((*rows.ravel(), 0, 0, 0, 1), rel=1e-6)
    assert found.spacing_mm == pytest.approx((1, 2.02237484162, 3), rel=1e-11)
    image = sitk.ReadImage(str(tmp_path / "a.nrrd"))
    columns = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    assert np.allclose(np.diag([-1, -1, 1]) @ columns, rows[:, :3], rtol=1e-6)


def test_a_file_as_slicer_writes_it(tmp_path: Path) -> None:
    """Comments, keys of its own, units, and line ends of Windows. Names of fields may have capitals."""
    content = nrrd(NOISE, True, (1.0, 0.5, 2.0), space_units='"mm" "mm" "mm"', centerings="cell cell cell")
    text, voxels = content.split(b"\n\n", 1)
    text = text.replace(b"NRRD0004\n", b"NRRD0005\n# by hand\nSegmentation_Name:=a: b\n").replace(
        b"space d", b"Space D"
    )
    (tmp_path / "a.nrrd").write_bytes(text.replace(b"\n", b"\r\n") + b"\r\n\r\n" + voxels)
    header, image = read(tmp_path / "a.nrrd")
    assert header == Header(1, SHAPE, (1.0, 0.5, 2.0), (1, 0, 0, 0, 0, 0.5, 0, 0, 0, 0, 2, 0, 0, 0, 0, 1))
    assert np.array_equal(image[0], NOISE)


def test_the_grid_of_a_metaimage_under_its_older_names(tmp_path: Path) -> None:
    """The file lists the directions axis by axis: a step along the first axis leads backwards, to the posterior."""
    fields: dict[str, Any] = {"TransformMatrix": None, "Rotation": "0 1 0 0 0 1 1 0 0", "Offset": None}
    write_attached(tmp_path / "a.mha", NOISE, Position="1 2 3", ElementSpacing=None, ElementSize="2 3 4", **fields)
    found = image_file.header(tmp_path / "a.mha", "a")
    assert found.spacing_mm == (2.0, 3.0, 4.0)
    assert found.affine == (0, 0, -4, -1, -2, 0, 0, -2, 0, 3, 0, 3, 0, 0, 0, 1)


@pytest.mark.parametrize("stated", [True, False])
def test_without_directions_the_orientation_is_unknown(stated: bool, tmp_path: Path) -> None:
    """As in a NIfTI file whose codes are 0. Without edges the spacing is unknown too, as that of a picture."""
    edges = "1 2 3" if stated else None
    none: dict[str, Any] = {"space": None, "space_directions": None, "space_origin": None}
    write_attached(tmp_path / "a.nrrd", NOISE, spacings=edges, **none)
    write_attached(tmp_path / "a.mha", NOISE, TransformMatrix=None, ElementSpacing=edges)
    for name in ("a.nrrd", "a.mha"):
        assert image_file.header(tmp_path / name, "a") == Header(1, SHAPE, (1.0, 2.0, 3.0) if stated else None, None)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_single_slice_is_an_image(ending: str, tmp_path: Path) -> None:
    write_attached(tmp_path / f"a{ending}", NOISE[:, :, :1])
    header, image = read(tmp_path / f"a{ending}")
    assert (header.shape, header.spacing_mm) == ((9, 8), (1.0, 0.5))
    assert header.affine is not None
    assert np.array_equal(image[0], NOISE[:, :, 0])


# ---- masks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("shape", [(9, 8, 7), (9, 8, 1), (9, 8)])
def test_a_mask_has_the_grid_of_its_image_and_no_free_text(shape: tuple[int, ...], ending: str, tmp_path: Path) -> None:
    """ITK finds the grid of the image to the bit, in an image with three axes of which one is a single slice too."""
    file, out = tmp_path / f"a{ending}", tmp_path / f"out/b{ending}"
    directions = OBLIQUE if len(shape) == 3 else np.eye(2)
    image = itk_image(numpy_generator("mask").integers(0, 9, shape).astype(np.int16), directions)
    sitk.WriteImage(image, str(file))
    content = file.read_bytes()
    note = b"content: patient" if ending == ".nrrd" else b"Comment = patient"
    file.write_bytes(content.replace(b"type: short", note + b"\ntype: short").replace(b"NDims", note + b"\nNDims"))
    mask = disc(image_file.header(file, "a").shape, 3)
    assert image_file.mask_ending(file) == ending
    image_file.write_mask(mask, file, out)
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    read_by_itk = sitk.ReadImage(str(out))
    assert read_by_itk.GetPixelID() == sitk.sitkUInt8
    for get in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(read_by_itk, get)() == getattr(sitk.ReadImage(str(file)), get)()
    assert np.array_equal(sitk.GetArrayFromImage(read_by_itk).T.reshape(mask.shape), mask)
    assert b"patient" in file.read_bytes()
    assert b"patient" not in out.read_bytes()
    header = image_file.header(file, "a")
    assert image_file.header(out, "a") == header
    assert np.array_equal(image_file.read_mask(out, "a", header.shape, header.affine, 2), mask)


def test_masks_are_compared_with_images_of_other_formats(tmp_path: Path) -> None:
    """A mask as .nii.gz for an image as .nrrd, and the other way round; and a mask on a grid that is moved by 1 mm."""
    nibabel.save(nibabel.Nifti1Image(disc(SHAPE, 3), np.diag([1, 0.5, 2, 1])), tmp_path / "a.nii.gz")
    files = [tmp_path / name for name in ("a.nrrd", "a.mha", "a.nii.gz")]
    for file in files[:2]:
        write_attached(file, disc(SHAPE, 3))
    for file in files:
        affine = image_file.header(file, "a").affine
        for mask in files:
            assert np.array_equal(image_file.read_mask(mask, "a", SHAPE, affine, 2), disc(SHAPE, 3))
    write_attached(files[0], disc(SHAPE, 3), space_origin="(1,0,0)")
    write_attached(files[1], disc(SHAPE, 3), TransformMatrix=None)
    affine = image_file.header(files[2], "a").affine
    with pytest.raises(BadInput, match=r"a.nrrd: case 'a': expected the image's affine .* found a difference of 1;"):
        image_file.read_mask(files[0], "a", SHAPE, affine, 2)
    with pytest.raises(BadInput, match=r"a.mha: case 'a': expected the image's affine .* found a difference of inf;"):
        image_file.read_mask(files[1], "a", SHAPE, affine, 2)
    with pytest.raises(BadInput, match=r"a.nrrd: case 'a': expected the image's shape \(9, 8, 6\), found \(9, 8, 7\)"):
        image_file.read_mask(files[0], "a", (9, 8, 6), None, 2)


# ---- damage ----------------------------------------------------------------------------------------------------

WRITERS = {".nrrd": nrrd, ".mha": metaimage}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_that_breaks_off_is_damaged_when_its_header_is_read(ending: str, packed: bool, tmp_path: Path) -> None:
    """At any byte: in the header, in the voxels, and in the checksum, which SimpleITK does not read."""
    file = tmp_path / f"a{ending}"
    whole = WRITERS[ending](NOISE, packed, (1.0, 0.5, 2.0))
    for kept in (*range(0, len(whole), len(whole) // 50), len(whole) - 9, len(whole) - 1):
        file.write_bytes(whole[:kept])
        with pytest.raises(BadInput, match=rf"a{ending}: case 'a': expected .*; fetch .*again"):
            attached.header(file, "a")


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("ending", ENDINGS)
def test_bytes_behind_the_voxels_are_refused(ending: str, packed: bool, tmp_path: Path) -> None:
    """The shape in the header may be too small, or two files are in one."""
    file = tmp_path / f"a{ending}"
    file.write_bytes(WRITERS[ending](NOISE, packed, (1.0, 0.5, 2.0)) + b"behind")
    with pytest.raises(BadInput, match=r"found a truncated or damaged file, or a wrong header \(.*\); fetch it again"):
        read(file)


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_flipped_bit_of_compressed_voxels_is_found(ending: str, tmp_path: Path) -> None:
    """The voxels are those that were written, or the file is refused. SimpleITK hands over other voxels of `.mha`."""
    file = tmp_path / f"a{ending}"
    whole = WRITERS[ending](NOISE, True, (1.0, 0.5, 2.0))
    start = len(whole) - len(whole.split(b"\n\n" if ending == ".nrrd" else b"LOCAL\n", 1)[1])
    messages = []
    for bit in range(8 * start, 8 * len(whole), 8 * (len(whole) - start) // 210):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        try:
            found = read(file)[1]
        except BadInput as error:
            messages.append(str(error))
        else:
            assert np.array_equal(found[0], NOISE), f"bit {bit} of {8 * len(whole)}"
    assert len(messages) > 200
    assert all("truncated or damaged file" in message for message in messages)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_length_that_the_file_does_not_have(ending: str, tmp_path: Path) -> None:
    """Nothing of the size in the header is made, and 2^32 bytes more are no way out of the length modulo 2^32."""
    file = tmp_path / f"a{ending}"
    for sizes in (f"{9 + 2**20} 8 7", f"{9 + 2**32} 8 7", "9 8 6"):
        for packed in (False, True):
            write_attached(file, NOISE, packed, **{"sizes" if ending == ".nrrd" else "DimSize": sizes})
            with pytest.raises(BadInput, match=r"found a truncated or damaged file, or a wrong header"):
                read(file)


def test_a_compressed_metaimage_may_leave_out_its_length(tmp_path: Path) -> None:
    write_attached(tmp_path / "a.mha", NOISE, CompressedDataSize=None)
    assert np.array_equal(read(tmp_path / "a.mha")[1][0], NOISE)


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    for ending in ENDINGS:
        file = tmp_path / f"a{ending}"
        with pytest.raises(BadInput, match=r"expected a file, found none"):
            image_file.header(file, "a")
        file.write_bytes(b"<html>nothing</html>\n")
        with pytest.raises(BadInput, match=rf"a{ending}: case 'a': expected .* begins with .*<html>.*; fetch"):
            image_file.header(file, "a")
        file.write_bytes(bytes(128) + b"DICM" + bytes(64))
        with pytest.raises(BadInput, match="found DICOM"):
            image_file.header(file, "a")
    for name in ("a.mhd", "a.nhdr"):
        with pytest.raises(BadInput, match=r"found a header .* voxels are in another file; save .* as .nrrd or .mha"):
            image_file.header(tmp_path / name, "a")


# ---- headers that are refused ----------------------------------------------------------------------------------

DIRECTIONS = "(1,0,0) (0,2,0) (0,0,3)"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data_file": "a.raw"}, "expected the voxels behind the header, found `data file: a.raw`; save image and"),
        ({"datafile": "LIST"}, "expected the voxels behind the header"),
        (
            {"kinds": "vector domain domain"},
            "expected axes of space .* found 'vector' in `kinds: vector domain domain`",
        ),
        ({"kinds": "domain domain time"}, "found 'time'"),
        ({"kinds": "3D-masked-symmetric-matrix domain domain"}, "found '3d-masked-symmetric-matrix'"),
        (
            {"dimension": 4, "sizes": "9 8 7 1"},
            "expected an image or a volume, found `dimension` 4 and `sizes` 9 8 7 1",
        ),
        ({"sizes": "9 8"}, "found `dimension` 3 and `sizes` 9 8"),
        ({"sizes": "9 8 -7"}, "expected whole numbers above 0 in `sizes`, found 9 8 -7"),
        ({"space": "scanner-xyz"}, "expected the `space` left-posterior-superior or .*, found 'scanner-xyz', so that"),
        ({"space": "3D-right-handed"}, "found '3d-right-handed'"),
        ({"space": None, "space_dimension": 3}, "found none, so that left and right are unknown"),
        ({"space": "left-posterior-superior-time"}, "found 'left-posterior-superior-time'"),
        ({"space_directions": "none (0,2,0) (0,0,3)"}, "expected 3 vectors of 3 numbers .* found none"),
        ({"space_directions": "(1,0,0) (0,2,0)"}, "expected 3 vectors of 3 numbers in `space directions`"),
        ({"space_directions": "(1,0) (0,2) (0,3)"}, "expected 3 vectors of 3 numbers in `space directions`"),
        ({"space_directions": "(1,0,0) (0,2,0) (0,x,3)"}, "expected numbers in `space directions`, found 0,x,3"),
        ({"space_directions": "(1,0,0) (0,2,0) (0,0,nan)"}, r"voxel edges above 0|expected three directions"),
        ({"space_directions": "(1,0,0) (0,2,0) (0,0,0)"}, "expected three directions in `space directions`"),
        ({"space_directions": "(1,0,0) (1,0,0) (0,0,3)"}, "expected three directions in `space directions`"),
        ({"space_origin": "(1,2)"}, "expected 3 numbers in `space origin`"),
        ({"space_origin": "(nan,nan,nan)"}, "expected three directions"),
        ({"spacings": "1 2 3"}, "expected the voxel edges once, found `spacings: 1 2 3` beside `space directions`"),
        ({"space_directions": None, "spacings": "1 0 3"}, r"edges above 0, found \(1, 0, 3\) in `spacings`"),
        ({"space_directions": None, "spacings": "1 nan 3"}, r"edges above 0, found \(1, nan, 3\) in `spacings`"),
        ({"space_units": '"cm" "cm" "cm"'}, "expected millimetres, found the unit 'cm'"),
        ({"type": "block"}, "expected voxels of real numbers, found the type 'block'"),
        ({"encoding": "ascii"}, "expected the encoding raw or gzip, found 'ascii'"),
        ({"encoding": "bzip2"}, "expected the encoding raw or gzip, found 'bzip2'"),
        ({"endian": None}, "expected `endian` in the header, found none"),
        ({"endian": "middle"}, "expected `endian` little or big, found 'middle'"),
        ({"byte_skip": 4}, "expected voxels right behind the header, found `byteskip: 4`"),
        ({"Sizes": "9 8 7"}, "expected each field of the header once, with a value, found 'sizes' twice"),
        ({"type": None}, "expected `type` in the header, found none"),
    ],
)
def test_headers_of_nrrd_that_are_refused_by_name(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_attached(tmp_path / "a.nrrd", NOISE, False, **fields)
    with pytest.raises(BadInput, match=f"a.nrrd: case 'a': .*{message}"):
        image_file.header(tmp_path / "a.nrrd", "a")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ElementDataFile": "a.raw"}, "expected the voxels behind the header, found `ElementDataFile = a.raw`; save"),
        ({"ElementDataFile": "LIST"}, "expected the voxels behind the header"),
        ({"NDims": 4, "DimSize": "9 8 7 1"}, "expected an image or a volume, found `NDims` 4 and `DimSize` 9 8 7 1"),
        ({"ElementNumberOfChannels": 3}, "expected `ElementNumberOfChannels = 1`, found 3; save one plain number"),
        ({"ElementToIntensityFunctionSlope": 2}, "expected `ElementToIntensityFunctionSlope = 1`, found 2"),
        ({"ElementToIntensityFunctionOffset": -1024}, "expected `ElementToIntensityFunctionOffset = 0`, found -1024"),
        ({"HeaderSize": -1}, "expected `HeaderSize = 0`, found -1"),
        ({"BinaryData": "False"}, "expected `BinaryData = True`, found voxels as text"),
        ({"DistanceUnits": "cm"}, "expected millimetres, found `DistanceUnits = cm`"),
        ({"BinaryDataByteOrderMSB": None}, "expected `BinaryDataByteOrderMSB` in the header, found none"),
        ({"ElementType": "MET_UCHAR_ARRAY"}, "expected voxels of real numbers, found the type 'MET_UCHAR_ARRAY'"),
        ({"ElementSpacing": "1 2"}, "expected 3 numbers in `ElementSpacing`, found 1 2"),
        ({"ElementSpacing": "1 2 -3"}, r"expected voxel edges above 0, found \(1, 2, -3\) in `ElementSpacing`"),
        ({"ElementSpacing": None}, "expected `ElementSpacing` beside `TransformMatrix`, found none"),
        ({"TransformMatrix": "2 0 0 0 1 0 0 0 1"}, "expected directions of length 1 in `TransformMatrix`, found 2 0 0"),
        ({"TransformMatrix": "1 0 0 1 0 0 0 0 1"}, "expected three directions in `TransformMatrix`"),
        ({"TransformMatrix": "1 0 0 1"}, "expected 9 numbers in `TransformMatrix`"),
        ({"Rotation": "1 0 0 0 1 0 0 0 1"}, "expected each field of the header once, .* found 'TransformMatrix' twice"),
        ({"Offset": "0 0"}, "expected 3 numbers in `Offset`"),
        ({"DimSize": None}, "expected `DimSize` in the header, found none"),
    ],
)
def test_headers_of_metaimage_that_are_refused_by_name(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_attached(tmp_path / "a.mha", NOISE, False, **fields)
    with pytest.raises(BadInput, match=f"a.mha: case 'a': .*{message}"):
        image_file.header(tmp_path / "a.mha", "a")
