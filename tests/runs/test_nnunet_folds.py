"""A results folder of nnU-Net with two folds, from raw data to the scores of learned judges, as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pipeline.store.cases import CaseStore
from pipeline.store.proposals import ProposalStore
from tests.fixtures.chain import TINY, run_chain, with_changes
from tests.fixtures.phantoms import disc, save_image, write_nnunet
from tests.fixtures.results_folder import results_folder

TRAINED_ON = [f"case_{number:02d}" for number in range(8)]
MEASURED = ["case_08", "case_09"]
TO_PANEL = ("audit", "mine", "train", "validate", "evaluate", "promote", "report")


def project(folder: Path) -> None:
    """Eight cases of the training, four labelled cases of `imagesTs` and two images without a label."""
    raw = write_nnunet(folder / "raw/Dataset001_Discs", cases=14, ending=".png", unlabelled=6)
    lines = ["case_id,split"]
    for number in range(8, 12):
        save_image(raw / f"labelsTs/case_{number:02d}.png", disc((20, 24), 3 + number % 2))
        lines.append(f"case_{number:02d},{'validation' if number < 10 else 'test'}")
    (raw / "cases.csv").write_text("\n".join(lines))
    model = results_folder(folder / "raw/nnUNetTrainer__nnUNetPlans__2d", (16, 16), (1.0, 1.0))
    folds = [{"train": TRAINED_ON[4:], "val": TRAINED_ON[:4]}, {"train": TRAINED_ON[:4], "val": TRAINED_ON[4:]}]
    (model / "splits_final.json").write_text(json.dumps(folds))


PARAMS = with_changes(
    data={
        "kind": "nnunet",
        "path": "raw/Dataset001_Discs",
        "case_table": {"file": "cases.csv", "split": "split"},
    },
    preprocess="plans",
    splits={"labelled": "rest", "pool": 0, "validation": 0, "test": 0},
    model="raw/nnUNetTrainer__nnUNetPlans__2d",
    base={"kind": "nnunet", "folds": [0, 1], "base_fold": 1, "mirror": False},
    propose={
        **TINY["propose"],
        "splits": ["labelled", "pool", "validation"],
        "samplers": {
            "ensemble": {"kind": "ensemble"},
            "thresholds": {"kind": "threshold", "thresholds": [0.3, 0.4, 0.6, 0.7]},
            "mean": {"kind": "mean", "flips": [[0]]},
        },
    },
    judges={
        "agreement": {"kind": "agreement"},
        "pairwise": {"kind": "pairwise"},
        "quality": {
            "kind": "quality",
            "network": {
                "name": "DenseNet",
                "arguments": {"init_features": 4, "growth_rate": 4, "block_config": [1, 1]},
            },
            "networks": 1,
            "optimisation": {"steps": 2, "learning_rate": 1e-3},
            "batch": 2,
        },
    },
)


def test_learned_judges_from_a_folder_of_two_folds(tmp_path: Path) -> None:
    """Every labelled case is proposed for by the fold that held the case out, and the judges learn from that."""
    project(tmp_path)
    run_chain(tmp_path, PARAMS, skip=TO_PANEL)
    models = json.loads((tmp_path / "models/base/models.json").read_text())
    held_out = {case_id: "fold_0" if case_id in TRAINED_ON[:4] else "fold_1" for case_id in TRAINED_ON}
    assert models["fold_of"] == held_out
    cases = CaseStore(tmp_path / "data/cases")
    pool, labelled = (ProposalStore(tmp_path / f"data/{name}") for name in ("proposals", "out_of_fold"))
    assert not [name for name in labelled.names if name.startswith("ensemble")]
    for case in cases.split("labelled"):
        network = "ensemble nnunet_fold_0" if held_out[case.case_id] == "fold_0" else "base"
        assert np.array_equal(labelled.masks(case)[0], pool.masks(case)[pool.slot(network)])
        assert not np.array_equal(*pool.masks(case)[[pool.slot("base"), pool.slot("ensemble nnunet_fold_0")]])
    for judge in ("pairwise", "quality"):
        scores = pl.read_parquet(tmp_path / f"data/scores/{judge}.parquet").filter(pl.col("case_id").is_in(MEASURED))
        assert len(scores) == 2 * len(pool.names)
        assert scores["score"].is_not_null().all()
        assert scores["score"].n_unique() > 2
    fitted = json.loads((tmp_path / "data/proposals/fitted.json").read_text())["mean"]
    assert sorted(fitted["folds"]) == ["fold_0", "fold_1"]
    assert "the folds lack the members ['nnunet_fold_0']" in fitted["note"]


def test_measured_cases_of_the_training_stop_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three validation cases are asked for, and the table gives two: the third is of the training."""
    project(tmp_path)
    splits = {"labelled": "rest", "pool": 0, "validation": 3, "test": 0}
    with pytest.raises(RuntimeError, match=r"stages\.base"):
        run_chain(tmp_path, {**PARAMS, "splits": splits})
    assert "found 1 of 3 validation cases (first: 'case_0" in capsys.readouterr().err
    assert not (tmp_path / "models/base").exists()
