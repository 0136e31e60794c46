"""Four bars whose Dice is a fraction of small numbers, for the tests of the audit.

A bar of length L against a truth of length 8 has Dice 2 min(L, 8) / (L + 8):
L = 2: .4, L = 4: 2/3, L = 8: 1, L = 12: .8, L = 16: 2/3.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.dataset import CaseStore, ProposalStore
from pipeline.mining import PairSet
from tests.builders import bars, case_store, proposal_store

Scores = Sequence[Sequence[float | None]]

PAIRED = ([4, 8, 2], [8, 12, 2], [2, 12, 8], [12, 16, 4])
PAIR_SCORES: Scores = ([0.5, 0.9, 0.1], [0.5, 0.9, 0.1], [0.9, 0.5, 0.1], [0.5, 0.9, 0.1])
TOP_BOTTOM = PairSet.model_validate({"judge": "j", "strategy": {"kind": "top_bottom"}})


def stores(
    folder: Path,
    lengths: Sequence[Sequence[int]],
    groups: Sequence[str] | None = None,
    split: str = "validation",
    label: np.ndarray | None = None,
) -> tuple[CaseStore, ProposalStore]:
    """Cases with a bar of length 8, and their proposals of these lengths."""
    labels = [bars([8])[0] if label is None else label] * len(lengths)
    cases = case_store(folder / "cases", labels, [split] * len(lengths), groups=groups)
    return cases, proposal_store(folder / "proposals", [bars(case) for case in lengths])


def approx_row(row: dict[str, Any], **expected: float) -> None:
    assert {name: row[name] for name in expected} == pytest.approx(expected)


def hold_their_means(row: dict[str, Any]) -> None:
    """Every interval of a row holds its measure."""
    for measure in (name.removesuffix("_low") for name in row if name.endswith("_low")):
        if row[f"{measure}_low"] is not None:
            assert row[f"{measure}_low"] <= row[measure] <= row[f"{measure}_high"]
