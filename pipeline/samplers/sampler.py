"""What a sampler is: it draws hard masks of one case, from trained models or from files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from pipeline.dataset import Case
from pipeline.errors import BadInput
from pipeline.recipe import Compute

if TYPE_CHECKING:
    from torch import Tensor, nn


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


@dataclass(frozen=True)
class Loaded:
    """A network in eval mode, and the voxels that it sees at once."""

    network: nn.Module
    window: tuple[int, ...]


@dataclass
class CaseModels:
    """One case with the models that may propose for it, and what was drawn so far.

    Of the probabilities only the base's and a running sum are kept: memory does not grow with them.
    """

    row: Case
    image: np.ndarray  # f32 [channel, *space]
    classes: int
    base: Loaded | None
    members: dict[str, Loaded]
    snapshots: dict[str, Loaded]
    compute: Compute
    seed: int
    swap_labels: tuple[tuple[int, int, int], ...] = ()  # (axis, class, class) that change places in a flip
    imports: Path = Path()
    draws: list[Draw] = field(default_factory=list)
    _base_probability: Tensor | None = None
    _total: Tensor | None = None

    @property
    def case_id(self) -> str:
        return self.row.case_id

    @property
    def segmenter(self) -> Loaded:
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

    def predict(self, model: Loaded, image: np.ndarray | None = None) -> Tensor:
        """Class probabilities `[class, *space]` of this case, or of a varied image of it."""
        from pipeline.segmenter import predict, probability

        image = self.image if image is None else image
        return probability(predict(model.network, image, model.window, self.compute)).cpu()

    def predict_flipped(self, model: Loaded, axes: Sequence[int]) -> Tensor:
        """Class probabilities `[class, *space]` of the image flipped along these axes, brought back to this case."""
        image = np.flip(self.image, tuple(axis + 1 for axis in axes))
        found = self.predict(model, image).flip([axis + 1 for axis in axes])
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
    from pipeline.segmenter import labels

    return Draw(labels(probability), name, setting, probability if own else None)
