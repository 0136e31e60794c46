"""Unfinished work: what is resumed, what is not used again, and how it becomes the output."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import polars as pl
import pytest

from pipeline.errors import BadInput
from pipeline.execution import Execution, Shard, run, shards_of
from pipeline.lock import WORK
from pipeline.workspace import PASSING, fingerprint, publish, workspace

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
        assert folder.parent == WORK / "stage"
    assert list(WORK.iterdir()) == []


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

    run(task, shards_of(["a", "b"], 2), folder, Execution(workers=1, progress="none"), "squares")
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
    assert list((WORK / "stage").iterdir()) == [folder]
    assert len(list((WORK / "other").iterdir())) == 1


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
