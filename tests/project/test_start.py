"""`segpref init`: what is found in a data set, and a project whose knobs load and whose cases can be prepared."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from ruamel.yaml import YAML

from pipeline.cases.prepare import prepare
from pipeline.errors import BadInput
from pipeline.params import Params, load_params
from pipeline.project.look import look
from pipeline.project.start import check_repository, dvc_file, start
from pipeline.store.cases import CaseStore
from segpref import command
from tests.fixtures.phantoms import disc, save_image, write_decathlon, write_folders, write_nnunet


def published(root: Path) -> Path:
    """Grey pictures in three channels, of several sizes and odd names; masks of 0 and 255, some empty, some missing."""
    for number in range(30):
        shape = (40 + number, 50)
        label = disc(shape, 8 if number % 5 else 0)
        name = f"benign ({number}).png"
        save_image(root / "pictures" / name, np.stack([label * 90 + np.uint8(number)] * 3, -1))
        if number < 24:
            save_image(root / "ground truth" / name, label * 255)
    return root


def volumes(root: Path) -> Path:
    """Volumes of the class indices 0 to 2, as NRRD with masks as MetaImage."""
    for number in range(20):
        label = disc((10, 12, 8), 3.5) + disc((10, 12, 8), 1.5)
        save_image(root / f"images/case_{number:02d}.nrrd", label * 50 + np.uint8(number))
        save_image(root / f"labels/case_{number:02d}.mha", label)
    return root


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "nnunet": lambda root: write_nnunet(root, cases=20, unlabelled=6),
    "decathlon": lambda root: write_decathlon(root, cases=20),
    "folders": lambda root: write_folders(root, cases=20),
    "published": published,
    "volumes": volumes,
    "nnunet of MetaImage": lambda root: write_nnunet(root, cases=20, ending=".mha"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_project_is_made_of_a_layout_and_its_cases_can_be_prepared(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, folder = LAYOUTS[layout](tmp_path / "set"), tmp_path / "project"
    done = CliRunner().invoke(command("init"), [str(folder), "--data", str(data)])
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[-1] == f"{folder}: look at params.yaml, then: cd {folder} && segpref run"
    monkeypatch.chdir(folder)
    params = load_params(Path("params.yaml"))
    prepare(params.data, params.preprocess, params.splits, tmp_path / "cases", params.execution)
    cases = CaseStore(tmp_path / "cases")
    assert all(cases.split(split) for split in ("labelled", "pool", "validation", "test"))
    log = subprocess.run(["git", "log", "--format=%s"], capture_output=True, text=True, check=True)
    assert log.stdout == "Start of the project\n"
    status = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, check=True)
    assert status.stdout == ""


def test_a_folder_of_volumes_is_told_from_pictures(tmp_path: Path) -> None:
    """The grid follows from the headers, and flips are along the first axis."""
    start(tmp_path / "project", volumes(tmp_path / "set"))
    params = load_params(tmp_path / "project/params.yaml")
    assert params.data.model_dump()["masks"] == "labels"
    assert (params.data.class_names(), params.data.channel_names()) == (["background", "class_1", "class_2"], ["grey"])
    assert params.preprocess.orientation == "RAS"
    assert params.training.views.modality == "mri"
    assert params.augmentation.flips == (0,)
    assert [params.students[name].proposals for name in ("composed", "imitate", "rn_dpo")] == [["regions composed"]] * 3


def test_what_was_found_is_said(tmp_path: Path) -> None:
    said = start(tmp_path / "project", published(tmp_path / "set"))
    assert said == [
        "layout folders: 30 cases, 24 with a mask",
        "1 channel (grey), 40x50 to 69x50",
        "classes: background, foreground",
        "masks without foreground: 5 of 24 that were looked at",
        "guessed: masks hold 0 and 255: pixels above 127 are foreground",
        "guessed: images are read as grey (found: grey in colour)",
        "guessed: modality unknown (training.views.modality: one of photograph, microscopy, ultrasound, mri, ct), "
        "flips along axis 1",
        "splits: labelled 10, validation 9, test 5, pool 6",
        "check: fewer than 15 validation cases promote no student; more masks show more",
    ]
    params = load_params(tmp_path / "project/params.yaml")
    assert params.data.model_dump() | {"path": None} == {
        "kind": "folders",
        "path": None,
        "case_table": None,
        "images": "pictures",
        "masks": "ground truth",
        "classes": ("background", "foreground"),
        "channels": "grey",
        "foreground_above": 127,
    }
    assert params.preprocess.resize == (48, 48)
    assert (params.splits.labelled, params.splits.pool, params.splits.validation) == (10, 0, 9)


def test_masks_in_colour_or_lossy_are_black_and_white(tmp_path: Path) -> None:
    """JPEG holds values near 0 and 255, and a mask in three channels holds no indices."""
    for number in range(3):
        label = disc((40, 40), 9) * 255
        save_image(tmp_path / f"set/images/{number}.png", label)
        save_image(tmp_path / f"set/masks/{number}.png", np.stack([label] * 3, -1))
        Image.fromarray(label).save(tmp_path / f"set/masks/{number}.jpg", quality=80)
        (tmp_path / f"set/masks/{number}.{('png', 'jpg')[number % 2]}").unlink()
    assert look(tmp_path / "set").data["foreground_above"] == 127


def masked(root: Path, *values: float, ending: str = ".nii.gz", kind: type = np.int16) -> Path:
    """Three images, and masks that hold the values."""
    content = np.resize(np.array(values, kind), (6, 10, 8)[: 3 if ending == ".nii.gz" else 2])
    for number in range(3):
        save_image(root / f"images/c{number}{ending}", np.abs(content).astype(np.uint8))
        save_image(root / f"masks/c{number}{ending}", content)
    return root


def test_many_class_indices_in_volumes(tmp_path: Path) -> None:
    """The 118 indices of TotalSegmentator. A few may be missing in the masks that are read."""
    data = look(masked(tmp_path, *(value for value in range(118) if value % 7))).data
    assert data["classes"] == ["background", *(f"class_{value}" for value in range(1, 118))]


@pytest.mark.parametrize(
    ("values", "ending"),
    [
        ((0, 17, 240), ".nii.gz"),
        ((0, 50), ".nii.gz"),
        ((0, 1000), ".nii.gz"),
        ((0, 20, 250), ".png"),
        (range(118), ".png"),
    ],
)
def test_values_that_may_be_several_classes_are_not_made_one(
    values: Sequence[int], ending: str, tmp_path: Path
) -> None:
    """Only a lossy format has shades of black and white, and a drawing in grey looks like many classes."""
    kind = np.int16 if ending == ".nii.gz" else np.uint8
    with pytest.raises(BadInput, match=r"masks: expected class indices .*, or 0 and 255, found the values 0, .*; ren"):
        look(masked(tmp_path, *values, ending=ending, kind=kind))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0, 1, np.nan), "expected whole numbers, found nan"),
        ((0, 1, np.inf), "expected whole numbers, found inf"),
        ((0, 0.5), r"expected whole numbers, found 0.5"),
        ((-1, 0), "expected class indices from 0, found -1"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_mask_of_other_numbers_is_named(values: Sequence[float], message: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=rf"masks/c0.nii.gz: case 'c0': {message}; correct the mask"):
        look(masked(tmp_path, *values, kind=np.float32))


def knobs_of(folder: Path, data: Path) -> tuple[list[str], Params]:
    return start(folder, data), load_params(folder / "params.yaml")


def test_patients_in_names_are_pointed_out(tmp_path: Path) -> None:
    for number in range(8):
        save_image(tmp_path / f"set/images/p{number // 2}_{number}.png", disc((20, 24), 5))
    said, _ = knobs_of(tmp_path / "project", tmp_path / "set")
    assert any(
        line.startswith("check: names such as 'p0_0' and 'p0_1' look like one patient (4 in all)") for line in said
    )


def test_a_table_of_patients_beside_the_data_is_used(tmp_path: Path) -> None:
    """The table that fits, and not another one, nor one that is broken."""
    published(tmp_path / "set")
    rows = [f"benign ({number}),p{number // 3},x" for number in range(30)]
    (tmp_path / "set/a.csv").write_text("image,patient\nother,p\n")
    (tmp_path / "set/b.csv").write_text("image,patient\na,b,c,d\n")
    (tmp_path / "set/c.csv").write_text("\n".join(["image,Patient ID,site", *rows]) + "\n")
    said, params = knobs_of(tmp_path / "project", tmp_path / "set")
    assert "guessed: c.csv names the patients, in column 'Patient ID'" in said
    (broken,) = (line for line in said if "cannot be read" in line)
    assert broken.startswith(f"guessed: a table that cannot be read is not used: {tmp_path / 'set/b.csv'}: row 2")
    table = params.data.case_table
    assert table is not None
    assert (table.file, table.case, table.group) == ("c.csv", "image", "Patient ID")


def test_the_hint_on_patients_can_be_taken_out_of_its_comment(tmp_path: Path) -> None:
    start(tmp_path / "project", published(tmp_path / "set"))
    file = tmp_path / "project/params.yaml"
    file.write_text(file.read_text().replace("# case_table: {", "case_table: {"))
    table = load_params(file).data.case_table
    assert table is not None
    assert table.group == "patient"


def test_classes_with_sides_are_not_flipped(tmp_path: Path) -> None:
    write_nnunet(tmp_path / "set", cases=12, ending=".png")
    file = tmp_path / "set/dataset.json"
    file.write_text(file.read_text().replace('"ball"', '"left kidney"'))
    _, params = knobs_of(tmp_path / "project", tmp_path / "set")
    assert params.augmentation.flips == ()
    assert "tta" not in {sampler.kind for sampler in params.propose.samplers.values()}


def test_phantoms_without_data(tmp_path: Path) -> None:
    assert start(tmp_path / "project", None) == ["phantoms, which need no data"]
    assert load_params(tmp_path / "project/params.yaml").data.kind == "phantom"


def test_no_stage_of_a_project_names_code(tmp_path: Path) -> None:
    """Every command is one of segpref, and only `provenance` looks at the code, every time."""
    stages = YAML(typ="safe").load(dvc_file())["stages"]
    bodies = {name: stage.get("do", stage) for name, stage in stages.items()}
    assert {body["cmd"].split()[0] for body in bodies.values()} == {"segpref"}
    assert [name for name, body in bodies.items() if body.get("always_changed")] == ["provenance"]
    deps = [dep for body in bodies.values() for dep in body.get("deps", [])]
    assert not {dep for dep in deps if dep.split("/")[0] in ("pipeline", "stages", "kinds")}


def test_a_project_is_not_written_over_another(tmp_path: Path) -> None:
    start(tmp_path, None)
    with pytest.raises(BadInput, match=r"dvc.yaml: expected a folder without a project, found one; choose another"):
        start(tmp_path, None)


def test_a_copied_folder_says_what_to_do(tmp_path: Path) -> None:
    start(tmp_path, None)
    check_repository(tmp_path)
    (tmp_path / ".git").rename(tmp_path / "elsewhere")
    with pytest.raises(BadInput, match=r"expected a git repository, which DVC needs, found none; run `git init && git"):
        check_repository(tmp_path)
    (tmp_path / ".dvc/config").unlink()
    with pytest.raises(BadInput, match=r"expected the folder .dvc of a project, found none; copy the project with its"):
        check_repository(tmp_path)


def bad(root: Path, kind: str) -> None:
    save = lambda name, values: save_image(root / name, np.array(values, np.uint8))  # noqa: E731
    match kind:
        case "one folder":
            save("a.png", [[0, 1]])
        case "three folders":
            for name in ("a/a.png", "b/a.png", "c/a.png"):
                save(name, [[0, 1]])
        case "greys":
            save("images/a.png", [[0, 90, 255]])
            save("masks/a.png", [[0, 90, 255]])
        case "other names":
            save("images/a.png", [[0, 1]])
            save("masks/a_mask.png", [[0, 1]])
        case "no index":
            save("imagesTr/a_0000.png", [[0, 1]])
        case "one above":
            write_nnunet(root / "set")
        case "damaged image":
            save("images/a.png", [[0, 1]])
            (root / "images/a.png").write_bytes((root / "images/a.png").read_bytes()[:-20])
        case "damaged mask":
            save("images/a.png", [[0, 1]])
            (root / "masks").mkdir()
            (root / "masks/a.png").write_bytes(b"no picture")
        case "damaged json":
            (root / "dataset.json").write_text('{"name": ')
        case "other json":
            (root / "dataset.json").write_text('{"name": "a"}')


FAULTS = {
    "one folder": "found 1 images in one folder; put images into images/ and their masks, under the same names, into",
    "three folders": r"expected one folder of images and one of masks, found the folders of images \['a', 'b', 'c'\]",
    "greys": r"masks: expected class indices \(0, 1, ...\), or 0 and 255, found the values 0, 90, 255; renumber",
    "other names": "expected masks with the names of their images, found 'a.png' and 'a_mask.png'; rename the masks",
    "no index": r"dataset.json: expected the dataset.json of nnU-Net beside imagesTr, found none; add the file",
    "one above": r"expected one data set, found dataset.json in \['set'\]; give --data .*set",
    "damaged image": r"images/a.png: case 'a': expected 1 x 2 pixels, found a truncated or damaged file",
    "damaged mask": r"masks/a.png: case 'a': expected a picture, found an unreadable file",
    "damaged json": r"dataset.json: .*found",
    "other json": r"expected `channel_names` \(nnU-Net\) or `training` \(Decathlon\), found \['name'\]; correct",
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_layout_that_is_not_known_is_named(kind: str, tmp_path: Path) -> None:
    bad(tmp_path, kind)
    with pytest.raises(BadInput, match=FAULTS[kind]):
        look(tmp_path)
