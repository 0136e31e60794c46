"""The generated files: writing them, and saying which are not current."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import BadInput
from pipeline.reference.page import knob_page
from pipeline.reference.schema import params_schema


def write_reference(schema: Path, page: Path) -> None:
    """Write the JSON schema of `params.yaml` and the page of all knobs."""
    for file, text in _contents(schema, page):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, "utf-8")


def refuse_old_reference(schema: Path, page: Path) -> None:
    """Raise `BadInput` that names each of the two files that is missing or differs from the knobs of the code."""
    old = []
    for file, text in _contents(schema, page):
        there = file.is_file()
        if not there or file.read_text("utf-8") != text:
            found = "other content" if there else "no file"
            old.append(f"{file}: expected the knobs of the code, found {found}; run segpref knobs")
    if old:
        raise BadInput.all(old)


def _contents(schema: Path, page: Path) -> Iterator[tuple[Path, str]]:
    content = params_schema()
    yield schema, json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    yield page, knob_page(content)
