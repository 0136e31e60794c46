"""Strategy `none`: an empty pair set."""

from __future__ import annotations

from typing import Literal

from pipeline.knobs import Knobs


class NoPairs(Knobs):
    """An empty pair set, for students that need no pairs."""

    kind: Literal["none"]
