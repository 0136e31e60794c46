"""The judge of shapes: features of known forms, and scores worked by hand."""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipeline.judges.judge import Evidence
from pipeline.judges.kinds.shape import Shape, ShapeScores
from pipeline.store import schema
from pipeline.store.manifest import write_manifest
from pipeline.store.tables import write_table
from tests.fixtures.builders import bars, case_store, proposal_store, rows_of
from tests.fixtures.judging import Scene, given, scores_of
from tests.fixtures.phantoms import disc


def features(
    mask: np.ndarray, edges: Sequence[float] | np.ndarray = (1, 1), classes: int = 2, **knobs: Any
) -> np.ndarray:
    return Shape(kind="shape", **knobs).features(mask, np.array(edges, float), classes)


def judged(
    folder: Path, masks: np.ndarray, labels: Sequence[np.ndarray], classes: int = 2, **knobs: Any
) -> list[float]:
    """Scores of proposals against these labelled masks."""
    truth = np.zeros_like(masks[0])
    cases = case_store(folder / "cases", [truth, *labels], ["pool"] + ["labelled"] * len(labels), classes=classes)
    at = Scene(cases, proposal_store(folder / "proposals", [masks], classes=classes), folder / "none.csv")
    return scores_of(Shape(kind="shape", **knobs), at).tolist()


# ---- features --------------------------------------------------------------------------------------------------


def test_a_rectangle():
    """2 x 4 pixels at rows 1-2, columns 3-6 of 4 x 10: perimeter 12, compactness 4 pi 8 / 144; one piece, no hole.

    Squared axes (2^2 - 1) / 12 + 1/12 = 1/3 and (4^2 - 1) / 12 + 1/12 = 4/3: elongation 2. Centre 2/4 and 5/10.
    """
    mask = np.zeros((4, 10), np.uint8)
    mask[1:3, 3:7] = 1
    assert features(mask)[0] == pytest.approx([log(8), 0, 0, log(4 * np.pi * 8 / 144), log(2), 0.5, 0.5])


def test_a_rectangle_with_spacing():
    """The same with pixels of 2 x 1 mm: 4 x 4 mm, so 16 mm2, perimeter 16, elongation 1."""
    mask = np.zeros((4, 10), np.uint8)
    mask[1:3, 3:7] = 1
    found = features(mask, (2, 1))[0]
    assert found == pytest.approx([log(16), 0, 0, log(np.pi / 4), 0, 0.5, 0.5])


def test_a_box():
    """2 x 2 x 2 voxels of 1 x 1 x 3 mm in a corner of 4^3: 24 mm3; 2 faces of 2 x 2 mm, 4 of 2 x 6 mm: 56 mm2.

    Compactness 36 pi 24^2 / 56^3; elongation 3; centre 1/4 of each axis.
    """
    mask = np.zeros((4, 4, 4), np.uint8)
    mask[:2, :2, :2] = 1
    expected = [log(24), 0, 0, log(36 * np.pi * 24**2 / 56**3), log(3), 0.25, 0.25, 0.25]
    assert features(mask, (1, 1, 3))[0] == pytest.approx(expected)


def test_components_and_holes():
    """Rings (with a speck at their corner), a bar and a hook; the rings' two holes, none that the edge would shut."""
    mask = rows_of(["11111001", "10101001", "11111000", "00000100", "11100000", "00100000"])
    volume, pieces, holes = features(mask)[0, :3]
    assert volume == pytest.approx(log(13 + 1 + 2 + 4))
    assert pieces == pytest.approx(log(3))
    assert holes == pytest.approx(log(3))


def test_cavities_of_a_volume():
    """A hollow cube has one; a drilled one has none."""
    cube = np.ones((5, 5, 5), np.uint8)
    cube[2, 2, 2] = 0
    assert features(cube, (1, 1, 1))[0, 2] == pytest.approx(log(2))
    cube[:, 2, 2] = 0
    assert features(cube, (1, 1, 1))[0, 2] == 0


def test_a_diagonal_is_long():
    """Three pixels on a diagonal: variance 2 * 2/3 + 1/12 along it, 1/12 across: elongation sqrt(17)."""
    assert features(np.eye(3, dtype=np.uint8))[0, 4] == pytest.approx(log(17) / 2)


def test_adjacency():
    """Class 1 has 6 faces, of which 1 to class 2; class 2 has 4, one to class 1, and class 3 has none to either."""
    mask = rows_of(["0000000", "0112030", "0000000"])
    found = features(mask, classes=4, position=False)[:, 5:]
    assert found.tolist() == [[pytest.approx(1 / 6), 0], [pytest.approx(1 / 4), 0], [0, 0]]


def test_unknown_voxels_are_no_part_and_an_empty_class_has_no_features():
    found = features(rows_of(["0xx0", "0110"]), classes=3, position=False)
    assert found[0, 0] == pytest.approx(log(2))
    assert np.isnan(found[1]).all()


@pytest.mark.parametrize("mask", [np.ones((3, 4), np.uint8), np.eye(1, dtype=np.uint8), np.ones((1, 5, 1), np.uint8)])
def test_full_masks_single_voxels_and_lines_have_features(mask):
    assert np.isfinite(features(mask, np.ones(mask.ndim))).all()


# ---- scores ----------------------------------------------------------------------------------------------------


def scorer(labelled: Sequence[float], groups: str = "", **knobs: Any) -> ShapeScores:
    """Statistics of one class and one feature, one labelled mask for each value; NaN where the class is empty."""
    rows = np.array(labelled, float)[:, None, None]
    return ShapeScores(Shape(kind="shape", **knobs), False, tuple(groups or map(str, range(len(rows)))), rows)


def test_likelihood_of_one_feature():
    """Values 0, 1, 2, 3, 9 and one empty: median 2, deviations 2, 1, 0, 1, 7, scale 1.4826.

    With a tail of 4 form is -2.5 log(1 + z^2 / 4); its median is that of z = 1 / 1.4826. p = (1 + .5) / 7.
    """
    found = scorer([0, 1, 2, 3, 9, np.nan])
    z = 1 / 1.4826
    middle = -2.5 * log(1 + z**2 / 4)
    scores = found._log_likelihood(np.array([[2.0], [3.0], [12.0], [np.nan]]), found.labelled[:, 0])
    there = log(1 - 1.5 / 7)
    far = -2.5 * log(1 + (10 * z) ** 2 / 4)
    assert scores.tolist() == pytest.approx([there - middle, there, there + far - middle, log(1.5 / 7)])


def test_equal_labelled_masks_have_the_floor_as_scale():
    """All 1 and floor .5: the value 2 has z = 2, so -2.5 log 2; p = .5 / 4."""
    found = scorer([1, 1, 1], floor=0.5)
    scores = found._log_likelihood(np.array([[1.0], [2.0]]), found.labelled[:, 0])
    assert scores.tolist() == pytest.approx([log(1 - 0.125), log(1 - 0.125) - 2.5 * log(2)])


def test_an_empty_mask_is_as_plausible_as_it_is_frequent(tmp_path):
    """Never empty in 4 labelled cases: log(.5 / 5), below the usual bar; empty in 7 of 10: log(7.5 / 11), above it."""
    bar, empty = bars([4])[0], bars([0])[0]
    masks = bars([0, 4])
    assert judged(tmp_path / "rare", masks, [bar] * 4) == pytest.approx([log(0.1), log(0.9)])
    found = judged(tmp_path / "often", masks, [bar] * 3 + [empty] * 7)
    assert found == pytest.approx([log(7.5 / 11), log(3.5 / 11)])


def test_classes_that_few_labelled_masks_have_count_for_nothing(tmp_path):
    """Class 2 is in two labelled masks: without it the score is that of class 1, log(.9); with `fewest` 2 the mean."""
    plain, both = rows_of(["01100"]), rows_of(["01102"])
    labels = [plain, plain, both, both]
    masks = plain[None]
    assert judged(tmp_path / "few", masks, labels, 3) == pytest.approx([log(0.9)])
    assert judged(tmp_path / "two", masks, labels, 3, fewest=2) == pytest.approx([(log(0.9) + log(2.5 / 5)) / 2])


@pytest.mark.parametrize("labels", [[], [[4], [4]], [[0], [0], [0], [0]]])
def test_abstains_without_enough_labelled_masks(tmp_path, labels):
    assert np.isnan(judged(tmp_path, bars([4, 0]), [bars(label)[0] for label in labels])).all()


def test_abstains_on_a_proposal_that_is_wholly_unknown(tmp_path):
    masks = np.stack([*bars([4]), np.full((1, 16), schema.UNKNOWN, np.uint8)])
    assert np.isnan(judged(tmp_path, masks, [bars([4])[0]] * 3)).tolist() == [False, True]


def test_the_patient_judged_is_left_out(tmp_path):
    """The labelled case c0 is one of three: two others are too few, and with `fewest` 2 they are all that counts."""
    labels = [bars([length])[0] for length in (12, 4, 4)]
    cases = case_store(tmp_path / "cases", labels, ["labelled"] * 3)
    at = Scene(cases, proposal_store(tmp_path / "proposals", [bars([12, 4])]), tmp_path / "none.csv")
    assert np.isnan(scores_of(Shape(kind="shape"), at)).all()
    own, other = scores_of(Shape(kind="shape", fewest=2), at)
    assert other == pytest.approx(log(1 - 0.5 / 3))
    assert own < other


def test_volumes_are_compared_in_mm(tmp_path):
    """Labelled: 4 pixels of 2 mm. Of pixels of 1 mm, 8 are as large; where one spacing is unknown, 4 are."""
    labels = [bars([8])[0], *[bars([4])[0]] * 3]
    spacings_of: dict[str, list[float | None]] = {"mm": [1.0, 2.0, 2.0, 2.0], "px": [None, 2.0, 2.0, 2.0]}
    for name, spacings in spacings_of.items():
        folder = tmp_path / name
        cases = case_store(folder / "cases", labels, ["pool"] + ["labelled"] * 3)
        spaced = pl.Series("spacing_mm", [s and [1.0, s] for s in spacings], schema.CASES.columns["spacing_mm"])
        write_table(cases.table.with_columns(spaced), schema.CASES, folder / "cases/cases.parquet", "a test")
        write_manifest(folder / "cases", "a test")
        proposals = proposal_store(folder / "proposals", [bars([8, 4])])
        at = Scene(type(cases)(cases.folder), proposals, folder / "none.csv")
        eight, four = scores_of(Shape(kind="shape", position=False), at)
        assert (eight > four) == (name == "mm")


def test_discs_are_told_from_what_is_no_disc(tmp_path):
    """Labelled: discs of radius 4 to 6. A disc of radius 5.5 beats every other form of like size or place."""
    space = (24, 24)
    labels = [disc(space, radius, offset) for radius, offset in ((4, -1), (4.5, 1), (5, 0), (5.5, -1), (6, 1))]
    near = disc(space, 5.5)
    ring, split, specks, long = near.copy(), near.copy(), near.copy(), np.zeros(space, np.uint8)
    ring[10:14, 10:14] = 0
    split[11:13] = 0
    specks[1::6, 1::6] = 1
    long[2:22, 10:14] = 1
    others = {
        "ring": ring,
        "split": split,
        "specks": specks,
        "long": long,
        "aside": disc(space, 5.5, 6),
        "large": disc(space, 10),
        "small": disc(space, 1.5),
        "empty": np.zeros(space, np.uint8),
        "full": np.ones(space, np.uint8),
    }
    scores = judged(tmp_path, np.stack([near, *others.values()]), labels)
    assert {name: score < scores[0] for name, score in zip(others, scores[1:], strict=True)} == dict.fromkeys(
        others, True
    )


def test_a_core_outside_its_organ_is_implausible(tmp_path):
    """Equal forms and places of both classes but for what they touch."""
    inside = disc((16, 16), 6)
    inside[6:9, 6:9] = 2
    outside = np.where(disc((16, 16), 6), 1, 0).astype(np.uint8)
    outside[6:9, 6:9] = 0
    outside[7, 7] = 2
    scores = judged(tmp_path, np.stack([inside, outside]), [inside] * 3, 3)
    assert scores[0] > scores[1]


def test_scores_need_no_truth_of_what_is_judged(tmp_path):
    """Evidence without research, and one bar among equals."""
    cases = case_store(tmp_path / "cases", [None, *[bars([4])[0]] * 3], ["pool"] + ["labelled"] * 3, space=(1, 16))
    proposals = proposal_store(tmp_path / "proposals", [bars([4])])
    ready = Shape(kind="shape").ready(given(cases, proposals, tmp_path))
    assert ready.score(Evidence(cases, proposals, cases.all[0])) == pytest.approx([log(1 - 0.5 / 4)])
