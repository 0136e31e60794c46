"""Judges: one contract for all kinds, and one case by hand for each."""

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
from pipeline.dataset import CaseStore, ProposalStore
from pipeline.errors import BadInput
from pipeline.execution import Execution
from pipeline.judges import Judge
from pipeline.judges.agreement import Agreement
from pipeline.judges.expected_dice import ExpectedDice
from pipeline.judges.judge import Evidence, judge
from pipeline.judges.oracle import Oracle
from pipeline.knobs import Knobs
from pipeline.seeding import numpy_generator
from pipeline.store import read_table
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
    for other in (
        scorer,
        pickle.loads(pickle.dumps(scorer)),
        pickle.loads(pickle.dumps(knobs)).ready(at.cases, at.proposals, tmp_path, 0),
    ):
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
    expected = [scores_of(knobs, at, row) for row in range(3)]
    assert table["score"].fill_null(np.nan).to_list() == pytest.approx(np.concatenate(expected), nan_ok=True)


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


# ---- judges that break the contract ----------------------------------------------------------------------------


class Fixed(Knobs):
    """Gives these scores to every case."""

    kind: str = "fixed"
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
def test_scores_of_the_wrong_form(tmp_path, monkeypatch, scores, message):
    monkeypatch.chdir(tmp_path)
    two_cases = scene(tmp_path, [bars([8, 4]), bars([3, 9])])
    with pytest.raises(BadInput, match=message):
        judge(
            "j",
            Fixed(scores=scores),
            two_cases.cases,
            two_cases.proposals,
            tmp_path,
            0,
            tmp_path / "j.parquet",
            SYNCHRONOUS,
        )  # type: ignore[arg-type]
    assert not (tmp_path / "j.parquet").exists()
