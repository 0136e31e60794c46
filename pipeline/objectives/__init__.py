"""The objectives: one file per kind, and the union that lists them."""

from typing import Annotated

from pydantic import Field

from pipeline.objectives.distill import Distill
from pipeline.objectives.full import Full
from pipeline.objectives.mapo import Mapo
from pipeline.objectives.mean_teacher import MeanTeacher
from pipeline.objectives.preference import Preference
from pipeline.objectives.proposal import Proposal
from pipeline.objectives.pseudo_label import PseudoLabel
from pipeline.objectives.sft import Imitation
from pipeline.objectives.supervised import Supervised
from pipeline.objectives.threshold import TunedThreshold
from pipeline.objectives.validation_labels import ValidationLabels

Objective = Annotated[
    Preference
    | Mapo
    | Imitation
    | Distill
    | PseudoLabel
    | MeanTeacher
    | Supervised
    | ValidationLabels
    | Full
    | TunedThreshold
    | Proposal,
    Field(discriminator="kind"),
]
