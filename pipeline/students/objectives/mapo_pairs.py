"""Online pairs: pairs of hypotheses that the student draws with dropout during training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import polars as pl
import torch
from torch import Tensor

from pipeline.errors import BadInput
from pipeline.measures.overlap import dice_to, first_equal, region
from pipeline.pairs.strategies.strategy import Scored
from pipeline.pairs.strategies.top_bottom import TopBottom
from pipeline.proposals.samplers.mc_dropout import dropped, plan_for
from pipeline.seeding import torch_generator
from pipeline.segmenter.logits import predicted_classes
from pipeline.segmenter.loop import Average, HistoryRow
from pipeline.segmenter.losses import log_probability
from pipeline.segmenter.segmenter import Segmenter
from pipeline.store.schema import UNKNOWN
from pipeline.students.batch import LabelledBatch, PairStatistics, PoolBatch

if TYPE_CHECKING:
    from pipeline.students.objectives.mapo import Mapo


@dataclass(frozen=True)
class HypothesisEvidence:
    """Evidence for a judge: the hypotheses of one image, and the parts of `Evidence` that need no data set."""

    image: np.ndarray  # f32 [channel, *space]
    masks: np.ndarray  # u8 [hypothesis, *space], 255 outside the image
    probability: np.ndarray  # f32 [class, *space], mean of the passes with dropout, in steps of 1/255
    samplers: list[str]

    @property
    def classes(self) -> int:
        return len(self.probability)

    @property
    def originals(self) -> np.ndarray:
        return first_equal(self.masks)


class Pair(NamedTuple):
    """Two hypotheses of one image."""

    image: int  # index in the batch
    chosen: int  # index of the hypothesis
    rejected: int  # index of the hypothesis


def best_over_worst(
    masks: Sequence[np.ndarray], scores: Sequence[np.ndarray], tau: float, min_disagreement: int
) -> list[Pair]:
    """The pairs that strategy `top_bottom` with `min_margin` = tau mines: at most one pair per image.

    `masks` u8 `[hypothesis, *space]` and `scores` f64 `[hypothesis]` of each image. Copies of a mask and hypotheses
    with a NaN score are left out before ranking. An image has no pair if another hypothesis shares the score of the
    best or of the worst.
    """
    table = np.array(scores, np.float64)
    for row, each in zip(table, masks, strict=True):
        row[first_equal(each) != np.arange(len(each))] = np.nan
    found = TopBottom(kind="top_bottom").candidates(Scored(pl.Series([str(i) for i in range(len(table))]), table), 0)
    pairs = []
    for image, chosen, rejected, tie in zip(*found, strict=True):
        margin = table[image, chosen] - table[image, rejected]
        if tie or margin < tau or region(masks[image][chosen], masks[image][rejected]).sum() < min_disagreement:
            continue
        pairs.append(Pair(int(image), int(chosen), int(rejected)))
    return pairs


class OnlinePairs:
    """The pairs of a step, and the batch with the pairs for the preference loss."""

    def __init__(self, knobs: Mapo, reference: Segmenter, policy: Segmenter, seed: int) -> None:
        self.knobs, self.reference, self.policy, self.seed = knobs, reference, policy, seed
        self.architecture, self.compute = policy.architecture, policy.compute
        decay = knobs.reference_decay
        self.average = None if decay is None else Average(policy.network, decay, warm_up=False)

    def of_labelled(self, batch: LabelledBatch, step: int) -> tuple[PoolBatch, HistoryRow]:
        """Batch with the pairs of a labelled batch, ranked by the truth, and numbers for the history.

        Voxels without a label are in no mask.
        """
        known = batch.labels != UNKNOWN
        empty = batch.labels[:0]
        nothing = torch.zeros(0, dtype=torch.int64, device=batch.labels.device)
        with torch.no_grad(), self.compute.autocast():
            reference = self.reference.network(batch.images).float()
        start = PoolBatch(batch.logits, reference, empty, empty, nothing, nothing, known, images=batch.images)
        return self._paired(start, step, batch.labels, predicted_classes(batch.logits.detach()))

    def of_pool(self, batch: PoolBatch, step: int) -> tuple[PoolBatch, HistoryRow]:
        """Batch with the pairs of pool images, ranked by the judge, and numbers for the history."""
        own = None
        if self.knobs.prediction:
            # The hypotheses are of the clean images, and `batch.logits` of their strong views.
            assert batch.images is not None
            with torch.no_grad(), self.compute.autocast():
                own = predicted_classes(self.policy.network(batch.images))
        return self._paired(batch, step, None, own)

    def follow(self) -> None:
        """Update the moving reference, if there is one, with the weights of the student."""
        if self.average is not None:
            self.average.update(self.policy.network)

    def hypotheses(self, images: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Masks u8 `[image, hypothesis, *space]` of the student, and mean probability f32 `[image, class, *space]`.

        Every image has dropout of its own, which depends on the seed, the step and the place in the batch.
        """
        plan = plan_for(self.policy, self.knobs.at)
        drops = [
            (rate, torch_generator(self.seed, "hypothesis", step, turn)) for turn, rate in enumerate(self.knobs.sweep())
        ]
        with torch.no_grad(), self.compute.autocast():
            passes = dropped(self.policy.network, plan, drops)(images).float().chunk(len(drops), dim=1)
        masks = torch.stack([predicted_classes(each) for each in passes], dim=1)
        return masks, torch.stack([log_probability(each).exp() for each in passes]).mean(0)

    def _paired(
        self, batch: PoolBatch, step: int, labels: Tensor | None, own: Tensor | None
    ) -> tuple[PoolBatch, HistoryRow]:
        """The batch with pairs of its images, ranked by Dice with `labels` or, for None, by the judge.

        `own` has the predictions u8 `[image, *space]` without dropout, for knob `prediction` and for `labels`.

        Numbers: `online/batches_with_pair` (0 or 1), `online/images_with_pair` (share), `online/spread` (largest minus
        smallest score, mean over images; null if the judge abstains on all) and, with labels, `online/headroom` (Dice
        of the best hypothesis minus Dice of the prediction without dropout, mean over images).
        """
        assert batch.images is not None
        assert batch.known is not None
        drawn, probability = self.hypotheses(batch.images, step)
        if self.knobs.prediction:
            assert own is not None
            drawn = torch.cat([own[:, None], drawn], dim=1)
        # 255 in the padding, so that padding is in no D and counts for no score.
        drawn = torch.where(batch.known[:, None], drawn, UNKNOWN).to(torch.uint8)
        masks = list(drawn.cpu().numpy())
        scores = self._dice(masks, labels) if labels is not None else self._judged(masks, probability, batch.images)
        pairs = best_over_worst(masks, scores, self.knobs.tau, self.knobs.min_disagreement)
        spread = [float(np.nanmax(each) - np.nanmin(each)) for each in scores if not np.isnan(each).all()]
        row: HistoryRow = {
            "online/batches_with_pair": float(bool(pairs)),
            "online/images_with_pair": len(pairs) / len(masks),
            "online/spread": float(np.mean(spread)) if spread else None,
        }
        if labels is not None:
            assert own is not None
            hard = torch.where(batch.known, own, UNKNOWN).to(torch.uint8).cpu().numpy()
            plain = self._dice([one[None] for one in hard], labels)
            above = [float(each.max() - one[0]) for each, one in zip(scores, plain, strict=True)]
            row["online/headroom"] = float(np.mean(above))
        index = torch.tensor(pairs, dtype=torch.int64, device=drawn.device).reshape(-1, 3)
        image, chosen, rejected = index.unbind(1)
        paired = replace(
            batch,
            chosen=drawn[image, chosen],
            rejected=drawn[image, rejected],
            image=image,
            voxels=batch.known.flatten(1).sum(1)[image],
            moving=None if self.average is None else self.average.logits(batch.images, self.compute),
        )
        return paired, row

    def _dice(self, masks: Sequence[np.ndarray], labels: Tensor) -> list[np.ndarray]:
        """Dice f64 `[hypothesis]` of the masks of each image with the label, mean over foreground classes."""
        classes, truths = self.architecture.classes, labels.cpu().numpy()
        return [dice_to(truth, each, classes) for truth, each in zip(truths, masks, strict=True)]

    def _judged(self, masks: Sequence[np.ndarray], probability: Tensor, images: Tensor) -> list[np.ndarray]:
        """Scores f64 `[hypothesis]` of the masks of each image by the judge; NaN where the judge abstains."""
        judge: Any = self.knobs.ranker
        # In steps of 1/255, as stored: online and offline, a judge reads the same probabilities.
        steps = (probability * 255).round().cpu().numpy() / np.float32(255)
        scores = []
        for image, each, mean in zip(images.cpu().numpy(), masks, steps, strict=True):
            # Every pass has a rate of its own, so every pass counts as a sampler.
            names = [f"pass {slot}" for slot in range(len(each))]
            scores.append(np.asarray(judge.score(HypothesisEvidence(image, each, mean, names)), np.float64))
        return scores

    def statistics(self, batches: Iterable[PoolBatch]) -> PairStatistics:
        """|D| and image size of the pairs of the base, on which beta is matched.

        Raises `BadInput` if the base makes no pair and the normaliser has to be matched.
        """
        size, voxels = [], []
        for batch in batches:
            for chosen, rejected in zip(batch.chosen.cpu().numpy(), batch.rejected.cpu().numpy(), strict=True):
                size.append(int(region(chosen, rejected).sum()))
            voxels += batch.voxels.tolist()
        if not size and self.knobs.beta_unit == "matched" and self.knobs.normaliser not in ("region", "voxel"):
            raise BadInput(
                f"objective 'mapo': no two hypotheses of the base differ by tau = {self.knobs.tau} on the first "
                f"batches, so beta cannot be matched for normaliser '{self.knobs.normaliser}'; lower tau, raise "
                "`rates`, set `at: all`, or set beta_unit: own"
            )
        return PairStatistics(np.array(size, np.int64), np.array(voxels, np.int64), self.architecture.dimensions)
