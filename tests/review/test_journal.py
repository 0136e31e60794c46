"""The journal of a reviewer: what its lines come to, and what a crash leaves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from pipeline.errors import BadInput
from pipeline.review.journal import (
    Answered,
    Journal,
    SetAside,
    Shown,
    Skipped,
    Undone,
    histories,
    opened,
    read_journal,
    verdicts,
    write_verdicts,
)
from pipeline.store import schema
from pipeline.store.tables import read_table
from tests.fixtures.chain import ROOT


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def showing(number: int) -> str:
    return f"{number:016x}"


def shown(number: int, **changes: object) -> Shown:
    pair = {"case_id": f"c{number}", "group": "g", "split": "pool", "mask_a": "a", "mask_b": "b", "a_side": "right"}
    why = {"draw": "audit", "target": "j", "stratum": "s", "population": 9, "disagreement": 3}
    return Shown.model_validate({"showing": showing(number), **pair, **why, **changes})


def answered(number: int, answer: str = "a") -> Answered:
    return Answered.model_validate({"showing": showing(number), "answer": answer, "seconds": 2.5})


def test_answers_become_verdicts_in_their_order(tmp_path: Path) -> None:
    """Three pairs are shown. The second is answered first, the first is skipped, and the third waits."""
    with opened(tmp_path, "ann") as journal:
        journal.write(shown(1), shown(2), shown(3))
        journal.write(answered(2, "equal"))
        journal.write(Skipped(showing=showing(1)))
        journal.write(answered(3, "b"))
    with opened(tmp_path, "bob") as journal:
        journal.write(shown(4, draw="repeat", population=None), answered(4))
    assert write_verdicts(tmp_path) == 3
    table = read_table(tmp_path / "verdicts.parquet", schema.VERDICTS)
    found = table.select("reviewer", "number", "case_id", "answer", "a_side", "population").rows()
    assert found == [
        ("ann", 1, "c2", "equal", "right", 9),
        ("ann", 2, "c3", "b", "right", 9),
        ("bob", 1, "c4", "a", "right", None),
    ]
    assert table["time"].is_sorted()


def test_an_undone_pair_comes_first_and_the_last_undo_before_all(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "ann.jsonl")
    journal.write(shown(1), answered(1), shown(2), answered(2), shown(3), shown(4))
    journal.write(Undone(showing=showing(2)), shown(5, undone=showing(2)))
    journal.write(Undone(showing=showing(1)), shown(6, undone=showing(1)))
    assert [one.showing for one in journal.history.waiting] == [showing(n) for n in (6, 5, 3, 4)]
    assert journal.history.last is None
    journal.write(answered(6, "b"))
    assert journal.history.last == showing(6)
    assert [answer.answer for _, answer in journal.history.counted] == ["b"]


def test_answers_that_are_set_aside_count_no_longer(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "ann.jsonl")
    journal.write(shown(1), answered(1), shown(2), answered(2), SetAside(showings=(showing(1),)))
    again, _ = read_journal(journal.path)
    assert [one.showing for one, _ in again.counted] == [showing(2)]
    assert verdicts({"ann": again}).select("number", "case_id").rows() == [(1, "c2")]


def test_a_torn_line_is_cut_off_and_only_by_the_writer(tmp_path: Path) -> None:
    with opened(tmp_path, "ann") as journal:
        journal.write(shown(1), answered(1))
        path = journal.path
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"line":"answer","sho')
    assert len(histories(tmp_path)["ann"].counted) == 1
    assert path.read_bytes() != whole, "readers leave the file alone"
    with opened(tmp_path, "ann") as journal:
        assert journal.torn == 21
        assert path.read_bytes() == whole
        journal.write(shown(2))
    assert len(read_journal(path)[0].shown) == 2


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ('{"line":"answer"}', "Field required"),
        ("not json", "Invalid JSON"),
        (answered(9).model_dump_json(), "showing 0+9 was never shown"),
        (answered(1).model_dump_json(), "0+1 was answered before"),
        (Undone(showing=showing(2)).model_dump_json(), "0+2 has no answer that counts"),
    ],
    ids=["no showing", "no JSON", "never shown", "answered twice", "nothing to undo"],
)
def test_a_damaged_line_is_named(tmp_path: Path, line: str, found: str) -> None:
    journal = Journal(tmp_path / "ann.jsonl")
    journal.write(shown(1), shown(2), answered(1))
    with journal.path.open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(BadInput, match=rf"ann.jsonl: line 4: .*{found}.*restore the file from a backup"):
        read_journal(journal.path)


def test_a_write_that_fails_leaves_the_journal_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path / "ann.jsonl")
    journal.write(shown(1))
    before = journal.path.read_bytes()
    real, failed = os.fsync, []

    def full(file: int) -> None:
        if not failed:
            failed.append(file)
            raise OSError(28, "No space left on device")
        real(file)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        journal.write(answered(1))
    assert journal.path.read_bytes() == before
    assert not journal.history.counted
    journal.write(answered(1))
    assert len(read_journal(journal.path)[0].counted) == 1


def test_a_disk_that_is_full_within_a_line_leaves_the_journal_as_before(tmp_path: Path) -> None:
    """The system takes 20 more bytes of the file and no more, then all. So the loss is that of a full disk."""
    code = (
        "import resource, signal; from pathlib import Path; from pipeline.review.journal import Journal\n"
        "from tests.review.test_journal import answered, shown\n"
        "journal = Journal(Path('ann.jsonl')); journal.write(shown(1))\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); size = journal.path.stat().st_size\n"
        "soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)\n"
        "for _ in range(2):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, hard))\n"
        "    try: journal.write(answered(1))\n"
        "    except OSError as error: print(error.strerror, journal.path.stat().st_size - size)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))\n"
        "journal.write(answered(1))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "File too large 0\n" * 2), done.stderr
    history, whole = read_journal(tmp_path / "ann.jsonl")
    assert len(history.counted) == 1
    assert whole == (tmp_path / "ann.jsonl").stat().st_size


@pytest.mark.parametrize("name", ["../ann", "", "Ann", "a/b", "a.b", "a b", "-a", "a" * 41, "ann\n"])
def test_names_that_are_no_file_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInput, match="reviewer: expected 1 to 40 small letters"), opened(tmp_path, name):
        pass
    assert not (tmp_path / "journal").exists()


def test_a_journal_has_one_writer_and_the_table_waits_for_another_server(tmp_path: Path) -> None:
    """Another process holds the journal of `ann` for good, and the table for half a second."""
    (tmp_path / "journal").mkdir()
    code = (
        "import time; from pathlib import Path; from pipeline.lock import alone\n"
        "with alone(Path('journal/ann.jsonl')):\n    with alone(Path('verdicts.parquet')):\n"
        "        print('held', flush=True); time.sleep(.5)\n    time.sleep(600)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with (
            pytest.raises(BadInput, match=r"journal of reviewer 'ann'.*process \d+ is running"),
            opened(tmp_path, "ann"),
        ):
            pass
        with opened(tmp_path, "bob") as journal:
            journal.write(shown(1), answered(1))
        assert write_verdicts(tmp_path) == 1
        other.kill()
    assert len(pl.read_parquet(tmp_path / "verdicts.parquet")) == 1
