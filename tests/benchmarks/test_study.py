"""Tables of the study: cases from several machines, choice of tries, and shares of the gap, worked by hand."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from benchmarks.study import CASE_COLUMNS, add_cases, best_tries, keep_seeds, keep_tries, read_cases, with_new
from benchmarks.study_page import (
    COLUMNS,
    LIFTS,
    Measured,
    cell,
    confirmed_table,
    lifts_table,
    percent,
    points,
    promoted_table,
    put,
)
from pipeline.measures.intervals import Interval


def cases(**dice: list[float]) -> pl.DataFrame:
    """Rows of one seed: the Dice of cases a, b and so on of every arm, each case of a patient of its own."""
    rows = [
        ("set", 0, arm, "abcd"[at], "abcd"[at], value)
        for arm, values in dice.items()
        for at, value in enumerate(values)
    ]
    return pl.DataFrame(rows, schema={"set": pl.String, **CASE_COLUMNS}, orient="row")


def test_arms_of_one_base_come_together() -> None:
    old, new = cases(base=[0.5, 0.6], one=[0.6, 0.7]), cases(base=[0.5, 0.6], one=[0.65, 0.75], two=[0.8, 0.9])
    found = with_new(old, new)
    assert found.equals(new.sort("arm", "case_id"))
    assert with_new(new, old)["arm"].to_list() == ["base", "base", "one", "one", "two", "two"]


def test_another_base_replaces_the_whole_seed(capsys: pytest.CaptureFixture[str]) -> None:
    old = cases(base=[0.5, 0.6], one=[0.6, 0.7])
    other_seed = old.with_columns(seed=pl.lit(1, pl.UInt8))
    new = cases(base=[0.5, 0.61], two=[0.8, 0.9])
    found = with_new(pl.concat([old, other_seed]), new)
    assert found.filter(pl.col("seed") == 0).equals(new)
    assert found.filter(pl.col("seed") == 1).equals(other_seed)
    assert "set, seed 0: the base is another one" in capsys.readouterr().out


def test_a_file_of_cases_keeps_every_digit(tmp_path: Path) -> None:
    one, file = cases(base=[0.5, 0.6123], other=[0.0, 1.0]), tmp_path / "cases.parquet"
    add_cases(one, file)
    assert read_cases(file).equals(one.sort("arm", "case_id"))
    # The same base in floats and in decimals is the same base.
    add_cases(cases(base=[0.5, 0.6123], third=[0.1, 0.9]), file)
    assert read_cases(file)["arm"].unique().sort().to_list() == ["base", "other", "third"]


def test_share_of_the_gap_and_differences() -> None:
    # Gains of .05 and .2 on every patient: a quarter is recovered, with no spread.
    one = cases(base=[0.5, 0.6, 0.4, 0.7], arm=[0.55, 0.65, 0.45, 0.75], full=[0.7, 0.8, 0.6, 0.9])
    measured = Measured(pl.concat([one, one.with_columns(seed=pl.lit(1, pl.UInt8))]))
    seeds, share = measured.recovered("arm", "full") or pytest.fail("nothing found")
    assert seeds == 2
    assert share == pytest.approx((0.25, 0.25, 0.25), abs=1e-6)
    seeds, gain = measured.difference("arm", "base") or pytest.fail("nothing found")
    assert (seeds, *gain) == pytest.approx((2, 0.05, 0.05, 0.05), abs=1e-6)
    assert measured.difference("arm", "absent") is None
    # No share of a gap that is not there.
    unknown = measured.recovered("arm", "base")
    assert unknown == (2, (None, None, None))
    assert cell(unknown, 3, percent, " %") == "unknown (2 seeds)"
    assert cell(measured.recovered("absent", "full"), 3, percent, " %") == "-"


def test_best_try_of_the_mean_of_two_sets(tmp_path: Path) -> None:
    file = tmp_path / "tried.csv"
    keep_tries([("a", 5e-4, 1.0, 0.03, 0.0), ("a", 1e-3, 1.0, 0.01, 0.01)], file, ["one", "two"])
    keep_tries([("b", 2e-3, 0.3, 0.01, 0.02)], file, ["one", "two"])
    assert best_tries(file, ["one", "two"]) == {"a": (5e-4, 1.0), "b": (2e-3, 0.3)}
    # A family that is tried again loses its old tries.
    keep_tries([("a", 2e-3, 1.0, -0.01, 0.0)], file, ["one", "two"])
    assert best_tries(file, ["one", "two"])["a"] == (2e-3, 1.0)


def test_a_seed_is_kept_once(tmp_path: Path) -> None:
    file = tmp_path / "kept.csv"
    rows = pl.DataFrame({"judge": ["one"], "lift": [0.1], "low": [None]}, schema_overrides={"low": pl.Float64})
    keep_seeds({("polyps", 1): rows.clone(), ("nuclei", 0): rows.clone()}, file)
    keep_seeds({("polyps", 1): rows.with_columns(lift=pl.lit(0.2)), ("polyps", 0): rows.clone()}, file)
    keep_seeds({}, file)
    assert pl.read_csv(file).select("set", "seed", "lift").rows() == [
        ("nuclei", 0, 0.1),
        ("polyps", 0, 0.1),
        ("polyps", 1, 0.2),
    ]


def test_table_of_lifts() -> None:
    rows = [
        ("polyps", 0, judge, "mean all", 0.03, 0.01, 0.05, 0.01 if judge == "oracle" else -0.01, -0.02, 0.015)
        for judge in LIFTS
    ]
    ends = ("", "_low", "_high")
    names = [
        "set",
        "seed",
        "judge",
        "fixed_sampler",
        *(f"{of}{end}" for of in ("lift", "lift_over_fixed") for end in ends),
    ]
    line = lifts_table(pl.DataFrame(rows, schema=names, orient="row")).splitlines()[-1].split(" | ")
    # The first judge is 3 points above the base and 1 point below the best fixed sampler.
    assert line[:2] == ["| polyps, 0", "`mean all`, +4.0"]
    assert line[2:] == [*["-1.0 [-2.0, 1.5]"] * 6, "+1.0 [-2.0, 1.5] |"]


def test_table_of_promotions() -> None:
    rows = [
        ("polyps", 0, "recipe", True, 40, 0.05, 0.02, 0.125),
        ("polyps", 0, "supervised", False, 40, 0.03, 0.01, 0.1),
        ("nuclei", 3, "recipe", False, 50, 0.01, -0.01, 0.4),
    ]
    names = ["set", "seed", "arm", "promoted", "patients", "gain", "lower_bound", "share_worse"]
    of = {name: Measured(cases().clear()) for name in COLUMNS}
    of["polyps"] = Measured(cases(base=[0.5] * 4, mean_fitted=[0.55] * 4, recipe=[0.56] * 4))
    # Four patients are too few for an interval.
    lines = promoted_table(pl.DataFrame(rows, schema=names, orient="row"), of).splitlines()[2:]
    assert lines == [
        "| polyps, 0 | 40 | shipped recipe | +5.0 | +2.00 | 12 % | +6.0 | +1.0 |",
        "| nuclei, 3 | 50 | none | - | - | - | - | - |",
    ]


def test_table_of_the_confirmation() -> None:
    arms = {"base": 0.0, "supervised": 0.01, "recipe": 0.03, "full_same": 0.1}
    one = cases(**{arm: [dice + gain for dice in (0.5, 0.6, 0.4, 0.7)] for arm, gain in arms.items()})
    of = Measured(pl.concat([one, one.with_columns(seed=pl.lit(1, pl.UInt8))]))
    parts = [row[2:-2].split(" | ") for row in confirmed_table(of).split("\n")]
    rows = {name: values for name, _, *values in parts}
    assert rows["labels only (`supervised`)"] == ["+1.0 [1.0, 1.0]", "+2.0 [2.0, 2.0]", "10 % [10, 10]"]
    assert rows["shipped recipe"] == ["+3.0 [3.0, 3.0]", "", "30 % [30, 30]"]
    assert rows["research: all labels of the pool, same steps"][:2] == ["+10.0 [10.0, 10.0]", "-7.0 [-7.0, -7.0]"]
    assert rows["imitate the composed masks"] == ["-", "-", "-"]


def test_cells() -> None:
    found = Interval(0.0123, -0.0004, 0.025)
    assert cell((3, found), 3, points) == "+1.2 [0.0, 2.5]"
    assert cell((1, found), 3, points) == "+1.2 [0.0, 2.5] (1 seed)"
    assert cell((3, Interval(0.494, -0.004, 0.976)), 3, percent, " %") == "49 % [0, 98]"
    assert cell((2, Interval(0.0123, None, None)), 2, points) == "+1.2"
    assert cell(None, 3, points) == "-"


def test_a_table_is_put_below_its_comment_alone() -> None:
    page = "Text.\n\n<!-- table: one -->\n| old |\n| --- |\n\nText.\n\n<!-- table: two -->\n| kept |\n"
    assert put(page, "one", "| new |\n| --- |\n| 1 |") == page.replace("| old |\n| --- |", "| new |\n| --- |\n| 1 |")
    assert put(page, "three", "| new |") == page
