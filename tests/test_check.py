"""What a run cannot do with its cases is said all at once, before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.check import check, check_paths
from pipeline.errors import BadInput
from pipeline.params import Params
from pipeline.segmenter.seen import Seen
from pipeline.store.arrays import Slabs
from tests.fixtures.builders import case_store
from tests.fixtures.chain import TINY, with_changes

SPLITS = ["labelled"] * 8 + ["pool"] * 2 + ["validation"] * 20 + ["test"] * 5
SUPERVISED = {"anchor": {"supervised": 1.0}}


def found(
    folder: Path,
    unlabelled: tuple[int, ...] = (),
    splits: list[str] = SPLITS,
    channels: tuple[str, ...] = ("grey",),
    **changes: Any,
) -> list[str]:
    """Problems, or notes if there is no problem, of `TINY` with changes on cases without a mask of these numbers."""
    masks = [None if case in unlabelled else np.zeros((4, 4), np.uint8) for case in range(len(splits))]
    params = Params.model_validate_json(json.dumps(with_changes(**changes)))
    try:
        return check(params, case_store(folder / "cases", masks, splits, channels=channels))
    except BadInput as error:
        return str(error).splitlines()


def test_a_run_that_can_be_done(tmp_path):
    assert found(tmp_path) == []


def test_everything_is_said_at_once(tmp_path):
    """Full labels and the oracle on a pool without masks, a learned judge without folds, an arm without proposals."""
    lines = found(
        tmp_path,
        unlabelled=(8, 9),
        judges={**TINY["judges"], "pairwise": {"kind": "pairwise"}, "oracle": {"kind": "oracle"}},
        consensus={"both": {"kind": "rank_mean", "judges": ["agreement", "pairwise"]}},
        pairs={
            **TINY["pairs"],
            "oracle": {"judge": "oracle", "strategy": {"kind": "top_base"}},
            "both": {"judge": "both", "strategy": {"kind": "top_base"}},
        },
        students={
            "full": {"pairs": "none", "objective": {"kind": "full", "optimisation": {"steps": 1, "learning_rate": 1}}},
            "best": {"pairs": "none", "objective": {"kind": "proposal"}},
            "third": {"pairs": "none", "objective": {"kind": "supervised"}, "start": "member_3"},
        },
    )
    assert all(line.startswith("params.yaml: ") for line in lines)
    assert [line.split(": ")[1] for line in lines] == [
        "judges.pairwise",
        "pairs.oracle",
        "students.full",
        "students.best",
        "students.third.start",
    ]
    assert "set base.folds to at least 2, or remove the judge and pairs.both, consensus.both" in lines[0]
    assert "judge 'oracle' reads the truth of split 'pool', where no case has a mask" in lines[1]
    assert "learns from the masks of split 'pool', found 2 of 2 cases without (first: 'c8')" in lines[2]
    assert lines[3].endswith("expected proposals of split 'test'; add 'test' to propose.splits")
    assert lines[4].endswith("expected one of ['base', 'member_1'], found 'member_3'")


@pytest.mark.parametrize(
    ("val", "seen", "expected"),
    [
        (None, False, "copy splits_final.json of the training to {file}, or remove the judge"),
        (["c8"], False, "put cases into the split labelled that one of base.folds held out (`val` in {file})"),
        (["c7"], False, None),
        (["c7"], True, "found none; remove the judge"),
    ],
)
def test_a_learned_judge_with_an_nnunet(tmp_path, val, seen, expected):
    """c7 is labelled, and c8 is in the pool. The fold must have held a labelled case out, and an export never did."""
    file = tmp_path / "model/splits_final.json"
    file.parent.mkdir()
    if val:
        file.write_text(json.dumps([{"train": [], "val": val}]))
    if seen:
        Seen().save(file.parent)
    lines = found(
        tmp_path,
        model=str(file.parent),
        base={"kind": "nnunet", "folds": [0]},
        # One fold has no members for an ensemble.
        propose={"imports": "raw/none", "samplers": {"turned": {"kind": "tta", "flips": [[0]]}}},
        judges={**TINY["judges"], "pairwise": {"kind": "pairwise"}},
    )
    assert [line for line in lines if "judges.pairwise" in line and str(expected).format(file=file) in line] == (
        lines if expected else []
    )


def with_tta(**knobs: Any) -> dict[str, Any]:
    samplers = {**TINY["propose"]["samplers"], "turned": {"kind": "tta", **knobs}}
    return {**TINY["propose"], "samplers": samplers}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"splits": [*SPLITS[:-5], *["pool"] * 5]}, "splits.test: expected at least one case, found none"),
        ({"unlabelled": (10,)}, "splits.validation: expected cases with a mask, found 1 without (first: 'c10')"),
        ({"base": {**TINY["base"], "folds": 9}}, "base.folds: expected 0 or 2 to 8 (8 labelled patients), found 9"),
        (
            {"propose": {**TINY["propose"], "splits": ["validation"]}},
            "pairs.mined: expected proposals of split 'pool'; add 'pool' to propose.splits",
        ),
        (
            {"splits": ["labelled" if split == "pool" else split for split in SPLITS]},
            "pairs.mined: expected cases in split 'pool', found none; change `splits`",
        ),
        (
            {
                "splits": ["labelled" if split == "pool" else split for split in SPLITS],
                "students": {"one": {"pairs": "none", "objective": {"kind": "supervised"}, "offsets": "pool"}},
            },
            "students.one: offsets are fitted on the pool, found no pool case; change `splits`, or remove `offsets`",
        ),
        (
            {"propose": with_tta(quarter_turns=[1]), "augmentation": {"swap_labels": [[0, 1, 2]]}},
            "propose.samplers.turned.quarter_turns: expected only 2 where augmentation.swap_labels names an axis",
        ),
        (
            {"propose": with_tta(flips=[[2]])},
            "propose.samplers.turned.flips: expected axes 0 to 1 of this data, found [2]",
        ),
        (
            {"augmentation": {"flips": [0, 3]}},
            "augmentation.flips: expected axes 0 to 1 of this data, found [3]",
        ),
    ],
)
def test_single_problems(tmp_path, changes, expected):
    assert any(expected in line for line in found(tmp_path, **changes))


NAMES = "['base', 'mean all', 'mean fitted']"
MEAN_ALONE = {**TINY["propose"], "samplers": {"mean": {"kind": "mean"}}}
IMITATE = {"pairs": "none", "objective": {"kind": "imitate", "proposal": "mean fitted"}, **SUPERVISED}


def student(**changes: Any) -> dict[str, Any]:
    return {"students": {"one": {**IMITATE, **changes}}}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            student(objective={"kind": "imitate", "proposal": "mean fited"}),
            f"students.one: expected a proposal of propose.samplers, one of {NAMES}, found 'mean fited'; did you mean "
            "'mean fitted'?",
        ),
        (
            student(objective={"kind": "distill"}, anchor={"imitate": {"proposal": "regions composed"}}),
            f"students.one: expected a proposal of propose.samplers, one of {NAMES}, found 'regions composed'; name "
            "one of them, or add its sampler",
        ),
        (
            {"students": {"one": {"pairs": "none", "objective": {"kind": "proposal", "pick": "ensemble mean"}}}},
            f"students.one: expected a proposal of propose.samplers, one of {NAMES}, found 'ensemble mean'",
        ),
        (
            {"judges": {**TINY["judges"], "fixed": {"kind": "fixed", "proposal": "mean .5"}}},
            f"judges.fixed.proposal: expected a proposal of propose.samplers, one of {NAMES}, found 'mean .5'",
        ),
        (
            {
                **student(),
                "pairs": {"none": TINY["pairs"]["none"]},
                "propose": {**MEAN_ALONE, "splits": ["validation"]},
            },
            "students.one: expected proposals of split 'pool' to learn from; add 'pool' to propose.splits",
        ),
        (
            {
                "students": {"one": {"pairs": "none", "objective": {"kind": "supervised"}, "offsets": "pool"}},
                "pairs": {"none": TINY["pairs"]["none"]},
                "propose": {**MEAN_ALONE, "splits": ["validation"]},
            },
            "students.one: expected proposals of split 'pool' to learn from; add 'pool' to propose.splits",
        ),
        (
            {
                **student(pairs="mined", objective={"kind": "preference", "link": {"kind": "cdpo", "e": "calibrated"}}),
                "propose": {**MEAN_ALONE, "splits": ["pool"]},
            },
            "students.one: a calibrated link needs p_correct, which the audit fits on proposals of split 'validation'",
        ),
        (
            {"propose": {**MEAN_ALONE, "samplers": {"few": {"kind": "ensemble", "members": ["member_9"]}}}},
            "propose.samplers.few.members: expected some of ['member_1'], each once, found ['member_9']",
        ),
        (
            {"propose": {**MEAN_ALONE, "samplers": {"mean": {"kind": "ensemble"}}}},
            "propose.samplers.mean: expected other names of proposals, found 'mean', which stands for the mean "
            "probability of all proposals in `imitate`; choose another name of the sampler",
        ),
        (
            {"propose": {**MEAN_ALONE, "samplers": {"regions": {"kind": "regions", "fixed": "mean fitted"}}}},
            "propose.samplers.regions.fixed: expected a proposal before this sampler, one of ['base'], found",
        ),
        (
            {**student(start="member_2"), "model": "raw/x", "base": {"kind": "checkpoint", "members": ["member_1"]}},
            "students.one.start: expected one of ['base', 'member_1'], found 'member_2'",
        ),
    ],
)
def test_names_that_nothing_bears_are_said_before_a_training(tmp_path, changes, expected):
    lines = found(tmp_path, **{"propose": MEAN_ALONE, **changes})
    assert [line for line in lines if line.startswith(f"params.yaml: {expected}")], lines


@pytest.mark.parametrize("base", [{**TINY["base"], "folds": 2}, {"kind": "nnunet", "folds": [0, 1]}])
def test_folds_may_be_named_as_members(tmp_path, base):
    samplers = {"folds": {"kind": "ensemble", "members": ["fold_0", "fold_1"]}}
    model = {"model": str(tmp_path)} if "kind" in base else {}
    students = {"one": {"pairs": "none", "objective": {"kind": "imitate", "proposal": "folds mean"}, **SUPERVISED}}
    lines = found(tmp_path, base=base, propose={**TINY["propose"], "samplers": samplers}, students=students, **model)
    assert not [line for line in lines if "expected" in line], lines


def test_names_of_masks_from_elsewhere_and_of_snapshots_are_known(tmp_path):
    """Their files and steps are not known yet, so nothing is said against them."""
    samplers = {
        "mean": {"kind": "mean"},
        "late": {"kind": "snapshots"},
        "own": {"kind": "imported", "sources": {"net": {"path": "net", "file": "{case_id}.png"}}},
    }
    picks = ["late snapshot_000010", "own net", "mean all", "base"]
    students = {
        f"s{number}": {"pairs": "none", "objective": {"kind": "proposal", "pick": pick}}
        for number, pick in enumerate(picks)
    }
    splits = ["pool", "validation", "test"]
    lines = found(
        tmp_path,
        base={**TINY["base"], "snapshots": 2},
        propose={"imports": "raw/none", "samplers": samplers, "splits": splits},
        students=students,
    )
    assert not [line for line in lines if "expected" in line], lines


def test_what_needs_answers_of_reviewers_without_a_table_is_said(tmp_path):
    pairs = {**TINY["pairs"], "answered": {"judge": "none", "strategy": {"kind": "reviewed"}}}
    given: dict[str, Any] = {"experts": {"clinician": {"kind": "expert"}}, "pairs": pairs}
    lines = found(tmp_path / "without", **given)
    assert [line.split(": ")[1] for line in lines] == ["experts.clinician", "pairs.answered"]
    assert "found review.verdicts: raw/none; answer pairs first, and set review.verdicts" in lines[0]
    assert found(tmp_path / "with", **given, review={"verdicts": "review/verdicts.parquet"}) == []


def test_a_threshold_that_is_not_fitted_is_noted(tmp_path):
    propose = {"imports": "raw/none", "samplers": {"mean": {"kind": "mean"}}}
    (line,) = found(tmp_path / "a", propose=propose)
    assert "no labelled case has proposals out of fold, so the threshold is not fitted" in line
    few = ["labelled"] * 4 + SPLITS[8:]
    (line,) = found(tmp_path / "b", splits=few, propose=propose, base={**TINY["base"], "folds": 2, "fold_members": 1})
    assert "4 labelled patients with proposals out of fold are fewer than 8" in line


def test_regions_that_are_not_composed_are_noted(tmp_path):
    propose = {"imports": "raw/none", "samplers": {"regions": {"kind": "regions", "fixed": "base"}}}
    (line,) = found(tmp_path / "a", propose=propose)
    assert "so no model of regions is fitted and the mask is that of 'base'; set base.folds to at least 2" in line
    few = ["labelled"] * 4 + SPLITS[8:]
    (line,) = found(tmp_path / "b", splits=few, propose=propose, base={**TINY["base"], "folds": 2, "fold_members": 1})
    assert "with proposals out of fold are fewer than 8, so no model of regions is fitted" in line


def test_cases_too_large_to_compose_are_noted(tmp_path, monkeypatch):
    propose = {"imports": "raw/none", "samplers": {"regions": {"kind": "regions", "fixed": "base"}}}
    base = {**TINY["base"], "folds": 2, "fold_members": 1}
    assert found(tmp_path / "a", propose=propose, base=base) == []
    monkeypatch.setattr(Slabs, "of", classmethod(lambda cls, space, size: cls(0, 4)))
    (line,) = found(tmp_path / "b", propose=propose, base=base)
    assert line == (
        "propose.samplers.regions: composing needs whole cases, and cases padded to (4, 4) voxels with 2 proposals are "
        "drawn in bands, so nothing is composed; fewer samplers or a coarser preprocess.resize would let it compose; "
        "the mask is that of 'base'"
    )


def test_paths_that_are_not_there_are_named_by_their_keys(tmp_path, monkeypatch):
    """With what may be meant. A path that DVC can fetch is there."""
    monkeypatch.chdir(tmp_path)
    for name in ("raw/Dataset001_Liver", "qc"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("raw/none", "raw/masks.dvc", "qc/scores.csv"):
        (tmp_path / name).touch()
    asked = with_changes(
        data={"kind": "nnunet", "path": "raw/Dataset001_Livr"},
        propose={**TINY["propose"], "imports": "raw/masks"},
        tables={"qc": {"kind": "table", "path": "elsewhere/scores.csv"}},
    )
    with pytest.raises(BadInput) as caught:
        check_paths(Params.model_validate_json(json.dumps(asked)))
    assert str(caught.value).splitlines() == [
        "params.yaml: data.path: expected a file or folder, found none: raw has no 'Dataset001_Livr'; did you mean "
        "'raw/Dataset001_Liver'?",
        "params.yaml: tables.qc.path: expected a file or folder, found none; correct the path, or put the files there",
    ]


def test_what_few_patients_cannot_show_is_noted(tmp_path):
    """14 patients of validation promote nothing and calibrate little; 4 of test give no intervals."""
    splits = ["labelled"] * 8 + ["pool"] * 2 + ["validation"] * 14 + ["test"] * 4
    assert found(tmp_path, splits=splits) == [
        "splits.validation: 14 patients are fewer than promotion.min_patients (15), so no student can be promoted; "
        "give validation more labelled patients",
        "splits.validation: 14 patients are few to calibrate pairs on (pair sets mined), so p_correct is drawn towards "
        "one half; give validation more labelled patients",
        "splits.test: 4 patients are fewer than 5, so results on test have no intervals",
    ]


def test_students_whose_pairs_labels_made_are_noted(tmp_path):
    """Once for each reason. A pair set without a student is not noted."""
    filtered = {"kind": "top_bottom"}
    sets = {
        **TINY["pairs"],
        "agreed": {"judge": "agreement", "strategy": filtered},
        "idle": {"judge": "agreement", "strategy": filtered},
        "true": {"judge": "oracle", "strategy": filtered},
    }
    preferring = {"objective": {"kind": "preference"}, "anchor": {"supervised": 1.0}}
    pairs = {"one": "agreed", "two": "agreed", "ceiling": "true", "fair": "mined"}
    students = {name: {"pairs": of, **preferring} for name, of in pairs.items()}
    judges = {"agreement": {"kind": "agreement"}, "oracle": {"kind": "oracle"}}
    assert found(tmp_path, pairs=sets, students=students, judges=judges) == [
        "students one, two: no candidate for promotion: its pair set drops pairs by p_correct, which is fitted to the "
        "labels of split validation (min_p_correct: 0 keeps all pairs)",
        "students ceiling: no candidate for promotion: judge 'oracle' of its pair set reads the truth of split pool",
    ]


def test_flips_that_no_model_has_seen_are_noted(tmp_path):
    samplers = {"mean": {"kind": "mean", "flips": [[0], [1]]}, "tta": {"kind": "tta", "flips": [[0]]}}
    notes = found(tmp_path, augmentation={"flips": [0]}, propose={**TINY["propose"], "samplers": samplers})
    assert notes[0] == (
        "propose.samplers.mean: no labelled case has proposals out of fold, so the threshold is not fitted and stays "
        ".5; set base.folds to at least 2"
    )
    assert notes[1:] == [
        "propose.samplers.mean: flips along axes [1], and augmentation.flips has [0], so the models have not seen such "
        "images; give both the same axes"
    ]


@pytest.mark.parametrize(
    ("modality", "channels", "noted"),
    [
        ("mri", ("red", "green", "blue"), True),
        ("ct", ("red", "green", "blue"), True),
        ("photograph", ("red", "green", "blue"), False),
        (None, ("red", "green", "blue"), False),
        ("mri", ("T1", "T2", "FLAIR"), False),
        ("mri", ("grey",), False),
    ],
)
def test_views_of_a_scanner_on_colour_images_are_noted(tmp_path, modality, channels, noted):
    training = {**TINY["training"], "views": {"modality": modality}}
    note = (
        f"training.views.modality: pool images are varied as those of '{modality}', and these have the channels red, "
        "green and blue; if they are photographs, set photograph"
    )
    assert found(tmp_path, channels=channels, training=training) == [note] * noted
