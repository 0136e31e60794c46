"""Samplers of proposals: one file per kind, and the union `Sampler` that lists the kinds."""

from typing import Annotated

from pipeline.own_kinds import Family
from pipeline.proposals.samplers.consensus import ConsensusSampler
from pipeline.proposals.samplers.ensemble import Ensemble
from pipeline.proposals.samplers.imported import Imported
from pipeline.proposals.samplers.mc_dropout import MCDropout
from pipeline.proposals.samplers.mean import Mean
from pipeline.proposals.samplers.morphology import Morphology
from pipeline.proposals.samplers.regions import RegionsSampler
from pipeline.proposals.samplers.snapshots import Snapshots
from pipeline.proposals.samplers.threshold import Threshold
from pipeline.proposals.samplers.tta import TTA

Sampler = Annotated[
    MCDropout
    | TTA
    | Threshold
    | Ensemble
    | Mean
    | Snapshots
    | Morphology
    | Imported
    | ConsensusSampler
    | RegionsSampler,
    Family("sampler", ("settings", "draw")),
]
