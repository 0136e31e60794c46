"""The base of everything that `params.yaml` configures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")]
"""A name chosen in `params.yaml`: it becomes a file name, a stage name and a column name."""


NOTHING = Path("raw/none")
"""An empty file that stands for "nothing is read": DVC needs a path that exists."""


class Knobs(BaseModel):
    """A frozen block of `params.yaml`: unknown keys and wrong types are errors; picklable; its `repr` is provenance."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
