"""Odd inputs that are right, so that a stage that refuses everything does not pass."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import polars as pl
import tifffile
from PIL import Image

from benchmarks.faults.damage import move, raw, text
from benchmarks.faults.entry import PREPARE, SET, Expected, Good, judge_line
from benchmarks.faults.tables import SCORES, scores
from pipeline.store.cases import CaseStore
from tests.fixtures.attached_files import write_attached
from tests.fixtures.phantoms import disc
from tests.fixtures.picture_files import png

_KIND = "Odd inputs that are right"
_picture = partial(Good, kind=_KIND, start="pictures", line=PREPARE)
_volume = partial(Good, kind=_KIND, start="volumes", line=PREPARE)
_attached = partial(Good, kind=_KIND, start="nrrd", line=PREPARE)
_random = np.random.default_rng(0)
WIDE = _random.integers(0, 60000, (20, 24)).astype(np.uint16)
COLOUR = _random.integers(0, 255, (20, 24, 3)).astype(np.uint8)
VOLUME = _random.integers(-900, 900, (10, 12, 8)).astype(np.int16)
IMAGE, MASK = SET / "images/case_03.png", SET / "masks/case_03.png"
LABEL = disc((20, 24), 4)
BALL = disc((10, 12, 8), 3.5) + disc((10, 12, 8), 1.5)


def _case(case_id: str) -> Any:
    return next(case for case in CaseStore(Path("data/cases")).all if case.case_id == case_id)


def stored(case_id: str, image: np.ndarray, label: np.ndarray) -> Expected:
    """Image `[channel, *space]` and label that `prepare` must have stored of a case."""
    store = CaseStore(Path("data/cases"))
    return [
        (f"image of {case_id}", lambda: store.image(_case(case_id)), image.astype(np.float32)),
        (f"label of {case_id}", lambda: store.label(_case(case_id)), label),
    ]


def _grey_16() -> Expected:
    raw(str(IMAGE), png(WIDE, 16))()
    return stored("case_03", WIDE[None], LABEL)


def _published_name() -> Expected:
    for file in (IMAGE, MASK):
        move(str(file), str(file.with_name("benign (3).png")))()
    with Image.open(IMAGE.with_name("benign (3).png")) as found:
        return stored("benign_3", np.array(found)[None], LABEL)


def _mask_1_bit() -> Expected:
    Image.fromarray(LABEL.astype(bool)).save(MASK)
    with Image.open(IMAGE) as found:
        return stored("case_03", np.array(found)[None], LABEL)


def _colour_table() -> Expected:
    mask = Image.fromarray(LABEL)
    mask.putpalette([0, 0, 0, 255, 0, 0])
    mask.save(MASK)
    with Image.open(IMAGE) as found:
        return stored("case_03", np.array(found)[None], LABEL)


def _big_endian_tiff() -> Expected:
    IMAGE.unlink()
    tifffile.imwrite(IMAGE.with_suffix(".TIF"), WIDE, photometric="minisblack", byteorder=">", bigtiff=True)
    return stored("case_03", WIDE[None], LABEL)


def _hidden_files() -> Expected:
    raw(str(SET / "images/.DS_Store"), b"\0")()
    raw(str(SET / "images/._case_03.png"), b"\0")()
    with Image.open(IMAGE) as found:
        return stored("case_03", np.array(found)[None], LABEL)


def _unicode_root() -> Expected:
    with Image.open(IMAGE) as found:
        image = np.array(found)
    move(str(SET), "raw/Größe 病例")()
    return stored("case_03", image[None], LABEL)


def _black_and_white_jpeg() -> Expected:
    for file in sorted(MASK.parent.iterdir()):
        with Image.open(file) as found:
            Image.fromarray(np.array(found) * np.uint8(255)).save(file, format="JPEG", quality=95)
    with Image.open(IMAGE) as found:
        return stored("case_03", np.array(found)[None], LABEL)


def _byte_order_mark() -> Expected:
    rows = "\r\n".join(["case_id,patient", *(f"case_{i:02d},Ä{i // 2}" for i in range(8))])
    text(str(SET / "cases.csv"), rows, "utf-8-sig")()
    groups = lambda: np.array([case.group for case in sorted(CaseStore(Path("data/cases")).all, key=_id)])  # noqa: E731
    return [("patients", groups, np.array([f"Ä{i // 2}" for i in range(8)]))]


def _id(case: Any) -> str:
    return case.case_id


def _splits_with_mark() -> Expected:
    fold = {"train": ["case_00", "case_01"], "val": ["case_02", "case_03"]}
    text(str(SET / "splits_final.json"), json.dumps([fold]), "utf-8-sig")()
    found = lambda: np.array([case.split for case in sorted(CaseStore(Path("data/cases")).all, key=_id)])[:4]  # noqa: E731
    return [("splits", found, np.array(["labelled"] * 2 + ["validation"] * 2))]


def _nifti(image: Any) -> Expected:
    nibabel.save(image, SET / "imagesTr/vol_03.nii.gz")
    return stored("vol_03", np.asarray(image.get_fdata(), np.float32)[None], BALL)


def _affine() -> np.ndarray:
    return np.diag([1.0, 0.5, 2.0, 1.0])


def _big_endian() -> Expected:
    header = nibabel.Nifti1Header(endianness=">")
    header.set_data_dtype(">i2")
    image = nibabel.Nifti1Image(VOLUME.astype(">i2"), _affine(), header)
    _nifti(image)
    return stored("vol_03", VOLUME[None], BALL)


def _nifti_2() -> Expected:
    _nifti(nibabel.Nifti2Image(VOLUME, _affine()))
    return stored("vol_03", VOLUME[None], BALL)


def _slope() -> Expected:
    image = nibabel.Nifti1Image(VOLUME, _affine())
    image.header.set_slope_inter(0.5, -3)
    _nifti(image)
    return stored("vol_03", VOLUME[None] * np.float32(0.5) - 3, BALL)


def _trailing_axes() -> Expected:
    _nifti(nibabel.Nifti1Image(VOLUME[..., None, None], _affine()))
    return stored("vol_03", VOLUME[None], BALL)


def _qform_only() -> Expected:
    image = nibabel.Nifti1Image(VOLUME, _affine())
    image.set_sform(None, 0)
    image.set_qform(_affine(), 1)
    _nifti(image)
    return stored("vol_03", VOLUME[None], BALL)


def _float_label() -> Expected:
    nibabel.save(nibabel.Nifti1Image(BALL.astype(np.float64), _affine()), SET / "labelsTr/vol_03.nii.gz")
    image: Any = nibabel.load(SET / "imagesTr/vol_03.nii.gz")
    return stored("vol_03", np.asarray(image.dataobj)[None], BALL)


def _null_test() -> Expected:
    content = json.loads((SET / "dataset.json").read_text()) | {"test": None}
    text(str(SET / "dataset.json"), json.dumps(content), "utf-8-sig")()
    image: Any = nibabel.load(SET / "imagesTr/vol_03.nii.gz")
    return stored("vol_03", np.asarray(image.dataobj)[None], BALL)


def _spreadsheet() -> Expected:
    scores()()
    rows = Path(SCORES).read_text().strip().splitlines()
    body = [f"{row},seen by Zoë," for row in rows[1:]]
    text(SCORES, "\r\n".join([f"{rows[0]},note,", *body, ",,,,", ""]), "utf-8-sig")()
    found = lambda: pl.read_parquet("data/scores/mine.parquet")["score"].to_numpy()  # noqa: E731
    return [("scores", found, np.full(len(body), 0.5))]


def _right_anterior_superior() -> Expected:
    fields: dict[str, Any] = {"space_directions": "(1,0,0) (0,0.5,0) (0,0,2)", "type": "short", "endian": "big"}
    write_attached(SET / "imagesTr/case_03_0000.nrrd", VOLUME.astype(">i2"), space="RAS", **fields)
    write_attached(SET / "labelsTr/case_03.nrrd", BALL.clip(0, 1))
    return stored("case_03", VOLUME[None], BALL.clip(0, 1))


def _older_names() -> Expected:
    fields: dict[str, Any] = {"TransformMatrix": None, "Rotation": "-1 0 0 0 -1 0 0 0 1", "Offset": None}
    edges: dict[str, Any] = {"ElementSpacing": None, "ElementSize": "1 0.5 2", "CompressedDataSize": None}
    write_attached(SET / "imagesTr/case_03_0000.mha", VOLUME, Position="0 0 0", **fields, **edges)
    write_attached(SET / "labelsTr/case_03.mha", BALL.clip(0, 1))
    return stored("case_03", VOLUME[None], BALL.clip(0, 1))


GOOD = [
    _picture("a grey PNG of 16 bits", _grey_16),
    _picture("a name as published, with a space and brackets", _published_name),
    _picture("a mask of 1 bit", _mask_1_bit),
    _picture("a mask with a colour table", _colour_table),
    _picture("a big-endian BigTIFF with the ending `.TIF`", _big_endian_tiff),
    _picture("hidden files of macOS among the images", _hidden_files),
    _picture("a data root with umlauts, Chinese letters and a space", _unicode_root, {"data.path": "raw/Größe 病例"}),
    _picture("masks of black and white in JPEG behind `.png`", _black_and_white_jpeg, {"data.foreground_above": 127}),
    _picture(
        "a case table with a byte order mark, CRLF and umlauts",
        _byte_order_mark,
        {"data.case_table": {"file": "cases.csv", "group": "patient"}, "splits.pool": 0},
    ),
    _picture(
        "a splits file with a byte order mark",
        _splits_with_mark,
        {"splits.given": {}, "splits.labelled": 2, "splits.validation": 2},
    ),
    _volume("a big-endian NIfTI", _big_endian),
    _volume("NIfTI-2", _nifti_2),
    _volume("a NIfTI with a slope and an intercept", _slope),
    _volume("a NIfTI with two further axes of length 1", _trailing_axes),
    _volume("a NIfTI with a qform alone", _qform_only),
    _volume("a label of float64", _float_label),
    _attached("a big-endian NRRD in the space `RAS`, with a label in LPS", _right_anterior_superior),
    _attached("a MetaImage with older names of fields", _older_names, start="metaimage"),
    _volume("a `dataset.json` with a byte order mark and `test: null`", _null_test),
    Good(
        "scores as a spreadsheet saves them: byte order mark, empty row, further columns",
        _spreadsheet,
        {"tables": {"mine": {"kind": "table", "path": SCORES}}},
        kind=_KIND,
        start="run",
        line=judge_line("mine"),
    ),
]
