"""The code that a result follows from: the files of imported modules and of the kinds in use, each with a hash.

A result follows from a module, from every module that it imports at any depth, and from the classes of the knobs in
use. What no result follows from is left out. The `__init__.py` of a package only lists the kinds of a family.
`params.py` only reads `params.yaml`. `execution.py`, `cluster.py` and `workspace.py` only order the work. `progress.py`
and `findings.py` only say what happens.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.knobs import Knobs

if TYPE_CHECKING:
    from grimp import ImportGraph

PACKAGE = __name__.rpartition(".")[0]
"""Name of the library: `pipeline` in a clone."""
PREFIX = PACKAGE.removesuffix("pipeline")
"""Prefix of `pipeline` and `stages` in an installation. File names leave the prefix out."""
_NO_RESULT = ("params", "execution", "cluster", "workspace", "progress", "findings")
LEFT_OUT = tuple(f"{PACKAGE}.{name}" for name in _NO_RESULT)
"""Modules that no result follows from, besides the `__init__.py` of packages."""

Stamp = tuple[tuple[str, int, int], ...]
"""Path, modification time in ns and size in bytes of files. Equal stamps mean equal files."""


def code_of(module: str, knobs: object) -> dict[str, str]:
    """Hash of every file that a module and knobs use, by the file's path below the folder of the packages.

    `module` is a dotted name. `knobs` is any nesting of knobs, mappings and sequences. A class from outside the two
    packages counts with its file, with the files of the same folder that the file imports, and with the modules of the
    two packages that these files import. A file that is not Python counts if a module in the same folder counts.
    """
    root, graph = _root(), _import_graph(_stamp(_root()))
    waiting, files = {module}, set[Path]()
    for kind in kinds_of(knobs):
        if kind.__module__ in graph.modules:
            waiting.add(kind.__module__)
        else:
            _add_outside(Path(inspect.getfile(kind)), files)
    waiting |= {PREFIX + name.removeprefix("segpref.") for file in files for name in _imported_by(file)} & graph.modules
    used: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in used or name in LEFT_OUT or _is_package(root, name):
            continue
        used.add(name)
        waiting |= graph.find_modules_directly_imported_by(name)
    for name in used:
        file = _file(root, name)
        files |= {file, *_other_files(file.parent)}
    return {_named(root, file): _hash(file, file.stat().st_mtime_ns) for file in sorted(files)}


def _add_outside(file: Path, files: set[Path]) -> None:
    """Add a file from outside the packages, and the files of its folder that the file imports at any depth."""
    if file in files:
        return
    files.add(file)
    for name in _imported_by(file):
        package, _, module = name.partition(".")
        if package == file.parent.name and (beside := file.with_name(f"{module}.py")).is_file():
            _add_outside(beside, files)


def _imported_by(file: Path) -> Iterator[str]:
    """Dotted names that the imports of a file may mean. The package of a relative import is the file's folder."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = ".".join(part for part in (file.parent.name if node.level else "", node.module or "") if part)
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def kinds_of(knobs: object) -> Iterator[type[Knobs]]:
    """Classes of all knobs inside `knobs`, at any depth."""
    if isinstance(knobs, Knobs):
        yield type(knobs)
        knobs = [getattr(knobs, name) for name in type(knobs).model_fields]
    if isinstance(knobs, Mapping):
        knobs = knobs.values()
    if isinstance(knobs, Iterable) and not isinstance(knobs, str | bytes):
        for each in knobs:
            yield from kinds_of(each)


def syntax_of(source: str) -> str:
    """The syntax tree of Python code as text, equal for codes that differ only in comments, layout and docstrings.

    A string that is a statement is a docstring, also after a field. Empty fields of the tree are left out, because
    newer versions of Python add empty fields. So the text is the same on every supported Python.
    """
    return _text(ast.parse(source))


def _text(node: Any) -> str:
    if isinstance(node, ast.ImportFrom) and node.module:
        # The same code has the same text in a clone and in an installation.
        node.module = node.module.removeprefix("segpref.")
    if isinstance(node, ast.JoinedStr):
        node = ast.JoinedStr(_joined(node.values))
    if isinstance(node, ast.AST):
        fields = ((name, getattr(node, name, None)) for name in sorted(node._fields) if name not in _NO_MEANING)
        content = (f"{name}={text}" for name, value in fields if value is not None and (text := _text(value)) != "[]")
        return f"{type(node).__name__}({','.join(content)})"
    if isinstance(node, list):
        return f"[{','.join(_text(each) for each in node if not _is_docstring(each))}]"
    return repr(node)


_NO_MEANING = ("kind", "type_comment", "type_ignores")
"""Fields of the syntax tree that hold the spelling of strings (`u""`) and type comments."""


def _joined(parts: list[ast.expr]) -> list[ast.expr]:
    """Parts of an f-string, neighbouring texts joined, because versions of Python split the texts differently."""
    joined: list[ast.expr] = []
    for part in parts:
        if isinstance(part, ast.Constant) and joined and isinstance(joined[-1], ast.Constant):
            joined[-1] = ast.Constant(str(joined[-1].value) + str(part.value))
        else:
            joined.append(part)
    return [part for part in joined if not (isinstance(part, ast.Constant) and part.value == "")]


def _is_docstring(node: Any) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


@lru_cache(maxsize=1024)
def _hash(file: Path, changed: int) -> str:
    """SHA-256 of the syntax of a Python file, or of the bytes of any other file.

    `changed` is the modification time in ns, by which the cache tells two contents of a file apart.
    """
    content = syntax_of(file.read_text("utf-8")).encode() if file.suffix == ".py" else file.read_bytes()
    return hashlib.sha256(content).hexdigest()


def _root() -> Path:
    """Folder that holds the packages `pipeline` and `stages`."""
    found = importlib.util.find_spec(PACKAGE)
    assert found is not None
    assert found.submodule_search_locations
    return Path(found.submodule_search_locations[0]).parent


def _packages() -> list[str]:
    """Names of the packages whose imports are followed. An importable `stages` counts."""
    if PREFIX:
        return [PREFIX.rstrip(".")]
    return [PACKAGE, *(["stages"] if importlib.util.find_spec("stages") else [])]


def _stamp(root: Path) -> Stamp:
    folders = [root / name.rpartition(".")[2] for name in (PACKAGE, "stages")]
    files = sorted(file for folder in folders for file in folder.rglob("*.py"))
    return tuple((str(file), (stat := file.stat()).st_mtime_ns, stat.st_size) for file in files)


@lru_cache(maxsize=1)
def _import_graph(stamp: Stamp) -> ImportGraph:
    """Graph of the imports between modules. Imports for type checkers never run and are left out."""
    import grimp

    first, *others = _packages()
    # No cache on disk: a cache would litter the user's project, and building the graph takes a tenth of a second.
    return grimp.build_graph(first, *others, exclude_type_checking_imports=True, cache_dir=None)


def _file(root: Path, module: str) -> Path:
    """Path of the file of a module that is not a package."""
    return root.joinpath(*module.removeprefix(PREFIX).split(".")).with_suffix(".py")


def _is_package(root: Path, module: str) -> bool:
    return not _file(root, module).is_file()


def _other_files(folder: Path) -> Iterator[Path]:
    """Files in a folder that are not Python, such as the report's page and style sheet."""
    for file in folder.iterdir():
        if file.is_file() and file.suffix not in (".py", ".pyc") and not file.name.startswith("."):
            yield file


def _named(root: Path, file: Path) -> str:
    for base in (root, Path.cwd(), *map(Path, sys.path)):
        if file.is_relative_to(base):
            return file.relative_to(base).as_posix()
    return file.name
