"""Measures of a student during training, and the rules that stop training without labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from pipeline.measures.intervals import mean_over_groups
from pipeline.measures.overlap import dice_to
from pipeline.measures.surfaces import surface_metrics
from pipeline.seeding import numpy_generator
from pipeline.segmenter.logits import class_logits
from pipeline.segmenter.loop import HistoryRow
from pipeline.segmenter.segmenter import Segmenter
from pipeline.store.cases import LabelledCases, fits
from pipeline.store.schema import UNKNOWN
from pipeline.students.drift import drift
from pipeline.students.pair_loss import disagreement_region
from pipeline.students.pool_batches import PoolBatches

if TYPE_CHECKING:
    from pipeline.students.objectives.objective import BoundObjective
    from pipeline.students.student import Stopping

PROBE = 32
"""Largest number of pool cases on which a trained student is compared with the base: the first cases of the pool.

MAPO matches beta on as many images, rounded up to whole batches.
"""


def validation_measures(segmenter: Segmenter, cases: LabelledCases) -> HistoryRow:
    """Dice and ASSD: means over foreground classes, then over the cases of a patient, then over patients.

    Both are measured on the working grid. A case whose label is unknown everywhere is left out. Raises `BadInput` if no
    case is left.

    The ASSD is in mm, or in voxels if no case has a spacing. The ASSD is null if only some cases have a spacing, and if
    a case is larger than the window, because the surfaces of a whole case would have to be in memory.
    """
    cases = cases.known()
    if not all(fits(image.shape[1:], segmenter.window) for image in cases.images):
        return {"validation_dice": segmenter.dice(cases), "validation_assd": None}
    dice, assd, classes = [], [], segmenter.architecture.classes
    for case, image, label in zip(cases.cases, cases.images, cases.labels, strict=True):
        truth, predicted = label[:], segmenter.labels(image)
        dice.append(dice_to(truth, predicted[None], classes)[0])
        # Voxels without a label are removed from the prediction too, or a false surface would arise.
        known = truth != UNKNOWN
        spacing, distances = case.spacing_mm or (1.0,) * truth.ndim, []
        for one in range(1, classes):
            distances.append(surface_metrics((predicted == one) & known, truth == one, spacing, 0.0)[2])
        assd.append(float(np.mean(distances)))
    # A mean over mm and voxels has no unit.
    one_unit = len({case.spacing_mm is None for case in cases.cases}) == 1
    return {
        "validation_dice": mean_over_groups(dice, cases.groups),
        "validation_assd": mean_over_groups(assd, cases.groups) if one_unit else None,
    }


def held_out_measures(pool: PoolBatches, network: nn.Module, bound: BoundObjective) -> HistoryRow:
    """Means over held-out images, without flips, of drift and reward accuracy: the input of the stopping rules.

    Keys are `held_out/kl_inside`, `held_out/kl_outside`, `held_out/volume_ratio` and `held_out/accuracy`. A measure
    is absent if no image gives a value.
    """
    sums: dict[str, list[float]] = {}
    # The same crops at every evaluation: the measures change with the student alone.
    crops = numpy_generator(pool.seed, "watched")
    for case in pool.pool:
        with torch.no_grad():
            batch = pool.batch([(case, ())], network, crops)
            row = drift(batch)
            if len(batch.image):
                row["accuracy"] = bound(batch)[1].get("rewards/accuracies")
        # An image without a disagreement has no KL inside, and is left out of the mean.
        for key, value in row.items():
            if value is not None:
                sums.setdefault(f"held_out/{key}", []).append(value)
    return {key: sum(values) / len(values) for key, values in sums.items()}


def stop_rule(stopping: Stopping | None) -> Callable[[HistoryRow], str | None]:
    """A function that gets the rows of a history in order, and returns the reason to stop, or None.

    The function remembers the best reward accuracy for `patience`. A rule ignores a row that lacks the measure of the
    rule.
    """
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
            # An accuracy of 1 cannot rise, so waiting at 1 says nothing.
            best, waited = (accuracy, 0) if accuracy > best or accuracy >= 1 else (best, waited + 1)
            if waited >= stopping.patience:
                return f"reward accuracy on held-out pairs not above {best:.3g} for {waited} evaluations"
        return None

    return rule


def moved_on_disagreement(pool: PoolBatches, policy: nn.Module) -> dict[str, float | None]:
    """Change of the student on the union of an image's disagreement regions, over the first `PROBE` cases.

    `base_margin_on_disagreement` is the median difference of the base's two largest logits. `flipped_share` is the
    share of voxels on which the student predicts another class than the base. Both are None if no case has a
    disagreement, which crops of large cases may miss.
    """
    margins, flipped, total = [], 0, 0
    crops = numpy_generator(pool.seed, "probe")
    for case in pool.pool[:PROBE]:
        with torch.no_grad():
            batch = pool.batch([(case, ())], policy, crops)
        region = disagreement_region(batch.chosen, batch.rejected).any(0)
        reference, logits = class_logits(batch.reference)[0], class_logits(batch.logits)[0]
        top = reference.float().topk(2, dim=0).values
        margins.append((top[0] - top[1])[region])
        # Voxels are counted over all cases together, so a case with a large D weighs more.
        flipped += int((reference.argmax(0) != logits.argmax(0))[region].sum())
        total += int(region.sum())
    if not total:
        return {"base_margin_on_disagreement": None, "flipped_share": None}
    return {"base_margin_on_disagreement": float(torch.cat(margins).median()), "flipped_share": flipped / total}
