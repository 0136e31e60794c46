"""Sampler `mean`: the mean prediction of several models on flipped images, at several thresholds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from pipeline.errors import BadInput
from pipeline.knobs import Knobs
from pipeline.proposals.samplers.sampler import (
    BASE_PASS,
    CaseModels,
    Draw,
    Passes,
    Setup,
    check_flips,
    drawn,
    flip_of,
    pass_of,
)
from pipeline.proposals.samplers.threshold import check_offsets, cut, cut_settings
from pipeline.segmenter.augmentation import SwapLabels

if TYPE_CHECKING:
    from torch import Tensor

Threshold = Annotated[float, Field(gt=0, lt=1)]
FITTED = "fitted"
"""Setting of the proposal at the fitted thresholds."""


class Mean(Knobs):
    """The mean probability of the base and its members over the image and its flips, cut at several thresholds.

    One proposal is the most probable class of the mean. There is one more per threshold, one per entry of offsets, and
    one at a threshold that is fitted on labelled cases out of fold. The passes of this sampler do not count in the mean
    probability of the case, because other samplers draw some of them too.
    """

    kind: Literal["mean"]
    members: tuple[str, ...] | None = None
    """Names of the members beside the base. Null: all members but the folds."""
    flips: tuple[tuple[int, ...], ...] = ((0,), (1,), (0, 1))
    """Sets of spatial axes that are flipped together, one pass of every model each, beside the pass of the image as it
    is. Sided classes (`augmentation.swap_labels`) change places along with the flip."""
    thresholds: tuple[Threshold, ...] = ()
    """Thresholds of the foreground probability of the mean, as in sampler `threshold`."""
    offsets: tuple[dict[Annotated[int, Field(ge=0)], float], ...] = ()
    """Offsets per class on the logits of the mean, as in sampler `threshold`."""
    fitted: bool | Annotated[tuple[Threshold, ...], Field(min_length=1)] = True
    """Whether there is a proposal at a fitted threshold. `propose` fits one threshold per foreground class to the Dice
    of labelled cases that the models have not seen, which needs `base.folds`. Numbers, one per foreground class, are
    taken as they are."""

    def settings(self, name: str, setup: Setup) -> list[str]:
        setup.needs_base(name)
        chosen = self.chosen(setup.members)
        if len(set(chosen)) < len(chosen) or set(chosen) - set(setup.members):
            raise BadInput(
                f"propose.samplers.{name}.members: expected some of {list(setup.members)}, each once, found {chosen}"
            )
        if not isinstance(self.fitted, bool) and len(self.fitted) != setup.classes - 1:
            raise BadInput(
                f"propose.samplers.{name}.fitted: expected {setup.classes - 1} thresholds, one per foreground class, "
                f"found {list(self.fitted)}"
            )
        check_offsets(name, self.offsets, setup.classes)
        return ["all", *cut_settings(self.thresholds, self.offsets), *([FITTED] if self.fitted else [])]

    def draw(self, name: str, case: CaseModels) -> Iterator[Draw]:
        from pipeline.segmenter.offsets import mask_at

        mean = self.probability(name, case)
        yield drawn(name, "all", mean, counts=False)
        yield from cut(name, mean, self.thresholds, self.offsets)
        if self.fitted:
            thresholds = case.fitted[name] if isinstance(self.fitted, bool) else self.fitted
            yield drawn(name, FITTED, mean, False, partial(mask_at, thresholds=thresholds))

    def forward_passes(self, name: str, setup: Setup, before: Sequence[Passes | None]) -> list[Passes | None]:
        views = ["", *map(flip_of, self.flips)]
        of_mean = frozenset(pass_of(m, v) for m in (BASE_PASS, *self.chosen(setup.members)) for v in views)
        return [of_mean] * (1 + len(self.thresholds) + len(self.offsets) + bool(self.fitted))

    def check(self, name: str, dimensions: int, swap_labels: SwapLabels) -> None:
        """Raise `BadInput` for axes that the data does not have."""
        check_flips(name, self.flips, dimensions)

    def probability(self, name: str, case: CaseModels) -> Tensor:
        """Mean class probabilities f32 `[class, *space]` over all models and flips."""
        from pipeline.segmenter.sliding import View

        self.check(name, len(case.image.shape) - 1, case.swap_labels)
        models = [case.segmenter, *(case.members[name] for name in self.chosen(tuple(case.members)))]
        total = None
        for model in models:
            for axes in ((), *self.flips):
                found = case.predict(model, View(flips=tuple(axes)))
                total = found if total is None else total + found
        assert total is not None
        return total / (len(models) * (1 + len(self.flips)))

    def chosen(self, members: tuple[str, ...]) -> list[str]:
        """Names of the members that take part: the names in the knob, or all of `members` but the folds."""
        return [m for m in members if not m.startswith("fold_")] if self.members is None else list(self.members)
