"""Metrics of a case, one row per foreground class."""

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
    """Metrics of students and of the base segmenter on test and validation cases."""

    nsd_tolerance: Annotated[float, Field(ge=0)]
    """Largest distance to the other surface at which a surface voxel counts as right in NSD. The unit is mm, or px if
    the spacing is unknown."""
    bootstrap: Annotated[int, Field(gt=0)] = 2000
    """Number of resamples of the patients behind each interval."""
    worse_by: Annotated[float, Field(ge=0)] = 0.02
    """A case counts as worse if its Dice is more than this value below the Dice of the base segmenter. 0.02 is 2
    points."""
    components: bool = False
    """Whether F1 of connected components is measured too. Meant for data with many objects per image."""
    component_overlap: Annotated[float, Field(ge=0.5, lt=1)] = 0.5
    """A predicted component matches a true component if their IoU is above this value. From 0.5 on, matches are
    unique."""


def case_metrics(
    prediction: np.ndarray, truth: np.ndarray, n_classes: int, spacing_mm: Sequence[float] | None, knobs: Evaluation
) -> list[dict]:
    """Metric columns of `schema.EVALUATION` for label maps u8 `[*space]`, one row per foreground class.

    Voxels that are 255 in the truth belong to neither mask, so a seam of such voxels cuts an object into two
    components. Unknown spacing counts as 1, and the unit is then px. The volume error is 2 (V - T) / (V + T). The error
    and its absolute value are null if the truth is empty. `f1` is null unless `knobs.components`. Empty masks: see
    `mask_dice`, `surface_metrics` and `component_f1`. Raises `BadInput` for unequal shapes.
    """
    if prediction.shape != truth.shape:
        raise BadInput(
            f"expected a prediction of the truth's shape {truth.shape}, found {prediction.shape}; "
            "predictions are measured on the grid of the source image"
        )
    known = truth != UNKNOWN
    # Six digits, because headers of NIfTI hold single precision: three voxels of 0.6 mm are 1.80000007 mm, and would be
    # beyond a tolerance of 1.8 mm.
    spacing = tuple(float(f"{edge:.6g}") for edge in spacing_mm or (1.0,) * truth.ndim)
    rows = []
    for label in range(1, n_classes):
        predicted, true = (prediction == label) & known, truth == label
        volume, true_volume = int(np.count_nonzero(predicted)), int(np.count_nonzero(true))
        error = 2 * (volume - true_volume) / (volume + true_volume) if true_volume else None
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
                "volume_error": error,
                "absolute_volume_error": None if error is None else abs(error),
                "truth_empty": true_volume == 0,
                "prediction_empty": volume == 0,
            }
        )
    return rows
