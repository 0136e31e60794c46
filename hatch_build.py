"""How the wheel is made: `pipeline` and `stages` become `segpref.pipeline` and `segpref.stages`.

A clone keeps the short names, and an installation takes one name of its own among all packages. So the imports of the
files are rewritten while the wheel is made. An editable installation rewrites nothing.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGES = ("pipeline", "stages")
PROJECT = (
    *("raw/none", "models/students/.gitkeep"),
    "dvc.yaml",
    "params.yaml",
    "params.schema.json",
    ".dvcignore",
    ".gitignore",
    ".dvc/config",
    ".dvc/.gitignore",
    ".dvc/plots/by_model.json",
)
"""Files of a clone from which `segpref init` makes a project."""
IMPORT = re.compile(rf"^(\s*)from ({'|'.join(PACKAGES)})(?=[. ])", re.MULTILINE)
"""`from pipeline...` at the start of a line. The style of the code knows no other import of the two packages."""


class Wheel(BuildHookInterface):
    """Hook of hatchling, called for every wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Give hatchling the rewritten files. `version` is `editable` for an editable installation."""
        if version == "editable":
            return
        root = Path(self.root)
        made = Path(self.directory) / "rewritten"
        shutil.rmtree(made, ignore_errors=True)
        for package in PACKAGES:
            for file in sorted((root / package).rglob("*")):
                if file.is_file() and "__pycache__" not in file.parts:
                    _copy(file, made / "segpref" / file.relative_to(root))
        _copy(root / "segpref.py", made / "segpref/__init__.py")
        (made / "segpref/__main__.py").write_text("from segpref import main\n\nmain()\n")
        (made / "segpref/py.typed").touch()
        for name in PROJECT:
            _copy(root / name, made / "segpref/project" / name)
        build_data["force_include"][str(made / "segpref")] = "segpref"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the rewritten files."""
        shutil.rmtree(Path(self.directory) / "rewritten", ignore_errors=True)


def _copy(file: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix != ".py":
        shutil.copy(file, to)
        return
    text = file.read_text("utf-8")
    if found := re.search(rf"^\s*import ({'|'.join(PACKAGES)})\b", text, re.MULTILINE):
        raise ValueError(f"{file}: expected `from {found[1]}... import ...`, found `{found[0].strip()}`")
    to.write_text(IMPORT.sub(r"\1from segpref.\2", text), "utf-8")
