"""Sampler `tta`: predictions of the base on flipped, turned or intensity-scaled images, brought back to the case."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from pipeline.segmenter.augmentation import SwapLabels

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.segmenter.sliding import View


class TTA(Knobs):
    """One proposal per varied image, and one proposal of the mean over the base and all varied images."""

    kind: Literal["tta"]
    flips: tuple[tuple[int, ...], ...] = ((0,), (1,), (0, 1))
    """Sets of spatial axes that are flipped together, one proposal per set. Sided classes (`augmentation.swap_labels`)
    change places along with the flip."""
    quarter_turns: tuple[Literal[1, 2, 3], ...] = ()
    """Numbers of rotations by 90 degrees in the plane of the last two axes, one proposal each. The window turns with
    the image, so a network of fixed input size needs a window that is square in this plane for 1 and 3. Two turns
    mirror both axes, so sided classes change places. One and three turns are refused where an axis of the plane has
    sided classes."""
    intensity: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """Factors by which the normalised image is multiplied, one proposal each."""
    mean: bool = True
    """Whether the mean probability over the base and all varied images is a proposal too."""

    def settings(self, name: str, setup: Setup) -> list[str]:
        setup.needs_base(name)
        return [
            *(f"flip={''.join(map(str, axes))}" for axes in self.flips),
            *(f"turn={turn}" for turn in self.quarter_turns),
            *(f"intensity={factor:g}" for factor in self.intensity),
            *(["mean"] if self.mean else []),
        ]

    def forward_passes(self, name: str, setup: Setup, before: Sequence[Passes | None]) -> list[Passes | None]:
        views = [
            *map(flip_of, self.flips),
            *(f"turn={turn}" for turn in self.quarter_turns),
            *(f"intensity={factor:g}" for factor in self.intensity),
        ]
        varied: list[Passes | None] = [frozenset({pass_of(BASE_PASS, view)}) for view in views]
        return [*varied, *([frozenset({BASE_PASS}.union(*filter(None, varied)))] if self.mean else [])]

    def draw(self, name: str, case: CaseModels) -> Iterator[Draw]:
        self.check(name, len(case.image.shape) - 1, case.swap_labels)
        total, count = case.base_probability(), 1
        for setting, probability in self._varied(name, case):
            total, count = total + probability, count + 1
            yield drawn(name, setting, probability)
        if self.mean:
            yield drawn(name, "mean", total / count, counts=False)

    def check(self, name: str, dimensions: int, swap_labels: SwapLabels) -> None:
        """Raise `BadInput` for axes that the data does not have, and for odd turns in a plane with sided classes.

        After an odd turn, left and right would be top and bottom.
        """
        check_flips(name, self.flips, dimensions)
        turned = {dimensions - 2, dimensions - 1}
        sided = sorted({axis for axis, _, _ in swap_labels} & turned)
        odd = [turn for turn in self.quarter_turns if turn % 2]
        if sided and odd:
            raise BadInput(
                f"propose.samplers.{name}.quarter_turns: expected only 2 where augmentation.swap_labels names an axis "
                f"of the turned plane ({sided}), found {odd}; remove the odd turns"
            )

    def _varied(self, name: str, case: CaseModels) -> Iterator[tuple[str, Tensor]]:
        """Setting and class probabilities f32 `[class, *space]` of each varied image, brought back to the drawn box."""
        from pipeline.segmenter.sliding import View

        base = case.segmenter
        for axes in self.flips:
            yield f"flip={''.join(map(str, axes))}", case.predict(base, View(flips=axes))
        for turn in self.quarter_turns:
            yield f"turn={turn}", _turned(name, case, View(turns=turn))
        for factor in self.intensity:
            yield f"intensity={factor:g}", case.predict(base, View(factor=factor))


def _turned(name: str, case: CaseModels, view: View) -> Tensor:
    """Class probabilities f32 `[class, *space]` of the base for the turned image, brought back to the drawn box.

    Raises `BadInput` if the base fails on the turned window.
    """
    base = case.segmenter
    seen = view.window(base.window)
    try:
        return case.predict(base, view)
    except (RuntimeError, ValueError, AssertionError, TypeError, LookupError) as error:
        # The error is about the turned window only if the turned window differs from the window of the base.
        if seen == tuple(base.window):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BadInput(
            f"case '{case.case_id}': sampler '{name}': expected a network that runs on its window {list(base.window)} "
            f"turned by a quarter, {list(seen)}, found an error: {reason}; give the base a window whose last two sizes "
            "are equal, or remove the odd `quarter_turns`"
        ) from error
