"""Readers: one contract for all kinds, phantoms, case ids, the case table, and real data."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from pipeline.cases.case_table import described
from pipeline.cases.files.checks import case_id_of, check_case_id
from pipeline.cases.readers import Reader
from pipeline.cases.readers.decathlon import Decathlon
from pipeline.cases.readers.folders import Folders
from pipeline.cases.readers.nnunet import NnUNet
from pipeline.cases.readers.phantom import Phantom
from pipeline.cases.readers.reader import CaseTable, Source
from pipeline.errors import BadInput
from tests.fixtures.phantoms import save_image, write_decathlon, write_folders, write_nnunet, write_table

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
KINDS = [kind.model_fields["kind"].default for kind in get_args(get_args(Reader)[0])]


def small(kind: str, root: Path) -> Any:
    """A small data set of this kind with six cases, as `params.yaml` would configure it."""
    blocks = {
        "phantom": lambda: {"cases": 6, "size": [16, 20], "classes": 3},
        "decathlon": lambda: {"path": str(write_decathlon(root))},
        "folders": lambda: {"path": str(write_folders(root, cases=6))},
        "nnunet": lambda: {"path": str(write_nnunet(root, channels=2))},
    }
    assert kind in blocks, f"no example for the reader '{kind}': add one here, so that the contract is tested"
    return TypeAdapter(Reader).validate_json(json.dumps({"kind": kind, **blocks[kind]()}))


# ---- the contract -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_contract_of_every_reader(kind: str, tmp_path: Path) -> None:
    reader = small(kind, tmp_path)
    sources = reader.scan()
    assert reader.kind == kind
    assert len(sources) == 6
    for source in described(sources, reader.path, reader.case_table)[0]:
        image, label = reader.read(source)
        assert len(source.shape) in (2, 3)
        assert (image.dtype, image.shape) == (np.float32, (len(reader.channel_names()), *source.shape))
        assert label is not None
        assert (label.dtype, label.shape) == (np.uint8, source.shape)
        assert label.max() < len(reader.class_names())
        assert source.spacing_mm is None or len(source.spacing_mm) == len(source.shape)
        assert (source.affine is None) or len(source.affine) == 16
        again, _ = pickle.loads(pickle.dumps(reader)).read(source)
        assert np.array_equal(again, image)
    assert reader.scan() == sources


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("which", ["image", "label"])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_contract_damaged_files_are_named(kind: str, which: str, share: float, tmp_path: Path) -> None:
    """A file that breaks off, or is empty, is refused with its name when the case is found or read."""
    reader = small(kind, tmp_path)
    source = reader.scan()[2]
    if not source.image:
        pytest.skip("made, not read")
    file = reader.path / getattr(source, which)
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(BadInput, match=rf"{file.name}: case '{source.case_id}': expected"):
        reader.read(reader.scan()[2])


@pytest.mark.parametrize("kind", KINDS)
def test_contract_a_case_whose_label_is_gone_is_pool_or_refused(kind: str, tmp_path: Path) -> None:
    """Never a label of zeros: the case has none, or, where an index lists the file, the missing file is named."""
    reader = small(kind, tmp_path)
    source = reader.scan()[2]
    if not source.image:
        pytest.skip("made, not read")
    (reader.path / source.label).unlink()
    if kind == "decathlon":
        with pytest.raises(BadInput, match=f"{Path(source.label).name}: .* expected a file, found none"):
            reader.scan()
        return
    if kind == "nnunet":
        with pytest.raises(BadInput, match=f"labelsTr: case '{source.case_id}': expected a label like .* found none"):
            reader.scan()
        return
    without = [source.case_id for source in reader.scan() if source.label is None]
    assert without == [source.case_id]
    assert reader.read(reader.scan()[2])[1] is None


@pytest.mark.parametrize("kind", KINDS)
def test_contract_labels_that_are_no_class_are_refused(kind: str, tmp_path: Path) -> None:
    reader = small(kind, tmp_path)
    source = reader.scan()[0]
    if not source.image:
        pytest.skip("made, not read")
    label = reader.read(source)[1]
    assert label is not None
    wrong = np.where(label > 0, np.uint8(77), label)
    save_image(reader.path / source.label, wrong)
    with pytest.raises(BadInput, match=f"case '{source.case_id}': expected labels 0 to .*, found 77; declare"):
        reader.read(source)


# ---- phantom ----------------------------------------------------------------------------------------------------


def test_phantom_cases_do_not_depend_on_their_number() -> None:
    few, many = Phantom(cases=3, size=(16, 16)), Phantom(cases=9, size=(16, 16))
    assert many.scan()[:3] == few.scan()
    for source in few.scan():
        assert np.array_equal(few.read(source)[0], many.read(source)[0])


def test_phantom_groups_have_one_to_three_cases_and_a_seed_is_a_data_set() -> None:
    sources = Phantom(cases=60).scan()
    sizes = [sum(other.group == source.group for other in sources) for source in sources]
    assert set(sizes) == {1, 2, 3}
    first = sources[0]
    assert not np.array_equal(Phantom(seed=0).read(first)[0], Phantom(seed=1).read(first)[0])


def test_phantom_shares_of_empty_cases_are_met() -> None:
    for share, low, high in ((0.0, 0, 0), (0.5, 10, 30), (1.0, 40, 40)):
        reader = Phantom(cases=40, size=(16, 16), empty=share)
        empty = sum(not (reader.read(source)[1] > 0).any() for source in reader.scan())  # type: ignore[operator]
        assert low <= empty <= high


def test_phantom_volumes_hold_all_classes() -> None:
    """Organ, core and lobe are all there, and the core is smaller than the organ around it."""
    reader = Phantom(cases=1, size=(24, 24, 24), classes=4, empty=0.0)
    image, label = reader.read(reader.scan()[0])
    assert image.shape == (1, 24, 24, 24)
    assert set(np.unique(label)) == {0, 1, 2, 3}
    assert (label == 2).sum() < (label == 1).sum()


# ---- case ids and the case table --------------------------------------------------------------------------------


@pytest.mark.parametrize("case_id", ["a", "case_01", "site-A.3", "_x", "007"])
def test_plain_case_ids_pass(case_id: str) -> None:
    check_case_id(case_id, "f.png")


@pytest.mark.parametrize("case_id", ["../x", "<script>", "", ".hidden", "a b", "a/b", "ä", "x\n", '"', "a,b"])
def test_unsafe_case_ids_are_refused(case_id: str) -> None:
    with pytest.raises(BadInput, match=r"^f\.png: expected a name with letters or digits, .* rename the file$"):
        check_case_id(case_id, "f.png")


@pytest.mark.parametrize(
    ("name", "case_id"),
    [
        ("benign (10)", "benign_10"),
        ("a.b-c_d", "a.b-c_d"),
        ("M\u00fcller, left", "Muller_left"),
        ("\u60a3\u80051", "u60a3u80051"),
        (".hidden", "hidden"),
        ("<script>", "_script"),
        ("x__", "x__"),
    ],
)
def test_a_name_as_published_becomes_a_case_id(name: str, case_id: str) -> None:
    assert case_id_of(name) == case_id
    check_case_id(case_id, "f.png")


@given(st.text(min_size=1, max_size=20))
def test_case_ids_are_safe_and_stay_as_they_are(name: str) -> None:
    if found := case_id_of(name):
        check_case_id(found, "f.png")
    assert case_id_of(found) == found


def test_names_as_published_are_found_in_the_case_table(tmp_path: Path) -> None:
    sources = [Source(name, (4, 4), f"{name}.png", "l.png") for name in ("benign (1)", "benign (2)", "c")]
    write_table(tmp_path, "case_id,patient", "benign (1),p", "benign_2,q", "c,q")
    found, notes = described(sources, tmp_path, CaseTable(file="cases.csv", group="patient"))
    assert [(s.case_id, s.image, s.group) for s in found] == [
        ("benign_1", "benign (1).png", "p"),
        ("benign_2", "benign (2).png", "q"),
        ("c", "c.png", "q"),
    ]
    assert notes == [
        f"{tmp_path}: 2 names became case ids of plain characters, e.g. 'benign (1)' became 'benign_1'; `sources` of "
        "the cases table names the files"
    ]


def test_names_that_become_one_case_id_are_refused(tmp_path: Path) -> None:
    sources = [Source(name, (4, 4), f"{name}.png", "l.png") for name in ("a (1)", "a_1")]
    with pytest.raises(BadInput, match=r"case id 'a_1' is expected once, found for a \(1\).png and a_1.png; rena"):
        described(sources, tmp_path, None)


def test_a_case_id_leaves_room_for_the_names_of_its_files() -> None:
    """File systems take 255 bytes; `.partial-`, `.nii.gz` and `.json.partial` are added."""
    check_case_id("x" * 230, "f.png")
    with pytest.raises(
        BadInput, match=r"^f\.png: expected a case id of at most 230 bytes, found 231, .* rename the fi"
    ):
        check_case_id("x" * 231, "f.png")


def four() -> list[Source]:
    return [Source(case_id, (4, 4), f"{case_id}.png", "l.png") for case_id in ("d", "b", "a", "c")]


def test_case_table_describes_cases_and_empty_cells_say_nothing(tmp_path: Path) -> None:
    write_table(tmp_path, "\ufeffid,patient,where,part", "a,p1,Oslo,test", "b,p1,,", "c, ,Bonn,")
    table = CaseTable(file="cases.csv", case="id", group="patient", site="where", split="part")
    found, notes = described(four(), tmp_path, table)
    assert notes == []
    assert [(s.case_id, s.group, s.site, s.split) for s in found] == [
        ("a", "p1", "Oslo", "test"),
        ("b", "p1", None, None),
        ("c", None, "Bonn", None),
        ("d", None, None, None),
    ]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["case_id,patient", "a,p", "", "a,q"], r"expected one row per case, found rows 2 and 4 for 'a'; keep one"),
        (["case_id,patient", "a,p", "zz,q"], "expected cases of the data set, found 1 unknown .* e.g. 'zz' in row 3"),
        (["case_id,patient", "a,p", ",q"], "row 3, column 'case_id': expected the id of a case, found an empty cell"),
        (["case_id;patient", "a;p"], "expected commas between the columns, found semicolons in 'case_id;patient'"),
        (["case_id,Patient", "a,p"], r"expected the columns \['patient'\], found \['case_id', 'Patient'\]; correct"),
        (["case_id,patient,patient", "a,p,q"], "expected different names of columns, found 'patient' twice"),
        (["case_id,patient", "a,Smith, John"], "row 2: expected 2 cells as in the header, found 3"),
        (
            ["case_id,patient,split", "a,p,train"],
            "row 2: case 'a': column 'split' expected labelled, pool, .* found 'train'",
        ),
        (["case_id,patient,split", "a,p,NA"], "row 2: case 'a': column 'split' expected labelled, .* found 'NA'"),
    ],
)
def test_case_table_faults(lines: list[str], message: str, tmp_path: Path) -> None:
    write_table(tmp_path, *lines)
    table = CaseTable(file="cases.csv", group="patient", split="split" if "split" in lines[0] else None)
    with pytest.raises(BadInput, match=message):
        described(four(), tmp_path, table)


@pytest.mark.parametrize("word", ["NA", "nan", "NaN", "N/A", "#N/A", "<NA>", "null", "None", "unknown", "-", "?", "."])
def test_unknown_patients_are_not_one_patient(word: str, tmp_path: Path) -> None:
    """Two cells that say that nothing is known: two cases of their own, and a note that counts them."""
    write_table(tmp_path, "id,patient,where", f"a,{word},Oslo", f"b, {word} ,{word}", "c,p1,Bonn", "d,,Oslo")
    table = CaseTable(file="cases.csv", case="id", group="patient", site="where")
    found, notes = described(four(), tmp_path, table)
    assert [(s.group, s.site) for s in found] == [(None, "Oslo"), (None, None), ("p1", "Bonn"), (None, "Oslo")]
    assert notes == [
        f"cases.csv: column 'patient': 2 cells such as '{word}' (row 2) are read as unknown, and each of these cases "
        "is a patient of its own; fill in the patient if it is known",
        f"cases.csv: column 'where': 1 cells such as '{word}' (row 3) are read as unknown; fill in the site if it is "
        "known",
    ]


@pytest.mark.parametrize(
    ("one", "other"),
    [("7", "7.0"), ("7", "007"), ("5", "+5.00"), ("P7", "p7"), ("A  B", "A B"), ("M\u00fcller", "Mu\u0308ller")],
)
def test_a_patient_written_in_two_ways_is_noted(one: str, other: str, tmp_path: Path) -> None:
    """They stay two patients, because nobody but the user knows. They could be on both sides of a split."""
    write_table(tmp_path, "case_id,patient", f"a,{one}", f"b,{other}", f"c,{one}", "d,8")
    found, notes = described(four(), tmp_path, CaseTable(file="cases.csv", group="patient"))
    assert [source.group for source in found] == [one, other, one, "8"]
    assert notes == [
        f"cases.csv: column 'patient': '{one}' (row 2) and '{other}' (row 3) may be one patient written in two ways, "
        "and are read as two, which may be in different splits; write each patient in one way"
    ]


@pytest.mark.parametrize(
    "cells", [("7", "70"), ("1", "1.5"), ("p1", "p2"), ("7", "7"), ("Ann", "Anna"), ("12e4567890", "12e4567891")]
)
def test_different_patients_are_not_noted(cells: tuple[str, str], tmp_path: Path) -> None:
    write_table(tmp_path, "case_id,patient", f"a,{cells[0]}", f"b,{cells[1]}")
    assert described(four(), tmp_path, CaseTable(file="cases.csv", group="patient"))[1] == []


def test_long_numbers_differ_in_every_digit(tmp_path: Path) -> None:
    write_table(tmp_path, "case_id,patient", "a,123456789012345678901234567890", "b,123456789012345678901234567891")
    assert described(four(), tmp_path, CaseTable(file="cases.csv", group="patient"))[1] == []


def test_case_table_must_be_a_file_below_the_data(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"cases\.csv: expected a CSV file in UTF-8, found none; correct `case_table"):
        described(four(), tmp_path, CaseTable(file="cases.csv"))
    (tmp_path / "cases.csv").write_bytes("case_id\na\n".encode("utf-16"))
    with pytest.raises(BadInput, match=r"cases\.csv: expected a CSV file in UTF-8, found text in UTF-16; save it as"):
        described(four(), tmp_path, CaseTable(file="cases.csv"))
    with pytest.raises(BadInput, match=r"case_table.file: expected a path below"):
        described(four(), tmp_path, CaseTable(file="../cases.csv"))


def test_repeated_case_ids_are_refused(tmp_path: Path) -> None:
    twice = [Source("a", (4, 4), "one/a.png", None), Source("a", (4, 4), "two/a.png", None)]
    with pytest.raises(BadInput, match=r"'a' is expected once, found for one/a.png and two/a.png; rename"):
        described(twice, tmp_path, None)


# ---- real data --------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is not here")
def test_real_sets_read(tmp_path: Path) -> None:
    hippocampus = Decathlon(path=DATA / "Task04_Hippocampus", case_table=CaseTable(file="groups.csv", group="group"))
    sources, _ = described(hippocampus.scan(), hippocampus.path, hippocampus.case_table)
    assert len(sources) == 200
    assert all(source.group for source in sources)
    image, label = hippocampus.read(sources[0])
    assert image.shape == (1, *sources[0].shape)
    assert set(np.unique(label)) == {0, 1, 2}
    polyps = Folders(path=DATA / "kvasir-seg", case_table=CaseTable(file="cases.csv", group="near_duplicate_group"))
    sources, _ = described(polyps.scan(), polyps.path, polyps.case_table)
    assert len(sources) == 1000
    assert sum(source.group is not None for source in sources) == 8
    image, label = polyps.read(sources[0])
    assert image.shape == (3, 352, 352)
    assert set(np.unique(label)) == {0, 1}
    nuclei = NnUNet(path=DATA / "Dataset038_Nuclei")
    sources = nuclei.scan()
    assert Counter(source.shape for source in sources) == {(256, 256): 334, (360, 360): 90, (520, 696): 90}
    image, label = nuclei.read(sources[0])
    assert image.shape == (1, *sources[0].shape)
    assert set(np.unique(label)) == {0, 1}
