"""One picture under several names: said, refused, or kept on one side of the splits."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.cases.duplicates import crossing, duplicates, duplicates_text, pixel_hash
from pipeline.cases.prepare import prepare
from pipeline.cases.preprocess import Preprocess
from pipeline.cases.readers.folders import Folders
from pipeline.cases.readers.reader import CaseTable
from pipeline.cases.splits import Splits
from pipeline.errors import BadInput
from pipeline.execution import Execution
from pipeline.store.cases import CaseStore
from tests.fixtures.phantoms import write_folders, write_table

ALONE = Execution(scheduler="synchronous", workers=1, progress="none")


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight cases: case_05 is a copy of case_00, and case_06 holds the same pixels in another format."""
    monkeypatch.chdir(tmp_path)
    root = write_folders(tmp_path / "raw", cases=8)
    shutil.copy(root / "images/case_00.png", root / "images/case_05.png")
    (root / "images/case_06.png").unlink()
    with Image.open(root / "images/case_00.png") as image:
        image.save(root / "images/case_06.tif")
    return root


def prepared(root: Path, table: CaseTable | None = None, **knobs: Any) -> CaseStore:
    splits = Splits.model_validate({"labelled": 2, "pool": "rest", "validation": 2, "test": 2, **knobs})
    prepare(Folders(path=root, case_table=table), Preprocess(), splits, Path("cases"), ALONE)
    return CaseStore(Path("cases"))


SAME = ["case_00", "case_05", "case_06"]


def test_copies_are_counted_and_named(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = prepared(raw)
    assert cases.info["duplicates"] == [SAME]
    splits = {case.case_id: case.split for case in cases.all}
    assert len({splits[name] for name in SAME}) > 1
    note = (
        f"duplicates: 1 images occur more than once, as 3 cases, e.g. 'case_00' ({splits['case_00']}) and "
        f"'case_05' ({splits['case_05']}) and 'case_06' ({splits['case_06']}); 1 of the images are in more than one "
        "split; set splits.duplicates: group, or remove the copies"
    )
    assert note in cases.info["notes"]
    assert note in capsys.readouterr().err


def test_copies_are_refused_on_demand(raw: Path) -> None:
    with pytest.raises(BadInput, match=r"raw: expected every image once \(splits.duplicates: refuse\), found that 1"):
        prepared(raw, duplicates="refuse")
    assert not Path("cases/manifest.json").exists()


@pytest.mark.parametrize("seed", range(5))
def test_copies_and_their_patients_are_in_one_split_on_demand(raw: Path, seed: int) -> None:
    """Patient p has case_05 and case_07, so case_07 follows the copies. No other group changes."""
    write_table(raw, "case_id,patient", *(f"case_0{i},{'p' if i in (5, 7) else ''}" for i in range(8)))
    cases = prepared(
        raw,
        CaseTable(file="cases.csv", group="patient"),
        duplicates="group",
        seed=seed,
        labelled=1,
        validation=1,
        test=1,
    )
    by_id = {case.case_id: case for case in cases.all}
    assert len({by_id[name].split for name in [*SAME, "case_07"] if name in by_id}) == 1
    assert {by_id[name].group for name in [*SAME, "case_07"] if name in by_id} == {"case_00"}
    assert {case.group for case in cases.all} - {"case_00"} <= {f"case_0{i}" for i in (1, 2, 3, 4)}


def test_images_of_their_own_are_not_mentioned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for knob in ("warn", "refuse", "group"):
        cases = prepared(write_folders(tmp_path / "raw"), duplicates=knob)
        assert (cases.info["duplicates"], cases.info["notes"]) == ([], [])


def test_shape_and_values_make_the_hash() -> None:
    image = np.arange(6, dtype=np.float32)
    assert pixel_hash(image) == pixel_hash(image.copy())
    assert pixel_hash(image.reshape(2, 3)) != pixel_hash(image.reshape(3, 2))
    assert pixel_hash(image) != pixel_hash(image + 1)
    assert pixel_hash(image.reshape(2, 3).T.copy()) == pixel_hash(image.reshape(2, 3).T)


def test_duplicates_by_hand() -> None:
    found = duplicates({"d": "1", "a": "2", "b": "1", "c": "3", "e": "2"})
    assert found == [["a", "e"], ["b", "d"]]
    splits = {"a": "pool", "e": "pool", "b": "labelled", "d": "test"}
    assert crossing(found, splits) == [["b", "d"]]
    assert duplicates_text(found, splits) == (
        "2 images occur more than once, as 4 cases, e.g. 'b' (labelled) and 'd' (test); 1 of the images are in "
        "more than one split"
    )
