"""Running shards: the same rows under any scheduler, failures collected, resume, and what is left on disk."""

from __future__ import annotations

import os
import re
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest
from pydantic import ValidationError

from pipeline import execution
from pipeline.errors import BadInput
from pipeline.execution import (
    PASSING,
    CaseFailures,
    Execution,
    Limits,
    Shard,
    fingerprint,
    publish,
    run,
    shards_of,
    workspace,
)

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


# ---- workspace -------------------------------------------------------------------------------------------------


@pytest.fixture
def inputs(tmp_path, monkeypatch) -> list[Path]:
    """A stage's input, in the folder that the stage runs in."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "input").write_text("one")
    return [tmp_path / "input"]


def test_a_workspace_goes_on_success(inputs):
    with workspace("stage", "pipeline.seeding", "knobs", inputs) as folder:
        assert (folder / "done").is_dir()
        assert folder.parent == execution.WORK / "stage"
    assert list(execution.WORK.iterdir()) == []


def test_a_workspace_stays_on_failure_and_is_found_again(inputs):
    with pytest.raises(BadInput, match="half way"), workspace("stage", "pipeline.seeding", "knobs", inputs) as folder:
        _finish_and_fail(folder)
    with workspace("stage", "pipeline.seeding", "knobs", inputs) as again:
        assert again == folder
        assert (again / "done" / "000000.arrow").is_file()


def _finish_and_fail(folder: Path) -> None:
    """A shard that writes a file of its own, and a failure of the stage."""

    def task(shard: Shard) -> pl.DataFrame:
        (folder / "array").mkdir()
        (folder / "array/0").write_bytes(bytes(100))
        (folder / f"{PASSING}rows").mkdir()
        (folder / f"{PASSING}rows/0").touch()
        return pl.DataFrame({"member": shard.members})

    run(task, SHARDS[:1], folder, quiet(), "squares")
    shutil.rmtree(folder / f"{PASSING}rows")
    raise BadInput("half way")


def test_array_files_of_a_shard_that_is_not_done_are_removed(inputs):
    """Whole or damaged. All else stays: the description of the array, and what the stage has learned."""
    with pytest.raises(BadInput), workspace("stage", "pipeline.seeding", "knobs", inputs) as folder:
        raise BadInput("before the first shard")
    for name, written in (("a.zarr/zarr.json", 0), ("models/weights", 0), ("a.zarr/c/0", None)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(bytes(9))
        if written is not None:
            os.utime(folder / name, (written, written))
    with pytest.raises(BadInput, match="half way"):
        _finish_and_fail(folder)
    (folder / "a.zarr/c/1").write_bytes(bytes(9))
    with workspace("stage", "pipeline.seeding", "knobs", inputs) as again:
        left = sorted(path.relative_to(again).as_posix() for path in again.rglob("*") if path.is_file())
    kept = ["a.zarr/c/0", "a.zarr/zarr.json", "array/0", "done/000000.arrow", "done/000000.json", "models/weights"]
    assert left == kept


@pytest.mark.parametrize(
    ("file", "left"),
    [
        *((file, left) for file in ("array/0", "done/000000.json", "done/000000.arrow") for left in (0, 50)),
        *((file, None) for file in ("array/0", "done/000000.json")),
    ],
)
def test_work_with_a_damaged_file_starts_anew(inputs, file, left, capsys):
    """A file that is shorter than it was, or is gone, as after a loss of power."""
    with pytest.raises(BadInput, match="half way"), workspace("stage", "pipeline.seeding", "knobs", inputs) as folder:
        _finish_and_fail(folder)
    if left is None:
        (folder / file).unlink()
    else:
        os.truncate(folder / file, min(left, (folder / file).stat().st_size - 1))
    with workspace("stage", "pipeline.seeding", "knobs", inputs) as again:
        assert [path.name for path in again.rglob("*")] == ["done"]
    assert "is damaged, so the unfinished work is not used; starting anew" in capsys.readouterr().err


def test_work_for_other_knobs_or_inputs_is_removed(inputs):
    """Another stage's work stays."""
    for stage, knobs in (("stage", "old"), ("other", "old")):
        with pytest.raises(BadInput), workspace(stage, "pipeline.seeding", knobs, inputs):
            raise BadInput("no")
    with pytest.raises(BadInput), workspace("stage", "pipeline.seeding", "new", inputs) as folder:
        raise BadInput("no")
    assert list((execution.WORK / "stage").iterdir()) == [folder]
    assert len(list((execution.WORK / "other").iterdir())) == 1


def test_the_fingerprint_follows_knobs_and_the_content_of_inputs(inputs, tmp_path):
    first = fingerprint("pipeline.seeding", "knobs", inputs)
    assert fingerprint("pipeline.seeding", "knobs", inputs) == first
    assert fingerprint("pipeline.seeding", "other", inputs) != first
    (tmp_path / "input").write_text("two")
    assert fingerprint("pipeline.seeding", "knobs", inputs) != first


# ---- publish ---------------------------------------------------------------------------------------------------


def test_a_folder_replaces_what_was_there(tmp_path):
    """Old files go, new ones are hard links: nothing is copied."""
    source, target = tmp_path / "work" / "a.zarr", tmp_path / "out" / "a.zarr"
    (source / "c").mkdir(parents=True)
    (source / "c" / "0").write_text("new")
    target.mkdir(parents=True)
    (target / "old").write_text("old")
    publish(source, target)
    assert [path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()] == ["c/0"]
    assert (target / "c" / "0").samefile(source / "c" / "0")


def test_a_file_replaces_what_was_there(tmp_path):
    (tmp_path / "new").write_text("new")
    publish(tmp_path / "new", tmp_path / "out" / "file")
    (tmp_path / "newer").write_text("newer")
    publish(tmp_path / "newer", tmp_path / "out" / "file")
    assert (tmp_path / "out" / "file").read_text() == "newer"
    assert (tmp_path / "new").read_text() == "new", "what was published before is unlinked, not written over"


def test_another_file_system_gets_a_copy(tmp_path):
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs /dev/shm as another file system")
    source = memory / f"segpref-test-{os.getpid()}"
    source.write_text("new")
    try:
        publish(source, tmp_path / "file")
    finally:
        source.unlink()
    assert (tmp_path / "file").read_text() == "new"
