"""How far judges and pair sets can be trusted, on four bars whose Dice is a fraction of small numbers.

A bar of length L against a truth of length 8 has Dice 2 min(L, 8) / (L + 8):
L = 2: .4, L = 4: 2/3, L = 8: 1, L = 12: .8, L = 16: 2/3.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipeline import schema
from pipeline.audit import Audit, audit_judge, audit_pairs, calibrate_pairs, run_audit, warnings
from pipeline.calibration import Isotonic, p_correct
from pipeline.dataset import CaseStore, ProposalStore
from pipeline.mining import PairSet, mine_to
from pipeline.ranking import best_fixed, kendall, pair_error, spearman, top_value
from pipeline.store import read_table, write_table
from tests.builders import bars, case_store, panel_of, proposal_store

N = None
KNOBS = Audit(bootstrap=200)
Scores = Sequence[Sequence[float | None]]


def stores(
    folder: Path,
    lengths: Sequence[Sequence[int]],
    groups: Sequence[str] | None = None,
    split: str = "validation",
    label: np.ndarray | None = None,
) -> tuple[CaseStore, ProposalStore]:
    labels = [bars([8])[0] if label is None else label] * len(lengths)
    cases = case_store(folder / "cases", labels, [split] * len(lengths), groups=groups)
    return cases, proposal_store(folder / "proposals", [bars(case) for case in lengths])


def array(*values: float) -> np.ndarray:
    return np.array(values, np.float64)


def approx_row(row: dict[str, Any], **expected: float) -> None:
    assert {name: row[name] for name in expected} == pytest.approx(expected)


# ---- one case --------------------------------------------------------------------------------------------------


def test_spearman():
    """Equal order 1, reversed -1. Ranks (1, 2.5, 2.5) and (1, 2, 3): covariance 1.5, variances 1.5 and 2:
    1.5 / sqrt(3) = .866. A constant has no rank correlation."""
    assert spearman(array(0.1, 0.5, 0.9), array(0.2, 0.3, 0.4)) == pytest.approx(1)
    assert spearman(array(0.9, 0.5, 0.1), array(0.2, 0.3, 0.4)) == pytest.approx(-1)
    assert spearman(array(0.5, 0.9, 0.9), array(0.4, 0.8, 1.0)) == pytest.approx(1.5 / 3**0.5)
    assert spearman(array(0.5, 0.5), array(0.4, 0.8)) is None
    assert spearman(array(0.4, 0.8), array(0.5, 0.5)) is None
    assert spearman(array(0.4), array(0.5)) is None


def test_kendall():
    """Pairs of (1, 2, 2) and (1, 2, 3): two agree, one is tied in the first alone: 2 / sqrt(2 x 3) = .816."""
    assert kendall(array(0.1, 0.5, 0.9), array(0.2, 0.3, 0.4)) == pytest.approx(1)
    assert kendall(array(0.9, 0.5, 0.1), array(0.2, 0.3, 0.4)) == pytest.approx(-1)
    assert kendall(array(0.5, 0.9, 0.9), array(0.4, 0.8, 1.0)) == pytest.approx(2 / 6**0.5)
    assert kendall(array(0.5, 0.5), array(0.4, 0.8)) is None
    assert kendall(array(0.4, 0.8), array(0.5, 0.5)) is None


def test_pair_error():
    """Three pairs, one of them tied by the score: 1/2 of 3. Pairs of equal truth are not asked for."""
    assert pair_error(array(0.5, 0.9, 0.9), array(0.4, 0.8, 1.0)) == pytest.approx(0.5 / 3)
    assert pair_error(array(0.1, 0.2, 0.3), array(0.3, 0.2, 0.1)) == 1
    assert pair_error(array(0.1, 0.2, 0.3), array(0.5, 0.5, 0.9)) == 0
    assert pair_error(array(0.1, 0.2), array(0.5, 0.5)) is None


def test_top_value():
    """The mean of all that share the highest score."""
    assert top_value(array(0.1, 0.9, 0.5), array(0.7, 0.6, 0.8)) == 0.6
    assert top_value(array(0.9, 0.9, 0.5), array(0.7, 0.6, 0.8)) == pytest.approx(0.65)


def test_the_best_fixed_slot_is_chosen_on_the_other_patients():
    """Patient a (two cases) is best with slot 0, patient b with slot 1: each gets the other's choice.

    Over all three cases slot 0 has the mean 2/3, slot 1 has 1/3.
    """
    dice = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    chosen, slot = best_fixed(dice, ["a", "a", "b"], 2, seed=0)
    assert chosen.tolist() == [0, 0, 0]
    assert slot == 0


def test_a_single_patient_chooses_for_itself():
    chosen, slot = best_fixed(np.array([[1.0, 0.0], [0.4, 0.6]]), ["a", "a"], 5, seed=0)
    assert (chosen.tolist(), slot) == ([1.0, 0.4], 0)


# ---- a judge ---------------------------------------------------------------------------------------------------

JUDGED = ([4, 8, 2], [8, 12, 2], [2, 12, 8], [12, 12, 2], [12, 8, 2])
"""c3's slot 1 is the mask of its slot 0; c4 is scored once and so says nothing."""
SCORES: Scores = ([0.5, 0.9, 0.1], [0.1, 0.5, 0.9], [0.5, 0.9, 0.9], [0.5, 0.9, 0.1], [0.5, N, N])


def test_a_judge_by_hand(tmp_path):
    """True Dice: c0 (2/3, 1, .4), c1 (1, .8, .4), c2 (.4, .8, 1), c3 (.8, -, .4) without its duplicate.

    spearman: 1, -1, .866, 1. kendall: 1, -1, .816, 1. pair error: 0, 1, .5/3, 0.
    lift: 1 - 2/3, .4 - 1, (.8 + 1)/2 - .4, 0: sum .2333. The top beats the base in c0 and c2.
    headroom: 1/3, 0, .6, 0; lift over it .2333 / .9333.
    Best fixed slot on the other cases is always 1: 1/3, -.2, .4, 0 over the base.
    """
    cases, proposals = stores(tmp_path, JUDGED)
    row = audit_judge("j", panel_of(cases, proposals, {"j": SCORES}), KNOBS, seed=0)
    assert (row["judge"], row["cases"], row["fixed_sampler"]) == ("j", 4, "s 1")
    approx_row(
        row,
        abstained=2 / 15,
        spearman=(1 + 1.5 / 3**0.5) / 4,
        kendall=(1 + 2 / 6**0.5) / 4,
        pair_error=(1 + 0.5 / 3) / 4,
        lift_over_headroom=(1 / 3 - 0.1) / (1 / 3 + 0.6),
        lift=(1 / 3 - 0.6 + 0.5) / 4,
        top_beats_base=0.5,
        headroom=(1 / 3 + 0.6) / 4,
        lift_over_fixed=(1 / 3 - 0.6 + 0.5 - (1 / 3 - 0.2 + 0.4)) / 4,
    )
    for measure in (name.removesuffix("_low") for name in row if name.endswith("_low")):
        assert row[f"{measure}_low"] <= row[measure] <= row[f"{measure}_high"]


def test_the_panels_order_plays_no_part(tmp_path):
    cases, proposals = stores(tmp_path, JUDGED)
    panel = panel_of(cases, proposals, {"j": SCORES})
    assert audit_judge("j", panel[::-1], KNOBS, 0) == audit_judge("j", panel, KNOBS, 0)


def test_a_single_patient_has_no_interval(tmp_path):
    """All cases are of one patient: means without ends."""
    cases, proposals = stores(tmp_path, JUDGED[:2], groups=["a", "a"])
    row = audit_judge("j", panel_of(cases, proposals, {"j": SCORES[:2]}), KNOBS, 0)
    assert row["lift"] == pytest.approx((1 / 3 - 0.6) / 2)
    assert (row["lift_low"], row["lift_high"]) == (None, None)


def test_a_judge_that_always_abstains_is_null(tmp_path):
    cases, proposals = stores(tmp_path, JUDGED[:2])
    row = audit_judge("j", panel_of(cases, proposals, {"j": [[N] * 3] * 2}), KNOBS, 0)
    assert (row["cases"], row["abstained"]) == (0, 1.0)
    rest = {name: value for name, value in row.items() if name not in ("judge", "cases", "abstained")}
    assert set(rest.values()) == {None}
    assert {"judge", "cases", "abstained", *rest} == set(schema.AUDIT_JUDGES.columns)


# ---- a pair set ------------------------------------------------------------------------------------------------

PAIRED = ([4, 8, 2], [8, 12, 2], [2, 12, 8], [12, 16, 4])
PAIR_SCORES: Scores = ([0.5, 0.9, 0.1], [0.5, 0.9, 0.1], [0.9, 0.5, 0.1], [0.5, 0.9, 0.1])
TOP_BOTTOM = PairSet.model_validate({"judge": "j", "strategy": {"kind": "top_bottom"}})


def test_a_pair_set_by_hand(tmp_path):
    """Top over bottom, truth of length 8.

    | case | chosen | rejected | Dice | D | voxels | chosen is wrong on | base (length) differs on |
    | c0 | 8 | 2 | 1 > .4 | 2-7 | 6 | 0 | (4) 4-7: 4/6 |
    | c1 | 12 | 2 | .8 > .4 | 2-11 | 10 | 8-11: 4/10 | (8) 8-11: 4/10 |
    | c2 | 2 | 8 | .4 < 1 | 2-7 | 6 | 2-7: 6/6 | (2) 0 |
    | c3 | 16 | 4 | 2/3 = 2/3 | 4-15 | 12 | 8-15: 8/12 | (12) 12-15: 4/12 |

    Noise (0 + 0 + 1 + 1/2) / 4 = .375; by |D| (6 + 12/2) / 34 = .353. Lift 1/3, -.2, 0, 2/3 - .8: together 0.
    Volumes 2 (8 - 2) / 10 = 1.2, 2 (12 - 2) / 14 = 10/7, -1.2 and 2 (16 - 4) / 20 = 1.2.
    """
    cases, proposals = stores(tmp_path, PAIRED)
    panel = panel_of(cases, proposals, {"j": PAIR_SCORES}).lazy()
    row = audit_pairs("p", TOP_BOTTOM, panel, cases, proposals, KNOBS, 0)
    assert (row["pairs"], row["judge"], row["strategy"], row["mined"]) == ("p", "j", "top_bottom", 4)
    approx_row(
        row,
        noise_rate=1.5 / 4,
        weighted_noise=12 / 34,
        noise_difference=12 / 34 - 1.5 / 4,
        volume_bias=(1.2 + 10 / 7) / 4,
        voxel_noise=(4 / 10 + 1 + 8 / 12) / 4,
        active_share=(4 / 6 + 4 / 10 + 4 / 12) / 4,
        lift=0.0,
    )
    assert row["verdict"] == "undecided", "four cases say nothing"
    for measure in (name.removesuffix("_low") for name in row if name.endswith("_low")):
        assert row[f"{measure}_low"] <= row[measure] <= row[f"{measure}_high"]
    assert set(row) == set(schema.AUDIT_PAIRS.columns)


def sized(folder: Path, wrong: int, right: int) -> dict[str, Any]:
    """Twelve cases; every third prefers length 8 + `wrong` to 8 (|D| = `wrong`), the others 8 to 8 - `right`."""
    lengths = [[8, 8 + wrong] if case % 3 == 0 else [8 - right, 8] for case in range(12)]
    cases, proposals = stores(folder, lengths)
    panel = panel_of(cases, proposals, {"j": [[0.1, 0.9]] * 12}).lazy()
    return audit_pairs("p", TOP_BOTTOM, panel, cases, proposals, KNOBS, 0)


def test_the_verdict_follows_where_the_noise_lies(tmp_path):
    """A third of the pairs is wrong. With |D| 8 where wrong and 2 elsewhere the weighted share is 32 / 48, so DPO hears
    more noise; the other way round 8 / 72, so it hears less; alike, no difference at all."""
    large, small, alike = (sized(tmp_path / f"{w}{r}", w, r) for w, r in ((8, 2), (2, 8), (4, 4)))
    assert (large["noise_difference"], large["verdict"]) == (pytest.approx(2 / 3 - 1 / 3), "RN-DPO")
    assert (small["noise_difference"], small["verdict"]) == (pytest.approx(1 / 9 - 1 / 3), "DPO")
    assert (alike["noise_difference"], alike["verdict"]) == (pytest.approx(0), "undecided")


def test_unknown_voxels_of_the_truth_are_no_noise(tmp_path):
    """c1 of the table above with pixels 8 and 9 unknown: chosen is wrong on 2 of the 8 known pixels of D."""
    label = bars([8])[0]
    label[0, 8:10] = schema.UNKNOWN
    cases, proposals = stores(tmp_path, [PAIRED[1]], label=label)
    panel = panel_of(cases, proposals, {"j": [PAIR_SCORES[1]]}).lazy()
    row = audit_pairs("p", TOP_BOTTOM, panel, cases, proposals, KNOBS, 0)
    approx_row(row, voxel_noise=2 / 8)


def test_pairs_of_one_patient_have_no_interval(tmp_path):
    cases, proposals = stores(tmp_path, PAIRED, groups=["a"] * 4)
    panel = panel_of(cases, proposals, {"j": PAIR_SCORES}).lazy()
    row = audit_pairs("p", TOP_BOTTOM, panel, cases, proposals, KNOBS, 0)
    assert (row["noise_rate"], row["noise_rate_low"], row["noise_rate_high"]) == (0.375, None, None)
    assert (row["weighted_noise"], row["weighted_noise_low"]) == (pytest.approx(12 / 34), None)


def test_nothing_mined_is_null(tmp_path):
    cases, proposals = stores(tmp_path, PAIRED)
    panel = panel_of(cases, proposals, {"j": [[N] * 3] * 4}).lazy()
    row = audit_pairs("p", TOP_BOTTOM, panel, cases, proposals, KNOBS, 0)
    rest = {name: value for name, value in row.items() if name not in ("pairs", "judge", "strategy", "mined")}
    assert (row["mined"], set(rest.values())) == (0, {None})


# ---- calibration -----------------------------------------------------------------------------------------------


def test_a_pair_set_is_calibrated_without_its_filters(tmp_path):
    """All four pairs have the margin .8; right are 1, 1, 0 and 1/2 of them: (2.5 + 1) / (4 + 2) = .5833."""
    cases, proposals = stores(tmp_path, PAIRED)
    panel = panel_of(cases, proposals, {"j": PAIR_SCORES}).lazy()
    filters = {"min_margin": 0.9, "min_p_correct": 0.9, "keep_fraction": 0.3}
    pairs = PairSet.model_validate({"judge": "j", "strategy": {"kind": "top_bottom", **filters}})
    knobs = Audit(bootstrap=10, calibration=Isotonic(min_cases=4))
    found = calibrate_pairs(pairs, panel, proposals, knobs, 0)
    assert found.curve is not None
    assert found.curve(np.array([0.8])) == pytest.approx([3.5 / 6])
    assert (found.summary["cases"], found.summary["groups"]) == (4, 4)


def test_a_judge_that_abstains_gives_no_curve(tmp_path):
    """Nor does a threshold on p then stop the audit: there is no pair to drop."""
    cases, proposals = stores(tmp_path, PAIRED)
    panel = panel_of(cases, proposals, {"j": [[N] * 3] * 4}).lazy()
    pairs = PairSet.model_validate({"judge": "j", "strategy": {"kind": "top_bottom", "min_p_correct": 0.6}})
    assert calibrate_pairs(pairs, panel, proposals, KNOBS, 0).curve is None
    row = audit_pairs("p", pairs, panel, cases, proposals, KNOBS, 0)
    assert (row["mined"], row["verdict"]) == (0, None)


# ---- warnings --------------------------------------------------------------------------------------------------


def frames(judge: dict[str, Any], pairs: dict[str, Any]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """One judge `j` and one pair set `p`, null but for what is given."""
    rows = (
        ({"judge": "j", "cases": 4, "abstained": 0.0}, judge, schema.AUDIT_JUDGES),
        ({"pairs": "p", "judge": "j", "strategy": "top_base", "mined": 9}, pairs, schema.AUDIT_PAIRS),
    )
    one, two = (pl.DataFrame([dict.fromkeys(t.columns) | row | given], schema=t.columns) for row, given, t in rows)
    return one, two


GOOD = {"lift": 0.02, "lift_low": 0.01, "lift_high": 0.03}
CLEAN = {"noise_rate": 0.2, "noise_rate_low": 0.1, "noise_rate_high": 0.3}


def test_a_good_judge_and_clean_pairs_have_no_warning():
    assert warnings(*frames(GOOD, CLEAN)) == []


def test_a_judge_whose_lift_may_be_0():
    found = warnings(*frames({"lift": 0.0123, "lift_low": -0.004, "lift_high": 0.03}, CLEAN))
    assert found == [
        "pair set 'p': the top pick of judge 'j' is not shown to beat the base (lift +1.2 [-0.4, +3.0] Dice points)"
    ]
    assert warnings(*frames({"lift": 0.01}, CLEAN)) == [
        "pair set 'p': the top pick of judge 'j' is not shown to beat the base (lift +1.0 Dice points)"
    ]
    assert "(lift unknown Dice points)" in warnings(*frames({}, CLEAN))[0]


@pytest.mark.parametrize("high", [0.5, None])
def test_pairs_that_may_be_coin_flips(high):
    found = warnings(*frames(GOOD, {"noise_rate": 0.29, "noise_rate_low": 0.1, "noise_rate_high": high}))
    assert found == [
        "pair set 'p': 29 % of its validation pairs are ordered wrongly, not clearly below one half; "
        "do not train on it without an anchor"
    ]


def test_an_empty_pair_set_is_only_called_empty():
    assert warnings(*frames({}, {"mined": 0})) == [
        "pair set 'p': nothing could be mined on validation, so nothing is known about it"
    ]


# ---- files -----------------------------------------------------------------------------------------------------


def audited(folder: Path, cases: CaseStore, proposals: ProposalStore, sets: dict[str, PairSet]) -> dict[str, Any]:
    """Audit the panel of judge `j` and return the summary."""
    panel = panel_of(cases, proposals, {"j": PAIR_SCORES})
    write_table(panel, schema.panel(["j"]), folder / "panel.parquet", "test")
    run_audit(folder / "panel.parquet", ["j"], sets, cases, proposals, KNOBS, 0, folder / "audit")
    return json.loads((folder / "audit/summary.json").read_text())


TABLES = (
    ("judges", schema.AUDIT_JUDGES),
    ("pairs", schema.AUDIT_PAIRS),
    ("calibration", schema.CALIBRATION),
    ("reliability", schema.RELIABILITY),
)


def test_the_audit_writes_its_tables(tmp_path):
    """Pair sets of strategy `none` are not tried. Four cases of twenty leave a fifth of .5833 - .5: p = .5167."""
    cases, proposals = stores(tmp_path, PAIRED)
    none = PairSet.model_validate({"judge": "none", "strategy": {"kind": "none"}})
    summary = audited(tmp_path, cases, proposals, {"none": none, "p": TOP_BOTTOM})
    tables = {name: read_table(tmp_path / f"audit/{name}.parquet", table) for name, table in TABLES}
    assert tables["judges"]["judge"].to_list() == ["j"]
    assert {name: set(tables[name]["pairs"]) for name in ("pairs", "calibration", "reliability")} == {
        "pairs": {"p"},
        "calibration": {"p"},
        "reliability": {"p"},
    }
    assert p_correct(tables["calibration"], "p", array(0.8)) == pytest.approx([0.5 + (3.5 / 6 - 0.5) / 5])
    assert tables["reliability"]["count"].sum() == 4
    assert summary["validation_cases"] == 4
    assert summary["calibration"]["p"]["groups"] == 4
    assert list(summary["calibration"]) == ["p"]
    lift, noise, few = summary["warnings"]
    assert "not shown to beat the base" in lift
    assert "38 % of its validation pairs are ordered wrongly" in noise
    assert few.startswith("pair set 'p': 4 validation cases (those of one group count once) where 20 are asked for")


def test_the_calibration_depends_on_its_own_knobs_alone(tmp_path):
    """Mining starts again where its bytes change: not for another number of resamples."""
    cases, proposals = stores(tmp_path, PAIRED)
    audited(tmp_path, cases, proposals, {"p": TOP_BOTTOM})
    file = tmp_path / "audit/calibration.parquet"
    before = file.read_bytes()
    knobs = Audit(bootstrap=KNOBS.bootstrap + 1)
    sets = {"p": TOP_BOTTOM}
    run_audit(tmp_path / "panel.parquet", ["j"], sets, cases, proposals, knobs, 0, tmp_path / "audit")
    assert file.read_bytes() == before


def test_without_labelled_validation_cases_nothing_is_known(tmp_path):
    """Empty tables and one warning; mining then works, and p_correct is null."""
    cases, proposals = stores(tmp_path, PAIRED, split="pool")
    summary = audited(tmp_path, cases, proposals, {"p": TOP_BOTTOM})
    assert [len(read_table(tmp_path / f"audit/{name}.parquet", table)) for name, table in TABLES] == [0, 0, 0, 0]
    assert summary == {
        "validation_cases": 0,
        "calibration": {},
        "warnings": [
            "nothing is known about the judges and the pair sets: no validation case with a label has proposals; "
            "label some cases and add 'validation' to propose.splits"
        ],
    }
    out = tmp_path / "pairs.parquet"
    mine_to(tmp_path / "panel.parquet", ["j"], proposals, TOP_BOTTOM, 0, out, "p", tmp_path / "audit")
    assert read_table(out, schema.PAIRS)["p_correct"].to_list() == [None] * 4


def test_validation_cases_without_a_truth_are_left_out(tmp_path):
    """The truth of c2 and c3 is unknown: the audit is of c0 and c1, which are right."""
    cases, proposals = stores(tmp_path, PAIRED)
    truth = pl.when(pl.col("case") < 2).then("true_dice")
    panel = panel_of(cases, proposals, {"j": PAIR_SCORES}).with_columns(truth.alias("true_dice"))
    write_table(panel, schema.panel(["j"]), tmp_path / "panel.parquet", "test")
    run_audit(tmp_path / "panel.parquet", ["j"], {"p": TOP_BOTTOM}, cases, proposals, KNOBS, 0, tmp_path / "audit")
    summary = json.loads((tmp_path / "audit/summary.json").read_text())
    assert (summary["validation_cases"], summary["calibration"]["p"]["cases"]) == (2, 2)
    row = read_table(tmp_path / "audit/pairs.parquet", schema.AUDIT_PAIRS).row(0, named=True)
    assert (row["mined"], row["noise_rate"]) == (2, 0)
