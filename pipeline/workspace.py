"""Unfinished work of a stage: a folder that only the same code, knobs and inputs resume, and only if it is whole."""

from __future__ import annotations

import errno
import importlib.metadata
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path

import polars as pl

from pipeline.errors import BadInput
from pipeline.lock import WORK, alone
from pipeline.source_code import code_of
from pipeline.store.manifest import sha256

PASSING = "passing_"
"""First part of the names of folders in a workspace that a task removes before its shard is done."""


def fingerprint(module: str, knobs: object, inputs: Sequence[Path]) -> str:
    """Key of unfinished work: a hash of the knobs, the inputs, the code in use and the versions of libraries.

    `module` is the dotted name of the module that does the work. The code in use is the code of the module and of the
    knobs. The version of Python counts too. Raises `BadInput` for a missing input.
    """
    for path in inputs:
        if not path.is_file():
            raise BadInput(f"{path}: missing; run the stage that writes it with `dvc repro`")
    content = [
        repr(knobs),
        [sha256(path) for path in inputs],
        code_of(module, knobs),
        library_versions(),
        sys.version,
    ]
    return blake2b(json.dumps(content).encode(), digest_size=10).hexdigest()


def library_versions() -> dict[str, str]:
    """Versions of the libraries whose updates may change a result, by name."""
    return {name: importlib.metadata.version(name) for name in ("torch", "monai", "numpy", "zarr", "polars")}


@contextmanager
def workspace(stage: str, module: str, knobs: object, inputs: Sequence[Path]) -> Iterator[Path]:
    """Folder for finished shards, kept if the stage fails or is killed, deleted if the stage succeeds.

    Work of the same stage under another `fingerprint` cannot be resumed and is deleted, and so is work with a damaged
    file, as a loss of power may leave. Raises `BadInput` if another process does the same stage, for whatever output.
    """
    key = fingerprint(module, knobs, inputs)
    root = WORK / stage
    with alone(root, f"the unfinished work of '{stage}'"):
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
            recorded = json.loads(done.with_suffix(".json").read_text())
        except (OSError, ValueError, pl.exceptions.PolarsError) as error:
            raise _Damaged(done) from error
        for name, size in recorded.items():
            file = folder / name
            if not file.is_file() or file.stat().st_size < size:
                raise _Damaged(file)
        finished |= set(recorded)
    for name in sizes(folder, since=0.0).keys() - finished:
        if ".zarr/" in name:
            (folder / name).unlink()


_OF_ARRAY = "zarr.json"
"""Name of the file that describes an array. The file is older than all shards, and all shards need the file."""


def sizes(folder: Path, since: float) -> dict[str, int]:
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
