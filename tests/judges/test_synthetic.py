"""The judge with planted errors: what is planted is what is found."""

from __future__ import annotations

from math import erf
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline.judges.kinds.oracle import Oracle
from pipeline.judges.kinds.synthetic import Synthetic, SyntheticScores
from pipeline.measures.overlap import disagreement
from tests.fixtures.builders import bars
from tests.fixtures.judging import scene, scores_of

MASKS = bars([8, 4, 16, 0])
TRUTH = bars([8])[0]
DICE = [1, 2 / 3, 2 / 3, 0]
"""Of `MASKS` with `TRUTH`: 8/8, 2 * 4 / 12, 2 * 8 / 24, 0."""


def toy(name: str = "c", masks: np.ndarray = MASKS, truth: np.ndarray | None = TRUTH) -> Any:
    """Evidence of one binary case."""
    differ = disagreement(masks)
    return SimpleNamespace(
        case=SimpleNamespace(case_id=name),
        masks=masks,
        classes=2,
        disagreement=differ,
        originals=(differ == 0).argmax(1),
        truth=lambda: truth,
    )


def judge(seed: int = 0, **knobs: Any) -> SyntheticScores:
    return SyntheticScores(Synthetic(kind="synthetic", **knobs), seed)


def scores_over(cases: int, masks: np.ndarray = MASKS, **knobs: Any) -> np.ndarray:
    """f64 `[case, proposal]` of equal masks under other case ids."""
    return np.stack([judge(**knobs).score(toy(f"c{row}", masks)) for row in range(cases)])


def test_without_errors_it_is_the_oracle(tmp_path):
    at = scene(tmp_path, [MASKS, MASKS], labels=[TRUTH, None])
    for row in (0, 1):
        found = scores_of(Synthetic(kind="synthetic"), at, row)
        assert found.tobytes() == scores_of(Oracle(kind="oracle"), at, row).tobytes()


def test_size_bias():
    """Volumes 8, 4, 16, 0 have the mean 7: relative volumes 1/7, -3/7, 9/7, -1, each times .1."""
    expected = [1 + 0.1 / 7, 2 / 3 - 0.3 / 7, 2 / 3 + 0.9 / 7, -0.1]
    assert judge(size_bias=0.1).score(toy()) == pytest.approx(expected)


def test_size_bias_of_empty_masks_is_none():
    assert judge(size_bias=0.1).score(toy(masks=bars([0, 0]))).tolist() == [0, 0]


def test_a_flip_mirrors_the_scores_of_a_case():
    """Dice 1, 2/3, 2/3, 0 between 0 and 1 becomes 0, 1/3, 1/3, 1: all pairs wrong, margins and ties as they were."""
    found = scores_over(200, flip=0.5)
    flipped = found[:, 0] == 0
    assert 0 < flipped.sum() < 200
    assert found[flipped] == pytest.approx(np.tile([0, 1 / 3, 1 / 3, 1], (flipped.sum(), 1)))
    assert found[~flipped] == pytest.approx(np.tile(DICE, ((~flipped).sum(), 1)))
    assert (found[:, 1] == found[:, 2]).all()


@pytest.mark.parametrize("flip", [0.0, 0.2, 0.5])
def test_the_share_of_flipped_cases_is_the_planted_one(flip):
    """1000 cases: within 4 standard deviations, at most .064."""
    wrong = scores_over(1000, flip=flip)[:, 0] == 0
    assert abs(wrong.mean() - flip) <= 4 * np.sqrt(flip * (1 - flip) / 1000)


def test_more_flips_are_more_of_the_same_and_another_draw_is_another_noise():
    few, many = (scores_over(300, flip=flip)[:, 0] == 0 for flip in (0.1, 0.4))
    assert (few <= many).all()
    assert few.sum() < many.sum()
    other = scores_over(300, flip=0.4, draw=1)[:, 0] == 0
    assert (other & ~many).any()
    assert (many & ~other).any()
    assert judge(seed=1, gaussian=0.1).score(toy()).tobytes() != judge(seed=0, gaussian=0.1).score(toy()).tobytes()


def test_equal_masks_have_equal_noise():
    scores = judge(gaussian=0.5).score(toy(masks=bars([8, 4, 8, 4])))
    assert scores[:2].tolist() == scores[2:].tolist()
    assert abs(scores - [1, 2 / 3, 1, 2 / 3]).min() > 0


def test_gaussian_noise_has_its_spread():
    """1000 cases: standard errors are .2 / sqrt(1000) = .0063 of the mean, .2 / sqrt(2000) = .0045 of the spread."""
    noise = scores_over(1000, gaussian=0.2) - DICE
    assert noise.std(0) == pytest.approx([0.2] * 4, abs=0.018)
    assert noise.mean(0) == pytest.approx([0] * 4, abs=0.026)
    assert abs(np.corrcoef(noise.T) - np.eye(4)).max() < 0.127, "independent"


def test_error_rates_of_flips():
    """Of every pair that differs in truth; proposals 1 and 2 do not."""
    nan = np.nan
    expected = [[nan, 0.2, 0.2, 0.2], [0.2, nan, nan, 0.2], [0.2, nan, nan, 0.2], [0.2, 0.2, 0.2, nan]]
    assert judge(flip=0.2).error_rates(toy()) == pytest.approx(np.array(expected), nan_ok=True)


def phi(x: float) -> float:
    return (1 + erf(x / np.sqrt(2))) / 2


def test_error_rates_of_gaussian_noise():
    """Gap 1/3: Phi(-(1/3) / (.2 sqrt 2)) = Phi(-1.1785) = .1193; gap 1: Phi(-3.5355) = .0002."""
    rates = judge(gaussian=0.2).error_rates(toy())
    assert rates[0, 1] == pytest.approx(0.1193, abs=1e-4)
    assert rates[0, 3] == pytest.approx(phi(-3.5355), abs=1e-6)
    assert rates[1, 0] == rates[0, 1]


def test_error_rates_of_a_size_bias():
    """Lengths 8, 16, 0 with the mean 8: Dice 1, 2/3, 0. A bias of 1/3 makes the first two equal, of 1/2 wrong."""
    case = toy(masks=bars([8, 16, 0]))
    assert judge(size_bias=0.25).error_rates(case)[0, 1:].tolist() == [0, 0]
    assert judge(size_bias=1 / 3).error_rates(case)[0, 1:].tolist() == [0.5, 0]
    assert judge(size_bias=0.5).error_rates(case)[0, 1:].tolist() == [1, 0]


def test_error_rates_of_all_errors_are_found():
    """Each pair over 1000 cases, within 4 standard deviations; pairs with equal truth have no rate."""
    knobs = {"gaussian": 0.2, "flip": 0.2, "size_bias": 0.1, "large_above": 0.5}
    rates = judge(**knobs).error_rates(toy())
    scores = scores_over(1000, **knobs)
    for first, second in ((0, 1), (0, 2), (0, 3), (1, 3), (2, 3)):
        wrong = (scores[:, first] < scores[:, second]).mean()
        rate = rates[first, second]
        assert abs(wrong - rate) <= 4 * np.sqrt(rate * (1 - rate) / 1000)


def test_errors_in_cases_of_large_disagreement_only():
    """Best 8, worst 4: |D| is 4, half of the base's 8 pixels; the limit itself is not above it."""
    case = toy(masks=bars([8, 8, 4, 5]))
    dice = [1, 1, 2 / 3, 10 / 13]
    for knobs in ({"gaussian": 0.3}, {"size_bias": 0.3}, {"flip": 0.5}):
        assert judge(large_above=0.5, **knobs).score(case) == pytest.approx(dice)
        assert np.nanmax(judge(large_above=0.5, **knobs).error_rates(case)) == 0
    assert judge(large_above=0.49, gaussian=0.3).score(case) != pytest.approx(dice)
    assert np.nanmax(judge(large_above=0.49, flip=0.5).error_rates(case)) == 0.5


def test_large_disagreement_with_an_empty_base_is_counted_in_voxels():
    """Best 8, worst the empty base: |D| is 8 over at least one voxel."""
    case = toy(masks=bars([0, 8]))
    assert np.nanmax(judge(large_above=7.9, flip=0.5).error_rates(case)) == 0.5
    assert np.nanmax(judge(large_above=8, flip=0.5).error_rates(case)) == 0


def test_noise_on_large_disagreement_weighs_more_than_its_rate():
    """Half of the cases have |D| = 8 of best and worst, half 2. Flips of .4 in the first: e = .2, e_D = .4 8/10."""
    large, small = bars([8, 0]), bars([8, 6])
    rates = [judge(flip=0.4, large_above=0.5).error_rates(toy(masks=masks))[0, 1] for masks in (large, small)]
    assert rates == [pytest.approx(0.4), 0]
    scores = [scores_over(500, masks, flip=0.4, large_above=0.5) for masks in (large, small)]
    wrong = [(found[:, 0] < found[:, 1]).mean() for found in scores]
    assert sum(wrong) / 2 == pytest.approx(0.2, abs=0.044)
    assert (8 * wrong[0] + 2 * wrong[1]) / 10 == pytest.approx(0.32, abs=0.071)


def test_a_case_without_truth_has_no_score_and_no_rate():
    everything = judge(gaussian=0.2, flip=0.2, size_bias=0.1, large_above=0.5)
    assert np.isnan(everything.score(toy(truth=None))).all()
    assert np.isnan(everything.error_rates(toy(truth=None))).all()


@pytest.mark.parametrize("knobs", [{"flip": 0.51}, {"flip": -0.1}, {"gaussian": -0.1}, {"large_above": -1.0}])
def test_knobs_out_of_range(knobs):
    with pytest.raises(ValueError, match=r"greater than or equal|less than or equal"):
        judge(**knobs)
