"""The fitted thresholds in the report: curve, choice by fold, and the reason where nothing was fitted."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.report.blocks import Figure, Note
from pipeline.report.thresholds import thresholds
from tests.fixtures.reporting import Built, build, table, write_tried

SAMPLERS = {"mean": {"kind": "mean"}}


@pytest.fixture
def built(tmp_path: Path) -> Built:
    return build(tmp_path, samplers=SAMPLERS)


def test_runs_without_a_fitted_threshold_have_no_such_section(built: Built) -> None:
    assert thresholds(built.run) is None
    assert 'id="thresholds"' not in built.page()


def test_the_curve_the_choice_and_the_thresholds_of_the_folds(built: Built) -> None:
    """All patients of fold_1 are best at .7, those of fold_0 at .6. A fold has the threshold of the other fold."""
    write_tried(built, {f"a{i}": 0.7 if i % 2 else 0.6 for i in range(18)})
    found = thresholds(built.run)
    assert found is not None
    note, figure, _ = found.blocks
    assert isinstance(note, Note)
    assert list(note.lines) == ["Sampler 'mean': the thresholds were fitted on 18 labelled patients."]
    rows = [[cell.text for cell in row] for row in table(found, "Fitted thresholds by models").cells]
    assert rows[1:] == [["mean", "fold_0", "0.70"], ["mean", "fold_1", "0.60"]]
    assert isinstance(figure, Figure)
    assert "mean, class_1: Dice 89.8 at the best threshold 0.65, and 89.8 at the chosen threshold 0.65" in figure.alt
    page = built.page()
    assert page.index('<section id="proposals"') < page.index('<section id="thresholds"') < page.index('id="judges"')


def test_too_few_patients_are_a_reason_in_words(built: Built) -> None:
    write_tried(built, {"a": 0.7})
    found = thresholds(built.run)
    assert found is not None
    note = found.blocks[0]
    assert isinstance(note, Note)
    assert note.lines[0].startswith("Sampler 'mean': expected at least 8 patients to fit")
    assert any(isinstance(block, Figure) for block in found.blocks)


def test_without_folds_there_is_no_curve(built: Built) -> None:
    write_tried(built, {"a": 0.7})
    (built.run.out_of_fold / "thresholds.parquet").unlink()
    found = thresholds(built.run)
    assert found is not None
    assert not any(isinstance(block, Figure) for block in found.blocks)
