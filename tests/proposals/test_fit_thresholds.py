"""Fitted thresholds of the mean: out of fold, per fold, and what happens without folds or with too few patients."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from pipeline.compute import Compute
from pipeline.errors import BadInput
from pipeline.execution import Execution, Runtime
from pipeline.proposals.fit_thresholds import FITTED_FILE, fit_thresholds
from pipeline.proposals.knobs import Propose
from pipeline.proposals.propose import propose, propose_out_of_fold
from pipeline.proposals.samplers.mean import Mean
from pipeline.proposals.samplers.sampler import Setup
from pipeline.segmenter.augmentation import Augmentation
from pipeline.segmenter.base import train_base
from pipeline.segmenter.knobs import Base, Network, Optimisation
from pipeline.segmenter.offsets import THRESHOLDS
from pipeline.store import schema
from pipeline.store.cases import CaseStore
from pipeline.store.manifest import check_manifest
from pipeline.store.proposals import ProposalStore
from pipeline.store.tables import read_table
from tests.fixtures.builders import case_store
from tests.fixtures.networks import Constant, models, noise
from tests.fixtures.phantoms import disc

ONE = Execution(scheduler="synchronous", workers=1, progress="none")
NETWORK = Network(name="UNet", arguments={"channels": [4, 8], "strides": [2]}, multiple=2)
FOLDS = Base(
    network=NETWORK,
    optimisation=Optimisation(steps=10, learning_rate=5e-3, evaluate_every=5),
    batch=2,
    members=1,
    folds=2,
    fold_members=1,
)


def tried(**best: float) -> pl.DataFrame:
    """Rows of `thresholds` of one sampler `m`: case `NAME` has Dice 1 at its best threshold, else .5."""
    rows = [
        {"sampler": "m", "case_id": name, "class": 1, "threshold": t, "group": name, "dice": 1.0 if t == at else 0.5}
        for name, at in best.items()
        for t in THRESHOLDS
    ]
    return pl.DataFrame(rows, schema=schema.THRESHOLDS.columns)


def test_a_fold_gets_what_the_other_folds_like():
    """Six cases of fold_0 like .7 and five of fold_1 like .2: all together .7, fold_0 gets .2, and fold_1 gets .7."""
    best = {**{f"a{i}": 0.7 for i in range(6)}, **{f"b{i}": 0.2 for i in range(5)}}
    fold_of = {name: "fold_0" if name.startswith("a") else "fold_1" for name in best}
    found = fit_thresholds(tried(**best), {"m": Mean(kind="mean")}, fold_of, {})
    assert found.of_all == {"m": (0.7,)}
    assert found.of("a0") == {"m": (0.2,)}
    assert found.of("b0") == {"m": (0.7,)}
    assert found.of("of the pool") == {"m": (0.7,)}
    assert found.of_pool().of("a0") == {"m": (0.7,)}
    assert (found.notes, found.patients) == ({}, 11)


def test_seven_patients_are_too_few_for_all_and_for_every_fold():
    best = {f"a{i}": 0.7 for i in range(7)}
    found = fit_thresholds(tried(**best), {"m": Mean(kind="mean")}, dict.fromkeys(best, "fold_0"), {})
    assert found.of_all == found.of("a0") == {"m": (0.5,)}
    assert "expected at least 8 patients to fit" in found.notes["m"]


def test_members_that_the_folds_lack_are_named():
    best = {f"a{i}": 0.7 for i in range(9)}
    found = fit_thresholds(tried(**best), {"m": Mean(kind="mean")}, dict.fromkeys(best, "fold_0"), {"m": ["member_2"]})
    assert "the folds lack the members ['member_2']" in found.notes["m"]


@pytest.fixture
def cases(tmp_path, monkeypatch) -> CaseStore:
    """Ten labelled discs in noise, one of the pool, two of validation."""
    monkeypatch.chdir(tmp_path)
    truths = [disc((8, 8), 2 + i % 2) for i in range(13)]
    images = [(t + 0.5 * noise((8, 8), f"c{i}")[0])[None].astype(np.float32) for i, t in enumerate(truths)]
    return case_store(tmp_path / "cases", truths, ["labelled"] * 10 + ["pool"] + ["validation"] * 2, images)


def run(cases: CaseStore, base: Base, samplers: dict[str, Mean]) -> tuple[ProposalStore, ProposalStore]:
    runtime = Runtime(Compute(), 0, ONE)
    train_base(cases, base, Augmentation(flips=()), runtime, Path("base"), Path("history.csv"))
    knobs = Propose(samplers=dict(samplers))
    fitted = propose_out_of_fold(cases, Path("base"), knobs, Path("out_of_fold"), runtime)
    propose(cases, Path("base"), knobs, Path("out"), runtime, (), fitted)
    return ProposalStore(Path("out")), ProposalStore(Path("out_of_fold"))


def test_the_threshold_is_fitted_out_of_fold_and_used(cases):
    """The table has every threshold of every labelled case; proposals of the pool are cut at the fitted one, those
    of labelled cases at the one of their fold."""
    mean = Mean(kind="mean", flips=((1,),), thresholds=THRESHOLDS)
    found, out_of_fold = run(cases, FOLDS, {"mean": mean})
    check_manifest(Path("out_of_fold"), content=True)
    check_manifest(Path("out"), content=True)
    table = read_table(Path("out_of_fold/thresholds.parquet"), schema.THRESHOLDS)
    assert len(table) == 10 * 19
    fitted = json.loads(Path("out", FITTED_FILE).read_text())["mean"]
    assert set(fitted) == {"thresholds", "folds", "patients", "note"}
    assert (fitted["patients"], fitted["note"]) == (10, None)
    fold_of = json.loads(Path("base/models.json").read_text())["fold_of"]
    for store, case in [(found, cases.all[10]), (found, cases.all[11]), *((out_of_fold, c) for c in cases.all[:10])]:
        (threshold,) = fitted["folds"][fold_of[case.case_id]] if store is out_of_fold else fitted["thresholds"]
        slots = [store.slot("mean fitted"), store.slot(f"mean p>={threshold:g}")]
        one, other = store.masks(case, slots)
        assert np.array_equal(one, other)
    case, label = cases.all[0], cases.label(cases.all[0])
    at = table.filter(pl.col("case_id") == case.case_id).sort("threshold")["dice"].to_list()
    slots = [out_of_fold.slot(f"mean p>={t:g}") for t in THRESHOLDS]
    from pipeline.measures.overlap import dice_to

    assert at == pytest.approx(dice_to(label, out_of_fold.masks(case, slots), 2).tolist())


def test_without_folds_the_threshold_is_one_half_and_a_note_says_why(cases):
    found, _ = run(cases, FOLDS.model_copy(update={"folds": 0, "fold_members": 0}), {"mean": Mean(kind="mean")})
    fitted = json.loads(Path("out", FITTED_FILE).read_text())["mean"]
    assert fitted["thresholds"] == [0.5]
    assert fitted["note"].startswith(
        "no fold of the base left out a labelled case, so the threshold is .5; set base.folds"
    )
    one, other = found.masks(cases.all[10], [found.slot("mean all"), found.slot("mean fitted")])
    assert np.array_equal(one, other)


def test_given_thresholds_are_taken_as_they_are(cases):
    found, _ = run(cases, FOLDS, {"mean": Mean(kind="mean", fitted=(0.3,), thresholds=(0.3,))})
    one, other = found.masks(cases.all[10], [found.slot("mean fitted"), found.slot("mean p>=0.3")])
    assert np.array_equal(one, other)
    assert json.loads(Path("out", FITTED_FILE).read_text()) == {}


def test_the_mean_by_hand():
    """Base .1, members .3 and .95: the mean is .45; with flips of constant networks it stays."""
    members = {"member_1": Constant(0.3), "member_2": Constant(0.95), "fold_0": Constant(0.99)}
    case = models(Constant(0.1), np.zeros((1, 1, 1), np.float32), members=members)
    case.fitted = {"m": (0.4,)}
    draws = list(Mean(kind="mean", thresholds=(0.5,)).draw("m", case))
    assert [(d.setting, d.mask.item()) for d in draws] == [("all", 0), ("p>=0.5", 0), ("fitted", 1)]
    assert not any(d.counts for d in draws)
    assert draws[0].probability is not None
    assert torch.allclose(draws[0].probability[1], torch.tensor(0.45))


def test_wrong_knobs():
    setup = Setup(3, True, ("member_1",))
    with pytest.raises(
        BadInput, match=r"samplers.m.members: expected some of \['member_1'\], each once, found \['x'\]"
    ):
        Mean(kind="mean", members=("x",)).settings("m", setup)
    with pytest.raises(BadInput, match=r"samplers.m.fitted: expected 2 thresholds, one per foreground class"):
        Mean(kind="mean", fitted=(0.5,)).settings("m", setup)
    with pytest.raises(BadInput, match=r"samplers.m.offsets: expected offsets of the classes 0 to 2, found \[3\]"):
        Mean(kind="mean", offsets=({3: 1.0},)).settings("m", setup)


def test_flips_of_axes_that_the_case_lacks_are_refused():
    """Also while thresholds are fitted, which comes before any draw."""
    case = models(Constant(0.1), np.zeros((1, 4, 4), np.float32))
    with pytest.raises(
        BadInput, match=r"^propose.samplers.m.flips: expected axes 0 to 1 of this data, found \[2\]; correct the axes$"
    ):
        Mean(kind="mean", flips=((2,),)).probability("m", case)
