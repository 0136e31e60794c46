"""Running one task per shard on any Dask scheduler, with resume, progress and collected failures.

The scheduler never changes results: a task is a function of its shard, and outputs are joined in shard order.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import uuid4

import polars as pl
from pydantic import Field

from pipeline.cluster import Load, on_cluster
from pipeline.compute import Compute
from pipeline.errors import BadInput
from pipeline.knobs import Knobs
from pipeline.progress import Style, counting
from pipeline.workspace import sizes


class Execution(Knobs):
    """Scheduler, workers and progress. These knobs change speed, never results, so no stage depends on them."""

    scheduler: Literal["synchronous", "threads", "processes", "cluster"] = "threads"
    """Dask scheduler. `cluster` is Dask distributed: the cluster at `address`, or a local cluster."""
    address: str | None = None
    """Address of a Dask scheduler for `cluster`, e.g. `tcp://10.0.0.1:8786`. Null is Dask's own setting, such as
    `DASK_SCHEDULER_ADDRESS` in the environment. Without that setting too, null starts a local cluster."""
    workers: Annotated[int, Field(gt=0)] = 2
    """Most shards in work at a time. A cluster at an address has workers of its own, and does not use this number."""
    memory_gb: Annotated[float, Field(gt=0)] = 8.0
    """Memory budget in GiB of all shards in work, on all machines together. The budget lowers the number of shards in
    work to at least one."""
    progress: Style = "auto"
    """Progress on standard error, of tasks and of the steps of trainings. `auto` is a bar on a terminal and plain lines
    elsewhere. Trainings in other processes write lines. `none` is silent."""


@dataclass(frozen=True)
class Runtime:
    """Compute knobs, seed and execution of a stage that trains or infers."""

    compute: Compute
    seed: int
    execution: Execution = field(default_factory=Execution)


@dataclass(frozen=True)
class Shard:
    """A unit of work: its index in the output and its members, which are rows of the arrays or names."""

    index: int
    members: tuple[Any, ...]


@dataclass(frozen=True)
class Limits:
    """Limits on the number and the place of the tasks that run at the same time."""

    bytes_per_shard: int = 0
    """Bytes of memory of a task. `execution.memory_gb` over this number limits the tasks in work; 0 sets no limit."""
    isolated: bool = False
    """Whether a task uses state of the process, such as torch's global generator.

    Two isolated tasks never share a process at one time.
    """


NO_LIMITS = Limits()


@dataclass
class CaseFailures:
    """Collects the failures of single cases, so that a bad case does not hide the next bad case."""

    messages: list[str] = field(default_factory=list)

    @contextmanager
    def of(self, case_id: str) -> Iterator[None]:
        """Context that records a failure of this case instead of raising. `raise_any` raises all failures together."""
        try:
            yield
        except BadInput as error:
            self.messages.append(str(error))
        except Exception as error:
            if found := BadInput.of(error):
                self.messages.append(f"case '{case_id}': {found}")
                return
            where = traceback.extract_tb(error.__traceback__)[-1]
            at = f"{Path(where.filename).name}:{where.lineno}"
            self.messages.append(f"case '{case_id}': {type(error).__name__}: {error} ({at})")

    def raise_any(self) -> None:
        """Raise one `BadInput` with all recorded failures. Without a failure nothing is raised."""
        if self.messages:
            raise BadInput.all(self.messages)


def shards_of(members: Sequence[Any], size: int, key: Callable[[Any], int] | None = None) -> list[Shard]:
    """Members grouped into shards of `size` rows, by the row that `key` gives or else by their position."""
    groups: dict[int, list[Any]] = {}
    for position, member in enumerate(members):
        groups.setdefault((position if key is None else key(member)) // size, []).append(member)
    return [Shard(index, tuple(group)) for index, group in sorted(groups.items())]


def run(
    task: Callable[[Shard], pl.DataFrame],
    shards: Sequence[Shard],
    folder: Path,
    execution: Execution,
    what: str,
    limits: Limits = NO_LIMITS,
    unit: str = "shards",
) -> pl.DataFrame:
    """Run `task` on every shard that is not done; return the rows of all shards in shard order.

    A shard is done if `folder/done/INDEX.arrow` exists. The file is renamed into place after the task returns. Beside
    it, `INDEX.json` holds the sizes of the files that were written meanwhile. `unit` is the user's word for shards in
    messages. Raises `BadInput` with every failure after all other shards have finished.
    """
    if not shards:
        raise BadInput(
            f"{what}: expected cases in the splits that the stage works on, found none; see `splits` in params.yaml"
        )
    done = folder / "done"
    for partial in done.glob("*.partial"):
        partial.unlink(missing_ok=True)
    waiting = [shard for shard in shards if not _done(done, shard).is_file()]
    if len(waiting) < len(shards):
        print(f"{what}: resuming, {len(shards) - len(waiting)} of {len(shards)} shards are done", file=sys.stderr)
    at_once = len(shards)
    if limits.bytes_per_shard:
        at_once = max(1, int(execution.memory_gb * 2**30 // limits.bytes_per_shard))
    load = Load(what, limits.bytes_per_shard, at_once, limits.isolated)
    failures: list[str] = []
    scheduler = _scheduler(execution, load, len(waiting))
    # Trainings in other processes write lines, which bars would overwrite.
    lines = limits.isolated and scheduler != "synchronous" and execution.progress != "none"
    with counting("lines" if lines else execution.progress, what, len(waiting), unit) as advance:
        for failure in _outcomes(_Guarded(task, done), waiting, execution, load, advance):
            if failure:
                failures.append(failure)
    if failures:
        lost = sum(not _done(done, shard).is_file() for shard in shards)
        raise BadInput.all([*failures, f"{what}: {lost} of {len(shards)} {unit} failed; finished {unit} are kept"])
    if execution.scheduler == "cluster":
        _wait_for_files(folder, shards, what)
    return pl.concat([pl.read_ipc(_done(done, shard)) for shard in shards])


_LATE = 120.0
"""Seconds until a file that another machine wrote is missing. NFS shows a new file after 60 seconds at the latest."""


def _wait_for_files(folder: Path, shards: Sequence[Shard], what: str) -> None:
    """Wait until this machine sees all files of the shards. A missing file of an array would read as the fill value.

    Raises `BadInput` with the first file that stays missing.
    """
    until = time.monotonic() + _LATE
    while missing := _unseen(folder, shards):
        if time.monotonic() > until:
            raise BadInput(
                f"{missing[0]}: expected the file that a worker of {what} wrote, found none or a shorter one; keep the "
                "project on storage that all machines share, and run again"
            )
        time.sleep(0.5)


def _unseen(folder: Path, shards: Sequence[Shard]) -> list[Path]:
    """Files of finished shards that this machine does not see whole yet."""
    here, missing = sizes(folder, since=0.0), []
    for shard in shards:
        done = _done(folder / "done", shard)
        record = done.with_suffix(".json")
        if lost := [file for file in (done, record) if not file.is_file()]:
            missing += lost
            continue
        recorded = json.loads(record.read_text())
        missing += [folder / name for name, size in recorded.items() if here.get(name, -1) < size]
    return missing


def _done(folder: Path, shard: Shard) -> Path:
    return folder / f"{shard.index:06d}.arrow"


@dataclass(frozen=True)
class _Guarded:
    """A task that writes its rows to disk and returns its failure as text, empty on success."""

    task: Callable[[Shard], pl.DataFrame]
    done: Path

    def __call__(self, shard: Shard) -> str:
        path = _done(self.done, shard)
        # A cluster does a shard again if the worker dies before its answer has arrived.
        if path.is_file():
            return ""
        # A worker that a cluster has given up may still work on the same shard, so each call has a name of its own.
        partial = path.with_suffix(f".{uuid4().hex}.partial")
        try:
            # The clock of a file server differs from the clock of a worker's machine, and ticks in steps of up to two
            # seconds.
            partial.touch()
            began = partial.stat().st_mtime - 2
            rows = self.task(shard)
            partial.write_text(json.dumps(sizes(self.done.parent, began)))
            partial.replace(path.with_suffix(".json"))
            rows.write_ipc(partial)
            partial.replace(path)
        except Exception as error:  # a failure in one task must not stop the other shards
            return str(BadInput.of(error) or f"shard {shard.index}: {traceback.format_exc()}")
        return ""


def _scheduler(execution: Execution, load: Load, shards: int) -> str:
    """Scheduler of Dask: one task at a time needs no other process, and isolated tasks share none."""
    if execution.scheduler != "cluster" and (min(execution.workers, load.at_once) == 1 or shards == 1):
        return "synchronous"
    return "processes" if load.isolated and execution.scheduler == "threads" else execution.scheduler


def _outcomes(
    task: _Guarded, shards: list[Shard], execution: Execution, load: Load, advance: Callable[[], None]
) -> Iterator[str]:
    if not shards:
        return
    scheduler = _scheduler(execution, load, len(shards))
    if scheduler == "cluster":
        for outcome in on_cluster(task, shards, execution.address, execution.workers, load, task.done):
            advance()
            yield outcome
        return
    import dask
    from dask import local, multiprocessing, threaded
    from dask.callbacks import Callback

    # The functions of the schedulers: given a name, Dask imports `distributed`, which takes half a second.
    functions = {"synchronous": local.get_sync, "threads": threaded.get, "processes": multiprocessing.get}

    class Advance(Callback):  # type: ignore[misc]
        def _posttask(self, *_: object) -> None:
            advance()

    try:
        with Advance():
            yield from dask.compute(
                *(dask.delayed(task, pure=False)(shard) for shard in shards),
                scheduler=functions[scheduler],
                num_workers=min(execution.workers, load.at_once),
                chunksize=1,
            )
    except BrokenProcessPool:
        yield "a worker process was killed, most likely for lack of memory; lower execution.workers and run again"
