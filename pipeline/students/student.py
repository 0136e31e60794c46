"""Knobs of a student (pair set, objective, anchor, stopping), and the knobs of training that all students share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.knobs import BEST, MEAN, Knobs, Name
from pipeline.segmenter.knobs import Optimisation
from pipeline.segmenter.strong_views import StrongViews
from pipeline.students.imitation import PoolTerm, Target
from pipeline.students.objectives import Objective
from pipeline.students.objectives.objective import PoolObjective
from pipeline.students.objectives.proposal import Proposal

Weight = Annotated[float, Field(ge=0)]


class Anchor(Knobs):
    """Terms that keep a student near the labels, the base or the proposals. The terms are added to the objective.

    A weight of 0 leaves a term out.
    """

    supervised: Weight = 1.0
    """Weight of DiceCE on a labelled batch."""
    kl: Weight = 0.0
    """Weight of KL(student || base) in nats, mean over the voxels of a batch that lie outside all disagreement regions
    of their image."""
    imitate: PoolTerm | None = None
    """Imitation of a proposal, or of the mean of the proposals, on all pool images. Images without pairs then take part
    in training too. Null: no term."""


class Stopping(Knobs):
    """Rules that stop training without labels, measured at every evaluation on images that are kept from training.

    The first rule that applies stops the training. The weights of the evaluation that triggered the stop are discarded.
    """

    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the groups (patients) whose images are kept from training for the rules; at least one group."""
    kl: Annotated[float, Field(gt=0)] | None = None
    """Largest KL(student || base) outside the disagreement regions, in nats per voxel; null: no limit."""
    volume_ratio: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] | None = None
    """Range of the foreground volume of the student divided by that of the base, around 1; null: no limit."""
    patience: Annotated[int, Field(ge=1)] | None = None
    """Number of evaluations without a better reward accuracy on held-out pairs; null: no limit. Evaluations at an
    accuracy of 1, which cannot get better, do not count."""

    @model_validator(mode="after")
    def _some_rule(self) -> Stopping:
        if self.kl is None and self.volume_ratio is None and self.patience is None:
            raise ValueError("names no rule; give kl, volume_ratio or patience")
        if self.volume_ratio is not None and not self.volume_ratio[0] < 1 < self.volume_ratio[1]:
            raise ValueError(f"volume_ratio: expected a range around 1, found {list(self.volume_ratio)}")
        return self


class Training(Knobs):
    """Training that all students share, so that arms differ only in their own entries."""

    optimisation: Optimisation
    """Steps and learning rate of every student."""
    images: Annotated[int, Field(gt=0)] = 4
    """Pool images per step, each with all its pairs."""
    labelled: Annotated[int, Field(gt=0)] = 4
    """Labelled cases per step, for the anchor and for the objectives `supervised` and `mapo`."""
    views: StrongViews = StrongViews()
    """Variations of intensity of the pool images, the same for every student. Masks, mean probability and reference are
    those of the clean image. So policy and reference are equal at step 0 only if the strength is 0."""
    reference: Literal["cached", "recomputed"] = "cached"
    """`cached` keeps the reference logits of every image and flip, up to `cache_gb`. `recomputed` runs the base in
    every step. The reference logits of crops of larger cases are always recomputed."""
    cache_gb: Annotated[float, Field(gt=0)] = 4.0
    """Memory in GiB of one cache for images, masks, probabilities, error rates of voxels and reference logits.

    Reference logits lie on the device, all other values in main memory. With `stopping`, a second cache of the same
    size serves the held-out images. The least recently used values leave first. Crops of larger cases are read from
    disk in every step.
    """
    random_crops: Annotated[float, Field(ge=0, le=1)] = 0.25
    """Share of the crops that lie anywhere, for cases larger than the window. The other crops lie around a voxel on
    which a pair differs. Pairs that do not differ inside the crop are ignored."""


class Student(Knobs):
    """A student: its pair set, its objective, its anchor and its stopping rules."""

    pairs: Name
    """Name of a pair set. Objectives that need no pairs name a pair set with strategy `none`."""
    objective: Objective
    """What the student is trained to do."""
    anchor: Anchor | None = None
    """Terms beside the objective. Null adds no term and is the unsafe baseline of preference training."""
    start: str = "base"
    """Model that the student starts from: `base`, or the name of a member of the base, such as `member_1`. The frozen
    start is also the reference of preference. Students from several members make the next ensemble."""
    offsets: Literal["pool", "validation", "held_out"] | None = None
    """Cases on which the student's own offsets on the logits of the foreground classes are fitted after training, as
    those of sampler `mean` are. `pool` needs no label: the masks of pool cases shall agree with the proposal that the
    student imitates, or with the mean of the proposals if the student imitates none. `validation` spends the validation
    labels, so the student is no candidate for promotion. `held_out` needs a `start` that is a fold: the labelled cases
    that this fold has not seen are kept from the student's training too. Null: no offsets."""
    labelled_views: bool | None = None
    """Whether labelled images are varied as strongly as pool images. Null: as `training.views.labelled` says."""
    average: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of a moving average of the weights. The average is evaluated and kept. Null keeps the weights
    themselves."""
    interpolate: tuple[Annotated[float, Field(ge=0, le=1)], ...] | None = None
    """Shares between base (0) and student (1) that are compared on validation by the Dice of the last weights. The
    best share is applied to all kept weights (Wortsman et al. 2022). Null keeps the weights as trained."""
    stopping: Stopping | None = None
    """Rules that stop training without labels. Null: no such rule; `optimisation.patience` still applies."""

    @property
    def targets(self) -> tuple[Target, ...]:
        """What objective and anchor imitate, each once."""
        own = self.objective.targets if isinstance(self.objective, PoolObjective) else ()
        imitate = self.anchor.imitate if self.anchor else None
        return tuple(dict.fromkeys([*own, *([] if imitate is None else [imitate.target])]))

    @property
    def agrees_with(self) -> str | None:
        """Name of the proposal that `offsets: pool` is fitted to; None for other offsets."""
        if self.offsets != "pool":
            return None
        return self.targets[0].proposal if self.targets else MEAN

    @property
    def reads_proposals(self) -> bool:
        """Whether the student learns from proposals of pool images, beside its pairs."""
        probability = isinstance(self.objective, PoolObjective) and self.objective.needs_probability
        return probability or bool(self.targets) or self.offsets == "pool"

    @property
    def proposals(self) -> list[str]:
        """Names of the proposals that the student imitates or takes."""
        named = [target.proposal for target in self.targets if target.proposal != MEAN]
        if isinstance(self.objective, Proposal) and self.objective.pick != BEST:
            named.append(self.objective.pick)
        return named

    @model_validator(mode="after")
    def _keys_of_the_objective(self) -> Student:
        """Refuse keys that the objective cannot use.

        `anchor` and `stopping` need pool images. `average` and `interpolate` need the common loop. `average` also needs
        an objective without a moving average of its own. `patience` needs kind `preference`.
        """
        feeds, kind = self.objective.feeds, self.objective.kind
        if feeds in ("pairs", "pool"):
            if "anchor" not in self.model_fields_set:
                raise ValueError(
                    "anchor: missing; set {supervised: 1.0}, or null for training without anchor, which is unsafe"
                )
        else:
            self._refuse(("anchor", "stopping"), f"objective '{kind}' takes no pool images")
        if feeds in ("truth", "nothing"):
            self._refuse(("average", "interpolate", "offsets"), f"objective '{kind}' does not train in the common loop")
        if self.offsets == "held_out" and not self.start.startswith("fold_"):
            raise ValueError(
                f"offsets: 'held_out' needs labelled cases that the start has not seen, found start '{self.start}'; "
                "set start to a fold, such as fold_0, or offsets to validation"
            )
        if self.objective.teacher_decay is not None:
            self._refuse(("average",), f"objective '{kind}' has its own moving average")
        if self.stopping is not None and self.stopping.patience is not None and kind != "preference":
            raise ValueError(
                f"stopping.patience: patience needs a reward accuracy on held-out pairs, and objective '{kind}' has "
                "none; use kl or volume_ratio"
            )
        return self

    def _refuse(self, keys: tuple[str, ...], reason: str) -> None:
        for key in keys:
            if getattr(self, key) is not None:
                raise ValueError(f"{key}: {reason}; remove the key")
