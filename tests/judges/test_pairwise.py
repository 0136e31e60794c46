"""The judge of pairs: features of known forms, a fit worked by hand, and what it learns from scenes with one cue."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from math import exp, log
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import BadInput
from pipeline.judges.judge import Evidence
from pipeline.judges.kinds.pairwise import WEIGHTS_FILE, Pairs, Pairwise
from pipeline.judges.learning.bradley_terry import MaskFeatures, chosen_ridge, fitted, folds_of_groups, scaled
from pipeline.judges.learning.features import features
from pipeline.seeding import numpy_generator
from pipeline.store import schema
from tests.fixtures.builders import bars, case_store, proposal_store, rows_of
from tests.fixtures.judging import Scene, scorer_of, scores_of

WIDE = 20


def found(folder: Path, masks: np.ndarray, image: np.ndarray | None = None, classes: int = 2) -> dict[str, np.ndarray]:
    space = masks.shape[1:]
    image = np.zeros((1, *space), np.float32) if image is None else image.astype(np.float32)
    cases = case_store(folder / "cases", [np.zeros(space, np.uint8)], images=[image], classes=classes)
    proposals = proposal_store(folder / "proposals", [masks], classes=classes)
    return features(Evidence(cases, proposals, cases.all[0]))


def judge_of(**knobs: Any) -> Pairwise:
    return Pairwise.model_validate({"kind": "pairwise", **knobs})


def edge_at(length: int, noise: int) -> np.ndarray:
    """An image f32 `[1, 1, WIDE]` that is bright up to `length`, with some noise."""
    draw = numpy_generator("edge", noise).normal(size=(1, 1, WIDE))
    return ((np.arange(WIDE) < length) + 0.02 * draw).astype(np.float32)


def edges(
    folder: Path, lengths: Sequence[int], guesses: Sequence[Sequence[int]], groups: Sequence[str] | None = None
) -> Scene:
    """A bar of another length on every image; proposals are bars of the lengths `guesses[case]`. The first case is of
    the pool, the others are labelled, and have the same proposals out of fold."""
    splits = ["pool"] + ["labelled"] * (len(lengths) - 1)
    labels = [bars([length], WIDE)[0] for length in lengths]
    images = [edge_at(length, row) for row, length in enumerate(lengths)]
    cases = case_store(folder / "cases", labels, splits, images, (1, WIDE), groups=groups)
    proposals = proposal_store(folder / "proposals", [bars(row, WIDE) for row in guesses])
    return Scene(cases, proposals, folder / "none.csv", proposals)


# ---- features --------------------------------------------------------------------------------------------------


def test_a_rectangle(tmp_path):
    """2 x 4 pixels, and the same with one more apart: perimeters 12 and 16, 8 and 9 pixels, 1 and 2 pieces.

    Dice between the two: 16 / 17.
    """
    masks = np.zeros((2, 8, 10), np.uint8)
    masks[:, 1:3, 3:7] = 1
    masks[1, 6, 8] = 1
    seen = found(tmp_path, masks)
    assert seen["surface"] == pytest.approx([log(13), log(17)])
    assert seen["volume"] == pytest.approx([log(9), log(10)])
    assert seen["odd_volume"] == pytest.approx([log(10 / 9) / 2] * 2)
    assert seen["components"] == pytest.approx([log(2), log(3)])
    assert seen["dice_to_first"] == pytest.approx([1, 16 / 17])
    assert seen["agreement"] == pytest.approx([16 / 17] * 2)
    assert seen["edge"].tolist() == seen["contrast"].tolist() == [0, 0], "a constant image"


def test_contrast_of_a_step(tmp_path):
    """0 and 1 in halves of 10 of 20 pixels: mean 1/2, deviation 1/2, so the halves are -1 and 1.

    The half itself: bands of 3 pixels at 1 and -1, contrast 2. Two pixels less: inside 1; outside 1, 1, -1; 2/3.
    """
    image = (np.arange(WIDE) < 10)[None, None]
    assert found(tmp_path, bars([10, 8], WIDE), image)["contrast"] == pytest.approx([2, 2 - 4 / 3])


def test_the_edge_is_strongest_where_the_image_changes(tmp_path):
    image = (np.arange(WIDE) < 10)[None, None]
    edge = found(tmp_path, bars([10, 9, 4], WIDE), image)["edge"]
    assert edge[0] > edge[1] > 1 > edge[2]


@pytest.mark.parametrize(
    ("spacing", "faces", "contrast"), [((1.0, 4.0), (5, 6), 0.0), ((4.0, 1.0), (5, 9), (124 / 6 - 16) / 460.89**0.5)]
)
def test_unequal_voxel_edges(tmp_path, spacing, faces, contrast):
    """One voxel of 1 x 4 mm has faces of 4, 4, 1 and 1 mm, over 2 mm, the edge of a square of its area: 5. Two in a
    column: 4, 4 and 4 times 1 make 6; of 4 x 1 mm, 1, 1 and 4 times 4 make 9.

    The band of 3 mm holds 3 voxels along the axis of 1 mm and none along the other. The image has the column's number
    squared: in a column 16 beside 16; in a row 16 beside 1, 4, 9, 25, 36 and 49. Its variance over columns is
    8772 / 9 - (204 / 9)^2 = 460.89.
    """
    masks = np.zeros((2, 9, 9), np.uint8)
    masks[0, 4, 4] = masks[1, 4:6, 4] = 1
    cases = case_store(tmp_path / "cases", [masks[0]], images=[np.tile(np.arange(9.0) ** 2, (9, 1))[None]])
    proposals = proposal_store(tmp_path / "proposals", [masks])
    seen = features(Evidence(cases, proposals, replace(cases.all[0], spacing_mm=spacing)))
    assert seen["surface"] == pytest.approx(np.log1p(faces))
    assert seen["contrast"] == pytest.approx([contrast] * 2, rel=1e-4)


def test_a_class_without_border_is_neither_better_nor_worse(tmp_path):
    """Empty and full bars have the edge and contrast of the one bar that has them."""
    image = (np.arange(WIDE) < 10)[None, None]
    seen = found(tmp_path, bars([10, 0, WIDE], WIDE), image)
    for name in ("edge", "contrast", "boundary_entropy"):
        assert len(set(seen[name].tolist())) == 1
    assert seen["contrast"][0] == pytest.approx(2)
    assert seen["components"] == pytest.approx([log(2), 0, log(2)])


def test_unknown_voxels_are_no_border(tmp_path):
    """The bar of 2 has 1 face with what is not it; with 255 behind it, none."""
    masks = np.stack([rows_of(["110000"]), rows_of(["11xxx0"])])
    assert found(tmp_path, masks)["surface"] == pytest.approx([log(2), 0])


@pytest.mark.parametrize("fill", [0, 1, 2, schema.UNKNOWN])
def test_features_are_finite(tmp_path, fill):
    noise = numpy_generator("features").integers(3, size=(3, 4, 5, 6)).astype(np.uint8)
    noise[0] = fill
    noise[1, 2] = schema.UNKNOWN
    image = numpy_generator("image").normal(size=(2, 4, 5, 6))
    seen = found(tmp_path, noise, image, classes=3)
    assert all(values.shape == (3,) and np.isfinite(values).all() for values in seen.values())


# ---- fit -------------------------------------------------------------------------------------------------------


def one_pair(gain: float) -> Pairs:
    return Pairs.of(np.array([[gain], [0.0]]), np.array([0.9, 0.5]), "g", "gap")


def test_a_fit_of_one_pair():
    """Minimum of log(1 + exp(-w)) + r w^2 / 2: 1 / (1 + exp(w)) = r w. For r = 1 / (log 3 * 4), w = log 3."""
    assert fitted([one_pair(1.0)], 1 / (4 * log(3))) == pytest.approx([log(3)], abs=1e-5)


def test_odds_of_repeated_outcomes():
    """3 of 4 pairs with the feature, no penalty to speak of: the odds are 3, so the weight is log 3."""
    pairs = [one_pair(1.0)] * 3 + [one_pair(-1.0)]
    assert fitted(pairs, 1e-9) == pytest.approx([log(3)], abs=1e-4)


def test_pairs_of_a_case():
    """True Dice .8, .5, .5, .4: gaps .3, .3, .4, .1, .1, the equal two are no pair; they sum to 1.2."""
    pairs = Pairs.of(np.arange(4.0)[:, None], np.array([0.8, 0.5, 0.5, 0.4]), "g", "gap")
    assert pairs.difference[:, 0].tolist() == [-1, -2, -3, -2, -1]
    assert pairs.weight == pytest.approx([0.25, 0.25, 1 / 3, 1 / 12, 1 / 12])
    equal = Pairs.of(np.zeros((4, 1)), np.array([0.8, 0.5, 0.5, 0.4]), "g", "equal")
    assert equal.weight.tolist() == [0.2] * 5


def test_what_is_measured_of_a_case_left_out():
    """Odds w(x_better - x_worse) for x = 0, 2, 1 and Dice .5, .7, .9, w = 1: right 2, 1, wrong 1 (.9 over .7).

    Loss by gaps .2, .4, .2 of .8; the top pick is the one with .7, .2 above slot 0.
    """
    pairs = Pairs.of(np.array([[0.0], [2.0], [1.0]]), np.array([0.5, 0.7, 0.9]), "g", "gap")
    loss, accuracy, lift = pairs.measured(np.ones(1)).values()
    right, top, wrong = log(1 + exp(-2)), log(1 + exp(-1)), log(1 + exp(1))
    assert loss == pytest.approx(0.25 * right + 0.5 * top + 0.25 * wrong)
    assert (accuracy, lift) == pytest.approx((2 / 3, 0.2))
    assert tuple(pairs.measured(np.zeros(1)).values())[:2] == pytest.approx((log(2), 0.5))


def test_features_that_never_differed_count_for_nothing():
    """In spreads from the median, at most 4; a spread of 0 is one that no labelled case had."""
    values = np.array([[1.0, 5.0], [2.0, 7.0], [99.0, 9.0]])
    assert scaled(values, np.array([0.5, 0.0])).tolist() == [[-2, 0], [0, 0], [4, 0]]


# ---- scores ----------------------------------------------------------------------------------------------------


def test_a_score_is_the_mean_log_odds_against_the_siblings(tmp_path):
    """Of distinct masks: the second bar of 6 is no sibling of the first, and has its score."""
    at = edges(tmp_path, [10, 8, 6, 12], [[6, 9, 12, 6], [8, 5, 9, 11], [3, 6, 9, 7], [12, 9, 15, 11]])
    scorer = scorer_of(judge_of(), at)
    seen = MaskFeatures.of(Evidence(at.cases, at.proposals, at.cases.all[0]), True)
    worth = scaled(seen.matrix(scorer.worth.names), scorer.worth.spread) @ scorer.worth.weight
    odds = {k: [worth[k] - worth[j] for j in range(3) if j != k] for k in range(3)}
    expected = [np.mean(odds[k]) for k in (0, 1, 2, 0)]
    assert scorer.score(Evidence(at.cases, at.proposals, at.cases.all[0])) == pytest.approx(expected)


def test_it_learns_that_borders_are_where_the_image_changes(tmp_path):
    """Lengths that tell nothing but by the image: agreement would pick the medoid of the pool case, 6."""
    lengths = [11, 4, 6, 8, 10, 12, 14]
    guesses = [[5, 6, 7, 11]]
    guesses += [[4, 6, 8, 11], [3, 6, 9, 12], [5, 8, 11, 12], [10, 7, 6, 13], [9, 12, 15, 5], [6, 9, 11, 14]]
    at = edges(tmp_path, lengths, guesses)
    scores = scores_of(judge_of(samplers=False), at)
    assert scores.argmax() == 3


def test_it_learns_which_setting_is_best(tmp_path):
    """Slot 2 is always right and slot 1 always wrong, on images that show nothing: bars of 6 and 10, whichever."""
    guesses = [[8, 6, 10]] + [[8, 10, 6], [8, 6, 10]] * 3
    labels = [bars([length], WIDE)[0] for length in (10, *[6, 10] * 3)]
    cases = case_store(tmp_path / "cases", labels, ["pool"] + ["labelled"] * 6, space=(1, WIDE))
    proposals = proposal_store(tmp_path / "proposals", [bars(row, WIDE) for row in guesses])
    at = Scene(cases, proposals, tmp_path / "none.csv", proposals)
    scores = scores_of(judge_of(), at)
    assert scores.argmax() == 2
    assert scores.argmin() == 1
    learned = json.loads(next((tmp_path / "models").rglob(WEIGHTS_FILE)).read_text())
    assert learned["features"]["sampler s 2"]["weight"] > 0 > learned["features"]["sampler s 1"]["weight"]


def test_what_it_has_learned_can_be_read(tmp_path):
    """Three labelled patients with four cases: 3 groups, and per case as many pairs as lengths that differ in Dice."""
    groups = ["p", "a", "a", "b", "c"]
    guesses = [[6, 9, 12], [8, 5, 12], [6, 5, 9], [12, 9, 14], [7, 5, 4]]
    at = edges(tmp_path, [10, 8, 6, 12, 7], guesses, groups)
    scorer = scorer_of(judge_of(ridges=(0.1, 1.0)), at)
    learned = json.loads(next((tmp_path / "models").rglob(WEIGHTS_FILE)).read_text())
    assert (learned["cases"], learned["groups"], learned["pairs"]) == (4, 3, 12)
    assert [row["ridge"] for row in learned["left_out"]] == [1.0, 0.1]
    best = min(learned["left_out"], key=lambda row: row["log_loss"])
    assert learned["ridge"] == best["ridge"]
    assert best["log_loss"] < log(2), "better than to know nothing"
    assert {"agreement", "edge", "sampler base base", "sampler s 1"} < learned["features"].keys()
    assert learned["features"]["components"] == {"spread": 0, "weight": 0}, "one each, everywhere"
    assert [learned["features"][name]["weight"] for name in scorer.worth.names] == scorer.worth.weight.tolist()


def test_the_penalty_is_chosen_over_patients():
    """Patient p has one case twice, and patient q another case: the same measures as with each case once."""
    dice = np.array([0.5, 0.7, 0.9])
    one = Pairs.of(np.array([[0.0], [2.0], [1.0]]), dice, "p", "equal")
    other = Pairs.of(np.array([[0.0], [0.5], [1.0]]), dice, "q", "equal")
    knobs = judge_of()
    fold_of = folds_of_groups(["p", "q"], knobs.folds, 0, "pairwise")
    (ridge, once), (again, twice) = (
        chosen_ridge(pairs, fold_of, knobs.ridges, Pairs.measured) for pairs in ([one, other], [one, one, other])
    )
    assert ridge == again
    for row, same in zip(once, twice, strict=True):
        assert same == pytest.approx(row, rel=1e-4)


def test_with_one_group_there_is_nothing_to_choose_by(tmp_path):
    at = edges(tmp_path, [10, 8], [[6, 9, 12], [8, 5, 12]])
    scorer_of(judge_of(), at)
    learned = json.loads(next((tmp_path / "models").rglob(WEIGHTS_FILE)).read_text())
    assert (learned["ridge"], learned["left_out"]) == (max(judge_of().ridges), [])


def test_without_pairs_to_learn_from(tmp_path):
    at = edges(tmp_path, [10, 8, 8], [[6, 9], [8, 8], [5, 5]])
    message = (
        "/proposals: judge 'pairwise' learns from labelled cases whose proposals differ in true Dice; expected at "
        "least one such case, found none among 2; propose more masks per case, or remove the judge"
    )
    with pytest.raises(BadInput, match=message):
        scorer_of(judge_of(), at)


def test_without_folds(tmp_path):
    at = replace(edges(tmp_path, [10, 8], [[6, 9], [8, 5]]), out_of_fold=None)
    with pytest.raises(BadInput, match=r"kind 'pairwise' learns from out-of-fold proposals .* expected base.folds of"):
        scorer_of(judge_of(), at)


def test_every_pair_of_knobs_learns_something_else(tmp_path):
    at = edges(tmp_path, [10, 8, 6, 12], [[6, 9, 12], [8, 5, 9], [3, 6, 9], [12, 9, 15]])
    tried: list[dict[str, Any]] = [
        {},
        {"samplers": False},
        {"weigh": "gap"},
        {"ridges": (5.0,)},
        {"folds": 2, "ridges": (0.7,)},
    ]
    for one, other in combinations([scores_of(judge_of(**knobs), at).tolist() for knobs in tried], 2):
        assert one != other
