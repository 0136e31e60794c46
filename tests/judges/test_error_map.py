"""The judge `error_map`: expected Dice worked by hand, what it learns, and the maps it leaves."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from pipeline.compute import Compute
from pipeline.errors import BadInput
from pipeline.execution import Execution, Runtime
from pipeline.judges.error_maps import as_steps, error_maps
from pipeline.judges.judge import Evidence, JudgeInputs
from pipeline.judges.kinds import Judge
from pipeline.judges.kinds.error_map import ErrorMapScores
from pipeline.judges.learning.expected_dice import NETWORKS_FILE, error_of, expected_dice
from pipeline.judges.learning.truth_network import TruthNetwork, calibration_of, expected_dice_of, gap_weighted_accuracy
from pipeline.judges.score import JudgeFiles, LabelFree, judge
from pipeline.seeding import numpy_generator
from pipeline.store import schema
from pipeline.store.cases import CaseStore
from pipeline.store.proposals import Data, ProposalStore
from pipeline.store.tables import read_table
from tests.fixtures.builders import case_store, proposal_store
from tests.fixtures.phantoms import disc

TINY: dict[str, Any] = {
    "networks": 1,
    "network": {"arguments": {"channels": [4, 8], "strides": [2]}, "multiple": 2},
    "optimisation": {"steps": 3, "learning_rate": 0.01, "evaluate_every": 3},
    "batch": 4,
}


SIX = ("c0", "c1", "c2", "c3", "c4", "c5")


def knobs_of(**knobs: Any) -> Any:
    return TypeAdapter(Judge).validate_json(json.dumps({"kind": "error_map", **TINY, **knobs}))


def probability(foreground: list[float]) -> np.ndarray:
    """f32 `[class, voxel]` of two classes."""
    p = np.array(foreground, np.float32)
    return np.stack([1 - p, p])


# ---- expected Dice ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("foreground", "mask", "expected"),
    [
        # Certainly there (m = 1): 2 (1 + .5) / (2 + 1 + .5 + .5).
        ([1, 0.5, 0.5, 0], [1, 1, 0, 0], 0.75),
        # There with probability .5, and then certain voxels: the whole of it 2 (.5 + .5) / (2 + 1 / .5), half of it
        # 2 (.5) / (1 + 2), nothing .5. Where it is not there only the empty mask has a Dice.
        ([0.5, 0.5, 0, 0], [1, 1, 0, 0], 0.5),
        ([0.5, 0.5, 0, 0], [1, 0, 0, 0], 1 / 3),
        ([0.5, 0.5, 0, 0], [0, 0, 0, 0], 0.5),
        # Certainly absent.
        ([0, 0, 0, 0], [0, 0, 0, 0], 1),
        ([0, 0, 0, 0], [1, 0, 0, 0], 0),
        # A full mask of a truth of one voxel: 2 / (4 + 1).
        ([1, 0, 0, 0], [1, 1, 1, 1], 0.4),
        # Voxels of 255 count in no sum, nor as the place where the class may be.
        ([1, 0.5, 0.25, 0], [255, 1, 0, 0], 2 * 0.5 / (1 + 0.75 / 0.5)),
        ([1, 0, 0, 0], [255, 0, 0, 0], 1),
    ],
)
def test_expected_dice(foreground, mask, expected):
    p, y = probability(foreground), np.array(mask, np.uint8)
    assert expected_dice(p, y).tolist() == pytest.approx([expected])
    found = expected_dice_of(torch.tensor(p)[None], torch.tensor(y)[None], torch.tensor(y != 255)[None])
    assert found.tolist() == [pytest.approx([expected], abs=1e-6)]


def test_expected_dice_per_class():
    """Class 1 as above, 2 (.8) / (1 + .8 / .8); class 2 is likely absent, the mask has none of it: 1 - .2."""
    p = np.array([[0, 0.8], [0.8, 0], [0.2, 0.2]], np.float32)
    assert expected_dice(p, np.array([1, 0], np.uint8)).tolist() == pytest.approx([0.8, 0.8])


def test_without_a_known_voxel_nothing_is_expected():
    assert np.isnan(expected_dice(probability([1, 0]), np.array([255, 255], np.uint8))).all()


def test_error_of_a_voxel():
    """1 - p of the mask's class, and as it is stored: 254 steps, 255 for unknown."""
    p = probability([0.25, 0.25, 1, 0])
    errors = error_of(p, np.array([1, 0, 1, 255], np.uint8))
    assert errors.tolist() == pytest.approx([0.75, 0.25, 0, np.nan], nan_ok=True)
    assert as_steps(errors).tolist() == [190, 64, 0, 255], "190.5 and 63.5 rounded to even"


# ---- the network -----------------------------------------------------------------------------------------------


def test_before_training_the_probability_is_the_mean_probability():
    """Whatever the network answers; a voxel outside the case is background. Half a step stands for 0."""
    seen = torch.zeros(1, 3, 1, 4)
    seen[0, 2, 0] = torch.tensor([0, 0.25, 1, 0.5])
    found = TruthNetwork(torch.nn.Conv2d(3, 2, 1), channels=1, given_mask=True)(seen).exp()
    assert found[0, 1, 0].tolist() == pytest.approx([0, 0.25, 1, 0.5], abs=1 / 500)


@pytest.mark.parametrize("given_mask", [False, True])
def test_a_hidden_mask_changes_nothing(given_mask):
    network = TruthNetwork(torch.nn.Conv2d(2 + given_mask, 2, 3, padding=1), channels=1, given_mask=given_mask)
    with torch.no_grad():
        network.factors[1] = 1.0
    first, second = torch.full((2, 1, 3, 4, 4), 0.5)
    second[:, 1] = 0
    assert torch.equal(network(first), network(second)) == (not given_mask)


def test_weights_are_chosen_by_the_order_of_proposals():
    """True gaps .1 (wrong), .4 and .3 (right): .7 / .8. All tied: one half; a case without a gap does not count."""
    truth, wrong, equal = (np.array(values)[:, None] for values in ([0.5, 0.6, 0.9], [0.2, 0.1, 0.3], [0.4] * 3))
    assert gap_weighted_accuracy([wrong], [truth], ["p"]) == pytest.approx(0.875)
    assert gap_weighted_accuracy([wrong * 1e-3, truth], [truth, equal], ["p", "q"]) == pytest.approx(0.875)
    assert gap_weighted_accuracy([equal], [truth], ["p"]) == 0.5
    assert gap_weighted_accuracy([truth], [equal], ["p"]) == 0.5
    assert gap_weighted_accuracy([wrong, wrong, truth], [truth] * 3, ["p", "p", "q"]) == pytest.approx((0.875 + 1) / 2)


def test_calibration_of_voxels():
    """Bin 0 predicts .05 twice and one is wrong, |.1 - 1|; bin 9 predicts .95 of a wrong one, .05: .95 / 3. Squares
    .0025, .9025, .0025."""
    predicted, wrong = np.array([0.05, 0.05, 0.95]), np.array([False, True, True])
    found = calibration_of(predicted, wrong, "_x")
    assert found == {"ece_x": pytest.approx(0.95 / 3), "brier_x": pytest.approx(0.9075 / 3)}
    assert calibration_of(predicted[:0], wrong[:0], "") == {"ece": 0, "brier": 0}


# ---- learning and maps -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> tuple[CaseStore, ProposalStore, ProposalStore]:
    """Discs that the image shows, and proposals that add an island as often as not: a vote cannot tell.

    Six labelled cases, then two of validation (`c6`, `c7`) and three of the pool.
    """
    folder = tmp_path_factory.mktemp("stores")
    labels, images, masks = [], [], []
    for row in range(11):
        draw = numpy_generator("islands", row)
        there = disc((16, 16), 3.5, -3).astype(np.uint8)
        island = disc((16, 16), 2.5, 4).astype(np.uint8)
        labels.append(there)
        images.append((there + 0.1 * draw.normal(size=(16, 16))).astype(np.float32)[None])
        masks.append(np.stack([there | island, there, there | island, there]))
    splits = ["labelled"] * 6 + ["validation"] * 2 + ["pool"] * 3
    cases = case_store(folder / "cases", labels, splits, images, (16, 16))
    return cases, proposal_store(folder / "proposals", masks), proposal_store(folder / "out_of_fold", masks)


def judged(
    knobs: Any, stores: tuple[CaseStore, ProposalStore, ProposalStore], folder: Path, scheduler: Any = "synchronous"
) -> bytes:
    execution = Execution(scheduler=scheduler, progress="none")
    judge(
        "e",
        knobs,
        Data(*stores[:2]),
        stores[2],
        JudgeFiles(folder / "models", folder / "e.parquet"),
        Runtime(Compute(), 0, execution),
    )
    return (folder / "e.parquet").read_bytes()


@pytest.mark.parametrize("given_mask", [False, True])
def test_it_learns_what_a_vote_cannot_tell(tmp_path, stores, given_mask):
    """An island that is in half of the proposals and in no truth: the learned probability of it falls below one half
    of the vote's, and what is written says how patients held out were judged."""
    cases, proposals, out_of_fold = stores
    optimisation = {"steps": 24, "learning_rate": 0.01, "evaluate_every": 12}
    knobs = knobs_of(given_mask=given_mask, optimisation=optimisation, networks=2)
    at = JudgeInputs(cases, proposals, out_of_fold, tmp_path, Compute(), 0)
    scorer = knobs.ready(at)
    networks = json.loads((at.models / NETWORKS_FILE).read_text())["networks"]
    for network in networks:
        assert network["mean_probability"]["pair_accuracy"] == 0, "a mask with the island is nearer to the mean"
        assert (network["measures"]["pair_accuracy"], network["measures"]["lift"]) == (1, pytest.approx(0.2))
        assert network["measures"]["brier_disputed"] < 0.25 / 4, "a vote of one half has 0.25"
        assert network["step"] > 0
    held_out = [set(network["held_out"]) for network in networks]
    assert all(held_out)
    assert not held_out[0] & held_out[1]
    assert held_out[0] | held_out[1] < set(SIX)
    evidence = Evidence(LabelFree(cases.folder), proposals, cases.split("validation")[0])
    scores = scorer.score(evidence)
    assert scores[0] < scores[1]
    assert scores[[0, 1]].tolist() == scores[[2, 3]].tolist()
    errors = scorer.errors(evidence)
    island = evidence.masks[0] != evidence.masks[1]
    assert errors[0][island].mean() > 0.75
    assert errors[1][island].mean() < 0.25


def test_a_patient_is_judged_by_networks_that_have_not_seen_it(tmp_path, stores):
    """With two networks that hold out other patients, a labelled case has the score of its one network."""
    cases, proposals, out_of_fold = stores
    scorer = knobs_of(networks=2).ready(JudgeInputs(cases, proposals, out_of_fold, tmp_path, Compute(), 0))
    for number, groups in enumerate(scorer.held_out):
        alone = replace(scorer, held_out=((),) * number + (groups,))
        for case in (case for case in cases.split("labelled") if case.group in groups):
            evidence = Evidence(LabelFree(cases.folder), proposals, case)
            assert scorer.score(evidence).tolist() == alone.score(evidence).tolist()


def test_what_is_learned_is_not_learned_again(tmp_path, stores):
    cases, proposals, out_of_fold = stores
    at = JudgeInputs(cases, proposals, out_of_fold, tmp_path, Compute(), 0)
    knobs_of(networks=2).ready(at)
    files = [tmp_path / NETWORKS_FILE, tmp_path / "network_0.safetensors", tmp_path / "network_1.safetensors"]
    content, times = [file.read_bytes() for file in files], [file.stat().st_mtime_ns for file in files]
    knobs_of(networks=2).ready(at)
    assert [file.stat().st_mtime_ns for file in files] == times
    # Killed in the second network: the first one is kept, the second comes out the same.
    for file in (files[0], files[2], tmp_path / "network_1.json"):
        file.unlink()
    knobs_of(networks=2).ready(at)
    assert [file.read_bytes() for file in files] == content
    assert files[1].stat().st_mtime_ns == times[1]
    assert files[2].stat().st_mtime_ns != times[2]


@pytest.mark.parametrize("given_mask", [False, True])
def test_maps_of_validation_cases(tmp_path, monkeypatch, stores, given_mask):
    """The errors that the scorer gives, in steps, whatever the scheduler; no shard without a case that is asked for."""
    monkeypatch.chdir(tmp_path)
    cases, proposals, _ = stores
    knobs = knobs_of(given_mask=given_mask, maps="validation")
    written = []
    for scheduler in ("synchronous", "threads"):
        judged(knobs, stores, tmp_path, scheduler)
        files = sorted(path for path in (tmp_path / "models").rglob("*") if path.is_file())
        written.append({path.relative_to(tmp_path).as_posix(): path.read_bytes() for path in files})
    assert written[0] == written[1]
    assert len([name for name in written[0] if "error.zarr/c/" in name]) == 2, "of 11 shards of one case"
    scorer = ErrorMapScores(knobs, tmp_path / "models", Compute(), ((),))
    for case in cases.split("validation", "pool"):
        found = error_maps(tmp_path / "models", case)
        assert (found.dtype, found.shape) == (np.float32, (4, 16, 16))
        if case.split == "pool":
            assert np.isnan(found).all()
        else:
            expected = scorer.errors(Evidence(cases, proposals, case))
            assert np.abs(found - expected).max() <= 0.5 / 254 + 1e-6


def test_maps_change_no_score(tmp_path, monkeypatch, stores):
    monkeypatch.chdir(tmp_path)
    tables = []
    for maps in ("none", "all"):
        judged(knobs_of(maps=maps), stores, tmp_path)
        tables.append(read_table(tmp_path / "e.parquet", schema.SCORES))
        array = tmp_path / "models" / "error.zarr"
        assert array.is_dir() == (maps == "all")
    assert tables[0].equals(tables[1])
    assert not np.isnan(error_maps(tmp_path / "models", stores[0].split("pool")[0])).any()


def test_maps_that_were_not_stored(tmp_path, stores):
    with pytest.raises(BadInput, match=r"error.zarr: no such array"):
        error_maps(tmp_path, stores[0].all[0])


# ---- what is refused -------------------------------------------------------------------------------------------


def test_too_few_patients(tmp_path, stores):
    cases, proposals, out_of_fold = stores
    at = JudgeInputs(cases, proposals, out_of_fold, tmp_path, Compute(), 0)
    with pytest.raises(BadInput, match=r"labelled cases of at least 7 groups, .* found 6; label more or lower `netw"):
        knobs_of(networks=7).ready(at)


@pytest.mark.parametrize("network", [{"window": [8, 8]}, {"head": "sigmoid"}])
def test_networks_that_do_not_fit(network):
    with pytest.raises(ValidationError, match=r"expected window null .cases are seen whole. and head 'softmax'"):
        knobs_of(network=network)
