"""MAPO: preferences between hypotheses that the student draws with dropout, beside the supervised loss."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.judges.kinds.agreement import Agreement
from pipeline.judges.kinds.entropy import Entropy
from pipeline.judges.kinds.expected_dice import ExpectedDice
from pipeline.judges.kinds.likelihood import Likelihood
from pipeline.proposals.samplers.mc_dropout import Place
from pipeline.students.objectives.objective import Feed
from pipeline.students.objectives.preference import PairObjective

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.segmenter.loop import HistoryRow
    from pipeline.students.batch import PoolBatch
    from pipeline.students.loop import StudentTraining
    from pipeline.students.objectives.mapo_pairs import OnlinePairs
    from pipeline.students.start import Arm, Start

OnlineJudge = Annotated[Agreement | ExpectedDice | Likelihood | Entropy, Field(discriminator="kind")]
"""Judges that need only an image and its hypotheses, and therefore can score during training."""

Share = Annotated[float, Field(gt=0, lt=1)]


class Mapo(PairObjective):
    """`supervised + weight * link(beta * delta / N(D))` on pairs that are made online (Nam et al., arXiv 2512.15009).

    In each step the student draws hypotheses of each image, with dropout injected at a sweep of rates. The best
    hypothesis is chosen and the worst is rejected if the gap of their scores is at least `tau`. Ties make no pair.

    Ranked by the truth, pairs and supervised term come from one labelled batch. Ranked by a judge, pairs come from pool
    images, and the supervised term is the term of the `anchor`. The abstract of the paper does not give the form of the
    loss, so the form is our own.
    """

    kind: Literal["mapo"]
    ranker: Literal["truth"] | OnlineJudge = "truth"
    """`truth` ranks by Dice with the label, on labelled batches. The knobs of a judge rank by its score, on pool
    images."""
    hypotheses: Annotated[int, Field(ge=2)] = 8
    """Number of passes with dropout per image and step. Each pass gives a hypothesis. `prediction` adds one more."""
    rates: tuple[Share, Share] = (0.1, 0.5)
    """Lowest and highest share of dropped channels. The rates of the passes are evenly spaced between the two."""
    at: Place = "bottleneck"
    """Where channels are dropped, as in sampler `mc_dropout`."""
    prediction: bool = False
    """Whether the prediction without dropout is a hypothesis too, like slot 0 among proposals."""
    tau: Annotated[float, Field(gt=0)] = 0.02
    """Least gap between the scores of chosen and rejected, in units of the score (Dice under `truth`)."""
    min_disagreement: Annotated[int, Field(ge=1)] = 1
    """Least |D| of a pair, in voxels of the working grid."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Weight lambda of the preference term beside the supervised term."""
    reference_decay: Share | None = None
    """Decay of a moving average of the student, which is then the reference. Null: the reference is the frozen base."""

    @property
    def feeds(self) -> Feed:  # type: ignore[override]
        return "labelled" if self.ranker == "truth" else "pool"

    @model_validator(mode="after")
    def _online(self) -> Self:
        if self.rates[0] > self.rates[1]:
            raise ValueError(f"rates: expected the lower rate first, found {list(self.rates)}")
        if self.needs_p_correct or self.needs_votes:
            raise ValueError(
                f"link.e: '{self._e}' needs stored proposals, and pairs of 'mapo' are made online; set e to a number"
            )
        return self

    def sweep(self) -> list[float]:
        """Dropout rate of every pass."""
        low, high = self.rates
        return [low + (high - low) * turn / (self.hypotheses - 1) for turn in range(self.hypotheses)]

    def train(self, start: Start) -> Arm:
        from pipeline.seeding import seed_of
        from pipeline.students.loop import StudentTraining
        from pipeline.students.objectives.mapo_pairs import OnlinePairs

        training = StudentTraining(start, needs_labels=self.ranker == "truth")
        reference = training.segmenter(start.base.load(start.compute.device))
        policy = training.segmenter(training.policy)
        online = OnlinePairs(self, reference, policy, seed_of(start.seed, "online"))
        if self.ranker == "truth":
            return self._on_labels(training, online)
        return self._on_pool(training, online)

    def _on_labels(self, training: StudentTraining, online: OnlinePairs) -> Arm:
        """Training on pairs of labelled batches, ranked by the truth, beside the supervised loss of the batches."""
        import torch

        from pipeline.segmenter.losses import deep_dice_ce

        # Beta is matched on pairs of the base, from batches of their own (dropout of steps 0, -1, ...).
        def first_batches() -> Iterator[PoolBatch]:
            stream = training.label_stream("probe")
            for turn in range(self._probes(training.start.training.labelled)):
                with torch.no_grad():
                    yield online.of_labelled(training.labelled_batch(stream), -turn)[0]

        bound = self.bind(online.statistics(first_batches()))

        def step_loss(step: int) -> tuple[Tensor, HistoryRow]:
            # Step 1 has no update before it that the reference could follow.
            if step > 1:
                online.follow()
            labelled = training.labelled_batch()
            batch, numbers = online.of_labelled(labelled, step)
            training.remember(batch)
            supervised = deep_dice_ce(labelled.heads, labelled.labels)
            preference, of_pairs = bound(batch)
            loss = supervised + self.weight * preference
            return loss, {**numbers, **of_pairs, "supervised": float(supervised.detach())}

        return training.fit(step_loss, bound)

    def _on_pool(self, training: StudentTraining, online: OnlinePairs) -> Arm:
        """Training on pairs of pool images, ranked by the judge; the supervised term is the term of the anchor."""
        import torch

        from pipeline.seeding import numpy_generator
        from pipeline.students.pool_cases import pool_and_held_out

        start = training.start
        pool, held_out = pool_and_held_out(self, start)
        draws, crops = pool.draws(), numpy_generator(start.seed, "student", "crops")

        # Beta is matched on pairs of the base, from the first drawn images (dropout of steps 0, -1, ...).
        def first_batches() -> Iterator[PoolBatch]:
            probe_draws, probe_crops = pool.draws(), numpy_generator(start.seed, "probe")
            for turn in range(self._probes(start.training.images)):
                with torch.no_grad():
                    batch = pool.batch(next(probe_draws), training.policy, probe_crops)
                    yield online.of_pool(batch, -turn)[0]

        bound = self.bind(online.statistics(first_batches()))

        def step_loss(step: int) -> tuple[Tensor, HistoryRow]:
            if step > 1:
                online.follow()
            progress = step / start.training.optimisation.steps
            batch = pool.batch(next(draws), training.forward, crops, None, step, progress)
            batch, numbers = online.of_pool(batch, step)
            preference, of_pairs = bound(batch)
            return training.anchored(batch, self.weight * preference, {**numbers, **of_pairs})

        return training.fit(step_loss, bound, pool, held_out)

    @staticmethod
    def _probes(per_batch: int) -> int:
        """Number of full batches that hold at least `PROBE` images. Beta is matched on the pairs of the batches."""
        from pipeline.students.watching import PROBE

        return -(-PROBE // per_batch)
