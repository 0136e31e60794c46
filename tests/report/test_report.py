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
from pipeline.report.cases_and_proposals import splits
from pipeline.report.curves import curve_table, training
from pipeline.report.judges import judges
from pipeline.report.page import write_report
from pipeline.report.pair_sets import pair_sets
from pipeline.report.promotion import promotion
from pipeline.report.run import Run, RunWarning, kinds_of
from pipeline.report.worst_cases import worst_cases
from pipeline.segmenter.knobs import MODELS
from pipeline.store.cases import CaseStore
from pipeline.store.manifest import write_json
from stages.report import main
from tests.fixtures.reporting import JUDGES, NO_PAIRS, PAIRS, STUDENTS, Built, build, plain_audit


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


def test_warnings_that_touch_what_was_trained_come_first_and_all_are_folded(page: str) -> None:
    """rn_cdpo alone trains on 'mined', and nobody on 'unused'."""
    head = page[: page.index('id="answer"')]
    shown, folded = re.findall(r"<li>(.*)</li>", head[head.index('id="warnings"') : head.index("</section>")]), 3
    wrong, concerned = "48 &lt;i&gt; wrong", '<span class="concerns">Students: rn_cdpo</span>'
    assert shown[:folded] == [f"{wrong} {concerned}", "few cases", "a plain one"]
    assert shown[folded:] == [
        f"{wrong} {concerned}",
        'nothing mined <span class="concerns">No student trains on this pair set</span>',
        "few cases",
        "a plain one",
    ]
    assert "Details: all 4 warnings" in head


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
    for text in ("test", "class_0, class_1", "patient data", "one seed"):
        assert text in head


def test_the_first_screen_answers_three_questions(page: str) -> None:
    """Five patients are too few to promote. The judges have no interval above the fixed proposal but the given one."""
    first = page[: page.index('id="warnings"')]
    why = "validation has 5 patients, fewer than promotion.min_patients (15)"
    assert f"<dt>Is there a better model?</dt><dd>No student may replace the base: {why}." in first
    assert "<dt>Which judge?</dt><dd>&#39;agreement&#39;: its top picks are" in first
    assert "<li>Label more validation cases: validation has 5 patients, and a promotion needs 15" in first
    assert first.count("<li>") - first[first.index("more</summary>") :].count("<li>") == 3


def test_warnings_of_one_kind_are_one_line_with_their_number() -> None:
    """Three differ in names and numbers only; the fourth is about pairs that no student has."""
    texts = [f"pair set '{name}': the lift of judge '{name}' is {n}.5" for name, n in (("a", 1), ("b", 2), ("c", 3))]
    found = kinds_of(
        [
            *(RunWarning(text, text[10], (f"student_{n}",)) for n, text in enumerate(texts)),
            RunWarning("pair set 'd': the lift of judge 'd' is 4.5", "d"),
            RunWarning("propose.samplers.mean: 3 patients are fewer than 8"),
            RunWarning("propose.samplers.one: 3 patients are fewer than 8"),
            RunWarning("propose.samplers.one: the base has no folds"),
        ]
    )
    assert [(kind.first, kind.count, kind.students) for kind in found] == [
        (texts[0], 3, ("student_0", "student_1", "student_2")),
        ("propose.samplers.mean: 3 patients are fewer than 8", 2, ()),
        ("propose.samplers.one: the base has no folds", 1, ()),
    ]


def test_what_was_said_of_an_imported_base_is_a_warning(built: Built, tmp_path: Path) -> None:
    note = "the model has seen 7 of 40 test cases, so measures on these cases are too good"
    write_json(tmp_path / MODELS, {"imported": {"kind": "checkpoint", "sha256": "ab", "notes": [note]}})
    first = replace(built.run, base=tmp_path).warnings[0]
    assert first == RunWarning(f"base: {note}")


@pytest.mark.parametrize("rows", ["", "base,0,,0.5,true\n"])
def test_a_base_that_was_not_trained_is_not_said_to_have_learned(built: Built, tmp_path: Path, rows: str) -> None:
    """Masks without a model have no row in the history of the base. An imported base has its start alone."""
    assert "The base learned from the labelled split" in splits(built.run).how
    assert "The base was best on validation at step 6 of 6, its last evaluation" in training(built.run).how
    shutil.copytree(built.run.history, tmp_path / "history")
    (tmp_path / "history/base.csv").write_text("model,step,loss,validation_dice,best\n" + rows)
    params = built.run.params if rows else built.run.params.model_copy(update={"base": None})
    page = Built(tmp_path, replace(built.run, params=params, history=tmp_path / "history")).page()
    assert page.count("The base was not trained in this run") == 2
    assert "Training of the base" not in page
    assert "Train the base longer" not in page


def test_a_run_on_volumes_has_its_page(tmp_path: Path) -> None:
    page = build(tmp_path, dimensions=3, students={"rn_cdpo": STUDENTS["rn_cdpo"]}).page()
    assert "along axis 3" in page
    assert "Add the student &#39;supervised: {pairs: none" in page


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


def test_a_promotion_of_other_students_is_refused(built: Built) -> None:
    params = built.run.params
    fewer = {name: student for name, student in params.students.items() if name != "full"}
    run = replace(built.run, params=params.model_copy(update={"students": fewer}))
    with pytest.raises(BadInput, match=r"promotion.json: expected a choice of .*'supervised'\], found \['full'"):
        write_report(run, built.folder / "refused")
    assert not (built.folder / "refused").exists()


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
