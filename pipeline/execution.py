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

import polars as pl
from pydantic import Field

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
    """Address of a Dask scheduler for `cluster`, e.g. `tcp://10.0.0.1:8786`. Null starts a local cluster."""
    workers: Annotated[int, Field(gt=0)] = 2
    """Most shards in work at a time. A cluster at `address` has workers of its own."""
    memory_gb: Annotated[float, Field(gt=0)] = 8.0
    """Memory budget in GiB of all shards in work. The budget lowers the number of shards in work to at least one."""
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
    waiting = [shard for shard in shards if not _done(done, shard).is_file()]
    if len(waiting) < len(shards):
        print(f"{what}: resuming, {len(shards) - len(waiting)} of {len(shards)} shards are done", file=sys.stderr)
    workers = execution.workers
    if limits.bytes_per_shard:
        workers = max(1, min(workers, int(execution.memory_gb * 2**30 // limits.bytes_per_shard)))
    failures: list[str] = []
    scheduler = _scheduler(execution, workers, len(waiting), limits.isolated)
    # Trainings in other processes write lines, which bars would overwrite.
    lines = limits.isolated and scheduler != "synchronous" and execution.progress != "none"
    with counting("lines" if lines else execution.progress, what, len(waiting), unit) as advance:
        for failure in _outcomes(_Guarded(task, done), waiting, execution, workers, limits.isolated, advance):
            if failure:
                failures.append(failure)
    if failures:
        lost = sum(not _done(done, shard).is_file() for shard in shards)
        raise BadInput.all([*failures, f"{what}: {lost} of {len(shards)} {unit} failed; finished {unit} are kept"])
    return pl.concat([pl.read_ipc(_done(done, shard)) for shard in shards])


def _done(folder: Path, shard: Shard) -> Path:
    return folder / f"{shard.index:06d}.arrow"


@dataclass(frozen=True)
class _Guarded:
    """A task that writes its rows to disk and returns its failure as text, empty on success."""

    task: Callable[[Shard], pl.DataFrame]
    done: Path

    def __call__(self, shard: Shard) -> str:
        # Clocks of file systems tick in steps of up to two seconds.
        began = time.time() - 2
        try:
            self._finish(shard, self.task(shard), began)
        except Exception as error:  # a failure in one task must not stop the other shards
            return str(BadInput.of(error) or f"shard {shard.index}: {traceback.format_exc()}")
        return ""

    def _finish(self, shard: Shard, rows: pl.DataFrame, began: float) -> None:
        path = _done(self.done, shard)
        partial = path.with_suffix(".partial")
        rows.write_ipc(partial)
        path.with_suffix(".json").write_text(json.dumps(sizes(self.done.parent, began)))
        partial.rename(path)


def _scheduler(execution: Execution, workers: int, shards: int, isolated: bool) -> str:
    """Scheduler of Dask: one task at a time needs no other process, and isolated tasks share none."""
    if execution.scheduler != "cluster" and (workers == 1 or shards == 1):
        return "synchronous"
    return "processes" if isolated and execution.scheduler == "threads" else execution.scheduler


def _outcomes(
    task: _Guarded,
    shards: list[Shard],
    execution: Execution,
    workers: int,
    isolated: bool,
    advance: Callable[[], None],
) -> Iterator[str]:
    if not shards:
        return
    scheduler = _scheduler(execution, workers, len(shards), isolated)
    if scheduler == "cluster":
        yield from _on_cluster(task, shards, execution, workers, isolated, advance)
        return
    import dask
    from dask.callbacks import Callback

    class Advance(Callback):  # type: ignore[misc]
        def _posttask(self, *_: object) -> None:
            advance()

    try:
        with Advance():
            yield from dask.compute(
                *(dask.delayed(task, pure=False)(shard) for shard in shards),
                scheduler=scheduler,
                num_workers=workers,
                chunksize=1,
            )
    except BrokenProcessPool:
        yield "a worker process was killed, most likely for lack of memory; lower execution.workers and run again"


def _on_cluster(
    task: _Guarded,
    shards: list[Shard],
    execution: Execution,
    workers: int,
    isolated: bool,
    advance: Callable[[], None],
) -> Iterator[str]:
    from distributed import Client, LocalCluster, as_completed

    cluster = None
    if execution.address is None:
        cluster = LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None)
    # The client is closed before the stage ends. Otherwise a stage that DVC runs would hang.
    try:
        with Client(cluster or execution.address) as client:
            threads = [worker["nthreads"] for worker in client.scheduler_info()["workers"].values()]
            if isolated and any(count > 1 for count in threads):
                raise BadInput(
                    f"execution.address: training needs workers of one thread, found {threads}; use --nthreads 1"
                )
            futures = {client.submit(task, shard, pure=False): shard for shard in shards}
            for future in as_completed(futures):
                advance()
                if future.status == "error":
                    yield f"shard {futures[future].index}: {future.exception()!r}"
                else:
                    yield future.result()
    finally:
        if cluster is not None:
            cluster.close()
