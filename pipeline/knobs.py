"""Base class of every block of `params.yaml`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, StringConstraints

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_]*$", max_length=100)]
"""A name chosen in `params.yaml`. The name becomes a file name, a stage name and a column name."""


NOTHING = Path("raw/none")
"""Path of a file that is not read, for knobs that read no file. DVC needs a path that exists."""
MEAN = "mean"
"""In place of the name of a proposal: the mean probability of the proposals."""
BEST = "best"
"""In place of the name of a proposal: the best of all."""


class Knobs(BaseModel):
    """A frozen, picklable block of `params.yaml`. Unknown keys and wrong types are errors.

    The `repr` of a block is its provenance. The docstring below a field says what the knob means. Docstrings are read
    by `pipeline.reference.docstrings` alone: with `use_attribute_docstrings` every process would read all of them,
    which takes about as long as to import Polars.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def blocks_in(annotation: Any) -> Iterator[type[Knobs]]:
    """Classes of the blocks that a value of this type may hold."""
    if isinstance(annotation, type) and issubclass(annotation, Knobs):
        yield annotation
    for part in get_args(annotation):
        yield from blocks_in(part)


def kind_of(block: type[Knobs]) -> str | None:
    """The value of the field `kind` of a block of a family; None for other blocks."""
    field = block.model_fields.get("kind")
    return None if field is None else str(get_args(field.annotation)[0])
