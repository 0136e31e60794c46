"""Running shards: the same rows under any scheduler, failures collected, resume, and what is left on disk."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest
from pydantic import ValidationError

from pipeline.errors import BadInput
from pipeline.execution import CaseFailures, Execution, Limits, Shard, _Guarded, run, shards_of

SHARDS = shards_of(list("abcdefg"), 2)


@dataclass(frozen=True)
class Squares:
    """Rows of a shard; each run leaves a mark, the members in `bad` fail, and `fatal` takes its process with it."""

    marks: Path
    bad: tuple[str, ...] = ()
    fatal: str = ""

    def __call__(self, shard: Shard) -> pl.DataFrame:
        (self.marks / f"{shard.index}-{os.getpid()}-{threading.get_ident()}").touch()
        for member in shard.members:
            if member == self.fatal:
                os._exit(9)
            if member in self.bad:
                raise BadInput(f"case '{member}' is wrong")
            if member.upper() in self.bad:
                raise ZeroDivisionError(f"{member} by zero")
        return pl.DataFrame({"member": shard.members, "square": [ord(m) ** 2 for m in shard.members]})


def quiet(scheduler: str = "synchronous", workers: int = 2, **knobs: object) -> Execution:
    return Execution.model_validate({"scheduler": scheduler, "workers": workers, "progress": "none", **knobs})


@pytest.fixture
def marks(tmp_path) -> Path:
    (tmp_path / "marks").mkdir()
    return tmp_path / "marks"


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "work" / "done").mkdir(parents=True)
    return tmp_path / "work"


def ran(marks: Path) -> list[int]:
    """Shards that were run, then forgotten."""
    found = sorted(int(mark.name.split("-")[0]) for mark in marks.iterdir())
    for mark in marks.iterdir():
        mark.unlink()
    return found


def places(marks: Path) -> set[tuple[int, int]]:
    """Process and thread of every run."""
    names = [mark.name.split("-") for mark in marks.iterdir()]
    return {(int(process), int(thread)) for _, process, thread in names}


HERE = (os.getpid(), threading.get_ident())


# ---- shards ----------------------------------------------------------------------------------------------------


def test_shards_follow_the_order_or_the_row():
    """Seven members by two, the last alone; by their row in the array: rows 0 and 1, none of 2 and 3, row 5."""
    assert [shard.members for shard in SHARDS] == [("a", "b"), ("c", "d"), ("e", "f"), ("g",)]
    by_row = shards_of(["x", "y", "z"], 2, key={"x": 5, "y": 0, "z": 1}.__getitem__)
    assert by_row == [Shard(0, ("y", "z")), Shard(2, ("x",))]


# ---- run -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheduler", "workers"),
    [("synchronous", 1), ("synchronous", 2), ("threads", 1), ("threads", 2), ("processes", 1), ("processes", 2)],
)
def test_rows_are_those_of_the_shards_in_order(folder, marks, scheduler, workers):
    frame = run(Squares(marks), SHARDS, folder, quiet(scheduler, workers), "squares")
    assert frame["member"].to_list() == list("abcdefg")
    assert frame["square"].to_list() == [ord(member) ** 2 for member in "abcdefg"]
    here = {pid == os.getpid() for pid, _ in places(marks)}
    assert here == {not (scheduler == "processes" and workers == 2)}
    assert ran(marks) == [0, 1, 2, 3]


def test_isolated_tasks_never_share_a_process(folder, marks):
    """Threads become processes."""
    run(Squares(marks), SHARDS[:2], folder, quiet("threads"), "squares", Limits(isolated=True))
    assert os.getpid() not in {pid for pid, _ in places(marks)}


def test_memory_bounds_the_shards_in_work(folder, marks):
    """Two workers, 1 GB, 0.6 GB a shard: one at a time, which needs no other thread. So does one of 2 GB."""
    for size in (0.6, 2.0):
        for path in (folder / "done").iterdir():
            path.unlink()
        run(
            Squares(marks),
            SHARDS,
            folder,
            quiet("threads", memory_gb=1.0),
            "squares",
            Limits(int(size * 2**30)),
        )
        assert places(marks) == {HERE}
        assert ran(marks) == [0, 1, 2, 3]


@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
def test_every_failure_is_named_and_the_others_finish(folder, marks, scheduler):
    """A wrong input is its message; anything else has its traceback. The rerun does the two that are missing."""
    with pytest.raises(BadInput) as caught:
        run(Squares(marks, bad=("b", "E")), SHARDS, folder, quiet(scheduler), "squares")
    lines = str(caught.value).splitlines()
    assert lines[0] == "case 'b' is wrong"
    assert lines[1].startswith("shard 2: Traceback")
    assert "ZeroDivisionError: e by zero" in lines
    assert lines[-1] == "squares: 2 of 4 shards failed; finished shards are kept"
    assert ran(marks) == [0, 1, 2, 3]
    frame = run(Squares(marks), SHARDS, folder, quiet(scheduler), "squares")
    assert ran(marks) == [0, 2]
    assert frame["member"].to_list() == list("abcdefg")


def test_a_killed_worker_is_named_and_what_was_done_is_kept(folder, marks):
    """Shard 1 of 4 takes its process with it; the rerun does what is missing, at least that one."""
    with pytest.raises(BadInput) as caught:
        run(Squares(marks, fatal="c"), SHARDS, folder, quiet("processes"), "squares")
    killed, total = str(caught.value).splitlines()
    assert (
        killed == "a worker process was killed, most likely for lack of memory; lower execution.workers and run again"
    )
    missing = [shard.index for shard in SHARDS if not (folder / "done" / f"{shard.index:06d}.arrow").is_file()]
    assert total == f"squares: {len(missing)} of 4 shards failed; finished shards are kept"
    ran(marks)
    frame = run(Squares(marks), SHARDS, folder, quiet(), "squares")
    assert frame["member"].to_list() == list("abcdefg")
    assert ran(marks) == missing
    assert 1 in missing


def test_a_shard_that_was_being_written_is_not_done(folder, marks, capsys):
    """A killed run leaves a partial file; the finished shards are not run again, and the user is told."""
    run(Squares(marks), SHARDS[:2], folder, quiet(), "squares")
    (folder / "done" / "000002.partial").write_text("half a fi")
    ran(marks)
    frame = run(Squares(marks), SHARDS, folder, quiet(), "squares")
    assert ran(marks) == [2, 3]
    assert frame["member"].to_list() == list("abcdefg")
    assert capsys.readouterr().err == "squares: resuming, 2 of 4 shards are done\n"
    assert not list((folder / "done").glob("*.partial"))


def test_finished_work_is_only_read(folder, marks):
    frames = [run(Squares(marks), SHARDS, folder, quiet(), "squares") for _ in range(2)]
    assert frames[0].equals(frames[1])
    assert ran(marks) == [0, 1, 2, 3]


def test_progress_in_plain_lines(folder, marks, capsys):
    """Off a terminal, `auto` is lines: every fifth of the shards, here every one."""
    run(Squares(marks), SHARDS, folder, quiet(progress="auto"), "squares")
    assert capsys.readouterr().err.splitlines() == [f"squares: {n} of 4 shards" for n in (1, 2, 3, 4)]


def test_progress_as_a_bar(folder, marks, capsys):
    run(Squares(marks), SHARDS, folder, quiet(progress="bar"), "squares")
    err = capsys.readouterr().err
    assert "squares" in err
    assert "100%" in err


@pytest.mark.slow
def test_a_local_cluster(folder, marks):
    with pytest.raises(BadInput, match="case 'b' is wrong"):
        run(Squares(marks, bad=("b",)), SHARDS, folder, quiet("cluster"), "squares")
    frame = run(Squares(marks), SHARDS, folder, quiet("cluster"), "squares")
    assert frame["member"].to_list() == list("abcdefg")


# ---- files of shards -------------------------------------------------------------------------------------------


def writing(shard: Shard) -> pl.DataFrame:
    """Rows of a shard that also writes an array file."""
    Path("work/array").mkdir(exist_ok=True)
    Path(f"work/array/{shard.index}").write_bytes(bytes(100))
    return pl.DataFrame({"member": shard.members})


@pytest.fixture
def work(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("work/done").mkdir(parents=True)
    return Path("work")


def test_files_are_recorded_by_the_clock_of_the_file_system(work, monkeypatch):
    """The clock of this machine is an hour ahead of that of the file server."""
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 3600)
    run(writing, SHARDS[:1], work, quiet(), "squares")
    assert json.loads((work / "done/000000.json").read_text()) == {"array/0": 100}


def test_a_file_of_another_machine_may_come_late_but_must_come(work, monkeypatch):
    """The file of shard 1 is not there yet, then half of the file is. All shards are done, so no worker is needed."""
    run(writing, SHARDS, work, quiet(), "squares")
    file = work / "array/1"
    file.unlink()
    shows = threading.Timer(0.2, lambda: file.write_bytes(bytes(100)))
    shows.start()
    frame = run(writing, SHARDS, work, quiet("cluster"), "squares")
    shows.join()
    assert frame["member"].to_list() == list("abcdefg")
    file.write_bytes(bytes(50))
    monkeypatch.setattr("pipeline.execution._LATE", 0.0)
    with pytest.raises(BadInput, match="work/array/1: expected the file that a worker of squares wrote, found none or"):
        run(writing, SHARDS, work, quiet("cluster"), "squares")


def test_a_done_shard_is_not_done_again(folder, marks):
    """As a cluster asks for, if a worker dies after the shard is done and before its answer has arrived."""
    task = _Guarded(Squares(marks), folder / "done")
    for shards in ([0], []):
        assert task(SHARDS[0]) == ""
        assert ran(marks) == shards


@pytest.mark.parametrize(
    "bad",
    [{"scheduler": "slurm"}, {"workers": 1.5}, {"progress": "loud"}, {"cores": 2}, {"workers": 0}, {"memory_gb": 0.0}],
)
def test_knobs_outside_their_range(bad):
    with pytest.raises(ValidationError):
        Execution.model_validate(bad)


# ---- failures of cases -----------------------------------------------------------------------------------------


def test_failures_of_cases_are_raised_together():
    failures = CaseFailures()
    with failures.of("a"):
        raise BadInput("a.nii: expected 3 axes, found 2")
    with failures.of("b"):
        pass
    with failures.of("c"):
        _ = [][0]
    with pytest.raises(BadInput) as caught:
        failures.raise_any()
    first, second = str(caught.value).splitlines()
    assert first == "a.nii: expected 3 axes, found 2"
    assert second.startswith("case 'c': IndexError: list index out of range (test_execution.py:")
    CaseFailures().raise_any()


def test_a_name_that_the_file_system_does_not_take_is_the_users():
    failures = CaseFailures()
    with failures.of("c"):
        Path("./" + "x" * 300).is_file()
    with pytest.raises(BadInput) as caught:
        failures.raise_any()
    assert re.fullmatch(
        r"case 'c': x{300}: expected names .* found 300 bytes in 'x{40}...' and 300 in all; shorten the names",
        str(caught.value),
    )
