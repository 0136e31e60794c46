"""Arms over several seeds, on numbers worked by hand, and the command that compares finished runs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner

from pipeline.errors import BadInput
from pipeline.evaluation.evaluate import BOOTSTRAP_SEED, summary
from pipeline.evaluation.metrics import Evaluation
from pipeline.measures.intervals import Interval
from pipeline.report.compare import COMPARISON, compare, gain_over_seeds, printed, write_comparison
from pipeline.store import schema
from pipeline.store.tables import read_table, write_table
from stages.compare import main
from tests.fixtures.chain import with_changes, write_params

KNOBS = Evaluation(nsd_tolerance=1.0, bootstrap=2000)
CASES = ("a", "b", "c")
MINUS, DASH = "\N{MINUS SIGN}", "\N{EM DASH}"


def table_of(dice: Sequence[float], cases: Sequence[str] = CASES, groups: Sequence[str] = CASES) -> pl.DataFrame:
    """An evaluation of one class; what does not matter here is harmless."""
    rows = [
        {
            **{"case_id": case, "class": 1, "group": group, "dice": value, "dice_peak": value},
            **{"nsd": 1.0, "hd95": 1.0, "assd": 1.0, "distance_unit": "px"},
            **{"volume_error": 0.0, "absolute_volume_error": 0.0},
            **{"truth_empty": False, "prediction_empty": False},
        }
        for case, group, value in zip(cases, groups, dice, strict=True)
    ]
    return pl.DataFrame(rows, schema=schema.EVALUATION.columns)


def run_of(folder: Path, tables: Mapping[str, pl.DataFrame]) -> Path:
    for name, table in tables.items():
        write_table(table, schema.EVALUATION, folder / "evaluation" / f"{name}.parquet", "a test")
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Two seeds. Arm dpo gains .1, .1, .1, then -.2, 0, .2 over the base of its seed; sft nothing, then -.1 each."""
    first = {"base": (0.5, 0.6, 0.7), "dpo": (0.6, 0.7, 0.8), "sft": (0.5, 0.6, 0.7)}
    second = {"base": (0.4, 0.4, 0.4), "dpo": (0.2, 0.4, 0.6), "sft": (0.3, 0.3, 0.3)}
    return [
        run_of(tmp_path / f"seed_{number}", {name: table_of(dice) for name, dice in arms.items()})
        for number, arms in enumerate((first, second))
    ]


# ---- the gain over seeds ---------------------------------------------------------------------------------------


def test_gain_is_over_the_base_of_the_same_seed():
    """Gains .1, .1 in seed 1 and .3, .3 in seed 2: .2, with the t interval of two seeds, 12.706 (.02 / 2)^(1/2)."""
    bases = [table_of((0.5, 0.6), "ab", "ab"), table_of((0.1, 0.4), "ab", "ab")]
    students = [table_of((0.6, 0.7), "ab", "ab"), table_of((0.4, 0.7), "ab", "ab")]
    assert gain_over_seeds(students, bases, 2000, 0) == pytest.approx(Interval(0.2, 0.2 - 1.2706205, 0.2 + 1.2706205))


def test_one_seed_is_what_its_metrics_say():
    student, base = table_of((0.6, 0.5, 0.9)), table_of((0.5, 0.6, 0.7))
    found = gain_over_seeds([student], [base], KNOBS.bootstrap, BOOTSTRAP_SEED)
    assert found._asdict() == summary(student, base, KNOBS)["gain_over_base"]["dice"]


def test_identical_seeds_leave_the_spread_between_patients():
    """Gains .1, -.1 and .2: mean 1/15, variance .07 / 3, so 4.3027 (.07 / 9)^(1/2) to either side."""
    student, base = table_of((0.6, 0.5, 0.9)), table_of((0.5, 0.6, 0.7))
    half = 4.302653 * (0.07 / 9) ** 0.5
    found = gain_over_seeds([student] * 3, [base] * 3, 500, 0)
    assert found == pytest.approx(Interval(1 / 15, 1 / 15 - half, 1 / 15 + half))


def test_order_of_rows_does_not_matter():
    bases = [table_of((0.5, 0.6, 0.7)), table_of((0.4, 0.4, 0.4))]
    students = [table_of((0.6, 0.7, 0.8)), table_of((0.2, 0.4, 0.6))]
    turned = gain_over_seeds([table.reverse() for table in students], [table.reverse() for table in bases], 500, 0)
    assert turned == gain_over_seeds(students, bases, 500, 0)


@pytest.mark.parametrize(("students", "bases"), [(0, 0), (2, 1), (1, 0)])
def test_every_seed_needs_its_arm_and_its_base(students, bases):
    table = table_of((0.5, 0.5, 0.5))
    with pytest.raises(BadInput, match=rf"one of its base per seed, found {students} and {bases}"):
        gain_over_seeds([table] * students, [table] * bases, 100, 0)


@pytest.mark.parametrize(
    "other",
    [
        table_of((0.5, 0.5), CASES[:2], CASES[:2]),  # a case less
        table_of((0.5, 0.5, 0.5), ("a", "b", "d"), CASES),  # another case
        table_of((0.5, 0.5, 0.5), CASES, ("a", "a", "c")),  # another patient
    ],
)
def test_seeds_with_other_test_cases_are_refused(other):
    table = table_of((0.5, 0.5, 0.5))
    with pytest.raises(BadInput, match=r"in seed 1 \(3 rows\) and seed 2 .*e\.g\. \('\w', 1, '\w'\); keep `splits"):
        gain_over_seeds([table, other], [table, other], 100, 0)


# ---- whole runs ------------------------------------------------------------------------------------------------


def test_comparison_worked_by_hand(runs):
    """Base: .6 and .4. dpo: .7 and .4, gains .1 and 0, one case of the second seed worse; lowest cases .6 and .2.

    sft: gains 0 and -.1, so no seed above 0, and 0 and 3 cases worse. Its interval goes 12.706 (.005 / 2)^(1/2) to
    either side.
    """
    found = compare(runs, ["sft", "dpo"], KNOBS)
    assert found["arm"].to_list() == ["base", "sft", "dpo"]
    base, sft, dpo = found.rows(named=True)
    assert (base["seeds"], base["cases"], base["groups"]) == (2, 3, 3)
    assert (base["sustained"], base["worst_5_percent"]) == pytest.approx((0.5, 0.45))
    assert {base[name] for name in COMPARISON.optional} == {None}
    assert (dpo["sustained"], dpo["gain"], dpo["worst_5_percent"]) == pytest.approx((0.55, 0.05, 0.4))
    assert (dpo["seeds_gained"], dpo["cases_worse"]) == (1, 0.5)
    assert (sft["gain"], sft["gain_low"], sft["gain_high"]) == pytest.approx(
        (-0.05, -0.05 - 0.635310, -0.05 + 0.635310), abs=1e-6
    )
    assert (sft["seeds_gained"], sft["cases_worse"]) == (0, 1.5)


def test_printed_comparison_says_what_it_is_over(runs):
    lines = printed(compare(runs, ["sft"], KNOBS)).splitlines()
    assert re.split(r"  +", lines[1]) == ["base", "50.0", DASH, DASH, "45.0", DASH]
    sft = ["sft", "45.0", f"{MINUS}5.0 [{MINUS}68.5, +58.5]", "0 of 2", "40.0", "1.5"]
    assert re.split(r"  +", lines[2]) == sft
    assert lines[-1].endswith(
        "on 3 test cases of 3 groups; in brackets the 95 % interval over groups and seeds (2 seeds)."
    )


def test_a_single_run_says_that_it_is_one(runs):
    text = printed(compare(runs[:1], ["dpo"], KNOBS))
    assert "over groups alone: a single seed says nothing about the spread between seeds (one seed)." in text
    assert "1 of 1" in text


def test_runs_that_cannot_be_compared(runs, tmp_path):
    """Named twice, of other test cases, the same run in two folders, without one of the arms."""
    with pytest.raises(BadInput, match="each run once, found"):
        compare([*runs, tmp_path / "seed_1/../seed_1"], ["dpo"], KNOBS)
    three = table_of((0.5, 0.5, 0.5), ("a", "b", "d"), CASES)
    other = run_of(tmp_path / "other", {"base": three, "dpo": three})
    with pytest.raises(BadInput, match=rf"classes and groups in {runs[0]} \(3 rows\) and {other} \(3 rows\), found 2"):
        compare([*runs, other], ["dpo"], KNOBS)
    equal = {name: read_table(runs[0] / f"evaluation/{name}.parquet", schema.EVALUATION) for name in ("base", "dpo")}
    copied = run_of(tmp_path / "copied", equal)
    with pytest.raises(BadInput, match=rf"{runs[0]} and {copied} have equal results, so they are one run"):
        compare([*runs, copied], ["dpo"], KNOBS)
    with pytest.raises(BadInput, match=rf"{copied}/evaluation/sft.parquet: no such table"):
        compare([runs[1], copied], ["sft"], KNOBS)
    mixed = run_of(tmp_path / "mixed", {"base": table_of((0.5, 0.6, 0.8)), "dpo": three})
    with pytest.raises(BadInput, match=rf"{mixed}/evaluation/dpo.parquet: evaluation: expected the cases"):
        compare([runs[0], mixed], ["dpo"], KNOBS)


def test_runs_that_share_their_base_are_seeds_of_the_students(runs, tmp_path):
    """Equal bases alone are no mistake; an arm named twice, or `base` itself, is one row."""
    base = read_table(runs[0] / "evaluation/base.parquet", schema.EVALUATION)
    again = run_of(tmp_path / "again", {"base": base, "dpo": table_of((0.7, 0.8, 0.9))})
    found = compare([runs[0], again], ["dpo", "base", "dpo"], KNOBS)
    assert found["arm"].to_list() == ["base", "dpo"]
    assert found["gain"][1] == pytest.approx(0.15)


# ---- files and the command -------------------------------------------------------------------------------------


def test_the_table_is_written_as_parquet_or_csv(runs, tmp_path):
    table = compare(runs, ["dpo"], KNOBS)
    write_comparison(table, tmp_path / "out/seeds.parquet", KNOBS)
    assert read_table(tmp_path / "out/seeds.parquet", COMPARISON).equals(table)
    write_comparison(table, tmp_path / "new/seeds.csv", KNOBS)
    assert pl.read_csv(tmp_path / "new/seeds.csv", schema=COMPARISON.columns).equals(table)
    with pytest.raises(BadInput, match=r"seeds.txt: expected a file that ends in .parquet or .csv"):
        write_comparison(table, tmp_path / "seeds.txt", KNOBS)


@pytest.fixture
def params(tmp_path: Path) -> str:
    """Parameters with the students `dpo` and `sft`."""
    student = {"pairs": "none", "objective": {"kind": "supervised"}}
    write_params(tmp_path, with_changes(students={"dpo": student, "sft": student}))
    return str(tmp_path / "params.yaml")


def test_the_command_compares_all_students_of_the_parameters(runs, params, tmp_path):
    out = tmp_path / "seeds.csv"
    result = CliRunner().invoke(main, [*map(str, runs), "--params", params, "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert [line.split()[0] for line in result.output.splitlines()[:4]] == ["arm", "base", "dpo", "sft"]
    assert pl.read_csv(out)["seeds"].to_list() == [2, 2, 2]


def test_the_command_takes_single_arms_and_refuses_with_exit_code_2(runs, params):
    command = [*map(str, runs), "--params", params, "--arm", "sft"]
    result = CliRunner().invoke(main, command)
    assert "sft" in result.output
    assert "dpo" not in result.output
    result = CliRunner().invoke(main, [*command, str(runs[0])])
    assert result.exit_code == 2
    assert "error: comparison: expected each run once" in result.output
    assert CliRunner().invoke(main, []).exit_code == 2
