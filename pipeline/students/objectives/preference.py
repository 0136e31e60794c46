"""Preference objectives: any link with any normaliser; DPO and RN-DPO are two settings of it."""

from __future__ import annotations

from typing import ClassVar, Literal

from pipeline.students.objectives.objective import Feed
from pipeline.students.objectives.pair_objective import PairObjective


class Preference(PairObjective):
    """`link(beta * delta / N(D))` on the pairs of a pair set (Kalisch et al., arXiv 2601.23222: N = |D|)."""

    kind: Literal["preference"]
    feeds: ClassVar[Feed] = "pairs"
