"""Stages in this process, for studies that are started again where they were stopped."""

from __future__ import annotations

import importlib
from pathlib import Path


def stage(name: str, made: str, *arguments: str) -> None:
    """Run `stages.NAME` in the current folder, unless the file that it writes last is there."""
    if not Path(made).exists():
        importlib.import_module(f"stages.{name}").main(list(arguments), standalone_mode=False)
