"""What learned judges learn from: examples, what a network sees, and batches."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import numpy as np
import pytest
import torch

from pipeline.compute import Compute
from pipeline.errors import BadInput
from pipeline.judges.judge import JudgeInputs
from pipeline.judges.learning.mask_examples import (
    BANK,
    Example,
    MaskBatch,
    MaskBatches,
    MaskDraws,
    class_dice,
    examples_of,
    input_channels,
    network_input,
)
from pipeline.judges.score import LabelFree
from pipeline.measures.overlap import dice_to
from pipeline.seeding import numpy_generator
from tests.fixtures.builders import bars, case_store, no_proposals, proposal_store, rows_of
from tests.fixtures.judging import noisy_labels


def given_of(folder, splits: Sequence[str], masks: Sequence[np.ndarray]) -> JudgeInputs:
    labels = noisy_labels(0, len(splits), masks[0].shape[1:], 2)
    cases = case_store(folder / "cases", labels, splits, groups=[f"g{row // 2}" for row in range(len(splits))])
    store = proposal_store(folder / "out_of_fold", masks) if len(masks) == len(splits) else no_proposals(folder / "o")
    return JudgeInputs(LabelFree(cases.folder), store, store, folder, Compute(), 0)


def test_examples_are_labelled_cases_with_their_distinct_proposals(tmp_path):
    """Of lengths 3, 3, 5, 3 the first and the third are left; the pool's labels are not asked for."""
    given = given_of(
        tmp_path, ["labelled", "pool", "labelled"], [bars([3, 3, 5, 3]), bars([1] * 4), bars([2, 4, 6, 8])]
    )
    one, two = examples_of(given, "test")
    assert (one.masks == bars([3, 5])).all()
    assert (two.masks == bars([2, 4, 6, 8])).all()
    assert (one.case_id, one.group, two.case_id, two.group) == ("c0", "g0", "c2", "g1")
    assert (one.label == noisy_labels(0, 1, (1, 16), 2)[0]).all()
    assert (one.image.shape, one.probability.shape) == ((1, 1, 16), (2, 1, 16))
    # Three of four proposals are at least 3 long, one is 5.
    assert one.probability[1, 0, [2, 4]].tolist() == pytest.approx([1.0, 0.25], abs=1 / 255)


def test_without_folds_there_is_nothing_to_learn_from(tmp_path):
    given = given_of(tmp_path, ["labelled"], [bars([1]), bars([1])])
    with pytest.raises(BadInput, match=r"a judge of kind 'test' learns from out-of-fold proposals .* base.folds"):
        examples_of(given, "test")


def test_dice_per_class():
    """Class 1: 2 shared of 3 + 2, so 4/5; class 2: none shared of 1 + 1; class 3 is in neither: 1.

    The last column is unknown in the truth, so the mask's class 2 there does not count.
    """
    truth, mask = rows_of(["111002x"]), rows_of(["1100202"])
    assert class_dice(truth, mask[None], 4).tolist() == [[pytest.approx(0.8), 0.0, 1.0]]


def test_mean_over_classes_is_the_dice_of_the_panel():
    draw = numpy_generator("mean")
    truth, *masks = (np.where(draw.random((5, 6)) < 0.1, 255, draw.integers(4, size=(5, 6))) for _ in range(6))
    found = class_dice(truth.astype(np.uint8), np.stack(masks).astype(np.uint8), 4)
    assert found.shape == (5, 3)
    assert found.mean(1) == pytest.approx(dice_to(truth.astype(np.uint8), np.stack(masks).astype(np.uint8), 4))


def test_what_a_network_sees():
    """Image, then one channel per foreground class of the mask, then of the probability; padded at the ends."""
    image = np.array([[[1.0, 2, 3]], [[4, 5, 6]]], np.float32)
    probability = np.array([[[0.5, 0.25, 0]], [[0.25, 0.25, 1]], [[0.25, 0.5, 0]]], np.float32)
    seen = network_input(image, rows_of(["21x"]), probability, 3, (2, 4))
    assert len(seen) == input_channels(2, 3) == 6
    assert seen[:, 0].tolist() == [
        [1, 2, 3, 0],
        [4, 5, 6, 0],
        [0, 1, 0, 0],
        [1, 0, 0, 0],
        [0.25, 0.25, 1, 0],
        [0.25, 0.5, 0, 0],
    ]
    assert not seen[:, 1].any()
    assert seen.dtype == torch.float32


# ---- batches ---------------------------------------------------------------------------------------------------


def example(number: int, space: tuple[int, ...] = (6, 7), classes: int = 3, unknown: float = 0.1) -> Example:
    """A label of noise that is image (100 per class) and mean probability too, with four more or less like it."""
    draw = numpy_generator("example", number)
    label = draw.integers(classes, size=space).astype(np.uint8)
    image = 100 * label[None].astype(np.float32)
    probability = np.stack([label == c for c in range(classes)]).astype(np.float32)
    masks = [np.where(draw.random(space) < share, draw.integers(classes, size=space), label) for share in (0.2, 0.5, 1)]
    label[draw.random(space) < unknown] = 255
    return Example(f"g{number}", image, probability, label, np.stack(masks).astype(np.uint8))


def taken(count: int, examples: Sequence[Example], window=(8, 8), classes: int = 3, **more) -> list[MaskBatch]:
    return list(islice(MaskBatches(examples, classes, window, MaskDraws(8, **more), 0), count))


@pytest.mark.parametrize(("space", "window"), [((6, 7), (8, 8)), ((3, 4, 5), (4, 4, 8))])
def test_image_mask_probability_and_truth_are_flipped_together(space, window):
    """Dice, measured on what is in the batch, is the Dice of the batch; everything else follows the truth."""
    views = set()
    for batch in taken(6, [example(n, space) for n in range(3)], window, flips=tuple(range(len(space)))):
        assert batch.inputs.shape == (8, 5, *window)
        assert batch.mask.shape == batch.truth.shape == (8, *window)
        for inputs, mask, truth, dice in zip(batch.inputs, batch.mask, batch.truth, batch.dice, strict=True):
            assert class_dice(truth.numpy(), mask.numpy()[None], 3)[0] == pytest.approx(dice.numpy(), abs=1e-6)
            for label in (1, 2):
                assert (inputs[label] == (mask == label)).all()
                assert (inputs[2 + label][truth != 255] == (truth == label)[truth != 255]).all()
            # Contrast changes by a fifth at most, so the classes stay apart by more than noise and brightness.
            levels = [inputs[0][truth == label] for label in range(3)]
            assert levels[0].max() < levels[1].min()
            assert levels[1].max() < levels[2].min()
            views.add(tuple(np.argwhere(inputs[3:].sum(0).numpy()).min(0).tolist()))
    assert len(views) > 1, "cases lie at other ends of the window in other views"


def test_what_is_outside_the_case_is_unknown():
    (batch,) = taken(1, [example(0, unknown=0)], flips=())
    assert (batch.mask[:, 6:] == 255).all()
    assert (batch.truth[:, :, 7:] == 255).all()
    assert (batch.truth[:, :6, :7] != 255).all()


def test_masks_of_one_image_are_different_and_seen_in_one_view():
    for batch in taken(5, [example(n) for n in range(4)]):
        assert batch.image.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
        for number in (0, 1):
            of_one = batch.image == number
            assert (batch.inputs[of_one][:, [0, 3, 4]] == batch.inputs[of_one][:1, [0, 3, 4]]).all()
            assert (batch.truth[of_one] == batch.truth[of_one][0]).all()
            assert len({mask.numpy().tobytes() for mask in batch.mask[of_one]}) == 4


@pytest.mark.parametrize(("corrupted", "proposals"), [(0.0, True), (1.0, False)])
def test_share_of_corruptions(corrupted, proposals):
    """Three proposals: where only they are drawn, no image gives more than three masks."""
    one = example(0)
    known = {mask.tobytes() for mask in one.masks}
    for batch in taken(3, [one], (6, 7), corrupted=corrupted, flips=(), per_image=3):
        assert len(batch.mask) == 8
        assert {mask.numpy().tobytes() in known for mask in batch.mask} == {proposals}


def test_masks_are_balanced_over_bins_of_dice():
    """Nine proposals of Dice 0.9 and more, one of 0: each of the two bins has half of the draws, or 100 of 200."""
    label = np.zeros((1, 64), np.uint8)
    label[:, :50] = 1
    masks = bars([*range(46, 55), 0], 64)
    one = Example("g", label[None].astype(np.float32), np.stack([1 - label, label]).astype(np.float32), label, masks)
    batches = islice(MaskBatches([one], 2, (1, 64), MaskDraws(4, corrupted=0, per_image=1), 0), 50)
    dice = np.concatenate([batch.dice.numpy() for batch in batches])
    # One standard deviation is 7.
    assert abs((dice == 0).sum() - 100) < 21


def test_empty_masks_are_among_the_corruptions():
    batches = MaskBatches([example(0)], 3, (6, 7), MaskDraws(8), 0)
    assert len(batches.corruptions[0]) == BANK + 1
    assert set(np.unique(batches.corruptions[0][0])) <= {0, 255}


def test_equal_seeds_give_equal_batches():
    examples = [example(n) for n in range(3)]
    one, same = taken(3, examples), taken(3, examples)
    assert all((a == b).all() for x, y in zip(one, same, strict=True) for a, b in zip(x, y, strict=True))
    (other,) = islice(MaskBatches(examples, 3, (8, 8), MaskDraws(8), 1), 1)
    assert (other.inputs != one[0].inputs).any()


def test_a_case_larger_than_the_window_is_refused():
    with pytest.raises(ValueError, match=r"case of \(6, 7\) voxels does not fit into a window of \(8, 6\)"):
        MaskBatches([example(0)], 3, (8, 6), MaskDraws(8), 0)
