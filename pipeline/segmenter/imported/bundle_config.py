"""Configuration of a MONAI bundle: plain values, references and, if the bundle is trusted, expressions."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from pipeline.errors import BadInput

_REFERENCE = re.compile(r"@\w+(?:(?:::|#)\w+)*")
"""A reference that is a whole value. `::` (`#` in older bundles) leads to a key of a block or a place of a list."""


class Config:
    """Blocks of a configuration file by name.

    Plain values, and references to plain values, need no trust. `$` expressions, `%` macros and references inside a
    longer value run code and need `trust`. Raises `BadInput` for a file that is not readable.
    """

    def __init__(self, path: Path, trust: bool) -> None:
        self.path, self.trust = path, trust
        try:
            self.content: Any = json.loads(path.read_text()) if path.suffix == ".json" else _yaml(path)
        except ValueError as error:
            raise BadInput(f"{path}: not a readable configuration ({error}); correct it, or fetch it again") from error
        if not isinstance(self.content, dict):
            raise BadInput(f"{path}: expected blocks by name, found {type(self.content).__name__}")

    @classmethod
    def of(cls, bundle: Path, trust: bool) -> Config:
        """Configuration `configs/inference` (JSON or YAML) of a bundle. Raises `BadInput` for a missing file."""
        files = [bundle / "configs" / f"inference.{suffix}" for suffix in ("json", "yaml", "yml")]
        found = next((file for file in files if file.is_file()), None)
        if found is None:
            raise BadInput(
                f"model: {bundle}: expected the folder of a MONAI bundle, found no {files[0]} or .yaml; correct `model`"
            )
        return cls(found, trust)

    def plain(self, value: Any, at: str) -> Any:
        """Plain value of `value` at the place `at` of the file, with references and trusted expressions replaced.

        Raises `BadInput` for an expression that is not trusted, for a reference to nothing or to itself, and for an
        expression whose result is no plain value.
        """
        if isinstance(value, dict):
            return {key: self.plain(part, f"{at}::{key}") for key, part in value.items()}
        if isinstance(value, list):
            return [self.plain(part, f"{at}::{place}") for place, part in enumerate(value)]
        if not isinstance(value, str) or value[:1] not in ("$", "@", "%"):
            return value
        return self._refers(value, at, ()) if _REFERENCE.fullmatch(value) else self._evaluated(value, at)

    def _refers(self, value: str, at: str, seen: tuple[str, ...]) -> Any:
        target = value[1:].replace("#", "::")
        if target in seen:
            raise BadInput(f"{self.path}: {at}: the reference '{value}' refers to itself")
        found: Any = self.content
        for key in target.split("::"):
            try:
                found = found[int(key) if isinstance(found, list) else key]
            except (KeyError, ValueError, IndexError, TypeError) as error:
                raise BadInput(f"{self.path}: {at}: '{value}' refers to nothing in this file") from error
        if isinstance(found, str) and _REFERENCE.fullmatch(found):
            return self._refers(found, target, (*seen, target))
        return self.plain(found, target)

    def _evaluated(self, value: str, at: str) -> Any:
        if not self.trust:
            raise BadInput(
                f"{self.path}: {at}: '{value}' is an expression, and evaluating it runs code of the bundle; set "
                "base.trust: true if you trust where the bundle is from, or write the plain value"
            )
        from monai.bundle import ConfigParser

        try:
            parser = ConfigParser()
            parser.read_config(self.path)
            found = parser.get_parsed_content(at, instantiate=False)
            # A detour over JSON refuses objects and other results that are no plain values.
            return json.loads(json.dumps(found))
        # An expression is code of the bundle and may raise any exception.
        except Exception as error:
            raise BadInput(f"{self.path}: {at}: '{value}' gives no plain value: {error}") from error


def _yaml(path: Path) -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return YAML(typ="safe").load(path)
    except YAMLError as error:
        raise ValueError(str(error)) from error


def class_name(target: Any) -> str:
    """Name of the class in a `_target_`, without its modules."""
    return str(target).rsplit(".", 1)[-1]
