"""Which pair comes next: strata and their numbers, doubts of judges, and repeated pairs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import polars as pl
import pytest

from pipeline.errors import BadInput
from pipeline.params import load_params
from pipeline.review.draw import Draws, Pair, doubtful, next_doubt, next_of_strata, next_repeat, stratified
from pipeline.review.journal import Answered, History, Shown
from pipeline.review.start import Wanted, draws_of
from pipeline.store.cases import CaseStore
from pipeline.store.proposals import Data, ProposalStore
from tests.fixtures.builders import bars, case_store, panel_of, proposal_store
from tests.fixtures.review_run import PANEL, write_run


def pairs(count: int) -> pl.DataFrame:
    """A pair of each of `count` cases: the margins are 1, 2, ..., and |D| is 10, 20, 10, 20, ..."""
    return pl.DataFrame(
        {
            "case_id": [f"c{row}" for row in range(count)],
            "slot_a": [0] * count,
            "slot_b": [1] * count,
            "better": [0] * count,
            "margin": [row + 1.0 for row in range(count)],
            "disagreement": [10 + 10 * (row % 2) for row in range(count)],
        },
        schema_overrides={"slot_a": pl.Int32, "slot_b": pl.Int32},
    )


def test_strata_are_thirds_of_the_margin_and_halves_of_the_size() -> None:
    """Of 12 pairs, 4 are in each third and 2 of these in each half, so 6 strata have 2 pairs each."""
    frame = stratified(pairs(12), 0, "target")
    assert Counter(frame["stratum"]) == {f"margin {m}/3, |D| {d}/2": 2 for m in (1, 2, 3) for d in (1, 2)}
    assert set(frame["population"]) == {2}
    low = frame.filter(pl.col("stratum") == "margin 1/3, |D| 2/2")
    assert sorted(low["margin"]) == [2.0, 4.0]
    assert frame["case_id"].to_list() != stratified(pairs(12), 1, "target")["case_id"].to_list()


def test_every_pair_is_drawn_once_and_strata_in_proportion() -> None:
    """Six strata of 2 pairs: the first 6 draws are of 6 strata, and so are the next 6. Then nothing is left."""
    frame = stratified(pairs(12), 0, "target")
    shown: dict[Pair, str] = {}
    for number in range(12):
        drawn = next_of_strata(frame, shown)
        assert drawn is not None
        assert drawn.pair not in shown
        shown[drawn.pair] = drawn.stratum
        assert max(Counter(shown.values()).values()) == number // 6 + 1
    assert next_of_strata(frame, shown) is None


def test_large_strata_are_drawn_more_often() -> None:
    """Strata of 90 and 10 pairs: of 20 draws, 18 and 2, after one of each."""
    frame = pairs(100).with_columns(
        pl.when(pl.col("margin") > 90).then(pl.lit("small")).otherwise(pl.lit("large")).alias("stratum"),
        pl.when(pl.col("margin") > 90).then(10).otherwise(90).alias("population"),
    )
    shown: dict[Pair, str] = {}
    for _ in range(20):
        drawn = next_of_strata(frame, shown)
        assert drawn is not None
        shown[drawn.pair] = drawn.stratum
    assert Counter(shown.values()) == {"large": 18, "small": 2}


def test_draws_of_another_split_do_not_count() -> None:
    """60 pairs of the pool were drawn for the target, with names of strata as in validation."""
    frame = stratified(pairs(12), 0, "target")
    other = {(f"pool_{number}", 0, 1) for number in range(60)}
    assert next_of_strata(frame, other) == next_of_strata(frame, set())


def test_draws_of_a_stratum_are_at_random() -> None:
    """Over 300 seeds, the first draw is each of 6 pairs of one stratum about 50 times (standard error 6.5)."""
    same = pairs(6).with_columns(margin=pl.lit(1.0), disagreement=pl.lit(10))
    first = Counter(stratified(same, seed, "target")["case_id"][0] for seed in range(300))
    assert len(first) == 6
    assert all(abs(count - 50) < 26 for count in first.values())


def test_doubts_are_worth_most_where_judges_are_split_and_masks_differ_much(tmp_path: Path) -> None:
    """Bars of 2, 4, 8 pixels, so |D| is 2 (slots 0, 1), 6 (0, 2) and 4 (1, 2).

    Judges x and y order the slots 0 < 1 < 2, judge z orders 1 < 0 < 2: only slots 0 and 1 are in doubt, worth
    4 (2/3) (1/3) 2. In case c1, x says 0 < 1 < 2 and y says 2 < 1 < 0, and z abstains: all pairs are split evenly.
    """
    masks = bars([2, 4, 8])
    cases = case_store(tmp_path / "cases", [masks[0]] * 2)
    proposals = proposal_store(tmp_path / "proposals", [masks] * 2)
    scores = {"x": [[1, 2, 3], [1, 2, 3]], "y": [[1, 2, 3], [3, 2, 1]], "z": [[2, 1, 3], [None] * 3]}
    panel = panel_of(cases, proposals, scores).lazy()
    found = doubtful(panel, proposals, ["x", "y", "z"], "pool")
    assert found.select("case_id", "slot_a", "slot_b", "disagreement", "stratum").rows() == [
        ("c1", 0, 2, 6, "votes 1:1"),
        ("c1", 1, 2, 4, "votes 1:1"),
        ("c1", 0, 1, 2, "votes 1:1"),
        ("c0", 0, 1, 2, "votes 2:1"),
    ]
    first = next_doubt(found, set())
    assert first is not None
    assert first.pair == ("c1", 0, 2)
    second = next_doubt(found, {first.pair})
    assert second is not None
    assert second.case_id == "c0", "a case is shown again after all cases were shown"
    third = next_doubt(found, {first.pair, second.pair})
    assert third is not None
    assert third.pair == ("c1", 1, 2)
    with pytest.raises(BadInput, match=r"needs two judges or tables .* found \['x'\]"):
        doubtful(panel, proposals, ["x"], "pool")


def shown(number: int, draw: str = "audit", case: int | None = None) -> Shown:
    return Shown.model_validate(
        {
            "showing": f"{number:016x}",
            "case_id": f"c{number if case is None else case}",
            "group": "g",
            "split": "pool",
            "mask_a": "a",
            "mask_b": "b",
            "a_side": "left",
            "draw": draw,
            "target": "j",
            "stratum": "s",
            "disagreement": 3,
        }
    )


def history(count: int) -> History:
    """`count` pairs of as many cases, all answered."""
    found = History()
    for number in range(count):
        found.add(shown(number))
        found.add(Answered(showing=f"{number:016x}", answer="a", seconds=1.0))
    return found


def test_one_in_ten_is_repeated_once_and_never_soon() -> None:
    found = history(6)
    repeats = 0
    for number in range(6, 206):
        again = next_repeat(found, 0.1, 7)
        if again is None:
            found.add(shown(number))
        else:
            recent = [one.case_id for one in list(found.shown.values())[-5:]]
            assert again.case_id not in recent
            found.add(shown(number, "repeat", int(again.case_id[1:])))
            repeats += 1
        found.add(Answered(showing=f"{number:016x}", answer="a", seconds=1.0))
    # Binomial of 200 draws: 20, standard error 4.2.
    assert 7 <= repeats <= 33
    repeated = [one.case_id for one in found.shown.values() if one.draw == "repeat"]
    assert len(set(repeated)) == repeats
    assert next_repeat(history(5), 1.0, 7) is None
    only = next_repeat(history(6), 1.0, 7)
    assert only is not None
    assert only.case_id == "c0", "five pairs lie between a pair and its repetition"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_run(folder)
    return folder


def draws(run: Path, **wanted: str) -> Draws:
    data = Data(CaseStore(run / "data/cases"), ProposalStore(run / "data/proposals"))
    return draws_of(load_params(run / "params.yaml"), run / PANEL, data, run / "audit", Wanted(**wanted))


def test_targets_of_a_run(run: Path) -> None:
    """Four cases of a split with 5 proposals: a judge has 10 pairs a case, and the pair set has one."""
    of_judge, of_set = draws(run, target="agreement").audit, draws(run).audit
    assert of_judge is not None
    assert of_set is not None
    assert (len(of_judge), len(of_set)) == (40, 4)
    assert set(of_set["case_id"]) == {"c0", "c2", "c4", "c6"}
    on_validation = draws(run, split="validation").audit
    assert on_validation is not None
    assert set(on_validation["case_id"]) == {"c1", "c3", "c5", "c7"}
    # Judge `agreement` is right: it prefers the radius that is nearest to the first.
    assert set(of_judge.filter(slot_a=0)["better"]) == {0}
    with pytest.raises(BadInput, match=r"has no entry 'agreemnt'.*did you mean 'agreement'"):
        draws(run, target="agreemnt")


def test_doubt_is_where_the_judges_of_the_run_disagree(run: Path) -> None:
    found = draws(run, draw="doubt")
    assert found.audit is None
    assert found.doubt is not None
    # The second judge reverses the order in c0 and c4, where all 10 pairs of a case are in doubt.
    assert Counter(found.doubt["case_id"]) == {"c0": 10, "c4": 10}
