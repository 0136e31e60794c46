"""Kinds of judges: one file per kind, and the union `Judge` that lists the kinds."""

from typing import Annotated

from pipeline.judges.judge import JudgeKnobs
from pipeline.judges.kinds.agreement import Agreement
from pipeline.judges.kinds.entropy import Entropy
from pipeline.judges.kinds.error_map import ErrorMap
from pipeline.judges.kinds.expected_dice import ExpectedDice
from pipeline.judges.kinds.expert import Expert
from pipeline.judges.kinds.fixed import Fixed
from pipeline.judges.kinds.likelihood import Likelihood
from pipeline.judges.kinds.oracle import Oracle
from pipeline.judges.kinds.pairwise import Pairwise
from pipeline.judges.kinds.quality import Quality
from pipeline.judges.kinds.rca import Rca
from pipeline.judges.kinds.shape import Shape
from pipeline.judges.kinds.synthetic import Synthetic
from pipeline.judges.kinds.table import ScoreTable
from pipeline.own_kinds import Family

Judge = Annotated[
    Agreement
    | Entropy
    | ErrorMap
    | ExpectedDice
    | Expert
    | Fixed
    | Likelihood
    | Oracle
    | Pairwise
    | Quality
    | Rca
    | Shape
    | Synthetic
    | ScoreTable,
    Family("judge", JudgeKnobs),
]
