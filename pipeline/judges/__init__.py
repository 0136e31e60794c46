"""The judges: one file per kind, and the union that lists them."""

from typing import Annotated

from pydantic import Field

from pipeline.judges.agreement import Agreement
from pipeline.judges.entropy import Entropy
from pipeline.judges.error_map import ErrorMap
from pipeline.judges.expected_dice import ExpectedDice
from pipeline.judges.likelihood import Likelihood
from pipeline.judges.oracle import Oracle
from pipeline.judges.pairwise import Pairwise
from pipeline.judges.quality import Quality
from pipeline.judges.rca import Rca
from pipeline.judges.shape import Shape
from pipeline.judges.synthetic import Synthetic
from pipeline.judges.table import Table

Judge = Annotated[
    Agreement
    | Entropy
    | ErrorMap
    | ExpectedDice
    | Likelihood
    | Oracle
    | Pairwise
    | Quality
    | Rca
    | Shape
    | Synthetic
    | Table,
    Field(discriminator="kind"),
]
