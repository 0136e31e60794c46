"""Prediction of a network: logits, masks and Dice of cases of any size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.compute import Compute
from pipeline.measures.intervals import mean_over_groups
from pipeline.measures.overlap import dice_from_counts, overlaps_to
from pipeline.segmenter.architecture import Architecture
from pipeline.segmenter.logits import predicted_classes
from pipeline.segmenter.planned import mirrorings
from pipeline.segmenter.sliding import PLAIN, Sliding, View, bands_of, pad_around, pad_to, place_in
from pipeline.store.cases import LabelledCases, Values, Where, fits


@dataclass(frozen=True)
class Segmenter:
    """A network in eval mode, with its architecture, which holds the window, and the device that computes."""

    network: nn.Module
    architecture: Architecture
    compute: Compute

    @property
    def window(self) -> tuple[int, ...]:
        """Size of the network's input, in voxels per axis."""
        return self.architecture.window

    @torch.no_grad()
    def window_logits(self, image: Tensor, view: View = PLAIN) -> Tensor:
        """Logits f32 `[output, *space]`, on the device, of an image f32 `[channel, *space]` that fits the window.

        Images smaller than the window are padded at their ends, or on both sides for a network of nnU-Net's plans.
        """
        seen = view.there(image)
        window = view.window(self.window)
        around = self.architecture.planned
        padded = pad_around(seen, window) if around else pad_to(seen, window)
        logits = self._mirrored(padded[None].to(self.compute.device))
        return view.back(logits[0][(slice(None), *place_in(window, seen.shape[1:], around))])

    def _mirrored(self, images: Tensor) -> Tensor:
        """Logits f32 of images of window size: the mean over the mirrorings of the architecture."""
        with self.compute.autocast():
            logits = self.network(images).float()
            every = list(mirrorings(self.architecture.mirror))
            for axes in every:
                places = [2 + axis for axis in axes]
                logits = logits + self.network(images.flip(places)).float().flip(places)
        return logits / (1 + len(every)) if every else logits

    def logits(self, image: Values, view: View = PLAIN) -> Tensor:
        """Logits f32 `[output, *space]`, on the device, of an image f32 `[channel, *space]` of any size.

        A case that fits the window takes one forward pass of its own, because a batch would change the last bits. Over
        a larger case the window slides with half overlap and Gaussian blending.
        """
        space = tuple(image.shape[1:])
        if fits(space, self.window):
            return self.window_logits(torch.from_numpy(np.ascontiguousarray(image[:])), view)
        sliding = self.sliding(image, view)
        parts = [sliding.rows(start, stop) for start, stop in bands_of(0, sliding.length, space, sliding.axis)]
        return torch.cat(parts, dim=sliding.axis + 1).to(self.compute.device)

    def sliding(self, image: Values, view: View = PLAIN, axis: int | None = None, park: Path | None = None) -> Sliding:
        """Sliding window at the first row of a case that is larger than the window. See `Sliding` for the arguments."""
        return Sliding(self.window_logits, image, self.window, view, axis, park, self.architecture.planned)

    def bands(self, image: Values, axis: int | None = None) -> Iterator[tuple[Where, Tensor]]:
        """Boxes that together cover the case, and their logits f32 `[output, *box]`. A case that fits is one box."""
        space = tuple(image.shape[1:])
        box = [slice(0, length) for length in space]
        if fits(space, self.window):
            yield tuple(box), self.logits(image)
            return
        sliding = self.sliding(image, axis=axis)
        for start, stop in bands_of(0, sliding.length, space, sliding.axis):
            box[sliding.axis] = slice(start, stop)
            yield tuple(box), sliding.rows(start, stop)

    def label_bands(self, image: Values) -> Iterator[tuple[Where, np.ndarray]]:
        """Boxes that together cover the case, and the most probable class u8 `[*box]` of their voxels."""
        for where, logits in self.bands(image):
            yield where, predicted_classes(logits[None])[0].cpu().numpy()

    def labels(self, image: Values) -> np.ndarray:
        """Most probable class u8 `[*space]` of an image f32 `[channel, *space]` of any size."""
        mask = np.empty(image.shape[1:], np.uint8)
        for where, labels in self.label_bands(image):
            mask[where] = labels
        return mask

    def dice(self, cases: LabelledCases) -> float:
        """Dice on the working grid: mean over foreground classes, then over cases of a patient, then over patients.

        A case whose label is unknown everywhere is left out. Raises `BadInput` if no case is left.
        """
        cases = cases.known()
        dice = [self._dice(*pair) for pair in zip(cases.images, cases.labels, strict=True)]
        return mean_over_groups(dice, cases.groups)

    def _dice(self, image: Values, label: Values) -> float:
        classes = self.architecture.classes
        # Overlap counts of bands add up to the counts of the case, so no case is held whole.
        counts = [overlaps_to(label[where], found[None], classes) for where, found in self.label_bands(image)]
        return dice_from_counts(np.sum(counts, axis=0))[0]
