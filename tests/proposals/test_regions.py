"""Sampler `regions`: regions and features by hand, the composed mask, the gate, and the stage with it."""

from __future__ import annotations

import hashlib
import json
import pickle
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from pipeline.compute import Compute
from pipeline.errors import BadInput
from pipeline.execution import Execution, Runtime
from pipeline.proposals.fit_regions import REGIONS_FILE, SEEN, fit_regions
from pipeline.proposals.knobs import Propose
from pipeline.proposals.propose import propose, propose_out_of_fold
from pipeline.proposals.regions import FEATURES, Options, RegionModel, Regions, composed
from pipeline.proposals.samplers.regions import RegionsSampler
from pipeline.proposals.samplers.sampler import Draw
from pipeline.segmenter.augmentation import Augmentation
from pipeline.segmenter.base import train_base
from pipeline.segmenter.knobs import Base, Network, Optimisation
from pipeline.segmenter.offsets import mask_at
from pipeline.store import schema
from pipeline.store.cases import CaseStore
from pipeline.store.manifest import check_manifest
from pipeline.store.proposals import ProposalStore
from tests.fixtures.builders import case_store
from tests.fixtures.networks import given, noise
from tests.fixtures.phantoms import disc

COLUMN = {name: at for at, name in enumerate(FEATURES)}


def options_of(*sizes: int, label: int = 1) -> Options:
    count = len(sizes)
    return Options(np.arange(count), np.full(count, label), np.array(sizes), np.zeros((count, 0)))


# ---- regions and features --------------------------------------------------------------------------------------


def test_regions_by_hand():
    """Votes 1,1 | 1,0 | 0,0 | 1,0: the second and the fourth voxel vote alike, but they do not touch."""
    found = Regions.of(np.array([[1, 1, 0, 1], [1, 0, 0, 0]], np.uint8))
    assert found.of_voxel.tolist() == [0, 1, -1, 2]
    assert found.size.tolist() == [1, 1, 1]
    assert found.votes.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_regions_touch_by_faces_in_3d():
    """Two voxels of a 2x2x2 cube that share an edge only are two regions; a third joins both."""
    mask = np.zeros((1, 2, 2, 2), np.uint8)
    mask[0, 0, 0, 0] = mask[0, 0, 1, 1] = 1
    assert len(Regions.of(mask).size) == 2
    mask[0, 0, 0, 1] = 1
    assert Regions.of(mask).size.tolist() == [3]


def test_unknown_voxels_are_no_vote():
    found = Regions.of(np.array([[255, 255, 1], [255, 2, 2]], np.uint8))
    assert found.of_voxel.tolist() == [-1, 0, 1]


def test_features_by_hand():
    """A row of six voxels; the fixed proposal fills the first four, and one of two voters leaves the last two of these.

    Regions are voxels 0-1 (both votes) and 2-3 (one vote). The radius is 4 / 2 = 2. Signed distances of the fixed
    proposal are 3.5, 2.5, 1.5 and .5: means 3 and 1, in radii 1.5 and .5. Intensities are 2, 2, 2, 2, 0, 0 with a
    standard deviation of sqrt(8/9). One step of five, between voxels 3 and 4, is not 0.
    """
    fixed = np.array([1, 1, 1, 1, 0, 0], np.uint8)
    regions = Regions.of(np.stack([fixed, np.array([1, 1, 0, 0, 0, 0], np.uint8)]))
    probability = np.array([0.8, 0.8, 0.6, 0.4, 0.1, 0.1])
    image = np.array([[2, 2, 2, 2, 0, 0]], np.float32)
    options = regions.options(np.stack([1 - probability, probability]).astype(np.float32), image, fixed)
    assert (options.region.tolist(), options.label.tolist(), options.size.tolist()) == ([0, 1], [1, 1], [2, 2])
    jump = 2 / np.sqrt(8 / 9)
    expected = {
        "share": np.log([2.5 / 0.5, 1.5 / 1.5]),
        "probability": [np.log(4), 0],
        "distance": [1.5, 0.5],
        "contrast": [jump, jump],
        "surroundings": [0, jump / 2],
        "edge": np.log([0.1, 2.6]),
        "touch": [1, 0.5],
        "size": np.log([0.5, 0.5]),
        "case_size": np.log([5 / 6] * 2),
        "case_agreement": [0.75, 0.75],
        "case_sure": [0.65, 0.65],
    }
    for name, values in expected.items():
        assert options.values[:, COLUMN[name]] == pytest.approx(np.array(values), abs=1e-6), name


def test_every_foreground_class_has_options():
    """One voxel with votes 1 and 2 is an option for both. The last feature says that the class is 2."""
    regions = Regions.of(np.array([[1, 0], [2, 0]], np.uint8))
    probability = np.full((3, 2), 1 / 3, np.float32)
    found = regions.options(probability, np.zeros((1, 2), np.float32), np.array([1, 0], np.uint8))
    assert (found.region.tolist(), found.label.tolist()) == ([0, 0], [1, 2])
    assert found.values[:, len(FEATURES) :].tolist() == [[0], [1]]


@pytest.mark.parametrize("fill", [0, 1])
def test_an_empty_and_a_full_case_have_finite_features(fill):
    masks = np.full((2, 3, 4), fill, np.uint8)
    regions = Regions.of(masks)
    found = regions.options(np.full((2, 3, 4), 0.5, np.float32), np.zeros((1, 3, 4), np.float32), masks[0])
    assert len(found.region) == fill
    assert np.isfinite(found.values).all()
    share = composed(found, np.full(fill, 0.5), (0.0,)).field(regions)
    assert share.shape == (2, 3, 4)


# ---- composition -----------------------------------------------------------------------------------------------


def test_a_region_of_a_third_is_taken_where_dice_is_low():
    """Shares .3 of 10 voxels and .2 of 10: E|T| is 5. Dice of the first is 2*3/(10+5) = .4, of both 2*5/25 = .4.

    The first of equals is taken: only the first region. With .25, the Dice of both is 2*5.5/25.5 = .431 against .387.
    """
    assert composed(options_of(10, 10), np.array([0.3, 0.2]), (0.0,)).labels().tolist() == [1, 0]
    assert composed(options_of(10, 10), np.array([0.3, 0.25]), (0.0,)).labels().tolist() == [1, 1]


def test_a_region_of_a_third_is_left_where_dice_is_high():
    """A sure region of 90 voxels and one of 10 with share .3: 2*90/(90+93) = .984 against 2*93/193 = .964."""
    found = composed(options_of(90, 10), np.array([1.0, 0.3]), (0.0,))
    assert found.labels().tolist() == [1, 0]
    assert found.thresholds == pytest.approx((0.65,))


def test_truth_outside_of_the_regions_lowers_the_threshold():
    """As above with .48: 180/184.8 = .974 against 189.6/194.8 = .973. With as much truth outside as inside, E|T| is
    189.6, and both are better: 180/279.6 = .644 against 189.6/289.6 = .655."""
    share = np.array([1.0, 0.48])
    assert composed(options_of(90, 10), share, (0.0,)).labels().tolist() == [1, 0]
    assert composed(options_of(90, 10), share, (1.0,)).labels().tolist() == [1, 1]


def test_no_other_set_of_regions_has_a_higher_expected_dice():
    generator = np.random.default_rng(0)
    for _ in range(50):
        size, share = generator.integers(1, 30, 6), generator.uniform(0, 1, 6)
        truth = (size * share).sum()
        best = max(
            2 * (size * share * taken).sum() / ((size * taken).sum() + truth)
            for taken in map(np.array, product((0, 1), repeat=6))
        )
        taken = composed(options_of(*size.tolist()), share, (0.0,)).labels()
        assert 2 * (size * share * taken).sum() / ((size * taken).sum() + truth) == pytest.approx(best)


def test_the_mask_of_the_field_is_that_of_the_regions():
    """Three classes at random: `mask_at` on voxels gives the classes of the regions, also in 3D."""
    generator = np.random.default_rng(1)
    for space in ((9, 7), (4, 5, 6)):
        regions = Regions.of(generator.integers(0, 3, (3, *space)).astype(np.uint8))
        has = np.stack([(regions.votes == label).any(0) for label in (1, 2)])
        label, region = np.nonzero(has)
        options = Options(region, label + 1, regions.size[region], np.zeros((len(region), 0)))
        found = composed(options, generator.uniform(0, 1, len(region)), (0.1, 0.2))
        mask = mask_at(torch.from_numpy(found.field(regions)), found.thresholds)
        assert (mask == np.append(found.labels(), 0)[regions.of_voxel]).all()


# ---- the sampler -----------------------------------------------------------------------------------------------


def model_of(**weights: float) -> RegionModel:
    """A model of one foreground class, whose voters are the two draws of `given`."""
    weight = tuple(weights.get(name, 0.0) for name in FEATURES)
    return RegionModel(("base",), (0.0,) * len(FEATURES), (1.0,) * len(FEATURES), weight, 0.0, (0.0,))


def test_without_a_model_the_fixed_proposal_is_drawn_on_both_grids():
    case = given([[0.2, 0.9], [0.8, 0.1]])
    case.source_masks = [np.array([1, 0, 0], np.uint8)]
    (found,) = RegionsSampler(kind="regions", fixed="base").draw("r", case)
    assert (found.sampler, found.setting, found.mask.tolist()) == ("r", "composed", [1, 0])
    assert found.source_mask is not None
    assert found.source_mask.tolist() == [1, 0, 0]


def test_a_model_composes():
    """Regions of the base are voxels 0-1 and 3. By size alone the larger one has share .5, and the smaller one less."""
    case = given([[0.2, 0.2, 0.9, 0.2], [0.8, 0.8, 0.1, 0.8]])
    case.regions = {"r": model_of(size=20.0, case_size=0.0)}
    (found,) = RegionsSampler(kind="regions", fixed="base").draw("r", case)
    assert found.mask.tolist() == [1, 1, 0, 0]
    assert not found.counts


def test_with_three_classes_the_labels_are_the_searched_regions():
    """A region is of its likeliest class where its share reaches the threshold of the class, and background else."""
    generator = np.random.default_rng(3)
    for _ in range(50):
        region, label = np.repeat(np.arange(12), 2), np.tile([1, 2], 12)
        options = Options(region, label, np.repeat(generator.integers(1, 60, 12), 2), np.zeros((24, 1)))
        share = generator.dirichlet([1, 1, 1], 12)[:, 1:]
        found = composed(options, share.ravel(), (0.1, 0.2))
        likeliest = share.argmax(1)
        taken = share.max(1) >= np.array(found.thresholds)[likeliest]
        assert found.labels().tolist() == np.where(taken, likeliest + 1, 0).tolist()


@pytest.mark.parametrize(("space", "classes"), [((6, 8), 2), ((6, 8), 3), ((4, 5, 6), 2), ((4, 5, 6), 3)])
def test_a_model_composes_images_and_volumes(space, classes):
    """Two random draws vote. The same mask again after pickling; its probabilities sum to 1 and give its mask."""

    def draw(sampler: RegionsSampler) -> Draw:
        generator = np.random.default_rng(2)
        case = given(*(generator.dirichlet(np.ones(classes), space).transpose(-1, *range(len(space))) for _ in "ab"))
        case.image = noise(space)
        count = len(FEATURES) + classes - 2
        weight = tuple(generator.normal(size=count).tolist())
        model = RegionModel(("base",), (0.0,) * count, (1.0,) * count, weight, -0.5, (0.1,) * (classes - 1))
        case.regions = {"r": model}
        (found,) = sampler.draw("r", case)
        return found

    sampler = RegionsSampler(kind="regions", fixed="base")
    found, again = draw(sampler), draw(pickle.loads(pickle.dumps(sampler)))
    assert (found.mask.shape, found.mask.dtype) == (space, np.uint8)
    assert 0 < np.count_nonzero(found.mask) < found.mask.size
    assert found.mask.max() == classes - 1
    assert found.probability is not None
    assert found.probability.sum(0).numpy() == pytest.approx(1, abs=1e-5)
    assert found.decide is not None
    assert (found.decide(found.probability) == found.mask).all()
    assert found.mask.tobytes() == again.mask.tobytes()


def test_a_proposal_that_does_not_come_before():
    with pytest.raises(BadInput) as error:
        list(RegionsSampler(kind="regions").draw("r", given([[0.2], [0.8]])))
    assert str(error.value) == (
        "propose.samplers.r.fixed: expected a proposal before this sampler, one of ['base'], found 'mean fitted'; list "
        "the sampler after the one that it needs"
    )


# ---- the fit and its gate --------------------------------------------------------------------------------------


def seen(*fixed: float, told: bool = True, groups: int | None = None) -> pl.DataFrame:
    """Labelled cases of two regions of 10 voxels each. The first is wholly right, and the second wholly wrong.

    With `told` the first feature tells which. The Dice of the fixed proposal is given: composing right has Dice 1.
    """
    rows = []
    for at, dice in enumerate(fixed):
        values = np.zeros((2, len(FEATURES)))
        values[:, 0] = (1, -1) if told else (-1) ** (at // 2)
        group = f"g{at % (groups or len(fixed)):02}"
        row: dict[str, Any] = {"sampler": "r", "case_id": f"c{at:02}", "group": group, "fixed": dice, "truth": [10]}
        row |= {"region": [0, 1], "label": [1, 1], "size": [10, 10], "right": [10, 0], "values": values.ravel()}
        rows.append(row)
    return pl.DataFrame(rows, schema=SEEN)


def fit(table: pl.DataFrame) -> Any:
    fold_of = {case_id: f"fold_{at % 2}" for at, case_id in enumerate(table["case_id"])}
    return fit_regions(table, {"r": RegionsSampler(kind="regions")}, {"r": ["base"]}, fold_of, 0)


def test_a_sampler_that_gains_composes():
    """The fixed proposal has Dice .7 and .8 in turn, composing has 1: a gain of .25 with an error of .05 / 3."""
    found = fit(seen(*[0.7, 0.8] * 5))
    gain = found.gains["r"]
    assert (gain.dice, gain.error) == pytest.approx((0.25, 0.05 / 3))
    assert (gain.patients, gain.composes, gain.note) == (10, True, None)
    assert set(found.of("of the pool")) == {"r"}
    assert found.of("c00")["r"] != found.of_all["r"]
    assert found.of_pool().of("c00") == found.of_all


def test_a_gain_below_one_standard_error_takes_the_fixed_proposal():
    """Gains of 1 - .2 and 1 - 1.79: mean .005, far below the error."""
    found = fit(seen(*[0.2, 1.79] * 5))
    assert (found.of("of the pool"), found.of("c00")) == ({}, {})
    assert found.gains["r"].note == (
        "composing gains 0.0050 of Dice over 'mean fitted' on labelled patients, less than the standard error of "
        "0.2650: the mask is that of 'mean fitted'"
    )


def test_features_that_tell_nothing_take_the_fixed_proposal():
    """Both regions look alike, so both are taken: Dice 2*10/(20+10) = 2/3, where the fixed proposal has .9."""
    found = fit(seen(*[0.9] * 10, told=False))
    assert found.gains["r"].dice == pytest.approx(2 / 3 - 0.9)
    assert not found.gains["r"].composes


@pytest.mark.parametrize(("cases", "groups"), [(7, 7), (14, 7)])
def test_seven_patients_are_too_few(cases, groups):
    found = fit(seen(*[0.5] * cases, groups=groups))
    assert found.of("of the pool") == {}
    assert found.gains["r"].note == (
        "expected at least 8 labelled patients, with votes for the foreground, to fit on, found 7: the mask is that of "
        "'mean fitted'"
    )


# ---- the stage -------------------------------------------------------------------------------------------------

ONE = Execution(scheduler="synchronous", workers=1, progress="none")
BASE = Base(
    network=Network(name="UNet", arguments={"channels": [4, 8], "strides": [2]}, multiple=2),
    optimisation=Optimisation(steps=10, learning_rate=5e-3, evaluate_every=5),
    batch=2,
    members=0,
    folds=2,
)
SAMPLERS = {
    "cut": {"kind": "threshold", "thresholds": (0.3, 0.45, 0.6)},
    "mean": {"kind": "mean", "flips": ((1,),)},
    "regions": {"kind": "regions"},
}


@pytest.fixture
def cases(tmp_path, monkeypatch) -> CaseStore:
    """Ten labelled discs in noise, one of the pool, two of validation."""
    monkeypatch.chdir(tmp_path)
    return store_of(tmp_path / "cases")


def store_of(folder: Path, pool_label: int = 0) -> CaseStore:
    truths = [disc((8, 8), 2 + i % 2) for i in range(13)]
    images = [(t + 0.5 * noise((8, 8), f"c{i}")[0])[None].astype(np.float32) for i, t in enumerate(truths)]
    truths[10][:] = pool_label
    return case_store(folder, truths, ["labelled"] * 10 + ["pool"] + ["validation"] * 2, images)


def proposed(cases: CaseStore, base: Base, out: str = "") -> None:
    runtime, knobs = Runtime(Compute(), 0, ONE), Propose.model_validate({"samplers": SAMPLERS})
    if not Path("base").exists():
        train_base(cases, base, Augmentation(flips=()), runtime, Path("base"), Path("history.csv"))
    fitted = propose_out_of_fold(cases, Path("base"), knobs, Path(f"folds{out}"), runtime)
    propose(cases, Path("base"), knobs, Path(f"out{out}"), runtime, (), fitted)


def hashes(folder: str) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in Path(folder).rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("better", [True, False])
def test_the_stage_composes_or_takes_the_fixed_proposal(cases, monkeypatch, better):
    """The gain is moved far up or down. The mask then is composed, or that of the fixed proposal in every case.

    A second run gives equal bytes, whatever the label of the pool.
    """
    from pipeline.proposals import fit_regions as fitting

    dice = fitting.LabelledRegions.dice
    shift = 5 if better else -5
    monkeypatch.setattr(fitting.LabelledRegions, "dice", lambda self, model: dice(self, model) + shift)
    proposed(cases, BASE)
    check_manifest(Path("out"), content=True)
    check_manifest(Path("folds"), content=True)
    content = json.loads(Path("out", REGIONS_FILE).read_text())["regions"]
    assert (content["patients"], content["composes"]) == (10, better)
    assert (content["model"] is None) == (not better)
    for folder, split in (("out", "validation"), ("folds", "labelled")):
        store = ProposalStore(Path(folder))
        slots = [store.slot("mean fitted"), store.slot("regions composed")]
        pairs = [store.masks(case, slots) for case in cases.split(split)]
        assert all(np.array_equal(*pair) for pair in pairs) == (not better)
    if better:
        proposed(store_of(Path("others"), pool_label=1), BASE, "_again")
        found, again = hashes("out"), hashes("out_again")
        assert {name for name in found if found[name] != again[name]} <= {"manifest.json"}


def test_without_folds_the_fixed_proposal_is_taken(cases):
    proposed(cases, BASE.model_copy(update={"folds": 0}))
    content = json.loads(Path("out", REGIONS_FILE).read_text())["regions"]
    assert (content["composes"], content["note"]) == (
        False,
        "no fold of the base left out a labelled case, so no model of regions is fitted; set base.folds, or copy "
        "splits_final.json into the folder of an nnU-Net",
    )
    store = ProposalStore(Path("out"))
    slots = [store.slot("mean fitted"), store.slot("regions composed")]
    assert np.array_equal(*store.masks(cases.all[10], slots))


def test_nothing_is_composed_of_large_cases(cases, monkeypatch):
    """Which are drawn in bands, with a note."""
    monkeypatch.setattr(schema, "SLAB_BYTES", 1)
    proposed(cases, BASE)
    content = json.loads(Path("out", REGIONS_FILE).read_text())["regions"]
    assert content["composes"] is False
    assert content["note"].startswith("composing needs whole cases, and cases padded to")
    store = ProposalStore(Path("out"))
    slots = [store.slot("mean fitted"), store.slot("regions composed")]
    assert all(np.array_equal(*store.masks(case, slots)) for case in cases.split("pool"))


def test_the_fixed_proposal_is_missed_before_any_case_is_drawn(cases):
    runtime = Runtime(Compute(), 0, ONE)
    train_base(cases, BASE, Augmentation(flips=()), runtime, Path("base"), Path("history.csv"))
    knobs = Propose.model_validate({"samplers": {"regions": SAMPLERS["regions"], "mean": SAMPLERS["mean"]}})
    for stage, out in ((propose, "out"), (propose_out_of_fold, "folds")):
        with pytest.raises(BadInput, match=r"propose.samplers.regions.fixed: expected a proposal before this sampler"):
            stage(cases, Path("base"), knobs, Path(out), runtime)
        assert not Path(out).exists()


def test_a_fixed_proposal_that_the_folds_lack_is_taken_as_it_is(cases):
    """The base has a member and the folds have none, so there is no out-of-fold proposal of the ensemble."""
    samplers = {"cut": SAMPLERS["cut"], "e": {"kind": "ensemble"}, "r": {"kind": "regions", "fixed": "e mean"}}
    runtime, knobs = Runtime(Compute(), 0, ONE), Propose.model_validate({"samplers": samplers})
    base = BASE.model_copy(update={"members": 1, "fold_members": 0})
    train_base(cases, base, Augmentation(flips=()), runtime, Path("base"), Path("history.csv"))
    fitted = propose_out_of_fold(cases, Path("base"), knobs, Path("folds"), runtime)
    propose(cases, Path("base"), knobs, Path("out"), runtime, (), fitted)
    assert "r composed" not in ProposalStore(Path("folds")).names
    store = ProposalStore(Path("out"))
    assert np.array_equal(*store.masks(cases.all[10], [store.slot("e mean"), store.slot("r composed")]))
    assert "do not draw the fixed proposal" in json.loads(Path("out", REGIONS_FILE).read_text())["r"]["note"]


def test_a_fixed_mean_of_fewer_models_than_in_the_pool_is_taken_as_it_is(cases):
    """A gain over the mean of one model is none over the mean of two. With `members: []` both are of one model."""
    runtime, base = Runtime(Compute(), 0, ONE), BASE.model_copy(update={"members": 1, "fold_members": 0})
    train_base(cases, base, Augmentation(flips=()), runtime, Path("base"), Path("history.csv"))
    notes = []
    for members in (None, ()):
        knobs = Propose.model_validate({"samplers": {**SAMPLERS, "mean": {**SAMPLERS["mean"], "members": members}}})
        out = Path(f"folds_{members is None}")
        propose_out_of_fold(cases, Path("base"), knobs, out, runtime)
        notes.append(json.loads((out / REGIONS_FILE).read_text())["regions"]["note"])
    assert notes[0] == (
        "the folds lack the members ['member_1'] of 'mean fitted', so a gain over this mask cannot be measured: the "
        "mask is that of 'mean fitted'"
    )
    assert notes[1] is None or notes[1].startswith("composing gains ")


def test_one_fold_cannot_measure_the_gain():
    """There is no case to fit on that the fold has not left out."""
    table = seen(*[0.5] * 10)
    fold_of = dict.fromkeys(table["case_id"], "fold_0")
    found = fit_regions(table, {"r": RegionsSampler(kind="regions")}, {"r": ["base"]}, fold_of, 0)
    assert not found.gains["r"].composes
    assert "found one fold: the mask is that of 'mean fitted'" in str(found.gains["r"].note)
