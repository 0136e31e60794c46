"""A lock on an output, so that two processes never write the same output at once."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import IO

from pipeline.errors import BadInput

WORK = Path(".work")
"""Folder of the locks, and of the finished shards of unfinished stages. Deleted on success, ignored by git and DVC."""


@contextmanager
def alone(path: Path, name: str = "") -> Iterator[None]:
    """Context in which no other process of the project works on the output `path`. Errors call the output `name`.

    The lock is a file in `.work` that names the process. The system drops the lock of a process that ends in whatever
    way, so a killed process locks nothing. Raises `BadInput` if another process holds the lock.
    """
    digest = blake2b(str(path.resolve()).encode(), digest_size=8).hexdigest()
    file = WORK / f"{path.name}-{digest}.lock"
    WORK.mkdir(exist_ok=True)
    lock = _locked(file, name or str(path))
    try:
        yield
    finally:
        # The name goes before the lock does. A process that opened the file before then sees that the name is gone.
        file.unlink(missing_ok=True)
        lock.close()


def _locked(file: Path, name: str) -> IO[str]:
    while True:
        lock = file.open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            holder = lock.read()
            lock.close()
            raise BadInput(
                f"{name}: expected no other process that works on this output, found that process {holder or '?'} is "
                "running; wait for its end, or stop it"
            ) from error
        except OSError as error:
            lock.close()
            raise BadInput(
                f"{file.parent.resolve()}: expected a file system with file locks, found none ({error}); run in a "
                "folder on a local disk, or mount the file system with locks (Lustre: -o flock)"
            ) from error
        if _named(lock, file):
            break
        lock.close()
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


def _named(lock: IO[str], file: Path) -> bool:
    """Whether the open file still has this name: another process may have removed the name before the lock was got."""
    try:
        return os.path.samestat(os.fstat(lock.fileno()), file.stat())
    except FileNotFoundError:
        return False
