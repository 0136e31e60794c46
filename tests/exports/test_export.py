"""Exports of one model: as weights, as a program, and as a bundle that MONAI's own runner executes."""

from __future__ import annotations

import gzip
import json
import re
import struct
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from huggingface_hub import ModelCard

from pipeline.cases.preprocess import FixedRange, Preprocess
from pipeline.compute import Compute
from pipeline.errors import BadInput
from pipeline.execution import Execution
from pipeline.exports import export as model_export
from pipeline.exports.card import CARD, FACTS, FinishedRun
from pipeline.exports.export import DESCRIPTION, PROGRAM, Format, export_model
from pipeline.exports.predict import ReadyModel, apply_model, ready_model
from pipeline.params import load_params
from pipeline.segmenter.imported.checkpoint import Checkpoint
from pipeline.segmenter.seen import Seen
from pipeline.store.cases import CaseStore
from pipeline.store.manifest import check_manifest, write_manifest
from stages.export import main
from tests.exports.test_predict import mask_of, write_png
from tests.fixtures.builders import case_store
from tests.fixtures.chain import TINY, write_params
from tests.fixtures.phantoms import disc
from tests.fixtures.trained import model_folder, textured, write_oblique

ONE = Execution(scheduler="synchronous", workers=1, progress="none")


def finished(folder: Path) -> FinishedRun:
    """A run that has cases and parameters, and is neither audited nor evaluated."""
    folder.mkdir(parents=True, exist_ok=True)
    splits = ["labelled", "labelled", "pool", "validation", "test", "test"]
    case_store(folder / "cases", [disc((8, 8), 2.0)] * 6, splits, groups=list("aabcde"))
    write_params(folder, TINY)
    return FinishedRun(
        load_params(folder / "params.yaml"), folder / "cases", *(folder / n for n in ("p", "audit", "m", "base", "h"))
    )


def exported(folder: Path, model: Path, form: Format) -> tuple[ReadyModel, Path]:
    write_manifest(model, "a test")
    found = ready_model(model)
    export_model("rn_dpo", found, finished(folder), form, folder / "out")
    return found, folder / "out"


def test_weights_are_a_model_folder_of_their_own(tmp_path):
    """With the offsets of a tuned threshold; it predicts the same bytes and can be the base of another run."""
    write_png(tmp_path / "images/a.png", (8, 9))
    model = model_folder(tmp_path / "model", (8, 8), weights=("last", "best"), record={"offsets": [0.3, -0.2]})
    Seen(frozenset("a"), frozenset("b"), complete=True).save(model)
    found, out = exported(tmp_path, model, "safetensors")
    check_manifest(out, content=True)
    assert Seen.of(out) == Seen.of(model)
    assert {path.name for path in out.iterdir()} == {
        *("last.safetensors", "network.json", "input.json", "seen.json", "student.json", "manifest.json", CARD, FACTS)
    }
    for one, masks in ((found, "one"), (ready_model(out), "two")):
        apply_model(one, tmp_path / "images", tmp_path / masks, Compute(), ONE)
    assert (tmp_path / "one/a.png").read_bytes() == (tmp_path / "two/a.png").read_bytes()
    with pytest.raises(BadInput, match="out: expected a new or empty folder, found files"):
        export_model("rn_dpo", found, finished(tmp_path), "program", out)


def test_weights_can_be_the_base_of_another_run(tmp_path):
    """Of a student at its best, whose folder has no record, since it is a network like any other."""
    described = {"class_names": ["class_0", "class_1"], "channel_names": ["grey"], "files": "pictures"}
    model = model_folder(tmp_path / "model", (8, 8), classes=2, weights=("best",), record={}, **described)
    _, out = exported(tmp_path, model, "safetensors")
    assert not (out / "student.json").exists()
    read = Checkpoint(kind="checkpoint").read(out, CaseStore(tmp_path / "cases"), "cpu")
    image = torch.randn((1, 1, 8, 8))
    assert torch.equal(read.base.network(image), ready_model(model).model.load()(image))


def test_a_program_gives_the_logits_of_the_network(tmp_path):
    found, out = exported(tmp_path, model_folder(tmp_path / "model", (8, 12), channels=2), "program")
    program = torch.export.load(out / PROGRAM).module()
    for batch in (1, 4):
        windows = torch.randn((batch, 2, 8, 12), generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            assert torch.allclose(program(windows), found.model.load()(windows), atol=1e-5)
    said = json.loads((out / DESCRIPTION).read_text())
    assert said["input"]["shape"] == ["batch", 2, 8, 12]
    assert said["output"]["shape"] == ["batch", 3, 8, 12]
    assert said["output"]["classes"] == ["background", "class_1", "class_2"]
    assert said["preprocess"]["normalise"] == "zscore"
    assert said["checked"]["largest_difference"] <= 1e-4


def test_a_program_of_other_logits_is_refused_and_nothing_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(model_export, "load_program", lambda path, device: lambda image: image.expand(-1, 3, -1, -1))
    with pytest.raises(BadInput, match=r"expected the logits of the network within 0.0001 of the largest, found"):
        exported(tmp_path, model_folder(tmp_path / "model", (8, 8)), "program")
    assert not (tmp_path / "out").exists()


def test_changed_weights_are_refused(tmp_path):
    model = model_folder(tmp_path / "model", (8, 8), weights=("base", "other"))
    write_manifest(model, "a test")
    (model / "base.safetensors").write_bytes((model / "other.safetensors").read_bytes())
    with pytest.raises(BadInput, match=r"base.safetensors: differs from its SHA-256 in manifest.json"):
        export_model("base", ready_model(model), finished(tmp_path), "safetensors", tmp_path / "out")


# ---- bundles ----------------------------------------------------------------------------------------------------


def run_bundle(bundle: Path, images: Path, out: Path) -> None:
    """MONAI's runner, in this process; a bundle's `scripts` must not be taken for that of the bundle before."""
    from monai.bundle import run

    before, threads = list(sys.path), torch.get_num_threads()
    try:
        run(
            config_file=str(bundle / "configs/inference.json"),
            meta_file=str(bundle / "configs/metadata.json"),
            bundle_root=str(bundle),
            dataset_dir=str(images),
            output_dir=str(out),
        )
    finally:
        sys.path[:] = before
        torch.set_num_threads(threads)
        for name in [name for name in sys.modules if name == "scripts" or name.startswith("scripts.")]:
            del sys.modules[name]


def volumes(folder: Path) -> None:
    """Oblique, anisotropic, in several orientations and sizes, smaller and larger than the window."""
    image = write_oblique(folder / "a.nii.gz")
    nibabel.save(nibabel.as_closest_canonical(write_oblique(folder / "b.nii.gz", (9, 11, 4), 1)), folder / "b.nii.gz")
    turned = image.as_reoriented(np.array([[2, -1], [0, 1], [1, -1]]))
    nibabel.save(turned, folder / "c.nii")


def colours(folder: Path) -> None:
    for seed, name in enumerate("ab"):
        write_png(folder / f"{name}.png", (13 + seed, 21, 3), seed)


def pairs(folder: Path) -> None:
    for seed, name in enumerate("ab"):
        for channel in range(2):
            write_png(folder / f"{name}_{channel:04d}.png", (11, 14), 2 * seed + channel)


RAS = Preprocess(orientation="RAS", spacing=(1.0, 1.0, 2.0), normalise="percentile")
RANGE = Preprocess(resize=(12, 16), normalise=FixedRange(range=(20.0, 200.0), to=(0.0, 1.0), clip=True))


@pytest.mark.parametrize(
    ("make", "preprocess", "window", "more"),
    [
        (volumes, RAS, (12, 12, 8), {}),
        (colours, RANGE, (16, 16), {"convert": "grey", "classes": 2, "head": "sigmoid", "mask_values": [0, 255]}),
        (pairs, Preprocess(normalise=("minmax", "unit")), (8, 8), {"channels": 2}),
    ],
)
def test_a_bundle_run_by_monai_gives_the_masks_of_predict(tmp_path, make, preprocess, window, more):
    """Voxel by voxel, with the same headers, on working grids of other sizes, by one window or several."""
    (tmp_path / "images").mkdir()
    make(tmp_path / "images")
    offsets = [0.05] * (more.get("classes", 3) - 1)
    model = model_folder(tmp_path / "model", window, preprocess, weights=("last",), record={"offsets": offsets}, **more)
    found, bundle = exported(tmp_path, model, "bundle")
    total, _ = apply_model(found, tmp_path / "images", tmp_path / "ours", Compute(), ONE)
    run_bundle(bundle, tmp_path / "images", tmp_path / "theirs")
    ours = sorted(path for path in (tmp_path / "ours").iterdir() if path.is_file())
    assert [path.name for path in ours] == sorted(path.name for path in (tmp_path / "theirs").iterdir())
    assert len(ours) == total > 1
    for path in ours:
        mask = mask_of(path)
        assert np.array_equal(mask, mask_of(tmp_path / "theirs" / path.name))
        assert len(np.unique(mask)) > 1
        if ".nii" in path.name:
            one: Any = nibabel.load(path)
            two: Any = nibabel.load(tmp_path / "theirs" / path.name)
            assert one.header.binaryblock == two.header.binaryblock


def test_what_a_bundle_holds(tmp_path):
    """Files by MONAI's names, weights without pickled code, and scripts that need no segpref."""
    found, bundle = exported(tmp_path, model_folder(tmp_path / "model", (8, 8)), "bundle")
    assert {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()} == {
        *("configs/inference.json", "configs/metadata.json", "models/model.pt", "docs/README.md", "LICENSE"),
        *("scripts/__init__.py", "scripts/transforms.py", "scripts/voxels.py", "scripts/mask_file.py", CARD, FACTS),
    }
    state = torch.load(bundle / "models/model.pt", weights_only=True)
    assert all(torch.equal(value, state[name]) for name, value in found.model.load().state_dict().items())
    for script in (bundle / "scripts").glob("*.py"):
        assert not re.search(r"^\s*(import|from) pipeline", script.read_text(), re.M)
    metadata = json.loads((bundle / "configs/metadata.json").read_text())
    assert metadata["network_data_format"]["outputs"]["pred"]["channel_def"]["2"] == "class_2"
    assert (bundle / "docs/README.md").read_text() == (bundle / CARD).read_text()


@pytest.mark.parametrize(
    ("described", "images", "message"),
    [
        ({}, "a.tif", r"this bundle reads .nii.gz, .nii, .png, .bmp, .jpg, .jpeg; convert the file"),
        ({"files": "nifti"}, "a.png", "expected nifti like the training images, found pictures"),
        ({"orientation": "LPS"}, "a.nii", "expected a volume of orientation LPS, found LAS"),
    ],
)
def test_a_bundle_refuses_what_predict_refuses(tmp_path, described, images, message):
    from pipeline.exports.bundle_script import ToWorkingGridd, images_of

    path = tmp_path / "images" / images
    if path.suffix == ".nii":
        path.parent.mkdir()
        nibabel.save(nibabel.Nifti1Image(np.ones((8, 8, 8)), np.diag([-1.0, 1, 1, 1])), path)
    else:
        write_png(path.with_suffix(".png"), (8, 8))
        path.with_suffix(".png").rename(path)
    axes = 3 if path.suffix == ".nii" else 2
    model = model_folder(tmp_path / "model", (8,) * axes, **described)
    spec = ready_model(model).input.model_dump(mode="json") | {"dimensions": axes, "offsets": []}
    with pytest.raises(ValueError, match=message):
        list(map(ToWorkingGridd(spec), images_of(str(path.parent), spec)))


@pytest.mark.parametrize(
    ("names", "affine", "message"),
    [
        (("a_0000", "a_0002"), 1.0, r"case 'a': expected one file, or the channels a_0000 and on without gaps, found"),
        (
            ("a_0000", "a_0001"),
            2.0,
            r"a_0001.nii: expected the affine of a_0000.nii, found a difference of 1; resample",
        ),
        (("a_0000", "a_0001"), 1.0, None),
    ],
)
@pytest.mark.parametrize("directions", [True, False])
def test_channels_of_a_bundle_are_whole_and_lie_on_one_grid(tmp_path, names, affine, message, directions):
    from pipeline.exports.bundle_script import ToWorkingGridd, images_of

    (tmp_path / "images").mkdir()
    for name, edge in zip(names, (1.0, affine), strict=True):
        # Without directions, the edges are compared.
        image = nibabel.Nifti1Image(textured((8, 8)), np.diag([edge, 1, 1, 1]) if directions else None)
        image.header.set_zooms((edge, 1))
        nibabel.save(image, tmp_path / f"images/{name}.nii")
    model = model_folder(tmp_path / "model", (8, 8), channels=2, files="nifti")
    spec = ready_model(model).input.model_dump(mode="json") | {"dimensions": 2, "offsets": []}
    if message is None:
        (found,) = map(ToWorkingGridd(spec), images_of(str(tmp_path / "images"), spec))
        assert found["image"].shape == (2, 8, 8)
        return
    with pytest.raises(ValueError, match=message):
        list(map(ToWorkingGridd(spec), images_of(str(tmp_path / "images"), spec)))


@pytest.mark.parametrize("kept", [60, 400])
def test_a_bundle_names_the_damaged_file(tmp_path, kept):
    """Cut off in its header or in its pixels, as MONAI's runner meets it; the error beneath is Pillow's own."""
    for name in "ab":
        write_png(tmp_path / f"images/{name}.png", (40, 40))
    damaged = tmp_path / "images/b.png"
    damaged.write_bytes(damaged.read_bytes()[:kept])
    _, bundle = exported(tmp_path, model_folder(tmp_path / "model", (40, 40)), "bundle")
    with pytest.raises(RuntimeError) as caught:
        run_bundle(bundle, tmp_path / "images", tmp_path / "out")
    found: BaseException | None = caught.value
    chain = []
    while found is not None:
        chain.append(str(found))
        found = found.__cause__
    assert any(
        re.search(rf"^{damaged}: expected a whole image .* found \w+: .*; fetch the file again", s) for s in chain
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content, None),
        (lambda content: content[:-8] + bytes(8), r"found BadGzipFile: CRC check failed"),
        (lambda content: gzip.compress(with_pixdim(gzip.decompress(content), 0)), "expected voxel edges above 0"),
        (lambda content: gzip.compress(with_pixdim(gzip.decompress(content), 3)), r"\(3, 1, 1\) in `pixdim` and \(1, "),
    ],
)
def test_predict_and_a_bundle_refuse_damaged_volumes_and_headers(tmp_path, damage, message):
    """A checksum of other voxels, an edge of 0 that the library mends to 1, and an edge that is not the affine's."""
    from pipeline.exports.bundle_script import ToWorkingGridd, images_of

    file = tmp_path / "images/a.nii.gz"
    file.parent.mkdir()
    nibabel.save(nibabel.Nifti1Image(textured((16, 16, 16)), np.eye(4)), file)
    file.write_bytes(damage(file.read_bytes()))
    model = model_folder(tmp_path / "model", (8, 8, 8), orientation="RAS")
    spec = ready_model(model).input.model_dump(mode="json") | {"dimensions": 3, "offsets": []}
    if message is None:
        assert next(map(ToWorkingGridd(spec), images_of(str(file.parent), spec)))["image"].shape == (1, 16, 16, 16)
        assert apply_model(ready_model(model), file.parent, tmp_path / "out", Compute(), ONE) == (1, 0)
        return
    with pytest.raises(ValueError, match=rf"a.nii.gz: expected .*{message}"):
        list(map(ToWorkingGridd(spec), images_of(str(file.parent), spec)))
    with pytest.raises(BadInput, match=r"a.nii.gz: case 'a': expected "):
        apply_model(ready_model(model), file.parent, tmp_path / "out", Compute(), ONE)
    assert not (tmp_path / "out/a.nii.gz").exists()


def with_pixdim(content: bytes, edge: float) -> bytes:
    """A NIfTI-1 file with another edge of the first axis in its header."""
    return content[:80] + struct.pack("<f", edge) + content[84:]


def test_intensities_that_a_bundle_cannot_prepare_name_their_file(tmp_path):
    from pipeline.exports.bundle_script import ToWorkingGridd, images_of

    (tmp_path / "images").mkdir()
    nibabel.save(nibabel.Nifti1Image(np.full((8, 8), 300.0), np.eye(4)), tmp_path / "images/a.nii")
    model = model_folder(tmp_path / "model", (8, 8), Preprocess(normalise="unit"), files="nifti")
    spec = ready_model(model).input.model_dump(mode="json") | {"dimensions": 2, "offsets": []}
    with pytest.raises(ValueError, match=r"a.nii: expected .* 'unit' expected intensities from 0 to 255, found 300"):
        list(map(ToWorkingGridd(spec), images_of(str(tmp_path / "images"), spec)))


def test_what_no_bundle_can_hold(tmp_path):
    model = model_folder(tmp_path / "model", (8, 8, 8), files="pictures", orientation="unknown")
    with pytest.raises(BadInput, match="was trained on stacks of TIFF, which bundles do not read"):
        exported(tmp_path, model, "bundle")


# ---- the command ------------------------------------------------------------------------------------------------


def test_the_command(tmp_path, monkeypatch):
    run = finished(tmp_path)
    model = model_folder(tmp_path / "models/students/rn_dpo", (8, 8), weights=("last",), record={})
    write_manifest(model, "a test")
    monkeypatch.chdir(tmp_path)
    line = ["rn_dpo", "--format", "safetensors", "--cases", str(run.cases)]
    refused = CliRunner().invoke(main, [*line, "--license", "CC BY"])
    assert refused.exit_code == 2
    assert "--license: expected an identifier of the Hub" in refused.output
    result = CliRunner().invoke(main, [*line, "--license", "cc-by-4.0"])
    assert (result.exit_code, result.output) == (
        0,
        "export: safetensors of rn_dpo in exports/rn_dpo_safetensors; read exports/rn_dpo_safetensors/MODEL_CARD.md "
        "before you share it\n",
    )
    head = ModelCard.load(tmp_path / "exports/rn_dpo_safetensors" / CARD).data
    assert (head.license, head.library_name) == ("cc-by-4.0", "segpref")
    result = CliRunner().invoke(main, ["unknown", "--format", "bundle"])
    assert result.exit_code == 2
    assert "students has no entry 'unknown'" in result.output
