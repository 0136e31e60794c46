"""What a judge says and learns follows from no label of pool, validation or test: they are replaced by noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pipeline.compute import Compute
from pipeline.execution import Runtime
from pipeline.judges.consensus import JudgeConsensus, RankMean, Unanimous, Weighted
from pipeline.judges.panel import build_panel
from pipeline.judges.score import JudgeFiles, judge
from pipeline.seeding import numpy_generator
from pipeline.store import schema
from pipeline.store.cases import CaseStore
from pipeline.store.tables import read_table
from tests.fixtures.builders import case_store, proposal_store
from tests.fixtures.judging import Scene, folds_of, noisy_labels
from tests.fixtures.phantoms import disc
from tests.judges.test_kinds import KINDS, RESEARCH, SYNCHRONOUS, configured, redrawn

SPACE = (12, 12)
SPLITS = ["pool", "pool", "validation", "validation", "validation", "test", *["labelled"] * 4]
HIDDEN = ("pool", "validation", "test")
"""Splits whose labels no judge may read."""
TRUTH = [disc(SPACE, 3 + row % 3, row % 4 - 2) for row in range(len(SPLITS))]
ALONE = [name for name in KINDS if name not in RESEARCH]
UNLEARNED = {"agreement", "entropy", "expected_dice", "likelihood", "table"}
"""Kinds that do without the labelled split."""


def cases_with(folder: Path, poisoned: tuple[str, ...]) -> CaseStore:
    """A disc in noise each; the labels of these splits are noise, the images as they were."""
    noise = noisy_labels(7, len(SPLITS), SPACE, 2)
    labels = [noise[row] if split in poisoned else TRUTH[row] for row, split in enumerate(SPLITS)]
    images = [
        (truth + 0.3 * numpy_generator("poisoning", row).normal(size=SPACE)).astype(np.float32)[None]
        for row, truth in enumerate(TRUTH)
    ]
    return case_store(folder, labels, SPLITS, images, SPACE)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Scene]:
    """The same proposals, as of one base, with all labels (`clean`) and with those of some splits replaced."""
    folder = tmp_path_factory.mktemp("poisoning")
    stores = [
        proposal_store(
            folder / f"proposals_{turn}",
            [
                np.stack([redrawn(truth, 0.08 * slot, 2, turn, row, slot) for slot in range(4)])
                for row, truth in enumerate(TRUTH)
            ],
        )
        for turn in range(2)
    ]
    table = folder / "table.csv"
    voxels = pl.col("voxels").list.slice(1).list.sum()
    stores[0].table.select("case_id", "proposal", score=-voxels).write_csv(table)
    replaced = {"clean": (), "hidden": HIDDEN, "beside validation": ("pool", "test"), "validation": ("validation",)}
    replaced["labelled"] = ("labelled",)
    return {
        name: Scene(cases_with(folder / f"cases {name}", splits), stores[0], table, stores[1])
        for name, splits in replaced.items()
    }


def judged_files(folder: Path, kind: str, at: Scene) -> dict[str, bytes]:
    """Bytes of the score table, and of what the judge has learned, by path."""
    folder.mkdir()
    files, runtime = JudgeFiles(folder / "models", folder / "scores.parquet"), Runtime(Compute(), 0, SYNCHRONOUS)
    judge(kind, configured(kind, at), at.data, folds_of(at), files, runtime)
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


@pytest.mark.parametrize("kind", ALONE)
def test_no_judge_reads_hidden_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scenes: dict[str, Scene], kind: str
) -> None:
    """Score table and models/judges/NAME have equal bytes when the labels of pool, validation and test are noise.

    Noise in the labelled split changes them where a judge learns from it, so that equal bytes say something.
    """
    monkeypatch.chdir(tmp_path)
    clean, poisoned, learned = (
        judged_files(tmp_path / name, kind, scenes[name]) for name in ("clean", "hidden", "labelled")
    )
    assert {"scores.parquet", "models/judge.json"} <= clean.keys()
    assert clean == poisoned
    assert (clean == learned) == (kind in UNLEARNED)


@pytest.mark.parametrize("kind", sorted(RESEARCH))
def test_judges_for_research_read_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scenes: dict[str, Scene], kind: str
) -> None:
    """The poison reaches those who look."""
    monkeypatch.chdir(tmp_path)
    clean, poisoned = (judged_files(tmp_path / name, kind, scenes[name]) for name in ("clean", "hidden"))
    assert clean["scores.parquet"] != poisoned["scores.parquet"]


def test_weighted_consensus_reads_validation_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scenes: dict[str, Scene]
) -> None:
    """In the panel, noise in pool and test changes nothing; in validation it changes the truth and the weights."""
    monkeypatch.chdir(tmp_path)
    named = ("agreement", "shape")
    entries: dict[str, JudgeConsensus] = {
        "ranks": RankMean(kind="rank_mean", judges=named),
        "unanimous": Unanimous(kind="unanimous", judges=named, max_spread=0.5),
        "weighted": Weighted(kind="weighted", judges=named),
    }
    panels = {}
    for name in ("clean", "beside validation", "validation"):
        folder, at = tmp_path / name, scenes[name]
        for kind in named:
            out = folder / "scores" / f"{kind}.parquet"
            files, runtime = JudgeFiles(folder / "models" / kind, out), Runtime(Compute(), 0, SYNCHRONOUS)
            judge(kind, configured(kind, at), at.data, folds_of(at), files, runtime)
        build_panel(at.cases, at.proposals, folder / "scores", named, folder / "panel.parquet", entries)
        panels[name] = folder / "panel.parquet"
    assert panels["clean"].read_bytes() == panels["beside validation"].read_bytes()
    tables = [read_table(panels[name], schema.panel([*named, *entries])) for name in ("clean", "validation")]
    assert {name for name in tables[0].columns if not tables[0][name].equals(tables[1][name])} == {
        "true_dice",
        "score_weighted",
    }
