"""Every objective: one contract over the union, and the objectives beside preference worked by hand."""

from __future__ import annotations

import json
import pickle
from math import log
from typing import Any, get_args

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from pipeline.segmenter.knobs import Consistency
from pipeline.segmenter.losses import dice_ce
from pipeline.store.schema import UNKNOWN
from pipeline.students.batch import PoolBatch
from pipeline.students.imitation import Target
from pipeline.students.objectives import Objective
from pipeline.students.objectives.distill import Distill
from pipeline.students.objectives.mean_teacher import MeanTeacher
from pipeline.students.objectives.objective import ArmFamily, ObjectiveKnobs
from pipeline.students.objectives.pseudo_label import PseudoLabel
from pipeline.students.objectives.sft import ImitateChosen
from tests.fixtures.preferences import bars, batch, statistics
from tests.fixtures.students import Setting, made

KINDS = {get_args(kind.model_fields["kind"].annotation)[0]: kind for kind in get_args(get_args(Objective)[0])}
OWN = {"optimisation": {"steps": 2, "learning_rate": 0.01, "evaluate_every": 1}, "batch": 2}
EXAMPLES: dict[str, dict[str, Any]] = {
    "preference": {"link": {"kind": "cdpo", "e": 0.2}},
    "mapo": {"hypotheses": 2, "at": "all", "tau": 0.001},
    "sft": {},
    "distill": {},
    "imitate": {"proposal": "base", "where": "agreement"},
    "pseudo_label": {"confidence": 0.3},
    "mean_teacher": {"consistency": {"weight": 2.0}},
    "supervised": {},
    "validation_labels": OWN,
    "full": OWN,
    "threshold": {"offsets": [-0.5, 0.5]},
    "proposal": {"pick": "best"},
}
"""Knobs beside `kind`; an objective that is listed in the union but not here fails the contract."""


TARGET = Target(proposal="base", where="agreement")


def example(kind: str) -> Any:
    """Read as from `params.yaml`."""
    return TypeAdapter(Objective).validate_json(json.dumps({"kind": kind, **EXAMPLES[kind]}))


def full_batch(logits: Tensor, pairs: bool = True) -> PoolBatch:
    """One image of 3 classes; with pairs, or with none."""
    chosen, rejected = (bars(20), bars(40)) if pairs else (bars()[:0], bars()[:0])
    index = [0] if pairs else []
    third = torch.full_like(logits, 1 / 3)
    return batch(
        logits,
        2 * chosen,
        rejected,
        index,
        known=torch.ones((1, 64), dtype=torch.bool),
        probability=third,
        teacher=torch.linspace(-1, 1, logits.numel()).reshape(logits.shape),
        e=torch.full((len(index),), 0.3),
        voxel_e=torch.full((len(index), 64), 0.3),
        targets={TARGET: 2 * bars(20)},
        classes=("background", "one", "two"),
    )


# ---- contract --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_objective_is_knobs_that_pickle(kind):
    knobs = example(kind)
    assert isinstance(knobs, ObjectiveKnobs)
    assert knobs.model_dump()["kind"] == kind
    assert pickle.loads(pickle.dumps(knobs)) == knobs
    assert knobs.feeds in ("pairs", "pool", "labelled", "truth", "nothing")
    assert knobs.teacher_decay is None or 0 < knobs.teacher_decay < 1
    with pytest.raises(ValidationError, match="wrong_knob"):
        TypeAdapter(Objective).validate_python({"kind": kind, **EXAMPLES[kind], "wrong_knob": 1})


@pytest.mark.parametrize("kind", KINDS)
def test_every_objective_belongs_to_the_family_of_what_it_learns_from(kind):
    knobs = example(kind)
    assert knobs.family in get_args(ArmFamily)
    assert (knobs.family == "ceilings") == ("pool" in knobs.labels_from)
    assert (knobs.family == "no training") == (knobs.feeds == "nothing")
    assert (knobs.family == "preference") == hasattr(knobs, "link")
    if knobs.family == "labels only":
        assert "pool" not in knobs.learns_from


@pytest.mark.parametrize("kind", [name for name, made in KINDS.items() if made.feeds in ("pairs", "pool")])
def test_every_loss_on_the_pool_is_finite_and_the_same_twice(kind):
    """A finite loss, finite numbers, a gradient, equal at the second call; |D| of the pair is 40."""
    found = []
    for _ in range(2):
        logits = torch.linspace(-1, 2, 192).reshape(1, 3, 64).requires_grad_()
        seen = full_batch(logits)
        bound = example(kind).bind(statistics(40))
        loss, row = bound(seen)
        loss.backward()
        numbers = [loss.item(), *row.values(), *bound.diagnose(seen).values()]
        assert np.isfinite(numbers).all()
        assert (logits.grad != 0).any()
        found.append((numbers, logits.grad))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("kind", [name for name, made in KINDS.items() if made.feeds == "pool"])
def test_objectives_on_the_pool_need_no_pairs(kind):
    logits = torch.zeros(1, 3, 64, requires_grad=True)
    loss, _ = example(kind).bind(statistics())(full_batch(logits, pairs=False))
    assert torch.isfinite(loss)
    loss.backward()


@pytest.mark.parametrize("kind", [name for name, made in KINDS.items() if made.feeds in ("pairs", "pool")])
def test_nothing_known_is_a_loss_of_zero(kind):
    """No voxel is known and the pair's masks are 255 everywhere: nothing is pushed, and nothing is NaN."""
    logits = torch.zeros(1, 3, 64, requires_grad=True)
    unknown = torch.full((1, 64), UNKNOWN, dtype=torch.uint8)
    seen = full_batch(logits)
    seen = PoolBatch(**{**vars(seen), "chosen": unknown, "rejected": unknown, "known": torch.zeros(1, 64).bool()})
    seen = PoolBatch(**{**vars(seen), "targets": {TARGET: unknown}})
    loss, _ = example(kind).bind(statistics(40))(seen)
    loss.backward()
    assert torch.isfinite(loss)
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_every_objective_makes_a_student(tmp_path, kind):
    """What a user runs: two steps from the base, a record and a history; the same bytes twice."""
    found = []
    for turn in range(2):
        here: Setting = made(tmp_path / str(turn))
        rows = here.train(example(kind), p_correct=0.8, learning_rate=1e-3)
        assert rows[-1]["validation_dice"] is not None
        assert here.record()["objective"]["kind"] == kind
        files = [*sorted((here.folder / "student").iterdir()), here.folder / "student.csv"]
        found.append({path.name: path.read_bytes() for path in files})
    assert found[0] == found[1]


# ---- by hand ---------------------------------------------------------------------------------------------------


def test_imitation_is_supervision_by_the_chosen_mask():
    """Two pairs of image 1 and one of image 0: the mean over pairs of DiceCE with chosen; rejected plays no part
    but in |D| = 20, 30 and 50, of which 255 is no part."""
    logits = torch.linspace(-1, 2, 128).reshape(2, 1, 64)
    chosen, rejected = bars(20, 40, 50), bars(0, 10, 0)
    rejected[:, 60:] = UNKNOWN
    loss, row = ImitateChosen(kind="sft")(batch(logits, chosen, rejected, [1, 1, 0]))
    assert loss.item() == pytest.approx(dice_ce(logits[[1, 1, 0]], chosen).item())
    assert row["disagreement"] == pytest.approx(100 / 3)


def pool_batch(logits: Tensor, reference: Tensor, known: list[bool], **more: Any) -> PoolBatch:
    none, index = torch.zeros((0, 4), dtype=torch.uint8), torch.zeros(0, dtype=torch.int64)
    return PoolBatch(logits, reference, none, none, index, index, torch.tensor([known]), **more)


def test_pseudo_labels_by_hand():
    """Base p(foreground) .9, .6, .2 and padding. Sure at .7: .9 is 1, .2 is 0 (p(background) .8), .6 counts nowhere.

    Student logits 0: entropy log 2; Dice (2 * .5 + 1) / (1 + 1 + 1) = 2/3, so the loss is log 2 + 1/3.
    """
    reference = torch.logit(torch.tensor([[[0.9, 0.6, 0.2, 0.5]]]))
    seen = pool_batch(torch.zeros(1, 1, 4), reference, [True, True, True, False])
    loss, row = PseudoLabel(kind="pseudo_label", confidence=0.7)(seen)
    assert loss.item() == pytest.approx(log(2) + 1 / 3)
    assert row["pseudo_labelled"] == pytest.approx(2 / 3)
    assert PseudoLabel(kind="pseudo_label")(seen)[1]["pseudo_labelled"] == 1


def test_distillation_by_hand():
    """Logits 0: log 2 whatever the target; the padding, however wrong, counts nowhere. Least where p is the target."""
    target = torch.tensor([[[0.25, 0.5, 1.0, 0.0], [0.75, 0.5, 0.0, 1.0]]])
    seen = pool_batch(torch.zeros(1, 1, 4), torch.zeros(1, 1, 4), [True, True, True, False], probability=target)
    assert Distill(kind="distill")(seen)[0].item() == pytest.approx(log(2))
    logits = torch.tensor([[[log(3), 0.0, -50.0, 9.0]]], requires_grad=True)
    loss, _ = Distill(kind="distill")(pool_batch(logits, logits, [True, True, True, False], probability=target))
    loss.backward()
    assert logits.grad.abs().max().item() == pytest.approx(0, abs=1e-6)


def test_mean_teacher_by_hand():
    """p 1/2 against 3/4 on one of two known voxels: 2 * (1/4)^2 / 2 = 1/16, times weight 4 and the ramp exp(-5/4)
    at 20 % of the steps; from 40 % on the ramp is 1."""
    objective = MeanTeacher(kind="mean_teacher", consistency=Consistency(weight=4.0, noise=0.3, decay=0.95))
    assert (objective.image_noise, objective.teacher_decay) == (0.3, 0.95)
    teacher = torch.tensor([[[log(3), 0.0, 9.0, 9.0]]])
    for progress, ramp in ((0.2, np.exp(-1.25)), (0.4, 1.0), (1.0, 1.0)):
        known = [True, True, False, False]
        seen = pool_batch(torch.zeros(1, 1, 4), teacher, known, teacher=teacher, progress=progress)
        loss, row = objective(seen)
        assert loss.item() == pytest.approx(4 * ramp / 16)
        assert row["consistency"] == pytest.approx(1 / 16)
