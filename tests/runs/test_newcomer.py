"""A first run on pictures of one's own: nothing is changed in the shipped `params.yaml` but three blocks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from ruamel.yaml import YAML

from pipeline.cases.readers.phantom import Phantom
from pipeline.promotion.record import PromotionRecord
from pipeline.seeding import numpy_generator
from tests.fixtures.chain import ROOT, run_chain
from tests.fixtures.phantoms import save_image

PICTURES, WITH_MASK, EMPTY = 150, 50, 6


def write_pictures(root: Path) -> None:
    """Grey pictures of 56 to 96 pixels per axis with one class, as of ultrasound: 50 with a mask, 6 of them empty."""
    for number in range(PICTURES):
        height, width = numpy_generator(0, "picture", number).integers(56, 97, 2)
        empty = float(number % (WITH_MASK // EMPTY) == 0 and number < WITH_MASK - 2)
        one = Phantom(cases=PICTURES, size=(int(height), int(width)), noise=0.3, bias=0.3, empty=empty, seed=9)
        image, label = one.read(one.scan()[number])
        grey = np.interp(image[0], (image.min(), image.max()), (0, 255)).astype(np.uint8)
        save_image(root / f"images/lesion ({number}).png", grey)
        if number < WITH_MASK:
            assert label is not None
            save_image(root / f"masks/lesion ({number}).png", label * np.uint8(255))


@pytest.mark.slow
def test_pictures_of_ones_own(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    write_pictures(pictures)
    params = YAML(typ="safe").load(ROOT / "params.yaml")
    params["data"] = {"kind": "folders", "path": str(pictures), "channels": "grey", "foreground_above": 127}
    params["preprocess"] = {"normalise": "zscore", "resize": [64, 64]}
    sizes = {"labelled": 15, "validation": 18, "test": 17}
    params["splits"] = {**sizes, "pool": "rest"}
    folder = tmp_path / "run"
    run_chain(folder, params, skip=("provenance",))
    cases = pl.read_parquet(folder / "data/cases/cases.parquet")
    assert dict(cases["split"].value_counts().iter_rows()) == {**sizes, "pool": 100}
    promotion = PromotionRecord.of(folder / "models/promoted")
    assert promotion is not None
    assert {student.name for student in promotion.students if student.candidate} == {"supervised", "imitate", "rn_dpo"}
    for name in ("base", *params["students"]):
        measured = pl.read_parquet(folder / f"evaluation/{name}.parquet")
        assert measured["case_id"].n_unique() == 17, name
        assert measured["dice"].is_between(0, 1).all(), name
    assert "<html" in (folder / "reports/index.html").read_text()
