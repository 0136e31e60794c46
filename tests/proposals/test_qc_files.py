"""Proposals as image files: grids, formats, and the way back as scores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import polars as pl
import pytest
from PIL import Image

from pipeline.cases.grid import on_source_grid
from pipeline.errors import BadInput
from pipeline.judges.kinds.table import ScoreTable
from pipeline.measures.overlap import dice_to
from pipeline.proposals.qc_files import SHEET, export_proposals
from pipeline.store import schema
from pipeline.store.cases import CaseStore
from pipeline.store.manifest import write_manifest
from pipeline.store.proposals import ProposalStore
from pipeline.store.tables import read_table, write_table
from tests.fixtures.builders import case_store, proposal_store
from tests.fixtures.judging import given
from tests.fixtures.phantoms import disc


def stores(
    folder: Path, masks: list[np.ndarray], classes: int = 2, splits: list[str] | None = None, **columns: list[Any]
) -> tuple[CaseStore, ProposalStore]:
    """Pool cases with these masks u8 `[proposal, *space]`, and these columns of the cases table."""
    cases = case_store(folder / "cases", [m[0] for m in masks], splits=splits, classes=classes)
    path = cases.folder / "cases.parquet"
    table = read_table(path, schema.CASES).with_columns(
        pl.Series(name, values, schema.CASES.columns[name]) for name, values in columns.items()
    )
    write_table(table, schema.CASES, path, "a test")
    write_manifest(cases.folder, "a test")
    return CaseStore(cases.folder), proposal_store(folder / "proposals", masks, classes=classes)


def three(space: tuple[int, ...]) -> np.ndarray:
    """Three different masks of classes 0 to 2."""
    return np.stack([disc(space, 3) + disc(space, radius) for radius in (0.8, 1.5, 2.0)])


def png(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def nifti(path: Path) -> Any:
    return nibabel.load(path)


def test_pictures_without_an_affine_are_png(tmp_path):
    masks = [three((9, 7)), three((6, 8))]
    assert export_proposals(*stores(tmp_path, masks, classes=3), ["pool"], tmp_path / "out") == 6
    written = sorted(p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.*"))
    assert written == ["c0/00.png", "c0/01.png", "c0/02.png", "c1/00.png", "c1/01.png", "c1/02.png", SHEET]
    for case, block in enumerate(masks):
        for slot, mask in enumerate(block):
            found = png(tmp_path / "out" / f"c{case}" / f"{slot:02d}.png")
            assert found.dtype == np.uint8
            assert (found == mask).all()


AFFINE = np.array([[0, -2, 0, 10], [0.5, 0, 0, -3], [0, 0, 3, 7], [0, 0, 0, 1]], float)


def test_volumes_are_nifti_with_the_affine_of_the_source(tmp_path):
    """An affine that is not diagonal comes back as it was, and voxels as well."""
    masks = [three((6, 7, 8))]
    export_proposals(
        *stores(tmp_path, masks, classes=3, affine=[AFFINE.flatten().tolist()]), ["pool"], tmp_path / "out"
    )
    for slot in range(3):
        found = nifti(tmp_path / f"out/c0/{slot:02d}.nii.gz")
        assert found.affine == pytest.approx(AFFINE)
        assert found.get_data_dtype() == np.uint8
        assert (np.asarray(found.dataobj) == masks[0][slot]).all()


def test_a_picture_with_an_affine_is_nifti(tmp_path):
    export_proposals(
        *stores(tmp_path, [three((6, 7))], classes=3, affine=[AFFINE.flatten().tolist()]), ["pool"], tmp_path / "out"
    )
    found = nifti(tmp_path / "out/c0/01.nii.gz")
    assert found.shape == (6, 7)
    assert found.affine == pytest.approx(AFFINE)


@pytest.mark.parametrize(("spacing", "diagonal"), [([0.5, 1.0, 2.0], [0.5, 1, 2, 1]), (None, [1, 1, 1, 1])])
def test_volumes_without_an_affine_have_their_spacing(tmp_path, spacing, diagonal):
    export_proposals(
        *stores(tmp_path, [three((6, 7, 8))], classes=3, original_spacing_mm=[spacing]), ["pool"], tmp_path / "out"
    )
    assert nifti(tmp_path / "out/c0/00.nii.gz").affine == pytest.approx(np.diag(diagonal))


@pytest.mark.parametrize(
    ("working", "source", "radius"),
    [((32, 32), (64, 96), 10), ((64, 64), (40, 33), 20), ((20, 24, 16), (30, 24, 32), 6)],
)
def test_resampled_cases_come_back_on_the_grid_of_the_source(tmp_path, working, source, radius):
    """A ball on the working grid is, on the source's, the ball stretched by the ratio of the grids, voxel by voxel."""
    stretched = sum(
        (((np.arange(length) + 0.5) * have / length - have / 2) ** 2).reshape(
            [-1 if a == axis else 1 for a in range(len(source))]
        )
        for axis, (length, have) in enumerate(zip(source, working, strict=True))
    )
    expected = (stretched <= radius**2).astype(np.uint8)
    masks = np.stack([disc(working, radius), np.zeros(working, np.uint8)])
    cases, proposals = stores(tmp_path, [masks], original_shape=[list(source)])
    assert export_proposals(cases, proposals, ["pool"], tmp_path / "out") == 2
    found = [
        png(tmp_path / f"out/c0/0{slot}.png")
        if len(source) == 2
        else np.asarray(nifti(tmp_path / f"out/c0/0{slot}.nii.gz").dataobj)
        for slot in range(2)
    ]
    assert found[0].shape == source
    assert dice_to(expected, found[0][None], 2)[0] > 0.95
    assert found[1].shape == source
    assert not found[1].any()


def test_turned_cases_come_back_voxel_by_voxel(tmp_path):
    """Stored as slices, rows, columns with the rows reversed: voxel (5, 0, 2) of the working grid is (2, 5, 6)."""
    masks = np.zeros((2, 6, 7, 8), np.uint8)
    masks[1, 5, 0, 2] = 1
    stored = stores(tmp_path, [masks], original_shape=[[8, 6, 7]], orientation=[[3, 1, -2]])
    assert export_proposals(*stored, ["pool"], tmp_path / "out") == 2
    found = np.asarray(nifti(tmp_path / "out/c0/01.nii.gz").dataobj)
    assert found.shape == (8, 6, 7)
    assert np.argwhere(found).tolist() == [[2, 5, 6]]


def test_classes_are_interpolated_one_by_one(tmp_path):
    """Between 0 and 2 there is no 1: a row 0 2 of twice the length is 0 0 2 2."""
    cases, _ = stores(tmp_path, [np.array([[[0, 2]], [[0, 1]]], np.uint8)], classes=3, original_shape=[[1, 4]])
    assert on_source_grid(np.array([[0, 2]], np.uint8), cases.all[0], 3).tolist() == [[0, 0, 2, 2]]


def test_only_the_splits_asked_for(tmp_path):
    masks = [three((5, 5)), three((5, 5)), three((5, 5))]
    stored = stores(tmp_path, masks, classes=3, splits=["pool", "validation", "test"])
    assert export_proposals(*stored, ["validation"], tmp_path / "one") == 3
    assert {p.name for p in (tmp_path / "one").iterdir()} == {"c1", SHEET}
    assert export_proposals(*stored, ["pool", "validation"], tmp_path / "two") == 6
    assert {p.name for p in (tmp_path / "two").iterdir()} == {"c0", "c1", SHEET}


def test_no_case_of_a_split_is_an_empty_sheet(tmp_path):
    stored = stores(tmp_path, [three((5, 5))], classes=3)
    assert export_proposals(*stored, ["validation"], tmp_path / "out") == 0
    assert pl.read_csv(tmp_path / "out" / SHEET).height == 0


def test_a_folder_that_is_not_empty(tmp_path):
    stored = stores(tmp_path, [three((5, 5))], classes=3)
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    with pytest.raises(
        BadInput, match=r"out: expected a new or empty folder, found files; choose another or remove them"
    ):
        export_proposals(*stored, ["pool"], out)
    assert [p.name for p in out.iterdir()] == ["mine.txt"]
    (out / "mine.txt").unlink()
    assert export_proposals(*stored, ["pool"], out) == 3


def test_the_sheet_comes_back_as_scores(tmp_path):
    """Filled with 10 times the case plus the slot; an empty cell abstains."""
    cases, proposals = stores(tmp_path, [three((5, 5)), three((5, 5))], classes=3)
    export_proposals(cases, proposals, ["pool"], tmp_path / "out")
    path = tmp_path / "out" / SHEET
    sheet = pl.read_csv(path)
    assert sheet.columns == ["case_id", "proposal", "sampler", "setting", "file", "image", "mask", "score"]
    assert sheet["score"].null_count() == 6
    assert sheet["file"].to_list() == [f"c{case}/0{slot}.png" for case in range(2) for slot in range(3)]
    assert sheet["image"].to_list() == ["c0.png"] * 3 + ["c1.png"] * 3
    assert sheet["mask"].to_list() == [hash_ for case in cases.all for hash_ in proposals.mask_hashes(case)]
    assert sheet["mask"].n_unique() == 3, "both cases have the same three masks"
    assert sheet["sampler"].to_list() == ["base", "s", "s"] * 2
    sheet.with_columns(pl.Series("score", [0.0, 1.0, None, 10.0, 11.0, 12.0])).write_csv(path)
    ready = ScoreTable(kind="table", path=path).ready(given(cases, proposals, tmp_path))
    assert ready.scores == {"c0": {0: 0.0, 1: 1.0}, "c1": {0: 10.0, 1: 11.0, 2: 12.0}}


def test_a_sheet_of_other_masks_is_refused(tmp_path):
    """Scores of masks that have been proposed anew are of other masks."""
    stored = stores(tmp_path / "old", [three((5, 5))], classes=3)
    export_proposals(*stored, ["pool"], tmp_path / "out")
    path = tmp_path / "out" / SHEET
    pl.read_csv(path).with_columns(score=pl.lit(0.5)).write_csv(path)
    cases, anew = stores(tmp_path / "new", [three((5, 5))[::-1]], classes=3)
    with pytest.raises(BadInput, match=r"row 2, column 'mask': expected .* so the score is of another mask"):
        ScoreTable(kind="table", path=path).ready(given(cases, anew, tmp_path))


def test_an_image_keeps_its_orientation_against_the_source(tmp_path):
    """Rows are rows: a mask of the first row only is the first row of the picture."""
    mask = np.zeros((2, 4, 6), np.uint8)
    mask[1, 0] = 1
    export_proposals(*stores(tmp_path, [mask]), ["pool"], tmp_path / "out")
    assert png(tmp_path / "out/c0/01.png").tolist() == [[1] * 6, *[[0] * 6] * 3]


def test_borders_of_a_mask_are_not_steps(tmp_path):
    """A disc of radius 10 on 32x32, brought to 48x48, against the disc drawn there: interpolated indicators would give
    a Dice of about .96."""
    small, large = disc((32, 32), 10), disc((48, 48), 15)
    cases = resized_store(tmp_path, small, large)
    found = on_source_grid(small, cases.all[0], 2)
    assert dice_to(large, found[None], 2)[0] > 0.985
    empty = np.zeros_like(small)
    assert not on_source_grid(empty, cases.all[0], 2).any()
    assert on_source_grid(empty + 1, cases.all[0], 2).all()


def resized_store(folder: Path, working: np.ndarray, source: np.ndarray) -> CaseStore:
    """One case whose working grid has the shape of `working`, and its source's that of `source`."""
    store = case_store(folder / "resized", [working], splits=["test"])
    case = replace(store.all[0], original_shape=source.shape)
    store.__dict__["all"] = [case]
    return store
