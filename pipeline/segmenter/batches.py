"""Augmented batches of labelled cases for training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations, count, islice
from math import radians
from typing import TYPE_CHECKING

import numpy as np

from pipeline.seeding import seed_of
from pipeline.segmenter.augmentation import Augmentation, flip
from pipeline.segmenter.crops import Spots, around
from pipeline.segmenter.strong_views import StrongViews
from pipeline.store.cases import LabelledCases, fits
from pipeline.store.schema import UNKNOWN

if TYPE_CHECKING:
    from torch import Tensor


class LabelledBatches:
    """Endless stream of augmented batches: images f32 `[n, channel, *window]`, labels u8 `[n, *window]`.

    All draws but those of strong views come from one generator with seed `seed`, in the order of the steps, so equal
    seeds and thread counts give equal streams. Strong views draw from the seed, the step and the case. Cases come in
    shuffled rounds, so every case comes equally often. A case larger than the window is cropped: with probability one
    half around a foreground voxel, if there is one, else anywhere. Labels are 255 in padding, and where augmentation
    takes voxels from outside the crop. Rotations are in mm, by the spacing of the case, or in voxels if the spacing is
    unknown.
    """

    def __init__(
        self,
        cases: LabelledCases,
        window: Sequence[int],
        knobs: Augmentation,
        batch: int,
        seed: int,
        strong: StrongViews | None = None,
    ) -> None:
        """`strong` varies the intensities of every image once more."""
        self.images, self.labels, self.strong = cases.images, cases.labels, strong
        self.window, self.knobs, self.batch = tuple(window), knobs, batch
        self.spacing = [case.spacing_mm or (1.0,) * len(self.window) for case in cases.cases]
        self.seed, self.generator = seed, np.random.default_rng(seed)
        self.spots: dict[int, Spots] = {}  # foreground by index of the case, for cases larger than the window

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        import torch

        rounds = self._order()
        for step in count():
            placed = [(index, *self._placed(index)) for index in islice(rounds, self.batch)]
            drawn, images, labels = zip(*placed, strict=True)
            image, label = self._varied(np.stack(images), np.stack(labels), [self.spacing[index] for index in drawn])
            if self.strong is not None:
                # With seeds of their own, so that a stream with strong views has the same cases, flips and rotations. A
                # case may come twice in a batch.
                seeds = [seed_of(self.seed, "view", step, place, index) for place, index in enumerate(drawn)]
                image = torch.stack([self.strong.varied(one, seed) for one, seed in zip(image, seeds, strict=True)])
            yield image, label

    def _order(self) -> Iterator[int]:
        while True:
            yield from self.generator.permutation(len(self.images))

    def _placed(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image `[channel, *window]` and label `[*window]` of one case, cut and padded to the window."""
        image, label = self.images[index], self.labels[index]
        space = label.shape
        centre = None
        if not fits(space, self.window) and self.generator.random() < 0.5:
            # Small structures would rarely lie in a crop from anywhere.
            if index not in self.spots:
                self.spots[index] = Spots(space, lambda where: (label[where] > 0) & (label[where] != UNKNOWN))
            centre = self.spots[index].draw(self.generator)
        if centre is None:
            lasts = [max(0, have - want) for have, want in zip(space, self.window, strict=True)]
            starts = [int(self.generator.integers(last + 1)) for last in lasts]
            centre = [start + want // 2 for start, want in zip(starts, self.window, strict=True)]
        where = around(centre, space, self.window)
        ends = [(0, want - min(have, want)) for have, want in zip(space, self.window, strict=True)]
        placed = np.pad(image[(slice(None), *where)], [(0, 0), *ends])
        return placed, np.pad(label[where], ends, constant_values=UNKNOWN)

    def _varied(
        self, images: np.ndarray, labels: np.ndarray, spacings: Sequence[Sequence[float]]
    ) -> tuple[Tensor, Tensor]:
        import torch
        from torch.nn.functional import affine_grid, grid_sample

        image, label = torch.from_numpy(images), torch.from_numpy(labels)
        knobs, draw, count, axes = self.knobs, self.generator, len(images), len(self.window)
        if knobs.rotate_degrees or knobs.scale:
            matrix = torch.from_numpy(np.stack([self._matrix(spacing) for spacing in spacings])).float()
            grid = affine_grid(matrix, list(image.shape), align_corners=False)
            image = grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)
            # grid_sample fills with 0 beyond the border. Labels are shifted by one, so that 0 is free to mean 255.
            shifted = (label[:, None].to(torch.int16) + 1).float()
            shifted = torch.where(shifted == UNKNOWN + 1, 0, shifted)
            turned = grid_sample(shifted, grid, mode="nearest", padding_mode="zeros", align_corners=False)[:, 0]
            label = torch.where(turned == 0, UNKNOWN, turned - 1).to(torch.uint8)
        # Contrast and brightness per image and channel, noise of one strength per image.
        spread = (count, image.shape[1], *([1] * axes))
        contrast = 1 + knobs.intensity * draw.uniform(-1, 1, spread)
        brightness = knobs.intensity * draw.uniform(-1, 1, spread) * image.std().item()
        noise = draw.uniform(0, knobs.noise, (count, *([1] * (axes + 1)))) * draw.standard_normal(image.shape)
        image = image * torch.from_numpy(contrast).float() + torch.from_numpy(brightness + noise).float()
        flipped = [[axis for axis in knobs.flips if draw.random() < 0.5] for _ in range(count)]
        image = torch.stack([flip(x, view, axes) for x, view in zip(image, flipped, strict=True)])
        label = torch.stack([knobs.swap(flip(x, view, axes), view) for x, view in zip(label, flipped, strict=True)])
        return image, label

    def _matrix(self, spacing: Sequence[float]) -> np.ndarray:
        """Random rotation and zoom f64 `[axes, axes + 1]` in units of `affine_grid`, where the window is [-1, 1].

        `spacing` is that of the case. A turn in voxels would shear a case whose spacing differs between axes.
        """
        draw, knobs, axes = self.generator, self.knobs, len(self.window)
        matrix = np.eye(axes)
        for first, second in combinations(range(axes), 2):
            angle = radians(draw.uniform(-knobs.rotate_degrees, knobs.rotate_degrees))
            turn = np.eye(axes)
            turn[[first, second], [first, second]] = np.cos(angle)
            turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
            matrix = matrix @ turn
        # affine_grid counts axes from the last to the first, in half edges of the window, which need not be a cube.
        # Only the ratios of the spacing matter. Equal spacing is exactly 1, and then gives the bits of no spacing.
        edges = np.array(self.window[::-1]) * np.array(spacing[::-1]) / max(spacing)
        matrix = matrix * edges[None] / edges[:, None] * (1 + draw.uniform(-knobs.scale, knobs.scale))
        return np.hstack([matrix, np.zeros((axes, 1))])
