"""The server: what the page gets, and requests that are not from the page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import BadInput
from pipeline.review.session import Review
from pipeline.store import schema
from pipeline.store.tables import read_table
from tests.fixtures.review_run import describe, rename, review_of, write_run

pytest.importorskip("starlette")
from starlette.testclient import TestClient

from pipeline.review.server import LOOPBACK, app_of, serve

KEY = "k" * 32
SCRIPT = "<script>alert(1)</script>"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path)
    return tmp_path


@pytest.fixture
def review(run: Path) -> Iterator[Review]:
    found = review_of(run)
    yield found
    found.close()


def client(review: Review, host: str = "127.0.0.1:8765", names: Any = LOOPBACK, **headers: str) -> TestClient:
    sent = {"x-review-key": KEY, **{name.replace("_", "-"): value for name, value in headers.items()}}
    return TestClient(app_of(review, KEY, names), base_url=f"http://{host}", headers=sent)


def waiting(page: TestClient, reviewer: str = "ann") -> list[dict[str, Any]]:
    reply = page.post("/api/waiting", params={"reviewer": reviewer})
    assert reply.status_code == 200, reply.text
    found: list[dict[str, Any]] = reply.json()["waiting"]
    return found


def sent(page: TestClient, showing: str, answer: Any = "left", seconds: Any = 2.0, reviewer: Any = "ann") -> Any:
    content = {"reviewer": reviewer, "showing": showing, "answer": answer, "seconds": seconds}
    return page.post("/api/answer", json=content)


def test_a_pair_is_looked_at_and_answered(review: Review, run: Path) -> None:
    page = client(review)
    first, second = waiting(page)
    assert set(first) == {"showing", "case", "again"}, "neither the draw nor the judge's opinion is told"
    about = page.get("/api/pair", params={"reviewer": "ann", "showing": first["showing"]}).json()
    assert about["shape"] == [1, 24, 24]
    content = page.get("/api/slice", params={"reviewer": "ann", "showing": first["showing"], "index": "0"}).content
    pixels, masks = np.frombuffer(content[: 2 * 576], "<u2"), np.frombuffer(content[2 * 576 :], np.uint8)
    view = review.view("ann", first["showing"])
    assert pixels.tolist() == view.image.ravel().tolist()
    assert masks.tolist() == view.masks.ravel().tolist()
    reply = sent(page, first["showing"]).json()
    assert reply["recorded"] == "left"
    assert reply["progress"]["answered"] == 1
    assert waiting(page)[0] == second
    assert len(read_table(run / "review/verdicts.parquet", schema.VERDICTS)) == 1, "the table follows each answer"
    undone = page.post("/api/undo", json={"reviewer": "ann", "showing": reply["progress"]["last"]})
    assert undone.json()["progress"]["answered"] == 0
    assert waiting(page)[0]["again"]
    assert len(read_table(run / "review/verdicts.parquet", schema.VERDICTS)) == 0


def test_the_page_asks_nothing_of_other_sites(review: Review) -> None:
    page = client(review)
    for path in ("/", "/review.css", "/review.js", "/drawing.js"):
        reply = page.get(path)
        assert reply.status_code == 200
        policy = reply.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe-inline" not in policy
        assert "http" not in reply.text.replace("http://www.w3.org/2000/svg", "")
    text = page.get("/").text
    assert "style=" not in text
    assert not re.search(r"\son\w+=", text), "no handlers in the page"


@pytest.mark.parametrize(
    ("host", "headers", "status"),
    [
        ("127.0.0.1:8765", {}, 200),
        ("localhost:9000", {}, 200),
        ("[::1]:8765", {}, 200),
        ("127.0.0.1:8765", {"origin": "http://127.0.0.1:8765", "sec_fetch_site": "same-origin"}, 200),
        ("evil.example:8765", {}, 421),
        ("127.0.0.1.evil.example", {}, 421),
        ("192.168.0.9:8765", {}, 421),
        ("127.0.0.1:8765", {"origin": "http://evil.example"}, 403),
        ("127.0.0.1:8765", {"origin": "http://127.0.0.1:9999"}, 403),
        ("127.0.0.1:8765", {"origin": "null"}, 403),
        ("127.0.0.1:8765", {"sec_fetch_site": "cross-site"}, 403),
        ("127.0.0.1:8765", {"sec_fetch_site": "same-site"}, 403),
        ("127.0.0.1:8765", {"x_review_key": "k" * 31}, 403),
        ("127.0.0.1:8765", {"x_review_key": ""}, 403),
        ("127.0.0.1:8765", {"content_length": "999999"}, 413),
    ],
)
def test_only_the_page_of_this_server_is_answered(
    review: Review, run: Path, host: str, headers: dict[str, str], status: int
) -> None:
    showing = waiting(client(review))[0]["showing"]
    assert sent(client(review, host, **headers), showing).status_code == status
    assert review.progress("ann")["answered"] == (status == 200)


def test_a_server_for_the_network_takes_addresses_and_no_foreign_name(review: Review) -> None:
    """A page of another site that points its own name to this machine has that name in `Host`."""
    assert client(review, "192.168.0.9:8765", None).get("/").status_code == 200
    assert client(review, "evil.example:8765", None).get("/").status_code == 421


def test_names_of_cases_are_text_and_never_paths(run: Path) -> None:
    rename(run, "c0", SCRIPT)
    rename(run, "c2", "../../../etc/passwd")
    review = review_of(run)
    page = client(review)
    cases = set()
    for _ in range(20):
        one = waiting(page)[0]
        cases.add(one["case"])
        about = page.get("/api/pair", params={"reviewer": "ann", "showing": one["showing"]})
        assert about.status_code == 200
        assert sent(page, one["showing"]).status_code == 200
    assert {SCRIPT, "../../../etc/passwd"} <= cases
    review.close()
    assert {path.name for path in (run / "review").rglob("*")} == {"journal", "ann.jsonl", "verdicts.parquet"}


@pytest.mark.parametrize("reviewer", ["../../ann", "/etc/passwd", SCRIPT, "", "ann.jsonl", None, 3])
def test_names_of_reviewers_are_refused_unless_they_are_file_names(review: Review, run: Path, reviewer: Any) -> None:
    page = client(review)
    showing = waiting(page)[0]["showing"]
    reply = sent(page, showing, reviewer=reviewer)
    assert reply.status_code == 400
    assert {path.name for path in (run / "review/journal").iterdir()} == {"ann.jsonl"}


@pytest.mark.parametrize("path", ["/../params.yaml", "/%2e%2e/params.yaml", "/page/index.html", "/api/../index.html"])
def test_no_other_file_is_served(review: Review, path: str) -> None:
    assert client(review).get(path).status_code == 404


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"answer": "a"}, 400),
        ({"answer": ["left"]}, 400),
        ({"seconds": "2"}, 400),
        ({"seconds": True}, 400),
        ({"seconds": None}, 400),
        ({"showing": "0" * 16}, 409),
        ({"showing": "../ann"}, 409),
        ({"showing": None}, 400),
        ({"seconds": -3.0}, 200),
        ({"seconds": 1e300}, 200),
    ],
)
def test_answers_that_no_page_sends(review: Review, changes: dict[str, Any], status: int) -> None:
    page = client(review)
    showing = waiting(page)[0]["showing"]
    assert sent(page, **{"showing": showing, **changes}).status_code == status
    assert len(review.reviewer("ann").journal.history.counted) == (status == 200)


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff"])
def test_requests_that_are_no_json(review: Review, body: bytes) -> None:
    assert client(review).post("/api/answer", content=body).status_code == 400


@pytest.mark.parametrize("index", ["-1", "1", "x", "1e9", "²", ""])
def test_slices_that_are_not_there(review: Review, index: str) -> None:
    page = client(review)
    showing = waiting(page)[0]["showing"]
    reply = page.get("/api/slice", params={"reviewer": "ann", "showing": showing, "index": index})
    assert reply.status_code == 409


def test_a_full_disk_is_told_and_nothing_is_confirmed(review: Review, monkeypatch: pytest.MonkeyPatch) -> None:
    page = client(review)
    showing = waiting(page)[0]["showing"]

    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        reply = sent(page, showing)
    assert reply.status_code == 500
    assert "the disk is full" in reply.json()["error"]
    assert sent(page, showing).json()["progress"]["answered"] == 1


@pytest.mark.parametrize(
    ("file", "line", "found"),
    [("Bob", "", "journal of a reviewer, .*found 'Bob'"), ("bob", "not json\n", "line 1: .*Invalid JSON")],
)
def test_the_journal_of_another_fails_no_answer(
    review: Review, run: Path, file: str, line: str, found: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The answer is confirmed. The page, the terminal and the end of the review name the file."""
    page = client(review)
    showing = waiting(page)[0]["showing"]
    path = run / f"review/journal/{file}.jsonl"
    path.write_text(line)
    reply = sent(page, showing)
    assert reply.status_code == 200
    assert reply.json()["recorded"] == "left"
    assert reply.json()["progress"]["answered"] == 1
    told = (reply.json()["progress"]["worth"], capsys.readouterr().err)
    assert all(re.search(rf"{file}.jsonl: .*{found}", text) for text in told), told
    reply = page.post("/api/waiting", params={"reviewer": "ann"})
    assert reply.status_code == 400
    assert f"{file}.jsonl" in reply.json()["error"]
    path.unlink()
    assert len(waiting(page)) == 2
    path.write_text(line)
    with pytest.raises(BadInput, match=rf"{file}.jsonl: .*{found}"):
        review.close()
    path.unlink()


def test_volumes_tell_their_channels_and_orientation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path, 4, (10, 12, 8))
    describe(tmp_path, orientation="RAS", channel_names=["T1"])
    review = review_of(tmp_path)
    page = client(review)
    showing = waiting(page)[0]["showing"]
    about = page.get("/api/pair", params={"reviewer": "ann", "showing": showing}).json()
    assert about["shape"] == [8, 12, 10]
    assert about["edges"] == ["R", "L", "A", "P"]
    assert about["channels"] == ["T1"]
    assert about["differ"][about["first"]] == max(about["differ"])
    review.close()


def test_other_hosts_need_a_flag_and_taken_ports_are_named(review: Review) -> None:
    with pytest.raises(BadInput, match=r"--host 0\.0\.0\.0: other machines could open the page.*--expose"):
        serve(review, "0.0.0.0", 0, False, print)
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BadInput, match=rf"--port {port}: cannot listen there"):
            serve(review, "127.0.0.1", port, False, print)
