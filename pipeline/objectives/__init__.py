"""The objectives: one file per kind, and the union that lists them."""

from typing import Annotated

from pydantic import Field

from pipeline.objectives.full import Full
from pipeline.objectives.preference import Preference
from pipeline.objectives.sft import Imitation
from pipeline.objectives.supervised import Supervised

Objective = Annotated[Preference | Imitation | Supervised | Full, Field(discriminator="kind")]
