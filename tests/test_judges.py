"""Judges: one contract for all kinds, one case by hand for each, and what a score table may not be."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import polars as pl
import pytest

from pipeline import schema
from pipeline.errors import BadInput
from pipeline.execution import Execution
from pipeline.judges import Judge
from pipeline.judges.agreement import Agreement
from pipeline.judges.expected_dice import ExpectedDice
from pipeline.judges.judge import Evidence, judge
from pipeline.judges.oracle import Oracle
from pipeline.judges.table import Table
from pipeline.knobs import Knobs
from pipeline.seeding import numpy_generator
from pipeline.store import CaseStore, ProposalStore, read_table
from tests.builders import bars, case_store, proposal_store, rows_of

KINDS = get_args(get_args(Judge)[0])
RESEARCH = {"oracle"}
"""Judges that may read the truth of the pool."""
SYNCHRONOUS = Execution(scheduler="synchronous", progress="none")


@dataclass
class Scene:
    """Cases with proposals, and a table that scores a proposal by its foreground voxels."""

    cases: CaseStore
    proposals: ProposalStore
    table: Path


def scene(folder: Path, masks: Sequence[np.ndarray], classes: int = 2, truth: int = 0, labelled: bool = True) -> Scene:
    """Truth is noise drawn from the seed `truth`."""
    space = masks[0].shape[1:]
    labels = [
        numpy_generator(truth, row).integers(classes, size=space).astype(np.uint8) if labelled else None
        for row in range(len(masks))
    ]
    cases = case_store(folder / "cases", labels, classes=classes, space=space)
    proposals = proposal_store(folder / "proposals", masks, classes=classes)
    voxels = pl.col("voxels").list.slice(1).list.sum()
    proposals.table.select("case_id", "proposal", score=voxels).write_csv(folder / "table.csv")
    return Scene(cases, proposals, folder / "table.csv")


def blobs(space: tuple[int, ...], classes: int) -> np.ndarray:
    """Six proposals: noise, the same again, an empty mask, a full one, and two more of noise."""
    noise = numpy_generator("judges", space, classes).integers(classes, size=(3, *space)).astype(np.uint8)
    empty, full = np.zeros(space, np.uint8), np.ones(space, np.uint8)
    return np.stack([noise[0], noise[0], empty, full, noise[1], noise[2]])


def configured(kind: type[Knobs], table: Path) -> Any:
    """A judge of this kind; `path` is the only knob without a default."""
    path = {"path": table} if "path" in kind.model_fields else {}
    return kind.model_validate({"kind": get_args(kind.model_fields["kind"].annotation)[0], **path})


def scores_of(knobs: Any, at: Scene, row: int = 0) -> np.ndarray:
    scorer = knobs.ready(at.cases, at.proposals, at.table.parent / "models", 0)
    return scorer.score(Evidence(at.cases, at.proposals, at.cases.all[row]))


every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


# ---- the contract ----------------------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize(("space", "classes"), [((6, 7), 2), ((6, 7), 4), ((3, 4, 5), 2), ((3, 4, 5), 3)])
def test_every_judge_scores_every_proposal(tmp_path, kind, space, classes):
    """f64 `[proposal]`, never infinite; equal masks have equal scores; the same again, and after pickling."""
    at = scene(tmp_path, [blobs(space, classes)], classes)
    knobs = configured(kind, at.table)
    scorer = knobs.ready(at.cases, at.proposals, tmp_path / "models", 0)
    evidence = Evidence(at.cases, at.proposals, at.cases.all[0])
    scores = scorer.score(evidence)
    assert (scores.dtype, scores.shape) == (np.float64, (6,))
    assert np.isfinite(scores).all(), "no judge has a reason to abstain here"
    assert scores[0] == scores[1]
    assert len(set(scores.tolist())) > 1
    for other in (scorer, pickle.loads(pickle.dumps(scorer)), pickle.loads(pickle.dumps(knobs)).ready(at.cases, at.proposals, tmp_path, 0)):
        assert other.score(Evidence(at.cases, at.proposals, at.cases.all[0])).tobytes() == scores.tobytes()


@every_kind
@pytest.mark.parametrize("fill", [0, 1])
def test_every_judge_on_masks_that_are_all_the_same(tmp_path, kind, fill):
    """All empty or all full: one score for all, finite or an abstention."""
    at = scene(tmp_path, [np.full((4, 5, 5), fill, np.uint8)])
    scores = scores_of(configured(kind, at.table), at)
    assert len({repr(score) for score in scores.tolist()}) == 1
    assert not np.isinf(scores).any()


@every_kind
def test_every_judge_on_a_single_proposal(tmp_path, kind):
    at = scene(tmp_path, [bars([8])])
    scores = scores_of(configured(kind, at.table), at)
    assert scores.shape == (1,)
    assert not np.isinf(scores).any()


@every_kind
def test_only_judges_for_research_see_the_truth(tmp_path, kind):
    """Another truth, or none, changes no score of the others."""
    masks = [bars([8, 4, 2]), bars([3, 9, 12])]
    places = [
        scene(tmp_path / "one", masks, truth=1),
        scene(tmp_path / "other", masks, truth=2),
        scene(tmp_path / "none", masks, labelled=False),
    ]
    found = [scores_of(configured(kind, at.table), at, row=1).tobytes() for at in places]
    name = kind.model_fields["kind"].annotation
    assert (len(set(found)) == 1) == (get_args(name)[0] not in RESEARCH)


@every_kind
def test_every_judge_writes_a_table_of_equal_bytes(tmp_path, monkeypatch, kind):
    """One row per proposal of every case, whatever the scheduler."""
    monkeypatch.chdir(tmp_path)
    at = scene(tmp_path, [bars([8, 4, 2]), bars([3, 9, 12]), bars([0, 0, 16])])
    knobs = configured(kind, at.table)
    found = []
    for number, execution in enumerate([SYNCHRONOUS, Execution(scheduler="threads", progress="none")]):
        out = tmp_path / f"{number}.parquet"
        judge("j", knobs, at.cases, at.proposals, tmp_path / "models", 0, out, execution)
        found.append(out.read_bytes())
    assert found[0] == found[1]
    table = read_table(tmp_path / "0.parquet", schema.SCORES)
    assert table.select("case_id", "proposal").equals(at.proposals.table.select("case_id", "proposal"))
    assert table["judge"].unique().to_list() == ["j"]
    expected = [scores_of(knobs, at, row).tolist() for row in range(3)]
    assert table["score"].fill_null(np.nan).to_list() == pytest.approx(sum(expected, []), nan_ok=True)


# ---- by hand ---------------------------------------------------------------------------------------------------


def test_agreement(tmp_path):
    """Lengths 8, 4, 16: Dice 8/4 = 8/12, 8/16 = 16/24, 4/16 = 8/20. Means with the two others: 2/3, 8/15, 8/15."""
    at = scene(tmp_path, [bars([8, 4, 16])])
    assert scores_of(Agreement(kind="agreement"), at) == pytest.approx([2 / 3, 8 / 15, 8 / 15])


def test_agreement_abstains_on_a_single_proposal(tmp_path):
    assert np.isnan(scores_of(Agreement(kind="agreement"), scene(tmp_path, [bars([8])]))).all()


def expected_dice(tmp_path: Path, masks: np.ndarray, probability: np.ndarray) -> np.ndarray:
    classes = len(probability)
    cases = case_store(tmp_path / "cases", [None], space=masks.shape[1:], classes=classes)
    proposals = proposal_store(tmp_path / "proposals", [masks], [probability], classes)
    return scores_of(ExpectedDice(kind="expected_dice"), Scene(cases, proposals, tmp_path / "table.csv"))


def test_expected_dice(tmp_path):
    """p = 1, .6, .2, 0 (sum 1.8): y = 1000 has 2 / 2.8, 1100 has 3.2 / 3.8, 1110 has 3.6 / 4.8, 0000 has 0."""
    p = np.array([[1.0, 0.6, 0.2, 0.0]])
    scores = expected_dice(tmp_path, bars([1, 2, 3, 0], width=4), np.stack([1 - p, p]))
    assert scores == pytest.approx([2 / 2.8, 3.2 / 3.8, 3.6 / 4.8, 0], abs=1e-6)


def test_expected_dice_of_a_class_that_nobody_sees_is_1(tmp_path):
    """Class 1 as in 1100 above with p = 1, 1, 0, 0: Dice 1; class 2 has p = 0: 1 where y has none, 0 where it has."""
    p = np.array([[1.0, 1.0, 0.0, 0.0]])
    scores = expected_dice(tmp_path, rows_of(["1100", "1102"])[:, None], np.stack([1 - p, p, 0 * p]))
    assert scores == pytest.approx([1.0, 0.5])


def test_oracle(tmp_path):
    """Truth of length 8 with pixels 10-15 unknown. Length 8: 1; 4: 8/12; 16: 10 known pixels, 16/18; empty: 0."""
    label = bars([8])[0]
    label[0, 10:] = schema.UNKNOWN
    cases = case_store(tmp_path / "cases", [label, np.zeros_like(label), None], space=label.shape)
    masks = bars([8, 4, 16, 0])
    proposals = proposal_store(tmp_path / "proposals", [masks, masks, masks])
    at = Scene(cases, proposals, tmp_path / "table.csv")
    assert scores_of(Oracle(kind="oracle"), at) == pytest.approx([1, 8 / 12, 16 / 18, 0])
    assert scores_of(Oracle(kind="oracle"), at, row=1).tolist() == [0, 0, 0, 1], "an empty truth is met by no pixel"
    assert np.isnan(scores_of(Oracle(kind="oracle"), at, row=2)).all(), "a case without label"


# ---- score tables ----------------------------------------------------------------------------------------------

ROWS = ("c0,0,0.5", "c0,1,0.25", "c1,0,2", "c1,1,-1")


@pytest.fixture
def two_cases(tmp_path) -> Scene:
    return scene(tmp_path, [bars([8, 4]), bars([3, 9])])


def write_scores(at: Scene, *rows: str, header: str = "case_id,proposal,score") -> None:
    at.table.write_text("\n".join([header, *rows]) + "\n")


def table_scores(at: Scene, **knobs: Any) -> list[list[float]]:
    table = Table(kind="table", path=at.table, **knobs)
    return [scores_of(table, at, row).tolist() for row in range(len(at.cases.all))]


def test_table(two_cases):
    write_scores(two_cases, *ROWS[::-1])
    assert table_scores(two_cases) == [[0.5, 0.25], [2, -1]]


def test_table_of_errors_is_turned_around(two_cases):
    write_scores(two_cases, *ROWS)
    assert table_scores(two_cases, higher_is_better=False) == [[-0.5, -0.25], [-2, 1]]


def test_table_with_other_column_names_and_more_columns(two_cases):
    write_scores(two_cases, *(f"x,{row}" for row in ROWS), header="note,image,slot,quality")
    assert table_scores(two_cases, case="image", proposal="slot", score="quality") == [[0.5, 0.25], [2, -1]]


def test_parquet_table(two_cases, tmp_path):
    write_scores(two_cases, *ROWS)
    file = tmp_path / "scores.parquet"
    pl.read_csv(two_cases.table).write_parquet(file)
    assert table_scores(Scene(two_cases.cases, two_cases.proposals, file)) == [[0.5, 0.25], [2, -1]]


@pytest.mark.parametrize("cell", ["", "NaN", "nan"])
def test_an_empty_cell_or_nan_abstains(two_cases, cell):
    write_scores(two_cases, f"c0,0,{cell}", *ROWS[1:])
    found = table_scores(two_cases)
    assert np.isnan(found[0][0])
    assert found[0][1:] == [0.25]


def test_a_missing_row_abstains_or_is_an_error(two_cases):
    write_scores(two_cases, *ROWS[:3])
    found = table_scores(two_cases, missing="abstain")
    assert found[1][0] == 2
    assert np.isnan(found[1][1])
    with pytest.raises(BadInput) as caught:
        table_scores(two_cases)
    assert str(caught.value) == (
        f"{two_cases.table}: 1 of 4 proposals have no row, first: case 'c1', proposal 1; set missing: abstain if that is meant"
    )


@pytest.mark.parametrize("missing", ["abstain", "error"])
@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("c1,1,good", "score is not a number: 1 rows, first: case 'c1', proposal 1"),
        ("c1,1,inf", "score is infinite: 1 rows, first: case 'c1', proposal 1"),
        ("c1,one,3", "proposal is not a whole number: 1 rows, first: case 'c1', proposal one"),
        ("c1,0.5,3", "proposal is not a whole number: 1 rows, first: case 'c1', proposal 0.5"),
        ("c1,,3", "proposal is not a whole number: 1 rows, first: case 'c1', proposal None"),
        ("c1,2,3", "no such proposal: 1 rows, first: case 'c1', proposal 2"),
        ("c7,0,3", "no such proposal: 1 rows, first: case 'c7', proposal 0"),
        ("c0,0,0.5", "row is repeated: 2 rows, first: case 'c0', proposal 0"),
        ("c0,0,0.7", "row is repeated: 2 rows, first: case 'c0', proposal 0"),
    ],
)
def test_a_bad_row_is_named(two_cases, missing, row, problem):
    write_scores(two_cases, *ROWS[:3], row)
    with pytest.raises(BadInput) as caught:
        table_scores(two_cases, missing=missing)
    assert str(caught.value) == f"{two_cases.table}: {problem}"


def test_a_fraction_of_a_slot_is_no_slot_in_parquet_either(two_cases, tmp_path):
    file = tmp_path / "scores.parquet"
    pl.DataFrame({"case_id": ["c0", "c0"], "proposal": [0.0, 1.5], "score": [1.0, 2.0]}).write_parquet(file)
    with pytest.raises(BadInput, match="proposal is not a whole number"):
        table_scores(Scene(two_cases.cases, two_cases.proposals, file))


def test_case_ids_of_digits_keep_their_zeros(tmp_path):
    """`001` is a name, not the number 1."""
    file = tmp_path / "scores.csv"
    file.write_text("case_id,proposal,score\n001,0,0.5\n")
    at = scene(tmp_path, [bars([8])])
    with pytest.raises(BadInput, match="no such proposal: 1 rows, first: case '001', proposal 0"):
        table_scores(Scene(at.cases, at.proposals, file))


def test_a_missing_column_is_named(two_cases):
    write_scores(two_cases, *ROWS, header="case_id,proposal,quality")
    with pytest.raises(BadInput) as caught:
        table_scores(two_cases)
    assert str(caught.value) == (
        f"{two_cases.table}: expected a column 'score', found ['case_id', 'proposal', 'quality']; set its name in tables"
    )


def test_a_file_that_is_not_there_or_not_a_table(two_cases, tmp_path):
    with pytest.raises(BadInput, match=r"nowhere.csv: no such file; paths are relative to the folder of params.yaml"):
        table_scores(Scene(two_cases.cases, two_cases.proposals, tmp_path / "nowhere.csv"))
    (tmp_path / "broken.parquet").write_text("not parquet")
    with pytest.raises(BadInput, match="broken.parquet: not a readable Parquet or CSV file"):
        table_scores(Scene(two_cases.cases, two_cases.proposals, tmp_path / "broken.parquet"))


# ---- judges that break the contract ----------------------------------------------------------------------------


class Fixed(Knobs):
    """Gives these scores to every case."""

    scores: tuple[float, ...] | tuple[tuple[float, ...], ...]

    def ready(self, cases: CaseStore, proposals: ProposalStore, models: Path, seed: int) -> Fixed:
        return self

    def score(self, evidence: Evidence) -> np.ndarray:
        return np.array(self.scores) / (0 if evidence.case.case_id == "c1" and len(self.scores) == 3 else 1)


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ((1.0, 2.0, 3.0), r"case 'c1': judge 'j' gave \[inf inf inf\]; expected one finite number per proposal"),
        (((1.0, 2.0),), r"case 'c0': judge 'j' gave \[\[1. 2.\]\]; expected one finite number per proposal"),
        ((1.0,), "judge 'j': gave 2 scores, expected one for each of 4 proposals"),
    ],
)
def test_scores_of_the_wrong_form(two_cases, tmp_path, monkeypatch, scores, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=message):
        judge("j", Fixed(scores=scores), two_cases.cases, two_cases.proposals, tmp_path, 0, tmp_path / "j.parquet", SYNCHRONOUS)  # type: ignore[arg-type]
    assert not (tmp_path / "j.parquet").exists()
