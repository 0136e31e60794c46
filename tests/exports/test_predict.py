"""Masks of new images: grids of files to the bit, as evaluated, resumed, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import tifffile
from click.testing import CliRunner
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from PIL import Image

from pipeline.cases.files import image_file
from pipeline.cases.prepare import prepare
from pipeline.cases.preprocess import Preprocess
from pipeline.cases.readers.decathlon import Decathlon
from pipeline.cases.readers.folders import Folders
from pipeline.cases.readers.nnunet import NnUNet
from pipeline.cases.splits import Splits
from pipeline.compute import Compute
from pipeline.errors import BadInput
from pipeline.evaluation.prediction import NetworkPrediction
from pipeline.execution import Execution
from pipeline.exports.bundle_script import ToWorkingGridd, images_of
from pipeline.exports.predict import DONE, PROBABILITY_FOLDER, apply_model, ready_model
from pipeline.store.cases import CaseStore
from stages.predict import main
from tests.fixtures.phantoms import save_image, save_without_directions
from tests.fixtures.picture_files import GREY, TAGGED, frames, png, write
from tests.fixtures.trained import model_folder, textured, write_oblique

ONE = Execution(scheduler="synchronous", workers=1, progress="none")
RAS = Preprocess(orientation="RAS", spacing=(1.0, 1.0, 2.0))


def apply(model: Path, given: Path, out: Path, weights: str | None = None, **more: Any) -> tuple[int, int]:
    return apply_model(ready_model(model, weights), given, out, Compute(), ONE, **more)


def mask_of(path: Path) -> np.ndarray:
    if path.name.endswith((".nii", ".nii.gz")):
        image: Any = nibabel.load(path)
        return np.asarray(image.dataobj)
    if path.suffix == ".tif":
        return tifffile.imread(path)
    with Image.open(path) as picture:
        return np.array(picture)


def write_png(path: Path, shape: tuple[int, ...], seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(textured(shape, seed)).save(path)


def evaluated(cases: CaseStore, model: Path) -> dict[str, np.ndarray]:
    """Masks that evaluation measures, by case."""
    found = ready_model(model)
    weights = NetworkPrediction(cases, found.model, Compute(), found.offsets)
    return {case.case_id: weights(case) for case in cases.all}


def described(cases: CaseStore, folder: Path) -> dict[str, Any]:
    """What the stages write beside weights."""
    cases.write_input(folder)
    return json.loads((folder / "input.json").read_text())


# ---- the grid of the file ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [(16, 16, 12), (8, 8, 8)])
def test_an_oblique_anisotropic_volume_lands_on_its_own_grid(tmp_path, window):
    """On a working grid of other axes and spacing; 12 x 18 x 11 voxels there, so that windows slide or not."""
    image = write_oblique(tmp_path / "images/a.nii.gz")
    assert apply(model_folder(tmp_path / "model", window, RAS), tmp_path / "images", tmp_path / "out") == (1, 0)
    mask: Any = nibabel.load(tmp_path / "out/a.nii.gz")
    assert mask.get_data_dtype() == np.uint8
    assert mask.shape == image.shape
    assert mask.affine.tobytes() == image.affine.tobytes()
    for form in ("get_qform", "get_sform"):
        ours, theirs = getattr(mask, form)(coded=True), getattr(image, form)(coded=True)
        assert ours[0].tobytes() == theirs[0].tobytes()
        assert ours[1] == theirs[1]
    assert mask.header.get_xyzt_units() == ("mm", "sec")
    assert mask.header["pixdim"][:4].tobytes() == image.header["pixdim"][:4].tobytes()
    assert b"patient" not in mask.header.binaryblock
    assert len(np.unique(np.asarray(mask.dataobj))) > 1


@pytest.mark.parametrize("codes", ["LPS", "PIR"])
def test_a_copy_in_another_orientation_gets_the_same_mask_in_its_own(tmp_path, codes):
    """Voxel by voxel, and for the probabilities to the bit."""
    image = write_oblique(tmp_path / "images/a.nii")
    turn = ornt_transform(io_orientation(image.affine), axcodes2ornt(codes))
    turned = image.as_reoriented(turn)
    nibabel.save(turned, tmp_path / "images/b.nii")
    model = model_folder(tmp_path / "model", (16, 20, 12), RAS)
    assert apply(model, tmp_path / "images", tmp_path / "out", probabilities=True) == (2, 0)
    a: Any = nibabel.load(tmp_path / "out/a.nii")
    b: Any = nibabel.load(tmp_path / "out/b.nii")
    assert "".join(nibabel.aff2axcodes(b.affine)) == codes
    assert b.affine.tobytes() == nibabel.load(tmp_path / "images/b.nii").affine.tobytes()
    assert b.shape == turned.shape != a.shape or codes == "LPS"
    assert len(np.unique(np.asarray(a.dataobj))) == 3
    assert np.array_equal(np.asarray(a.as_reoriented(turn).dataobj), np.asarray(b.dataobj))
    one: Any = nibabel.load(tmp_path / "out" / PROBABILITY_FOLDER / "a.nii")
    two: Any = nibabel.load(tmp_path / "out" / PROBABILITY_FOLDER / "b.nii")
    assert one.shape == (*a.shape, 3)
    assert np.array_equal(np.asarray(one.as_reoriented(turn).dataobj), np.asarray(two.dataobj))
    assert np.array_equal(np.asarray(one.dataobj).argmax(-1), np.asarray(a.dataobj))


@pytest.mark.parametrize(("kind", "stored"), [("RAS", "LPS"), ("unknown", "RAS"), ("LPS", "unknown")])
def test_as_stored_another_orientation_is_refused(tmp_path, kind, stored):
    """As `prepare` refuses a mixture; the other image is done all the same."""
    for name, codes in (("a", stored), ("b", kind)):
        affine = np.diag([1.0, 1, 1, 1]) if codes != "LPS" else np.diag([-1.0, -1, 1, 1])
        image = nibabel.Nifti1Image(textured((8, 8, 8)), affine)
        if codes == "unknown":
            image.set_sform(None, 0)
            image.set_qform(None, 0)
        (tmp_path / "images").mkdir(exist_ok=True)
        nibabel.save(image, tmp_path / f"images/{name}.nii")
    model = model_folder(tmp_path / "model", (8, 8, 8), orientation=kind)
    result = CliRunner().invoke(main, [str(model), str(tmp_path / "images"), str(tmp_path / "out")])
    assert result.exit_code == 2
    assert (
        f"a.nii: case 'a': expected a volume of orientation {kind} like those that the model was trained on, found "
        f"{stored}; bring it to that orientation, or, unless the base is an nnU-Net whose plans ask for null, train "
        "with `preprocess.orientation: RAS`"
    ) in result.output
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nii")) == ["b.nii"]


# ---- as evaluated -----------------------------------------------------------------------------------------------


def decathlon(folder: Path) -> Decathlon:
    entries = []
    for seed, name in enumerate("abcd"):
        write_oblique(folder / f"imagesTr/{name}.nii.gz", seed=seed)
        image: Any = nibabel.load(folder / f"imagesTr/{name}.nii.gz")
        label = nibabel.Nifti1Image((np.asarray(image.dataobj) > 380).astype(np.uint8), image.affine)
        (folder / "labelsTr").mkdir(exist_ok=True)
        nibabel.save(label, folder / f"labelsTr/{name}.nii.gz")
        entries.append({"image": f"imagesTr/{name}.nii.gz", "label": f"labelsTr/{name}.nii.gz"})
    content = {"labels": {"0": "background", "1": "organ"}, "modality": {"0": "MRI"}, "training": entries}
    (folder / "dataset.json").write_text(json.dumps(content))
    return Decathlon(path=folder)


def pictures(folder: Path) -> Folders:
    for seed, name in enumerate("abcd"):
        write_png(folder / f"images/{name}.png", (20 + seed, 31, 3), seed)
        (folder / "masks").mkdir(exist_ok=True)
        Image.fromarray((textured((20 + seed, 31), seed) > 140).astype(np.uint8) * 255).save(
            folder / f"masks/{name}.png"
        )
    return Folders(path=folder, channels="grey", foreground_above=127)


def channels(folder: Path) -> NnUNet:
    """Two channels, in files of their own."""
    for seed, name in enumerate("abcd"):
        for channel in range(2):
            write_png(folder / f"imagesTr/{name}_{channel:04d}.png", (12, 15), 10 * channel + seed)
        (folder / "labelsTr").mkdir(exist_ok=True)
        Image.fromarray((textured((12, 15), seed) > 140).astype(np.uint8)).save(folder / f"labelsTr/{name}.png")
    names = {"channel_names": {"0": "one", "1": "two"}, "labels": {"background": 0, "organ": 1}}
    (folder / "dataset.json").write_text(json.dumps({**names, "numTraining": 4, "file_ending": ".png"}))
    return NnUNet(path=folder)


CASES = [
    (decathlon, "imagesTr", RAS, (12, 16, 8), 1, ".nii.gz"),
    (pictures, "images", Preprocess(normalise="unit", resize=(16, 16)), (16, 16), 1, ".png"),
    (channels, "imagesTr", Preprocess(normalise=("minmax", "percentile")), (8, 8), 2, ".png"),
]


@pytest.mark.parametrize(("make", "images", "preprocess", "window", "n", "ending"), CASES)
@pytest.mark.parametrize("head", ["softmax", "sigmoid"])
def test_a_mask_is_the_one_that_evaluation_measures(tmp_path, make, images, preprocess, window, n, ending, head):
    """From the files of the training cases, with what `prepare` says of them and with offsets of a tuned threshold.

    Masks of 0 and 255 come back as 0 and 255.
    """
    reader = make(tmp_path / "raw")
    prepare(reader, preprocess, Splits(labelled=1, pool=1, validation=1, test=1), tmp_path / "cases", ONE)
    cases = CaseStore(tmp_path / "cases")
    model = model_folder(
        tmp_path / "model",
        window,
        channels=n,
        classes=2,
        weights=("last", "best"),
        head=head,
        record={"offsets": [0.1]},
    )
    values = described(cases, model)["mask_values"] or [0, 1]
    assert values == ([0, 255] if make is pictures else [0, 1])
    assert apply(model, tmp_path / "raw" / images, tmp_path / "out") == (4, 0)
    expected = evaluated(cases, model)
    assert sorted(path.name for path in (tmp_path / "out").glob("*.*") if path.is_file()) == [
        f"{name}{ending}" for name in "abcd"
    ]
    for name, mask in expected.items():
        found = mask_of(tmp_path / f"out/{name}{ending}")
        assert found.dtype == np.uint8
        assert np.array_equal(found, np.array(values)[mask])
    assert {len(np.unique(mask)) for mask in expected.values()} == {2}


def test_weights_and_offsets_are_those_asked_for(tmp_path):
    write_png(tmp_path / "a.png", (16, 16))
    model = model_folder(tmp_path / "model", (16, 16), weights=("last", "best"), record={"offsets": None})
    masks = []
    for weights in (None, "last", "best"):
        apply(model, tmp_path / "a.png", tmp_path / f"out_{weights}", weights)
        masks.append(mask_of(tmp_path / f"out_{weights}/a.png"))
    assert np.array_equal(masks[0], masks[1])
    assert not np.array_equal(masks[1], masks[2])
    certain = model_folder(tmp_path / "certain", (16, 16), weights=("last",), record={"offsets": [0.0, 1e4]})
    apply(certain, tmp_path / "a.png", tmp_path / "out")
    assert (mask_of(tmp_path / "out/a.png") == 2).all()
    with pytest.raises(BadInput, match="has no weights 'worst'; there are best, last"):
        ready_model(model, "worst")
    taken = model_folder(tmp_path / "taken", (16, 16), record={"slot": 4, "proposal": "flips mean"})
    with pytest.raises(BadInput, match=r"takes proposal 4 \(flips mean\) of every case and has no weights of its own"):
        ready_model(taken)


# ---- files ------------------------------------------------------------------------------------------------------


def test_stacks_and_their_spacing(tmp_path):
    """4 slices of 6 mm on 3 mm are 8; the mask is a stack of 4 again. A corrected spacing makes another mask."""
    (tmp_path / "images").mkdir()
    tifffile.imwrite(
        tmp_path / "images/a.tif", textured((4, 9, 10)), photometric="minisblack", metadata={"axes": "ZYX"}
    )
    (tmp_path / "images/a.json").write_text(json.dumps({"spacing": [6, 1, 1]}))
    knobs = Preprocess(spacing=(3.0, 1.0, 1.0))
    model = model_folder(tmp_path / "model", (8, 10, 10), knobs, files="pictures", orientation="unknown")
    assert apply(model, tmp_path / "images", tmp_path / "out", probabilities=True) == (1, 0)
    found = mask_of(tmp_path / "out/a.tif")
    assert (found.shape, found.dtype) == ((4, 9, 10), np.uint8)
    with np.load(tmp_path / "out" / PROBABILITY_FOLDER / "a.npz") as arrays:
        assert arrays["probability"].shape == (3, 4, 9, 10)
        assert np.array_equal(arrays["probability"].argmax(0), found)
    assert apply(model, tmp_path / "images", tmp_path / "out", probabilities=True) == (1, 1)
    (tmp_path / "images/a.json").write_text(json.dumps({"spacing": [3, 1, 1]}))  # another working grid: made again
    assert apply(model, tmp_path / "images", tmp_path / "out", probabilities=True) == (1, 0)
    assert not np.array_equal(mask_of(tmp_path / "out/a.tif"), found)
    (tmp_path / "images/a.json").unlink()
    with pytest.raises(BadInput, match=r"a.tif: case 'a': expected a known spacing"):
        apply(model, tmp_path / "images", tmp_path / "again")


def test_channels_of_nifti_in_one_file_or_several_give_the_same_mask(tmp_path):
    both = np.stack([textured((10, 9, 8), seed) for seed in (1, 2)], axis=-1)
    affine = np.diag([-1.0, 1, 1, 1])
    for folder, name, values in (
        ("one", "a.nii.gz", both),
        ("two", "a_0000.nii.gz", both[..., 0]),
        ("two", "a_0001.nii.gz", both[..., 1]),
    ):
        (tmp_path / folder).mkdir(exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(values, affine), tmp_path / folder / name)
    model = model_folder(tmp_path / "model", (10, 10, 8), channels=2)
    for given in ("one", "two", "two/a_0000.nii.gz"):
        assert apply(model, tmp_path / given, tmp_path / "out" / given) == (1, 0)
    masks = [mask_of(tmp_path / "out" / given / "a.nii.gz") for given in ("one", "two", "two/a_0000.nii.gz")]
    assert masks[0].shape == (10, 9, 8)
    assert np.array_equal(masks[0], masks[1])
    assert np.array_equal(masks[0], masks[2])
    (tmp_path / "two/a_0000.nii.gz").unlink()
    with pytest.raises(BadInput, match=r"case 'a': expected 2 channels as the last axis, found shape"):
        apply(model, tmp_path / "two", tmp_path / "lacking")


@pytest.mark.parametrize(
    ("names", "channels", "expected"),
    [
        (["a_0000", "b_0000"], 1, ["a", "b"]),
        (["a_0000", "a_0001"], 1, ["a_0000", "a_0001"]),
        (["a", "b_0000"], 1, ["a", "b_0000"]),
        (["frame_0001", "frame_0002"], 3, ["frame_0001", "frame_0002"]),
    ],
)
def test_numbers_in_names_are_channels_only_where_they_must_be(tmp_path, names, channels, expected):
    """Frames of a colour video are numbered too."""
    for name in names:
        write_png(tmp_path / f"images/{name}.png", (8, 8) if channels == 1 else (8, 8, 3))
    model = model_folder(tmp_path / "model", (8, 8), channels=channels)
    apply(model, tmp_path / "images", tmp_path / "out")
    assert sorted(path.stem for path in (tmp_path / "out").glob("*.png")) == expected


def test_a_slice_of_nifti_stays_one(tmp_path):
    nibabel.save(nibabel.Nifti1Image(textured((8, 10, 1)), np.diag([2.0, 2, 3, 1])), tmp_path / "a.nii")
    model = model_folder(tmp_path / "model", (8, 10), files="nifti")
    apply(model, tmp_path / "a.nii", tmp_path / "out", probabilities=True)
    mask: Any = nibabel.load(tmp_path / "out/a.nii")
    assert mask.shape == (8, 10, 1)
    assert nibabel.load(tmp_path / "out" / PROBABILITY_FOLDER / "a.nii").shape == (8, 10, 1, 3)


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
@pytest.mark.parametrize("axes", [2, 3])
def test_a_volume_in_another_format_has_the_same_mask_in_its_own(tmp_path, ending, axes):
    """Two channels, on a working grid of other voxels, with probabilities."""
    knobs = Preprocess(orientation="RAS", spacing=(1.0, 1.0, 1.0)) if axes == 3 else Preprocess(resize=(16, 16))
    model = model_folder(tmp_path / "model", (8,) * axes, knobs, channels=2, files="nifti")
    for channel in range(2):
        for name in (".nii.gz", ending):
            save_image(tmp_path / name / f"a_{channel:04d}{name}", textured((10, 9, 8)[:axes], channel))
    masks = {}
    for name in (".nii.gz", ending):
        out = tmp_path / f"out{name}"
        assert apply(model, tmp_path / name, out, probabilities=True) == (1, 0)
        assert apply(model, tmp_path / name, out, probabilities=True) == (1, 1)
        shape = image_file.header(out / f"a{name}", "a").shape
        masks[name] = image_file.mask_values(out / f"a{name}", "a", shape, None)
        assert image_file.header(out / f"a{name}", "a") == image_file.header(tmp_path / name / f"a_0000{name}", "a")
    stored: Any = nibabel.load(tmp_path / "out.nii.gz" / PROBABILITY_FOLDER / "a.nii.gz")
    with np.load(tmp_path / f"out{ending}" / PROBABILITY_FOLDER / "a.npz") as content:
        probability = content["probability"]
    assert np.array_equal(np.moveaxis(probability, 0, -1), np.asarray(stored.dataobj).reshape(*shape, 3))
    assert np.array_equal(masks[".nii.gz"], masks[ending])
    assert len(np.unique(masks[ending])) > 1


# ---- refused ----------------------------------------------------------------------------------------------------


def nifti(path: Path, *shape: int, fill: float = 1.0) -> None:
    values = np.full(shape, fill, np.float32)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([-1.0, 1, 1, 1])), path)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: nifti(path, 6, 6, 6, 5), r"case 'b': expected an image or a volume with 1 channels, found shape"),
        (lambda path: nifti(path, 6, 6), r"case 'b': expected 3 spatial axes as the model was trained on, found shape"),
        (lambda path: nifti(path, 6, 6, 6, fill=np.nan), r"case 'b': expected finite intensities, found 216 NaN"),
        (lambda path: path.write_bytes(b"nothing"), r"case 'b': expected NIfTI, found an unreadable file"),
    ],
)
def test_one_bad_image_names_itself_and_the_others_are_made(tmp_path, write, message):
    (tmp_path / "images").mkdir()
    for name in "ac":
        nifti(tmp_path / f"images/{name}.nii", 6, 7, 8)
    write(tmp_path / "images/b.nii")
    (tmp_path / "images/scan.mgz").write_text("of a format that is not read")
    (tmp_path / "images/series").mkdir()
    model = model_folder(tmp_path / "model", (8, 8, 8))
    with pytest.raises(BadInput, match=message) as caught:
        apply(model, tmp_path / "images", tmp_path / "out")
    assert "scan.mgz: expected .nii.gz" in str(caught.value)
    assert "predict: 1 of 3 images failed; finished images are kept" in str(caught.value)
    assert "series: expected an image, found a folder" in str(caught.value)
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nii")) == ["a.nii", "c.nii"]


def test_channels_without_directions_have_one_spacing(tmp_path):
    for channel, edge in enumerate((1, 3)):
        save_without_directions(tmp_path / f"images/a_{channel:04d}.mha", textured((8, 8, 8), channel), (1, 1, edge))
    model = model_folder(tmp_path / "model", (8, 8, 8), channels=2, files="nifti")
    with pytest.raises(BadInput, match=r"a_0001.mha: case 'a': expected the image's voxel edges \(1, 1, 1\) mm"):
        apply(model, tmp_path / "images", tmp_path / "out")


FAULTY = {
    **{kind: (*TAGGED[kind](6), 3 if kind == "webp" else 1, "expected an upright picture") for kind in TAGGED},
    "phone": ("a.jpg", frames("MPO"), 1, "expected one picture in the file, found 3"),
    "animated": ("a.png", frames("PNG"), 1, "expected one picture in the file, found 3"),
    "GIF": ("a.png", lambda file: write(file, GREY, format="GIF"), 3, "found GIF; convert it to PNG"),
    "16 bits": (
        "a.png",
        lambda file: write(file, png(np.full((8, 8, 3), 4001), 16, 2)),
        3,
        "expected 8 bits per channel",
    ),
    "inverted": (
        "a.tif",
        lambda file: tifffile.imwrite(file, GREY, photometric="miniswhite"),
        1,
        "bright is large, or RGB, found MINISWHITE",
    ),
}


@pytest.mark.parametrize("kind", list(FAULTY))
def test_pictures_that_prepare_refuses(tmp_path, kind):
    """By predict and by a bundle, whose copy of the reading code is the same. No mask is written."""
    name, save, channels, message = FAULTY[kind]
    (tmp_path / "images").mkdir()
    save(tmp_path / "images" / name)
    model = model_folder(tmp_path / "model", (8, 8), channels=channels)
    with pytest.raises(BadInput, match=rf"{name}: case 'a': .*{message}"):
        apply(model, tmp_path / "images", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [DONE]
    if name.endswith(".tif"):
        return
    spec = ready_model(model).input.model_dump(mode="json") | {"dimensions": 2, "offsets": []}
    with pytest.raises(ValueError, match=rf"{name}: .*{message}"):
        list(map(ToWorkingGridd(spec), images_of(str(tmp_path / "images"), spec)))


def test_a_picture_above_the_limit_of_pillow(tmp_path, monkeypatch):
    write_png(tmp_path / "images/a.png", (8, 8))
    model = model_folder(tmp_path / "model", (8, 8))
    spec = ready_model(model).input.model_dump(mode="json") | {"dimensions": 2, "offsets": []}
    found = images_of(str(tmp_path / "images"), spec)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    message = r"a.png: .*found too many pixels; save it as TIFF, or cut it into tiles"
    with pytest.raises(BadInput, match=message):
        apply(model, tmp_path / "images", tmp_path / "out")
    with pytest.raises(ValueError, match=message):
        ToWorkingGridd(spec)(found[0])


def test_names_longer_than_the_file_system_takes(tmp_path):
    """Of an image, whose mask has no room for its name in work; and of a path in the command."""
    model = model_folder(tmp_path / "model", (8, 8))
    for name in ("é" * 115, "y" * 231):
        write_png(tmp_path / f"images/{name}.png", (8, 8))
    with pytest.raises(
        BadInput, match=r"y.png: expected a case id of at most 230 bytes, found 231, .* rename the file"
    ):
        apply(model, tmp_path / "images", tmp_path / "out", probabilities=True)
    assert mask_of(tmp_path / f"out/{'é' * 115}.png").shape == (8, 8)
    with pytest.raises(BadInput, match="at most 230 bytes"):
        apply(model, tmp_path / f"images/{'y' * 231}.png", tmp_path / "alone")
    for images, out in (("x" * 300, "out"), ("images", "x" * 300), ("/".join(["x" * 200] * 25), "out")):
        result = CliRunner().invoke(main, [str(model), str(tmp_path / images), str(tmp_path / out)])
        assert result.exit_code == 2
        assert re.search(r"^error: .*: expected names and a path that the file system takes", result.output, re.M)


def test_documents_beside_images_are_skipped_with_a_warning(tmp_path, capsys):
    """By predict and by a bundle; a folder of nothing else has no images."""
    write_png(tmp_path / "images/a.png", (8, 8))
    (tmp_path / "images/notes.txt").write_text("not an image")
    found = model_folder(tmp_path / "model", (8, 8))
    assert apply(found, tmp_path / "images", tmp_path / "out") == (1, 0)
    warning = f"warning: {tmp_path / 'images/notes.txt'}: skipped, is no image"
    assert warning in capsys.readouterr().err
    spec = ready_model(found).input.model_dump(mode="json")
    assert [image["case"] for image in images_of(str(tmp_path / "images"), spec)] == ["a"]
    assert warning in capsys.readouterr().err
    (tmp_path / "images/a.png").unlink()
    with pytest.raises(BadInput, match=r"expected images .*, found none"):
        apply(found, tmp_path / "images", tmp_path / "other")
    with pytest.raises(ValueError, match="expected images, found none"):
        images_of(str(tmp_path / "images"), spec)


def test_pictures_of_the_wrong_kind(tmp_path):
    """A NIfTI image has columns first; two files of one name would be one mask."""
    nifti(tmp_path / "a.nii", 8, 8)
    write_png(tmp_path / "images/b.png", (8, 8, 3))
    write_png(tmp_path / "same/c.png", (8, 8))
    write_png(tmp_path / "same/c.bmp", (8, 8))
    model = model_folder(tmp_path / "model", (8, 8))
    for given, message in (
        (
            "a.nii",
            r"case 'a': the model takes 2D pictures \(.png, .*\) like the images that it was .* found `.nii`",
        ),
        ("images", r"case 'b': expected 1 channels \(channel_0\), found 3 in b.png; give one file with all"),
        ("same", r"case 'c': expected one file, or the channels c_0000 and on without gaps, found c.bmp, c.png"),
        ("nowhere", "nowhere: expected an image file or a folder of images, found neither"),
    ):
        with pytest.raises(BadInput, match=message):
            apply(model, tmp_path / given, tmp_path / "out" / given)


@pytest.mark.parametrize(
    ("axes", "channels", "file", "message"),
    [
        (2, 3, "a.nii", r"takes 2D pictures \(.png, .bmp, .jpg, .jpeg, .tif, .tiff\) like .* found `.nii`"),
        (
            3,
            1,
            "a.png",
            r"takes 3D NIfTI, NRRD or MetaImage files \(.nii.gz, .nii, .nrrd, .mha\) like .* found a picture",
        ),
        (
            2,
            2,
            "b.nii",
            r"'b': expected 2 channels as the last axis, found shape \(6, 7, 8\); give a file with the chan",
        ),
        (
            3,
            1,
            "c.nii",
            r"'c': expected an image or a volume with 1 channels, found shape .*; give a file with the chan",
        ),
    ],
)
def test_a_file_of_the_other_family_or_of_other_channels(tmp_path, axes, channels, file, message):
    """Said in words of the model and the file: who predicts has no `dataset.json`."""
    nifti(tmp_path / "a.nii", 6, 7, 8)
    nifti(tmp_path / "b.nii", 6, 7, 8)
    nifti(tmp_path / "c.nii", 6, 7, 8, 2)
    write_png(tmp_path / "a.png", (8, 8))
    files = {} if file in ("a.nii", "a.png") else {"files": "nifti"}
    model = model_folder(tmp_path / "model", (8,) * axes, channels=channels, **files)
    with pytest.raises(BadInput, match=message) as caught:
        apply(model, tmp_path / file, tmp_path / "out")
    assert "dataset.json" not in str(caught.value)


def test_where_masks_may_not_go(tmp_path):
    write_png(tmp_path / "images/a.png", (8, 8))
    model = model_folder(tmp_path / "model", (8, 8))
    with pytest.raises(BadInput, match="expected another folder than that of the images"):
        apply(model, tmp_path / "images", tmp_path / "images")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/a.png").write_text("precious")
    with pytest.raises(BadInput, match="mine: expected a new or empty folder, or one of earlier predictions"):
        apply(model, tmp_path / "images", tmp_path / "mine")
    assert (tmp_path / "mine/a.png").read_text() == "precious"
    assert apply(model, tmp_path / "images", tmp_path / "images/masks") == (1, 0)
    assert apply(model, tmp_path / "images", tmp_path / "images/masks") == (1, 1)


def test_exports_and_folders_that_are_not_there_say_what_to_give(tmp_path):
    (tmp_path / "program").mkdir()
    (tmp_path / "program/program.json").write_text("{}")
    (tmp_path / "bundle/configs").mkdir(parents=True)
    (tmp_path / "bundle/configs/inference.json").write_text("{}")
    for name, message in (
        (
            "program",
            "found the export of a program, .*; to predict with segpref, give the model's folder of models/, or export",
        ),
        ("bundle", "found a MONAI bundle, which MONAI runs: .*exports/ with `--format safetensors`"),
        (
            "base",
            "base: no such folder, and .* has the folders bundle, program; give a folder of models/, or an export",
        ),
        ("none/base", "base: no such folder, and there are no folders in .*none; give a folder of models/"),
        ("bundle/configs/inference.json", "expected the folder of a model, found a file; give a folder of models/"),
    ):
        with pytest.raises(BadInput, match=message):
            ready_model(tmp_path / name)


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(BadInput, match=r"expected the folder of a model, found no network.json"):
        ready_model(tmp_path)
    model = model_folder(tmp_path / "model", (8, 8))
    (model / "input.json").write_text(json.dumps({"class_names": ["a"]}))
    with pytest.raises(BadInput, match=r"input.json: expected the description of a model's input, .* channel_names"):
        ready_model(model)
    (model / "input.json").write_text('{"class_names": ["a"')
    with pytest.raises(BadInput, match=r"input.json: expected .* found an error at the file: Invalid JSON"):
        ready_model(model)
    (model / "input.json").unlink()
    with pytest.raises(BadInput, match=r"input.json: no such file, so the preparation of images is unknown"):
        ready_model(model)


# ---- resumed ----------------------------------------------------------------------------------------------------


def test_only_what_is_whole_and_of_this_model_and_image_is_kept(tmp_path):
    for seed, name in enumerate("abc"):
        write_png(tmp_path / f"images/{name}.png", (8, 8), seed)
    model = model_folder(tmp_path / "model", (8, 8))
    images, out = tmp_path / "images", tmp_path / "out"
    assert apply(model, images, out) == (3, 0)
    whole = (out / "a.png").read_bytes()
    assert apply(model, images, out) == (3, 3)
    (out / "a.png").write_bytes(whole[:40])  # cut off
    (out / DONE / "b.json").unlink()  # killed before it was said to be done
    write_png(images / "c.png", (9, 8), 7)  # another image of the same name
    assert apply(model, images, out) == (3, 0)
    assert (out / "a.png").read_bytes() == whole
    assert mask_of(out / "c.png").shape == (9, 8)
    assert apply(model, images, out, probabilities=True) == (3, 0)
    assert apply(model, images, out, probabilities=True) == (3, 3)
    model_folder(model, (8, 8), weights=("other", "base"))
    assert apply(model, images, out, "base") == (3, 0)
    assert not np.array_equal(mask_of(out / "a.png"), np.array(Image.open(tmp_path / "images/a.png")))


def test_schedulers_write_the_same_bytes(tmp_path):
    for seed, name in enumerate("abc"):
        write_png(tmp_path / f"images/{name}.png", (8, 8), seed)
    found = ready_model(model_folder(tmp_path / "model", (8, 8)))
    for scheduler in ("synchronous", "threads"):
        knobs = Execution(scheduler=scheduler, workers=2, progress="none")
        apply_model(found, tmp_path / "images", tmp_path / scheduler, Compute(), knobs)
    for name in "abc":
        one, two = (tmp_path / scheduler / f"{name}.png" for scheduler in ("synchronous", "threads"))
        assert one.read_bytes() == two.read_bytes()


def test_the_command_says_what_it_did(tmp_path):
    write_png(tmp_path / "images/a.png", (8, 8))
    line = [str(model_folder(tmp_path / "model", (8, 8))), str(tmp_path / "images"), str(tmp_path / "out")]
    result = CliRunner().invoke(main, [*line, "--workers", "1"])
    assert (result.exit_code, result.output) == (0, f"predict: 1 of 1 images\npredict: 1 masks in {tmp_path / 'out'}\n")
    result = CliRunner().invoke(main, line)
    assert (result.exit_code, result.output) == (0, f"predict: 1 masks in {tmp_path / 'out'}, 1 of them from before\n")


@pytest.mark.parametrize("content", ['{"made_of": "', "[]", "{}"])
def test_a_damaged_record_of_a_mask_makes_the_mask_again(tmp_path, content):
    write_png(tmp_path / "images/a.png", (8, 8))
    model = model_folder(tmp_path / "model", (8, 8))
    apply(model, tmp_path / "images", tmp_path / "out")
    (tmp_path / "out" / DONE / "a.json").write_text(content)
    assert apply(model, tmp_path / "images", tmp_path / "out") == (1, 0)
    assert apply(model, tmp_path / "images", tmp_path / "out") == (1, 1)
