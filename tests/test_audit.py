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
from pipeline.audit import (
    Audit,
    audit_judge,
    audit_pairs,
    best_fixed,
    pair_error,
    run_audit,
    spearman,
    top_value,
    warnings,
)
from pipeline.dataset import CaseStore, ProposalStore
from pipeline.errors import BadInput
from pipeline.mining import PairSet
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

    spearman: 1, -1, .866, 1. pair error: 0, 1, .5/3, 0.
    lift: 1 - 2/3, .4 - 1, (.8 + 1)/2 - .4, 0: sum .2333. The top beats the base in c0 and c2.
    headroom: 1/3, 0, .6, 0. Best fixed slot on the other cases is always 1: 1/3, -.2, .4, 0 over the base.
    """
    cases, proposals = stores(tmp_path, JUDGED)
    row = audit_judge("j", panel_of(cases, proposals, {"j": SCORES}), KNOBS, seed=0)
    assert (row["judge"], row["cases"], row["fixed_sampler"]) == ("j", 4, "s 1")
    approx_row(
        row,
        abstained=2 / 15,
        spearman=(1 + 1.5 / 3**0.5) / 4,
        pair_error=(1 + 0.5 / 3) / 4,
        lift=(1 / 3 - 0.6 + 0.5) / 4,
        top_beats_base=0.5,
        headroom=(1 / 3 + 0.6) / 4,
        lift_over_fixed=(1 / 3 - 0.6 + 0.5 - (1 / 3 - 0.2 + 0.4)) / 4,
    )
    for measure in ("spearman", "pair_error", "lift", "top_beats_base", "headroom", "lift_over_fixed"):
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

    Noise (0 + 0 + 1 + 1/2) / 4; by |D| (6 + 12/2) / 34. Lift 1/3, -.2, 0, 2/3 - .8: together 0.
    """
    cases, proposals = stores(tmp_path, PAIRED)
    panel = panel_of(cases, proposals, {"j": PAIR_SCORES}).lazy()
    row = audit_pairs("p", TOP_BOTTOM, panel, cases, proposals, KNOBS, 0)
    assert (row["pairs"], row["judge"], row["strategy"], row["mined"]) == ("p", "j", "top_bottom", 4)
    approx_row(
        row,
        noise_rate=1.5 / 4,
        weighted_noise=12 / 34,
        voxel_noise=(4 / 10 + 1 + 8 / 12) / 4,
        active_share=(4 / 6 + 4 / 10 + 4 / 12) / 4,
        lift=0.0,
    )
    for measure in ("noise_rate", "weighted_noise", "voxel_noise", "active_share", "lift"):
        assert row[f"{measure}_low"] <= row[measure] <= row[f"{measure}_high"]
    assert set(row) == set(schema.AUDIT_PAIRS.columns)


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


def test_the_audit_writes_its_tables(tmp_path):
    """Pair sets of strategy `none` are not tried."""
    cases, proposals = stores(tmp_path, PAIRED)
    write_table(panel_of(cases, proposals, {"j": PAIR_SCORES}), schema.panel(["j"]), tmp_path / "panel.parquet", "test")
    none = PairSet.model_validate({"judge": "none", "strategy": {"kind": "none"}})
    sets = {"none": none, "p": TOP_BOTTOM}
    run_audit(tmp_path / "panel.parquet", ["j"], sets, cases, proposals, KNOBS, 0, tmp_path / "audit")
    assert read_table(tmp_path / "audit/judges.parquet", schema.AUDIT_JUDGES)["judge"].to_list() == ["j"]
    assert read_table(tmp_path / "audit/pairs.parquet", schema.AUDIT_PAIRS)["pairs"].to_list() == ["p"]
    summary = json.loads((tmp_path / "audit/summary.json").read_text())
    assert summary["validation_cases"] == 4
    assert len(summary["warnings"]) == 2, "lift 0 and a noise rate of .375 on four patients"


def test_an_audit_needs_validation_cases(tmp_path):
    cases, proposals = stores(tmp_path, PAIRED, split="pool")
    write_table(panel_of(cases, proposals, {"j": PAIR_SCORES}), schema.panel(["j"]), tmp_path / "panel.parquet", "test")
    with pytest.raises(BadInput, match=r"panel.parquet: no validation proposals; add 'validation' to propose.splits"):
        run_audit(tmp_path / "panel.parquet", ["j"], {}, cases, proposals, KNOBS, 0, tmp_path / "audit")
    assert not (tmp_path / "audit").exists()
