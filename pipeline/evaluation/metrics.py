"""What is measured on a test case."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import Field

from pipeline.errors import BadInput
from pipeline.knobs import Knobs
from pipeline.measures.overlap import mask_dice
from pipeline.measures.surfaces import component_f1, surface_metrics
from pipeline.store.schema import UNKNOWN


class Evaluation(Knobs):
    """How students and the base segmenter are measured on test cases."""

    nsd_tolerance: Annotated[float, Field(ge=0)]
    """Surface voxels this close to the other surface count as right in NSD; mm, or px where spacing is unknown."""
    bootstrap: Annotated[int, Field(gt=0)] = 2000
    """Resamples of the patients behind each interval."""
    worse_by: Annotated[float, Field(ge=0)] = 0.02
    """A case is worse if its Dice is more than this below the base segmenter's."""
    components: bool = False
    """Whether F1 of connected components is measured too: for data with many objects in an image."""
    component_overlap: Annotated[float, Field(ge=0.5, lt=1)] = 0.5
    """A predicted component matches a true one if their IoU is above this; from one half on, a match is unique."""


def case_metrics(
    prediction: np.ndarray, truth: np.ndarray, n_classes: int, spacing_mm: Sequence[float] | None, knobs: Evaluation
) -> list[dict]:
    """One row per foreground class for label maps u8 `[*space]`: the metric columns of `schema.EVALUATION`.

    Voxels that are 255 in the truth belong to neither mask; where they run through an object they cut it in two
    components. Unknown spacing counts as 1, and the unit is then px. The volume error is 2 (V - T) / (V + T), null
    where the truth is empty; `f1` is null unless `knobs.components`. Raises `BadInput` for unequal shapes.
    """
    if prediction.shape != truth.shape:
        raise BadInput(
            f"expected a prediction of the truth's shape {truth.shape}, found {prediction.shape}; "
            "predictions are measured on the grid of the source image"
        )
    known = truth != UNKNOWN
    spacing = spacing_mm or (1.0,) * truth.ndim
    rows = []
    for label in range(1, n_classes):
        predicted, true = (prediction == label) & known, truth == label
        volume, true_volume = int(np.count_nonzero(predicted)), int(np.count_nonzero(true))
        nsd, hd95, assd = surface_metrics(predicted, true, spacing, knobs.nsd_tolerance)
        rows.append(
            {
                "class": label,
                "dice": mask_dice(predicted, true),
                "nsd": nsd,
                "hd95": hd95,
                "assd": assd,
                "f1": component_f1(predicted, true, knobs.component_overlap) if knobs.components else None,
                "distance_unit": "mm" if spacing_mm else "px",
                "volume_error": 2 * (volume - true_volume) / (volume + true_volume) if true_volume else None,
                "truth_empty": true_volume == 0,
                "prediction_empty": volume == 0,
            }
        )
    return rows
