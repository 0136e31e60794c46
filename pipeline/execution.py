"""Running one task per shard on any Dask scheduler, with resume, progress and collected failures.

The scheduler never changes results: a task is a function of its shard, and outputs are joined in shard order.
"""

from __future__ import annotations

import errno
import importlib.metadata
import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Any, Literal

import polars as pl
from pydantic import Field

from pipeline.compute import Compute
from pipeline.errors import BadInput
from pipeline.knobs import Knobs
from pipeline.lock import WORK, alone
from pipeline.source_code import code_of
from pipeline.store.manifest import sha256

PASSING = "passing_"
"""First part of the names of folders in a workspace that a task removes before its shard is done."""


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
    progress: Literal["auto", "bar", "lines", "none"] = "auto"
    """Progress on standard error. `auto` is a bar on a terminal and plain lines elsewhere."""


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


def fingerprint(module: str, knobs: object, inputs: Sequence[Path]) -> str:
    """Key of unfinished work: a hash of the knobs, the inputs, the code in use and the versions of libraries.

    `module` is the dotted name of the module that does the work. The code in use is the code of the module and of the
    knobs. The version of Python counts too. Raises `BadInput` for a missing input.
    """
    for path in inputs:
        if not path.is_file():
            raise BadInput(f"{path}: missing; run the stage that writes it with `dvc repro`")
    versions = {name: importlib.metadata.version(name) for name in ("torch", "monai", "numpy", "zarr", "polars")}
    content = [
        repr(knobs),
        [sha256(path) for path in inputs],
        code_of(module, knobs),
        versions,
        sys.version,
    ]
    return blake2b(json.dumps(content).encode(), digest_size=10).hexdigest()


@contextmanager
def workspace(stage: str, module: str, knobs: object, inputs: Sequence[Path]) -> Iterator[Path]:
    """Folder for finished shards, kept if the stage fails or is killed, deleted if the stage succeeds.

    Work of the same stage under another `fingerprint` cannot be resumed and is deleted, and so is work with a damaged
    file, as a loss of power may leave. Raises `BadInput` if another
    process does the same stage, for whatever output.
    """
    key = fingerprint(module, knobs, inputs)
    root = WORK / stage
    with alone(root):
        if root.is_dir():
            for other in root.iterdir():
                if other.name != key:
                    shutil.rmtree(other)
        folder = root / key
        try:
            _remove_unfinished(folder)
        except _Damaged as damaged:
            print(f"{stage}: {damaged} is damaged, so the unfinished work is not used; starting anew", file=sys.stderr)
            shutil.rmtree(folder)
        (folder / "done").mkdir(parents=True, exist_ok=True)
        yield folder
        shutil.rmtree(root)


class _Damaged(Exception):
    """A file of finished shards that is damaged."""


def _remove_unfinished(folder: Path) -> None:
    """Remove the array files of shards that are not done: Zarr reads a file before it is replaced, damaged or not.

    Raises `_Damaged` with a file of a finished shard that cannot be read, or that is shorter than it was when the shard
    was finished. Files of unfinished work grow and are never made shorter.
    """
    finished: set[str] = set()
    for done in sorted((folder / "done").glob("*.arrow")):
        try:
            pl.read_ipc(done)
            sizes = json.loads(done.with_suffix(".json").read_text())
        except (OSError, ValueError, pl.exceptions.PolarsError) as error:
            raise _Damaged(done) from error
        for name, size in sizes.items():
            file = folder / name
            if not file.is_file() or file.stat().st_size < size:
                raise _Damaged(file)
        finished |= set(sizes)
    for name in _sizes(folder, since=0.0).keys() - finished:
        if ".zarr/" in name:
            (folder / name).unlink()


_OF_ARRAY = "zarr.json"
"""Name of the file that describes an array. The file is older than all shards, and all shards need the file."""


def _sizes(folder: Path, since: float) -> dict[str, int]:
    """Size in bytes of the files in a folder of unfinished work that were written since this time in seconds.

    Descriptions of arrays are among them whenever they were written. The rows of shards, and passing files, are left
    out.
    """
    found = {}
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != "done" and not name.startswith(PASSING)]
        for name in names:
            # Another shard writes at the same time. A file that is being written has this ending until it is whole.
            if not name.endswith(".partial"):
                file = Path(root) / name
                if (stat := file.stat()).st_mtime >= since or name == _OF_ARRAY:
                    found[file.relative_to(folder).as_posix()] = stat.st_size
    return found


def publish(source: Path, target: Path) -> None:
    """Put a finished file or folder of the workspace into the stage's output. An earlier `target` is replaced.

    Files are hard links if the file system supports them. So nothing is copied, and a stage that is killed during
    `publish` still has its workspace.
    """

    def place(file: str, to: str) -> None:
        try:
            os.link(file, to)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK):
                raise
            shutil.copy2(file, to)

    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_dir():
        shutil.rmtree(target)
    target.unlink(missing_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, copy_function=place)
    else:
        place(str(source), str(target))


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
    it, `INDEX.json` holds the sizes of the files that were written meanwhile.
    `unit` is the user's word for shards in messages. Raises `BadInput` with every failure after all other shards have
    finished.
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
    with _progress(execution.progress, what, len(waiting), unit) as advance:
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
        path.with_suffix(".json").write_text(json.dumps(_sizes(self.done.parent, began)))
        partial.rename(path)


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
    if execution.scheduler == "cluster":
        yield from _on_cluster(task, shards, execution, workers, isolated, advance)
        return
    import dask
    from dask.callbacks import Callback

    class Advance(Callback):  # type: ignore[misc]
        def _posttask(self, *_: object) -> None:
            advance()

    scheduler: str = execution.scheduler
    if workers == 1 or len(shards) == 1:
        scheduler = "synchronous"
    elif isolated and scheduler == "threads":
        scheduler = "processes"
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


@contextmanager
def _progress(style: str, what: str, total: int, unit: str) -> Iterator[Callable[[], None]]:
    if style == "auto":
        style = "bar" if sys.stderr.isatty() else "lines"
    if style == "bar":
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True)) as bar:
            row = bar.add_task(what, total=total)
            yield lambda: bar.advance(row)
        return
    finished = 0

    def advance() -> None:
        nonlocal finished
        finished += 1
        if style == "lines" and (finished == total or finished % max(1, total // 5) == 0):
            print(f"{what}: {finished} of {total} {unit}", file=sys.stderr, flush=True)

    yield advance
