"""Masks of other tools as files: every way they are stored, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from pipeline.errors import BadInput
from pipeline.proposals.samplers.imported import Imported
from pipeline.proposals.samplers.sampler import CaseModels, Draw, Setup
from tests.fixtures.builders import rows_of
from tests.fixtures.networks import Constant, case_of, models, row_of, sampler_of
from tests.fixtures.phantoms import save_image

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
LABEL = rows_of(["0012", "0012", "0000"])
IMPORTS = Path("masks")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    IMPORTS.mkdir()


def nifti(values: np.ndarray, file: str, affine: np.ndarray = AFFINE) -> None:
    (IMPORTS / file).parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, affine), IMPORTS / file)


def png(values: np.ndarray, file: str) -> None:
    (IMPORTS / file).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(IMPORTS / file)


def imported(missing: str = "error", **sources: dict[str, Any]) -> Imported:
    return sampler_of("imported", sources=sources, missing=missing)


def case_with(space: tuple[int, ...] = (3, 4), classes: int = 3, **columns: Any) -> CaseModels:
    columns = {"affine": tuple(AFFINE.ravel().tolist()), **columns}
    return case_of(space, classes, row=row_of(space, **columns), imports=IMPORTS)


def setup_of(*cases: CaseModels, base: bool = False, classes: int = 3, imports: Path = IMPORTS) -> Setup:
    return Setup(classes, base, cases=tuple(case.row for case in cases), imports=imports)


def only(sampler: Imported, case: CaseModels) -> np.ndarray:
    assert sampler.settings("mine", setup_of(case)) == ["tool"]
    (draw,) = sampler.draw("mine", case)
    assert (draw.sampler, draw.setting) == ("mine", "tool")
    return draw.mask


# ---- what is read ----------------------------------------------------------------------------------------------


def test_a_label_map():
    nifti(LABEL, "a/c0.nii.gz")
    assert only(imported(tool={"path": "a"}), case_with()).tolist() == LABEL.tolist()


def test_a_picture_of_another_name():
    """A PNG has no affine to check."""
    png(LABEL, "a/seg_c0_v2.png")
    assert only(imported(tool={"path": "a", "file": "seg_{case_id}_v2.png"}), case_with()).tolist() == LABEL.tolist()


def test_one_file_per_class():
    """Liver as 0 and 1, tumour as 0 and 255, an empty spleen of the same class as the liver."""
    nifti((LABEL == 1).astype(np.uint8), "a/c0/liver.nii.gz")
    nifti((LABEL == 2).astype(np.uint8) * 255, "a/c0/tumour.nii.gz")
    nifti(np.zeros_like(LABEL), "a/c0/spleen.nii.gz")
    classes = {"liver.nii.gz": 1, "tumour.nii.gz": 2, "spleen.nii.gz": 1}
    assert only(imported(tool={"path": "a", "classes": classes}), case_with()).tolist() == LABEL.tolist()


def test_files_of_one_class_may_overlap():
    """Two lobes of class 1 that share a column."""
    nifti(rows_of(["0110"] * 3), "a/c0/left.nii.gz")
    nifti(rows_of(["0011"] * 3), "a/c0/right.nii.gz")
    found = only(imported(tool={"path": "a", "classes": {"left.nii.gz": 1, "right.nii.gz": 1}}), case_with())
    assert found.tolist() == [[0, 1, 1, 1]] * 3


def test_other_numbers():
    """5 is class 1, 117 is class 2, 3 is not asked for."""
    nifti(np.array([[5, 117, 3, 0]], np.uint8), "a/c0.nii.gz")
    sampler = imported(tool={"path": "a", "values": {"5": 1, "117": 2}})
    assert only(sampler, case_with((1, 4))).tolist() == [[1, 2, 0, 0]]


@pytest.mark.parametrize("kind", [np.int16, np.int32, np.float32, np.float64])
def test_numbers_of_any_size_and_sign(kind):
    """FreeSurfer counts to 2035 and beyond; -1 and 1024 are not asked for, 255 is a number like any other."""
    nifti(np.array([[2035, -1, 1024, -7, 255, 0]], kind), "a/c0.nii.gz")
    sampler = imported(tool={"path": "a", "values": {"2035": 1, "-7": 2, "70000": 2}})
    assert only(sampler, case_with((1, 6))).tolist() == [[1, 0, 0, 2, 0, 0]]


def test_numbers_of_a_picture_of_16_bits():
    png(np.array([[2035, 1024, 0, 65535]], np.uint16), "a/c0.png")
    sampler = imported(tool={"path": "a", "file": "{case_id}.png", "values": {"2035": 1, "65535": 2}})
    assert only(sampler, case_with((1, 4))).tolist() == [[1, 0, 0, 2]]


@pytest.mark.parametrize("ending", [".png", ".tif", ".nii.gz"])
@pytest.mark.parametrize("inside", [1, 255, 1024])
def test_a_file_of_one_class_holds_any_other_number(ending, inside):
    values = (LABEL == 1).astype(np.uint16) * np.uint16(inside)
    (IMPORTS / "a/c0").mkdir(parents=True)
    save_image(IMPORTS / f"a/c0/x{ending}", values)
    sampler = imported(tool={"path": "a", "classes": {f"x{ending}": 2}})
    assert only(sampler, case_with(affine=None)).tolist() == ((LABEL == 1) * 2).tolist()


BRIGHT = {
    "JPEG": (".jpg", lambda mask: mask * np.uint8(255), {"quality": 95}),
    "colour JPEG": (".jpg", lambda mask: np.stack([mask * np.uint8(255)] * 3, -1), {"quality": 95}),
    "RGB": (".png", lambda mask: np.stack([mask * np.uint8(255)] * 3, -1), {}),
    "1 bit": (".png", lambda mask: mask.astype(bool), {}),
    "1 bit BMP": (".bmp", lambda mask: mask.astype(bool), {}),
    "16 bits": (".png", lambda mask: mask * np.uint16(65535), {}),
    "1 bit TIFF": (".tif", lambda mask: mask.astype(bool), {}),
    "JPEG of another name": (".png", lambda mask: mask * np.uint8(255), {"format": "JPEG", "quality": 95}),
}


@pytest.mark.parametrize("kind", list(BRIGHT))
def test_black_and_white_in_any_colour_and_format(kind):
    """What the layout `folders` takes."""
    mask = np.kron(LABEL == 1, np.ones((8, 8), np.uint8)).astype(np.uint8)
    ending, stored, knobs = BRIGHT[kind]
    (IMPORTS / "a").mkdir()
    Image.fromarray(stored(mask)).save(IMPORTS / f"a/c0{ending}", **knobs)
    sampler = imported(tool={"path": "a", "file": f"{{case_id}}{ending}", "foreground_above": 127})
    assert only(sampler, case_with(mask.shape)).tolist() == mask.tolist()


@pytest.mark.parametrize("kind", [np.float32, np.int16, np.uint16])
def test_black_and_white_of_nifti_in_any_number(kind):
    nifti(np.array([[0, 1000, 127, 128]], kind), "a/c0.nii.gz")
    sampler = imported(tool={"path": "a", "foreground_above": 127})
    assert only(sampler, case_with((1, 4))).tolist() == [[0, 1, 0, 1]]


def test_masks_that_pictures_hide_are_refused_here_too():
    """Drawn in the alpha channel, or of classes in a lossy format behind `.png`."""
    png(np.stack([np.full((3, 4), 255)] * 3 + [LABEL * 255], -1).astype(np.uint8), "a/c0.png")
    bright = imported(tool={"path": "a", "file": "{case_id}.png", "foreground_above": 127})
    assert "a/c0.png: case 'c0': expected an opaque mask, found alpha from 0 to" in refused(bright, case_with())
    Image.fromarray(LABEL).save(IMPORTS / "a/c0.png", format="JPEG")
    classes = imported(tool={"path": "a", "file": "{case_id}.png"})
    assert "a/c0.png: case 'c0': expected class indices in a lossless format, found JPEG" in refused(
        classes, case_with()
    )


def test_black_and_white():
    """255 is unknown unless it is said to be the foreground."""
    png(np.array([[0, 255, 127, 128]], np.uint8), "a/c0.png")
    sampler = imported(tool={"path": "a", "file": "{case_id}.png", "foreground_above": 127})
    assert only(sampler, case_with((1, 4))).tolist() == [[0, 1, 0, 1]]


def test_unknown_voxels_stay_unknown():
    nifti(rows_of(["01x0"]), "a/c0.nii.gz")
    assert only(imported(tool={"path": "a"}), case_with((1, 4))).tolist() == [[0, 1, 255, 0]]


def test_a_volume_on_another_working_grid():
    """2x4x4 voxels of the source, class 1 in the front half of the last axis; halved, the same half of 1x2x2."""
    values = np.zeros((2, 4, 4), np.uint8)
    values[..., 2:] = 1
    nifti(values, "a/c0.nii.gz")
    case = case_with((1, 2, 2), original_shape=(2, 4, 4))
    assert only(imported(tool={"path": "a"}), case).tolist() == [[[0, 1], [0, 1]]]


# ---- what counts as probability --------------------------------------------------------------------------------


def test_without_a_model_the_mean_of_the_masks_is_the_probability():
    """Votes for class 1 per voxel: 2 of 2; 1 of 2; 1 of 1, the other does not know; nobody knows."""
    nifti(rows_of(["11xx0"]), "a/c0.nii.gz")
    nifti(rows_of(["101x0"]), "b/c0.nii.gz")
    case = case_with((1, 5), classes=2)
    for draw in imported(first={"path": "a"}, second={"path": "b"}).draw("tools", case):
        case.keep(draw)
    assert [(d.sampler, d.setting) for d in case.draws] == [("tools", "first"), ("tools", "second")]
    assert case.mean_probability().tolist() == [[[0, 0.5, 0, 0, 1]], [[1, 0.5, 1, 0, 0]]]


def test_beside_a_model_masks_do_not_count():
    """The base says .1 everywhere, whatever the tool says."""
    nifti(rows_of(["1111"]), "a/c0.nii.gz")
    case = models(Constant(0.1), np.zeros((1, 1, 4), np.float32))
    case.imports = IMPORTS
    for draw in imported(tool={"path": "a"}).draw("tools", case):
        case.keep(draw)
    assert case.draws[1].mask.tolist() == [[1] * 4]
    assert case.mean_probability()[1].numpy() == pytest.approx(0.1)


def test_a_missing_mask_is_slot_0_again_where_that_is_asked_for():
    """It has no vote of its own."""
    nifti(rows_of(["0111"]), "a/c0.nii.gz")
    case = case_with((1, 4), classes=2)
    sampler = imported("slot_0", first={"path": "a"}, second={"path": "b"})
    assert sampler.settings("tools", setup_of(case)) == ["first", "second"]
    for draw in sampler.draw("tools", case):
        case.keep(draw)
    assert [draw.mask.tolist() for draw in case.draws] == [[[0, 1, 1, 1]]] * 2
    assert case.mean_probability()[1].tolist() == [[0, 1, 1, 1]]


def test_files_are_what_proposals_follow_from():
    nifti(LABEL, "a/c0.nii.gz")
    sampler = imported("slot_0", first={"path": "a"}, second={"path": "b"})
    assert sampler.files(setup_of(case_with())) == [IMPORTS / "a/c0.nii.gz"]


# ---- what is refused -------------------------------------------------------------------------------------------


def refused(sampler: Imported, case: CaseModels) -> str:
    with pytest.raises(BadInput) as error:
        list(sampler.draw("mine", case))
    return str(error.value)


def test_another_shape():
    nifti(LABEL.T.copy(), "a/c0.nii.gz")
    message = refused(imported(tool={"path": "a"}), case_with())
    assert message.startswith("masks/a/c0.nii.gz: case 'c0': expected the image's shape (3, 4), found (4, 3)")


def test_another_affine():
    """Within 1e-3 it is the same grid; 2 mm apart it is not. Without an affine of the image, edges are compared."""
    near = AFFINE.copy()
    near[0, 3] = 0.0005
    nifti(LABEL, "a/c0.nii.gz", near)
    assert only(imported(tool={"path": "a"}), case_with()).tolist() == LABEL.tolist()
    near[0, 3] = 2
    nifti(LABEL, "a/c0.nii.gz", near)
    message = refused(imported(tool={"path": "a"}), case_with())
    assert "expected the image's affine within 0.001, found a difference of 2" in message
    edges = tuple(np.linalg.norm(AFFINE[:3, :2], axis=0).tolist())
    same = case_with(affine=None, original_spacing_mm=edges)
    assert only(imported(tool={"path": "a"}), same).tolist() == LABEL.tolist()
    message = refused(imported(tool={"path": "a"}), case_with(affine=None, original_spacing_mm=(9.0, 9.0)))
    assert "expected the image's voxel edges (9, 9) mm within 0.001, found" in message


def test_overlapping_classes():
    """Columns 1 and 2 against 2 and 3: 3 voxels in both."""
    nifti(rows_of(["0110"] * 3), "a/c0/liver.nii.gz")
    nifti(rows_of(["0011"] * 3), "a/c0/spleen.nii.gz")
    sampler = imported(tool={"path": "a", "classes": {"liver.nii.gz": 1, "spleen.nii.gz": 2}})
    assert refused(sampler, case_with()) == (
        "masks/a/c0/spleen.nii.gz: case 'c0': expected voxels of class 2 only, found 3 voxels that are in a file of "
        "class 1 "
        "too; masks may not overlap, choose one class per voxel"
    )


@pytest.mark.parametrize("classes", [None, {"organ.nii.gz": 1}])
def test_a_damaged_mask_is_refused(classes):
    """A mask whose checksum is of another mask has the right size and values that are classes."""
    file = "tool/c.nii.gz" if classes is None else "tool/c/organ.nii.gz"
    nifti(LABEL, file)
    content = (IMPORTS / file).read_bytes()
    (IMPORTS / file).write_bytes(content[:-8] + bytes([content[-8] ^ 1]) + content[-7:])
    sampler = imported(tool={"path": "tool", "classes": classes})
    case = case_with()
    (IMPORTS / file.replace("/c", f"/{case.case_id}", 1)).parent.mkdir(parents=True, exist_ok=True)
    (IMPORTS / file).rename(IMPORTS / file.replace("/c", f"/{case.case_id}", 1))
    with pytest.raises(
        BadInput, match=rf"case '{case.case_id}': expected .* truncated or damaged file .* fetch it again"
    ):
        only(sampler, case)


@pytest.mark.parametrize(
    ("values", "knobs", "message"),
    [
        ([0, 1, 3], {}, r"expected labels 0 to 2 \(and 255 for unknown\), found \[3\]; set `values`, or correct"),
        (
            [0, 0, 255],
            {},
            r"expected classes, found only \[0, 255\], and 255 means unknown; set `foreground_above: 127` if",
        ),
        ([255, 255, 255], {}, r"expected classes, found only \[255\], and 255 means unknown"),
        ([0, 1, 2], {"classes": {"x.nii.gz": 1}}, r"expected 0 and one other value in a file of one class, found \[0"),
        ([1, 2, 2], {"classes": {"x.nii.gz": 1}}, r"expected 0 and one other value in a file of one class, found \[1"),
        ([0, 0.5, 1], {}, r"found 0.5"),
        ([0, 0.5, 1], {"values": {"1": 1}}, r"expected whole numbers, found 0.5; correct the mask"),
        ([0, np.nan, 1], {"values": {"1": 1}}, r"expected whole numbers, found nan"),
        ([0, np.inf, 1], {}, r"expected whole numbers, found inf"),
        ([0, np.nan, 255], {"foreground_above": 127}, r"expected finite values, found 1 NaN or infinite voxels"),
        ([0, -1, 1024], {}, r"expected labels 0 to 2 .* found \[-1, 1024\]; set `values`"),
        ([255, 255, 255], {"values": {"255": 255}}, ""),
    ],
)
def test_values_that_are_no_classes(values, knobs, message):
    file = "a/c0/x.nii.gz" if "classes" in knobs else "a/c0.nii.gz"
    nifti(np.array([values], np.float32), file)
    sampler = imported(tool={"path": "a", **knobs})
    if not message:
        with pytest.raises(
            BadInput, match=r"sources.tool: expected classes 0 to 2, found \[255\]; correct the classes"
        ):
            sampler.settings("mine", setup_of())
        return
    with pytest.raises(BadInput, match=rf"^masks/{file}: case 'c0': .*{message}"):
        list(sampler.draw("mine", case_with((1, 3))))


def test_a_mask_that_knows_nothing_on_the_working_grid():
    """One known voxel of 64 is lost in one voxel."""
    values = np.full((8, 8), 255, np.uint8)
    values[0, 0] = 1
    nifti(values, "a/c0.nii.gz")
    message = refused(imported(tool={"path": "a"}), case_with((1, 1), original_shape=(8, 8)))
    assert message == "masks/a/c0.nii.gz: case 'c0': expected classes, found every voxel unknown (255); remove the file"


def test_missing_files_are_named_before_any_work():
    """Two of three cases, and the count; the first source has no slot 0 to repeat."""
    nifti(LABEL, "a/c0.nii.gz")
    cases = [case_with(case_id=f"c{i}") for i in range(3)]
    expected = (
        "propose.samplers.mine.sources.tool: expected a mask of every case, found 2 files missing: "
        "masks/a/c1.nii.gz, masks/a/c2.nii.gz; add them"
    )
    for missing, base, advice in (
        ("error", True, ", or set `missing: slot_0`"),
        ("error", False, ""),
        ("slot_0", False, ""),
    ):
        with pytest.raises(BadInput) as error:
            imported(missing, tool={"path": "a"}).settings("mine", setup_of(*cases, base=base))
        assert str(error.value) == expected + advice
    assert imported("slot_0", tool={"path": "a"}).settings("mine", setup_of(*cases, base=True)) == ["tool"]


def test_many_missing_files_are_counted():
    cases = [case_with(case_id=f"c{i}") for i in range(12)]
    with pytest.raises(BadInput, match=r"found 12 files missing: .*c9.nii.gz, ...; add them"):
        imported(tool={"path": "a"}).settings("mine", setup_of(*cases))


def test_the_folder_of_all_masks_must_be_one():
    with pytest.raises(BadInput, match=r"propose.imports: expected the folder of the imported masks, found 'no'"):
        imported(tool={"path": "a"}).settings("mine", setup_of(imports=Path("no")))


@pytest.mark.parametrize("path", ["../elsewhere", "/elsewhere"])
def test_masks_lie_below_the_folder_that_dvc_watches(path):
    with pytest.raises(BadInput, match=r"propose.samplers: expected a path below masks, found"):
        imported(tool={"path": path}).settings("mine", setup_of(case_with()))


def test_values_and_classes_that_cannot_be():
    with pytest.raises(BadInput, match=r"sources.tool: expected classes 0 to 2, found \[3\]; correct the classes"):
        imported(tool={"path": "a", "classes": {"x.nii.gz": 3}}).settings("mine", setup_of())


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"file": "mask.png"}, r"file: expected a name with \{case_id\}, found 'mask.png'"),
        (
            {"values": {"1": 1}, "foreground_above": 0},
            "expected at most one of classes, values and foreground_above, found several",
        ),
        ({"classes": {"x.png": 0}}, "greater than or equal to 1"),
        ({"classes": {}}, "at least 1 item"),
    ],
)
def test_knobs_that_contradict_themselves(knobs, message):
    with pytest.raises(ValidationError, match=message):
        imported(tool={"path": "a", **knobs})


def test_a_source_that_is_no_plain_name():
    with pytest.raises(ValidationError, match="should match pattern"):
        sampler_of("imported", sources={"my tool": {"path": "a"}})
    with pytest.raises(ValidationError, match="at least 1 item"):
        sampler_of("imported", sources={})


def test_slot_0_is_not_repeated_for_a_damaged_file():
    """Only what is absent is missing; what cannot be read is an error."""
    nifti(LABEL, "a/c0.nii.gz")
    os.truncate(IMPORTS / "a/c0.nii.gz", 30)
    case = case_with()
    case.keep(Draw(LABEL, "base", "base"))
    assert refused(imported("slot_0", tool={"path": "a"}), case).startswith("masks/a/c0.nii.gz: case 'c0': expected")
