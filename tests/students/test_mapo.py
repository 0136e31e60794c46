"""MAPO: pairs of hypotheses made online, against those mined offline, and what they do to a student."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.compute import Compute
from pipeline.errors import BadInput
from pipeline.judges.judge import Evidence
from pipeline.judges.kinds.agreement import Agreement
from pipeline.judges.kinds.oracle import Oracle
from pipeline.measures.overlap import dice_to
from pipeline.pairs.mine import PairSet, mine
from pipeline.pairs.strategies.top_bottom import TopBottom
from pipeline.segmenter.segmenter import Segmenter
from pipeline.store.schema import UNKNOWN
from pipeline.students.batch import LabelledBatch
from pipeline.students.objectives.mapo import Mapo
from pipeline.students.objectives.mapo_pairs import OnlinePairs, best_over_worst
from pipeline.students.objectives.preference import PairObjective
from pipeline.students.student import Anchor
from tests.fixtures.builders import bars, case_store, panel_of, proposal_store
from tests.fixtures.chain import TINY, run_chain, with_changes
from tests.fixtures.students import SPACE, Setting, made


def mapo(**knobs: Any) -> Mapo:
    """As from `params.yaml`; drops everywhere, since networks of tests are shallow."""
    return Mapo.model_validate({"kind": "mapo", "hypotheses": 4, "at": "all", "tau": 0.001, **knobs})


def online(setting: Setting, knobs: Mapo) -> OnlinePairs:
    reference, policy = (Segmenter(setting.base.load(), setting.base.architecture, Compute()) for _ in range(2))
    return OnlinePairs(knobs, reference, policy, 7)


def labelled_batch(setting: Setting, at: OnlinePairs) -> LabelledBatch:
    """All labelled cases as they are."""
    rows = setting.cases.split("labelled")
    images = torch.stack([torch.from_numpy(setting.cases.image(case)) for case in rows])
    labels = torch.stack([torch.from_numpy(setting.cases.label(case)) for case in rows])
    return LabelledBatch([(1.0, at.policy.network(images))], labels, images)


# ---- pairs by hand ---------------------------------------------------------------------------------------------


def test_the_best_is_chosen_and_the_worst_rejected_from_tau_on():
    """Bars of 4, 8 and 16 pixels scored .5, .9 and .7: 8 over 4, |D| = 4, at a gap of .4."""
    masks, scores = bars([4, 8, 16]), np.array([0.5, 0.9, 0.7])
    assert best_over_worst([masks], [scores], 0.39, 1) == [(0, 1, 0)]
    assert best_over_worst([masks], [scores], 0.41, 1) == []
    assert best_over_worst([masks], [scores], 0.39, 4) == [(0, 1, 0)]
    assert best_over_worst([masks], [scores], 0.39, 5) == []


def test_ties_copies_and_abstentions_make_no_pair_by_index():
    best_twice = np.array([0.9, 0.9, 0.1])
    assert best_over_worst([bars([4, 8, 16])], [best_twice], 0.01, 1) == []
    copies = bars([8, 8, 16])  # the second 8 is the first again: one hypothesis, so no tie
    assert best_over_worst([copies], [best_twice], 0.01, 1) == [(0, 0, 2)]
    assert best_over_worst([bars([4, 8, 16])], [np.array([np.nan, 0.9, 0.1])], 0.01, 1) == [(0, 1, 2)]
    assert best_over_worst([bars([4, 8, 16])], [np.array([np.nan, np.nan, 0.1])], 0.01, 1) == []
    assert best_over_worst([bars([8, 8, 8])], [np.array([0.5, 0.5, 0.5])], 0.01, 1) == []


@given(
    st.lists(
        st.lists(st.sampled_from([0.1, 0.3, 0.5, 0.52, 0.8, float("nan")]), min_size=4, max_size=4),
        min_size=1,
        max_size=3,
    ),
    st.sampled_from([0.02, 0.2]),
)
@settings(max_examples=60)
def test_pairs_are_those_of_all_comparisons(scores, tau):
    """At most one pair per image: one score is above all others, one below all others, and they are tau apart."""
    masks = [bars([1, 3, 6, 10])] * len(scores)
    expected = []
    for image, row in enumerate(scores):
        known = [slot for slot in range(4) if not np.isnan(row[slot])]
        best = [a for a in known if all(row[a] > row[b] for b in known if b != a)]
        worst = [a for a in known if all(row[a] < row[b] for b in known if b != a)]
        if len(known) > 1 and best and worst and row[best[0]] - row[worst[0]] >= tau:
            expected.append((image, best[0], worst[0]))
    assert best_over_worst(masks, [np.array(row) for row in scores], tau, 1) == expected


def test_the_sweep_of_rates():
    assert mapo(hypotheses=5, rates=(0.1, 0.5)).sweep() == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert mapo(hypotheses=2, rates=(0.3, 0.3)).sweep() == [0.3, 0.3]


# ---- online is offline -----------------------------------------------------------------------------------------


def test_the_offline_form_gives_the_same_pairs_for_the_same_hypotheses(tmp_path: Path):
    """Hypotheses of the labelled cases, stored as proposals, scored by the oracle and mined by `top_bottom`."""
    setting = made(tmp_path)
    at = online(setting, mapo(prediction=True, tau=0.02))
    seen = labelled_batch(setting, at)
    batch, row = at.of_labelled(seen, 1)
    drawn, _ = at.hypotheses(seen.images, 1)
    own = (seen.logits[:, 1] > seen.logits[:, 0]).byte()
    masks = list(torch.cat([own[:, None], drawn], dim=1).numpy())
    cases = case_store(tmp_path / "stored", list(seen.labels.numpy()), ["labelled"] * 2, list(seen.images.numpy()))
    proposals = proposal_store(tmp_path / "drawn", masks)
    oracle = Oracle(kind="oracle")
    scores = [oracle.score(Evidence(cases, proposals, case, True)).tolist() for case in cases.all]
    pairs = PairSet(judge="oracle", strategy=TopBottom(kind="top_bottom", min_margin=0.02))
    mined, _ = mine(panel_of(cases, proposals, {"oracle": scores}).lazy(), proposals, pairs, "labelled", 0)
    assert len(mined), "no pair to compare: draw other hypotheses"
    assert mined["case"].to_list() == batch.image.tolist()
    chosen, rejected = (
        np.stack([masks[case][slot] for case, slot in mined.select("case", name).rows()])
        for name in ("chosen", "rejected")
    )
    assert (batch.chosen.numpy() == chosen).all()
    assert (batch.rejected.numpy() == rejected).all()
    assert row["online/images_with_pair"] == len(mined) / 2
    assert (batch.reference == at.reference.network(seen.images)).all()


def test_the_gap_is_that_of_dice_with_the_label(tmp_path: Path):
    setting = made(tmp_path)
    at = online(setting, mapo())
    seen = labelled_batch(setting, at)
    batch, _ = at.of_labelled(seen, 1)
    assert len(batch.image)
    for image, chosen, rejected in zip(batch.image, batch.chosen, batch.rejected, strict=True):
        better, worse = dice_to(seen.labels[image].numpy(), np.stack([chosen, rejected]), 2)
        assert better - worse >= 0.001


def test_a_judge_without_labels_gives_the_pairs_that_it_gives_stored_proposals(tmp_path: Path):
    setting = made(tmp_path)
    at = online(setting, mapo(ranker={"kind": "agreement"}))
    seen = labelled_batch(setting, at)
    known = torch.ones(seen.labels.shape, dtype=torch.bool)
    start, _ = at.of_labelled(seen, 3)
    batch, _ = at.of_pool(replace(start, known=known), 3)
    masks = list(at.hypotheses(seen.images, 3)[0].numpy())
    cases = case_store(tmp_path / "stored", [None] * 2, images=list(seen.images.numpy()), space=SPACE)
    stored = proposal_store(tmp_path / "drawn", masks)
    scores = [Agreement(kind="agreement").score(Evidence(cases, stored, case)) for case in cases.all]
    expected = best_over_worst(masks, scores, 0.001, 1)
    assert len(expected)
    assert batch.image.tolist() == [pair.image for pair in expected]
    assert [x.tolist() for x in batch.chosen] == [masks[pair.image][pair.chosen].tolist() for pair in expected]


def test_the_prediction_among_the_hypotheses_is_that_of_the_clean_image(tmp_path: Path):
    """The logits of a pool batch are of strong views: here they are turned round, and change no pair."""
    setting = made(tmp_path)
    at = online(setting, mapo(prediction=True, ranker={"kind": "agreement"}))
    seen = labelled_batch(setting, at)
    known = torch.ones(seen.labels.shape, dtype=torch.bool)
    start, _ = at.of_labelled(seen, 3)
    clean, _ = at.of_pool(replace(start, known=known), 3)
    turned, _ = at.of_pool(replace(start, known=known, logits=-start.logits), 3)
    assert len(clean.image)
    for part in ("image", "chosen", "rejected"):
        assert getattr(clean, part).equal(getattr(turned, part))


def test_unknown_voxels_are_in_no_disagreement(tmp_path: Path):
    setting = made(tmp_path)
    at = online(setting, mapo())
    seen = labelled_batch(setting, at)
    seen.labels[:, :, :4] = UNKNOWN
    batch, _ = at.of_labelled(seen, 1)
    assert (batch.chosen[:, :, :4] == UNKNOWN).all()
    assert (batch.voxels == 32).all()
    assert not batch.known[:, :, :4].any()


def test_hypotheses_follow_from_seed_and_step_alone(tmp_path: Path):
    setting = made(tmp_path)
    images = labelled_batch(setting, online(setting, mapo())).images
    one, again, later = (online(setting, mapo()).hypotheses(images, step)[0] for step in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, later)
    assert one.shape == (2, 4, *SPACE)
    assert any(not torch.equal(one[:, a], one[:, b]) for a, b in combinations(range(4), 2))


# ---- students --------------------------------------------------------------------------------------------------


def test_where_no_pair_reaches_tau_it_is_supervised_training(tmp_path: Path):
    """Equal weights to the last bit; the history says that no batch had a pair."""
    from pipeline.students.objectives.supervised import Supervised

    setting = made(tmp_path)
    rows = setting.train(mapo(tau=0.999999), out="mapo", learning_rate=1e-2)
    setting.train(Supervised(kind="supervised"), out="supervised", learning_rate=1e-2)
    one, other = ((setting.folder / name / "last.safetensors").read_bytes() for name in ("mapo", "supervised"))
    assert one == other
    assert rows[-1]["online/batches_with_pair"] == 0
    setting.train(mapo(weight=5.0), out="paired", learning_rate=1e-2)
    assert (setting.folder / "paired" / "last.safetensors").read_bytes() != one


def test_the_preference_term_widens_the_margin_of_its_pairs(tmp_path: Path):
    """On one batch, seen again and again: the loss of the pairs falls from log 2 at the base."""
    setting = made(tmp_path)
    at = online(setting, mapo())
    batch, _ = at.of_labelled(labelled_batch(setting, at), 1)
    bound = mapo().bind(at.statistics([batch]))
    optimiser = torch.optim.SGD(at.policy.network.parameters(), lr=0.05)
    losses = []
    for _ in range(5):
        assert batch.images is not None
        loss, _ = bound(replace(batch, logits=at.policy.network(batch.images)))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(np.log(2), abs=1e-6)
    assert losses == sorted(losses, reverse=True)


def test_the_history_shows_pairs_and_the_three_claims(tmp_path: Path):
    rows = made(tmp_path).train(mapo(), steps=4, every=2, learning_rate=1e-3)
    for name in ("labelled_dice", "validation_dice", "validation_assd"):
        assert all(row[name] is not None for row in rows)
    for name in ("online/batches_with_pair", "online/images_with_pair", "online/spread", "online/headroom"):
        assert rows[-1][name] is not None
    assert rows[-1]["supervised"] > 0


def test_a_moving_reference_follows_the_student(tmp_path: Path):
    """The student's weights grow by 1, and the reference keeps 9 tenths of the base's: it grows by 1/10."""
    setting = made(tmp_path)
    at = online(setting, mapo(reference_decay=0.9))
    labelled = labelled_batch(setting, at)
    base = setting.base.load()
    with torch.no_grad():
        frozen = base(labelled.images)
    for value in at.policy.network.state_dict().values():
        value.add_(1.0)
    batch, _ = at.of_labelled(labelled, 1)
    assert torch.equal(batch.reference, frozen)
    assert torch.equal(batch.moving, frozen)
    at.follow()
    batch, _ = at.of_labelled(labelled, 2)
    # How far the student has drifted is still told from the base.
    assert torch.equal(batch.reference, frozen)
    assert not torch.equal(batch.moving, frozen)
    bound = at.knobs.bind(at.statistics([batch]))
    assert torch.equal(bound._reference(batch), batch.moving)
    assert at.average is not None
    moved, before = (net.state_dict() for net in (at.average.network, setting.base.load()))
    for name, value in moved.items():
        assert torch.allclose(value, before[name] + 0.1, atol=1e-6)
    assert made(tmp_path / "run").train(mapo(reference_decay=0.9), learning_rate=1e-2)


@pytest.mark.parametrize("kind", ["agreement", "expected_dice", "likelihood", "entropy"])
def test_a_judge_ranks_pool_images_that_have_no_label(tmp_path: Path, kind: str):
    setting = made(tmp_path, without_label=(2, 3))
    rows = setting.train(mapo(ranker={"kind": kind}), anchor=Anchor(), steps=2, learning_rate=1e-3)
    assert rows[-1]["online/spread"] is not None
    assert rows[-1]["supervised"] is not None
    assert rows[-1].get("online/headroom") is None


def test_what_cannot_be_is_refused(tmp_path: Path):
    with pytest.raises(ValidationError, match="lower rate first"):
        mapo(rates=(0.5, 0.1))
    with pytest.raises(ValidationError, match="made online"):
        mapo(link={"kind": "cdpo", "e": "calibrated"})
    with pytest.raises(ValidationError, match="made online"):
        mapo(normaliser="voxel", link={"kind": "cdpo", "e": "votes"})
    with pytest.raises(BadInput, match=r"no two hypotheses of the base differ by tau = 0.999.*beta_unit: own"):
        made(tmp_path).train(mapo(tau=0.999, normaliser="none"))
    assert issubclass(Mapo, PairObjective)


def test_a_student_that_learns_from_labels_needs_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tests.fixtures.students.SPLITS", ["pool", "pool", "pool", "pool", "validation"])
    setting = made(tmp_path)
    with pytest.raises(BadInput, match="student 'tried' learns from labels, and no case is in split 'labelled'"):
        setting.train(mapo())
    with pytest.raises(BadInput, match="no case is in split 'labelled'"):
        setting.train(mapo(ranker={"kind": "agreement"}), anchor=Anchor())
    rows = setting.train(mapo(ranker={"kind": "agreement"}), anchor=None)
    assert rows[-1]["labelled_dice"] is None


def test_the_chain_with_every_form(tmp_path: Path):
    """As a user runs it, into the report: online by the labels and by a judge, and offline from stored proposals."""
    objective = {"kind": "mapo", "hypotheses": 2, "at": "all", "tau": 0.001}
    students = {
        "supervised": TINY["students"]["supervised"],
        "mapo": {"pairs": "none", "objective": objective},
        "mapo_pool": {
            "pairs": "none",
            "objective": {**objective, "normaliser": "none", "ranker": {"kind": "expected_dice"}},
            "anchor": {"supervised": 1.0},
        },
        "mapo_offline": {"pairs": "offline", "objective": {"kind": "preference"}, "anchor": {"supervised": 1.0}},
    }
    offline = {"judge": "oracle", "split": "labelled", "strategy": {"kind": "top_bottom", "min_margin": 0.001}}
    changes = {
        "judges": {"oracle": {"kind": "oracle"}},
        "propose": {**TINY["propose"], "splits": ["labelled", "pool", "validation"]},
        "pairs": {"none": TINY["pairs"]["none"], "offline": offline},
    }
    run_chain(tmp_path, with_changes(students=students, **changes))
    cases = pl.read_parquet(tmp_path / "data/cases/cases.parquet")
    pairs = pl.read_parquet(tmp_path / "data/pairs/offline.parquet")
    assert len(pairs)
    assert set(pairs["case_id"]) <= set(cases.filter(split="labelled")["case_id"])
    assert json.loads((tmp_path / "models/students/mapo_offline/student.json").read_text())["pairs_mined"] == len(pairs)
    page = (tmp_path / "reports/index.html").read_text()
    assert "mapo_pool" in page
    assert (tmp_path / "metrics/mapo.json").is_file()
