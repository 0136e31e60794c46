"""Knobs of the stage `propose`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pipeline.knobs import NOTHING, Knobs, Name
from pipeline.proposals.samplers import Sampler


class Propose(Knobs):
    """Samplers of the proposals, and splits whose cases get proposals."""

    samplers: dict[Name, Sampler]
    """Samplers by name, in the order of the proposals. Slot 0 is always the prediction of the base segmenter. Without a
    base segmenter the first sampler must be of kind `imported`, and its first mask is slot 0."""
    splits: tuple[Literal["labelled", "pool", "validation", "test"], ...] = ("pool", "validation")
    """Splits whose cases get proposals. Students learn from `pool`. `validation` is needed to measure judges,
    `labelled` by pair sets of the labelled split, and `test` by students of objective `proposal`."""
    imports: Path = NOTHING
    """Folder of all imported masks. DVC watches the folder. `raw/none` if no masks are imported."""
