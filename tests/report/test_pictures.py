"""Pictures of the report: examples of pairs, and what judges would pick where the truth is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pipeline.cases.on_page import on_page
from pipeline.measures.overlap import region
from pipeline.report.blocks import Figure, Note
from pipeline.report.example_pairs import examples, picked
from pipeline.report.pictures import Plane, plane_of
from pipeline.report.top_picks import picks, shown, top_picks
from pipeline.store import schema
from tests.fixtures.reporting import JUDGES, NO_PAIRS, Built, build, plain_scene, store_error_maps


def pairs_table(rows: list[tuple[str, float, int]]) -> pl.DataFrame:
    """Pairs by case id, margin and |D|."""
    return pl.DataFrame(
        [
            {"case_id": case, "chosen": 1, "rejected": 0, "margin": margin, "disagreement": size}
            for case, margin, size in rows
        ]
    )


def test_examples_are_extremes_and_the_median_without_repeats() -> None:
    """By |D|: a 5, b 10, c 20, d 30. Largest margin is d, which also has the largest |D| and is not shown again."""
    found = picked(pairs_table([("a", 0.1, 5), ("b", 0.05, 10), ("c", 0.2, 20), ("d", 0.9, 30)]))
    shown = {why: pair["case_id"] for why, pair in found.items()}
    assert shown == {"largest margin": "d", "smallest margin": "b", "median |D|": "c"}


def test_one_pair_is_shown_once_and_none_is_nothing() -> None:
    assert list(picked(pairs_table([("a", 0.1, 5)]))) == ["largest margin"]
    assert picked(pl.DataFrame(schema=schema.PAIRS.columns)) == {}


def pair_view(
    image: np.ndarray,
    chosen: np.ndarray,
    rejected: np.ndarray,
    spacing: tuple[float, ...] | None = None,
    files: str | None = None,
    orientation: str | None = None,
) -> Plane:
    page = on_page(spacing or (1.0,) * chosen.ndim, orientation, files)
    return plane_of(image, np.stack([chosen, rejected]), region(chosen, rejected), page, colour=False)


def test_a_volume_is_cut_across_its_coarsest_axis_where_masks_differ_most() -> None:
    """Axis 2 has 3 mm; slices 1 and 4 differ in 1 and 2 voxels. On the page: rows are axis 1, columns axis 0."""
    chosen, rejected = np.zeros((2, 30, 40, 6), np.uint8)
    chosen[10, 10, 1] = 1
    chosen[10, 10:12, 4] = 1
    image = np.zeros((2, 30, 40, 6), np.float32)
    image[0, ..., 4] = 1
    image[0, 10, 10, 4] = 5
    view = pair_view(image, chosen, rejected, (0.5, 1.0, 3.0))
    assert view.where == ", slice 5 of 6 along axis 3"
    assert view.aspect == 2.0  # 1 mm high, 0.5 mm wide
    differ = region(*view.masks)
    assert differ.sum() == 2
    rows, columns = np.nonzero(differ)
    assert np.ptp(rows) == 1
    assert np.ptp(columns) == 0
    # y points upwards on the page, so voxel 10 of axis 1 lies below voxel 11.
    assert view.image[rows.max(), columns[0]] == 1.0


def test_an_image_of_two_axes_lies_as_its_format_says() -> None:
    """Pixels 3 and 4 of the first axis differ. They lie below each other in a picture, and beside in a NIfTI file."""
    chosen, rejected = np.zeros((2, 30, 40), np.uint8)
    chosen[3:5, 10] = 1
    places = {}
    for files, orientation in (("pictures", None), ("nifti", None), ("nifti", "LP")):
        view = pair_view(np.zeros((1, 30, 40), np.float32), chosen, rejected, None, files, orientation)
        places[files, orientation] = [np.ptp(axis).item() for axis in np.nonzero(region(*view.masks))]
    assert places == {("pictures", None): [1, 0], ("nifti", None): [0, 1], ("nifti", "LP"): [0, 1]}


def test_pictures_are_cropped_to_the_masks_with_a_margin() -> None:
    """Masks span rows 40 to 79 (40 voxels) of 200: a quarter, 10, on either side gives 60."""
    chosen = np.zeros((200, 200), np.uint8)
    chosen[40:80, 40:80] = 1
    view = pair_view(np.zeros((1, 200, 200), np.float32), chosen, np.zeros_like(chosen))
    assert view.masks.shape == (2, 60, 60)


def test_unknown_voxels_are_not_disagreement() -> None:
    chosen = np.array([[0, 1, 255, 1]], np.uint8)
    rejected = np.array([[1, 1, 0, 255]], np.uint8)
    view = pair_view(np.zeros((1, 1, 4), np.float32), chosen, rejected)
    assert region(*view.masks).tolist() == [[True, False, False, False]]


def test_colour_pictures_keep_their_channels() -> None:
    image = np.zeros((3, 30, 30), np.float32)
    image[0] = 2.0
    mask = np.zeros((30, 30), np.uint8)
    view = plane_of(image, np.stack([mask, mask]), mask != mask, on_page((1, 1), None, "pictures"), colour=True)
    assert view.image.shape == (30, 30, 3)
    assert view.image[0, 0].tolist() == [1.0, 0.0, 0.0]


def test_volumes_are_shown_as_slices(tmp_path: Path) -> None:
    made = build(tmp_path, students={}, dimensions=3)
    captions = [block.caption for block in examples(made.run).blocks if isinstance(block, Figure)]
    assert len(captions) == 6
    assert all("along axis 3" in caption for caption in captions)


# ---- what judges would pick --------------------------------------------------------------------------------------


def case_rows(case: int, dice: list[float], **scores: list[float | None]) -> pl.DataFrame:
    """Panel rows of one case without duplicates."""
    count = len(dice)
    return pl.DataFrame(
        {
            "case": [case] * count,
            "proposal": range(count),
            "sampler": ["base", *["s"] * (count - 1)],
            "setting": ["base", *map(str, range(1, count))],
            "duplicate_of": pl.Series([None] * count, dtype=pl.Int32),
            "true_dice": dice,
            **{f"score_{name}": pl.Series(values, dtype=pl.Float64) for name, values in scores.items()},
        }
    )


def test_judges_with_the_same_top_pick_share_it_and_the_base_is_always_shown() -> None:
    """a and b rank slot 2 first; c ties slots 1 and 2, so the first is shown and marked; d scored none."""
    rows = case_rows(0, [0.5, 0.6, 0.7], a=[1, 2, 3], b=[0, None, 1], c=[0, 4, 4], d=[None, None, None])
    base, first, second = top_picks(rows, ["a", "b", "c", "d"])
    assert (base.slot, base.judges, base.source) == (0, (), "base")
    assert (first.slot, first.judges, first.source, first.dice) == (1, ("c",), "s 1", 0.6)
    assert (second.slot, second.judges) == (2, ("a", "b"))
    assert first.tied == {"c"}


def test_a_duplicate_is_no_pick_of_its_own() -> None:
    rows = case_rows(0, [0.5, 0.5], a=[1, 1]).with_columns(duplicate_of=pl.Series([None, 0], dtype=pl.Int32))
    (base,) = top_picks(rows, ["a"])
    assert base.judges == ("a",)
    assert not base.tied


def test_cases_are_shown_once_and_for_a_reason() -> None:
    """Headrooms 0, .1, .2, .5: largest is case 3, the median of four is the third, case 2. a loses .3 on case 0, whose
    base is best. The base is worst on case 3, which is shown already."""
    panel = pl.concat(
        [
            case_rows(0, [0.9, 0.6], a=[0, 1]),
            case_rows(1, [0.5, 0.6], a=[0, 1]),
            case_rows(2, [0.5, 0.7], a=[0, 1]),
            case_rows(3, [0.1, 0.6], a=[0, 1]),
        ]
    )
    found = {why: rows["case"][0] for why, rows in shown(panel, ["a"]).items()}
    assert found == {"largest headroom": 3, "largest loss by a judge's pick": 0, "median headroom": 2}


def test_a_loss_is_shown_only_where_a_practical_judge_has_one() -> None:
    panel = case_rows(0, [0.5, 0.6], a=[0, 1], oracle=[1, 0])
    assert list(shown(panel, ["a"])) == ["largest headroom"]


def first_picture(made: Built) -> Figure:
    return next(block for block in picks(made.run).blocks if isinstance(block, Figure))


def test_error_maps_stand_beside_the_pick_of_their_judge(tmp_path: Path) -> None:
    """Truth, base and the pick that both judges share make three pictures; the map of c8 is the fourth."""
    made = build(tmp_path, students={})
    plain = first_picture(made)
    assert "case c8" in plain.caption
    store_error_maps(made, "agreement", {8: np.full((4, 1, 16), 127, np.uint8)})
    mapped = first_picture(made)
    assert mapped.caption == plain.caption
    assert 3 * mapped.width == pytest.approx(4 * plain.width, abs=4)


def test_a_case_without_a_stored_map_says_so(tmp_path: Path) -> None:
    made = build(tmp_path, students={})
    store_error_maps(made, "agreement", {5: np.full((4, 1, 16), 127, np.uint8)})
    assert first_picture(made).caption.endswith("No error map of this case was stored by agreement.")


def test_volumes_of_validation_are_shown_as_slices(tmp_path: Path) -> None:
    made = build(tmp_path, {"agreement": JUDGES["agreement"]}, {"none": NO_PAIRS}, {}, dimensions=3)
    assert "along axis 3" in first_picture(made).caption


def test_nothing_to_pick_from_is_said(tmp_path: Path) -> None:
    plain = plain_scene(JUDGES)
    splits = ["pool" if split == "validation" else split for split in plain.splits]
    made = build(tmp_path, students={}, scene=replace(plain, splits=splits))
    (note,) = picks(made.run).blocks
    assert isinstance(note, Note)
    assert note.lines == ["No validation case has both a label and proposals, so there is no pick to show."]
