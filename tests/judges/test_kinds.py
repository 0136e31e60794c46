"""Judges: one contract for all kinds, and what `judge` does with scores."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, get_args

import numpy as np
import pytest

from pipeline.compute import Compute
from pipeline.errors import BadInput
from pipeline.execution import Execution, Runtime
from pipeline.judges.judge import Evidence, JudgeInputs, JudgeKnobs
from pipeline.judges.kinds import Judge
from pipeline.judges.score import JudgeFiles, LabelFree, judge
from pipeline.seeding import numpy_generator
from pipeline.store import schema
from pipeline.store.tables import read_table
from tests.fixtures.builders import bars, case_store, proposal_store
from tests.fixtures.judging import Scene, evidence_of, folds_of, noisy_labels, scene, scorer_of, scores_of, seen_by
from tests.fixtures.phantoms import disc

KINDS = {get_args(kind.model_fields["kind"].annotation)[0]: kind for kind in get_args(get_args(Judge)[0])}
# An expert learns from answers on the cases that it scores, which these scenes lack. It has a file of its own.
del KINDS["expert"]
TINY_ERROR_MAP = {
    "networks": 2,
    "network": {"arguments": {"channels": [2, 4], "strides": [2]}, "multiple": 2},
    "optimisation": {"steps": 2, "learning_rate": 0.001, "evaluate_every": 1},
    "batch": 4,
}
TINY_QUALITY = {
    "networks": 1,
    "network": {"name": "DenseNet", "arguments": {"init_features": 4, "growth_rate": 2, "block_config": [1, 1]}},
    "optimisation": {"steps": 2, "learning_rate": 0.001, "evaluate_every": 1},
    "batch": 4,
}
EXAMPLES: dict[str, list[dict[str, Any]]] = {
    "agreement": [{}, {"duplicates": "drop", "balanced": True}],
    "entropy": [{}, {"region": "interior", "band": 1}],
    "error_map": [TINY_ERROR_MAP, {**TINY_ERROR_MAP, "given_mask": True, "networks": 1}],
    "expected_dice": [{}],
    "fixed": [{}, {"proposal": "base"}],
    "likelihood": [{}],
    "oracle": [{}],
    "pairwise": [{}, {"samplers": False, "weigh": "equal"}],
    "quality": [TINY_QUALITY, {**TINY_QUALITY, "networks": 2, "ranking": 0.0}],
    "rca": [{}, {"aggregate": "mean", "position": True, "voxels": 16, "references": 1}],
    "shape": [{}, {"position": False, "fewest": 2}],
    "synthetic": [{}, {"gaussian": 0.1, "flip": 0.3, "size_bias": 0.2, "large_above": 0.1}],
    "table": [{}],  # with the path of the scene's table
}
"""Knobs with which each kind keeps the contract; the first without errors that are planted."""
ABSTAINS = {"entropy", "fixed"}
"""Kinds with a reason to abstain on an empty or full mask."""
RESEARCH = {"oracle", "synthetic"}
"""Kinds that may read the truth."""
SYNCHRONOUS = Execution(scheduler="synchronous", progress="none")

every_judge = pytest.mark.parametrize(("kind", "example"), [(k, n) for k in KINDS for n in range(len(EXAMPLES[k]))])


def configured(kind: str, at: Scene, example: int = 0) -> Any:
    path = {"path": at.table} if "path" in KINDS[kind].model_fields else {}
    return KINDS[kind].model_validate({"kind": kind, **path, **EXAMPLES[kind][example]})


def blobs(space: tuple[int, ...], classes: int) -> np.ndarray:
    """Six proposals: noise, the same again, an empty mask, a full one, and two more of noise."""
    noise = numpy_generator("judges", space, classes).integers(classes, size=(3, *space)).astype(np.uint8)
    empty, full = np.zeros(space, np.uint8), np.ones(space, np.uint8)
    return np.stack([noise[0], noise[0], empty, full, noise[1], noise[2]])


def unknowns() -> np.ndarray:
    """Four proposals: two of noise with voxels that are 255, one wholly 255, an empty one."""
    masks = blobs((6, 7), 3)[[0, 4, 5, 2]]
    masks[0, 2:4], masks[1, :, 3], masks[2] = schema.UNKNOWN, schema.UNKNOWN, schema.UNKNOWN
    return masks


SPACES = [((6, 7), 2), ((6, 7), 4), ((3, 4, 5), 2), ((3, 4, 5), 3)]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> dict[Any, Scene]:
    """Scenes by what is in them; no judge changes one."""
    folder = tmp_path_factory.mktemp("scenes")
    three = [bars([8, 4, 2]), bars([3, 9, 12])]
    truth: dict[str, Sequence[np.ndarray | None]] = {
        "one": noisy_labels(1, 2, (1, 16), 2),
        "other": noisy_labels(2, 2, (1, 16), 2),
        "none": [None, None],
    }
    same = [np.full((4, 5, 5), fill, np.uint8) for fill in (0, 1, schema.UNKNOWN)]
    return {
        **{which: learnable(folder / str(n), [blobs(*which)], classes=which[1]) for n, which in enumerate(SPACES)},
        **{name: learnable(folder / name, three, labels=labels) for name, labels in truth.items()},
        "same": learnable(folder / "same", same),
        "single": learnable(folder / "single", [bars([8]), bars([0]), bars([16])]),
        "unknown": learnable(folder / "unknown", [unknowns()], classes=3),
        "island": island(folder / "island"),
    }


def learnable(
    folder: Path,
    masks: Sequence[np.ndarray],
    classes: int = 2,
    labels: Sequence[np.ndarray | None] | None = None,
    references: Sequence[np.ndarray] | None = None,
) -> Scene:
    """A scene with images, and three labelled cases with out-of-fold proposals, for judges that learn from labels.

    Without `references` all is noise, else the images are labels in noise. The proposals are the label, each with
    another share of its voxels drawn anew.
    """
    space = masks[0].shape[1:]
    at = scene(folder, masks, classes=classes, labels=labels)
    truth = noisy_labels(0, len(masks), space, classes) if labels is None else labels
    learned = noisy_labels(3, 3, space, classes) if references is None else references
    shown = [np.zeros(space) if references is None or label is None else label for label in [*truth, *learned]]
    images = [
        (label + 0.3 * numpy_generator("images", row).normal(size=space)).astype(np.float32)[None]
        for row, label in enumerate(shown)
    ]
    splits = ["pool"] * len(masks) + ["labelled"] * len(learned)
    cases = case_store(folder / "learnable", [*truth, *learned], splits, images, space, classes)
    anew = [
        np.stack([redrawn(label, 0.1 * slot, classes, row, slot) for slot in range(4)])
        for row, label in enumerate([*(np.zeros(m.shape[1:], np.uint8) for m in masks), *learned])
    ]
    return Scene(cases, at.proposals, at.table, proposal_store(folder / "out_of_fold", anew, classes=classes))


def redrawn(label: np.ndarray, share: float, classes: int, *seed: int) -> np.ndarray:
    draw = numpy_generator("redrawn", *seed)
    return np.where(draw.random(label.shape) < share, draw.integers(classes, size=label.shape), label).astype(np.uint8)


def island(folder: Path) -> Scene:
    """Five members see the disc that is there, two of them also an island that is not; in 2 of 5 proposals."""
    there, false = disc((20, 20), 4, -4), disc((20, 20), 3, 6)
    both = there | false
    references = [disc((20, 20), radius, -4) for radius in (3.5, 4, 4.5)]
    return learnable(folder, [np.stack([there, both, there, both, there])], labels=[there], references=references)


# ---- the contract ----------------------------------------------------------------------------------------------


def test_every_kind_has_examples():
    assert EXAMPLES.keys() == KINDS.keys()
    assert {name for name, kind in KINDS.items() if kind.research} == RESEARCH


@every_judge
@pytest.mark.parametrize(("space", "classes"), SPACES)
def test_every_judge_scores_every_proposal(scenes, kind, example, space, classes):
    """f64 `[proposal]`, never infinite; equal masks have equal scores; the same again, and after pickling."""
    at = scenes[space, classes]
    knobs = configured(kind, at, example)
    scorer = scorer_of(knobs, at)
    scores = scorer.score(evidence_of(knobs, at))
    assert (scores.dtype, scores.shape) == (np.float64, (6,))
    assert not np.isinf(scores).any()
    assert np.isfinite(scores).all() or (kind in ABSTAINS and np.isfinite(scores).any())
    assert repr(scores[0]) == repr(scores[1])
    assert len({repr(score) for score in scores.tolist()}) > 1
    for other in (scorer, pickle.loads(pickle.dumps(scorer)), scorer_of(pickle.loads(pickle.dumps(knobs)), at)):
        assert other.score(evidence_of(knobs, at)).tobytes() == scores.tobytes()


@every_judge
@pytest.mark.parametrize("row", [0, 1, 2])
def test_every_judge_on_masks_that_are_all_the_same(scenes, kind, example, row):
    """All empty, all full or all unknown: one score for all, finite or an abstention."""
    at = scenes["same"]
    scores = scores_of(configured(kind, at, example), at, row)
    assert len({repr(score) for score in scores.tolist()}) == 1
    assert not np.isinf(scores).any()


@every_judge
@pytest.mark.parametrize("row", [0, 1, 2])
def test_every_judge_on_a_single_proposal(scenes, kind, example, row):
    scores = scores_of(configured(kind, scenes["single"], example), scenes["single"], row)
    assert scores.shape == (1,)
    assert not np.isinf(scores).any()


@every_judge
def test_every_judge_on_unknown_voxels(scenes, kind, example):
    scores = scores_of(configured(kind, scenes["unknown"], example), scenes["unknown"])
    assert scores.shape == (4,)
    assert not np.isinf(scores).any()


@pytest.mark.parametrize("kind", KINDS)
def test_higher_is_better(scenes, kind):
    """An object that most members see beats the same with an island that few see and that is not there."""
    scores = scores_of(configured(kind, scenes["island"]), scenes["island"])
    assert scores[0] > scores[1]
    assert scores[[0, 1]].tolist() == scores[[2, 3]].tolist()


@every_judge
def test_only_judges_for_research_see_the_truth(scenes, kind, example):
    """Another truth, or none, changes no score of the others."""
    found = {
        scores_of(configured(kind, scenes[name], example), scenes[name], row=1).tobytes()
        for name in ("one", "other", "none")
    }
    assert len(found) == (3 if kind in RESEARCH else 1)


@every_judge
def test_every_judge_writes_a_table_of_equal_bytes(tmp_path, monkeypatch, scenes, kind, example):
    """One row per proposal of every case, whatever the scheduler."""
    monkeypatch.chdir(tmp_path)
    at = scenes["one"]
    knobs = configured(kind, at, example)
    found = []
    for number, execution in enumerate([SYNCHRONOUS, Execution(scheduler="threads", progress="none")]):
        out = tmp_path / f"{number}.parquet"
        judge("j", knobs, at.data, folds_of(at), JudgeFiles(tmp_path / "models", out), Runtime(Compute(), 0, execution))
        found.append(out.read_bytes())
    assert found[0] == found[1]
    table = read_table(tmp_path / "0.parquet", schema.SCORES)
    assert table.select("case_id", "proposal").equals(at.proposals.table.select("case_id", "proposal"))
    assert table["judge"].unique().to_list() == ["j"]
    expected = [scores_of(knobs, at, row) for row in range(2)]
    assert table["score"].fill_null(np.nan).to_list() == pytest.approx(np.concatenate(expected), nan_ok=True)


# ---- judges that break the contract ----------------------------------------------------------------------------


class Fixed(JudgeKnobs):
    """Gives these scores to every case."""

    kind: str = "fixed"
    scores: tuple[float, ...] | tuple[tuple[float, ...], ...]

    def score(self, evidence: Evidence) -> np.ndarray:
        return np.array(self.scores) / (0 if evidence.case.case_id == "c1" and len(self.scores) == 3 else 1)


def judged_by(knobs: Any, at: Scene, out: Path) -> dict[str, list[float | None]]:
    """Scores by case, as written."""
    judge("j", knobs, at.data, folds_of(at), JudgeFiles(out.parent / "models", out), Runtime(Compute(), 0, SYNCHRONOUS))
    table = read_table(out, schema.SCORES)
    return {str(case[0]): rows["score"].to_list() for case, rows in table.group_by("case_id", maintain_order=True)}


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ((1.0, 2.0, 3.0), r"case 'c1': judge 'j' gave \[inf inf inf\]; expected one finite number per proposal"),
        (((1.0, 2.0),), r"case 'c0': judge 'j' gave \[\[1. 2.\]\]; expected one finite number per proposal"),
        ((1.0,), "judge 'j': expected one score for each of 6 proposals, found 2; return one number per mask"),
    ],
)
def test_scores_of_the_wrong_form(tmp_path, monkeypatch, scenes, scores, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=message):
        judged_by(Fixed(scores=scores), scenes["one"], tmp_path / "j.parquet")
    assert not (tmp_path / "j.parquet").exists()


class Peeking(JudgeKnobs):
    """Looks at the label of a case of this split while scoring, or before."""

    kind: str = "peeking"
    split: str = "pool"
    when: str = "truth"

    def ready(self, given: JudgeInputs) -> Peeking:
        if self.when == "ready":
            case = given.cases.split(self.split)[0]
            given.cases.label(case)
        return self

    def score(self, evidence: Evidence) -> np.ndarray:
        case = evidence.cases.split(self.split)[0]
        if self.when == "truth":
            evidence.truth()
        if self.when == "label":
            evidence.cases.label(case)
        if self.when == "source":
            evidence.cases.truth(case)
        return np.zeros(2)


class Researching(Peeking):
    """The same, for research."""

    research: ClassVar[bool] = True


@pytest.fixture(scope="module")
def splits(tmp_path_factory) -> Scene:
    """A case of each split and two labelled ones, all with label and proposals, which are also out of fold."""
    masks = [bars([8, 4])] * 5
    names = ["pool", "test", "validation", "labelled", "labelled"]
    at = scene(tmp_path_factory.mktemp("splits"), masks, splits=names)
    return replace(at, out_of_fold=at.proposals)


@pytest.mark.parametrize("split", ["pool", "validation", "test"])
@pytest.mark.parametrize("when", ["ready", "label", "source"])
def test_a_judge_that_is_not_for_research_gets_no_label(tmp_path, monkeypatch, splits, split, when):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "j.parquet"
    message = f"a judge without `research = True` asked for the label of a {split} case; expected labels of the label"
    with pytest.raises(BadInput, match=message):
        judged_by(Peeking(split=split, when=when), splits, out)
    assert judged_by(Peeking(split="labelled", when=when), splits, out).keys() == {"c0", "c2", "c3", "c4"}
    assert judged_by(Researching(split=split, when=when), splits, out).keys() == {"c0", "c2", "c3", "c4"}


def test_a_judge_that_is_not_for_research_gets_no_truth(tmp_path, monkeypatch, splits):
    """Of no case that it scores, labelled ones included."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput) as caught:
        judged_by(Peeking(), splits, tmp_path / "j.parquet")
    for row in (0, 2, 3, 4):
        assert f"case 'c{row}': a judge without `research = True` asked for the truth; " in str(caught.value)
    assert judged_by(Researching(), splits, tmp_path / "j.parquet").keys() == {"c0", "c2", "c3", "c4"}


def test_cases_without_labels_stay_so_in_a_worker(splits):
    store = pickle.loads(pickle.dumps(LabelFree(splits.cases.folder)))
    with pytest.raises(BadInput, match="label of a pool case"):
        store.label(store.split("pool")[0])


@pytest.mark.parametrize("window", [(1, 8), (1, 16)])
def test_cases_without_labels_stay_so_however_large(splits, window):
    """Labels of a case larger than the window are read from disk, crop by crop."""
    store = LabelFree(splits.cases.folder)
    assert len(store.with_labels(store.split("labelled"), window).labels) == 2
    with pytest.raises(BadInput, match="label of a pool case"):
        store.with_labels(store.split("pool"), window)


@pytest.mark.parametrize("kind", KINDS)
def test_test_cases_are_not_judged(tmp_path, monkeypatch, splits, kind):
    monkeypatch.chdir(tmp_path)
    assert judged_by(configured(kind, splits), splits, tmp_path / "j.parquet").keys() == {"c0", "c2", "c3", "c4"}


class FromFile(JudgeKnobs):
    """Scores every proposal by the number in a file; fails on the second case while there is a mark beside it."""

    kind: str = "from_file"
    path: Path

    def inputs(self) -> list[Path]:
        return [self.path]

    def score(self, evidence: Evidence) -> np.ndarray:
        if evidence.case.case_id == "c1" and self.path.with_suffix(".fail").exists():
            raise BadInput("case 'c1': told to fail")
        return np.full(len(evidence.masks), float(self.path.read_text()))


def test_unfinished_scores_of_a_changed_file_are_not_taken_up(tmp_path, monkeypatch, scenes):
    monkeypatch.chdir(tmp_path)
    knobs, mark = FromFile(path=tmp_path / "number.txt"), tmp_path / "number.fail"
    knobs.path.write_text("1")
    mark.touch()
    with pytest.raises(BadInput, match="told to fail"):
        judged_by(knobs, scenes["one"], tmp_path / "j.parquet")
    mark.unlink()
    knobs.path.write_text("2")
    assert judged_by(knobs, scenes["one"], tmp_path / "j.parquet") == {"c0": [2] * 3, "c1": [2] * 3}


def test_a_judge_sees_samplers_and_repeated_masks(scenes):
    at = scenes["one"]
    evidence = Evidence(seen_by(Fixed(scores=()), at), at.proposals, at.cases.all[1])
    assert evidence.samplers == ["base", "s", "s"]
    assert evidence.disagreement.tolist() == [[0, 6, 9], [6, 0, 3], [9, 3, 0]], "lengths 3, 9 and 12"
    at = scenes[(6, 7), 2]
    assert Evidence(at.cases, at.proposals, at.cases.all[0]).originals.tolist() == [0, 0, 2, 3, 4, 5]
