"""Kinds of the user's own: classes in the folder `kinds` of a project join the families of the library."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from importlib import import_module, invalidate_caches
from operator import or_
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema

from pipeline.errors import BadInput
from pipeline.knobs import Knobs, blocks_in, kind_of

FOLDER = "kinds"
"""Folder of a project, and name of the package of its modules."""


@dataclass(frozen=True)
class Family:
    """Annotation of the union of a family, whose members `kind` tells apart. Own kinds of a project join the union."""

    name: str
    """What a member is called in errors, such as `judge`."""
    like: type | tuple[str, ...]
    """Base class of the members, or the methods that a member has."""

    def __post_init__(self) -> None:
        _FAMILIES.append(self)

    def has(self, kind: type[Knobs]) -> bool:
        """Whether a class with a field `kind` is a member."""
        if isinstance(self.like, tuple):
            return all(callable(getattr(kind, method, None)) for method in self.like)
        return issubclass(kind, self.like)

    def __get_pydantic_core_schema__(self, union: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Schema of the library's kinds and of the own kinds that are loaded now."""
        members = list(get_args(union))
        for own in filter(self.has, _OWN):
            if same := [member for member in members if kind_of(member) == kind_of(own)]:
                raise BadInput(
                    f"{_place(own)}: expected a new name, found kind '{kind_of(own)}', which {same[0].__module__} has; "
                    "rename the kind"
                )
            members.append(own)
        return handler.generate_schema(Annotated[reduce(or_, members), Field(discriminator="kind")])


_FAMILIES: list[Family] = []
_OWN: list[type[Knobs]] = []
"""Own kinds of the project whose knobs were read last."""
_built = True
"""Whether the schemas of all blocks hold these kinds. A kind that is refused stops the building."""


def load_own_kinds(project: Path) -> None:
    """Import the modules in the folder `kinds` of a project. Their classes with a field `kind` join the families.

    The modules belong to the package `kinds`, so that worker processes can import them. A module whose name begins with
    `_` is a helper of the others. Raises `BadInput` for a module that cannot be imported, for a class that belongs to
    no family and for a kind that the library has.
    """
    global _built
    found = list(_imported(project.resolve()))
    if found == _OWN and _built:
        return
    _OWN[:], _built = found, False
    rebuilt: set[type[Knobs]] = set()
    for block in [*_below(Knobs)]:
        _rebuild(block, rebuilt)
    _built = True


def _imported(project: Path) -> Iterator[type[Knobs]]:
    folder = project / FOLDER
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == FOLDER and str(getattr(module, "__file__", None)) not in map(
            str, folder.glob("*.py")
        ):
            del sys.modules[name]
    files = [file for file in sorted(folder.glob("*.py")) if not file.name.startswith("_")]
    if files and str(project) not in sys.path:
        sys.path.insert(0, str(project))
        invalidate_caches()
    for file in files:
        try:
            module = import_module(f"{FOLDER}.{file.stem}")
        except Exception as error:  # whatever a user's module raises
            raise BadInput(
                f"{FOLDER}/{file.name}: expected a module that can be imported, found {type(error).__name__}: {error}; "
                "correct the module"
            ) from error
        for each in vars(module).values():
            own = isinstance(each, type) and issubclass(each, Knobs) and each.__module__ == module.__name__
            if own and "kind" in each.model_fields:
                if not any(family.has(each) for family in _FAMILIES):
                    raise BadInput(
                        f"{_place(each)}: expected a member of a family "
                        f"({', '.join(sorted({family.name for family in _FAMILIES}))}), found a class with a `kind` "
                        "that derives from none of their base classes; see docs/extending.md"
                    )
                yield each


def _below(kind: type[Knobs]) -> Iterator[type[Knobs]]:
    for each in kind.__subclasses__():
        yield each
        yield from _below(each)


def _rebuild(block: type[Knobs], rebuilt: set[type[Knobs]]) -> None:
    """Build the schema of a block anew, after those of the blocks inside, which the schema holds."""
    if block in rebuilt:
        return
    rebuilt.add(block)
    for field in block.model_fields.values():
        for inside in blocks_in(field.annotation):
            _rebuild(inside, rebuilt)
    block.model_rebuild(force=True)


def _place(own: type[Knobs]) -> str:
    return f"{own.__module__.replace('.', '/')}.py: {own.__name__}"
