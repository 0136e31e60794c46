"""Cards in the form of the Hugging Face Hub: a head in YAML, then text in Markdown."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from typing import Any

from pipeline.errors import BadInput

_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
LICENCES = "https://huggingface.co/docs/hub/repositories-licenses"


def check_licence(licence: str) -> None:
    """Raise `BadInput` unless the licence has the form of an identifier of the Hub, such as `cc-by-4.0`."""
    if not _LICENCE.fullmatch(licence):
        raise BadInput(
            f"--license: expected an identifier of the Hub, such as cc-by-4.0 or apache-2.0, found '{licence}'; choose "
            f"one of {LICENCES}, or `other`"
        )


def headed(head: Mapping[str, Any], text: str) -> str:
    """The text of a card below a head of these keys. Keys without a value are left out."""
    from ruamel.yaml import YAML

    yaml, written = YAML(), io.StringIO()
    yaml.width = 10_000
    yaml.dump({key: _quoted(value) for key, value in head.items() if value not in (None, [])}, written)
    return f"---\n{written.getvalue()}---\n\n{text}"


def _quoted(value: Any) -> Any:
    """The value with all texts quoted. Readers of YAML 1.1 take a bare `no` for a truth value."""
    from ruamel.yaml.scalarstring import DoubleQuotedScalarString

    if isinstance(value, str):
        return DoubleQuotedScalarString(value)
    if isinstance(value, Mapping):
        return {key: _quoted(one) for key, one in value.items()}
    return [_quoted(one) for one in value] if isinstance(value, list) else value
