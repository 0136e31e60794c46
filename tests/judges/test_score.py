"""Scores of the judges that need masks, probability or truth, worked by hand."""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipeline.judges.kinds.agreement import Agreement
from pipeline.judges.kinds.entropy import Entropy
from pipeline.judges.kinds.expected_dice import ExpectedDice
from pipeline.judges.kinds.likelihood import Likelihood
from pipeline.judges.kinds.oracle import Oracle
from pipeline.store import schema
from pipeline.store.proposals import ProposalStore
from tests.fixtures.builders import bars, rows_of
from tests.fixtures.judging import Scene, evidence_of, scene, scorer_of, scores_of

# ---- agreement -------------------------------------------------------------------------------------------------


class Named(ProposalStore):
    """Proposals of these samplers."""

    names: tuple[str, ...] = ()

    @property
    def table(self) -> pl.DataFrame:  # type: ignore[override]
        return super().table.with_columns(pl.Series("sampler", self.names))


def agreement(folder: Path, masks: np.ndarray, samplers: Sequence[str] | None = None, **knobs: Any) -> list[float]:
    at = scene(folder, [masks])
    if samplers:
        proposals = type("Sampled", (Named,), {"names": tuple(samplers)})(at.proposals.folder)
        at = Scene(at.cases, proposals, at.table)
    judge = Agreement(kind="agreement", **knobs)
    return scorer_of(judge, at).score(evidence_of(judge, at)).tolist()


def test_agreement(tmp_path):
    """Lengths 8, 4, 16: Dice 8/4 = 8/12, 8/16 = 16/24, 4/16 = 8/20. Means with the two others: 2/3, 8/15, 8/15."""
    assert agreement(tmp_path, bars([8, 4, 16])) == pytest.approx([2 / 3, 8 / 15, 8 / 15])


@pytest.mark.parametrize("knobs", [{}, {"duplicates": "drop"}, {"others": True}, {"balanced": True}])
def test_agreement_abstains_on_a_single_proposal(tmp_path, knobs):
    assert np.isnan(agreement(tmp_path, bars([8]), **knobs)).all()


def test_agreement_with_every_mask_once(tmp_path):
    """Lengths 8, 4, 4, 16. Kept: 8 has (2/3 + 2/3 + 2/3) / 3, 4 has (2/3 + 1 + 2/5) / 3, 16 has (2/3 + 2/5 + 2/5) / 3.

    Dropped: as 8, 4, 16 above, and the second 4 as the first.
    """
    masks = bars([8, 4, 4, 16])
    four = (2 / 3 + 1 + 2 / 5) / 3
    assert agreement(tmp_path / "keep", masks) == pytest.approx([2 / 3, four, four, (2 / 3 + 4 / 5) / 3])
    found = agreement(tmp_path / "drop", masks, duplicates="drop")
    assert found == pytest.approx([2 / 3, 8 / 15, 8 / 15, 8 / 15])
    assert found[1] == found[2]


def test_agreement_of_one_mask_alone_abstains_once_duplicates_are_dropped(tmp_path):
    assert agreement(tmp_path / "keep", bars([8, 8, 8])) == [1, 1, 1]
    assert np.isnan(agreement(tmp_path / "drop", bars([8, 8, 8]), duplicates="drop")).all()


def test_agreement_with_other_samplers_only(tmp_path):
    """Lengths 8 (base), 4 and 16 (a): 8 has (2/3 + 2/3) / 2; 4 and 16 meet only the base: 2/3 each."""
    assert agreement(tmp_path, bars([8, 4, 16]), ["base", "a", "a"], others=True) == pytest.approx([2 / 3] * 3)


def test_agreement_with_other_samplers_abstains_where_there_is_none(tmp_path):
    assert np.isnan(agreement(tmp_path, bars([8, 4]), ["a", "a"], others=True)).all()


def test_agreement_with_samplers_that_weigh_equally(tmp_path):
    """Lengths 8 (base), 4 (a), 16 and 2 (b). Dice 8/4 = 2/3, 8/16 = 2/3, 8/2 = 2/5, 4/16 = 2/5, 4/2 = 2/3, 16/2 = 2/9.

    8: a has 2/3, b has (2/3 + 2/5) / 2 = 8/15, mean 3/5. 4: base 2/3, b (2/5 + 2/3) / 2 = 8/15, mean 3/5.
    16: base 2/3, a 2/5, b 2/9, mean 58/135. 2: base 2/5, a 2/3, b 2/9, mean 58/135.
    """
    found = agreement(tmp_path, bars([8, 4, 16, 2]), ["base", "a", "b", "b"], balanced=True)
    assert found == pytest.approx([3 / 5, 3 / 5, 58 / 135, 58 / 135])


def test_agreement_with_all_options(tmp_path):
    """Lengths 8 (base), 8 (a, a duplicate), 4 (a), 16 and 2 (b): the distinct masks are those of the test above.

    8: 3/5 as there. Its copy of a: only b, 8/15. 4 of a: base 2/3, b 8/15, mean 3/5. 16: base 2/3, a 2/5, mean 8/15.
    2: base 2/5, a 2/3, mean 8/15.
    """
    samplers = ["base", "a", "a", "b", "b"]
    found = agreement(tmp_path, bars([8, 8, 4, 16, 2]), samplers, duplicates="drop", others=True, balanced=True)
    assert found == pytest.approx([3 / 5, 8 / 15, 3 / 5, 8 / 15, 8 / 15])


def test_equal_agreement_is_a_tie_to_the_last_bit(tmp_path):
    """Ten copies of a mask at all places among noise: rounding must not rank them."""
    noise = np.random.default_rng(0).integers(2, size=(21, 1, 999)).astype(np.uint8)
    noise[::2] = noise[0]
    for name, knobs in {"keep": {}, "drop": {"duplicates": "drop"}}.items():
        assert len(set(agreement(tmp_path / name, noise, **knobs)[::2])) == 1


# ---- judges of the probability ---------------------------------------------------------------------------------


def by_probability(knobs: Any, folder: Path, masks: np.ndarray, probability: np.ndarray) -> np.ndarray:
    return scores_of(knobs, scene(folder, [masks], [probability], len(probability)))


def binary(*foreground: float) -> np.ndarray:
    """f64 `[class, 1, pixel]`."""
    p = np.array([foreground])
    return np.stack([1 - p, p])


def test_expected_dice(tmp_path):
    """p = 1, .6, .2, 0 (sum 1.8): y = 1000 has 2 / 2.8, 1100 has 3.2 / 3.8, 1110 has 3.6 / 4.8, 0000 has 0."""
    judge = ExpectedDice(kind="expected_dice")
    scores = by_probability(judge, tmp_path, bars([1, 2, 3, 0], width=4), binary(1, 0.6, 0.2, 0))
    assert scores == pytest.approx([2 / 2.8, 3.2 / 3.8, 3.6 / 4.8, 0])


def test_expected_dice_of_a_class_that_nobody_sees_is_1(tmp_path):
    """Class 1 as in 1100 above with p = 1, 1, 0, 0: Dice 1; class 2 has p = 0: 1 where y has none, 0 where it has."""
    p = np.array([[1.0, 1.0, 0.0, 0.0]])
    masks = rows_of(["1100", "1102"])[:, None]
    scores = by_probability(ExpectedDice(kind="expected_dice"), tmp_path, masks, np.stack([1 - p, p, 0 * p]))
    assert scores == pytest.approx([1.0, 0.5])


def test_expected_dice_leaves_unknown_voxels_out(tmp_path):
    """p = 1, .6, .2, 0 without the second pixel: sum 1.2, y = 1x00 has 2 / 2.2."""
    masks = rows_of(["1x00"])[:, None]
    scores = by_probability(ExpectedDice(kind="expected_dice"), tmp_path, masks, binary(1, 0.6, 0.2, 0))
    assert scores == pytest.approx([2 / 2.2])


def test_equal_expected_dice_is_a_tie_to_the_last_bit(tmp_path):
    """Masks that hold the same probabilities at other places."""
    masks = np.stack([np.roll(bars([31], 93)[0], 31 * turn, axis=1) for turn in (0, 1, 2)])
    p = np.tile(np.random.default_rng(0).random(31), 3)
    assert len(set(by_probability(ExpectedDice(kind="expected_dice"), tmp_path, masks, binary(*p)).tolist())) == 1


ALMOST = log(1 - 1 / 510)
"""Of a stored probability of 1; a stored 0 is log(1/510)."""


def test_likelihood(tmp_path):
    """p = 1, .6, .2, 0 on the union 1110: 1000 has 1 .4 .8, 1100 has 1 .6 .8, 1110 has 1 .6 .2, 0000 has 0 .4 .8."""
    masks = bars([1, 2, 3, 0], width=4)
    scores = by_probability(Likelihood(kind="likelihood"), tmp_path, masks, binary(1, 0.6, 0.2, 0))
    sums = [ALMOST + log(0.4 * 0.8), ALMOST + log(0.6 * 0.8), ALMOST + log(0.6 * 0.2), log(0.4 * 0.8 / 510)]
    assert scores == pytest.approx([total / 3 for total in sums])


def test_likelihood_of_several_classes(tmp_path):
    """Pixels with P(background, 1, 2) = (.2, .6, .2) and (0, .4, .6); the third is background in both masks."""
    p = np.array([[[0.2, 0.0, 1.0]], [[0.6, 0.4, 0.0]], [[0.2, 0.6, 0.0]]])
    scores = by_probability(Likelihood(kind="likelihood"), tmp_path, rows_of(["120", "210"])[:, None], p)
    assert scores == pytest.approx([log(0.6 * 0.6) / 2, log(0.2 * 0.4) / 2])


def test_likelihood_leaves_voxels_out_that_are_unknown_in_any_proposal(tmp_path):
    """Union 1110 without the second pixel: 1x00 has p 1, .8 and 1110 has 1, .2."""
    masks = rows_of(["1x00", "1110"])[:, None]
    scores = by_probability(Likelihood(kind="likelihood"), tmp_path, masks, binary(1, 0.6, 0.2, 0))
    assert scores == pytest.approx([(ALMOST + log(0.8)) / 2, (ALMOST + log(0.2)) / 2])


@pytest.mark.parametrize("rows", [["000", "000"], ["xxx", "111"]])
def test_likelihood_of_an_empty_region_is_a_tie(tmp_path, rows):
    scores = by_probability(Likelihood(kind="likelihood"), tmp_path, rows_of(rows)[:, None], binary(1, 0.6, 0.2))
    assert scores.tolist() == [0, 0]


H6, H8 = (-(p * log(p) + (1 - p) * log(1 - p)) for p in (0.6, 0.8))
"""Entropy of probabilities .6 and .8, in nats."""


def test_entropy_at_the_boundary(tmp_path):
    """p = 1, .8, .6, 0, 0, 0. Border of 1100 within one pixel: .8, .6; of 1110: .6, 0; of 1111: 0, 0; 0 for none.

    Within two: 1100 has 1, .8, .6, 0.
    """
    masks, p = bars([2, 3, 4, 0, 6], width=6), binary(1, 0.8, 0.6, 0, 0, 0)
    scores = by_probability(Entropy(kind="entropy", band=1), tmp_path / "one", masks, p)
    assert scores == pytest.approx([-(H8 + H6) / 2, -H6 / 2, 0, np.nan, np.nan], nan_ok=True)
    scores = by_probability(Entropy(kind="entropy"), tmp_path / "two", masks, p)
    assert scores[0] == pytest.approx(-(H8 + H6) / 4)


def test_entropy_of_the_interior(tmp_path):
    """p = 1, .8, .6, 0, 0, 0 and a band of one: 110000 has the first, 111000 the first two, 111111 all, 100000 none."""
    masks, p = bars([2, 3, 6, 1], width=6), binary(1, 0.8, 0.6, 0, 0, 0)
    scores = by_probability(Entropy(kind="entropy", region="interior", band=1), tmp_path, masks, p)
    assert scores == pytest.approx([0, -H8 / 2, -(H8 + H6) / 6, np.nan], nan_ok=True)


def test_entropy_of_several_classes(tmp_path):
    """011200: class 1 has pixels 0 to 3 around its borders (both ends), class 2 has 2 to 4: the mean of both means.

    P(1) = .6 on pixel 0 and P(2) = .8 on pixel 4, the others certain: (H6 / 4 + H8 / 3) / 2. In 011000 class 1 alone:
    pixels 0, 1, 2, 3: H6 / 4.
    """
    p = np.zeros((3, 1, 6))
    p[1, 0] = [0.6, 1, 1, 0, 0, 0]
    p[2, 0] = [0, 0, 0, 1, 0.8, 0]
    p[0] = 1 - p[1] - p[2]
    scores = by_probability(Entropy(kind="entropy", band=1), tmp_path, rows_of(["011200", "011000"])[:, None], p)
    assert scores == pytest.approx([-(H6 / 4 + H8 / 3) / 2, -H6 / 4])


def test_entropy_has_no_border_with_unknown_voxels(tmp_path):
    """11x000: within one pixel the object meets only what is unknown; within two, pixels 1 and 3 are near."""
    p = binary(0.6, 0.8, 0.6, 0, 0, 0)
    masks = rows_of(["11x000"])[:, None]
    assert np.isnan(by_probability(Entropy(kind="entropy", band=1), tmp_path / "one", masks, p)).all()
    scores = by_probability(Entropy(kind="entropy", band=2), tmp_path / "two", masks, p)
    assert scores == pytest.approx([-H8 / 2]), "the unknown pixel between the two does not count"


def test_entropy_counts_steps_along_the_axes(tmp_path):
    """A single voxel in 3D: itself and its six neighbours, one of them uncertain: H6 / 7."""
    mask = np.zeros((1, 5, 5, 5), np.uint8)
    mask[0, 2, 2, 2] = 1
    p = mask[0].astype(float)
    p[1, 2, 2], p[1, 1, 2] = 0.6, 0.8
    scores = by_probability(Entropy(kind="entropy", band=1), tmp_path, mask, np.stack([1 - p, p]))
    assert scores == pytest.approx([-H6 / 7])


# ---- oracle ----------------------------------------------------------------------------------------------------


def test_oracle(tmp_path):
    """Truth of length 8 with pixels 10-15 unknown. Length 8: 1; 4: 8/12; 16: 10 known pixels, 16/18; empty: 0."""
    label = bars([8])[0]
    label[0, 10:] = schema.UNKNOWN
    masks = bars([8, 4, 16, 0])
    at = scene(tmp_path, [masks, masks, masks], labels=[label, np.zeros_like(label), None])
    assert scores_of(Oracle(kind="oracle"), at) == pytest.approx([1, 8 / 12, 16 / 18, 0])
    assert scores_of(Oracle(kind="oracle"), at, row=1).tolist() == [0, 0, 0, 1], "an empty truth is met by no pixel"
    assert np.isnan(scores_of(Oracle(kind="oracle"), at, row=2)).all(), "a case without label"
