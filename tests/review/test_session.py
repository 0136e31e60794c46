"""A review in progress: what is shown, what an answer means, and masks that are gone."""

from __future__ import annotations

import shutil
import socket
from collections import Counter
from datetime import timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pipeline.errors import BadInput
from pipeline.review.journal import check_masks
from pipeline.review.session import Review, Unknown
from pipeline.store import schema
from pipeline.store.proposals import ProposalStore
from pipeline.store.tables import read_table
from pipeline.store.verdicts import Slots, read_verdicts
from tests.fixtures.builders import proposal_store
from tests.fixtures.chain import invoke
from tests.fixtures.review_run import PANEL, RADII, ball, journal_lines, review_of, write_run


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with 40 pairs of judge `agreement` in the pool."""
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path)
    return tmp_path


def answer(review: Review, reviewer: str, given: str, seconds: float = 3.0) -> str:
    """Answer the first pair that waits, and return its showing."""
    showing = review.waiting(reviewer)[0].showing
    assert review.answer(reviewer, showing, given, seconds) == given  # type: ignore[arg-type]
    return showing


def table(run: Path) -> pl.DataFrame:
    return read_table(run / "review/verdicts.parquet", schema.VERDICTS)


def test_answers_are_of_masks_and_sides_are_drawn(run: Path) -> None:
    """A reviewer who always says `left` prefers the mask that is on the left, which is `a` about half of the time."""
    review = review_of(run)
    for _ in range(40):
        shown = review.waiting("ann")[0]
        case = review.data.cases.case(shown.case_id)
        hashes = review.data.proposals.mask_hashes(case)
        assert hashes.index(shown.mask_a) < hashes.index(shown.mask_b), "mask a is that of the lower slot"
        seen = review.view("ann", shown.showing).masks[0, 0 if shown.a_side == "left" else 1]
        assert (seen == review.data.proposals.masks(case)[hashes.index(shown.mask_a)]).all()
        answer(review, "ann", "left")
    assert review.waiting("ann") == []
    assert review.close() == 40
    found = table(run)
    assert (found["answer"] == pl.Series(["a" if side == "left" else "b" for side in found["a_side"]])).all()
    assert 10 <= (found["a_side"] == "left").sum() <= 30  # binomial: 20, standard error 3.2
    assert not found.select("case_id", "mask_a", "mask_b").is_duplicated().any()
    assert Counter(found["stratum"]) == dict(found.select("stratum", "population").unique().rows())


def test_the_table_names_its_masks_by_hash(run: Path) -> None:
    review = review_of(run)
    answer(review, "ann", "equal")
    review.close()
    read = read_verdicts(run / "review/verdicts.parquet", review.data.cases, review.data.proposals)
    row = read.row(0, named=True)
    assert row["slot_a"] < row["slot_b"]
    differ = review.data.proposals.disagreement(review.data.cases.case(row["case_id"]))
    assert row["disagreement"] == differ[row["slot_a"], row["slot_b"]]
    known = {"draw": "audit", "target": "agreement", "split": "pool", "answer": "equal", "seconds": 3.0}
    assert row == {**row, **known}


def test_an_answer_that_is_sent_twice_counts_once(run: Path) -> None:
    review = review_of(run)
    showing = answer(review, "ann", "left")
    assert review.answer("ann", showing, "right", 9.0) == "left", "the first answer stands, and the page is told"
    assert review.progress("ann")["answered"] == 1
    with pytest.raises(Unknown):
        review.answer("ann", "0" * 16, "left", 1.0)


def test_undo_shows_the_pair_again_before_all_others(run: Path) -> None:
    review = review_of(run)
    first = review.waiting("ann")[0]
    second = review.waiting("ann")[1]
    answer(review, "ann", "left")
    answer(review, "ann", "skip")
    assert review.progress("ann")["skipped"] == 1
    for pair in (second, first):
        last = review.progress("ann")["last"]
        assert review.undo("ann", last)
        assert not review.undo("ann", last), "an undo that is sent twice takes back one answer"
        again = review.waiting("ann")[0]
        assert (again.pair, again.a_side) == (pair.pair, pair.a_side)
        with pytest.raises(Unknown):
            review.answer("ann", last, "left", 1.0)
    assert review.progress("ann") == {**review.progress("ann"), "answered": 0, "skipped": 0, "last": None}
    answer(review, "ann", "right")
    assert review.waiting("ann")[0].pair == second.pair
    assert review.close() == 1
    assert table(run)["case_id"].to_list() == [first.case_id]


def test_the_review_goes_on_where_it_stopped(run: Path) -> None:
    review = review_of(run)
    answer(review, "ann", "left")
    waiting = review.waiting("ann")
    review.close()
    again = review_of(run)
    assert again.waiting("ann") == waiting
    other = review_of(run, target="expected_dice")
    again.close()
    assert not {one.target for one in other.waiting("ann")} - {"expected_dice"}, "pairs of another target wait on"
    other.close()


def test_two_reviewers_share_the_pairs(run: Path) -> None:
    """Pairs that one reviewer has answered, or has before them, are not shown to the other. There are 40 pairs."""
    review = review_of(run)
    for _ in range(20):
        answer(review, "ann", "left")
        answer(review, "bob", "right")
    assert review.waiting("ann") == review.waiting("bob") == []
    assert review.progress("ann")["worth"].startswith("40 of 40 pairs")
    review.close()
    found = table(run)
    assert Counter(found["reviewer"]) == {"ann": 20, "bob": 20}
    assert not found.select("case_id", "mask_a", "mask_b").is_duplicated().any()


def test_a_pair_that_waits_for_long_is_drawn_for_another(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once another reviewer has answered the pairs, they wait no longer. Two answers on one pair count as one pair."""
    review = review_of(run)
    left = [one.pair for one in review.waiting("ann")]
    on_the_page = review.waiting("ann")[0].showing
    monkeypatch.setattr("pipeline.review.session.HELD", timedelta(0))
    assert [one.pair for one in review.waiting("bob")] == left
    for _ in range(6):
        answer(review, "bob", "left")
    assert not set(left) & {one.pair for one in review.waiting("ann")}
    review.answer("ann", on_the_page, "left", 3.0)
    assert review.progress("ann")["worth"].startswith("6 of the 8 pairs")
    review.close()
    assert len(table(run)) == 7


def test_the_audit_is_the_same_random_draw_after_other_answers(run: Path) -> None:
    """All 20 pairs in doubt, and 4 of a pair set, are answered first: the 40 pairs of the judge keep their order."""

    def drawn(**wanted: str) -> list[tuple[str, str, str]]:
        review, found = review_of(run, **wanted), []
        while waiting := review.waiting("ann"):
            found.append(waiting[0].pair)
            answer(review, "ann", "left")
        review.close()
        return found

    alone = drawn()
    shutil.rmtree(run / "review")
    assert (len(drawn(draw="doubt")), len(drawn(target="mined"))) == (20, 4)
    assert drawn() == alone
    rows = table(run).filter(draw="audit", target="agreement")
    assert Counter(rows["stratum"]) == dict(rows.select("stratum", "population").unique().rows())


def test_repeats_keep_the_stratum_of_the_first_showing(run: Path) -> None:
    review = review_of(run, repeats=0.4)
    for _ in range(30):
        answer(review, "ann", "left")
    review.close()
    found = table(run)
    pair = ["case_id", "mask_a", "mask_b"]
    repeats = found.filter(draw="repeat")
    assert len(repeats) >= 5
    assert repeats["population"].null_count() == len(repeats)
    joined = repeats.join(found.filter(pl.col("draw") != "repeat"), on=pair)
    assert len(joined) == len(repeats)
    assert (joined["stratum"] == joined["stratum_right"]).all()
    assert (joined["number"] - joined["number_right"] > 5).all()


def test_the_worth_of_the_next_answers_by_hand(run: Path) -> None:
    """For a share of one half, 1.96 sqrt(.25/8) is .346 after 8 answers, and 1.96 sqrt(.25/18) is .231 after 18.

    The text is the same for all answers, which would else show what the judge says.
    """
    review = review_of(run)
    assert review.progress("ann")["worth"] == "0 of the 8 pairs that an estimate of the noise of 'agreement' needs."
    said = []
    for name, given in (("ann", "left"), ("bob", "right")):
        for _ in range(8):
            answer(review, name, given)
        said.append(review.progress(name)["worth"])
    assert said == [
        "8 of 40 pairs tell how often 'agreement' is wrong, to within ±35 percentage points or less; 10 more answers: "
        "±23.",
        "16 of 40 pairs tell how often 'agreement' is wrong, to within ±24 percentage points or less; 10 more answers: "
        "±19.",
    ]
    review.close()


def test_both_draws_alternate(run: Path) -> None:
    review = review_of(run, draw="both")
    drawn = []
    for _ in range(8):
        drawn.append(review.waiting("ann")[0].draw)
        answer(review, "ann", "equal")
    assert drawn == ["audit", "doubt"] * 4
    assert "The judges disagree on 16 more pairs" in review.progress("ann")["worth"]
    review.close()
    assert table(run).filter(draw="doubt")["population"].null_count() == 4


def test_both_draws_alternate_after_a_review_of_another_target(run: Path) -> None:
    review = review_of(run)
    for _ in range(4):
        review.waiting("ann")
        answer(review, "ann", "equal")
    review.close()
    review = review_of(run, draw="both", target="mined")
    drawn = []
    for _ in range(4):
        drawn.append(review.waiting("ann")[0].draw)
        answer(review, "ann", "equal")
    review.close()
    assert drawn == ["audit", "doubt"] * 2


def made_anew(run: Path) -> None:
    """The masks of all cases are made anew, larger. As DVC does, panel and audit are removed until they are made."""
    larger = np.stack([ball((24, 24), radius + 0.15) for radius in RADII])
    proposal_store(run / "data/proposals", [larger] * 8)
    (run / PANEL).unlink()
    shutil.rmtree(run / "audit")


def test_answers_on_masks_that_are_gone_are_refused_until_set_aside(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both answers are on masks that are gone. They are set aside without a panel and without an audit."""
    review = review_of(run)
    answer(review, "ann", "left")
    answer(review, "ann", "left")
    review.close()
    before = journal_lines(run)
    made_anew(run)
    with pytest.raises(BadInput, match=r"ann.jsonl: verdict on showing .* masks of case 'c\d', .*--discard-stale"):
        check_masks(run / "review", Slots(review.data.cases, ProposalStore(run / "data/proposals")), discard=False)
    invoke("python -m stages.review --discard-stale")
    said = capsys.readouterr().out
    assert "review: 2 answers on masks that are gone are set aside" in said
    assert "review: 0 verdicts in review/verdicts.parquet" in said
    assert journal_lines(run)[:-1] == before, "the journal keeps every line"
    assert len(table(run)) == 0
    invoke("python -m stages.review --table")
    assert "set aside" not in capsys.readouterr().out
    write_run(run, radii=[radius + 0.15 for radius in RADII])
    again = review_of(run)
    assert len(again.waiting("ann")) == 2
    assert again.close() == 0


def test_a_panel_of_other_proposals_is_refused(run: Path) -> None:
    """The same number of masks in another order: the scores of the panel would be those of other masks."""
    masks = np.stack([ball((24, 24), radius) for radius in RADII[::-1]])
    proposal_store(run / "data/proposals", [masks] * 8)
    message = r"panel.parquet: .* found scores of others \(first difference: case 'c0'\).*repro panel"
    with pytest.raises(BadInput, match=message):
        review_of(run)
    proposal_store(run / "data/proposals", [masks[:3]] * 8)
    with pytest.raises(BadInput, match=message):
        review_of(run)


def test_the_table_is_made_at_the_start(run: Path) -> None:
    """A killed server left an answer without a table, and the next start fails because its port is taken."""
    answer(review_of(run), "ann", "left")
    assert not (run / "review/verdicts.parquet").exists()
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(RuntimeError, match="exit code 2"):
        invoke(f"python -m stages.review --port {taken.getsockname()[1]}")
    assert table(run)["reviewer"].to_list() == ["ann"]
