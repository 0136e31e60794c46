"""What an imported nnU-Net needs to go back to nnU-Net: plans and data set, kept among the arguments of its network."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.cases.nnunet_plans import Plans
    from pipeline.segmenter.architecture import Architecture
    from pipeline.store.cases import CaseStore

ORIGIN = "origin"
"""Argument of a network of nnU-Net's plans that holds the origin. `network.json` goes with every copy of the weights:
to students, exports and further rounds."""


@dataclass(frozen=True)
class Origin:
    """One configuration of a results folder, and the preparation of images that was compared with its plans."""

    configuration: str
    plans: str
    """Content of `plans.json` as text, because JSON of this project sorts keys and has no NaN."""
    dataset: str
    """Content of `dataset.json` as text."""
    preprocess: dict[str, Any]
    """Block `preprocess` of the cases that the model was imported for."""
    files: str | None
    """Family of the image files of these cases, as in `input.json`."""

    @classmethod
    def of(cls, plans: Plans, cases: CaseStore) -> Origin:
        """Origin of a network of plans that fit the cases."""
        plans_text, dataset_text = json.dumps(plans.plans), json.dumps(plans.dataset)
        return cls(plans.name, plans_text, dataset_text, cases.info["preprocess"], cases.info["files"])

    @classmethod
    def in_(cls, architecture: Architecture) -> Origin | None:
        """Origin of a network; None for a network that does not come from nnU-Net."""
        found = architecture.arguments.get(ORIGIN)
        return None if found is None else cls(**found)

    def kept(self, architecture: Architecture) -> Architecture:
        """The architecture with this origin."""
        return replace(architecture, arguments={**architecture.arguments, ORIGIN: asdict(self)})


def without_origin(architecture: Architecture) -> Architecture:
    """The architecture for a model card, without copies of files."""
    return replace(architecture, arguments={k: v for k, v in architecture.arguments.items() if k != ORIGIN})
