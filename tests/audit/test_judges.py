"""How far a judge can be believed, on bars whose Dice is worked by hand (see `tests.fixtures.auditing`)."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest

from pipeline.audit.judges import Sizes, audit_bins, audit_judge, validation_scores
from pipeline.errors import BadInput
from pipeline.store import schema
from tests.fixtures.auditing import Scores, approx_row, hold_their_means, stores
from tests.fixtures.builders import panel_of

N = None
JUDGED = ([4, 8, 2], [8, 12, 2], [2, 12, 8], [12, 12, 2], [12, 8, 2])
"""c3's slot 1 is the mask of its slot 0; c4 is scored once and so says nothing within the case."""
SCORES: Scores = ([0.5, 0.9, 0.1], [0.1, 0.5, 0.9], [0.5, 0.9, 0.9], [0.5, 0.9, 0.1], [0.5, N, N])


def audited(panel: pl.DataFrame, failure_below: float = 0.7) -> dict[str, Any]:
    return audit_judge("j", validation_scores(panel, ["j"]), 5, failure_below, 200, 0)


@pytest.fixture
def panel(tmp_path) -> pl.DataFrame:
    return panel_of(*stores(tmp_path, JUDGED), {"j": SCORES})


def test_a_judge_by_hand(panel):
    """True Dice: c0 (2/3, 1, .4), c1 (1, .8, .4), c2 (.4, .8, 1), c3 (.8, -, .4) without its duplicate.

    spearman: 1, -1, .866, 1. kendall: 1, -1, .816, 1. pair error: 0, 1, .5/3, 0.
    lift: 1 - 2/3, .4 - 1, (.8 + 1)/2 - .4, 0: sum .2333. The top beats the base in c0 and c2.
    headroom: 1/3, 0, .6, 0; lift over it .2333 / .9333; regret is headroom less lift: 0, .6, .1, 0.
    Best fixed slot on the other cases is always 1: 1/3, -.2, .4, 0 over the base.
    Gaps: c0 1/3, 4/15, .6, all right: 1.2. c1 .2, .6, .4, none: 0 of 1.2. c2 .4, .6, and .2 with equal scores: 1.1 of
    1.2. c3 .4 of .4. Together 2.7 of 4.
    """
    row = audited(panel)
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
        regret=0.7 / 4,
        gap_weighted_accuracy=2.7 / 4,
        lift_over_fixed=(1 / 3 - 0.6 + 0.5 - (1 / 3 - 0.2 + 0.4)) / 4,
    )
    hold_their_means(row)
    assert {*row, "verdict"} == set(schema.AUDIT_JUDGES.columns)


def test_bases_against_each_other(panel):
    """The base's score .5, .1, .5, .5, .5 and Dice 2/3, 1, .4, .8, .8: c4 counts, whose base is scored.

    Below .7 fail c0 and c2, at .5. Against c1 at .1 both are wrong, against c3 and c4 ties: 2 of 6.
    Risks 1/3, 0, .6, .2, .2: the four at .5 have the mean 1/3, and with c1 it is 4/15: (4 x 1/3 + 4/15) / 5 = .32.
    """
    approx_row(audited(panel), auroc=2 / 6, aurc=0.32)


def test_one_class_has_no_auroc(panel):
    """No base is below .3, and all are below .99 but one: a single patient that did not fail has no interval."""
    row = audited(panel, 0.3)
    assert [row[name] for name in ("auroc", "auroc_low", "auroc_high")] == [None] * 3
    assert row["aurc"] is not None
    row = audited(panel, 0.99)
    assert (row["auroc"], row["auroc_low"], row["auroc_high"]) == (0.0, None, None)


def test_the_panels_order_plays_no_part(panel):
    assert audited(panel[::-1]) == audited(panel)


def test_a_single_patient_has_no_interval(tmp_path):
    """All cases are of one patient: means without ends."""
    row = audited(panel_of(*stores(tmp_path, JUDGED[:2], groups=["a", "a"]), {"j": SCORES[:2]}))
    assert row["lift"] == pytest.approx((1 / 3 - 0.6) / 2)
    assert {row[name] for name in row if name.endswith(("_low", "_high"))} == {None}


def test_a_judge_that_always_abstains_is_null(tmp_path):
    row = audited(panel_of(*stores(tmp_path, JUDGED[:2]), {"j": [[N] * 3] * 2}))
    assert (row["cases"], row["abstained"]) == (0, 1.0)
    rest = {name: value for name, value in row.items() if name not in ("judge", "cases", "abstained")}
    assert set(rest.values()) == {None}


def test_a_single_proposal_per_case_ranks_nothing_within(tmp_path):
    """Bases of Dice 2/3 and 1, scored alike: nothing within a case, and between cases a tie."""
    cases, proposals = stores(tmp_path, [[4], [8]])
    panel = panel_of(cases, proposals, {"j": [[0.5], [0.5]]})
    row = audited(panel)
    assert (row["cases"], row["lift"], row["fixed_sampler"]) == (0, None, None)
    approx_row(row, auroc=0.5, aurc=1 / 6)
    assert len(audit_bins(validation_scores(panel, ["j"]), proposals, Sizes([0.1], 2), 10, 0)) == 0


def test_a_case_without_a_slot_is_refused(panel):
    with pytest.raises(BadInput, match=r"proposals 0 to 2 of every validation case, found 14 rows of 5 cases"):
        validation_scores(panel.filter((pl.col("case") != 1) | (pl.col("proposal") != 2)), ["j"])


def test_the_slots_have_the_names_of_their_samplers(panel):
    assert validation_scores(panel, []).slots == ["base", "s 1", "s 2"]


# ---- bins ------------------------------------------------------------------------------------------------------


def test_bins_by_hand(tmp_path):
    """c0 and c1 of the table above, width 16; gap and |D| of slots 0-1, 0-2, 1-2, and whether the score is right.

    | c0 | 1/3, 4: right | 4/15, 2: right | .6, 6: right |
    | c1 | .2, 4: wrong | .6, 6: wrong | .4, 10: wrong |

    By gap up to .3 (4/15 and .2): 1 of 2; above: 2 of 4. A gap of exactly an edge, as .2, is below it.
    The median |D| is 5: up to it 4, 2 and 4: 2 of 3; above 6, 6 and 10: 1 of 3.
    """
    cases, proposals = stores(tmp_path, JUDGED[:2])
    known = validation_scores(panel_of(cases, proposals, {"j": SCORES[:2]}), ["j"])
    found = audit_bins(known, proposals, Sizes([0.2, 0.3], 2), 300, 0)
    assert found.schema == schema.AUDIT_BINS.columns
    rows = found.select("judge", "by", "bin", "above", "up_to", "count", "accuracy").rows()
    assert rows == [
        ("j", "gap", 0, 0.0, 0.2, 1, 0.0),
        ("j", "gap", 1, 0.2, 0.3, 1, 1.0),
        ("j", "gap", 2, 0.3, 1.0, 4, 0.5),
        ("j", "disagreement", 0, 0.0, 5 / 16, 3, pytest.approx(2 / 3)),
        ("j", "disagreement", 1, 5 / 16, 10 / 16, 3, pytest.approx(1 / 3)),
    ]
    ends = found.select("accuracy_low", "accuracy_high").rows()
    assert ends == [(None, None)] * 5, "two patients are too few for an interval"


def test_duplicates_abstentions_and_equal_truth_are_in_no_bin(tmp_path):
    """c3 has a duplicate: of its three pairs one is left. 4 and 16 are equally wrong. The judge `k` scores one slot."""
    cases, proposals = stores(tmp_path, [JUDGED[3], [4, 16, 4]])
    scores: dict[str, Scores] = {"j": [[0.5, 0.9, 0.1], [0.1, 0.5, 0.9]], "k": [[0.5, N, N], [0.5, 0.6, 0.7]]}
    found = audit_bins(
        validation_scores(panel_of(cases, proposals, scores), ["j", "k"]), proposals, Sizes([0.1], 5), 10, 0
    )
    assert found.select("judge", "by", "bin", "count", "accuracy").rows() == [
        ("j", "gap", 1, 1, 1.0),
        ("j", "disagreement", 0, 1, 1.0),
    ]


def test_the_bins_share_all_pairs(tmp_path):
    """Of each judge's pairs, by either measure, as many as differ; quantile bins hold about as many each."""
    generator = np.random.default_rng(0)
    lengths = [generator.permutation(np.arange(1, 17))[:6].tolist() for _ in range(8)]
    cases, proposals = stores(tmp_path, lengths)
    panel = panel_of(cases, proposals, {"j": generator.random((8, 6)).tolist()})
    known = validation_scores(panel, ["j"])
    found = audit_bins(known, proposals, Sizes([0.05, 0.1], 3), 50, 0)
    upper = np.triu(np.ones((6, 6), bool), 1)
    differ = sum(int((np.round(np.abs(d[:, None] - d), 12) > 0)[upper].sum()) for d in known.dice)
    counts = found.group_by("by", maintain_order=True).agg(pl.col("count").sum())["count"]
    assert counts.to_list() == [differ, differ]
    assert (found.filter(pl.col("by") == "disagreement")["count"] < 0.5 * differ).all()
    for row in found.iter_rows(named=True):
        hold_their_means(row)
