"""The project of a next round: what is carried over, what is removed by name, and that its chain runs to the report."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML

from pipeline.errors import BadInput
from pipeline.exports.next_round import _members, next_round
from pipeline.params import Params, load_params
from pipeline.project.start import commit
from pipeline.promotion.promote import _copy_model
from pipeline.promotion.record import PROMOTION_FILE, PromotionRecord
from pipeline.segmenter.models import Model
from pipeline.store import schema
from pipeline.store.manifest import write_json, write_manifest
from pipeline.store.tables import read_table
from tests.fixtures.chain import ROOT, TINY, run_chain, with_changes, write_params

IMITATE = {"kind": "imitate", "proposal": "mean fitted"}
COMPOSED = {"proposal": "regions composed"}
ANCHORED = {"pairs": "none", "objective": IMITATE, "anchor": {"supervised": 1.0}}
PARAMS = with_changes(
    data={**TINY["data"], "cases": 44},
    splits={"labelled": 14, "pool": 10, "validation": 12, "test": 6},
    base={**TINY["base"], "members": 1, "folds": 2, "fold_members": 1},
    propose={
        "imports": "raw/none",
        "samplers": {
            "mean": {"kind": "mean"},
            "ensemble": {"kind": "ensemble"},
            "consensus": {"kind": "consensus", "of": ["majority"]},
        },
    },
    judges={
        "agreement": {"kind": "agreement"},
        "pairwise": {"kind": "pairwise"},
        "fixed": {"kind": "fixed"},
    },
    consensus={"both": {"kind": "rank_mean", "judges": ["agreement", "pairwise"]}},
    pairs={
        **TINY["pairs"],
        "learned": {"judge": "pairwise", "strategy": {"kind": "top_base", "min_p_correct": 0.0}},
    },
    students={
        "one": ANCHORED,
        "two": {**ANCHORED, "start": "member_1"},
        "other": {**ANCHORED, "objective": {"kind": "distill"}, "start": "member_1"},
        "learned": {"pairs": "learned", "objective": {"kind": "preference"}, "anchor": {"supervised": 1.0}},
        "of_fold": {**ANCHORED, "start": "fold_0", "offsets": "held_out"},
    },
)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished round, with the files that a clone has."""
    folder = tmp_path_factory.mktemp("rounds") / "round_1"
    run_chain(folder, PARAMS, skip=("report", "provenance"))
    for name in ("stages", "dvc.yaml", ".dvcignore", ".gitignore", ".dvc"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def promote(folder: Path, name: str | None) -> None:
    """Write the decision, whatever the run decided: networks this small hardly ever gain."""
    promoted = folder / "models/promoted"
    content = json.loads((promoted / PROMOTION_FILE).read_text())
    shutil.rmtree(promoted)
    promoted.mkdir()
    reason = "No student may replace the base: a test."
    write_json(promoted / PROMOTION_FILE, {**content, "promoted": name, "reason": reason})
    PromotionRecord.of(promoted)
    if name is not None:
        _copy_model(folder / "models/students" / name, promoted)
        write_manifest(promoted, (name,))


@contextmanager
def changed(folder: Path, **changes: Any) -> Iterator[None]:
    """A finished round whose `params.yaml` has other blocks for a while."""
    before = (folder / "params.yaml").read_text()
    write_params(folder, {**PARAMS, **changes})
    try:
        yield
    finally:
        (folder / "params.yaml").write_text(before)


@pytest.mark.parametrize(
    ("student", "offsets", "expected", "said"),
    [
        (
            "two",
            None,
            [0.5, 0.5],
            "0.5 for every class, because student 'two' imitated 'mean fitted', whose threshold is its",
        ),
        (
            "other",
            "pool",
            [0.5, 0.5],
            "0.5 for every class, because offsets of its own are in the last layer of student",
        ),
        ("other", None, [0.4, 0.4], "the thresholds [0.4, 0.4] are carried over"),
    ],
)
def test_no_threshold_is_applied_twice(
    first: Path, tmp_path: Path, student: str, offsets: str | None, expected: list[float], said: str
) -> None:
    """A student that learned the masks at .4 has their outline at its own .5."""
    promote(first, student)
    set_headroom(first, "headroom left: a test")
    fitted = first / "data/proposals/fitted.json"
    before = fitted.read_text()
    content = json.loads(before)
    fitted.write_text(json.dumps({**content, "mean": {**content["mean"], "thresholds": [0.4, 0.4]}}))
    students = {**PARAMS["students"], student: {**PARAMS["students"][student], "offsets": offsets}}
    try:
        with changed(first, students=students):
            made = next_round(first, tmp_path / "round_2")
    finally:
        fitted.write_text(before)
    params = load_params(tmp_path / "round_2/params.yaml")
    assert list(params.propose.samplers["mean"].fitted) == expected  # type: ignore[union-attr]
    (line,) = [line for line in made.removed if line.startswith("propose.samplers.mean.fitted: ")]
    assert said in line


def test_answers_stay_with_their_masks(first: Path, tmp_path: Path) -> None:
    """The masks of the next round are others, so the answers go, with everything that rests on them."""
    promote(first, "two")
    set_headroom(first, "headroom left: a test")
    more = {
        "review": {"verdicts": "review/verdicts.parquet"},
        "experts": {"clinician": {"kind": "expert"}},
        "pairs": {**PARAMS["pairs"], "answered": {"judge": "none", "strategy": {"kind": "reviewed"}}},
        "students": {**PARAMS["students"], "answered": {**PARAMS["students"]["learned"], "pairs": "answered"}},
    }
    with changed(first, **more):
        made = next_round(first, tmp_path / "round_2")
    params = load_params(tmp_path / "round_2/params.yaml")
    assert (params.review.verdicts, params.experts, "answered" in params.pairs) == (Path("raw/none"), {}, False)
    assert "answered" not in params.students
    assert "review.verdicts: review/verdicts.parquet is about the masks of this round" in made.removed
    assert "experts.clinician: it learns from answers on masks of this round" in made.removed


def test_scores_from_elsewhere_stay_with_their_masks(first: Path, tmp_path: Path) -> None:
    """In the same slots lie other masks, which the old scores would order without a word."""
    promote(first, "two")
    set_headroom(first, "headroom left: a test")
    more = {
        "tables": {"qc": {"kind": "table", "path": "qc/scores.csv"}},
        "consensus": {"with_qc": {"kind": "rank_mean", "judges": ["agreement", "qc"]}},
        "pairs": {**PARAMS["pairs"], "by_qc": {"judge": "qc", "strategy": {"kind": "top_base"}}},
        "students": {**PARAMS["students"], "by_qc": {**PARAMS["students"]["learned"], "pairs": "by_qc"}},
    }
    with changed(first, **more):
        made = next_round(first, tmp_path / "round_2")
    params = load_params(tmp_path / "round_2/params.yaml")
    assert (params.tables, params.consensus) == ({}, {})
    assert not {"by_qc"} & {*params.pairs, *params.students}
    assert "tables.qc: its scores are of the masks of this round" in made.removed
    assert "consensus.with_qc: it combines qc" in made.removed


def test_proposals_of_members_that_are_gone_are_named(first: Path, tmp_path: Path) -> None:
    """The new base has member_1 alone. `few` loses all of its models, `both` one of two."""
    promote(first, "two")
    set_headroom(first, "headroom left: a test")
    samplers = {
        **PARAMS["propose"]["samplers"],
        "few": {"kind": "ensemble", "members": ["member_2"]},
        "both": {"kind": "mean", "members": ["member_1", "member_2"], "fitted": False},
        "regions": {"kind": "regions", "fixed": "mean all"},
        "second_regions": {"kind": "regions", "fixed": "regions composed"},
    }
    ranking = first / "models/judges/fixed/ranking.json"
    ranked = ranking.read_text()
    write_json(ranking, {"ensemble member_2": 0.9, "mean all": 0.8, "base": 0.7})
    more = {
        "base": {**PARAMS["base"], "members": 2},
        "propose": {**PARAMS["propose"], "samplers": samplers},
        "judges": {
            **PARAMS["judges"],
            "second": {"kind": "fixed", "proposal": "ensemble member_2"},
            "composed": {"kind": "fixed", "proposal": "second_regions composed"},
        },
        "students": {
            **PARAMS["students"],
            "of_two": {**ANCHORED, "objective": {"kind": "imitate", "proposal": "ensemble member_2"}},
            "of_regions": {**ANCHORED, "objective": {"kind": "imitate", **COMPOSED}},
            "beside": {
                **ANCHORED,
                "objective": {"kind": "distill"},
                "anchor": {"supervised": 1.0, "imitate": COMPOSED},
            },
            "regions": {"pairs": "none", "objective": {"kind": "proposal", "pick": "regions composed"}},
        },
    }
    with changed(first, **more):
        made = next_round(first, tmp_path / "round_2")
    ranking.write_text(ranked)
    params = load_params(tmp_path / "round_2/params.yaml")
    assert set(params.propose.samplers) == {"mean", "ensemble", "consensus", "both"}
    assert params.propose.samplers["both"].members == ("member_1",)  # type: ignore[union-attr]
    assert params.judges["fixed"].proposal == "mean all"  # type: ignore[union-attr]
    assert "second" not in params.judges
    assert "of_two" not in params.students
    # Composed masks fall back to `mean all`, and so do a judge that preferred them and students that imitated them. An
    # arm without training leaves.
    assert params.judges["composed"].proposal == "mean all"  # type: ignore[union-attr]
    assert params.students["of_regions"].proposals == ["mean all"]
    assert params.students["beside"].proposals == ["mean all"]
    assert "regions" not in params.students
    removed = "\n".join(made.removed)
    for line in (
        "judges.composed: prefers 'mean all', which is what 'second_regions composed' is where nothing is composed",
        "students.of_regions: imitates 'mean all', which is what 'regions composed' is where nothing is composed",
        "students.regions: proposal 'regions composed' is gone",
        "propose.samplers.few: no student of the promoted recipe started from one of its members",
        "propose.samplers.both.members: no student of the promoted recipe started from ['member_2']",
        "judges.fixed.proposal: 'mean all', the best on labelled cases of the proposals of the new round, is carried",
        "judges.second: its proposal 'ensemble member_2' is gone",
        "students.of_two: proposal 'ensemble member_2' is gone",
    ):
        assert line in removed


def test_a_promoted_student_that_left_params_is_named(first: Path, tmp_path: Path) -> None:
    promote(first, "two")
    set_headroom(first, "headroom left: a test")
    left = {name: student for name, student in PARAMS["students"].items() if name != "two"}
    with (
        changed(first, students=left),
        pytest.raises(BadInput, match="expected the promoted student 'two' under students, found"),
    ):
        next_round(first, tmp_path / "round_2")


def test_the_base_is_what_was_promoted(first: Path, tmp_path: Path) -> None:
    """And not what the student of this name has become since."""
    promote(first, "two")
    set_headroom(first, "headroom left: a test")
    weights = first / "models/students/two/last.safetensors"
    before = weights.read_bytes()
    weights.write_bytes((first / "models/students/one/last.safetensors").read_bytes())
    next_round(first, tmp_path / "round_2")
    weights.write_bytes(before)
    assert (tmp_path / "round_2/raw/model/base.safetensors").read_bytes() == before


def test_the_block_of_the_plans_is_carried_over(first: Path, tmp_path: Path) -> None:
    """The new base is a student, which has no plans."""
    promote(first, "two")
    set_headroom(first, "headroom left: a test")
    with changed(first, preprocess="plans", model="raw/A__B__2d", base={"kind": "nnunet", "folds": [0, 1]}):
        made = next_round(first, tmp_path / "round_2")
    assert "preprocess: the block of the plans is carried over, because a student has no plans" in made.removed
    prepared = json.loads((first / "data/cases/cases.json").read_text())["preprocess"]
    assert load_params(tmp_path / "round_2/params.yaml").preprocess.model_dump(mode="json") == prepared  # type: ignore[union-attr]


def set_headroom(folder: Path, verdict: str) -> None:
    path = folder / "audit/summary.json"
    content: dict[str, Any] = json.loads(path.read_text())
    write_json(path, {**content, "headroom": {**content["headroom"], "verdict": verdict}})


def test_the_next_round(first: Path, tmp_path: Path) -> None:
    """Student `two` started from member_1: it is the base now, and student `one`, from the base, is member_1."""
    promote(first, "two")
    set_headroom(first, "headroom left: a test")
    folder = tmp_path / "deep/round_2"
    made = next_round(first, folder)
    assert (made.base, made.members) == ("two", {"member_1": "one"})
    assert (folder / ".dvc/plots/by_model.json").is_file()
    for role, student in (("base", "two"), ("member_1", "one")):
        written = (folder / f"raw/model/{role}.safetensors").read_bytes()
        assert written == (first / f"models/students/{student}/last.safetensors").read_bytes()
    params = load_params(folder / "params.yaml")
    assert params.base is not None
    assert params.base.model_dump()["members"] == ("member_1",)
    ranking = json.loads((first / "models/judges/fixed/ranking.json").read_text())
    assert params.judges["fixed"].proposal == max(ranking, key=ranking.get)  # type: ignore[union-attr]
    assert set(params.judges) == {"agreement", "fixed"}
    assert (set(params.consensus), set(params.pairs)) == (set(), {"none", "mined"})
    assert set(params.students) == {"one", "two", "other"}
    removed = "\n".join(made.removed)
    for line in (
        "judges.pairwise: it learns from proposals of models that have not seen a case",
        "consensus.both: it combines pairwise",
        "pairs.learned: judge pairwise is removed",
        "students.learned: pair set learned is removed",
        "students.of_fold: the new base has no model 'fold_0'",
    ):
        assert line in removed
    assert (folder / ".git").is_dir()
    content = YAML(typ="safe").load(folder / "params.yaml")
    run_chain(folder, content, skip=("provenance",))
    second = read_table(folder / "validation/base.parquet", schema.EVALUATION)
    student = read_table(first / "validation/two.parquet", schema.EVALUATION)
    assert second.equals(student), "the base of the second round is the student of the first"
    cases = [(at / "data/cases/cases.parquet").read_bytes() for at in (first, folder)]
    assert cases[0] == cases[1]
    over_first = PromotionRecord.of(folder / "models/promoted")
    assert over_first is not None
    assert all(one.over_first_base is not None for one in over_first.students)


@pytest.mark.parametrize("how", ["no git", "refusing", "silent"])
def test_a_round_that_git_does_not_take_is_named(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without git on this machine, where a setting of git refuses the commit, and where git fails without a word."""
    if how == "no git":
        monkeypatch.setenv("PATH", str(tmp_path))
    elif how == "silent":
        (tmp_path / "git").write_text("#!/bin/sh\necho >&2\nexit 1\n")
        (tmp_path / "git").chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    else:
        for name, value in (("COUNT", "1"), ("KEY_0", "commit.gpgSign"), ("VALUE_0", "true")):
            monkeypatch.setenv(f"GIT_CONFIG_{name}", value)
        monkeypatch.setenv("GNUPGHOME", str(tmp_path))
    (tmp_path / "round").mkdir()
    (tmp_path / "round/file").touch()
    with pytest.raises(
        BadInput,
        match=r"round: expected a git repository, which DVC needs, found an error of git: .+; all other files are "
        "complete: run `git init && git add -A && git commit -m start` there",
    ):
        commit(tmp_path / "round", "Next round")


def test_nothing_promoted_is_refused_with_the_reason(first: Path, tmp_path: Path) -> None:
    promote(first, None)
    with pytest.raises(BadInput, match=r"models/promoted: expected a promoted student, found none: .*: a test\."):
        next_round(first, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_no_headroom_stops(first: Path, tmp_path: Path) -> None:
    promote(first, "one")
    set_headroom(first, "no headroom shown: a test")
    with pytest.raises(BadInput, match="no headroom shown: a test; another round has nothing to learn from"):
        next_round(first, tmp_path / "new")


@pytest.mark.parametrize("name", ["one", "two"])
def test_offsets_of_a_student_are_in_its_weights(first: Path, tmp_path: Path, name: str) -> None:
    """A base has no offsets, so those of the base and of a member go into the bias of the last layer."""
    promote(first, "one")
    set_headroom(first, "headroom left: a test")
    student = first / ("models/promoted" if name == "one" else "models/students/two")
    record = student / "student.json"
    before = record.read_text()
    offsets = [0.5] * (Model(student, "last").architecture.classes - 1)
    write_json(record, {**json.loads(before), "offsets": offsets})
    next_round(first, tmp_path / "new")
    record.write_text(before)
    old = Model(student, "last").load()
    new = Model(tmp_path / "new/raw/model", "base" if name == "one" else "member_1").load()
    image = torch.randn((1, 1, 16, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        moved = new(image) - old(image)
    # The head of these phantoms has an output per foreground class, or one more for the background.
    shift = torch.tensor([*([0.0] * (moved.shape[1] - len(offsets))), *offsets])
    assert torch.allclose(moved, shift.view(1, -1, 1, 1).expand_as(moved), atol=1e-5)


def test_offsets_that_no_weights_can_hold_are_refused(
    first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the offsets the round would start from another model than the promoted one."""
    promote(first, "one")
    set_headroom(first, "headroom left: a test")
    record = first / "models/promoted/student.json"
    before = record.read_text()
    write_json(record, {**json.loads(before), "offsets": [0.5, 0.0]})
    monkeypatch.setattr("pipeline.segmenter.output_bias.add_to_output_bias", lambda *_: False)
    with pytest.raises(
        BadInput, match=r"expected a network whose last layer has a bias to hold the offsets \[0.5, 0.0\]"
    ):
        next_round(first, tmp_path / "new")
    record.write_text(before)
    assert not (tmp_path / "new").exists()


def test_members_that_started_from_folds_get_names_of_members() -> None:
    content = {**PARAMS["students"], "three": {**ANCHORED, "start": "fold_1"}}
    params = Params.model_validate_json(json.dumps(with_changes(**{**PARAMS, "students": content})))
    assert _members(params, "one") == {"member_1": "two", "member_2": "three"}


def test_a_folder_with_content_is_refused(first: Path, tmp_path: Path) -> None:
    promote(first, "one")
    set_headroom(first, "headroom left: a test")
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="expected a folder that is new or empty"):
        next_round(first, tmp_path)
