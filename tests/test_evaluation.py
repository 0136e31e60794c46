"""Evaluation rows, their summary and the intervals, on numbers worked by hand."""

import json
from dataclasses import dataclass
from typing import cast

import numpy as np
import polars as pl
import pytest

from pipeline import schema
from pipeline.bootstrap import Interval, interval, weighted_interval
from pipeline.dataset import Case, CaseStore
from pipeline.errors import BadInput
from pipeline.evaluation import evaluate, rows_of, summary
from pipeline.metrics import Evaluation
from pipeline.seeding import numpy_generator
from pipeline.store import write_table

KNOBS = Evaluation(nsd_tolerance=1.0, bootstrap=2000)


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
    assert row["volume_error"] is None
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
    with pytest.raises(BadInput, match=r"case 'a': expected .* \(4, 4\), found \(4, 5\); bring it back to the grid"):
        rows_of(case_of("a"), mask_of(0), sustained, best, 2, KNOBS)


@dataclass
class ToyCases:
    """Stands for a case store whose truth is row 0 of every case."""

    class_names: tuple[str, ...] = ("background", "organ")

    def truth(self, case: Case) -> np.ndarray:
        return mask_of(0)


TOY = cast(CaseStore, ToyCases())


def test_evaluate_makes_a_table_of_the_contract(tmp_path):
    rows = [case_of("b", "p2", (1.0, 1.0)), case_of("a")]
    table = evaluate(TOY, rows, [lambda case: mask_of(0, 1)], lambda case: mask_of(0), KNOBS)
    write_table(table, schema.EVALUATION, tmp_path / "student.parquet", KNOBS)
    assert table["dice_peak"].to_list() == [1.0, 1.0]
    assert table["distance_unit"].to_list() == ["mm", "px"]


def test_evaluate_reports_all_failing_cases():
    with pytest.raises(BadInput, match=r"case 'a': expected[^\n]*\ncase 'b': expected"):
        evaluate(TOY, [case_of("a"), case_of("b")], [lambda case: np.zeros((2, 2), np.uint8)], None, KNOBS)


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


def test_summary_worked_by_hand():
    """Cases .8, .6 (patient A: .7) and .4 (B): mean .55. Resamples of two patients are .7, .55 or .4 (1:2:1).

    Peak: A (.9 + .8) / 2 = .85, B .5: .675. HD95: A 3, B 6: 4.5. |volume error|: A .2, B .4: .3.
    Class 1: A .75, B .2: .475. Class 2: A .65, B .6: .625.
    """
    found = summary(STUDENT, None, KNOBS)
    assert found["dice"] == pytest.approx({"mean": 0.55, "low": 0.4, "high": 0.7})
    assert found["hd95"] == pytest.approx({"mean": 4.5, "low": 3.0, "high": 6.0})
    assert found["dice_with_truth"] == pytest.approx(found["dice"])
    assert found["absolute_volume_error"]["mean"] == pytest.approx(0.3)
    assert (found["peak"], found["sustained"], found["drop"]) == pytest.approx((0.675, 0.55, 0.125))
    assert found["worst_5_percent"] == pytest.approx(0.4)
    assert found["classes"]["1"]["dice"] == pytest.approx(0.475)
    assert found["classes"]["2"]["dice"] == pytest.approx(0.625)
    assert (found["cases"], found["groups"], found["distance_unit"]) == (3, 2, "px")
    assert "gain_over_base" not in found
    assert "cases_worse" not in found


def test_gain_over_base_is_paired():
    """Gains -.02, -.03 (A: -.025) and +.1 (B): mean .0375, ends -.025 and .1. Only -.03 is more than .02 worse.

    HD95 gains: A (-1 - 3) / 2 = -2, B +1: -.5.
    """
    found = summary(STUDENT, BASE, KNOBS)
    assert found["gain_over_base"]["dice"] == pytest.approx({"mean": 0.0375, "low": -0.025, "high": 0.1})
    assert found["gain_over_base"]["hd95"] == pytest.approx({"mean": -0.5, "low": -2.0, "high": 1.0})
    assert found["gain_over_base"]["nsd"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert found["cases_worse"] == 1


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
    table = STUDENT.with_columns(
        pl.when(pl.col("case_id") == "b")
        .then(pl.lit("mm"))
        .otherwise(pl.lit("px"))
        .cast(schema.EVALUATION.columns["distance_unit"])
        .alias("distance_unit")
    )
    found = summary(table, BASE, KNOBS)
    assert found["distance_unit"] == "mixed"
    assert found["hd95"] == found["gain_over_base"]["nsd"] == {"mean": None, "low": None, "high": None}
    assert found["classes"]["1"]["assd"] is None
    assert found["dice"]["mean"] == pytest.approx(0.55)


@pytest.mark.parametrize(
    "table",
    [
        STUDENT,
        table_of({"case_id": "a", "group": "1", "dice": 0.0, "truth_empty": True, "volume_error": None}),
    ],
)
def test_summary_is_json_without_nan(table):
    content = summary(table, table, KNOBS)
    assert json.loads(json.dumps(content, allow_nan=False)) == content


def test_no_case_is_refused():
    with pytest.raises(BadInput, match="at least one test case, found none; check `splits`"):
        summary(STUDENT.clear(), None, KNOBS)


@pytest.mark.parametrize(
    ("student", "base"),
    [(STUDENT, BASE.filter(pl.col("case_id") != "b")), (STUDENT.filter(pl.col("class") == 1), BASE)],
)
def test_other_cases_than_the_base_are_refused(student, base):
    with pytest.raises(
        BadInput, match=r"in one table only, e\.g\. \('\w+', \d\); evaluate both on the same test split"
    ):
        summary(student, base, KNOBS)


# ---- intervals -------------------------------------------------------------------------------------------------


def test_degenerate_intervals():
    """One patient with cases 1 and 2 has a mean and no spread; nothing at all has no mean."""
    assert interval([1.0, 2.0], ["a", "a"], 100, 0) == Interval(1.5, None, None)
    assert interval([], [], 100, 0) == Interval(None, None, None)
    assert interval([3.0, 3.0], ["a", "b"], 100, 0) == Interval(3.0, 3.0, 3.0)
    assert weighted_interval([1.0], [4.0], ["a"], 100, 0) == Interval(0.25, None, None)
    assert weighted_interval([0.0, 0.0], [0.0, 0.0], ["a", "b"], 100, 0) == Interval(None, None, None)
    assert weighted_interval([], [], [], 100, 0) == Interval(None, None, None)


def test_mean_is_over_patients_and_not_over_cases():
    """Patient a with cases 0, 0, 0 and b with 1: 1/2, not 1/4."""
    assert interval([0, 0, 0, 1], ["a", "a", "a", "b"], 500, 0) == Interval(0.5, 0.0, 1.0)


def test_interval_is_seeded():
    values, groups = list(range(9)), list(range(9))
    assert interval(values, groups, 200, 1) == interval(values, groups, 200, 1)
    assert interval(values, groups, 200, 1) != interval(values, groups, 200, 2)


def test_blocks_of_resamples_cover_all_draws(monkeypatch):
    """Memory is bounded by blocks, and their size does not show in the result."""
    values, groups = np.linspace(0, 1, 30), list(range(30))
    whole = interval(values, groups, 500, 0)
    monkeypatch.setattr("pipeline.bootstrap.BLOCK", 30 * 64)
    assert interval(values, groups, 500, 0) == whole


def test_ratio_of_sums():
    """Wrong |D| 10 of 10 + 30 in patient a, 0 of 60 in b: 10/100. Resamples: 10/40, 10/100 or 0."""
    found = weighted_interval([10, 0, 0], [10, 30, 60], ["a", "a", "b"], 2000, 0)
    assert found == pytest.approx(Interval(0.1, 0.0, 0.25))


def test_difference_of_two_ratios_shares_its_resamples():
    """e_D = 10/100 against e = 1/3. Only a: 1/4 - 1/2; only b: 0 - 0."""
    found = weighted_interval([10, 0, 0], [10, 30, 60], ["a", "a", "b"], 2000, 0, minus=([1, 0, 0], [1, 1, 1]))
    assert found == pytest.approx(Interval(0.1 - 1 / 3, -0.25, 0.0))


def test_resamples_without_weight_are_left_out():
    """Patient b has no weight: draws of b alone have no ratio, all others give 1/2."""
    assert weighted_interval([1, 0], [2, 0], ["a", "b"], 500, 0) == Interval(0.5, 0.5, 0.5)


def test_ends_are_the_outer_fortieths():
    """Resampled means of 50 zeros and 50 ones are Binomial(100, 1/2) / 100: 2.5 % lie up to .40 and from .60."""
    found = interval(np.repeat([0, 1], 50), np.arange(100), 8000, 0)
    assert found == pytest.approx(Interval(0.5, 0.4, 0.6), abs=0.0101)


def test_interval_covers_the_known_mean():
    """100 sets of 40 patients with 2 cases each, mean 0: about 95 of the intervals hold 0."""
    covered = 0
    for repeat in range(100):
        generator = numpy_generator(repeat, "coverage")
        values = generator.standard_normal((40, 1)) + 0.3 * generator.standard_normal((40, 2))
        _, low, high = interval(values.ravel(), np.repeat(np.arange(40), 2), 500, repeat)
        assert low is not None
        assert high is not None
        covered += low <= 0 <= high
    assert 90 <= covered <= 99
