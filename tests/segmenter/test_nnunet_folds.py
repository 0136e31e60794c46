"""What the folds of an nnU-Net were trained on, from `splits_final.json` beside the plans."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import BadInput
from pipeline.segmenter.imported.nnunet_folds import Folds
from pipeline.segmenter.knobs import MODELS
from pipeline.segmenter.models import Model, fold_families, member_models, start_model, unseen_labelled
from pipeline.segmenter.seen import Seen
from pipeline.store.cases import CaseStore
from tests.fixtures.builders import case_store
from tests.fixtures.foreign import discs, imported
from tests.segmenter.test_nnunet import pictures, prepared

SPLITS = ["labelled"] * 4 + ["pool"] * 2 + ["validation", "test"]
THREE = [
    {"train": ["c1", "c2", "c4", "old"], "val": ["c0"]},
    {"train": ["c0", "c2", "old"], "val": ["c1", "c4"]},
    {"train": ["c0", "c1", "c4"], "val": ["c2", "old"]},
]
"""Three folds of c0, c1, c2, c4 and of `old`, which is not in the project. c3, c5, c6 and c7 are new."""


def written(folder: Path, *splits: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "splits_final.json").write_text(json.dumps(splits))
    return folder


def dataset(model: Path, training: int | None = None) -> Path:
    content = {"file_ending": ".nii.gz"} | ({} if training is None else {"numTraining": training})
    (model / "dataset.json").write_text(json.dumps(content))
    return model


def validated(model: Path, *names: str, fold: int | str = 0) -> Path:
    """As nnU-Net writes it, on a machine with Windows."""
    rows = [{"prediction_file": f"C:\\fold_{fold}\\validation\\{name}.nii.gz", "metrics": {}} for name in names]
    folder = model / f"fold_{fold}/validation"
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps({"metric_per_case": rows}))
    return model


def stated(folder: Path, *folds: Any) -> Folds:
    found = Folds.of(folder, folds)
    assert found is not None
    return found


def cases(folder: Path, groups: list[str] | None = None) -> CaseStore:
    return case_store(folder / "cases", [np.zeros((4, 4), np.uint8)] * 8, SPLITS, groups=groups)


def images(store: CaseStore, *names: str) -> frozenset[str]:
    return frozenset(store.image_hashes[name] for name in names)


def test_a_labelled_case_belongs_to_the_fold_that_held_it_out(tmp_path):
    """Fold 2 is not used: both used folds were trained on c2. No list names c3. c4 is no labelled case."""
    store, found = cases(tmp_path), stated(written(tmp_path, *THREE), 0, 1)
    assert found.held_out(store) == {"c0": "fold_0", "c1": "fold_1"}
    on_labelled, on_fits, on_pool = found.notes(store)
    assert on_labelled == (
        "2 of 4 labelled cases have proposals out of fold, by a fold that held them out; 1 without, because no fold in "
        "use (fold_0, fold_1) held out the case and its patient (first: 'c2'); 1 without, because "
        f"{found.file} does not name the case (first: 'c3')"
    )
    assert "the pool can have means of 2" in on_fits
    assert on_pool.startswith("1 of 2 pool cases (first: 'c4') are of the training of fold_0, fold_1, so")


def test_another_image_of_the_patient_in_the_training(tmp_path):
    """c0 and c2 are of one patient, and fold 0 was trained on c2."""
    groups = ["p0", "p1", "p0", "p3", "p4", "p5", "p6", "p7"]
    assert stated(written(tmp_path, *THREE), 0, 1).held_out(cases(tmp_path, groups)) == {"c1": "fold_1"}


def test_a_case_that_is_trained_on_and_validated_on(tmp_path):
    twice = {"train": ["c0", "c1"], "val": ["c0"]}
    assert stated(written(tmp_path, twice), 0).held_out(cases(tmp_path)) == {}


@pytest.mark.parametrize(("chosen", "by"), [(False, ()), (True, ("c0",))])
def test_images_that_the_folds_have_seen(tmp_path, chosen, by):
    """The best weights were chosen by `val`, the final weights were not. `old` has no image here."""
    store, found = cases(tmp_path), stated(written(tmp_path, *THREE), 0)
    assert found.seen(store, chosen) == Seen(images(store, "c1", "c2", "c4"), images(store, *by), complete=False)


@pytest.mark.parametrize("fold", ["all", 3])
def test_a_fold_without_lists_of_its_own(tmp_path, fold):
    """nnU-Net trains `all` on all cases, and a fold behind the end of the file on a random part of all cases."""
    dataset(written(tmp_path, *THREE), 5)
    store, found = cases(tmp_path), stated(tmp_path, fold)
    assert found.held_out(store) == {}
    assert found.held == set()
    assert found.seen(store, chosen=False).learned == images(store, "c0", "c1", "c2", "c4")
    assert found.notes(store)[0] == (
        f"{found.file} has no lists of fold_{fold}, so every case of the training data counts as trained on, and no "
        "case as held out"
    )


@pytest.mark.parametrize("fold", ["all", 3])
def test_a_training_case_that_the_lists_do_not_name(tmp_path, fold):
    """The lists name 5 of 6 cases. nnU-Net trains these folds on all of them, so the sixth is no new case."""
    dataset(written(tmp_path, *THREE), 6)
    with pytest.raises(
        BadInput, match=rf"fold_{fold}: expected the names of all 6 training cases .*, found 5; fetch .*summary.json of"
    ):
        Folds.of(tmp_path, [fold])
    assert stated(tmp_path, 0).trained == {"c1", "c2", "c4", "old"}
    validated(tmp_path, "c0", "c3", fold=fold)
    assert stated(tmp_path, fold).trained == {"c0", "c1", "c2", "c3", "c4", "old"}
    dataset(tmp_path)
    with pytest.raises(BadInput, match=r"expected the names of all its training cases \(`numTraining` of .*, found 6"):
        Folds.of(tmp_path, [fold])


def test_names_of_another_data_set(tmp_path):
    store, found = cases(tmp_path), stated(written(tmp_path, {"train": ["a"], "val": ["b"]}), 0)
    assert found.held_out(store) == {}
    (note,) = found.notes(store)
    assert "names none of the 8 cases under fold_0, so all cases count as new to the model" in note


def test_names_become_case_ids(tmp_path):
    """`c 0` is the case c_0, as in `prepare`."""
    assert stated(written(tmp_path, {"train": ["c 0"], "val": []}), 0).trained == {"c_0"}


# ---- lists of another training ---------------------------------------------------------------------------------


def test_a_validation_that_fits_the_lists(tmp_path):
    dataset(validated(written(tmp_path, THREE[1]), "c1", "c4"))
    assert stated(tmp_path, 0).validated == {"c1", "c4"}


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["c0", "c1"], r"1 cases under `val` .* not validated \(first: 'c4'\), and 1 others .* was \(first: 'c0'\)"),
        (["c1"], r"1 cases under `val` .* not validated \(first: 'c4'\), and 0 others on which it was \("),
        (["c0", "c1", "c4"], r"0 cases under `val` .* not validated, and 1 others on which it was \(first: 'c0'\)"),
    ],
)
def test_lists_that_were_made_anew_after_the_training(tmp_path, names, found):
    """Also if one list holds the other: the fold was trained on c4, or an earlier training left files there."""
    dataset(validated(written(tmp_path, THREE[1]), *names))
    with pytest.raises(BadInput, match=rf"fold 0: expected the lists of the training, found {found}.*; fetch the file"):
        Folds.of(tmp_path, [0])


@pytest.mark.parametrize("content", [{}, [], {"metric_per_case": [1]}])
def test_another_file_in_place_of_a_validation(tmp_path, content):
    dataset(validated(written(tmp_path, THREE[0])))
    (tmp_path / "fold_0/validation/summary.json").write_text(json.dumps(content))
    with pytest.raises(BadInput, match=r"summary.json: expected a `prediction_file` in each `metric_per_case`"):
        Folds.of(tmp_path, [0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{", "expected nnU-Net's splits as JSON, found Expecting property name"),
        ("{}", "expected a list with one entry per fold, found dict; fetch splits_final.json of the training"),
        ('[{"train": ["a"]}]', "fold 0: expected lists of case ids under `train` and `val`"),
    ],
)
def test_a_damaged_file(tmp_path, content, message):
    (tmp_path / "splits_final.json").write_text(content)
    with pytest.raises(BadInput, match=message):
        Folds.of(tmp_path, [0])


# ---- the base --------------------------------------------------------------------------------------------------


def test_folds_are_the_base_and_its_members_again(tmp_path):
    """c0 and c1 are labelled. Weights are stored once, and a student may start from `fold_0` and `fold_1`."""
    model = written(pictures(tmp_path), {"train": ["c1"], "val": ["c0"]}, {"train": ["c0"], "val": ["c1"]})
    out = imported(tmp_path, prepared(tmp_path / "cases"), model, kind="nnunet", folds=[0, 1], base_fold=1)
    assert {path.name for path in out.glob("*.safetensors")} == {"base.safetensors", "nnunet_fold_0.safetensors"}
    found = fold_families(out)
    assert {case_id: (one.fold, one.base) for case_id, one in found.items()} == {
        "c0": ("fold_0", Model(out, "nnunet_fold_0")),
        "c1": ("fold_1", Model(out, "base")),
    }
    assert list(member_models(out)) == ["nnunet_fold_0", "fold_0", "fold_1"]
    assert unseen_labelled(start_model(out, "fold_1")) == {"c1"}
    assert unseen_labelled(start_model(out, "nnunet_fold_0")) == {"c0"}
    assert Seen.of(out) == Seen(images(discs(tmp_path / "again"), "c0", "c1"))


def test_a_fold_without_a_labelled_case_is_only_a_member(tmp_path):
    model = written(pictures(tmp_path), {"train": ["c1"], "val": ["c0"]}, {"train": ["c0", "c1"], "val": []})
    out = imported(tmp_path, prepared(tmp_path / "cases"), model, kind="nnunet", folds=[0, 1], base_fold=1)
    models = json.loads((out / MODELS).read_text())
    assert models["folds"] == {"fold_0": {"model": "nnunet_fold_0", "members": [], "snapshots": []}}
    assert models["fold_of"] == {"c0": "fold_0"}


@pytest.mark.parametrize(("train", "val", "folds"), [(["c3"], [], [0]), (["c0"], [], [0, 1])])
def test_measured_cases_of_the_training(tmp_path, train, val, folds):
    """c3 is a validation case. One fold that has seen the case is enough."""
    model = written(pictures(tmp_path), {"train": train, "val": ["c1"]}, {"train": ["c3"], "val": ["c0"]})
    with pytest.raises(BadInput, match=r"found 1 of 2 validation cases \(first: 'c3'\) .* move .*splits_final.json"):
        imported(tmp_path, prepared(tmp_path / "cases"), model, kind="nnunet", folds=folds)
    assert not (tmp_path / "models").exists()


def test_validation_cases_that_the_fold_held_out(tmp_path):
    """c3 and c4 are the validation cases. The best weights were chosen by them, which only test cases must not be."""
    model = written(pictures(tmp_path), {"train": ["c0", "c1"], "val": ["c3", "c4"]})
    (model / "fold_0/checkpoint_final.pth").rename(model / "fold_0/checkpoint_best.pth")
    store = prepared(tmp_path / "cases")
    out = imported(tmp_path, store, model, kind="nnunet", folds=[0], checkpoint="best")
    assert Seen.of(out) == Seen(images(store, "c0", "c1"), images(store, "c3", "c4"))
    assert json.loads((out / MODELS).read_text())["folds"] == {}


def test_a_list_of_seen_images_in_the_folder(tmp_path):
    """An export says itself what it has seen. A student was trained on c0, which fold 0 of its base held out."""
    model, store = pictures(tmp_path), prepared(tmp_path / "cases")
    Seen(images(store, "c0", "c1"), frozenset(), complete=True).save(model)
    out = imported(tmp_path, store, model, kind="nnunet", folds=[0])
    assert Seen.of(out) == Seen.of(model)
    notes = lambda: json.loads((out / MODELS).read_text())["imported"]["notes"]  # noqa: E731
    assert not [note for note in notes() if "splits_final" in note]
    written(model, {"train": ["c1"], "val": ["c0"]})
    out = imported(tmp_path, store, model, kind="nnunet", folds=[0])
    assert "splits_final.json is not read: seen.json beside it says what the networks of this" in notes()[-1]
    assert (Seen.of(out), fold_families(out)) == (Seen.of(model), {})
