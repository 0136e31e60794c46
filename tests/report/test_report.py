"""The report: one self-contained page that says what was measured, and no more."""

from __future__ import annotations

import base64
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from click.testing import CliRunner

from pipeline.errors import BadInput
from pipeline.report.blocks import Section, Table
from pipeline.report.calibration import calibration
from pipeline.report.curves import curve_table, training
from pipeline.report.judges import judges
from pipeline.report.page import write_report
from pipeline.report.pair_sets import pair_sets
from pipeline.report.promotion import promotion
from pipeline.report.run import Run
from pipeline.report.worst_cases import worst_cases
from pipeline.store.cases import CaseStore
from pipeline.store.manifest import write_json
from stages.report import main
from tests.fixtures.reporting import JUDGES, NO_PAIRS, PAIRS, Built, build, plain_audit


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    warnings = [
        {"pairs": "mined", "text": "48 <i> wrong"},
        {"pairs": "unused", "text": "nothing mined"},
        {"pairs": None, "text": "few cases"},
        {"pairs": None, "text": "a plain one"},
    ]
    audited = plain_audit(JUDGES, PAIRS)
    audited.summary["warnings"] = warnings
    return build(tmp_path_factory.mktemp("run"), audited=audited)


@pytest.fixture(scope="module")
def page(built: Built) -> str:
    return built.page()


class Tags(HTMLParser):
    """All start tags of a page with their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


# ---- the page ----------------------------------------------------------------------------------------------------


def test_the_page_needs_no_network(page: str) -> None:
    tags = Tags(page).found
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in tags}
    for _, attributes in tags:
        assert (attributes.get("src") or "data:image/").startswith("data:image/")
        assert (attributes.get("href") or "#").startswith("#")
    assert "http:" not in page
    assert "https:" not in page
    assert "url(" not in page


def test_vector_pictures_hold_no_references_to_elsewhere(page: str) -> None:
    pictures = re.findall(r"data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)", page)
    assert len(pictures) >= 6
    for picture in pictures:
        assert not re.search(r'href="(?!#|data:)', base64.b64decode(picture).decode())


def test_every_picture_is_described_and_every_header_cell_has_a_scope(page: str) -> None:
    tags = Tags(page).found
    assert all(attributes["alt"] for tag, attributes in tags if tag == "img")
    assert all(attributes["scope"] in ("col", "row", "rowgroup") for tag, attributes in tags if tag == "th")


def test_case_ids_are_text(page: str) -> None:
    assert "<b>x" not in page
    assert "&lt;b&gt;x" in page


def test_sections_come_in_order_and_say_how_to_read_them(page: str) -> None:
    order = [
        "answer",
        "promotion",
        "splits",
        "proposals",
        "judges",
        "pairs",
        "calibration",
        "picks",
        "examples",
        "training",
        "cases",
    ]
    assert re.findall(r'<section id="(\w+)"', page) == order
    assert page.count('<p class="how">') == len(order)


def test_warnings_of_the_audit_come_before_any_result_and_name_the_students_that_they_concern(page: str) -> None:
    """rn_cdpo alone trains on 'mined', and nobody on 'unused'."""
    head = page[: page.index('id="answer"')]
    assert '48 &lt;i&gt; wrong<span class="concerns">Students trained on this pair set: rn_cdpo</span>' in head
    assert 'nothing mined<span class="concerns">No student trains on this pair set</span>' in head
    assert "<li>few cases</li>" in head
    assert "<li>a plain one</li>" in head


def test_notes_of_the_check_are_among_the_warnings(built: Built, page: str, tmp_path: Path) -> None:
    """Older runs have no notes."""
    assert "too &lt;few&gt;" not in page
    write_json(tmp_path / "notes.json", ["propose.samplers.mean: too <few> patients"])
    run = replace(built.run, notes=tmp_path / "notes.json")
    write_report(run, tmp_path / "reports")
    found = (tmp_path / "reports/index.html").read_text()
    assert "<li>propose.samplers.mean: too &lt;few&gt; patients</li>" in found[: found.index('id="answer"')]


def test_images_in_several_splits_are_the_first_warning(built: Built, tmp_path: Path) -> None:
    """Copies within a split are none: they are in the notes on the cases."""
    cases = tmp_path / "cases"
    shutil.copytree(built.run.cases.folder, cases)
    by_split = {case.split: case.case_id for case in built.run.cases.all}
    copies = [[by_split["test"], by_split["pool"]]]
    write_json(cases / "cases.json", built.run.cases.info | {"duplicates": copies})
    write_report(replace(built.run, cases=CaseStore(cases)), tmp_path / "reports")
    found = (tmp_path / "reports/index.html").read_text()
    said = f"as 2 cases, e.g. &#39;{by_split['test']}&#39; (test) and &#39;{by_split['pool']}&#39; (pool)"
    assert said in found[: found.index('id="answer"')]


def test_the_header_names_the_data_and_their_limits(page: str) -> None:
    head = page[: page.index("<main>")]
    for text in ("test", "class_0, class_1", "patient data", "single seed"):
        assert text in head


def test_the_first_line_says_whether_a_student_was_promoted(page: str) -> None:
    """The four patients are too few."""
    head = page[: page.index('<dl class="facts">')]
    why = "validation has 5 patients, fewer than promotion.min_patients (15)"
    assert f"<strong>No student may replace the base: {why}.</strong>" in head


def test_equal_inputs_give_equal_bytes_whatever_the_user_s_matplotlib_settings(built: Built, page: str) -> None:
    import matplotlib

    with matplotlib.rc_context({"font.size": 23, "svg.hashsalt": None}):
        assert built.page("again") == page


def test_a_run_without_judges_pairs_and_students_says_so(tmp_path: Path) -> None:
    page = build(tmp_path, scorers={}, pairs={"none": NO_PAIRS}, students={}).page()
    for text in ("has no students", "has no judges", "has no pair sets", "no mined pairs", "nothing to calibrate"):
        assert text in page


def test_a_pair_set_that_mined_nothing_is_named(tmp_path: Path) -> None:
    strict = {"judge": "agreement", "strategy": {"kind": "top_bottom", "min_disagreement": 99}}
    page = build(tmp_path, pairs={"none": NO_PAIRS, "strict": strict}, students={}).page()
    assert "Pair set &#39;strict&#39; has no pairs." in page
    assert "Pair set &#39;strict&#39; has no pairs: 3 cases were mined." in page
    assert "disagreement too small: 3" in page


# ---- the stage ---------------------------------------------------------------------------------------------------


def test_a_missing_result_is_an_error_that_names_its_file(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(built.folder)
    result = CliRunner().invoke(main, ["--evaluation", "elsewhere", "--out", "nowhere"])
    assert result.exit_code == 2
    assert "elsewhere/base.json: no such file; run the stage that writes it with `dvc repro`" in result.output
    assert not Path("nowhere").exists()


@pytest.mark.parametrize(
    ("section", "folder"),
    [
        (training, "history"),
        (promotion, "promoted"),
        (worst_cases, "evaluation"),
        (judges, "audit"),
        (pair_sets, "audit"),
        (calibration, "audit"),
    ],
)
def test_every_section_names_what_it_misses(
    built: Built, tmp_path: Path, section: Callable[[Run], Section], folder: str
) -> None:
    elsewhere: dict[str, Any] = {folder: tmp_path}
    with pytest.raises(BadInput, match=f"{tmp_path}/.*: no such"):
        section(replace(built.run, **elsewhere))


def test_the_stage_reads_the_folders_of_dvc_yaml(built: Built, page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(built.folder)
    assert CliRunner().invoke(main, ["--out", "by_stage"]).exit_code == 0
    assert Path("by_stage/index.html").read_text() == page


def test_the_stage_writes_the_curves_of_all_students_in_one_table(
    built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every history of the run has three evaluations."""
    monkeypatch.chdir(built.folder)
    result = CliRunner().invoke(main, ["--out", "by_stage"])
    assert result.output.splitlines()[-1].endswith("; by_stage/index.html")
    table = pl.read_csv("by_stage/curves.csv")
    assert table.columns == ["model", "step", "validation_dice"]
    assert table.filter(pl.col("model") == "rn_cdpo").rows() == [
        ("rn_cdpo", step, dice) for step, dice in ((0, 0.5), (2, 0.6), (4, 0.55))
    ]
    assert table["model"].unique(maintain_order=True).to_list() == list(built.run.params.students)


def test_a_run_without_students_has_no_curves(tmp_path: Path) -> None:
    run = build(tmp_path, pairs={"none": NO_PAIRS}, students={}).run
    assert curve_table(run).is_empty()


def test_steadiness_is_that_of_the_weights_that_are_measured(built: Built) -> None:
    """Labelled Dice .8 and .9 at the kept steps: .85; test Dice .45 + gain. Validation .6 and .55: SD .05 / sqrt(2)."""
    section = training(built.run)
    (table,) = [block for block in section.blocks if isinstance(block, Table)]
    rows = {row[0].text: [cell.text for cell in row[1:]] for row in table.cells}
    assert rows["rn_cdpo"][:4] == ["85.0", "65.0", "+20.0", "3.54"]
    assert rows["full"][:4] == ["85.0", "85.0", "0.0", "3.54"]
