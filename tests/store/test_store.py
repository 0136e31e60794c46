"""Tables, arrays and manifests on disk: equal content is equal bytes, and what is wrong is named."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import BadInput
from pipeline.seeding import numpy_generator
from pipeline.store import schema
from pipeline.store.arrays import Slabs, cases_per_shard, create_array, open_array
from pipeline.store.cases import CaseStore
from pipeline.store.manifest import MANIFEST, check_manifest, sha256, write_json, write_manifest
from pipeline.store.proposals import ProposalStore
from pipeline.store.tables import made_by, read_table, scan_table, write_table
from tests.fixtures.builders import bars, case_store, proposal_store, rows_of


def scores(*rows: tuple[str, int, float | None]) -> pl.DataFrame:
    columns = ["case_id", "proposal", "score"]
    return pl.DataFrame(rows, schema=columns, orient="row", strict=False).with_columns(judge=pl.lit("j"))


ROWS = scores(("a", 0, 0.5), ("a", 1, None), ("b", 0, 2.0))


def written(path: Path, frame: pl.DataFrame = ROWS, by: object = "test") -> Path:
    write_table(frame, schema.SCORES, path, by)
    return path


# ---- tables ----------------------------------------------------------------------------------------------------


def test_a_table_is_read_as_it_was_written(tmp_path):
    """Sorted by key, in the contract's types, without columns of its own; nothing partial stays behind."""
    path = written(tmp_path / "deep" / "scores.parquet", ROWS[::-1].with_columns(extra=pl.lit(1)), by={"kind": "x"})
    table = read_table(path, schema.SCORES)
    assert table.schema == schema.SCORES.columns
    assert table.rows() == [("a", 0, 0.5, "j"), ("a", 1, None, "j"), ("b", 0, 2.0, "j")]
    assert made_by(path) == "{'kind': 'x'}"
    assert [file.name for file in path.parent.iterdir()] == ["scores.parquet"]


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.permutations(range(12)), st.permutations(range(4)), st.integers(1, 11))
def test_equal_content_is_equal_bytes(tmp_path, order, columns, cut):
    """Whatever the order of rows and columns and however the frame is cut into pieces."""
    frame = scores(*((f"c{i // 3}", i % 3, i / 7) for i in range(12)))
    expected = written(tmp_path / "expected.parquet", frame).read_bytes()
    mixed = frame[list(order)].select([frame.columns[i] for i in columns])
    pieces = pl.concat([mixed[:cut], mixed[cut:]], rechunk=False)
    assert written(tmp_path / "again.parquet", pieces).read_bytes() == expected


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (ROWS.drop("score", "judge"), r"table 'scores' lacks the columns \['judge', 'score'\]"),
        (
            ROWS.with_columns(score=pl.lit(float("nan"))),
            "column 'score' of table 'scores' holds NaN; unknown values are null",
        ),
        (ROWS.with_columns(judge=pl.lit(None, pl.String)), "column 'judge' of table 'scores' has 3 nulls"),
        (pl.concat([ROWS, ROWS[:1]]), r"key \('case_id', 'proposal'\) of table 'scores' is repeated: \['a', 0\]"),
    ],
)
def test_a_table_outside_the_contract_is_not_written(tmp_path, frame, message):
    with pytest.raises(BadInput, match=rf"scores.parquet: {message}"):
        written(tmp_path / "scores.parquet", frame)
    assert list(tmp_path.iterdir()) == []


def test_a_table_of_another_version_or_kind_is_refused(tmp_path, monkeypatch):
    path = written(tmp_path / "scores.parquet")
    with pytest.raises(BadInput, match=r"scores.parquet: expected schema 'pairs', found 'scores'; run `dvc repro`"):
        scan_table(path, schema.PAIRS)
    monkeypatch.setattr(schema, "VERSION", schema.VERSION + 1)
    with pytest.raises(BadInput, match=r"scores.parquet: expected version '8', found '7'; run `dvc repro`"):
        read_table(path, schema.SCORES)


def test_a_table_with_other_columns_is_refused(tmp_path):
    """A file of the same name and version whose score is text, or is not there."""
    meta = {"schema": "scores", "version": str(schema.VERSION)}
    file = tmp_path / "scores.parquet"
    frame = ROWS.cast({"proposal": pl.Int32, "score": pl.String})
    frame.write_parquet(file, metadata=meta)
    with pytest.raises(BadInput, match="expected column 'score' of type Float64, found String"):
        read_table(file, schema.SCORES)
    frame.drop("score").write_parquet(file, metadata=meta)
    with pytest.raises(BadInput, match="expected column 'score' of type Float64, found None"):
        read_table(file, schema.SCORES)


def test_a_table_that_is_missing_broken_or_foreign_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"none.parquet: no such table; run the stage that writes it with `dvc repro`"):
        read_table(tmp_path / "none.parquet", schema.SCORES)
    broken = written(tmp_path / "broken.parquet")
    broken.write_bytes(broken.read_bytes()[:-20])
    with pytest.raises(
        BadInput, match=r"broken.parquet: not a readable Parquet file .*; remove it and run `dvc repro`"
    ):
        read_table(broken, schema.SCORES)
    ROWS.write_parquet(tmp_path / "foreign.parquet")
    with pytest.raises(BadInput, match="expected schema 'scores', found 'None'"):
        read_table(tmp_path / "foreign.parquet", schema.SCORES)


def test_json_is_sorted_and_refuses_nan(tmp_path):
    write_json(tmp_path / "a.json", {"b": 1, "a": [None, 2.5]})
    assert (tmp_path / "a.json").read_text() == '{\n  "a": [\n    null,\n    2.5\n  ],\n  "b": 1\n}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "b.json", {"a": float("nan")})
    assert not (tmp_path / "b.json").exists()


# ---- arrays ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("array", "shape", "chunk", "shard"),
    [
        # 300 does not fit an edge of 256: two chunks per axis, and the shard holds whole chunks.
        (schema.LABELS, (20, 300, 300), (1, 256, 256), (3, 512, 512)),
        (schema.MASKS, (20, 5, 300, 300), (1, 5, 256, 256), (3, 5, 512, 512)),
        (schema.IMAGES, (20, 2, 64, 48), (1, 2, 64, 48), (3, 2, 64, 48)),
        # In 3D proposals are apart, and an edge is at most 64.
        (schema.MASKS, (20, 5, 70, 64, 10), (1, 1, 64, 64, 10), (3, 5, 128, 64, 10)),
        (schema.PROBABILITY, (20, 3, 70, 64, 10), (1, 1, 64, 64, 10), (3, 3, 128, 64, 10)),
        (schema.DISAGREEMENT, (20, 5, 5), (3, 5, 5), (3, 5, 5)),
    ],
)
def test_layout(tmp_path, array, shape, chunk, shard):
    create_array(tmp_path, array, shape, 3)
    found = open_array(tmp_path, array)
    assert (found.shape, found.chunks, found.shards) == (shape, chunk, shard)
    assert (found.dtype, found.attrs["axes"]) == (np.dtype(array.dtype), list(array.axes))


def test_cases_per_shard():
    """About 16 shards: 260 / 16 is 17 cases. At most 256 MB: eight cases of 30 MB, but one of 33 MB, which is
    large."""
    assert cases_per_shard(260, 1000) == 17
    assert cases_per_shard(5, 1000) == 1
    assert cases_per_shard(260, 30 * 2**20) == 8
    assert cases_per_shard(260, 33 * 2**20) == 1
    assert cases_per_shard(0, 0) == 1


def test_slabs_of_large_cases():
    """256x256x160 at 7 bytes is 70 MB: 64 rows are 17.5 MB and 128 rows 35. 160x256x300 at 4 bytes is 47 MB: 64 rows of
    its longest axis are 10 MB, and three times that fit in 32. 4096x4096 at 4 bytes is 64 MB: 2048 rows are 32."""
    assert Slabs.of((128, 128, 128), 7) is None
    assert Slabs.of((256, 256, 160), 7) == Slabs(0, 64)
    assert Slabs.of((160, 256, 300), 4) == Slabs(2, 192)
    assert Slabs.of((4096, 4096), 1) is None
    assert Slabs.of((4096, 4096), 4) == Slabs(0, 2048)


def test_an_unwritten_shard_reads_as_unknown(tmp_path):
    """Two of four cases written, as empty masks: the others are 255, which no empty mask is."""
    create_array(tmp_path, schema.MASKS, (4, 2, 8, 8), 2)
    open_array(tmp_path, schema.MASKS, "r+")[:2] = np.zeros((2, 2, 8, 8), np.uint8)
    content = open_array(tmp_path, schema.MASKS)[...]
    assert (content[:2] == 0).all()
    assert (content[2:] == 255).all()


def test_shards_are_equal_bytes_in_any_order(tmp_path):
    content = numpy_generator("store").integers(3, size=(5, 2, 9, 9)).astype(np.uint8)
    found = []
    for name, order in (("one", (0, 2, 4)), ("two", (4, 0, 2))):
        create_array(tmp_path / name, schema.MASKS, content.shape, 2)
        for start in order:
            open_array(tmp_path / name, schema.MASKS, "r+")[start : start + 2] = content[start : start + 2]
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        found.append([(path.relative_to(tmp_path / name), sha256(path)) for path in files])
    assert found[0] == found[1]
    assert len(found[0]) == 1 + 3, "zarr.json and three shards"


def test_an_array_that_is_missing_or_another_is_refused(tmp_path, monkeypatch):
    with pytest.raises(BadInput, match=r"masks.zarr: no such array; run the stage that writes it with `dvc repro`"):
        open_array(tmp_path, schema.MASKS)
    create_array(tmp_path, schema.MASKS, (2, 2, 4, 4), 2)
    (tmp_path / "masks.zarr").rename(tmp_path / "labels.zarr")
    with pytest.raises(BadInput, match=r"labels.zarr: expected name and version \('labels', 7\), found \('masks', 7\)"):
        open_array(tmp_path, schema.LABELS)
    (tmp_path / "labels.zarr").rename(tmp_path / "masks.zarr")
    monkeypatch.setattr(schema, "VERSION", schema.VERSION + 1)
    with pytest.raises(
        BadInput, match=r"masks.zarr: expected name and version \('masks', 8\), found \('masks', 7\); run `dvc repro`"
    ):
        open_array(tmp_path, schema.MASKS)


# ---- manifests -------------------------------------------------------------------------------------------------


@pytest.fixture
def finished(tmp_path) -> Path:
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "c.txt").write_text("two")
    write_manifest(tmp_path, "a test")
    return tmp_path


def test_a_manifest_lists_every_file(finished):
    check_manifest(finished, content=True)
    manifest = json.loads((finished / MANIFEST).read_text())
    assert (set(manifest["sha256"]), manifest["version"]) == ({"a.txt", "b/c.txt"}, 7)


def test_an_unfinished_store_is_refused(finished):
    (finished / MANIFEST).unlink()
    with pytest.raises(BadInput, match=r"no manifest.json: the store is missing or unfinished; run `dvc repro`"):
        check_manifest(finished)


def test_a_store_that_lost_a_file_is_refused(finished):
    (finished / "b" / "c.txt").unlink()
    with pytest.raises(BadInput, match=r"b/c.txt: listed in manifest.json but missing; run `dvc checkout`"):
        check_manifest(finished)


def test_a_store_that_was_changed_is_refused_where_content_is_checked(finished):
    (finished / "a.txt").write_text("eno")
    check_manifest(finished)
    with pytest.raises(BadInput, match=r"a.txt: differs from its SHA-256 in manifest.json; run `dvc checkout`"):
        check_manifest(finished, content=True)


def test_a_manifest_of_other_content_is_refused(finished):
    write_json(finished / MANIFEST, {"version": schema.VERSION, "sha256": ["a.txt"]})
    with pytest.raises(
        BadInput, match=r"manifest.json: expected a hash per file in 'sha256', found \['a.txt'\]; fetch"
    ):
        check_manifest(finished)


def test_a_store_of_another_version_is_refused(finished, monkeypatch):
    monkeypatch.setattr(schema, "VERSION", schema.VERSION + 1)
    with pytest.raises(BadInput, match=r"manifest.json: expected version 8, found 7; run `dvc repro`"):
        check_manifest(finished)


# ---- stores ----------------------------------------------------------------------------------------------------


def test_cases_are_read_without_their_padding(tmp_path):
    """Two sizes in one array; what was padded does not come back."""
    labels = [rows_of(["01", "10", "11"]), rows_of(["0110", "1x01"])]
    images = [label[None].astype(np.float32) for label in labels]
    cases = case_store(tmp_path, labels, ["labelled", "pool"], images)
    assert cases.padded == (3, 4)
    assert [case.shape for case in cases.all] == [(3, 2), (2, 4)]
    for case, label, image in zip(cases.all, labels, images, strict=True):
        assert np.array_equal(cases.label(case), label)
        assert np.array_equal(cases.truth(case), label)
        assert np.array_equal(cases.image(case), image)
    assert [case.case_id for case in cases.split("pool", "test")] == ["c1"]
    assert pickle.loads(pickle.dumps(cases)).all == cases.all


def test_a_case_without_label_has_no_truth(tmp_path):
    cases = case_store(tmp_path, [None])
    for read in (cases.label, cases.truth):
        with pytest.raises(BadInput, match="case 'c0' has no label; only labelled cases have a truth to read"):
            read(cases.all[0])


def test_an_unfinished_case_store_is_not_read(tmp_path):
    case_store(tmp_path, [None])
    (tmp_path / MANIFEST).unlink()
    with pytest.raises(BadInput, match="the store is missing or unfinished"):
        _ = CaseStore(tmp_path).all


def test_proposals_are_read_without_their_padding(tmp_path):
    """Slots in any order; probabilities in steps of 1/255; |D| of bars of 3, 5 and 0 pixels."""
    masks = [bars([3, 5, 0], width=6), bars([1, 1, 2], width=4)]
    p = np.full((1, 6), 0.3)
    cases = case_store(tmp_path / "cases", [m[0] for m in masks])
    store = proposal_store(tmp_path / "proposals", masks, [np.stack([1 - p, p]), np.ones((2, 1, 4))])
    first, second = cases.all
    assert np.array_equal(store.masks(first), masks[0])
    assert np.array_equal(store.masks(second, [2, 0]), masks[1][[2, 0]])
    assert store.probability(first).dtype == np.float32
    assert store.probability(first)[1] == pytest.approx(round(0.3 * 255) / 255)
    assert store.disagreement(first).tolist() == [[0, 2, 3], [2, 0, 5], [3, 5, 0]]
    assert store.case_ids() == ["c0", "c1"]
    assert store.table["duplicate_of"].to_list() == [None, None, None, None, 0, None]


@pytest.mark.parametrize(("count", "per_shard"), [(1, 1), (4, 2), (5, 2), (5, 8)])
def test_the_region_sizes_of_many_pairs(tmp_path, count, per_shard):
    """In any order of cases, from the shards of the matrices: the difference of two lengths."""
    draw = numpy_generator("store", count)
    lengths = draw.integers(17, size=(count, 3))
    store = proposal_store(tmp_path, [bars(case) for case in lengths], per_shard=per_shard)
    rows = draw.integers(count, size=40)
    first, second = draw.integers(3, size=(2, 40))
    expected = np.abs(lengths[rows, first] - lengths[rows, second])
    assert np.array_equal(store.disagreement_of(rows, first, second), expected)
    assert len(store.disagreement_of(rows[:0], first[:0], second[:0])) == 0


# ---- damage ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["images", "labels", "masks", "probability", "disagreement"])
def test_no_flipped_bit_of_an_array_is_read_as_other_voxels(tmp_path, name):
    """Noise, in which a flipped bit rarely breaks the compression."""
    draw = numpy_generator("flipped", name)
    labels = [draw.integers(2, size=(6, 7), dtype=np.uint8) for _ in range(2)]
    images = [draw.normal(size=(1, 6, 7)).astype(np.float32) for _ in range(2)]
    masks = [draw.integers(2, size=(3, 6, 7), dtype=np.uint8) for _ in range(2)]
    cases = case_store(tmp_path / "cases", labels, None, images)
    proposals = proposal_store(tmp_path / "proposals", masks, [draw.random((2, 6, 7)) for _ in range(2)])

    def read() -> list[np.ndarray]:
        store, proposed = CaseStore(cases.folder), ProposalStore(proposals.folder)
        first, second = store.all
        return {
            "images": lambda: [*map(store.image, store.all), store.volume(second)[:]],
            "labels": lambda: [*map(store.label, store.all)],
            "masks": lambda: [proposed.masks(first), proposed.masks(second, [1])],
            "probability": lambda: [*map(proposed.probability, store.all)],
            "disagreement": lambda: [*map(proposed.disagreement, store.all)],
        }[name]()

    right = read()
    (shard,) = [path for path in tmp_path.rglob("*") if path.is_file() and f"{name}.zarr/c/" in path.as_posix()]
    content = shard.read_bytes()
    said = []
    for _ in range(40):
        damaged = bytearray(content)
        damaged[int(draw.integers(len(content)))] ^= 1 << int(draw.integers(8))
        shard.write_bytes(damaged)
        try:
            assert all(np.array_equal(one, other) for one, other in zip(read(), right, strict=True))
        except BadInput as error:
            said.append(str(error))
    assert len(said) > 20
    expected = rf"{name}.zarr: expected the values that were written, found damaged files "
    assert all(re.search(expected, one) for one in said)
    shard.write_bytes(content)
    assert all(np.array_equal(one, other) for one, other in zip(read(), right, strict=True))


@pytest.mark.parametrize("file", [MANIFEST, "cases.json"])
@pytest.mark.parametrize("content", ['{"version": 1, "sha', "[]", "{}", "\x00"])
def test_damaged_records_of_a_store_are_named(tmp_path, file, content):
    store = case_store(tmp_path, [np.zeros((4, 4), np.uint8)])
    (tmp_path / file).write_text(content)
    found = CaseStore(store.folder)
    with pytest.raises(BadInput, match=rf"{file}: expected (JSON|a JSON object with the keys .*), found .*`dvc repro`"):
        _ = (found.all, found.class_names)
