"""How far the pairs of a judge and a strategy can be believed, on bars whose Dice is worked by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipeline.audit.pair_sets import audit_pairs, calibrate_pairs, try_pairs, voxel_shares
from pipeline.pairs.calibration import Curve, HeldOutCurves, Isotonic
from pipeline.pairs.mine import PairSet
from pipeline.store import schema
from pipeline.store.cases import CaseStore
from pipeline.store.proposals import ProposalStore
from tests.fixtures.auditing import PAIR_SCORES, PAIRED, TOP_BOTTOM, approx_row, hold_their_means, stores
from tests.fixtures.builders import bars, case_store, panel_of, proposal_store, rows_of

N = None


def audited(panel: pl.DataFrame, cases: CaseStore, proposals: ProposalStore, **filters: Any) -> dict[str, Any]:
    """Judge `j` by `top_bottom` with these filters."""
    pairs = PairSet.model_validate({"judge": "j", "strategy": {"kind": "top_bottom", **filters}})
    table = try_pairs(pairs, panel.lazy(), proposals, 0)
    return audit_pairs(table, voxel_shares([table], cases, proposals), 200, 0)


def test_a_pair_set_by_hand(tmp_path):
    """Top over bottom, truth of length 8.

    | case | chosen | rejected | Dice | D | voxels | chosen is wrong on | base (length) differs on |
    | c0 | 8 | 2 | 1 > .4 | 2-7 | 6 | 0 | (4) 4-7: 4/6 |
    | c1 | 12 | 2 | .8 > .4 | 2-11 | 10 | 8-11: 4/10 | (8) 8-11: 4/10 |
    | c2 | 2 | 8 | .4 < 1 | 2-7 | 6 | 2-7: 6/6 | (2) 0 |
    | c3 | 16 | 4 | 2/3 = 2/3 | 4-15 | 12 | 8-15: 8/12 | (12) 12-15: 4/12 |

    Noise (0 + 0 + 1 + 1/2) / 4 = .375; by |D| (6 + 12/2) / 34 = .353. Lift 1/3, -.2, 0, 2/3 - .8: together 0.
    Voxel noise by |D|: 18 of 34. With two classes the rejected mask is right where the chosen one is wrong.
    Volumes 2 (8 - 2) / 10 = 1.2, 2 (12 - 2) / 14 = 10/7, -1.2 and 2 (16 - 4) / 20 = 1.2.
    """
    cases, proposals = stores(tmp_path, PAIRED)
    row = audited(panel_of(cases, proposals, {"j": PAIR_SCORES}), cases, proposals)
    approx_row(
        row,
        mined=4,
        noise_rate=1.5 / 4,
        weighted_noise=12 / 34,
        noise_difference=12 / 34 - 1.5 / 4,
        volume_bias=(1.2 + 10 / 7) / 4,
        voxel_noise=(4 / 10 + 1 + 8 / 12) / 4,
        weighted_voxel_noise=18 / 34,
        rejected_right=(4 / 10 + 1 + 8 / 12) / 4,
        neither_right=0,
        active_share=(4 / 6 + 4 / 10 + 4 / 12) / 4,
        lift=0.0,
    )
    assert row["verdict"] == "undecided", "four cases say nothing"
    hold_their_means(row)
    assert {"pairs", "judge", "strategy", *row} == set(schema.AUDIT_PAIRS.columns)
    assert {"judge", "strategy", *row} == set(schema.AUDIT_STRATEGIES.columns)


def test_three_classes_by_hand(tmp_path):
    """Truth 1122.

    c0: 1222 over 0211, D is voxels 0, 2 and 3: chosen is right on all. c1 is c0 turned around: wrong on all, rejected
    right. c2: 0122 over 2022, D is voxels 0, where neither is right, and 1, where chosen is.
    """
    labels = [rows_of(["1122"])] * 3
    first, second = (np.stack([rows_of([mask]) for mask in pair]) for pair in (("1222", "0211"), ("0122", "2022")))
    cases = case_store(tmp_path / "cases", labels, ["validation"] * 3, classes=3)
    proposals = proposal_store(tmp_path / "proposals", [first, first, second], classes=3)
    panel = panel_of(cases, proposals, {"j": [[0.9, 0.1], [0.1, 0.9], [0.9, 0.1]]})
    row = audited(panel, cases, proposals)
    approx_row(row, voxel_noise=(0 + 1 + 0.5) / 3, rejected_right=(0 + 1 + 0) / 3, neither_right=(0 + 0 + 0.5) / 3)
    approx_row(row, weighted_voxel_noise=(0 + 3 + 1) / (3 + 3 + 2), noise_rate=1 / 3)


def sized(folder: Path, wrong: int, right: int, groups: int = 12) -> dict[str, Any]:
    """Twelve cases; every third prefers length 8 + `wrong` to 8 (|D| = `wrong`), the others 8 to 8 - `right`."""
    lengths = [[8, 8 + wrong] if case % 3 == 0 else [8 - right, 8] for case in range(12)]
    cases, proposals = stores(folder, lengths, groups=[f"g{case % groups}" for case in range(12)])
    return audited(panel_of(cases, proposals, {"j": [[0.1, 0.9]] * 12}), cases, proposals)


def test_the_verdict_follows_where_the_noise_lies(tmp_path):
    """A third of the pairs is wrong. With |D| 8 where wrong and 2 elsewhere the weighted share is 32 / 48, so DPO hears
    more noise; the other way round 8 / 72, so it hears less; alike, no difference at all."""
    large, small, alike = (sized(tmp_path / f"{w}{r}", w, r) for w, r in ((8, 2), (2, 8), (4, 4)))
    assert (large["noise_difference"], large["verdict"]) == (pytest.approx(2 / 3 - 1 / 3), "RN-DPO")
    assert (small["noise_difference"], small["verdict"]) == (pytest.approx(1 / 9 - 1 / 3), "DPO")
    assert (alike["noise_difference"], alike["verdict"]) == (pytest.approx(0), "undecided")


def test_four_patients_decide_nothing(tmp_path):
    """The very same pairs, of three patients with one wrong pair in three each, and of four."""
    assert sized(tmp_path / "four", 8, 2, groups=4)["verdict"] == "undecided"


# ---- widest margins --------------------------------------------------------------------------------------------

MARGINS = (0.8, 0.4, 0.3, 0.2)
"""Of four cases whose lift is 1/3, 1/3, -.2 and 0."""


def lifts(folder: Path, margins: tuple[float, ...], **filters: Any) -> list[float | None]:
    """Top pick 8 over base 4, twice, 12 over base 8, and the base 8 itself; the worst is always 2."""
    cases, proposals = stores(folder, [[4, 8, 2], [4, 8, 2], [8, 12, 2], [8, 4, 2]])
    tops = (1, 1, 1, 0)
    scores = [[0.1, 0.1, 0.0] for _ in margins]
    for row, (top, margin) in enumerate(zip(tops, margins, strict=True)):
        scores[row][top] = margin
    found = audited(panel_of(cases, proposals, {"j": scores}), cases, proposals, **filters)
    return [found[name] for name in ("lift", "lift_top_quarter", "lift_rest")]


def test_lift_in_the_quarter_with_the_widest_margins(tmp_path):
    """One case of four, and three."""
    assert lifts(tmp_path, MARGINS) == pytest.approx([(2 / 3 - 0.2) / 4, 1 / 3, (1 / 3 - 0.2) / 3])


def test_a_tie_at_the_cut_leaves_no_quarter(tmp_path):
    """As `keep_fraction` does, which drops the cases that share the margin at the cut."""
    assert lifts(tmp_path, (0.8, 0.8, 0.3, 0.2)) == [pytest.approx((2 / 3 - 0.2) / 4), None, pytest.approx(0.7 / 6)]


def test_a_set_that_keeps_the_quarter_has_no_rest(tmp_path):
    assert lifts(tmp_path, MARGINS, keep_fraction=0.25) == [pytest.approx(1 / 3), pytest.approx(1 / 3), None]


# ---- degenerate ------------------------------------------------------------------------------------------------


def test_unknown_voxels_of_the_truth_are_no_noise(tmp_path):
    """c1 of the table above with pixels 8 and 9 unknown: chosen is wrong on 2 of the 8 known pixels of D."""
    label = bars([8])[0]
    label[0, 8:10] = schema.UNKNOWN
    cases, proposals = stores(tmp_path, [PAIRED[1]], label=label)
    row = audited(panel_of(cases, proposals, {"j": [PAIR_SCORES[1]]}), cases, proposals)
    approx_row(row, voxel_noise=2 / 8, weighted_voxel_noise=2 / 8, rejected_right=2 / 8, active_share=4 / 10)


def test_a_disagreement_in_unknown_truth_has_no_voxel_noise(tmp_path):
    """Pixels 2 to 15 are unknown, D is 2 to 11: nothing to count, and no division by it."""
    label = bars([8])[0]
    label[0, 2:] = schema.UNKNOWN
    cases, proposals = stores(tmp_path, [PAIRED[1]], label=label)
    row = audited(panel_of(cases, proposals, {"j": [PAIR_SCORES[1]]}), cases, proposals)
    for measure in ("voxel_noise", "weighted_voxel_noise", "rejected_right", "neither_right"):
        assert row[measure] is None
    assert row["mined"] == 1


def test_pairs_of_one_patient_have_no_interval(tmp_path):
    cases, proposals = stores(tmp_path, PAIRED, groups=["a"] * 4)
    row = audited(panel_of(cases, proposals, {"j": PAIR_SCORES}), cases, proposals)
    assert (row["noise_rate"], row["noise_rate_low"], row["noise_rate_high"]) == (0.375, None, None)
    assert (row["weighted_noise"], row["weighted_noise_low"]) == (pytest.approx(12 / 34), None)


def test_nothing_mined_is_null(tmp_path):
    cases, proposals = stores(tmp_path, PAIRED)
    row = audited(panel_of(cases, proposals, {"j": [[N] * 3] * 4}), cases, proposals)
    assert row.pop("mined") == 0
    assert set(row.values()) == {None}


def test_pairs_that_several_strategies_mine_are_measured_once(tmp_path):
    cases, proposals = stores(tmp_path, PAIRED)
    panel = panel_of(cases, proposals, {"j": PAIR_SCORES}).lazy()
    base = PairSet.model_validate({"judge": "j", "strategy": {"kind": "top_base"}})
    tables = [try_pairs(pairs, panel, proposals, 0) for pairs in (TOP_BOTTOM, TOP_BOTTOM, base)]
    found = voxel_shares(tables, cases, proposals)
    assert found.select("case_id", "chosen", "rejected").rows() == [
        *(("c0", 1, 0), ("c0", 1, 2), ("c1", 1, 0), ("c1", 1, 2), ("c2", 0, 2), ("c3", 1, 0), ("c3", 1, 2))
    ]
    assert found.row(2) == ("c1", 1, 0, 4, 4, 4, 4), "12 over 8 of a truth of 8: all of D is wrong, and active"


# ---- calibration -----------------------------------------------------------------------------------------------


def test_a_pair_set_is_calibrated_without_its_filters(tmp_path):
    """All four pairs have the margin .8; right are 1, 1, 0 and 1/2 of them: (2.5 + 1) / (4 + 2) = .5833."""
    cases, proposals = stores(tmp_path, PAIRED)
    panel = panel_of(cases, proposals, {"j": PAIR_SCORES}).lazy()
    filters = {"min_margin": 0.9, "min_p_correct": 0.9, "keep_fraction": 0.3}
    pairs = PairSet.model_validate({"judge": "j", "strategy": {"kind": "top_bottom", **filters}})
    found = calibrate_pairs(pairs, panel, proposals, Isotonic(min_cases=4), 0)
    assert found.curve is not None
    assert found.curve(np.array([0.8])) == pytest.approx([3.5 / 6])
    assert (found.summary["cases"], found.summary["groups"]) == (4, 4)


def test_a_judge_that_abstains_gives_no_curve(tmp_path):
    """Nor does a threshold on p then stop the audit: there is no pair to drop."""
    cases, proposals = stores(tmp_path, PAIRED)
    panel = panel_of(cases, proposals, {"j": [[N] * 3] * 4})
    pairs = PairSet.model_validate({"judge": "j", "strategy": {"kind": "top_bottom", "min_p_correct": 0.6}})
    assert calibrate_pairs(pairs, panel.lazy(), proposals, Isotonic(), 0).curve is None
    row = audited(panel, cases, proposals, min_p_correct=0.6)
    assert (row["mined"], row["verdict"]) == (0, None)


def coin_judge(folder: Path, seeds: int) -> tuple[pl.DataFrame, CaseStore, ProposalStore]:
    """25 patients, two cases each, and judges `j0`, `j1`, ... whose scores have nothing to do with true Dice."""
    generator = np.random.default_rng(0)
    lengths = [generator.choice([1, 2, 3, 4, 5, 6, 7, 8], 6, replace=False).tolist() for _ in range(50)]
    cases, proposals = stores(folder, lengths, groups=[f"g{case // 2:02d}" for case in range(50)])
    scores = {f"j{seed}": generator.random((50, 6)).tolist() for seed in range(seeds)}
    return panel_of(cases, proposals, scores), cases, proposals


@pytest.mark.parametrize("min_p_correct", [None, 0.55])
def test_a_coin_is_no_better_than_a_coin_behind_the_filter(tmp_path, min_p_correct):
    """A pair of a coin is wrong with probability 1/2, whether or not a curve of other patients keeps the pair.

    Filtered by a curve that has seen the pairs, .40 of them are wrong, or .35 with .55. The pairs of a seed are kept
    together, so they vary together: over 60 seeds the share has a standard error of .014, or .019 with .55 (measured by
    resampling 200 seeds). The tolerance is three of these.
    """
    seeds = 60
    panel, _, proposals = coin_judge(tmp_path, seeds)
    tables = []
    for seed in range(seeds):
        strategy = {"kind": "top_bottom", "min_p_correct": min_p_correct}
        pairs = PairSet.model_validate({"judge": f"j{seed}", "strategy": strategy})
        found = calibrate_pairs(pairs, panel.lazy(), proposals, Isotonic(), seed)
        tables.append(try_pairs(pairs, panel.lazy(), proposals, seed, found.held_out))
    kept = pl.concat(tables)
    assert 0 < len(kept) < 50 * seeds, "the filter kept some pairs and dropped others"
    assert 1 - kept["right"].mean() == pytest.approx(0.5, abs=0.06)


def test_pairs_are_tried_with_the_curve_of_the_other_patients(tmp_path):
    """Margin .8 throughout. Each patient is predicted from the other three, with one more right and one more wrong
    case: the right orders of c0 to c3 are 1, 1, 0 and 1/2, so c0 and c1 have (1.5 + 1) / 5 = .5, c2 has 3.5 / 5 = .7
    and c3 has 3 / 5 = .6. All four are kept at one half; c2 and c3 are kept at .55."""
    cases, proposals = stores(tmp_path, PAIRED)
    panel = panel_of(cases, proposals, {"j": PAIR_SCORES}).lazy()
    found = calibrate_pairs(TOP_BOTTOM, panel, proposals, Isotonic(folds=4, min_cases=3), 0)
    table = try_pairs(TOP_BOTTOM, panel, proposals, 0, found.held_out)
    assert dict(table.select("case_id", "p_correct").rows()) == pytest.approx(
        {"c0": 0.5, "c1": 0.5, "c2": 0.7, "c3": 0.6}
    )
    stricter = PairSet.model_validate({"judge": "j", "strategy": {"kind": "top_bottom", "min_p_correct": 0.55}})
    assert try_pairs(stricter, panel, proposals, 0, found.held_out)["case_id"].to_list() == ["c2", "c3"]


def test_the_widest_cases_are_taken_of_those_that_pass_the_filter(tmp_path):
    """As in mining: three cases pass p_correct, and one half of three is two cases: those of the margins .8 and .4."""
    cases, proposals = stores(tmp_path, [[4, 8, 2]] * 4)
    scores = [[0.1, margin, 0.0] for margin in (0.9, 0.8, 0.4, 0.3)]
    strategy = {"kind": "top_bottom", "keep_fraction": 0.5}
    pairs = PairSet.model_validate({"judge": "j", "strategy": strategy})
    curve = Curve(np.array([0.3, 0.8, 0.9]), np.array([0.6, 0.6, 0.4]))
    held_out = HeldOutCurves(np.array(["c0", "c1", "c2", "c3"]), np.zeros(4, np.int64), [curve])
    table = try_pairs(pairs, panel_of(cases, proposals, {"j": scores}).lazy(), proposals, 0, held_out)
    assert table["case_id"].to_list() == ["c1", "c2"]
    assert table["top"].to_list() == [True, False], "a quarter of three cases is one case"


def test_one_patient_is_not_filtered(tmp_path):
    """No curve has not seen the patient, so nothing is filtered, not even by a `min_p_correct` that is asked for."""
    cases, proposals = stores(tmp_path, PAIRED, groups=["a"] * 4)
    panel = panel_of(cases, proposals, {"j": PAIR_SCORES}).lazy()
    pairs = PairSet.model_validate({"judge": "j", "strategy": {"kind": "top_bottom", "min_p_correct": 0.9}})
    found = calibrate_pairs(pairs, panel, proposals, Isotonic(), 0)
    assert found.held_out is None
    table = try_pairs(pairs, panel, proposals, 0, found.held_out)
    assert len(table) == 4
    assert table["p_correct"].null_count() == 4
