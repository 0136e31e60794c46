"""The report: one self-contained page that says what was measured, and no more."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

from pipeline import schema
from pipeline.audit import run_audit
from pipeline.dataset import CaseStore, ProposalStore
from pipeline.errors import BadInput
from pipeline.evaluation import summary
from pipeline.metrics import Evaluation
from pipeline.mining import mine_to
from pipeline.params import load_params
from pipeline.report.answer import answer, gap_recovered, objective_text, worst_cases
from pipeline.report.blocks import Figure, Section, Table
from pipeline.report.examples import examples, picked, slice_of
from pipeline.report.figures import histograms
from pipeline.report.judged import judge_sentence, judges
from pipeline.report.numbers import Estimate, case_means, cell, decimal, extent, inline, percent, points
from pipeline.report.page import write_report
from pipeline.report.run import Run
from pipeline.report.training import training
from pipeline.store import write_json, write_table
from stages.report import main
from tests.builders import bars, case_store, panel_of, proposal_store
from tests.chain import with_changes, write_params

JUDGES = {"agreement": {"kind": "agreement"}, "oracle": {"kind": "oracle"}}
NO_PAIRS = {"judge": "none", "strategy": {"kind": "none"}}
PAIRS = {
    "none": NO_PAIRS,
    "mined": {"judge": "agreement", "strategy": {"kind": "top_bottom"}},
    "ceiling": {"judge": "oracle", "strategy": {"kind": "top_bottom"}},
}
PREFERENCE = {"kind": "preference", "link": {"kind": "cdpo", "e": 0.2}}
FULL = {"kind": "full", "optimisation": {"steps": 4, "learning_rate": 1e-3, "evaluate_every": 2}}
STUDENTS = {
    "supervised": {"pairs": "none", "objective": {"kind": "supervised"}},
    "rn_cdpo": {"pairs": "mined", "objective": PREFERENCE, "anchor": {"supervised": 1.0}},
    "oracle_dpo": {"pairs": "ceiling", "objective": {"kind": "preference"}, "anchor": None},
    "full": {"pairs": "none", "objective": FULL},
}
GAINS: dict[str, tuple[float, ...]] = {
    "supervised": (0.1, -0.1, 0.1, -0.1),
    "rn_cdpo": (0.2, 0.2, 0.2, 0.2),
    "oracle_dpo": (0.3, 0.3, 0.3, 0.3),
    "full": (0.4, 0.4, 0.4, 0.4),
}
"""Test Dice of each student minus that of the base, for the four test cases."""
BASE_DICE = (0.3, 0.4, 0.5, 0.6)
TEST_CASES = ("<b>x", "t1", "t2", "t3")
TIMES, MINUS = "\N{MULTIPLICATION SIGN}", "\N{MINUS SIGN}"
KNOBS = Evaluation(nsd_tolerance=1.0, bootstrap=200)


@dataclass
class Built:
    folder: Path
    run: Run

    def page(self, out: str = "reports") -> str:
        write_report(self.run, self.folder / out)
        return (self.folder / out / "index.html").read_text()


def build(
    folder: Path,
    scorers: dict[str, Any] = JUDGES,
    pairs: dict[str, Any] = PAIRS,
    students: dict[str, Any] = STUDENTS,
    gains: dict[str, tuple[float, ...]] = GAINS,
    dimensions: int = 2,
) -> Built:
    """A finished run: bars of 6 pixels as truth; of 3 (base), 5, 10 and again 5 as proposals; test Dice as given."""
    write_params(folder, with_changes(judges=scorers, pairs=pairs, students=students))
    params = load_params(folder / "params.yaml")
    splits = ["labelled", *["pool"] * 3, *["validation"] * 3, *["test"] * 4]
    masks = bars([6, 3, 5, 10, 5])
    if dimensions == 3:
        masks = np.repeat(masks[:, None], 3, axis=1)
    truth, proposed = masks[0], masks[1:]
    cases = case_store(folder / "data/cases", [truth] * len(splits), splits)
    store = proposal_store(folder / "data/proposals", [proposed] * 7)
    panel = panel_of(cases, store, {name: [SCORES[name]] * 7 for name in scorers})
    panel = panel.filter(pl.col("split").is_in(["pool", "validation"]))
    write_table(panel, schema.panel(scorers), folder / "data/panel.parquet", "a test")
    run_audit(
        folder / "data/panel.parquet", list(scorers), params.pairs, cases, store, params.audit, 0, folder / "audit"
    )
    for name, knobs in params.pairs.items():
        mine_to(folder / "data/panel.parquet", list(scorers), store, knobs, 0, folder / f"data/pairs/{name}.parquet")
    base = evaluation(BASE_DICE)
    for name in ("base", *students):
        dice = BASE_DICE if name == "base" else tuple(b + g for b, g in zip(BASE_DICE, gains[name], strict=True))
        rows = evaluation(dice)
        write_table(rows, schema.EVALUATION, folder / f"evaluation/{name}.parquet", "a test")
        write_json(folder / f"metrics/{name}.json", summary(rows, None if name == "base" else base, KNOBS))
        if name != "base":
            objective = params.students[name].objective.model_dump(mode="json")
            record = {"objective": objective, "best_step": 2, "steps": 4, "aimed_shift": None, "flipped_share": 0.25}
            write_json(folder / f"models/students/{name}/student.json", record)
    (folder / "history").mkdir()
    (folder / "history/base.csv").write_text(
        "model,step,loss,validation_dice,best\nbase,0,,0.1,false\nbase,6,0.9,0.5,true\n"
    )
    for name in students:
        (folder / f"history/{name}.csv").write_text(
            "step,loss,rewards/margins,kl_outside,validation_dice\n0,,,,0.5\n2,0.8,0.1,,0.6\n4,0.7,0.2,,0.55\n"
        )
    run = Run(
        params=params,
        audit=folder / "audit",
        cases=CaseStore(folder / "data/cases"),
        pairs=folder / "data/pairs",
        panel_file=folder / "data/panel.parquet",
        proposals=ProposalStore(folder / "data/proposals"),
        evaluation=folder / "evaluation",
        history=folder / "history",
        metrics=folder / "metrics",
        students=folder / "models/students",
    )
    return Built(folder, run)


SCORES = {"agreement": [0.1, 0.9, 0.2, 0.9], "oracle": [0.67, 0.91, 0.75, 0.91]}


def evaluation(dice: tuple[float, ...]) -> pl.DataFrame:
    """Rows of `EVALUATION` of four test cases with one class, each case a patient."""
    rows = [
        {
            "case_id": case,
            "class": 1,
            "group": f"p{i}",
            "dice": value,
            "dice_peak": value + 0.01,
            "nsd": 0.5,
            "hd95": 2.0,
            "assd": 1.0,
            "distance_unit": "mm",
            "nsd_tolerance": 1.0,
            "worse_by": 0.02,
            "volume_error": 0.1,
            "truth_empty": False,
            "prediction_empty": False,
        }
        for i, (case, value) in enumerate(zip(TEST_CASES, dice, strict=True))
    ]
    return pl.DataFrame(rows, schema=schema.EVALUATION.columns)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    made = build(tmp_path_factory.mktemp("run"))
    audited = json.loads((made.folder / "audit/summary.json").read_text())
    write_json(made.folder / "audit/summary.json", {**audited, "warnings": ["pair set 'mined': 48 <i> wrong"]})
    return made


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


def table(section: Section, caption: str) -> Table:
    found = [block for block in section.blocks if isinstance(block, Table) and block.caption == caption]
    assert len(found) == 1
    return found[0]


def row_of(found: Table, name: str) -> dict[str, Any]:
    cells = next(row for row in found.cells if row[0].text == name)
    return dict(zip(found.columns, cells, strict=True))


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
    assert all(attributes["scope"] in ("col", "row") for tag, attributes in tags if tag == "th")


def test_case_ids_are_text(page: str) -> None:
    assert "<b>x" not in page
    assert "&lt;b&gt;x" in page


def test_sections_come_in_order_and_say_how_to_read_them(page: str) -> None:
    order = ["answer", "splits", "proposals", "judges", "examples", "training", "cases"]
    assert re.findall(r'<section id="(\w+)"', page) == order
    assert page.count('<p class="how">') == len(order)


def test_warnings_of_the_audit_are_repeated_before_any_result(page: str) -> None:
    assert page.index("48 &lt;i&gt; wrong") < page.index('id="answer"')


def test_the_header_names_the_data_and_their_limits(page: str) -> None:
    head = page[: page.index("<main>")]
    for text in ("test", "class_0, class_1", "patient data", "single seed"):
        assert text in head


def test_equal_inputs_give_equal_bytes_whatever_the_user_s_matplotlib_settings(built: Built, page: str) -> None:
    import matplotlib

    with matplotlib.rc_context({"font.size": 23, "svg.hashsalt": None}):
        assert built.page("again") == page


def test_a_run_without_judges_pairs_and_students_says_so(tmp_path: Path) -> None:
    page = build(tmp_path, scorers={}, pairs={"none": NO_PAIRS}, students={}).page()
    for text in ("has no students", "has no judges", "has no pair sets", "no mined pairs"):
        assert text in page


def test_a_pair_set_that_mined_nothing_is_named(tmp_path: Path) -> None:
    strict = {"judge": "agreement", "strategy": {"kind": "top_bottom", "min_disagreement": 99}}
    page = build(tmp_path, pairs={"none": NO_PAIRS, "strict": strict}, students={}).page()
    assert "Pair set &#39;strict&#39; has no pairs." in page
    assert "disagreement too small: 3" in page


def test_results_of_removed_students_are_not_shown(built: Built) -> None:
    kept = {name: student for name, student in built.run.params.students.items() if name != "supervised"}
    run = replace(built.run, params=built.run.params.model_copy(update={"students": kept}))
    arms = table(answer(run), "Test results of all arms")
    assert {row[0].text for row in arms.cells} == {"base", "rn_cdpo", "oracle_dpo", "full"}


def test_volumes_are_shown_as_slices(tmp_path: Path) -> None:
    made = build(tmp_path, students={}, dimensions=3)
    captions = [block.caption for block in examples(made.run).blocks if isinstance(block, Figure)]
    assert len(captions) == 6
    assert all("along axis 3" in caption for caption in captions)


# ---- the stage ---------------------------------------------------------------------------------------------------


def test_a_missing_result_is_an_error_that_names_its_file(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(built.folder)
    result = CliRunner().invoke(main, ["--metrics", "elsewhere", "--out", "nowhere"])
    assert result.exit_code == 2
    assert "elsewhere/base.json: no such file; run the stage that writes it with `dvc repro`" in result.output
    assert not Path("nowhere").exists()


@pytest.mark.parametrize(("section", "folder"), [(training, "history"), (worst_cases, "evaluation"), (judges, "audit")])
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


# ---- the answer --------------------------------------------------------------------------------------------------


def test_arms_show_dice_in_points_with_signed_gains(built: Built) -> None:
    """Base: mean of .3 .4 .5 .6 is .45, so 45.0; rn_cdpo adds .2 to each case: 65.0, gain +20.0 [+20.0, +20.0]."""
    arms = table(answer(built.run), "Test results of all arms")
    assert row_of(arms, "base")["test Dice, sustained"].text == "45.0"
    student = row_of(arms, "rn_cdpo")
    assert student["test Dice, sustained"].text == "65.0"
    gain = student["gain over base"]
    assert (gain.text, gain.interval, gain.sign) == ("+20.0", "[+20.0, +20.0]", 1)
    assert (student["peak"].text, student["drop"].text) == ("66.0", "+1.0")
    assert (student["pair set"].text, student["judge"].text) == ("mined", "agreement")
    assert student["objective"].text == f"cdpo (e 0.2) {TIMES} region"
    assert student["anchor"].text == "supervised 1"
    assert student["cases worse"].text == "0 of 4"


def test_a_gain_whose_interval_includes_zero_is_not_marked(built: Built) -> None:
    """Gains +.1 -.1 +.1 -.1: mean 0, and two of four patients lose more than two points."""
    student = row_of(table(answer(built.run), "Test results of all arms"), "supervised")
    assert (student["gain over base"].text, student["gain over base"].sign) == ("0.0", 0)
    assert student["cases worse"].text == "2 of 4"


def test_gap_recovered_is_the_share_of_full_supervision_s_gain(built: Built) -> None:
    """.2 of .4 is 50 %."""
    arms = table(answer(built.run), "Test results of all arms")
    found = {name: row_of(arms, name)["gap recovered"].text for name in ("base", *STUDENTS)}
    assert found == {"base": "—", "supervised": "0 %", "rn_cdpo": "50 %", "oracle_dpo": "75 %", "full": "—"}


def test_gap_recovered_is_left_out_where_full_supervision_is_not_shown_to_gain(tmp_path: Path) -> None:
    made = build(tmp_path, gains={**GAINS, "full": (0.5, -0.2, 0.4, -0.1)})
    arms = table(answer(made.run), "Test results of all arms")
    assert {row_of(arms, name)["gap recovered"].text for name in ("base", *STUDENTS)} == {"—"}
    assert "is not shown to be above 0" in arms.note


@pytest.mark.parametrize(
    ("full", "expected"),
    [
        (Estimate(0.4, 0.1, 0.6), 0.5),
        (Estimate(0.4, -0.1, 0.6), None),  # includes 0
        (Estimate(-0.4, -0.6, -0.1), None),  # full supervision hurts: a share of it means nothing
        (Estimate(0.4), None),  # a single patient has no interval
        (None, None),
    ],
)
def test_gap_recovered(full: Estimate | None, expected: float | None) -> None:
    assert gap_recovered(0.2, full) == expected


def test_arms_that_learned_from_the_pool_s_truth_are_marked(built: Built) -> None:
    arms = table(answer(built.run), "Test results of all arms")
    tags = {name: row_of(arms, name)["arm"].tag for name in ("base", *STUDENTS)}
    assert tags == {
        "base": "",
        "supervised": "",
        "rn_cdpo": "",
        "oracle_dpo": "research only",
        "full": "research only",
    }


def test_unbounded_links_are_told_from_objectives_without_a_link(built: Built) -> None:
    pushed = table(answer(built.run), "How hard each student was pushed")
    assert row_of(pushed, "oracle_dpo")["aimed shift"].text == "unbounded"
    assert row_of(pushed, "supervised")["aimed shift"].text == "—"
    assert row_of(pushed, "rn_cdpo")["flipped share"].text == "25 %"


def test_worst_cases_are_of_the_best_practical_student(tmp_path: Path) -> None:
    """supervised gains .2 on average, so it is shown; t2 loses most (-.1), and 'x' has the lowest Dice (.3 + .1)."""
    made = build(tmp_path, gains={**GAINS, "supervised": (0.1, 0.6, -0.1, 0.3), "rn_cdpo": (0.0, 0.0, 0.0, 0.0)})
    found = worst_cases(made.run)
    assert found.blocks[0].lines[0].startswith("Shown is 'supervised'")  # type: ignore[union-attr]
    losses = table(found, "Largest losses against the base").cells
    assert [c.text for c in losses[0]] == ["t2", "p2", "50.0", "40.0", f"{MINUS}10.0"]
    assert [row[0].text for row in table(found, "Lowest Dice").cells[:2]] == ["<b>x", "t2"]


@pytest.mark.parametrize(
    ("knobs", "expected"),
    [
        ({"kind": "sft"}, "sft"),
        ({"kind": "preference", "link": {"kind": "sigmoid"}, "normaliser": "none"}, f"sigmoid {TIMES} none"),
        (
            {"kind": "preference", "link": {"kind": "ipo", "tau": 0.5}, "normaliser": "region"},
            f"ipo (tau 0.5) {TIMES} region",
        ),
    ],
)
def test_objectives_are_named_by_link_and_normaliser(knobs: dict[str, Any], expected: str) -> None:
    assert objective_text(knobs) == expected


# ---- judges ------------------------------------------------------------------------------------------------------


def judged(**measures: tuple[float | None, float | None, float | None]) -> dict[str, Any]:
    row: dict[str, Any] = {"judge": "j", "fixed_sampler": "flips mean"}
    for name in ("lift", "lift_over_fixed", "pair_error", "headroom"):
        row.update(zip((name, f"{name}_low", f"{name}_high"), measures.get(name, (None, None, None)), strict=True))
    return row


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (judged(), "nothing is known"),
        (judged(lift=(0.02, 0.01, 0.03)), "is better than the base (+2.0 [+1.0, +3.0] points)."),
        (judged(lift=(0.02, -0.01, 0.03)), "is not shown to differ from the base"),
        (judged(lift=(-0.02, -0.03, -0.01)), "is worse than the base"),
        (judged(lift=(0.02, 0.01, 0.03), headroom=(0.08, 0.05, 0.1)), "finds 25 % of the headroom"),
        (judged(lift=(0.02, 0.01, 0.03), lift_over_fixed=(0.1, 0.05, 0.2)), "beats always taking 'flips mean'"),
        (judged(lift=(0.02, 0.01, 0.03), pair_error=(0.3, 0.2, 0.4)), "orders 30 % [20, 40] of"),
        (judged(lift=(0.02, 0.01, 0.03), pair_error=(0.3, 0.2, 0.4)), "better than a coin"),
        (judged(lift=(0.02, 0.01, 0.03), pair_error=(0.45, 0.4, 0.5)), "not shown to differ from a coin"),
    ],
)
def test_judges_are_described_in_words(row: dict[str, Any], expected: str) -> None:
    assert expected in judge_sentence(row)


# ---- examples ----------------------------------------------------------------------------------------------------


def pairs_table(rows: list[tuple[str, float, int]]) -> pl.DataFrame:
    """Pairs by case id, margin and |D|."""
    return pl.DataFrame(
        [
            {"case_id": case, "chosen": 1, "rejected": 0, "margin": margin, "disagreement": size}
            for case, margin, size in rows
        ]
    )


def test_examples_are_extremes_and_the_median_without_repeats() -> None:
    """By |D|: a 5, b 10, c 20, d 30. Largest margin is d, which also has the largest |D| and is not shown again."""
    found = picked(pairs_table([("a", 0.1, 5), ("b", 0.05, 10), ("c", 0.2, 20), ("d", 0.9, 30)]))
    shown = {why: pair["case_id"] for why, pair in found.items()}
    assert shown == {"largest margin": "d", "smallest margin": "b", "median |D|": "c"}


def test_one_pair_is_shown_once_and_none_is_nothing() -> None:
    assert list(picked(pairs_table([("a", 0.1, 5)]))) == ["largest margin"]
    assert picked(pl.DataFrame(schema=schema.PAIRS.columns)) == {}


def test_a_volume_is_cut_across_its_coarsest_axis_where_masks_differ_most() -> None:
    """Axis 2 has 3 mm; slices 1 and 4 differ in 1 and 2 voxels. On the page: rows are axis 1, columns axis 0."""
    chosen, rejected = np.zeros((2, 30, 40, 6), np.uint8)
    chosen[10, 10, 1] = 1
    chosen[10, 10:12, 4] = 1
    image = np.zeros((2, 30, 40, 6), np.float32)
    image[0, ..., 4] = 1
    image[0, 10, 10, 4] = 5
    view = slice_of(image, chosen, rejected, (0.5, 1.0, 3.0), colour=False)
    assert view.where == ", slice 5 of 6 along axis 3"
    assert view.aspect == 2.0  # 1 mm high, 0.5 mm wide
    assert view.differ.sum() == 2
    rows, columns = np.nonzero(view.differ)
    assert np.ptp(rows) == 1
    assert np.ptp(columns) == 0
    # y points upwards on the page, so voxel 10 of axis 1 lies below voxel 11.
    assert view.image[rows.max(), columns[0]] == 1.0


def test_pictures_are_cropped_to_the_masks_with_a_margin() -> None:
    """Masks span rows 40 to 79 (40 voxels) of 200: a quarter, 10, on either side gives 60."""
    chosen = np.zeros((200, 200), np.uint8)
    chosen[40:80, 40:80] = 1
    view = slice_of(np.zeros((1, 200, 200), np.float32), chosen, np.zeros_like(chosen), None, colour=False)
    assert view.chosen.shape == (60, 60)


def test_unknown_voxels_are_not_disagreement() -> None:
    chosen = np.array([[0, 1, 255, 1]], np.uint8)
    rejected = np.array([[1, 1, 0, 255]], np.uint8)
    view = slice_of(np.zeros((1, 1, 4), np.float32), chosen, rejected, None, colour=False)
    assert view.differ.tolist() == [[True, False, False, False]]


def test_colour_pictures_keep_their_channels() -> None:
    image = np.zeros((3, 30, 30), np.float32)
    image[0] = 2.0
    mask = np.zeros((30, 30), np.uint8)
    view = slice_of(image, mask, mask, None, colour=True)
    assert view.image.shape == (30, 30, 3)
    assert view.image[0, 0].tolist() == [1.0, 0.0, 0.0]


# ---- numbers and figures -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("write", "value", "expected"),
    [
        (points, 0.8134, "81.3"),
        (points, None, "—"),
        (lambda v: points(v, signed=True), 0.012, "+1.2"),
        (lambda v: points(v, signed=True), -0.012, f"{MINUS}1.2"),
        (lambda v: points(v, signed=True), -0.0001, "0.0"),
        (lambda v: decimal(v, 2), 0.126, "0.13"),
        (percent, 0.256, "26 %"),
        (percent, None, "—"),
    ],
)
def test_numbers(write: Callable[[float | None], str], value: float | None, expected: str) -> None:
    assert write(value) == expected


def test_estimates_carry_their_interval_and_gains_their_sign() -> None:
    assert inline(Estimate(0.813, 0.79, 0.832)) == "81.3 [79.0, 83.2]"
    assert inline(Estimate(0.813)) == "81.3"
    assert cell(Estimate(0.813, 0.79, 0.832)).sign == 0  # a Dice above 0 is no news
    assert cell(Estimate(-0.02, -0.03, -0.01), signed=True).sign == -1
    assert cell(Estimate(None), signed=True).text == "—"


def test_case_means() -> None:
    """Case 7 has 1 and 3, case 9 has 5: means 2 and 5."""
    means, member = case_means(np.array([7, 9, 7]), np.array([1.0, 5.0, 3.0]))
    assert means.tolist() == [2.0, 5.0]
    assert member.tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ([(64, 64), (64, 64)], f"64 {TIMES} 64"),
        ([(64, 80), (70, 80)], f"64\N{EN DASH}70 {TIMES} 80"),
        ([(64, 64), (8, 64, 64)], "of 2 and 3 axes"),
        ([], "—"),
    ],
)
def test_extents(shapes: list[tuple[float, ...]], expected: str) -> None:
    assert extent(shapes) == expected


@pytest.mark.parametrize("values", [[7.0], [1.0, 1.0], [1.0, 1000.0]])
def test_histograms_of_few_or_equal_values(values: list[float]) -> None:
    figure = histograms({"a $b$": np.array(values)}, "|D|", "alt", "caption", log=True)
    assert figure.source.startswith("data:image/svg+xml;base64,")
