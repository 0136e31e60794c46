"""Manifests, which hold a hash of every file of a finished store, and JSON files written whole or not at all."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from pipeline.errors import BadInput
from pipeline.store import schema

MANIFEST = "manifest.json"

_AGAIN = "fetch it again, or make it again with `dvc repro`"

Record = TypeVar("Record", bound=BaseModel)


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, content: object) -> None:
    """Write sorted, indented JSON and rename the file into place. Raises `ValueError` for NaN and infinity."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n")
    partial.replace(path)


def read_json(path: Path, *keys: str) -> Any:
    """Content of a JSON file that this project wrote. With `keys`, an object that has these keys at least.

    Raises `BadInput` for a missing or damaged file and for other content.
    """
    if not path.is_file():
        raise BadInput(f"{path}: no such file; run the stage that writes it with `dvc repro`")
    try:
        content = json.loads(path.read_text())
    except ValueError as error:  # text that is not UTF-8 is a ValueError too
        raise BadInput(f"{path}: expected JSON, found a damaged file ({error}); {_AGAIN}") from error
    if keys and not (isinstance(content, dict) and content.keys() >= set(keys)):
        found = sorted(content) if isinstance(content, dict) else type(content).__name__
        raise BadInput(f"{path}: expected a JSON object with the keys {list(keys)}, found {found}; {_AGAIN}")
    return content


def read_record(kind: type[Record], path: Path, what: str, to_do: str) -> Record | None:
    """Typed content of a JSON file; None without the file. Raises `BadInput` with the place of other content.

    `what` names the content in the error, and `to_do` says how to make the file again.
    """
    if not path.is_file():
        return None
    try:
        return kind.model_validate_json(path.read_text())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise BadInput(f"{path}: expected {what}, found an error at {where}: {first['msg']}; {to_do}") from error


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)


def write_manifest(folder: Path, made_by: object) -> None:
    """Write the hash of every file of a finished store. A store without a manifest counts as unfinished."""
    files = {path.relative_to(folder).as_posix(): sha256(path) for path in _files(folder)}
    write_json(folder / MANIFEST, {"version": schema.VERSION, "made_by": repr(made_by), "sha256": files})


def check_manifest(folder: Path, content: bool = False) -> None:
    """Raise `BadInput` for an unfinished store, another version, missing files and, with `content`, changed files."""
    path = folder / MANIFEST
    if not path.is_file():
        raise BadInput(f"{folder}: no {MANIFEST}: the store is missing or unfinished; run `dvc repro`")
    manifest = read_json(path, "version", "sha256")
    if manifest["version"] != schema.VERSION:
        raise BadInput(f"{path}: expected version {schema.VERSION}, found {manifest['version']}; run `dvc repro`")
    if not isinstance(manifest["sha256"], dict):
        raise BadInput(f"{path}: expected a hash per file in 'sha256', found {manifest['sha256']!r}; {_AGAIN}")
    for name, expected in manifest["sha256"].items():
        if not (folder / name).is_file():
            raise BadInput(f"{folder / name}: listed in {MANIFEST} but missing; run `dvc checkout` or `dvc repro`")
        if content and sha256(folder / name) != expected:
            raise BadInput(f"{folder / name}: differs from its SHA-256 in {MANIFEST}; run `dvc checkout`")
