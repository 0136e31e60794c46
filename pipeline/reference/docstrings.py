"""What each knob means: the docstrings below the fields of a block, from the source code."""

from __future__ import annotations

import ast
import inspect
import sys
from functools import cache
from itertools import pairwise

from pipeline.knobs import Knobs


def docstrings(block: type[Knobs]) -> dict[str, str]:
    """Docstring of every field of a block that has one, by the name of the field.

    A field has the docstring of the class that declares it. A class that declares the field again without a docstring
    keeps the one above.
    """
    found: dict[str, str] = {}
    for cls in reversed(block.__mro__):
        if issubclass(cls, Knobs):
            found |= _declared(cls)
    return {name: found[name] for name in block.model_fields if name in found}


def _declared(cls: type[Knobs]) -> dict[str, str]:
    """Docstrings below the annotated names in the body of a class."""
    found = {}
    for line, below in pairwise(_definition(cls).body):
        match line, below:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                found[name] = inspect.cleandoc(text)
    return found


def _definition(cls: type) -> ast.ClassDef:
    """Where the source of its module defines a class."""
    found: ast.AST = _parsed(inspect.getsource(sys.modules[cls.__module__]))
    for name in cls.__qualname__.split("."):
        if name != "<locals>":
            inside = (each for each in ast.walk(found) if each is not found)
            found = next(
                each for each in inside if isinstance(each, ast.ClassDef | ast.FunctionDef) and each.name == name
            )
    assert isinstance(found, ast.ClassDef)
    return found


@cache
def _parsed(source: str) -> ast.Module:
    return ast.parse(source)
