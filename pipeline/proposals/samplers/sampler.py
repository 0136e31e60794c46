"""What a sampler is: it draws hard masks of one case, from trained models or from files."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from pipeline.errors import BadInput
from pipeline.store.cases import Case, Values, Where

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.segmenter.segmenter import Segmenter
    from pipeline.segmenter.sliding import Sliding, View


@dataclass(frozen=True)
class Setup:
    """What proposals can be drawn from: known before any image is read."""

    classes: int
    base: bool = True
    """Whether there is a base segmenter; without one all masks are imported or made from imported ones."""
    members: tuple[str, ...] = ()
    snapshots: tuple[str, ...] = ()
    cases: tuple[Case, ...] = ()
    imports: Path = Path()
    """Folder of all imported masks."""

    def needs_base(self, name: str) -> None:
        """Refuse a sampler that draws from the base segmenter where there is none."""
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
    """f32 `[class, *space]` if this draw counts in the mean probability: a prediction of its own or, without any
    model, an imported mask, whose unknown voxels are 0 for every class."""


@dataclass
class OnDisk:
    """What lasts while a large case is drawn band by band: windows that slide along it, and whole masks in files."""

    folder: Path
    axis: int
    """The axis along which bands follow each other."""
    sliding: dict[Hashable, Sliding] = field(default_factory=dict)
    masks: dict[Hashable, Path] = field(default_factory=dict)

    def mask(self, key: Hashable, make: Callable[[], np.ndarray]) -> np.ndarray:
        """A mask of the whole case, made once; only what is read of it takes memory."""
        if key not in self.masks:
            made = make()  # it may keep a mask of its own, so the file is named afterwards
            self.masks[key] = self.folder / f"mask_{len(self.masks)}.npy"
            np.save(self.masks[key], made)
        return np.load(self.masks[key], mmap_mode="r")


@dataclass
class CaseModels:
    """One case, or a band of a large one, with the models that may propose for it, and what was drawn so far.

    Of the probabilities only the base's and a running sum are kept: memory does not grow with them.
    """

    row: Case
    image: Values  # f32 [channel, *space], of the whole case
    classes: int
    base: Segmenter | None
    members: dict[str, Segmenter]
    snapshots: dict[str, Segmenter]
    seed: int
    swap_labels: tuple[tuple[int, int, int], ...] = ()  # (axis, class, class) that change places in a flip
    imports: Path = Path()
    draws: list[Draw] = field(default_factory=list)
    band: tuple[int, int] | None = None
    """First and last row, exclusive, that are drawn: bands come in order. None: the whole case."""
    disk: OnDisk | None = None
    """Of a case that is drawn in bands."""
    _base_probability: Tensor | None = None
    _total: Tensor | None = None

    @property
    def case_id(self) -> str:
        return self.row.case_id

    @property
    def segmenter(self) -> Segmenter:
        """The base; samplers that use it have refused to work without one."""
        assert self.base is not None
        return self.base

    def keep(self, draw: Draw) -> None:
        """Append a draw, and its probability to the mean; the first one is slot 0."""
        if draw.probability is not None:
            if not self.draws:
                self._base_probability = draw.probability
            self._total = draw.probability if self._total is None else self._total + draw.probability
        self.draws.append(replace(draw, probability=None))

    @property
    def where(self) -> Where:
        """The box of the case that is drawn."""
        box = [slice(0, length) for length in self.image.shape[1:]]
        if self.band is not None and self.disk is not None:
            box[self.disk.axis] = slice(*self.band)
        return tuple(box)

    def at(self, start: int, stop: int) -> CaseModels:
        """The next band, without draws."""
        return replace(self, band=(start, stop), draws=[], _base_probability=None, _total=None)

    def logits(self, key: Hashable, make: Callable[[], Segmenter], view: View) -> Tensor:
        """Logits f32 `[output, *space]`, here, of the segmenter that `make` makes; `key` names it within the case."""
        if self.disk is None or self.band is None:
            return make().logits(self.image, view)
        if key not in self.disk.sliding:
            park = self.disk.folder / f"rows_{len(self.disk.sliding)}"
            self.disk.sliding[key] = make().sliding(self.image, view, self.disk.axis, park)
        return self.disk.sliding[key].rows(*self.band)

    def predict(self, model: Segmenter, view: View | None = None) -> Tensor:
        """Class probabilities `[class, *space]` of this case as it is, or as the view shows it to the network."""
        from pipeline.segmenter.logits import probability
        from pipeline.segmenter.sliding import PLAIN

        view = view or PLAIN
        found = self.logits((id(model.network), view), lambda: model, view)
        return probability(found).cpu()

    def whole_mask(self, key: Hashable, make: Callable[[], np.ndarray]) -> np.ndarray:
        """Mask u8 `[*space]`, here, of one that `make` makes of the whole case."""
        if self.disk is None:
            return make()
        return np.array(self.disk.mask(key, make)[self.where])

    def first_mask(self) -> np.ndarray:
        """Slot 0 of the whole case, u8 `[*space]`: where it is drawn in bands, it is predicted once more."""
        from pipeline.segmenter.logits import labels, probability

        disk, base = self.disk, self.base
        if disk is None:
            return self.draws[0].mask
        if base is None:
            return np.load(next(iter(disk.masks.values())))

        def predicted() -> np.ndarray:
            mask = np.empty(self.image.shape[1:], np.uint8)
            for where, logits in base.bands(self.image, disk.axis):
                mask[where] = labels(probability(logits))
            return mask

        return np.array(disk.mask("slot 0", predicted))

    def predict_flipped(self, model: Segmenter, axes: Sequence[int]) -> Tensor:
        """Class probabilities `[class, *space]` of the image flipped along these axes, brought back to this case."""
        from pipeline.segmenter.sliding import View

        found = self.predict(model, View(flips=tuple(axes)))
        order = list(range(len(found)))
        for axis, first, second in self.swap_labels:
            if axis in axes:
                order[first], order[second] = order[second], order[first]
        return found[order]

    def base_probability(self) -> Tensor:
        """Class probabilities of slot 0."""
        assert self._base_probability is not None
        return self._base_probability

    def mean_probability(self) -> Tensor:
        """Mean over the draws that count; voxels that none of them knows are 0 for every class."""
        import torch

        assert self._total is not None
        votes = self._total.sum(0)
        return self._total / torch.where(votes > 0, votes, 1)


class Sampler(Protocol):
    """Frozen knobs with a literal `kind`; `name` is the sampler's key in `params.yaml`."""

    @property
    def kind(self) -> str:
        """Name of the kind in `params.yaml`."""
        ...

    def settings(self, name: str, setup: Setup) -> list[str]:
        """What it draws, in order: the same for every case, so that every case has equally many proposals.

        Raises `BadInput` for what it lacks, before any work.
        """
        ...

    def draw(self, name: str, case: CaseModels) -> Iterator[Draw]:
        """One draw per setting."""
        ...


def drawn(name: str, setting: str, probability: Tensor, own: bool = True) -> Draw:
    """The draw of class probabilities; `own` says whether it counts in the mean probability."""
    from pipeline.segmenter.logits import labels

    return Draw(labels(probability), name, setting, probability if own else None)
