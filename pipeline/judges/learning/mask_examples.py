"""Training data of learned judges: masks of labelled cases with true Dice, and the network input for a mask."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.judges.judge import JudgeInputs
from pipeline.judges.learning.corruptions import corrupted as corrupt
from pipeline.measures.overlap import dice_to, first_equal
from pipeline.seeding import numpy_generator
from pipeline.segmenter.augmentation import flip
from pipeline.segmenter.sliding import pad_to
from pipeline.store.schema import UNKNOWN

BANK = 24
"""Corruptions per labelled case, half made from proposals and half from the truth. An empty mask is added."""
BINS = 10
"""Number of bins of equal width of the mean Dice; masks are drawn equally often from every bin of an image."""
INTENSITY = 0.2
"""Largest relative change of contrast, and largest change of brightness in standard deviations of the image."""
NOISE = 0.1
"""Largest standard deviation of the added noise, in units of the normalised image."""


@dataclass
class Example:
    """A labelled case with the distinct proposals of models that were not trained on the case."""

    group: str
    image: np.ndarray  # f32 [channel, *space]
    probability: np.ndarray  # f32 [class, *space], the mean over out-of-fold models
    label: np.ndarray  # u8 [*space]
    masks: np.ndarray  # u8 [n, *space], slot 0 first
    case_id: str = ""


def examples_of(given: JudgeInputs, kind: str) -> list[Example]:
    """All labelled cases with out-of-fold proposals, in memory; raises `BadInput` if there are none."""
    found = []
    for case in given.learned_from(kind):
        masks = given.out_of_fold.masks(case)
        found.append(
            Example(
                case.group,
                given.cases.image(case),
                given.out_of_fold.probability(case),
                given.cases.label(case),
                masks[np.unique(first_equal(masks))],
                case.case_id,
            )
        )
    return found


def class_dice(truth: np.ndarray, masks: np.ndarray, classes: int) -> np.ndarray:
    """Dice f64 `[n, classes - 1]` of each mask u8 `[n, *space]` with the truth u8 `[*space]`, per foreground class.

    1 for a class that is empty in both. Voxels that are 255 in either mask do not count. The mean over classes is
    `dice_to`.
    """
    return np.stack([dice_to(_only(truth, label), _only(masks, label), 2) for label in range(1, classes)], axis=1)


def _only(mask: np.ndarray, label: int) -> np.ndarray:
    """Mask u8 with 1 for the class `label`, 0 for all other classes, and 255 kept."""
    return np.where(mask == UNKNOWN, UNKNOWN, mask == label).astype(np.uint8)


def input_channels(channels: int, classes: int) -> int:
    """Number of channels of `network_input`."""
    return channels + 2 * (classes - 1)


def network_input(
    image: np.ndarray, mask: np.ndarray, probability: np.ndarray, classes: int, window: Sequence[int]
) -> Tensor:
    """Network input for one mask, f32 `[input_channels, *window]`, padded with zeros at the ends.

    Channels are the image f32 `[channel, *space]`, the foreground classes of the mask u8 `[*space]` as one-hot channels
    (255 is in none of them), and the foreground classes of the mean probability f32 `[class, *space]`. The case must
    fit into the window.
    """
    foreground = mask == np.arange(1, classes, dtype=np.uint8).reshape(-1, *[1] * mask.ndim)
    parts = np.concatenate([image, foreground.astype(np.float32), probability[1:]], dtype=np.float32)
    return pad_to(torch.from_numpy(parts), window)


class MaskBatch(NamedTuple):
    """A batch of masks of labelled cases, with the truth of each mask."""

    inputs: Tensor  # f32 [batch, input_channels, *window]
    mask: Tensor  # u8 [batch, *window], 255 outside the case
    truth: Tensor  # u8 [batch, *window], 255 outside the case
    dice: Tensor  # f32 [batch, classes - 1]
    image: Tensor  # i64 [batch], number within the batch of the image of each mask


@dataclass(frozen=True)
class MaskDraws:
    """How the masks of a batch are drawn."""

    batch: int
    """Masks per step."""
    corrupted: float = 0.5
    """Share of corruptions; all other masks are out-of-fold proposals."""
    per_image: int = 4
    """Most masks of one image in a batch."""
    flips: Sequence[int] = ()
    """Spatial axes along which a view may be flipped."""


class MaskBatches:
    """Endless stream of augmented batches of masks, balanced over bins of their mean Dice.

    Images are visited in shuffled rounds. A batch holds up to `per_image` different masks of an image. Masks of an
    image share one view (flips, contrast, brightness and noise), so that the masks can be ranked. A mask is a
    corruption with probability `corrupted`, else an out-of-fold proposal. Within each of the two sources a Dice bin is
    drawn first, of the bins that the image has, and then a mask of the bin. Corruptions are made once, at the start:
    `BANK` per case, from proposals and from the truth, and an empty mask. All draws come from the generator of `seed`.
    Memory per voxel and case: 4 bytes per channel and class, and 1 byte per mask and corruption. Raises `ValueError`
    for a case that is larger than the window.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        classes: int,
        window: Sequence[int],
        draws: MaskDraws,
        seed: int,
    ) -> None:
        for example in examples:
            if any(have > want for have, want in zip(example.label.shape, window, strict=True)):
                raise ValueError(f"case of {example.label.shape} voxels does not fit into a window of {tuple(window)}")
        self.examples, self.classes, self.window, self.batch = list(examples), classes, tuple(window), draws.batch
        self.corrupted, self.per_image = draws.corrupted, min(draws.per_image, draws.batch)
        self.flips = tuple(draws.flips)
        self.masks = [example.masks for example in self.examples]
        self.corruptions = [_bank(example, classes, seed, n) for n, example in enumerate(self.examples)]
        both = zip(self.masks, self.corruptions, self.examples, strict=True)
        # Per case: Dice f64 [mask, classes - 1] of the proposals, and of the corruptions.
        self.dice = [tuple(class_dice(e.label, masks, classes) for masks in (p, c)) for p, c, e in both]
        self.generator = numpy_generator(seed, "batches")

    def __iter__(self) -> Iterator[MaskBatch]:
        rounds = self._order()
        while True:
            rows: list[tuple[Tensor, Tensor, Tensor, np.ndarray, int]] = []
            number = 0
            while len(rows) < self.batch:
                index = next(rounds)
                picks = self._picks(index)[: self.batch - len(rows)]
                rows += [(*view, dice, number) for view, dice in self._views(index, picks)]
                number += 1
            inputs, masks, truths, dice, numbers = zip(*rows, strict=True)
            yield MaskBatch(
                torch.stack(inputs),
                torch.stack(masks),
                torch.stack(truths),
                torch.from_numpy(np.stack(dice)).float(),
                torch.tensor(numbers),
            )

    def _order(self) -> Iterator[int]:
        while True:
            yield from self.generator.permutation(len(self.examples)).tolist()

    def _picks(self, index: int) -> list[tuple[int, int]]:
        """Different masks of one image, each as (source, number); source 0 is a proposal, 1 a corruption."""
        left = [[self._bins(dice), np.ones(len(dice), bool)] for dice in self.dice[index]]
        picks = []
        for _ in range(self.per_image):
            source = int(self.generator.random() < self.corrupted)
            # A source without masks left is replaced by the other source.
            source = source if left[source][1].any() else 1 - source
            bins, free = left[source]
            if not free.any():
                break
            chosen = self.generator.choice(np.unique(bins[free]))
            number = int(self.generator.choice(np.flatnonzero(free & (bins == chosen))))
            free[number] = False
            picks.append((source, number))
        return picks

    @staticmethod
    def _bins(dice: np.ndarray) -> np.ndarray:
        return np.minimum((dice.mean(1) * BINS).astype(int), BINS - 1)

    def _views(
        self, index: int, picks: Sequence[tuple[int, int]]
    ) -> Iterator[tuple[tuple[Tensor, Tensor, Tensor], np.ndarray]]:
        """Network input, mask and truth of every pick in one shared view of the image, with the mask's Dice."""
        example, draw = self.examples[index], self.generator
        axes = example.label.ndim
        spread = (len(example.image), *[1] * axes)
        contrast = 1 + INTENSITY * draw.uniform(-1, 1, spread)
        brightness = INTENSITY * draw.uniform(-1, 1, spread) * example.image.std()
        noise = draw.uniform(0, NOISE) * draw.standard_normal(example.image.shape, np.float32)
        image = (example.image * contrast + brightness + noise).astype(np.float32)
        view = [axis for axis in self.flips if draw.random() < 0.5]
        truth = self._placed(example.label, view)
        for source, number in picks:
            mask = (self.masks, self.corruptions)[source][index][number]
            seen = network_input(image, mask, example.probability, self.classes, self.window)
            yield (flip(seen, view, axes), self._placed(mask, view), truth), self.dice[index][source][number]

    def _placed(self, mask: np.ndarray, view: Sequence[int]) -> Tensor:
        return flip(pad_to(torch.from_numpy(mask), self.window, UNKNOWN), view, mask.ndim)


def _bank(example: Example, classes: int, seed: int, number: int) -> np.ndarray:
    """An empty mask and corruptions of proposals and truth in turn, u8 `[BANK + 1, *space]`.

    A corruption is 255 where its source is 255, the empty mask where the truth is 255.
    """
    generator = numpy_generator(seed, "corruptions", number)
    made = [np.where(example.label == UNKNOWN, UNKNOWN, 0).astype(np.uint8)]
    for n in range(BANK):
        source = example.label if n % 2 else example.masks[generator.integers(len(example.masks))]
        made.append(corrupt(source, classes, generator))
    return np.stack(made)
