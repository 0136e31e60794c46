"""Running tasks on a Dask cluster, whose workers were started in any folder and share the project's storage."""

from __future__ import annotations

import importlib.util
import os
import pickle
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from uuid import uuid4

from pipeline.compute import LOADED
from pipeline.errors import BadInput
from pipeline.own_kinds import FOLDER as OWN_KINDS
from pipeline.source_code import PACKAGE
from pipeline.workspace import library_versions

if TYPE_CHECKING:
    from distributed import Client, Future, WorkerPlugin

_QUIET = 30.0
"""Seconds without a finished task after which the stage looks whether any worker is left."""

_NO_WORKER = "the cluster has no worker; waiting for one"

_GIB = 2**30


class Indexed(Protocol):
    """A unit of work with a number, which errors name."""

    @property
    def index(self) -> int: ...


@dataclass(frozen=True)
class Load:
    """What the tasks of a stage ask of the workers."""

    what: str
    """The user's word for the stage in messages."""
    bytes_per_task: int
    """Memory of a task in bytes. 0: unknown, and not checked."""
    at_once: int
    """Most tasks in work at a time, on all machines together, by the memory budget."""
    isolated: bool
    """Whether a task uses state of the process, so that two tasks never share a process at one time."""


@dataclass(frozen=True)
class Needs:
    """What a worker must have to run the tasks of a stage."""

    project: str  # absolute path of the project's folder, the same on every machine
    token: str  # a file below the project's folder with a new name, which no other folder has
    code: Mapping[str, str]  # hash of the code by package
    versions: Mapping[str, str]  # version by library
    load: Load


def on_cluster(
    task: Callable[[Any], str],
    shards: Sequence[Indexed],
    address: str | None,
    workers: int,
    load: Load,
    folder: Path,
) -> Iterator[str]:
    """Run `task` on every shard by the workers of a cluster. Yields the text of each task's failure, empty on success.

    A task returns its failure as text, empty on success.

    Without an address, here and in Dask's configuration, a local cluster of at most `workers` workers is started. Tasks
    run in the current folder, whatever the folder of the worker. `folder` is below the current folder, and every worker
    must see the same files there. A task whose worker dies is run again by another worker, a few times. Raises
    `BadInput` if there is no scheduler at the address, if a worker lacks what the tasks need, and if the scheduler
    is lost.
    """
    import dask
    from distributed import Client, LocalCluster

    address = address or dask.config.get("scheduler-address", None)
    with ExitStack() as stack:
        cluster = None
        if address is None:
            # The number of workers keeps the memory budget. Dask's own limit is a share of the memory per core.
            cluster = stack.enter_context(
                LocalCluster(
                    n_workers=min(workers, load.at_once),
                    threads_per_worker=1,
                    memory_limit=None,
                    dashboard_address=None,
                )
            )
        try:
            # The client is closed before the stage ends. Otherwise a stage that DVC runs would hang.
            client = stack.enter_context(Client(cluster or address))
        except (OSError, ValueError) as error:
            raise BadInput(
                f"execution.address: expected a Dask scheduler at '{address}', found none ({error}); start the "
                "scheduler, or correct the address"
            ) from error
        token = folder / f"{uuid4().hex}.token"
        token.touch()
        stack.callback(token.unlink, missing_ok=True)
        packages = [PACKAGE, *([OWN_KINDS] if OWN_KINDS in sys.modules else [])]
        code = {name: code_of_package(name) for name in packages}
        needs = Needs(str(Path.cwd()), str(token), code, library_versions(), load)
        try:
            client.register_plugin(_on_path(needs.project), name=token.name)
            stack.callback(_off_path, client, token.name)
            _refuse_unfit(client, needs)
            _note_threads(client, load, len(shards))
            yield from _outcomes(client, _OnWorker(task, needs), shards, load)
        except (OSError, CancelledError) as error:
            raise BadInput(
                f"{load.what}: expected the connection to the Dask scheduler to last, found that it was lost "
                f"({' '.join(str(error).split())}); see that the scheduler runs, and run again: finished shards are "
                "kept"
            ) from error


def _on_path(folder: str) -> WorkerPlugin:
    """Plugin that puts a folder on the path of every worker, now or later, before a task is read there."""
    from distributed import WorkerPlugin

    # A class inside a function is sent as code, which a worker can read before it can import `pipeline`.
    class OnPath(WorkerPlugin):  # type: ignore[misc]
        def setup(self, worker: Any) -> None:
            sys.path.insert(0, folder)

        def teardown(self, worker: Any) -> None:
            sys.path.remove(folder)

    return OnPath()


def _off_path(client: Client, name: str) -> None:
    # Without a connection to the scheduler, the plugin is gone with the scheduler or goes with the workers.
    if client.status == "running":
        client.unregister_worker_plugin(name)


def _unpacked() -> Callable[[bytes], None]:
    """Function that reads a pickled task and its shard, and runs the task."""

    # The scheduler reads every function and argument that it passes on, and needs no segpref: this function is sent as
    # code, and its argument is bytes.
    def run(packed: bytes) -> None:
        import pickle

        task, shard = pickle.loads(packed)
        task(shard)

    return run


@cache
def code_of_package(package: str) -> str:
    """Hash of the code of a package as this process has imported it: the files are read once and never again."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        return "none"
    root = Path(found.submodule_search_locations[0])
    content = blake2b(digest_size=10)
    for file in sorted(root.rglob("*.py")):
        content.update(repr((file.relative_to(root).as_posix(), file.read_bytes())).encode())
    return content.hexdigest()


def objection(needs: Needs, dask_worker: Any) -> str:
    """Why a worker, which is this process, cannot run the tasks. Empty if the worker can."""
    if not Path(needs.project, needs.token).is_file():
        return (
            f"expected the project's folder {needs.project} on the worker's machine too, found no such folder or "
            "another one; keep the project on storage that all machines share under one path"
        )
    for package, code in needs.code.items():
        if code_of_package(package) != code:
            return (
                f"expected the code of '{package}' that the stage runs, found other code; install the same version on "
                "the worker's machine, and restart the worker: a worker never notices that code has changed"
            )
    found = library_versions()
    if wrong := [f"{name} {version}" for name, version in needs.versions.items() if found[name] != version]:
        there = ", ".join(f"{entry.split()[0]} {found[entry.split()[0]]}" for entry in wrong)
        return f"expected {', '.join(wrong)} as in the stage, found {there}; install the same versions"
    threads, limit = dask_worker.state.nthreads, dask_worker.memory_manager.memory_limit
    if needs.load.isolated and threads > 1:
        return f"expected one thread, because trainings never share a process, found {threads}; use --nthreads 1"
    at_once, size = min(threads, needs.load.at_once), needs.load.bytes_per_task
    if limit and at_once * size > limit:
        return (
            f"expected a memory limit of {at_once * size / _GIB:.1f} GiB or more ({at_once} shards at a time, "
            f"{size / _GIB:.1f} GiB each), found {limit / _GIB:.1f} GiB; start the worker with a higher --memory-limit "
            "or fewer --nthreads"
        )
    return ""


def _refuse_unfit(client: Client, needs: Needs) -> None:
    """Raise `BadInput` with every worker that cannot run the tasks, and the reason."""
    workers: dict[str, list[str]] = defaultdict(list)
    for address, reason in client.run(objection, needs, on_error="return").items():
        if isinstance(reason, Exception):
            reason = f"expected an installation of segpref, found none that works ({reason}); install segpref there"
        if reason:
            workers[reason].append(address)
    if workers:
        raise BadInput.all(f"{_some(addresses)}: {reason}" for reason, addresses in workers.items())


def _note_threads(client: Client, load: Load, tasks: int) -> None:
    """Say so if there is no worker yet, or if the memory budget keeps threads of the workers idle."""
    threads = sum(worker["nthreads"] for worker in client.scheduler_info()["workers"].values())
    if not threads:
        _say(f"{load.what}: {_NO_WORKER}")
    if load.at_once < min(threads, tasks):
        _say(
            f"{load.what}: execution.memory_gb allows {load.at_once} shards of {load.bytes_per_task / _GIB:.1f} GiB at "
            f"a time, and the workers have {threads} threads; raise execution.memory_gb if the machines have more"
        )


def _say(note: str) -> None:
    print(note, file=sys.stderr, flush=True)


def _some(addresses: Sequence[str]) -> str:
    shown, more = ", ".join(addresses[:3]), len(addresses) - 3
    return f"worker{'s' if len(addresses) > 1 else ''} {shown}{f' and {more} more' if more > 0 else ''}"


class _Failure(Exception):
    """The text of a task's failure.

    Dask sends an exception at once, and keeps a result in the worker, from which a client cannot fetch the result after
    the worker's death.
    """


@dataclass(frozen=True)
class _OnWorker:
    """A task that is run in the project's folder, and only by a worker that has what the task needs."""

    task: Callable[[Any], str]
    needs: Needs

    def __call__(self, shard: Indexed) -> None:
        from distributed import get_worker

        worker = get_worker()
        # A worker that has joined since the stage began has not been asked before.
        if reason := objection(self.needs, worker):
            raise _Failure(f"{_some([worker.address])}: {reason}")
        forget_other_stages(self.needs.token)
        with in_folder(self.needs.project):
            if failure := self.task(shard):
                raise _Failure(failure)


_OF_THREAD = threading.local()


def forget_other_stages(token: str) -> None:
    """Drop the networks that this thread holds of stages with another token. A worker would hold them until its end."""
    if getattr(_OF_THREAD, "token", token) != token:
        LOADED.__dict__.clear()
    _OF_THREAD.token = token


_AT_WORK: list[str] = []
"""Folder of every task that this process runs now."""
_CHANGE = threading.Condition()


@contextmanager
def in_folder(folder: str) -> Iterator[None]:
    """Context in which relative paths are below `folder`, in all threads.

    The working directory belongs to the process. So a task of another folder waits until no task of this one runs.
    """
    with _CHANGE:
        _CHANGE.wait_for(lambda: _AT_WORK.count(folder) == len(_AT_WORK))
        os.chdir(folder)
        _AT_WORK.append(folder)
    try:
        yield
    finally:
        with _CHANGE:
            _AT_WORK.remove(folder)
            _CHANGE.notify_all()


def _outcomes(client: Client, task: _OnWorker, shards: Sequence[Indexed], load: Load) -> Iterator[str]:
    """Failures of the tasks in the order in which the tasks end, empty on success."""
    from distributed import wait

    run, told = _unpacked(), False
    waiting: list[Indexed] = list(reversed(shards))
    running: dict[Future, Indexed] = {}
    while waiting or running:
        while waiting and len(running) < load.at_once:
            shard = waiting.pop()
            running[client.submit(run, pickle.dumps((task, shard)), pure=False)] = shard
        try:
            finished = wait(list(running), timeout=_QUIET, return_when="FIRST_COMPLETED").done
        except TimeoutError:
            if not client.scheduler_info()["workers"] and not told:
                told = True
                _say(f"{load.what}: {_NO_WORKER}")
            continue
        told = False
        for future in finished:
            shard = running.pop(future)
            if future.status in ("lost", "pending"):
                # The worker died after the shard was done, and the empty result with it. A done shard is not repeated.
                waiting.append(shard)
            else:
                yield _outcome(future, shard)


def _outcome(future: Future, shard: Indexed) -> str:
    from distributed import KilledWorker

    if future.status == "finished":
        return ""
    if future.status != "error":
        return f"shard {shard.index}: expected the Dask scheduler to keep the task, found it {future.status}; run again"
    error = future.exception()
    if isinstance(error, _Failure):
        return str(error)
    if isinstance(error, KilledWorker):
        return (
            f"shard {shard.index}: {error.allowed_failures + 1} workers died while they had this shard, the last at "
            f"{error.last_worker.address}, most likely for lack of memory; see the log of the worker"
        )
    return f"shard {shard.index}: {error!r}"
