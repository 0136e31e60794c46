"""Objectives of students: one file per kind, and the union `Objective` that lists the kinds.

Torch is imported inside functions, so that reading `params.yaml` stays fast.
"""

from typing import Annotated

from pipeline.own_kinds import Family
from pipeline.students.objectives.distill import Distill
from pipeline.students.objectives.full import Full
from pipeline.students.objectives.imitate import Imitate
from pipeline.students.objectives.mapo import Mapo
from pipeline.students.objectives.mean_teacher import MeanTeacher
from pipeline.students.objectives.objective import ObjectiveKnobs
from pipeline.students.objectives.preference import Preference
from pipeline.students.objectives.proposal import Proposal
from pipeline.students.objectives.pseudo_label import PseudoLabel
from pipeline.students.objectives.sft import ImitateChosen
from pipeline.students.objectives.supervised import Supervised
from pipeline.students.objectives.threshold import TunedThreshold
from pipeline.students.objectives.validation_labels import ValidationLabels

Objective = Annotated[
    Preference
    | Mapo
    | ImitateChosen
    | Imitate
    | Distill
    | PseudoLabel
    | MeanTeacher
    | Supervised
    | ValidationLabels
    | Full
    | TunedThreshold
    | Proposal,
    Family("objective", ObjectiveKnobs),
]
