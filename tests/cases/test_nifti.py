"""NIfTI files: a damaged file is named as damaged, and a header that contradicts itself is not believed."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from pipeline.cases.files import image_file, nifti
from pipeline.errors import BadInput
from pipeline.seeding import numpy_generator
from tests.fixtures.phantoms import disc, write_nifti

SHAPE = (9, 8, 7)
NOISE = numpy_generator("nifti").integers(0, 1000, SHAPE).astype(np.int16)

# Bytes of the fields in a NIfTI-1 header, from its definition nifti1.h.
_DIM, _PIXDIM, _UNITS, _SROW = 40, 76, 123, 280


# ---- damage ----------------------------------------------------------------------------------------------------


def flipped(content: bytes, bit: int) -> bytes:
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def read(file: Path) -> np.ndarray:
    return nifti.image(file, "a", nifti.header(file, "a").shape)


def test_every_flipped_bit_of_a_compressed_file_is_found(tmp_path: Path) -> None:
    """The voxels are those that were written, or the file is refused as damaged. The name and time in the gzip header
    mean nothing, so bits there may pass."""
    file = tmp_path / "a.nii.gz"
    write_nifti(file, NOISE)
    whole = file.read_bytes()
    messages = []
    for bit in range(0, 8 * len(whole), 8 * len(whole) // 210):
        file.write_bytes(flipped(whole, bit))
        try:
            found = read(file)
        except BadInput as error:
            messages.append(str(error))
        else:
            assert np.array_equal(found[0], NOISE), f"bit {bit} of {8 * len(whole)}"
    assert len(messages) > 200
    for message in messages:
        assert message.startswith(f"{file}: case 'a': expected ")
        assert message.endswith(("fetch it again", "fetch the file again"))


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.999])
def test_a_file_that_breaks_off_is_damaged_when_its_header_is_read(ending: str, kept: float, tmp_path: Path) -> None:
    """Before anything of the size of its voxels is made."""
    file = tmp_path / f"a{ending}"
    write_nifti(file, NOISE)
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(BadInput, match=rf"a{ending}: case 'a': expected .*; fetch .*again$"):
        nifti.header(file, "a")


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_axes_longer_than_the_file_are_damage(ending: str, tmp_path: Path) -> None:
    """A length of 9 that became 9 + 2^14: nothing of this size may be made."""
    file = tmp_path / f"a{ending}"
    write_nifti(file, NOISE)
    change(file, _DIM + 2, struct.pack("<h", 9 + 2**14))
    with pytest.raises(BadInput, match=r"found a truncated or damaged file \(.* bytes.*\); fetch it again"):
        nifti.header(file, "a")


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("length", [9 + 2**40, -9, 0])
def test_axes_of_no_possible_length(ending: str, length: int, tmp_path: Path) -> None:
    """NIfTI-2 has 8 bytes for a length. With 2^40 more, the length of the content is the same modulo 2^32."""
    file = tmp_path / f"a{ending}"
    nibabel.save(nibabel.Nifti2Image(NOISE, np.eye(4)), file)
    change(file, 24, struct.pack("<q", length))
    with pytest.raises(BadInput, match=r"found a truncated or damaged file|found shape|found an unreadable file"):
        nifti.header(file, "a")
    with pytest.raises(BadInput):
        nifti.mask(file, "a", SHAPE, None)


def test_a_damaged_header_is_called_damaged_and_not_wrong(tmp_path: Path) -> None:
    """A flipped bit makes the edge 1 mm another number. Who corrects the header keeps the damage."""
    file = tmp_path / "a.nii.gz"
    write_nifti(file, NOISE)
    content = bytearray(gzip.decompress(file.read_bytes()))
    content[_PIXDIM + 7] ^= 0x40
    trailer = file.read_bytes()[-8:]
    file.write_bytes(gzip.compress(bytes(content))[:-8] + trailer)
    with pytest.raises(BadInput, match="found a truncated or damaged file"):
        nifti.header(file, "a")


def test_a_damaged_mask_is_refused(tmp_path: Path) -> None:
    """A mask of zeros and ones whose middle byte is another: the reader of imported masks reads it too."""
    file = tmp_path / "m.nii.gz"
    file.write_bytes(with_another_byte(disc(SHAPE, 3)))
    affine = tuple(float(value) for value in np.eye(4).ravel())
    with pytest.raises(BadInput, match=r"m.nii.gz: case 'a': expected .* found a truncated or damaged file .*CRC"):
        image_file.read_mask(file, "a", SHAPE, affine, 2)


def with_another_byte(voxels: np.ndarray) -> bytes:
    """A compressed NIfTI file whose checksum is of other voxels: one voxel was 0 or 1, and is the other."""
    content = bytearray(nibabel.Nifti1Image(voxels, np.eye(4)).to_bytes())
    whole = gzip.compress(bytes(content), mtime=0)
    content[-voxels.nbytes // 2] ^= 1
    return gzip.compress(bytes(content), mtime=0)[:-8] + whole[-8:]


def test_a_mask_with_a_damaged_header_is_called_damaged(tmp_path: Path) -> None:
    """The length of the first axis is another. The advice to resample would be wrong."""
    file = tmp_path / "m.nii.gz"
    voxels = disc(SHAPE, 3)
    content = bytearray(nibabel.Nifti1Image(voxels, np.eye(4)).to_bytes())
    trailer = gzip.compress(bytes(content))[-8:]
    struct.pack_into("<h", content, _DIM + 2, 8)
    file.write_bytes(gzip.compress(bytes(content))[:-8] + trailer)
    with pytest.raises(BadInput, match="found a truncated or damaged file"):
        nifti.mask(file, "a", SHAPE, None)


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 4)])
@pytest.mark.parametrize("members", [1, 3])
def test_whole_files_of_any_kind_are_read(shape: tuple[int, ...], members: int, tmp_path: Path) -> None:
    """A file of several gzip members, as parallel compressors write, and bytes behind the voxels."""
    voxels = numpy_generator("whole").normal(size=shape).astype(np.float32)
    content = nibabel.Nifti1Image(voxels, np.eye(4)).to_bytes() + b"behind"
    part = len(content) // members + 1
    parts = [content[start : start + part] for start in range(0, len(content), part)]
    (tmp_path / "a.nii.gz").write_bytes(b"".join(map(gzip.compress, parts)))
    (tmp_path / "a.nii").write_bytes(content)
    for name in ("a.nii.gz", "a.nii"):
        assert np.array_equal(read(tmp_path / name)[0], voxels)


# ---- headers ---------------------------------------------------------------------------------------------------


def change(file: Path, at: int, value: bytes) -> None:
    """Replace bytes of a file, whose checksum follows."""
    packed = file.suffix == ".gz"
    content = bytearray(gzip.decompress(file.read_bytes()) if packed else file.read_bytes())
    content[at : at + len(value)] = value
    file.write_bytes(gzip.compress(bytes(content)) if packed else bytes(content))


def pixdim(*edges: float) -> Callable[[Path], None]:
    return lambda file: change(file, _PIXDIM + 4, struct.pack(f"<{len(edges)}f", *edges))


def volume(file: Path, affine: np.ndarray, **codes: int) -> Path:
    """A volume whose header has this affine, in the sform and the qform unless `codes` sets the code of one to 0."""
    image: Any = nibabel.Nifti1Image(np.zeros(SHAPE, np.int16), affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, codes.get("sform", 1))
    image.set_qform(affine, codes.get("qform", 1))
    nibabel.save(image, file)
    return file


SHEARED = np.array([[1.0, 0, 0.3, 0], [0, 2.0, 0, 0], [0, 0, 3.0, 0], [0, 0, 0, 1]])


@pytest.mark.parametrize(
    ("affine", "stored", "message"),
    [
        (
            np.diag([3, 3, 5, 1]),
            (1, 1, 1),
            r"voxel edges .* found \(1, 1, 1\) in `pixdim` and \(3, 3, 5\) in the sform",
        ),
        (np.diag([3, 3, 5, 1]), (5, 3, 3), r"found \(5, 3, 3\) in `pixdim` and \(3, 3, 5\) in the sform"),
        (np.diag([1, 1, 2, 1]), (1, 1, 2.03), r"found \(1, 1, 2.03\) in `pixdim` and \(1, 1, 2\) in the sform"),
        (np.diag([1, 1, 1, 1]), (0, 1, 1), r"expected voxel edges above 0, found \(0, 1, 1\); correct `pixdim`"),
        (np.diag([1, 1, 1, 1]), (1, 1, -1), r"expected voxel edges above 0, found \(1, 1, -1\)"),
        (np.diag([1, 1, 1, 1]), (1, np.nan, 1), r"expected voxel edges above 0, found \(1, nan, 1\)"),
        (np.diag([1, 1, 1, 1]), (1, np.inf, 1), r"expected voxel edges above 0, found \(1, inf, 1\)"),
    ],
)
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_edges_that_contradict_the_affine(
    affine: np.ndarray, stored: Sequence[float], message: str, ending: str, tmp_path: Path
) -> None:
    file = volume(tmp_path / f"a{ending}", affine)
    pixdim(*stored)(file)
    with pytest.raises(BadInput, match=f"a{ending}: case 'a': .*{message}"):
        nifti.header(file, "a")


@pytest.mark.parametrize("stored", [(1, 1, 0), (1, 1, -1)])
def test_edges_that_the_library_mends_are_refused_without_an_affine_too(stored: tuple, tmp_path: Path) -> None:
    for codes in ({"sform": 0}, {"sform": 0, "qform": 0}):
        file = volume(tmp_path / "a.nii.gz", np.eye(4), **codes)
        pixdim(*stored)(file)
        with pytest.raises(BadInput, match="expected voxel edges above 0, found"):
            nifti.header(file, "a")


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("order", ["<", ">"])
def test_edges_that_agree_pass_in_every_kind_of_header(kind: Any, order: str, tmp_path: Path) -> None:
    """Turned axes, little and big endian: the edges are the lengths of the columns."""
    affine = np.array([[0, -2, 0, 10], [0.5, 0, 0, -3], [0, 0, 3, 7], [0, 0, 0, 1]], float)
    header = kind.header_class(endianness=order)
    header.set_data_dtype(np.int16)
    header.set_xyzt_units("mm")
    nibabel.save(kind(NOISE, affine, header), tmp_path / "a.nii.gz")
    found = nifti.header(tmp_path / "a.nii.gz", "a")
    assert found.spacing_mm == (0.5, 2.0, 3.0)
    assert found.affine == tuple(affine.ravel())
    assert np.array_equal(read(tmp_path / "a.nii.gz")[0], NOISE)


def test_rounded_edges_and_shear_pass(tmp_path: Path) -> None:
    """An edge of .9765625 mm that is stored as .98, and slices that are sheared by the tilt of a gantry."""
    file = volume(tmp_path / "a.nii", np.diag([0.9765625, 0.9765625, 5, 1]), qform=0)
    pixdim(0.98, 0.98, 5)(file)
    assert nifti.header(file, "a").spacing_mm == pytest.approx((0.98, 0.98, 5), rel=1e-6)
    image: Any = nibabel.Nifti1Image(np.zeros(SHAPE, np.int16), None)
    image.set_sform(SHEARED, 1)
    image.header.set_zooms((1.0, 2.0, float(np.hypot(0.3, 3))))
    nibabel.save(image, file)
    assert nifti.header(file, "a").affine == pytest.approx(tuple(SHEARED.ravel()))


def test_a_picture_needs_two_edges_only(tmp_path: Path) -> None:
    """A single slice may say nothing about its thickness."""
    for shape in ((6, 5), (6, 5, 1)):
        image: Any = nibabel.Nifti1Image(np.zeros(shape, np.int16), np.diag([2, 2, 1, 1]))
        nibabel.save(image, tmp_path / "a.nii")
        pixdim(2, 2, 0)(tmp_path / "a.nii")
        assert nifti.header(tmp_path / "a.nii", "a").spacing_mm == (2.0, 2.0)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros((3, 4)), r"sform_code 1 and a qform_code of 1.* set sform_code to 0"),
        (np.diag([1.0, 1, 0, 0])[:3], "found"),
        (np.array([[1.0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0]]), "found"),
        (np.array([[1.0, 0, 0, np.nan], [0, 1, 0, 0], [0, 0, 1, 0]]), "found"),
        (np.array([[np.nan, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]), "nan"),
    ],
)
def test_an_sform_without_three_directions(rows: np.ndarray, message: str, tmp_path: Path) -> None:
    """A good qform beside it is not used, because nobody knows which of the two is meant."""
    file = volume(tmp_path / "a.nii.gz", np.eye(4))
    change(file, _SROW, rows.astype("<f4").tobytes())
    with pytest.raises(BadInput, match=f"a.nii.gz: case 'a': expected three directions in the sform.*{message}"):
        nifti.header(file, "a")


def test_a_qform_counts_where_the_sform_says_that_it_does_not(tmp_path: Path) -> None:
    """`sform_code` 0: zeros in the sform mean nothing, and an old sform neither."""
    affine = np.diag([2.0, 3, 4, 1])
    for rows in (np.zeros((3, 4)), np.eye(4)[:3]):
        file = volume(tmp_path / "a.nii.gz", affine, sform=0)
        change(file, _SROW, rows.astype("<f4").tobytes())
        assert nifti.header(file, "a").affine == tuple(affine.ravel())


@pytest.mark.parametrize(
    ("code", "edge"), [(0, 250.0), (2, 250.0), (1, 250000.0), (3, 0.25), (10, 250.0), (58, 250.0), (66, 250.0)]
)
def test_units_of_space_are_read_whatever_the_units_of_time(code: int, edge: float, tmp_path: Path) -> None:
    """Three bits are of space. 56 and 64 are no codes of time, which no image needs."""
    file = volume(tmp_path / "a.nii.gz", np.diag([250.0, 250, 250, 1]))
    change(file, _UNITS, bytes([code]))
    assert nifti.header(file, "a").spacing_mm == (edge,) * 3


@pytest.mark.parametrize("code", [4, 5, 6, 7, 12])
def test_undefined_units_are_named(code: int, tmp_path: Path) -> None:
    file = volume(tmp_path / "a.nii.gz", np.eye(4))
    change(file, _UNITS, bytes([code]))
    with pytest.raises(
        BadInput,
        match=rf"a.nii.gz: case 'a': expected the unit 0 \(unknown, read as mm\), 1 \(m\), 2 \(mm\) or 3 \(micron\) in "
        rf"`xyzt_units`, found {code % 8}; correct the header",
    ):
        nifti.header(file, "a")
