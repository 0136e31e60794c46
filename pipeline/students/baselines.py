"""Arms that train on a schedule of their own, or not at all: what preference has to be compared with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from pipeline.compute import Compute
from pipeline.errors import BadInput
from pipeline.measures.overlap import dice_to
from pipeline.seeding import seed_of
from pipeline.segmenter.augmentation import Augmentation
from pipeline.segmenter.loop import TrainedWeights
from pipeline.segmenter.sliding import predict
from pipeline.segmenter.supervised import train_supervised
from pipeline.segmenter.weights import Model, labels, probability, shifted
from pipeline.store.cases import CaseStore
from pipeline.store.proposals import ProposalStore
from pipeline.students.objectives.full import Full
from pipeline.students.objectives.proposal import Proposal
from pipeline.students.objectives.threshold import TunedThreshold
from pipeline.students.objectives.validation_labels import ValidationLabels


def retrained(
    objective: Full | ValidationLabels,
    cases: CaseStore,
    base: Model,
    augmentation: Augmentation,
    compute: Compute,
    seed: int,
) -> TrainedWeights:
    """The base trained on with the truth of another split; raises `BadInput` where a case of it has no label."""
    further = cases.split(objective.split)
    without = [case.case_id for case in further if not case.has_label]
    if without:
        raise BadInput(
            f"{cases.folder}: objective '{objective.kind}' needs the truth of split {objective.split}; {len(without)} "
            f"of {len(further)} cases have no label (first: '{without[0]}'); remove the student from params.yaml"
        )
    torch.manual_seed(seed_of(seed, objective.kind))
    trained = train_supervised(
        cases,
        [*cases.split("labelled"), *further],
        base.architecture,
        objective.optimisation,
        objective.batch,
        augmentation,
        compute,
        seed_of(seed, objective.kind),
        start=base.weights,
    )
    if objective.split == "validation":
        # A step chosen on its own training cases would be chosen by overfitting.
        trained.best, trained.best_step = trained.last, int(trained.history[-1]["step"] or 0)
    return trained


def tuned_offsets(
    objective: TunedThreshold, cases: CaseStore, base: Model, compute: Compute
) -> tuple[tuple[float, ...], float]:
    """Offset per foreground class and their mean Dice on validation (working grid).

    Classes are tuned one after the other, from 0; of equal offsets the one nearest to 0 is taken.
    """
    validation = cases.split("validation")
    classes = base.architecture.classes
    logits = [predict(base.shared(), cases.image(case), base.architecture.window, compute).cpu() for case in validation]
    truths = [cases.label(case) for case in validation]

    def value(offsets: Sequence[float]) -> float:
        found = [
            dice_to(truth, labels(probability(shifted(each, offsets)))[None], classes)[0]
            for each, truth in zip(logits, truths, strict=True)
        ]
        return float(np.mean(found))

    tried = sorted({0.0, *objective.offsets}, key=lambda offset: (abs(offset), offset))
    offsets = [0.0] * (classes - 1)
    best = value(offsets)
    for _ in range(objective.rounds):
        before = list(offsets)
        for label in range(classes - 1):
            for offset in tried:
                candidate = [*offsets[:label], offset, *offsets[label + 1 :]]
                if (found := value(candidate)) > best:
                    best, offsets = found, candidate
        if offsets == before:
            break
    return tuple(offsets), best


def picked_slot(objective: Proposal, cases: CaseStore, proposals: ProposalStore) -> tuple[int, str, float]:
    """Slot, its sampler and setting, and its mean Dice on validation; of equal slots the first is taken.

    Raises `BadInput` where no slot has the name that `pick` asks for.
    """
    table = proposals.table.unique("proposal", keep="first").sort("proposal")
    names = [f"{sampler} {setting}" for sampler, setting in table.select("sampler", "setting").iter_rows()]
    known = set(proposals.case_ids())
    validation = [case for case in cases.split("validation") if case.case_id in known]
    if not validation:
        raise BadInput("objective 'proposal': validation has no proposals; add 'validation' to propose.splits")
    if objective.pick != "best" and objective.pick not in names:
        raise BadInput(f"objective 'proposal': pick: no proposal '{objective.pick}'; there are {names}")
    classes = len(cases.class_names)
    means = np.mean([dice_to(cases.label(case), proposals.masks(case), classes) for case in validation], axis=0)
    slot = int(means.argmax()) if objective.pick == "best" else names.index(objective.pick)
    return slot, names[slot], float(means[slot])
