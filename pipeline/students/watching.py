"""What is watched of a student while it is trained, and when to stop without labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from pipeline.measures.overlap import dice_to
from pipeline.measures.surfaces import surface_metrics
from pipeline.seeding import numpy_generator
from pipeline.segmenter.loop import HistoryRow
from pipeline.segmenter.segmenter import Segmenter
from pipeline.store.cases import LabelledCases, fits
from pipeline.store.schema import UNKNOWN
from pipeline.students.pair_loss import disagreement_region
from pipeline.students.pool_batches import PoolBatches, drift

if TYPE_CHECKING:
    from pipeline.students.objectives.objective import BoundObjective
    from pipeline.students.student import Stopping

PROBE = 32
"""Pool cases on which a trained student is compared with its base."""


def validation_measures(segmenter: Segmenter, cases: LabelledCases) -> HistoryRow:
    """Means over cases and foreground classes, on the working grid: `validation_dice` and `validation_assd`.

    ASSD is in mm, or in voxels where the spacing is unknown. ASSD is null where cases of both kinds meet, and where a
    case is larger than the window, because the surfaces of the case would have to be held whole.
    """
    if not all(fits(image.shape[1:], segmenter.window) for image in cases.images):
        return {"validation_dice": segmenter.dice(cases), "validation_assd": None}
    dice, assd, classes = [], [], segmenter.architecture.classes
    for case, image, label in zip(cases.cases, cases.images, cases.labels, strict=True):
        truth, predicted = label[:], segmenter.labels(image)
        dice.append(dice_to(truth, predicted[None], classes)[0])
        known = truth != UNKNOWN
        spacing = case.spacing_mm or (1.0,) * truth.ndim
        for one in range(1, classes):
            assd.append(surface_metrics((predicted == one) & known, truth == one, spacing, 0.0)[2])
    one_unit = len({case.spacing_mm is None for case in cases.cases}) == 1
    return {"validation_dice": float(np.mean(dice)), "validation_assd": float(np.mean(assd)) if one_unit else None}


def watched(pool: PoolBatches, network: nn.Module, bound: BoundObjective) -> HistoryRow:
    """What label-free stopping looks at: means over held-out images, unflipped, of drift and of reward accuracy."""
    sums: dict[str, list[float]] = {}
    crops = numpy_generator(pool.seed, "watched")
    for case in pool.pool:
        with torch.no_grad():
            batch = pool.batch([(case, ())], network, crops)
            row = drift(batch)
            if len(batch.image):
                row["accuracy"] = bound(batch)[1].get("rewards/accuracies")
        for key, value in row.items():
            if value is not None:
                sums.setdefault(f"held_out/{key}", []).append(value)
    return {key: sum(values) / len(values) for key, values in sums.items()}


def stop_rule(stopping: Stopping | None) -> Callable[[HistoryRow], str | None]:
    """A function of a history row that gives the reason to stop, or None; it remembers the best reward accuracy."""
    best, waited = -1.0, 0

    def rule(row: HistoryRow) -> str | None:
        nonlocal best, waited
        if stopping is None:
            return None
        kl, ratio = row.get("held_out/kl_outside"), row.get("held_out/volume_ratio")
        accuracy = row.get("held_out/accuracy")
        if stopping.kl is not None and kl is not None and kl > stopping.kl:
            return f"KL outside the disagreement regions {kl:.3g} above {stopping.kl:g}"
        if stopping.volume_ratio is not None and ratio is not None:
            low, high = stopping.volume_ratio
            if not low <= ratio <= high:
                return f"volume ratio {ratio:.3g} outside {low:g} to {high:g}"
        if stopping.patience is not None and accuracy is not None:
            best, waited = (accuracy, 0) if accuracy > best else (best, waited + 1)
            if waited >= stopping.patience:
                return f"reward accuracy on held-out pairs not above {best:.3g} for {waited} evaluations"
        return None

    return rule


def moved_on_disagreement(pool: PoolBatches, policy: nn.Module) -> dict[str, float | None]:
    """Median base margin on D, and the share of D on which the student predicts another class than the base."""
    margins, flipped, total = [], 0, 0
    crops = numpy_generator(pool.seed, "probe")
    for case in pool.pool[:PROBE]:
        with torch.no_grad():
            batch = pool.batch([(case, ())], policy, crops)
        region = disagreement_region(batch.chosen, batch.rejected).any(0)
        reference, logits = (
            torch.cat([torch.zeros_like(x), x], dim=1)[0] if x.shape[1] == 1 else x[0]
            for x in (batch.reference, batch.logits)
        )
        top = reference.float().topk(2, dim=0).values
        margins.append((top[0] - top[1])[region])
        flipped += int((reference.argmax(0) != logits.argmax(0))[region].sum())
        total += int(region.sum())
    return {
        "base_margin_on_disagreement": float(torch.cat(margins).median()),
        "flipped_share": flipped / max(1, total),
    }
