"""One pair as a picture: what the figure shows, and pairs that are refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipeline.errors import BadInput
from pipeline.show import show
from pipeline.store import schema
from tests.fixtures.reporting import build


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run. Masks are bars of 3, 5, 10 and again 5 pixels; `agreement` prefers the second to the first."""
    folder = tmp_path_factory.mktemp("show")
    build(folder, students={})
    return folder


def first_pair(project: Path) -> dict[str, Any]:
    return pl.read_parquet(project / "data/pairs/mined.parquet").row(0, named=True)


def test_a_pair_is_a_picture_with_a_title(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bars of 5 and 3 pixels differ on 2; of the curve from margin .1 to .8, .8 gives P .70."""
    monkeypatch.chdir(project)
    pair = first_pair(project)
    assert (pair["chosen"], pair["rejected"], pair["disagreement"]) == (1, 0, 2)
    figure = show(pair)
    assert figure.get_suptitle() == "case c1\njudge agreement, margin 0.8, P(order right) 0.70, |D| 2 voxels"
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["image", "chosen: s", "rejected: base", "disagreement"]
    tint = np.asarray(figure.axes[3].get_images()[-1].get_array())
    assert np.argwhere(tint[..., 3] > 0).tolist() == [[0, 3], [0, 4]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["class_1", "disagreement region"]


def test_notebooks_show_the_figure_without_a_plotting_backend(project: Path) -> None:
    assert show(first_pair(project), project)._repr_png_().startswith(b"\x89PNG")  # type: ignore[attr-defined]


def test_a_pair_without_a_calibration_says_so(project: Path) -> None:
    figure = show({**first_pair(project), "p_correct": None}, str(project))
    assert "P(order right) unknown" in figure.get_suptitle()


def test_a_volume_is_shown_by_the_slice_that_differs_most(tmp_path: Path) -> None:
    """The bars lie along axis 3. They differ in its slices 4 and 5, on 3 voxels in each."""
    build(tmp_path, students={}, dimensions=3)
    title = show(first_pair(tmp_path), tmp_path).get_suptitle()
    assert title.startswith("case c1, slice 4 of 16 along axis 3\njudge")
    assert title.endswith("|D| 6 voxels")


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (("c1", 1, 0), r"expected a pair as a dictionary of columns, found tuple; take a row as `pairs.row\(0, named="),
        ({"case_id": "c1"}, r"found a dictionary without case, chosen, rejected, .*; take a row as"),
        ({"case_id": "other"}, r"data/cases: expected a case 'other', found none of this id; the id is of another run"),
        ({"chosen": 4}, r"proposals: case 'c1': expected proposals 0 to 3, found proposal 4; the pair was mined from"),
        ({"chosen": -1}, r"expected proposals 0 to 3, found proposal -1"),
        ({"chosen": 2}, r"expected proposals 2 and 0 to differ on 2 voxels, found 7; .* run `dvc repro` and read"),
    ],
)
def test_what_is_no_pair_of_the_run_is_refused(project: Path, pair: Any, message: str) -> None:
    """A row without names, a part of a row, and rows that do not fit the masks of the run."""
    given = pair if isinstance(pair, tuple) or pair == {"case_id": "c1"} else {**first_pair(project), **pair}
    with pytest.raises(BadInput, match=message):
        show(given, project)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    pair = dict.fromkeys(schema.PAIRS.columns)
    with pytest.raises(BadInput, match=rf"{tmp_path}: expected the folder of a finished run, found no folder data/cas"):
        show(pair, tmp_path)


def test_the_import_is_light() -> None:
    """A notebook that shows no pair yet has not waited for torch or matplotlib."""
    code = "import sys, pipeline.show; print({'torch', 'matplotlib', 'monai', 'zarr'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
