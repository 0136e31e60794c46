"""Judge `fixed`: one sampler always, or the samplers by their Dice on labelled cases out of fold."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.compute import Compute
from pipeline.errors import BadInput
from pipeline.judges.judge import Evidence, JudgeInputs
from pipeline.judges.kinds.fixed import RANKING_FILE, Fixed
from tests.fixtures.builders import bars, case_store, no_proposals, proposal_store


def inputs(folder: Path) -> JudgeInputs:
    """Two labelled cases and one of the pool; slots of 2, 4 and 6 voxels out of fold, the pool has 2, 4, 6 and 4."""
    splits = ["labelled", "labelled", "pool"]
    cases = case_store(folder / "cases", [bars([4])[0], bars([2])[0], bars([4])[0]], splits)
    out_of_fold = proposal_store(folder / "out_of_fold", [bars([2, 4, 6])] * 2)
    return JudgeInputs(
        cases, proposal_store(folder / "out", [bars([2, 4, 6, 4])] * 3), out_of_fold, folder / "models", Compute(), 0
    )


def test_samplers_by_their_dice_on_labelled_cases(tmp_path):
    """Truths of 4 and 2 voxels. Slot 0: 2*2/6 and 1; slot 1: 1 and 2*2/6; slot 2: 2*4/10 and 2*2/8.

    The fourth sampler of the pool has no proposals out of fold: its mask is that of slot 1, and has its score.
    """
    given = inputs(tmp_path)
    scores = Fixed(kind="fixed").ready(given).score(Evidence(given.cases, given.proposals, given.cases.all[2]))
    assert scores == pytest.approx([5 / 6, 5 / 6, 0.65, 5 / 6])
    assert json.loads((tmp_path / "models" / RANKING_FILE).read_text()) == pytest.approx(
        {"base": 5 / 6, "s 1": 5 / 6, "s 2": 0.65}
    )


def test_means_are_over_patients(tmp_path):
    """Patient a has two truths of 4 voxels, patient b one of 2: slot 1 has 1, 1 and 2/3, so 5/6 and not 8/9."""
    truths = [bars([4])[0], bars([4])[0], bars([2])[0]]
    cases = case_store(tmp_path / "cases", truths, ["labelled"] * 3, groups=["a", "a", "b"])
    stores = [proposal_store(tmp_path / name, [bars([2, 4, 6])] * 3) for name in ("out", "out_of_fold")]
    given = JudgeInputs(cases, *stores, tmp_path / "models", Compute(), 0)
    assert Fixed(kind="fixed").ready(given).scores[1] == pytest.approx(5 / 6)


def test_a_named_sampler_is_preferred_to_all_others(tmp_path):
    """`s 3` has the mask of `s 1`, which mining keeps instead: both have the score."""
    given = inputs(tmp_path)
    scores = (
        Fixed(kind="fixed", proposal="s 3")
        .ready(given)
        .score(Evidence(given.cases, given.proposals, given.cases.all[2]))
    )
    assert np.array_equal(scores, [0, 1, 0, 1])


def test_what_is_missing(tmp_path):
    given = inputs(tmp_path)
    with pytest.raises(BadInput, match=r"found 'mean fitted'; the proposals are \['base', 's 1', 's 2', 's 3'\]"):
        Fixed(kind="fixed", proposal="mean fitted").ready(given)
    empty = JudgeInputs(given.cases, given.proposals, no_proposals(tmp_path / "none"), given.models, Compute(), 0)
    with pytest.raises(BadInput, match="a judge of kind 'fixed' learns from out-of-fold proposals"):
        Fixed(kind="fixed").ready(empty)
    assert Fixed(kind="fixed", proposal="s 1").ready(empty).scores == (0, 1, 0, 0)
