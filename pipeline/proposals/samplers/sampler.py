"""Contract of the sampler family: a sampler draws proposals of one case, from trained models or from files."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from pipeline.cases.grid import on_source_grid, to_source
from pipeline.errors import BadInput
from pipeline.segmenter.augmentation import SwapLabels, check_axes, swapped_classes
from pipeline.store.cases import Case, Values, Where

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.proposals.regions import RegionModel
    from pipeline.segmenter.segmenter import Segmenter
    from pipeline.segmenter.sliding import Sliding, View


Passes = frozenset[str]
"""Names of the forward passes that a proposal needs. Passes of one case with equal names are the same pass."""
BASE_PASS = "base"
"""Name of the pass of the base on the image as it is, which slot 0 needs."""


@dataclass(frozen=True)
class Setup:
    """Models, cases and imported files that samplers draw from. All are known before an image is read."""

    classes: int
    base: bool = True
    """Whether there is a base segmenter. Without a base segmenter all masks are imported or made from imported
    masks."""
    members: tuple[str, ...] = ()
    """Names of the members of the base."""
    snapshots: tuple[str, ...] = ()
    """Names of the snapshots of the base."""
    cases: tuple[Case, ...] = ()
    """Cases that get proposals."""
    imports: Path = Path()
    """Folder of all imported masks."""

    def needs_base(self, name: str) -> None:
        """Raise `BadInput` if there is no base segmenter. Samplers that draw from the base call this check."""
        if not self.base:
            raise BadInput(
                f"propose.samplers.{name}: expected a base segmenter, found base: null; configure `base`, or remove "
                "this sampler"
            )


@dataclass(frozen=True)
class Draw:
    """One proposal of one case."""

    mask: np.ndarray  # u8 [*space]
    sampler: str
    setting: str
    probability: Tensor | None = None
    """Class probabilities f32 `[class, *space]`. None for a draw without probabilities. Imported masks are 1 for their
    class, and their unknown voxels are 0 for every class."""
    counts: bool = False
    """Whether the probabilities count in the mean probability of the case. Predictions of single networks count.
    Imported masks count if there is no base segmenter."""
    decide: Callable[[Tensor], np.ndarray] | None = None
    """Rule that makes the mask from `probability`. The same rule makes the mask on the source's grid from the
    interpolated probabilities. None: the mask was not decided from probabilities."""
    source_mask: np.ndarray | None = None
    """The mask u8 `[*source]` on the source's grid, for a sampler that combines masks of this grid. None: the mask on
    the source's grid follows from `probability` and `decide`, or else from `mask`."""


@dataclass
class OnDisk:
    """State that lasts from band to band of a large case: sliding windows, and masks of the whole case in files."""

    folder: Path
    axis: int
    """Axis along which the bands follow each other."""
    sliding: dict[Hashable, Sliding] = field(default_factory=dict)
    masks: dict[Hashable, Path] = field(default_factory=dict)

    def mask(self, key: Hashable, make: Callable[[], np.ndarray]) -> np.ndarray:
        """Mask u8 `[*space]` of the whole case, made once per key. Only the voxels that are read take memory."""
        if key not in self.masks:
            made = make()  # may add another mask, so the number of the file is read afterwards
            self.masks[key] = self.folder / f"mask_{len(self.masks)}.npy"
            np.save(self.masks[key], made)
        return np.load(self.masks[key], mmap_mode="r")


@dataclass
class CaseModels:
    """One case or a band of a large case, with the models that samplers use, and with the draws so far.

    Only the probability of slot 0 and the sum of all probabilities are kept, so memory does not grow with the number of
    probabilities.
    """

    row: Case
    image: Values  # f32 [channel, *space] of the whole case
    classes: int
    base: Segmenter | None
    members: dict[str, Segmenter]
    snapshots: dict[str, Segmenter]
    seed: int
    swap_labels: SwapLabels = ()
    imports: Path = Path()
    fitted: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Fitted thresholds, one per foreground class, by the name of the sampler `mean`."""
    regions: Mapping[str, RegionModel] = field(default_factory=dict)
    """Fitted models by the name of the sampler `regions`, for the samplers that compose."""
    draws: list[Draw] = field(default_factory=list)
    band: tuple[int, int] | None = None
    """First row and last row (exclusive) of the band. Bands are drawn in order. None: the whole case is drawn."""
    disk: OnDisk | None = None
    """State of a case that is drawn in bands, else None."""
    source_masks: list[np.ndarray] | None = None
    """Masks u8 `[*source]` of the draws on the source's grid. None if no mask is wanted on the source's grid."""
    _base_probability: Tensor | None = None
    _total: Tensor | None = None

    @property
    def case_id(self) -> str:
        return self.row.case_id

    @property
    def segmenter(self) -> Segmenter:
        """The base segmenter. Only samplers whose `settings` refuse a missing base read this property."""
        assert self.base is not None
        return self.base

    def keep(self, draw: Draw) -> None:
        """Append a draw and add its probability to the mean probability. The first draw is slot 0."""
        if draw.probability is not None and draw.counts:
            if not self.draws:
                self._base_probability = draw.probability
            self._total = draw.probability if self._total is None else self._total + draw.probability
        if self.source_masks is not None:
            self.source_masks.append(self._on_source_grid(draw))
        self.draws.append(replace(draw, probability=None, source_mask=None))

    def _on_source_grid(self, draw: Draw) -> np.ndarray:
        """Mask u8 `[*source]` of a draw, by the way back of a network's prediction if the draw has probabilities."""
        import torch

        if draw.source_mask is not None:
            return draw.source_mask
        if draw.probability is None or draw.decide is None:
            return on_source_grid(draw.mask, self.row, self.classes)
        return draw.decide(torch.from_numpy(to_source(draw.probability.numpy(), self.row)))

    @property
    def where(self) -> Where:
        """Box of the case that is drawn."""
        box = [slice(0, length) for length in self.image.shape[1:]]
        if self.band is not None and self.disk is not None:
            box[self.disk.axis] = slice(*self.band)
        return tuple(box)

    def at(self, start: int, stop: int) -> CaseModels:
        """The same case with the band from row `start` to `stop` (exclusive), and without draws."""
        return replace(self, band=(start, stop), draws=[], _base_probability=None, _total=None)

    def logits(self, key: Hashable, make: Callable[[], Segmenter], view: View) -> Tensor:
        """Logits f32 `[output, *space]` of the drawn box, by the segmenter that `make` returns.

        `key` names segmenter and view within the case, so that the window of a large case slides on from band to band.
        """
        if self.disk is None or self.band is None:
            return make().logits(self.image, view)
        if key not in self.disk.sliding:
            park = self.disk.folder / f"rows_{len(self.disk.sliding)}"
            self.disk.sliding[key] = make().sliding(self.image, view, self.disk.axis, park)
        return self.disk.sliding[key].rows(*self.band)

    def predict(self, model: Segmenter, view: View | None = None) -> Tensor:
        """Class probabilities f32 `[class, *space]` of the drawn box.

        With `view` the network sees a varied image, and the probabilities are brought back to the grid of the case.
        Sided classes change places along with a mirrored axis.
        """
        from pipeline.segmenter.logits import probability
        from pipeline.segmenter.sliding import PLAIN

        view = view or PLAIN
        found = probability(self.logits((id(model.network), view), lambda: model, view)).cpu()
        return swapped_classes(found, self.swap_labels, view.mirrored(len(self.image.shape) - 1))

    def whole_mask(self, key: Hashable, make: Callable[[], np.ndarray]) -> np.ndarray:
        """Mask u8 `[*space]` of the drawn box, cut from the mask of the whole case that `make` returns."""
        if self.disk is None:
            return make()
        return np.array(self.disk.mask(key, make)[self.where])

    def first_mask(self) -> np.ndarray:
        """Mask u8 `[*space]` of slot 0, of the whole case.

        If the case is drawn in bands, the base predicts the whole case once more, because `draws` holds a band only.
        """
        from pipeline.segmenter.logits import labels, probability

        disk, base = self.disk, self.base
        if disk is None:
            return self.draws[0].mask
        if base is None:
            # The first sampler is `imported`, so the first mask on disk is slot 0.
            return np.load(next(iter(disk.masks.values())))

        def predicted() -> np.ndarray:
            mask = np.empty(self.image.shape[1:], np.uint8)
            for where, logits in base.bands(self.image, disk.axis):
                mask[where] = labels(probability(logits))
            return mask

        return np.array(disk.mask("slot 0", predicted))

    def base_probability(self) -> Tensor:
        """Class probabilities f32 `[class, *space]` of slot 0."""
        assert self._base_probability is not None
        return self._base_probability

    def mean_probability(self) -> Tensor:
        """Mean probability f32 `[class, *space]` over the draws that count.

        A voxel that is unknown in all of these draws is 0 for every class.
        """
        import torch

        assert self._total is not None
        # The classes of a draw sum to 1, or to 0 in an unknown voxel, so the sum counts the draws that know the voxel.
        votes = self._total.sum(0)
        return self._total / torch.where(votes > 0, votes, 1)


class Sampler(Protocol):
    """Frozen knobs with a literal `kind`. `name` is the key of the sampler in `params.yaml`."""

    @property
    def kind(self) -> str:
        """Name of the kind in `params.yaml`."""
        ...

    def settings(self, name: str, setup: Setup) -> list[str]:
        """Settings of the draws, in order. Every case has the same settings, so every case has equally many proposals.

        Raises `BadInput` for a model, a class or a file that is missing, before any case is drawn.
        """
        ...

    def draw(self, name: str, case: CaseModels) -> Iterator[Draw]:
        """One draw per setting, in the order of `settings`."""
        ...

    def forward_passes(self, name: str, setup: Setup, before: Sequence[Passes | None]) -> list[Passes | None]:
        """Forward passes that each draw needs, in the order of `settings`.

        `before` has those of the earlier slots, slot 0 first. None: the number is unknown, as for masks of other tools.
        """
        ...


def passes_by_slot(samplers: Mapping[str, Sampler], setup: Setup) -> list[Passes | None]:
    """Forward passes that the proposal in each slot needs. None where the number is unknown."""
    found: list[Passes | None] = [frozenset({BASE_PASS})] if setup.base else []
    for name, sampler in samplers.items():
        found += sampler.forward_passes(name, setup, found)
    return found


def check_flips(name: str, flips: Sequence[Sequence[int]], dimensions: int) -> None:
    """Raise `BadInput` for flips along axes that data of `dimensions` spatial axes does not have."""
    check_axes(f"propose.samplers.{name}.flips", {axis for axes in flips for axis in axes}, dimensions)


def pass_of(model: str, view: str = "") -> str:
    """Name of the pass of a model, `base` or a member by name, on the image as it is or in a view such as `flip=0`."""
    return f"{model} {view}" if view else model


def flip_of(axes: Sequence[int]) -> str:
    """Name of the view that is flipped along these spatial axes."""
    return f"flip={''.join(map(str, sorted(axes)))}"


def drawn(
    name: str,
    setting: str,
    probability: Tensor,
    counts: bool = True,
    decide: Callable[[Tensor], np.ndarray] | None = None,
) -> Draw:
    """The draw with the mask that `decide` makes from probabilities f32 `[class, *space]`.

    Without `decide` every voxel has its most probable class. `counts` says whether the draw counts in the mean
    probability.
    """
    from pipeline.segmenter.logits import labels

    decide = decide or labels
    return Draw(decide(probability), name, setting, probability, counts, decide)
