"""Knobs of the review."""

from __future__ import annotations

from pathlib import Path

from pipeline.knobs import NOTHING, Knobs


class Review(Knobs):
    """Answers of reviewers on pairs of masks, which audit, mining and judges of kind `expert` use."""

    verdicts: Path = NOTHING
    """Table of the answers, `review/verdicts.parquet`. The table is an input: no stage writes the table. DVC watches
    the path. `raw/none` without answers."""
