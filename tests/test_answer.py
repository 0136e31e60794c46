"""F1 of components in the report's tables: there where it was measured, and only there."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import polars as pl
import pytest

from pipeline import schema
from pipeline.evaluation import summary
from pipeline.metrics import Evaluation
from pipeline.report.answer import answer, worst_cases
from pipeline.report.blocks import Section, Table
from pipeline.report.run import Arm, Run

KNOBS = Evaluation(nsd_tolerance=1.0, bootstrap=50, components=True, component_overlap=0.6)


def run_of(f1: float | None) -> Run:
    """A run whose base has this F1 in both test cases and classes."""
    rows = [
        {
            **{"case_id": case, "class": label, "group": case, "dice": 0.5, "dice_peak": 0.5},
            **{"nsd": 0.5, "hd95": 2.0, "assd": 1.0, "f1": f1, "distance_unit": "px", "volume_error": 0.0},
            **{"truth_empty": False, "prediction_empty": False},
        }
        for case in ("a", "b")
        for label in (1, 2)
    ]
    metrics = summary(pl.DataFrame(rows, schema=schema.EVALUATION.columns), None, KNOBS)
    cases = SimpleNamespace(class_names=["background", "nucleus", "gland"])
    return cast(Run, SimpleNamespace(arms=[Arm("base", metrics)], cases=cases))


def tables(section: Section) -> dict[str, Table]:
    return {block.caption: block for block in section.blocks if isinstance(block, Table)}


def test_f1_is_a_column_and_a_table_where_it_was_measured() -> None:
    run = run_of(0.25)
    arms = tables(answer(run))["Test results of all arms"]
    assert [cell.text for cell in arms.cells[0]][list(arms.columns).index("F1")] == "25.0"
    assert "IoU is above 0.6" in arms.note
    by_class = tables(worst_cases(run))["F1 of components by class, points"]
    assert by_class.rows == [["base", "25.0", "25.0"]]


def test_f1_is_nowhere_where_it_was_not_measured() -> None:
    run = run_of(None)
    arms = tables(answer(run))["Test results of all arms"]
    assert "F1" not in arms.columns
    assert "F1" not in arms.note
    assert not any("F1" in caption for caption in tables(worst_cases(run)))


@pytest.mark.parametrize("f1", [None, 0.25])
def test_only_the_recipe_is_set_as_words(f1: float | None) -> None:
    arms = tables(answer(run_of(f1)))["Test results of all arms"]
    assert {len(row) for row in arms.rows} == {len(arms.columns)}
    assert [arms.columns[place] for place in sorted(arms.words)] == ["pair set", "judge", "objective", "anchor"]
