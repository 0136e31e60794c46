"""Base class of every block of `params.yaml`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_]*$", max_length=100)]
"""A name chosen in `params.yaml`. The name becomes a file name, a stage name and a column name."""


NOTHING = Path("raw/none")
"""Path of an empty file, for knobs that read no file. DVC needs a path that exists."""


class Knobs(BaseModel):
    """A frozen, picklable block of `params.yaml`. Unknown keys and wrong types are errors.

    The `repr` of a block is its provenance.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
