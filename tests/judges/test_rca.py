"""Reverse classification: the discriminant, weighted Dice and draws worked by hand, and its ranking on phantoms."""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.cases.readers.phantom import Phantom
from pipeline.errors import BadInput
from pipeline.judges.kinds import rca
from pipeline.judges.kinds.rca import Discriminant, Rca, Reference, reference_dice
from pipeline.proposals.samplers.morphology import moved
from pipeline.seeding import numpy_generator
from pipeline.store import schema
from tests.fixtures.builders import bars, case_store, proposal_store
from tests.fixtures.judging import Scene, evidence_of, scorer_of, scores_of


def seen(
    folder: Path,
    masks: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    images: Sequence[np.ndarray] | None = None,
    splits: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
    classes: int = 2,
) -> Scene:
    """Cases of which the first have proposals; one of the pool, then labelled ones; images show the labels."""
    shown = [label.astype(np.float32)[None] for label in labels] if images is None else images
    splits = splits or ["pool"] + ["labelled"] * (len(labels) - 1)
    cases = case_store(folder / "cases", labels, splits, shown, classes=classes, groups=groups)
    return Scene(cases, proposal_store(folder / "proposals", masks, classes=classes), folder / "none.csv")


def judge(**knobs: Any) -> Rca:
    """By intensity alone."""
    return Rca(kind="rca", **{"scales": (), **knobs})


# ---- parts -----------------------------------------------------------------------------------------------------


def test_discriminant_of_one_feature():
    """Class 0 at -1, 1 (weights 3, 3), class 2 at 4, 6 (weights 1, 1): means 0 and 5, variance within 1, ridge 0.

    Offsets log(3/4) and log(1/4) - 25/2; the border is where 5x = 25/2 + log 3: at 2.7197.
    """
    features, label = np.array([[-1.0], [1], [4], [6]]), np.array([0, 0, 2, 2], np.uint8)
    found = Discriminant.fitted(features, label, np.array([3.0, 3, 1, 1]), 1e-12, 4)
    assert found.present.tolist() == [0, 2]
    assert found.slope[:, 0] == pytest.approx([0, 5], abs=1e-4)
    assert found.offset == pytest.approx([log(3 / 4), log(1 / 4) - 12.5], abs=1e-4)
    assert found.predict(np.array([[2.71], [2.73], [-9]])).tolist() == [0, 2, 0]


@pytest.mark.parametrize("label", [0, 3])
def test_discriminant_of_one_class_predicts_it_everywhere(label):
    found = Discriminant.fitted(np.array([[1.0], [7]]), np.full(2, label, np.uint8), np.ones(2), 0.01, 4)
    assert found.predict(np.array([[-99.0], [99]])).tolist() == [label, label]


def test_discriminant_of_constant_features_follows_the_shares():
    """Nothing to see: the class with the larger weight, not the one with more voxels."""
    found = Discriminant.fitted(np.zeros((3, 2)), np.array([0, 0, 1], np.uint8), np.array([1.0, 1, 5]), 0.01, 2)
    assert found.predict(np.zeros((2, 2))).tolist() == [1, 1]


def test_dice_by_weight():
    """Class 1: both 1 voxel of weight 2, true 2 + 1, predicted 2 + 4: 2 * 2 / 9. Class 2 is not there: NaN."""
    label, weight = np.array([1, 1, 0, 0], np.uint8), np.array([2.0, 1, 4, 8])
    reference = Reference("a", np.zeros((4, 1)), label, weight)
    found = reference_dice(np.array([1, 0, 1, 2]), reference, 3)
    assert found.tolist() == [pytest.approx(4 / 9), pytest.approx(np.nan, nan_ok=True)]


def test_voxels_are_drawn_by_stratum():
    """At most 8 of 2 strata: all 3 of the small one, 4 of 12, which stand for 3 each; 255 is never drawn."""
    strata = np.array([0] * 12 + [1] * 3 + [schema.UNKNOWN] * 5, np.uint8)
    at, weight = rca._drawn(strata, 8, numpy_generator(0))
    assert strata[at].tolist() == [0] * 4 + [1] * 3
    assert len(set(at.tolist())) == 7
    assert weight.tolist() == [3.0] * 4 + [1.0] * 3
    assert [len(part) for part in rca._drawn(strata[15:], 8, numpy_generator(0))] == [0, 0]


def test_strata_of_proposals():
    """Foreground in none, in 1 of 3 and in 2 of 3; unknown in one is not foreground, unknown in all is no voxel."""
    x = schema.UNKNOWN
    masks = np.array([[0, 1, 2, x, x], [0, 0, 1, 1, x], [0, 0, 0, 0, x]], np.uint8)
    assert rca._strata(masks).tolist() == [0, 1, 2, 1, x]


def test_smoothing_follows_the_spacing(tmp_path):
    """Twice the spacing along an axis, half the voxels: a point spreads wider along the finer one."""
    at = seen(tmp_path, [np.zeros((1, 9, 9), np.uint8)], [np.zeros((9, 9), np.uint8)])
    case = at.cases.all[0].__class__(**{**vars(at.cases.all[0]), "spacing_mm": (2.0, 1.0)})
    point = np.zeros((1, 9, 9), np.float32)
    point[0, 4, 4] = 1
    found = judge(scales=(1.0,), position=True).features(point, case, np.array([4 * 9 + 4, 3 * 9 + 4, 4 * 9 + 3]))
    assert found.shape == (3, 5)
    assert found[:, 0].tolist() == [1, 0, 0]
    assert found[0, 1] > found[2, 1] > found[1, 1]
    assert found[:, 3:] == pytest.approx(np.array([[4.5, 4.5], [3.5, 4.5], [4.5, 3.5]]) / 9)


# ---- scores ----------------------------------------------------------------------------------------------------


def test_scores_of_bars(tmp_path):
    """The image shows its bar of 8 of 16 pixels, the reference one of 4.

    The bar itself separates them: Dice 1. Empty: nothing predicted, 0. Full: 4 of 16, 2 * 4 / 20. The last 8 pixels:
    the classifier is upside down, 0.
    """
    masks = np.stack([*bars([8, 0, 16]), 1 - bars([8])[0]])
    at = seen(tmp_path, [masks], [bars([8])[0], bars([4])[0]])
    assert scores_of(judge(), at) == pytest.approx([1, 0, 0.4, 0])


@pytest.mark.parametrize(("aggregate", "expected"), [("best", 2 * 8 / 24), ("mean", (2 * 8 / 24 + 2 * 4 / 20) / 2)])
def test_best_and_mean_over_references(tmp_path, aggregate, expected):
    """A full proposal against bars of 8 and 4; a labelled case without foreground is no reference."""
    at = seen(tmp_path, [bars([16])], [bars([length])[0] for length in (8, 8, 4, 0)])
    assert scores_of(judge(aggregate=aggregate), at) == pytest.approx([expected])


def test_each_class_has_its_references(tmp_path):
    """All class 1. Class 1 in the first reference: 2 * 4 / 20; class 2, in the second alone, is not found: 0. Class 3
    is in none and counts for nothing."""
    one = bars([4])[0]
    two = np.flip(one) * 2
    at = seen(tmp_path, [bars([16])], [one, one, two], classes=4)
    assert scores_of(judge(), at) == pytest.approx([0.2])


def test_references_cover_the_classes(tmp_path):
    """One of five labelled cases has class 2: it is among two references whatever the seed."""
    one = bars([4])[0]
    at = seen(tmp_path, [bars([16])], [one, one, one, one, one, one + np.flip(one) * 2], classes=3)
    for seed in range(6):
        references = scorer_of(judge(references=2), at, seed).references
        assert len(references) == 2
        assert any((reference.label == 2).any() for reference in references)


def test_the_patient_judged_is_no_reference(tmp_path):
    """Of c0, labelled: its own bar of 8 would give a full proposal 2 * 8 / 24, the other patient's 2 * 4 / 20."""
    labels = [bars([8])[0], bars([8])[0], bars([4])[0]]
    at = seen(tmp_path / "two", [bars([16])], labels, splits=["labelled"] * 3, groups=["a", "a", "b"])
    assert scores_of(judge(), at) == pytest.approx([0.4])
    at = seen(tmp_path / "one", [bars([16])], labels, splits=["labelled"] * 3, groups=["a"] * 3)
    assert np.isnan(scores_of(judge(), at)).all()


def test_voxels_unknown_in_a_proposal_do_not_count(tmp_path):
    """Known where it is right; a proposal that is wholly unknown abstains."""
    half = bars([8])[0]
    half[0, 4:6] = half[0, 14:] = schema.UNKNOWN
    at = seen(tmp_path, [np.stack([half, np.full_like(half, schema.UNKNOWN)])], [bars([8])[0], bars([4])[0]])
    assert scores_of(judge(), at) == pytest.approx([1, np.nan], nan_ok=True)


@pytest.mark.parametrize("labels", [[8], [8, 0, 0]])
def test_no_reference_with_foreground(tmp_path, labels):
    at = seen(tmp_path, [bars([8])], [bars([length])[0] for length in labels])
    with pytest.raises(BadInput, match=f"expected at least one, found none among {len(labels) - 1} labelled cases"):
        scorer_of(judge(), at)


def test_subsampled_scores_follow_the_seed_and_are_bounded(tmp_path):
    """16 voxels of noise: another seed draws others, the same seed the same."""
    labels = [numpy_generator("rca", row).integers(2, size=(12, 12)).astype(np.uint8) for row in range(3)]
    images = [numpy_generator("rca", "image", row).normal(size=(1, 12, 12)).astype(np.float32) for row in range(3)]
    at = seen(tmp_path, [np.stack([labels[1], labels[2]])], labels, images)
    few = judge(voxels=16)
    assert all(len(reference.label) <= 16 for reference in scorer_of(few, at).references)
    assert scores_of(few, at).tolist() == scores_of(few, at).tolist()
    assert scores_of(few, at).tolist() != scores_of(few, at, seed=1).tolist()


@pytest.mark.parametrize("aggregate", ["best", "mean"])
def test_near_proposals_beat_far_ones_on_phantoms(tmp_path, aggregate):
    """The organ eroded by a pixel against the organ moved away by a third of the image, in at least 5 of 6 cases."""
    phantom = Phantom(cases=10, size=(48, 48), empty=0.0)
    drawn = [phantom.read(source) for source in phantom.scan()]
    images = [(image - image.mean()) / image.std() for image, _ in drawn]
    labels = [label for _, label in drawn if label is not None]
    masks = [np.stack([moved(label, "erode", 1.0), np.roll(label, 16, axis=0)]) for label in labels[:6]]
    at = seen(tmp_path, masks, labels, images, splits=["pool"] * 6 + ["labelled"] * 4)
    knobs = Rca(kind="rca", aggregate=aggregate)
    scorer = scorer_of(knobs, at)
    scores = np.stack([scorer.score(evidence_of(knobs, at, row)) for row in range(6)])
    assert (scores[:, 0] > scores[:, 1]).sum() >= 5
