"""Training of a student: labelled batches, anchors, evaluations, and the weights that are kept.

`train_on_pool` puts a training together: batches, objective, loss of a step. `segmenter.loop.optimise` runs the steps
and keeps the weights. Objectives with batches of their own (`supervised`, `mapo`) use `StudentTraining` with a loss of
their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pipeline.errors import BadInput
from pipeline.seeding import numpy_generator, seed_of
from pipeline.segmenter.batches import LabelledBatches
from pipeline.segmenter.heads import all_heads
from pipeline.segmenter.loop import Average, HistoryRow, TrainedWeights, interpolated, optimise
from pipeline.segmenter.losses import deep_dice_ce
from pipeline.segmenter.models import unseen_labelled
from pipeline.segmenter.segmenter import Segmenter
from pipeline.students.batch import LabelledBatch, PoolBatch
from pipeline.students.drift import drift, kl_outside
from pipeline.students.imitation import imitation_loss
from pipeline.students.offsets import offsets_of_labels, offsets_of_proposal
from pipeline.students.pool_batches import PoolBatches
from pipeline.students.pool_cases import check_proposals, pool_and_held_out
from pipeline.students.start import Arm, Start
from pipeline.students.watching import held_out_measures, moved_on_disagreement, stop_rule, validation_measures

if TYPE_CHECKING:
    from pipeline.students.objectives.objective import BoundObjective, PoolObjective


def train_on_pool(objective: PoolObjective, start: Start) -> Arm:
    """Train a student on pool images with an objective: the default arm.

    Raises `BadInput` if the student needs pairs, calibrated pairs, proposals or labels, and the data have none.
    """
    training = StudentTraining(start, teacher_decay=objective.teacher_decay)
    pool, held_out = pool_and_held_out(objective, start)
    # Beta is matched across normalisers on the sizes of the pairs, before the first step.
    bound = objective.bind(pool.statistics())
    # Draws depend on seed and images: arms with the same images see the same images in every step.
    # Crops come from outside, because evaluations have crops of their own. A crop also depends on the pairs.
    draws, crops = pool.draws(), numpy_generator(start.seed, "student", "crops")

    def step_loss(step: int) -> tuple[Tensor, HistoryRow]:
        progress = step / start.training.optimisation.steps
        # One forward pass of an image serves all pairs of the image.
        batch = pool.batch(next(draws), training.forward, crops, training.teacher, step, progress)
        loss, numbers = bound(batch)
        return training.anchored(batch, loss, numbers)

    # Without mined pairs, no image has a disagreement region on which the change could be measured.
    return training.fit(step_loss, bound, pool, held_out, moved=objective.feeds == "pairs")


class StudentTraining:
    """A student in training: the policy, which starts from the base, its moving average and its labelled batches.

    The policy stays in eval mode, which `Model.load` and `optimise` set. Dropout is off and normalisation statistics
    are frozen, so that policy and reference are equal at step 0.
    """

    def __init__(self, start: Start, teacher_decay: float | None = None, needs_labels: bool = False) -> None:
        """Raises `BadInput` if the objective or its anchor learns from labels and no case is labelled."""
        self.start, self.anchor = start, start.student.anchor
        cases, window = start.data.cases, start.base.architecture.window
        labelled = cases.split("labelled")
        held_out = unseen_labelled(start.base) if start.student.offsets == "held_out" else set()
        self.fitted_on = cases.with_labels([case for case in labelled if case.case_id in held_out], window)
        labelled = [case for case in labelled if case.case_id not in held_out]
        # Without labelled cases, the stream of labelled batches would search without end.
        if not labelled and (needs_labels or (self.anchor and self.anchor.supervised)):
            raise BadInput(
                f"{cases.folder}: student '{start.name}' learns from labels, and no case is in split 'labelled'; "
                "set `splits` so that some are, or use an objective on pairs or the pool with anchor.supervised: 0"
            )
        self.policy = start.base.load(start.compute.device)
        # `teacher_decay` and `average` never occur together, so one average serves both.
        decay = teacher_decay or start.student.average
        self.average = None if decay is None else Average(self.policy, decay)
        self.teacher = self.average if teacher_decay else None
        # Cases that fit the window are read once, for all evaluations and for the labelled batches.
        self.labelled = cases.with_labels(labelled, window)
        self.validation = cases.with_labels(cases.split("validation"), window)
        if start.student.offsets == "validation":
            self.fitted_on = self.validation
        # Before the first step, so that no training is lost.
        if start.student.agrees_with is not None:
            check_proposals(start, cases.split("pool"), [start.student.agrees_with])
        # Equal labelled batches in every arm: arms differ in the objective alone.
        self._labels = self.label_stream("labelled")
        self._last: PoolBatch | None = None
        self._shared: LabelledBatch | None = None

    def label_stream(self, title: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Endless augmented images and labels of the labelled cases. Streams of one title are equal."""
        start = self.start
        window, seed = start.base.architecture.window, seed_of(start.seed, "student", title)
        strong = start.training.views if start.labelled_views else None
        return iter(LabelledBatches(self.labelled, window, start.augmentation, start.training.labelled, seed, strong))

    def labelled_batch(self, stream: Iterator[tuple[Tensor, Tensor]] | None = None) -> LabelledBatch:
        """One forward pass of the policy on the next images of a stream, by default of the labelled batches."""
        compute = self.start.compute
        images, labels = (part.to(compute.device) for part in next(stream or self._labels))
        # All heads: the supervised loss of a network with deep supervision has a term for every head.
        with compute.autocast():
            return LabelledBatch(all_heads(self.policy, images), labels, images)

    def forward(self, seen: Tensor) -> Tensor:
        """Logits of the policy for the pool images of a step, and, in the same pass, for its labelled images.

        `anchored` takes the labelled part. One pass takes less time than two, by a quarter for a small network.
        """
        if self.anchor is None or not self.anchor.supervised:
            return self.policy(seen)
        images, labels = (part.to(seen.device) for part in next(self._labels))
        heads = all_heads(self.policy, torch.cat([seen, images]))
        pool = len(seen)
        self._shared = LabelledBatch([(weight, logits[pool:]) for weight, logits in heads], labels, images)
        return heads[0].logits[:pool]

    def remember(self, batch: PoolBatch) -> None:
        """Keep the batch. The next evaluation measures drift and diagnosis on its images."""
        self._last = batch

    def anchored(self, batch: PoolBatch, loss: Tensor, numbers: HistoryRow) -> tuple[Tensor, HistoryRow]:
        """Loss plus the weighted terms of the anchor, and the numbers with the terms; the batch is remembered."""
        self.remember(batch)
        if self.anchor is None:
            return loss, numbers
        terms: dict[str, tuple[float, Tensor]] = {}
        # A term of weight 0 is not computed: `supervised` costs a forward pass.
        if self.anchor.supervised:
            labelled, self._shared = self._shared or self.labelled_batch(), None
            terms["supervised"] = self.anchor.supervised, deep_dice_ce(labelled.heads, labelled.labels)
        if self.anchor.kl:
            terms["kl"] = self.anchor.kl, kl_outside(batch)
        if self.anchor.imitate is not None:
            terms["imitate"] = self.anchor.imitate.weight, imitation_loss(batch, self.anchor.imitate.target)
        for name, (weight, value) in terms.items():
            loss = loss + weight * value
            # The history has the terms without their weights.
            numbers = {**numbers, name: float(value.detach())}
        return loss, numbers

    def segmenter(self, network: nn.Module) -> Segmenter:
        """A network of the student's architecture, with the window and the device of the student."""
        return Segmenter(network, self.start.base.architecture, self.start.compute)

    def fit(
        self,
        step_loss: Callable[[int], tuple[Tensor, HistoryRow]],
        bound: BoundObjective | None = None,
        pool: PoolBatches | None = None,
        held_out: PoolBatches | None = None,
        moved: bool = False,
    ) -> Arm:
        """Train all steps, or fewer if `stopping` or `patience` ends the training, and return the student.

        `bound` gives the diagnosis of the remembered batch. `held_out` has the images of stopping without labels.
        `moved` asks for the change of the student on the disagreement regions of `pool`.
        """
        start = self.start

        def evaluate(network: nn.Module) -> HistoryRow:
            measures = validation_measures(self.segmenter(network), self.validation)
            return {**self._measures(network, bound, pool, held_out), **measures}

        # `optimise` evaluates at step 0 and at intervals, and keeps the weights of the evaluations.
        trained = optimise(
            self.policy,
            step_loss,
            evaluate,
            start.training.optimisation,
            average=self.average,
            stop=stop_rule(start.student.stopping),
        )
        numbers: dict[str, Any] = {**(bound.summary() if bound else {}), "stopped": trained.stopped}
        # Interpolation comes first, because `moved_on_disagreement` measures the weights that are kept.
        numbers["interpolated"] = self._interpolate(trained)
        if start.student.offsets is not None:
            self.policy.load_state_dict(trained.last)
            numbers |= self._offsets(self.segmenter(self.policy.to(start.compute.device).eval()))
        if pool is not None:
            numbers |= {"pairs_mined": len(pool.pairs), "images": len(pool.pool)}
            if moved:
                # The policy has the weights of the last step; the kept weights may be averaged or interpolated.
                self.policy.load_state_dict(trained.last)
                numbers |= moved_on_disagreement(pool, self.policy.to(start.compute.device).eval())
        return Arm(trained, numbers)

    def _measures(
        self,
        network: nn.Module,
        bound: BoundObjective | None,
        pool: PoolBatches | None,
        held_out: PoolBatches | None,
    ) -> HistoryRow:
        """Drift and diagnosis of the remembered batch, measures of held-out images, Dice on the labelled cases."""
        row: HistoryRow = {}
        if self._last is not None and bound is not None:
            batch, self._last = self._last, None
            with torch.no_grad():
                batch = self._clean(batch, pool)
                row = {**drift(batch), **bound.diagnose(batch)}
        if held_out is not None and bound is not None:
            row |= held_out_measures(held_out, network, bound)
        # A Dice that rises on labelled cases and not on validation shows overfitting.
        if self.labelled.cases:
            row["labelled_dice"] = self.segmenter(network).dice(self.labelled)
        return row

    def _clean(self, batch: PoolBatch, pool: PoolBatches | None) -> PoolBatch:
        """The batch with the logits of the policy, never of the moving average, on the images without strong views.

        The reference has seen the clean images. Logits of a strong view would differ from it without any drift.
        """
        assert batch.images is not None
        with self.start.compute.autocast():
            clean = replace(batch, logits=self.policy(batch.images))
            if not batch.reference.numel():
                assert pool is not None
                clean = replace(clean, reference=pool.reference.network(batch.images).float())
        return clean

    def _offsets(self, segmenter: Segmenter) -> dict[str, Any]:
        """Fields of `StudentRecord` with the offsets that the student asks for."""
        start, proposal = self.start, self.start.student.agrees_with
        if proposal is None:
            return offsets_of_labels(segmenter, self.fitted_on)
        return offsets_of_proposal(segmenter, start.data, proposal, start.seed)

    def _interpolate(self, trained: TrainedWeights) -> float | None:
        """Interpolate the kept weights with the base, by the Dice on validation; returns the share of the student.

        None if the student does not interpolate.
        """
        start = self.start
        if start.student.interpolate is None:
            return None
        base = start.base.load(start.compute.device)
        return interpolated(
            trained, base, start.student.interpolate, lambda network: self.segmenter(network).dice(self.validation)
        )
