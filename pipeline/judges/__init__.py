"""The judges: one file per kind, and the union that lists them."""

from typing import Annotated

from pydantic import Field

from pipeline.judges.agreement import Agreement
from pipeline.judges.expected_dice import ExpectedDice
from pipeline.judges.oracle import Oracle
from pipeline.judges.table import Table

Judge = Annotated[Agreement | ExpectedDice | Oracle | Table, Field(discriminator="kind")]
