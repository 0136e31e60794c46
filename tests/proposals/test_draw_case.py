"""Proposals of cases larger than a shard may be: drawn band by band, written slab by slab."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pipeline.compute import Compute
from pipeline.execution import Execution, Runtime
from pipeline.lock import WORK
from pipeline.measures.overlap import dice_to, disagreement
from pipeline.proposals.draw_case import Counts
from pipeline.proposals.knobs import Propose
from pipeline.proposals.propose import propose
from pipeline.seeding import numpy_generator
from pipeline.segmenter import sliding
from pipeline.segmenter.architecture import Architecture
from pipeline.segmenter.knobs import MODELS
from pipeline.segmenter.weights import save_weights
from pipeline.store import schema
from pipeline.store.arrays import open_array
from pipeline.store.cases import CaseStore, Volume
from pipeline.store.manifest import write_json, write_manifest
from pipeline.store.proposals import ProposalStore
from tests.fixtures.builders import case_store
from tests.fixtures.networks import noise
from tests.fixtures.phantoms import disc, write_nifti

SHAPES = [(19, 10, 9), (20, 7, 12), (12, 10, 11)]
ONE = Execution(scheduler="synchronous", workers=1, progress="none")
SAMPLERS = {
    "dropout": {"kind": "mc_dropout", "rates": [0.5]},
    "shape": {"kind": "morphology", "drop_component": [1]},
    "flips": {"kind": "tta", "flips": [[0], [1, 2]], "quarter_turns": [1]},
    "ensemble": {"kind": "ensemble"},
    "thresholds": {"kind": "threshold", "thresholds": [0.55], "offsets": [{"1": 0.05}]},
    "consensus": {"kind": "consensus"},
}


@pytest.fixture
def cases(tmp_path, monkeypatch) -> CaseStore:
    """Three volumes, larger than the window of 8x8x8, and longest along the first axis, as the padded grid is."""
    monkeypatch.chdir(tmp_path)
    # Chunks of 4 voxels instead of 64: slabs of two chunks, 8 rows, and bands of 3 rows, which straddle windows.
    monkeypatch.setattr(schema, "CHUNK", {2: 4, 3: 4})
    return case_store(
        tmp_path / "cases",
        [np.zeros(shape, np.uint8) for shape in SHAPES],
        ["pool", "pool", "validation"],
        [noise(shape, f"c{row}") for row, shape in enumerate(SHAPES)],
        classes=3,
    )


def base_folder(folder: Path) -> Path:
    """An untrained base and one member."""
    architecture = Architecture("UNet", {"channels": [4, 8], "strides": [2]}, 3, 1, 3, "softmax", (8, 8, 8))
    architecture.save(folder)
    for seed, name in enumerate(("base", "member_1")):
        save_weights(architecture.build(seed), folder / f"{name}.safetensors")
    write_json(folder / MODELS, {"members": ["member_1"], "folds": {}, "fold_of": {}, "snapshots": []})
    write_manifest(folder, "a test")
    return folder


def proposed(cases: CaseStore, out: str, samplers: dict, execution: Execution = ONE) -> ProposalStore:
    base = base_folder(Path("base"))
    knobs = Propose.model_validate_json(json.dumps({"samplers": samplers}))
    propose(cases, base, knobs, Path(out), Runtime(Compute(), 0, execution))
    return ProposalStore(Path(out))


def in_slabs(monkeypatch: pytest.MonkeyPatch, bytes_per_voxel: int) -> None:
    """Slabs of 8 of 20 rows of 10x12 voxels, and bands of 3 rows of the first case's 10x9."""
    monkeypatch.setattr(schema, "SLAB_BYTES", 8 * 10 * 12 * bytes_per_voxel)
    monkeypatch.setattr(sliding, "BAND_BYTES", 3 * 4 * 10 * 9)


def content(store: ProposalStore) -> dict[str, str]:
    files = sorted(path for path in store.folder.rglob("*") if path.is_file())
    return {path.relative_to(store.folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_slabs_hold_what_whole_cases_hold(cases, monkeypatch):
    """All kinds of samplers, twelve proposals: masks, probability, disagreement and table are the same to the bit."""
    whole = proposed(cases, "whole", SAMPLERS)
    slots = whole.table["proposal"].max() + 1
    in_slabs(monkeypatch, slots + 3)
    cut = proposed(cases, "cut", SAMPLERS)
    assert cut.table.equals(whole.table)
    assert open_array(Path("whole"), schema.MASKS).shards[2:] == (20, 12, 12)
    assert open_array(Path("cut"), schema.MASKS).shards == (1, slots, 8, 12, 12)
    for array in (schema.MASKS, schema.PROBABILITY, schema.DISAGREEMENT):
        assert np.array_equal(open_array(Path("cut"), array)[...], open_array(Path("whole"), array)[...]), array.name
    assert len({mask.tobytes() for mask in cut.masks(cases.all[0])}) > 8
    assert not WORK.exists() or not list(WORK.rglob("*"))


def test_padding_of_a_shorter_case_is_never_written(cases, monkeypatch):
    """Cases of 19, 20 and 12 rows in slabs of 8: 3, 3 and 2 shards, and what is beyond a case is 255."""
    in_slabs(monkeypatch, 6)
    store = proposed(cases, "cut", {"flips": {"kind": "tta", "flips": [[0], [1]], "mean": False}})
    assert [len(list(Path(f"cut/masks.zarr/c/{case}").glob("*/*/*/*"))) for case in range(3)] == [3, 3, 2]
    masks = open_array(Path("cut"), schema.MASKS)[...]
    assert (masks[2, :, 12:] == 255).all()
    assert (masks[0, :, :, :, 9:] == 255).all()
    assert (store.masks(cases.all[2]) != 255).all()


def test_workers_do_not_change_slabs(cases, monkeypatch):
    in_slabs(monkeypatch, 7)
    samplers = {
        "dropout": {"kind": "mc_dropout", "rates": [0.3, 0.5]},
        "consensus": {"kind": "consensus", "of": ["mean"]},
    }
    one = content(proposed(cases, "one", samplers))
    assert content(proposed(cases, "two", samplers, Execution(scheduler="threads", workers=2, progress="none"))) == one


def test_only_a_band_is_in_memory(cases, monkeypatch):
    """Whatever draws sees 3 rows at a time, of the image the 8 of a window along the axis that is cut."""
    in_slabs(monkeypatch, 6)
    seen: list[int] = []
    read: list[int] = []
    rows, part = sliding.Sliding.rows, Volume.__getitem__

    def reading(self, where):
        found = part(self, where)
        read.append(found.shape[1])
        return found

    def watched(self, start, stop):
        found = rows(self, start, stop)
        seen.append(stop - start)
        assert self._held is None
        return found

    monkeypatch.setattr(sliding.Sliding, "rows", watched)
    monkeypatch.setattr(Volume, "__getitem__", reading)
    monkeypatch.setattr(CaseStore, "image", lambda self, case: pytest.fail(f"{case.case_id} is read whole"))
    proposed(cases, "cut", {"flips": {"kind": "tta", "flips": [[0], [1]], "mean": False}})
    assert max(seen) <= 4
    assert min(seen) >= 1
    assert set(read) == {8}


def test_counts_of_parts_add_up():
    """Random masks with unknown voxels, the fourth a copy of the first; cut in three."""
    masks = numpy_generator("counts").choice(np.array([0, 1, 2, 255], np.uint8), (5, 12, 4))
    masks[3], masks[4] = masks[0], np.where(masks[0] == 255, 0, masks[0])
    whole, parts = Counts(5, 3), Counts(5, 3)
    whole.add(masks)
    for start in (0, 5, 6):
        parts.add(masks[:, start : {0: 5, 5: 6, 6: 12}[start]])
    for counts in (whole, parts):
        assert counts.disagreement.tolist() == disagreement(masks).tolist()
        assert counts.dice_to_base.tolist() == dice_to(masks[0], masks, 3).tolist()
        assert counts.voxels.tolist() == [[int((mask == label).sum()) for label in range(3)] for mask in masks]
        assert [counts.duplicate_of(slot) for slot in range(5)] == [None, None, None, 0, None]


def test_masks_alone_in_slabs(cases, monkeypatch, tmp_path):
    """Without any model: slot 0 is the first source, and morphology works on all of it."""
    for row, shape in enumerate(SHAPES):
        for source, radius in (("a", 4), ("b", 3)):
            write_nifti(tmp_path / f"raw/{source}/c{row}.nii.gz", disc(shape, radius))
    write_json(tmp_path / "none" / MODELS, {"members": [], "folds": {}, "fold_of": {}, "snapshots": []})
    write_manifest(tmp_path / "none", "a test")
    knobs = Propose.model_validate(
        {
            "samplers": {
                "tools": {"kind": "imported", "sources": {"a": {"path": "a"}, "b": {"path": "b"}}},
                "shape": {"kind": "morphology"},
                "consensus": {"kind": "consensus"},
            },
            "imports": tmp_path / "raw",
        }
    )
    tables: list[pl.DataFrame] = []
    for out in ("whole", "cut"):
        propose(cases, tmp_path / "none", knobs, Path(out), Runtime(Compute(), 0, ONE))
        tables.append(ProposalStore(Path(out)).table)
        in_slabs(monkeypatch, len(set(tables[0]["proposal"])) + 3)
    assert tables[0].equals(tables[1])
    for case in cases.all:
        one, two = (ProposalStore(Path(out)) for out in ("whole", "cut"))
        assert np.array_equal(one.masks(case), two.masks(case))
        assert np.array_equal(one.probability(case), two.probability(case))
