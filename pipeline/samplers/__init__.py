"""The samplers: one file per kind, and the union that lists them."""

from typing import Annotated

from pydantic import Field

from pipeline.samplers.consensus import Consensus
from pipeline.samplers.ensemble import Ensemble
from pipeline.samplers.imported import Imported
from pipeline.samplers.mc_dropout import MCDropout
from pipeline.samplers.morphology import Morphology
from pipeline.samplers.snapshots import Snapshots
from pipeline.samplers.threshold import Threshold
from pipeline.samplers.tta import TTA

Sampler = Annotated[
    MCDropout | TTA | Threshold | Ensemble | Snapshots | Morphology | Imported | Consensus, Field(discriminator="kind")
]
