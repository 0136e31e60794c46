"""New folders that look finished only when they are."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import BadInput


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Folder to fill beside `out`. The folder is renamed to `out` when the context ends.

    A context that fails or is killed leaves no folder `out`. Raises `BadInput` if `out` is a file or is not empty.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise BadInput(f"{out}: expected a new or empty folder, found files; choose another folder or remove the files")
    partial = out.with_name(f".{out.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial)
        raise
    if out.is_dir():
        out.rmdir()
    partial.replace(out)
