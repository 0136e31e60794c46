"""Drift of the student from its reference on a batch, inside and outside the disagreement regions."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.segmenter.logits import predicted_classes
from pipeline.segmenter.loop import HistoryRow
from pipeline.store import schema
from pipeline.students.batch import PoolBatch
from pipeline.students.pair_loss import disagreement_region, kl_to_reference


def regions(batch: PoolBatch) -> tuple[Tensor, Tensor]:
    """For each image, the union of the disagreement regions of its pairs, and the valid voxels outside the union.

    Both are bool `[image, *space]`.
    """
    # Only batches of tests and benchmarks lack `known`.
    if batch.known is not None:
        known = batch.known.clone()
    else:
        known = torch.zeros(batch.logits[:, 0].shape, dtype=torch.bool, device=batch.logits.device)
    union = torch.zeros_like(known)
    for pair, image in enumerate(batch.image.tolist()):
        if batch.known is None:
            # Masks are 255 in the padding, so a voxel that a mask labels is inside the image.
            known[image] |= batch.chosen[pair] != schema.UNKNOWN
        # A union: a voxel on which several pairs differ counts once.
        union[image] |= disagreement_region(batch.chosen[pair], batch.rejected[pair])
    return union, known & ~union


def kl_outside(batch: PoolBatch) -> Tensor:
    """KL(policy || reference) in nats with gradient, mean over the valid voxels outside the disagreement regions.

    0 if no voxel is outside.
    """
    _, outside = regions(batch)
    kl = kl_to_reference(batch.logits, batch.reference)
    # Nothing is outside if chosen is the complement of rejected.
    return (kl * outside).sum() / outside.sum().clamp(min=1)


def drift(batch: PoolBatch) -> HistoryRow:
    """Drift from the reference: `kl_inside`, `kl_outside` and `volume_ratio`.

    The first two are the mean KL(policy || reference) in nats, inside and outside the union of the disagreement
    regions. `kl_inside` is null if every D is empty, and `kl_outside` is 0 if no voxel is outside. `volume_ratio` is
    the predicted foreground volume over that of the reference, null if the reference predicts no foreground.
    """
    with torch.no_grad():
        logits = batch.logits.detach()
        kl = kl_to_reference(logits, batch.reference)
        union, outside = regions(batch)
        row: HistoryRow = {
            "kl_inside": float((kl * union).sum() / union.sum()) if union.any() else None,
            "kl_outside": float((kl * outside).sum() / outside.sum().clamp(min=1)),
        }
        # A ratio to the reference is 1 at step 0, whatever the size of the objects.
        volumes = [_foreground(x, union | outside) for x in (logits, batch.reference)]
        row["volume_ratio"] = volumes[0] / volumes[1] if volumes[1] else None
    return row


def _foreground(logits: Tensor, known: Tensor) -> float:
    return float(((predicted_classes(logits) > 0) & known).sum())
