"""The page in a real browser: 30 pairs by keyboard in 2D and in 3D, a touch screen, and a server that is away."""

from __future__ import annotations

import re
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

from pipeline.store import schema
from pipeline.store.tables import read_table
from tests.fixtures.review_run import Server, describe, journal_lines, rename, write_run

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")

SCRIPT = "<script>document.title='run'</script>"
IN_VIEW = """() => [...document.querySelectorAll('button, input, summary, canvas')]
    .filter(one => one.checkVisibility()).map(one => ({name: one.textContent.trim() || one.getAttribute('aria-label') ||
    one.id, label: one.labels?.length, ...one.getBoundingClientRect().toJSON()}))"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium: that of Playwright (`playwright install chromium`), or else that of the system."""
    with playwright.sync_playwright() as started:
        own = Path(started.chromium.executable_path)
        path = str(own) if own.is_file() else shutil.which("chromium") or shutil.which("google-chrome")
        if path is None:
            pytest.skip("no Chromium: run `playwright install chromium`")
        found = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of volumes whose orientation is known."""
    folder = tmp_path_factory.mktemp("served")
    write_run(folder, 8, (16, 20, 8))
    describe(folder, orientation="RAS")
    found = Server(folder, "--target", "agreement")
    yield found
    found.end()


def opened(browser: Browser, address: str, reviewer: str = "ann", **context: Any) -> Page:
    """The page behind its first form, with the first pair."""
    page = browser.new_context(**context).new_page()
    page.set_default_timeout(15_000)
    page.on("pageerror", lambda error: pytest.fail(f"an error of the page: {error}"))
    page.goto(address)
    page.get_by_label("Your name as a reviewer").fill(reviewer)
    page.keyboard.press("Enter")
    page.wait_for_selector("body[data-showing]")
    return page


def press(page: Page, key: str) -> None:
    """Press the key of an answer when the page takes it, and wait for the next pair or the end."""
    before = page.get_attribute("body", "data-showing")
    page.wait_for_timeout(160)  # the page takes no answer that comes sooner
    page.keyboard.press(key)
    page.wait_for_function("before => document.body.dataset.showing !== before", arg=before)


@pytest.mark.parametrize("space", [(24, 30), (20, 24, 16)], ids=["2D", "3D"])
def test_thirty_pairs_are_answered_by_keyboard(browser: Browser, tmp_path: Path, space: tuple[int, ...]) -> None:
    """Every answer of the page has the meaning in the table that its key has on the page."""
    write_run(tmp_path, 8, space)
    rename(tmp_path, "c0", SCRIPT)
    server = Server(tmp_path, "--target", "agreement", "--repeats", "0.1")
    try:
        page = opened(browser, server.address, viewport={"width": 1200, "height": 800})
        cases = set()
        if len(space) == 3:
            first = page.text_content("#slice-text")
            slice_is = "first => (document.querySelector('#slice-text').textContent === first) === {}"
            page.keyboard.press("ArrowUp")
            page.wait_for_function(slice_is.format("false"), arg=first)
            page.keyboard.press("m")
            page.wait_for_function(slice_is.format("true"), arg=first)
            page.mouse.move(300, 300)
            page.mouse.wheel(0, 100)
            page.wait_for_function(slice_is.format("false"), arg=first)
        for key in "dohcdo+-0w[].,fnq":
            page.keyboard.press(key)
        keys = ["a", "b", "e", "u", "ArrowLeft", "ArrowRight"] * 5
        for key in keys:
            cases.add(page.text_content("#about"))
            press(page, key)
        press(page, "s")
        press(page, "z")
        press(page, "z")
        press(page, "b")
        assert page.title() == "segpref review", "no script of a case id has run"
        assert any(SCRIPT in str(text) for text in cases)
        assert "30 answered" in str(page.text_content("#status"))
    finally:
        said = server.end()
    assert "30 verdicts in review/verdicts.parquet" in said
    table = read_table(tmp_path / "review/verdicts.parquet", schema.VERDICTS)
    sides = {"a": "left", "ArrowLeft": "left", "b": "right", "ArrowRight": "right", "e": "equal", "u": "unusable"}
    expected = [sides[key] for key in keys[:-1]] + ["right"]
    chosen = (
        pl.when(answer="a")
        .then("a_side")
        .when(answer="b")
        .then(pl.when(a_side="left").then(pl.lit("right")).otherwise(pl.lit("left")))
    )
    found = table.select(chosen.cast(pl.String).fill_null(pl.col("answer").cast(pl.String)).alias("x"))["x"].to_list()
    assert found == expected
    assert (table["seconds"] > 0.15).all()
    assert Counter(line["line"] for line in journal_lines(tmp_path) if line["line"] != "shown") == Counter(
        answer=31, skip=1, undo=2
    )


def test_a_tablet_has_large_targets_and_touches_answer(browser: Browser, server: Server) -> None:
    narrow = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
    page = opened(browser, server.address, "touch", **narrow)
    page.get_by_text("Brightness, moving, keys").tap()
    buttons = [one for one in page.evaluate(IN_VIEW) if one["name"] not in ("keys", "bars")]
    assert len(buttons) > 20
    assert not [one for one in buttons if min(one["width"], one["height"]) < 44]
    assert all(one["name"] for one in buttons)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert "Display: radiological" in str(page.text_content("#about"))
    for number, name in enumerate(("Left is better", "Right is better", "Equally good"), start=1):
        page.wait_for_timeout(160)
        page.get_by_role("button", name=name).tap()
        page.wait_for_function(f"() => document.querySelector('#status').textContent.includes('{number} answered')")


def test_blinking_is_slow_and_stops(browser: Browser, server: Server) -> None:
    """Fewer than three changes a second; none for readers who ask for less motion, who change masks by hand."""
    caption = "document.querySelector('figcaption').textContent"
    changes = (
        "(ms) => new Promise(done => { let n = 0, last; const look = setInterval(() => { "
        f"const now = {caption}; n += last !== undefined && now !== last; last = now; }}, 20);"
        "setTimeout(() => { clearInterval(look); done(n); }, ms); })"
    )
    page = opened(browser, server.address, "still", reduced_motion="reduce")
    page.keyboard.press("o")
    assert page.evaluate(changes, 1000) == 0
    first = page.evaluate(caption)
    page.keyboard.press(" ")
    page.wait_for_function(f"first => {caption} !== first", arg=first)
    page = opened(browser, server.address, "moving")
    page.keyboard.press("o")
    assert 1 <= page.evaluate(changes, 2000) <= 5
    page.keyboard.press("p")
    assert page.evaluate(changes, 1000) == 0


def test_every_control_is_reached_by_tab_and_shows_its_focus(browser: Browser, server: Server) -> None:
    page = opened(browser, server.address, "tab")
    focused = (
        "() => { const one = document.activeElement; return [one.dataset.do ?? one.dataset.answer ?? one.id, "
        "getComputedStyle(one).outlineWidth] }"
    )
    seen = {}
    for _ in range(24):
        page.keyboard.press("Tab")
        name, width = page.evaluate(focused)
        seen[name] = width
    wanted = {"left", "right", "equal", "unusable", "skip", "view", "difference", "slice", "back", "forward"}
    assert wanted <= seen.keys()
    assert {seen[name] for name in wanted} == {"3px"}
    # With the single keys switched off, a letter answers nothing.
    page.get_by_text("Brightness, moving, keys").click()
    page.get_by_label("Single keys work").uncheck()
    page.wait_for_timeout(160)
    page.keyboard.press("a")
    page.get_by_label("Single keys work").check()
    page.keyboard.press("e")
    page.wait_for_function("() => document.querySelector('#status').textContent.includes('equally good. 1 answered')")


def test_space_answers_nothing_after_a_click(browser: Browser, server: Server) -> None:
    """Space is a tool, whatever was clicked before. A button with the focus of the keyboard is pressed by Space."""
    page = opened(browser, server.address, "mouse", reduced_motion="reduce")
    said = "text => document.querySelector('#status').textContent.includes(text)"
    page.keyboard.press("o")
    page.wait_for_timeout(160)
    page.get_by_role("button", name="Left is better").click()
    page.wait_for_function(said, arg="1 answered")
    told = {"Undo": "Undone", "Outlines": "", "Skip": "Stored: skipped", "Equally good": "Stored: equally good"}
    for button, then in told.items():
        page.wait_for_timeout(160)
        page.get_by_role("button", name=button).click()
        page.wait_for_function(said, arg=then)
        before = page.get_attribute("body", "data-showing")
        for mask in ("Right", "Left"):
            page.keyboard.press(" ")
            page.wait_for_function(said, arg=f"{mask} mask.")
        assert page.get_attribute("body", "data-showing") == before, button
    page.get_by_role("button", name="Right is better").focus()
    for number, key in ((2, " "), (3, "Enter")):
        page.wait_for_timeout(160)
        page.keyboard.press(key)
        page.wait_for_function(said, arg=f"right is better. {number} answered")
    page.wait_for_timeout(160)
    page.keyboard.down("Enter")
    page.wait_for_timeout(300)
    page.keyboard.down("Enter")  # a repeat, as of a key that is held
    page.keyboard.up("Enter")
    page.wait_for_function(said, arg="4 answered")
    page.wait_for_timeout(200)
    assert "4 answered" in str(page.text_content("#status"))


def test_the_last_answer_can_be_undone(browser: Browser, tmp_path: Path) -> None:
    """By key and by button, when no pair is left. The pair set of the run has four pairs."""
    write_run(tmp_path)
    server = Server(tmp_path, "--repeats", "0")
    try:
        page = opened(browser, server.address)
        for undo in ("key", "button"):
            while not page.is_visible("#done"):
                press(page, "e")
            if undo == "key":
                page.keyboard.press("z")
            else:
                page.get_by_role("button", name="Undo the last answer").click()
            page.wait_for_function("() => document.querySelector('#status').textContent.includes('3 answered')")
            assert page.evaluate("document.activeElement.id") == "review"
        press(page, "a")
        page.wait_for_selector("#done:visible")
    finally:
        said = server.end()
    assert "4 verdicts" in said


def test_an_answer_waits_for_a_server_that_is_away(browser: Browser, tmp_path: Path) -> None:
    """The server is killed, and started again at the same port with another key. The page then sends the answer."""
    write_run(tmp_path)
    server = Server(tmp_path, "--target", "agreement")
    page = opened(browser, server.address)
    press(page, "a")
    server.end(signal.SIGKILL)
    page.wait_for_timeout(300)
    page.keyboard.press("b")
    page.wait_for_selector("#problem:visible")
    assert "Not stored yet" in str(page.text_content("#problem"))
    port = re.findall(r":(\d+)$", server.origin)[0]
    again = Server(tmp_path, "--target", "agreement", "--port", port)
    try:
        page.wait_for_function("() => document.querySelector('#problem').textContent.includes('started again. Put')")
        page.goto(again.address)
        page.wait_for_function("() => document.querySelector('#status').textContent.includes('right is better. 2 ans')")
        assert not page.is_visible("#problem")
    finally:
        said = again.end()
    assert "2 verdicts" in said
