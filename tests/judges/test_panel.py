"""The panel: which rows and columns it has, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pipeline.compute import Compute
from pipeline.errors import BadInput
from pipeline.judges.consensus import RankMean
from pipeline.judges.judge import JudgeInputs
from pipeline.judges.kinds.oracle import Oracle
from pipeline.judges.panel import build_panel, true_dice
from pipeline.store import schema
from pipeline.store.tables import read_table, write_table
from tests.fixtures.builders import bars
from tests.fixtures.judging import Scene, scene, scores_of

MEAN = RankMean(kind="rank_mean", judges=("a", "b"))


@pytest.fixture
def judged(tmp_path: Path) -> Scene:
    """A case of each split; judge a likes large masks and b small ones, but for the base, which both dislike."""
    splits = ["pool", "test", "validation", "labelled"]
    at = scene(tmp_path, [bars([8, 4, 16])] * 4, labels=[bars([8])[0]] * 4, splits=splits)
    rows = at.proposals.table.filter(pl.col("case_id") != "c1")
    for name, scores in {"a": [0.0, 1.0, 2.0], "b": [0.0, 2.0, 1.0]}.items():
        table = rows.select("case_id", "proposal", pl.Series("score", scores * 3), pl.lit(name).alias("judge"))
        write_table(table, schema.SCORES, tmp_path / "scores" / f"{name}.parquet", "a test")
    return at


def test_the_panel_has_all_scores_and_no_test_case(tmp_path, judged):
    out = tmp_path / "panel.parquet"
    build_panel(judged.cases, judged.proposals, tmp_path / "scores", ["a", "b"], out, {"mean": MEAN})
    panel = read_table(out, schema.panel(["a", "b", "mean"]))
    assert panel.select("case_id", "proposal").rows() == [(c, slot) for c in ("c0", "c2", "c3") for slot in range(3)]
    assert panel["score_a"].to_list() == [0, 1, 2] * 3
    assert panel["score_mean"].to_list() == [0, 0.75, 0.75] * 3
    assert panel["true_dice"].to_list() == pytest.approx([None] * 3 + [1, 2 / 3, 2 / 3] + [None] * 3)


def test_a_label_that_is_unknown_everywhere_gives_no_true_dice(tmp_path):
    """Nor does the oracle score its proposals, and no judge learns from it."""
    unknown = np.full_like(bars([8])[0], schema.UNKNOWN)
    labels = [unknown, bars([8])[0], unknown, bars([8])[0]]
    splits = ["validation", "validation", "labelled", "labelled"]
    at = scene(tmp_path, [bars([8, 4])] * 4, labels=labels, splits=splits)
    assert true_dice(at.cases, at.proposals)["case_id"].to_list() == ["c1", "c1"]
    assert np.isnan(scores_of(Oracle(kind="oracle"), at)).all()
    assert scores_of(Oracle(kind="oracle"), at, 1).tolist() == pytest.approx([1, 2 / 3])
    inputs = JudgeInputs(at.cases, at.proposals, at.proposals, tmp_path, Compute(), 0)
    assert [case.case_id for case in inputs.learned_from("quality")] == ["c3"]


def test_equal_content_is_equal_bytes(tmp_path, judged):
    for name in ("one", "two"):
        out = tmp_path / f"{name}.parquet"
        build_panel(judged.cases, judged.proposals, tmp_path / "scores", ["a", "b"], out, {"mean": MEAN})
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()


def test_a_judge_that_is_not_listed_is_not_read(tmp_path, judged):
    out = tmp_path / "panel.parquet"
    build_panel(judged.cases, judged.proposals, tmp_path / "scores", ["b"], out)
    assert "score_a" not in pl.read_parquet_schema(out)


def test_consensus_of_a_judge_that_is_not_there(tmp_path, judged):
    out = tmp_path / "panel.parquet"
    with pytest.raises(BadInput, match=r"consensus.mean.judges: no judge 'a'; there are \['b'\]"):
        build_panel(judged.cases, judged.proposals, tmp_path / "scores", ["b"], out, {"mean": MEAN})
    with pytest.raises(BadInput, match=r"c.parquet: no such table"):
        build_panel(judged.cases, judged.proposals, tmp_path / "scores", ["a", "c"], out)
    assert not out.exists()
