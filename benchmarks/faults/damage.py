"""Ways to damage and to replace files, relative to the project."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.store.manifest import MANIFEST, write_manifest

Make = Callable[[], object]


def cut(file: str, share: float = 0.6) -> Make:
    """The file loses its end."""
    return lambda: os.truncate(file, int(Path(file).stat().st_size * share))


def flip_bit(file: str, share: float = 0.5) -> Make:
    """One bit at this place of the file is the other way round."""

    def make() -> None:
        content = bytearray(Path(file).read_bytes())
        content[int(len(content) * share)] ^= 4
        Path(file).write_bytes(bytes(content))

    return make


def text(file: str, content: str, encoding: str = "utf-8") -> Make:
    """A file of this text."""
    return raw(file, content.encode(encoding))


def raw(file: str, content: bytes) -> Make:
    """A file of these bytes."""

    def make() -> None:
        path = Path(file)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    return make


def picture(file: str, values: Callable[[np.ndarray], np.ndarray], **knobs: Any) -> Make:
    """The picture becomes what `values` makes of its pixels."""

    def make() -> None:
        with Image.open(file) as found:
            before = np.array(found)
        Image.fromarray(values(before)).save(file, **knobs)

    return make


def each(folder: str, make: Callable[[str], Make]) -> Make:
    """The change of every file in a folder."""

    def change() -> None:
        for file in sorted(Path(folder).iterdir()):
            make(str(file))()

    return change


def move(source: str, target: str) -> Make:
    return lambda: Path(source).rename(target)


def remove(file: str) -> Make:
    return lambda: Path(file).unlink()


def edit_json(file: str, **keys: Any) -> Make:
    """A JSON object gets these keys. None removes a key."""

    def make() -> None:
        content = json.loads(Path(file).read_text()) | keys
        kept = {key: value for key, value in content.items() if value is not None}
        Path(file).write_text(json.dumps(kept))

    return make


def resealed(folder: str, make: Make) -> Make:
    """A change of a store whose manifest then fits the changed files."""

    def change() -> None:
        make()
        (Path(folder) / MANIFEST).unlink()
        write_manifest(Path(folder), "a change")

    return change
