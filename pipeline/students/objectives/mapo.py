"""MAPO: preferences between hypotheses that the student itself draws with dropout, beside the supervised loss."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.judges.kinds.agreement import Agreement
from pipeline.judges.kinds.entropy import Entropy
from pipeline.judges.kinds.expected_dice import ExpectedDice
from pipeline.judges.kinds.likelihood import Likelihood
from pipeline.proposals.samplers.mc_dropout import Place
from pipeline.students.objectives.objective import Feed
from pipeline.students.objectives.pair_objective import PairObjective

OnlineJudge = Annotated[Agreement | ExpectedDice | Likelihood | Entropy, Field(discriminator="kind")]
"""Judges that need nothing but the hypotheses of an image, so that they can judge while a student is trained."""

Share = Annotated[float, Field(gt=0, lt=1)]


class Mapo(PairObjective):
    """`supervised + weight * link(beta * delta / N(D))` on pairs that are made online (Nam et al., arXiv 2512.15009).

    In each step the student draws hypotheses of each image with dropout injected at a sweep of rates. The best is
    chosen, the worst rejected, if the gap of their scores reaches `tau`; ties make no pair. Ranked by the truth, images
    and supervised term are those of one labelled batch. Ranked by a judge, images are of the pool, and the supervised
    term is that of the `anchor`. The form is our own: the paper's abstract does not give it.
    """

    kind: Literal["mapo"]
    ranker: Literal["truth"] | OnlineJudge = "truth"
    """`truth`: Dice with the label, on labelled batches; or the knobs of a judge without labels, on pool images."""
    hypotheses: Annotated[int, Field(ge=2)] = 8
    """K, passes with dropout per image and step."""
    rates: tuple[Share, Share] = (0.1, 0.5)
    """Lowest and highest share of channels dropped; the passes spread evenly between them."""
    at: Place = "bottleneck"
    """Where channels are dropped, as in sampler `mc_dropout`."""
    prediction: bool = False
    """The prediction without dropout competes too, as slot 0 does among proposals."""
    tau: Annotated[float, Field(gt=0)] = 0.02
    """Least gap between the scores of chosen and rejected."""
    min_disagreement: Annotated[int, Field(ge=1)] = 1
    """Least |D| in voxels of the working grid."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Lambda: of the preference term beside the supervised one."""
    reference_decay: Share | None = None
    """Decay of a moving average of the student that is the reference; null: the frozen base is."""

    @property
    def feeds(self) -> Feed:  # type: ignore[override]
        return "labelled" if self.ranker == "truth" else "pool"

    @model_validator(mode="after")
    def _online(self) -> Self:
        if self.rates[0] > self.rates[1]:
            raise ValueError(f"rates: expected the lower rate first, found {list(self.rates)}")
        if self.needs_p_correct or self.needs_votes:
            raise ValueError(
                f"link.e: '{self._e}' follows from stored proposals, and these pairs are made online; give a number"
            )
        return self

    def sweep(self) -> list[float]:
        """Dropout rate of every pass."""
        low, high = self.rates
        return [low + (high - low) * turn / (self.hypotheses - 1) for turn in range(self.hypotheses)]
