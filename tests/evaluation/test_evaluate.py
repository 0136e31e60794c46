"""Evaluation rows, their summary and the intervals, on numbers worked by hand."""

import json
from dataclasses import dataclass
from typing import cast

import numpy as np
import polars as pl
import pytest

from pipeline.errors import BadInput
from pipeline.evaluation.evaluate import evaluate, flat_metrics, means_per_case, rows_of, summary
from pipeline.evaluation.metrics import Evaluation
from pipeline.store import schema
from pipeline.store.cases import Case, CaseStore
from pipeline.store.tables import write_table
from tests.fixtures.builders import case_store

KNOBS = Evaluation(nsd_tolerance=1.0, bootstrap=2000)
WITH_F1 = Evaluation(nsd_tolerance=1.0, bootstrap=2000, components=True)


def case_of(case_id: str, group: str = "p1", spacing: tuple[float, ...] | None = None) -> Case:
    return Case(case_id, 0, group, "test", True, (4, 4), spacing, (4, 4), spacing, None)


def mask_of(*rows: int) -> np.ndarray:
    """A 4x4 label map with these rows filled with class 1."""
    mask = np.zeros((4, 4), np.uint8)
    mask[list(rows)] = 1
    return mask


# ---- rows ------------------------------------------------------------------------------------------------------


def test_metrics_are_means_over_sustained_and_peak_is_of_the_best():
    """Truth row 0. Sustained: exact (Dice 1, volume error 0) and rows 0-1 (2*4/12, 2*4/12): means 5/6 and 1/3.

    Surfaces one row apart on 4 of 12 pixels: ASSD 0 and 4/12, mean 1/6. Best: rows 0-2, Dice 8/16.
    """
    (row,) = rows_of(case_of("a"), mask_of(0), [mask_of(0), mask_of(0, 1)], mask_of(0, 1, 2), 2, KNOBS)
    assert row["dice"] == pytest.approx(5 / 6)
    assert row["volume_error"] == pytest.approx(1 / 3)
    assert row["assd"] == pytest.approx(1 / 6)
    assert row["dice_peak"] == 0.5
    assert (row["case_id"], row["group"], row["class"], row["distance_unit"]) == ("a", "p1", 1, "px")
    assert not row["prediction_empty"]


def test_errors_of_volume_do_not_cancel_between_checkpoints():
    """Truth rows 0-1. Checkpoints of 1 and 3 rows: 2 (4 - 8) / 12 = -2/3 and 2 (12 - 8) / 20 = .4."""
    (row,) = rows_of(case_of("a"), mask_of(0, 1), [mask_of(0), mask_of(0, 1, 2)], None, 2, KNOBS)
    assert row["volume_error"] == pytest.approx((-2 / 3 + 0.4) / 2)
    assert row["absolute_volume_error"] == pytest.approx((2 / 3 + 0.4) / 2)
    (case,) = means_per_case(pl.DataFrame([row], schema=schema.EVALUATION.columns)).iter_rows(named=True)
    assert case["absolute_volume_error"] == row["absolute_volume_error"]


def test_without_a_best_checkpoint_peak_is_dice():
    (row,) = rows_of(case_of("a"), mask_of(0), [mask_of(0, 1)], None, 2, KNOBS)
    assert row["dice_peak"] == row["dice"] == pytest.approx(2 / 3)


def test_prediction_empty_if_any_sustained_is():
    """Dice of an exact and an empty prediction: 1/2; distances 0 and the diagonal 4 sqrt 2."""
    (row,) = rows_of(case_of("a"), mask_of(0), [mask_of(0), mask_of()], mask_of(0), 2, KNOBS)
    assert row["prediction_empty"]
    assert (row["dice"], row["dice_peak"]) == (0.5, 1.0)
    assert row["hd95"] == pytest.approx(2 * 2**0.5)


def test_volume_error_is_null_where_the_truth_is_empty():
    (row,) = rows_of(case_of("a"), mask_of(), [mask_of(), mask_of(1)], None, 2, KNOBS)
    assert (row["volume_error"], row["absolute_volume_error"]) == (None, None)
    assert row["truth_empty"]


def test_peak_ignores_unknown_voxels():
    """The best checkpoint is right wherever the truth is known."""
    truth = mask_of(0)
    truth[3] = schema.UNKNOWN
    (row,) = rows_of(case_of("a"), truth, [mask_of(0, 3)], mask_of(0, 3), 2, KNOBS)
    assert row["dice"] == row["dice_peak"] == 1


@pytest.mark.parametrize("wrong", ["sustained", "best"])
def test_predictions_of_another_shape_name_the_case(wrong):
    good, bad = mask_of(0), np.zeros((4, 5), np.uint8)
    sustained, best = ([good, bad], good) if wrong == "sustained" else ([good], bad)
    with pytest.raises(
        BadInput, match=r"case 'a': expected .* \(4, 4\), found \(4, 5\); bring the prediction back to the grid"
    ):
        rows_of(case_of("a"), mask_of(0), sustained, best, 2, KNOBS)


def test_f1_is_a_mean_over_sustained_where_it_is_asked_for():
    """Truth rows 0 and 2, two components. Exact: 1. Row 0 alone: TP 1, FN 1, so 2/3. Mean 5/6."""
    truth, predictions = mask_of(0, 2), [mask_of(0, 2), mask_of(0)]
    (row,) = rows_of(case_of("a"), truth, predictions, None, 2, WITH_F1)
    assert row["f1"] == pytest.approx(5 / 6)
    (row,) = rows_of(case_of("a"), truth, predictions, None, 2, KNOBS)
    assert row["f1"] is None


@dataclass
class ToyCases:
    """Stands for a case store whose truth is row 0 of every case."""

    class_names: tuple[str, ...] = ("background", "organ")

    def truth(self, case: Case) -> np.ndarray:
        return mask_of(0)


TOY = cast(CaseStore, ToyCases())


def test_evaluate_makes_a_table_of_the_contract(tmp_path):
    rows = [case_of("b", "p2", (1.0, 1.0)), case_of("a")]
    for knobs, f1 in ((WITH_F1, [0.0, 0.0]), (KNOBS, [None, None])):  # an IoU of 4/8 is no match
        table = evaluate(TOY, rows, [lambda case: mask_of(0, 1)], lambda case: mask_of(0), knobs)
        write_table(table, schema.EVALUATION, tmp_path / "student.parquet", knobs)
        assert table["f1"].to_list() == f1
    assert table["dice_peak"].to_list() == [1.0, 1.0]
    assert table["distance_unit"].to_list() == ["mm", "px"]


def test_evaluate_reports_all_failing_cases():
    with pytest.raises(BadInput, match=r"case 'a': expected[^\n]*\ncase 'b': expected"):
        evaluate(TOY, [case_of("a"), case_of("b")], [lambda case: np.zeros((2, 2), np.uint8)], None, KNOBS)


def test_a_truth_that_is_unknown_everywhere_is_not_measured(tmp_path):
    """Case c0 is 255 throughout: two empty masks would agree perfectly. Nothing is predicted for it."""
    cases = case_store(tmp_path, [np.full((4, 4), 255, np.uint8), mask_of(0)], ["test"] * 2)

    def predict(case: Case) -> np.ndarray:
        assert case.case_id == "c1"
        return mask_of(0, 1)

    table = evaluate(cases, cases.all, [predict], None, KNOBS)
    assert table["case_id"].to_list() == ["c1"]
    assert evaluate(cases, cases.all[:1], [predict], None, KNOBS).is_empty()


# ---- summary ---------------------------------------------------------------------------------------------------


def table_of(*rows: dict) -> pl.DataFrame:
    """An evaluation table; what a row does not say has a harmless value."""
    usual = {
        "class": 1,
        "nsd": 1.0,
        "hd95": 2.0,
        "assd": 1.0,
        "distance_unit": "px",
        "volume_error": 0.0,
        "truth_empty": False,
        "prediction_empty": False,
    }
    complete = [{**usual, "dice_peak": row["dice"], **row} for row in rows]
    for row in complete:
        row["absolute_volume_error"] = None if row["volume_error"] is None else abs(row["volume_error"])
    return pl.DataFrame(complete, schema=schema.EVALUATION.columns)


def rows_for(case_id: str, group: str, dice: tuple[float, float], peak: float, **more: object) -> list[dict]:
    return [
        {"case_id": case_id, "group": group, "class": label, "dice": value, "dice_peak": peak, **more}
        for label, value in enumerate(dice, 1)
    ]


STUDENT = table_of(
    *rows_for("a1", "A", (0.9, 0.7), 0.9, volume_error=0.2, hd95=4.0),
    *rows_for("a2", "A", (0.6, 0.6), 0.8, volume_error=-0.2, hd95=2.0),
    *rows_for("b", "B", (0.2, 0.6), 0.5, volume_error=0.4, hd95=6.0),
)
BASE = table_of(
    *rows_for("a1", "A", (0.82, 0.82), 0.82, hd95=5.0),
    *rows_for("a2", "A", (0.63, 0.63), 0.63, hd95=5.0),
    *rows_for("b", "B", (0.3, 0.3), 0.3, hd95=5.0),
)
STUDENT_F1 = STUDENT.with_columns(f1=pl.Series([0.8, 0.6, 0.5, 0.5, 0.0, 0.2]))
BASE_F1 = BASE.with_columns(f1=pl.Series([0.4, 0.4, 0.5, 0.5, 0.3, 0.3]))


def thrice(table: pl.DataFrame) -> pl.DataFrame:
    """Three patients of each kind, so that there are enough for an interval.

    One resample in 64 has one kind alone, more than the share of .0024 that is left out at either end.
    """
    names = [pl.col(name) + str(copy) for copy in range(3) for name in ("case_id", "group")]
    return pl.concat([table.with_columns(names[2 * copy : 2 * copy + 2]) for copy in range(3)])


def test_summary_worked_by_hand():
    """Cases .8, .6 (patient A: .7) and .4 (B): mean .55. Resamples of patients reach from .4 to .7.

    Peak: A (.9 + .8) / 2 = .85, B .5: .675. HD95: A 3, B 6: 4.5. |volume error|: A .2, B .4: .3.
    Class 1: A .75, B .2: .475. Class 2: A .65, B .6: .625.
    """
    found = summary(thrice(STUDENT), None, KNOBS)
    assert found["dice"] == pytest.approx({"mean": 0.55, "low": 0.4, "high": 0.7})
    assert found["hd95"] == pytest.approx({"mean": 4.5, "low": 3.0, "high": 6.0})
    assert found["dice_with_truth"] == pytest.approx(found["dice"])
    assert found["absolute_volume_error"]["mean"] == pytest.approx(0.3)
    assert (found["peak"], found["sustained"], found["drop"]) == pytest.approx((0.675, 0.55, 0.125))
    assert found["worst_5_percent"] == pytest.approx(0.4)
    assert found["classes"]["1"]["dice"] == pytest.approx(0.475)
    assert found["classes"]["2"]["dice"] == pytest.approx(0.625)
    assert (found["cases"], found["groups"], found["distance_unit"]) == (9, 6, "px")
    assert "gain_over_base" not in found
    assert "cases_worse" not in found


def test_gain_over_base_is_paired():
    """Gains -.02, -.03 (A: -.025) and +.1 (B): mean .0375, ends -.025 and .1. Only -.03 is more than .02 worse.

    HD95 gains: A (-1 - 3) / 2 = -2, B +1: -.5.
    """
    found = summary(thrice(STUDENT), thrice(BASE), KNOBS)
    assert found["gain_over_base"]["dice"] == pytest.approx({"mean": 0.0375, "low": -0.025, "high": 0.1})
    assert found["gain_over_base"]["hd95"] == pytest.approx({"mean": -0.5, "low": -2.0, "high": 1.0})
    assert found["gain_over_base"]["nsd"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert found["cases_worse"] == 3
    few = summary(STUDENT, BASE, KNOBS)["gain_over_base"]["dice"]
    assert few == {"mean": pytest.approx(0.0375), "low": None, "high": None}, "two patients"


def test_a_case_at_exactly_the_margin_is_not_worse():
    """In binary fractions .90 - .92 is -.020000000000000018; .90 - .93 is more than .02 below."""
    student = table_of(*({"case_id": name, "group": name, "dice": 0.9} for name in "ab"))
    base = table_of(*({"case_id": name, "group": name, "dice": value} for name, value in (("a", 0.92), ("b", 0.93))))
    assert summary(student, base, KNOBS)["cases_worse"] == 1


def test_order_of_rows_changes_no_bit():
    """(.1 + .2) + .9 and (.9 + .2) + .1 differ in the last bit."""
    values = (0.1, 0.2, 0.9)
    table = table_of(
        *({"case_id": "a", "group": "A", "class": label, "dice": value} for label, value in enumerate(values, 1))
    )
    assert summary(table, table, KNOBS) == summary(table.reverse(), table.reverse(), KNOBS)


def test_empty_masks_are_counted():
    """One of each: found, missed, invented, rightly empty; Dice where there is truth: (.8 + 0) / 2."""
    table = table_of(
        {"case_id": "found", "group": "1", "dice": 0.8},
        {"case_id": "missed", "group": "2", "dice": 0.0, "prediction_empty": True},
        {"case_id": "invented", "group": "3", "dice": 0.0, "truth_empty": True, "volume_error": None},
        {
            "case_id": "none",
            "group": "4",
            "dice": 1.0,
            "truth_empty": True,
            "prediction_empty": True,
            "volume_error": None,
        },
    )
    found = summary(table, None, KNOBS)
    assert found["empty"] == {"truth": 2, "prediction": 2, "missed": 1, "invented": 1}
    assert found["dice"]["mean"] == pytest.approx(0.45)
    assert found["dice_with_truth"]["mean"] == pytest.approx(0.4)


def test_worst_twentieth_of_forty_cases_is_two():
    rows = [{"case_id": str(i), "group": str(i), "dice": i / 40} for i in range(40)]
    assert summary(table_of(*rows), None, KNOBS)["worst_5_percent"] == pytest.approx((0 + 1 / 40) / 2)


def test_distances_of_mixed_units_are_null_and_the_rest_is_kept():
    table = STUDENT_F1.with_columns(
        pl.when(pl.col("case_id") == "b")
        .then(pl.lit("mm"))
        .otherwise(pl.lit("px"))
        .cast(schema.EVALUATION.columns["distance_unit"])
        .alias("distance_unit")
    )
    found = summary(table, BASE_F1, WITH_F1)
    assert found["distance_unit"] == "mixed"
    assert found["hd95"] == found["gain_over_base"]["nsd"] == {"mean": None, "low": None, "high": None}
    assert found["classes"]["1"]["assd"] is None
    assert found["dice"]["mean"] == pytest.approx(0.55)
    assert found["f1"]["mean"] == pytest.approx(0.35)
    assert found["gain_over_base"]["f1"]["mean"] == pytest.approx(-0.025)


def test_f1_is_summarised_as_the_other_metrics():
    """Cases .7, .5 (A: .6) and .1 (B): mean .35. Class 1: A .65, B 0; class 2: A .55, B .2.

    Gains: .3, 0 (A: .15) and -.2 (B): mean -.025.
    """
    found = summary(thrice(STUDENT_F1), thrice(BASE_F1), WITH_F1)
    assert found["f1"] == pytest.approx({"mean": 0.35, "low": 0.1, "high": 0.6})
    assert (found["classes"]["1"]["f1"], found["classes"]["2"]["f1"]) == pytest.approx((0.325, 0.375))
    assert found["gain_over_base"]["f1"] == pytest.approx({"mean": -0.025, "low": -0.2, "high": 0.15})
    assert found["component_overlap"] == 0.5


def test_the_metrics_of_dvc_are_six_flat_numbers_worked_by_hand():
    """Dice, gain and HD95 as above; nine cases. The base has no gain."""
    found = flat_metrics(summary(thrice(STUDENT), thrice(BASE), KNOBS))
    assert found == pytest.approx(
        {"dice": 0.55, "gain": 0.0375, "gain_low": -0.025, "gain_high": 0.1, "hd95": 4.5, "cases": 9}
    )
    assert flat_metrics(summary(thrice(BASE), None, KNOBS)).keys() == {"dice", "hd95", "cases"}


def test_a_number_that_is_unknown_is_no_metric():
    """Two patients have no interval, and distances in mm and in px have no mean."""
    units = pl.Series(["mm", "mm", "px", "px", "px", "px"], dtype=schema.EVALUATION.columns["distance_unit"])
    found = flat_metrics(summary(STUDENT.with_columns(distance_unit=units), BASE, KNOBS))
    assert found == pytest.approx({"dice": 0.55, "gain": 0.0375, "cases": 3})


@pytest.mark.parametrize("partial", [False, True])
def test_f1_is_left_out_where_a_row_lacks_it(partial):
    """A mean over the rows that have it would be of other cases."""
    lacking = STUDENT_F1.with_columns(
        f1=pl.when((pl.col("case_id") != "b") & partial).then(pl.col("f1")),
    )
    found = summary(lacking, BASE_F1, WITH_F1)
    assert "f1" not in found
    assert "component_overlap" not in found
    assert "f1" not in found["gain_over_base"]
    assert "f1" not in found["classes"]["1"]
    whole = summary(STUDENT_F1, lacking, WITH_F1)
    assert whole["f1"]["mean"] == pytest.approx(0.35)
    assert "f1" not in whole["gain_over_base"]


@pytest.mark.parametrize(
    "table",
    [
        STUDENT,
        STUDENT_F1,
        table_of({"case_id": "a", "group": "1", "dice": 0.0, "truth_empty": True, "volume_error": None}),
    ],
)
def test_summary_is_json_without_nan(table):
    content = summary(table, table, KNOBS)
    assert json.loads(json.dumps(content, allow_nan=False)) == content


def test_cases_that_were_not_measured_are_counted():
    """They change nothing else. If no case is left, the error says why."""
    assert summary(STUDENT, None, KNOBS)["unmeasured"] == 0
    assert summary(STUDENT, None, KNOBS, 2) == summary(STUDENT, None, KNOBS) | {"unmeasured": 2}
    with pytest.raises(BadInput, match=r"a known voxel, found 255 \(unknown\) everywhere in all 2 test cases"):
        summary(STUDENT.clear(), None, KNOBS, 2)


def test_no_case_is_refused():
    with pytest.raises(BadInput, match="at least one test case, found none; check `splits`"):
        summary(STUDENT.clear(), None, KNOBS)


@pytest.mark.parametrize(
    ("student", "base"),
    [(STUDENT, BASE.filter(pl.col("case_id") != "b")), (STUDENT.filter(pl.col("class") == 1), BASE)],
)
def test_other_cases_than_the_base_are_refused(student, base):
    with pytest.raises(BadInput, match=r"in one table only, e\.g\. \('\w+', \d\); measure both on the same split"):
        summary(student, base, KNOBS)
