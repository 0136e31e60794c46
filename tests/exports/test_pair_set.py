"""Pair sets as data sets of their own, read back with `datasets` as a user reads them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from huggingface_hub import DatasetCard
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.errors import BadInput
from pipeline.exports import pair_rows, pair_set
from pipeline.exports.card import FinishedRun
from pipeline.exports.pair_files import Pictures, Volumes
from pipeline.exports.pair_set import export_pair_set
from pipeline.params import load_params
from pipeline.store import schema
from pipeline.store.cases import Case, CaseStore
from pipeline.store.manifest import write_json
from pipeline.store.proposals import ProposalStore
from pipeline.store.tables import write_table
from stages.export_pairs import main
from tests.fixtures.builders import bars
from tests.fixtures.chain import with_changes, write_params
from tests.fixtures.reporting import JUDGES, NO_PAIRS, Scene, build, plain_scene

MINED = {"judge": "agreement", "strategy": {"kind": "top_bottom", "max_pairs_per_case": 2}}
PAIRS = {"none": NO_PAIRS, "mined": MINED}


def scene(dimensions: int = 2, channels: int | None = None, lengths: Sequence[int] = (3, 5, 10, 7)) -> Scene:
    """Bars of 6 pixels as truth. `agreement` ranks the proposals 1, 3, 2, 0: the pairs are (1, 0) and (3, 2).

    Without `channels` images are 0, else smooth noise of another range in each channel.
    """
    plain = plain_scene(JUDGES, dimensions)
    proposed = bars(lengths) if dimensions == 2 else np.repeat(bars(lengths)[:, None], 3, axis=1)
    scores = {"agreement": [[0.1, 0.9, 0.2, 0.8]] * 9, "oracle": [[0.1, 0.9, 0.2, 0.8]] * 9}
    images = None
    if channels is not None:
        generator, space = np.random.default_rng(0), plain.truth[0].shape
        ranges = np.arange(1, channels + 1).reshape(-1, *[1] * dimensions)
        images = [(ranges * generator.normal(size=(channels, *space))).astype(np.float32) for _ in plain.truth]
    return replace(plain, proposed=[proposed] * 9, scores=scores, images=images)


def run_of(folder: Path, of: Scene | None = None, pairs: dict[str, Any] = PAIRS, **info: Any) -> Path:
    """A finished run with two pairs in each of three pool cases; `info` replaces keys of `cases.json`."""
    folder.mkdir(exist_ok=True)
    build(folder, pairs=pairs, students={}, scene=of or scene())
    path = folder / "data/cases/cases.json"
    write_json(path, json.loads(path.read_text()) | info)
    return folder


def exported(folder: Path, out: str = "out", licence: str | None = "cc-by-4.0") -> Path:
    run = FinishedRun(
        load_params(folder / "params.yaml"), folder / "data/cases", folder / "data/pairs", folder / "audit"
    )
    export_pair_set("mined", run, ProposalStore(folder / "data/proposals"), licence, folder / out)
    return folder / out


def loaded(out: Path) -> Any:
    """The folder as `datasets` reads it without a network, from a cache beside it."""
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    return load_dataset(str(out), split="train", cache_dir=str(out.parent / "cache"))


def read_by_the_card(out: Path, row: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Image, masks and disagreement region by the Python that the card shows, from the line after `row = ` on."""
    (code,) = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.S)
    found: dict[str, Any] = {"np": np, "row": row}
    exec(code.split("row = pairs[0]\n")[1], found)
    return found


# ---- what a user runs --------------------------------------------------------------------------------------------


COLOUR = {"channel_names": ["red", "green", "blue"]}
MODALITIES = {"channel_names": ["t1", "t2"]}


@pytest.mark.parametrize(
    ("channels", "dimensions", "info", "bits"),
    [
        (1, 2, {}, 16),
        (3, 2, COLOUR, 8),
        (2, 2, MODALITIES, 16),
        (1, 2, {"files": "nifti"}, None),
        (1, 3, {}, None),
        (2, 3, {**MODALITIES, "files": "pictures"}, None),
    ],
)
def test_what_is_loaded_is_what_was_mined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, channels: int, dimensions: int, info: dict[str, Any], bits: Any
) -> None:
    """Masks bit by bit. Images within half a step of their numbers, and exactly from NIfTI."""
    folder = run_of(tmp_path, scene(dimensions, channels), **info)
    monkeypatch.chdir(folder)
    result = CliRunner().invoke(main, ["mined", "--license", "cc-by-4.0"], catch_exceptions=False)
    assert (
        "export-pairs: 6 pairs in 1 shard in exports/mined_pairs; case_id and group are those of the source"
        in result.output
    )
    rows = loaded(folder / "exports/mined_pairs")
    cases, proposals = CaseStore(folder / "data/cases"), ProposalStore(folder / "data/proposals")
    by_id = {case.case_id: case for case in cases.all}
    pairs = pl.read_parquet(folder / "data/pairs/mined.parquet").to_dicts()
    assert len(rows) == len(pairs) == 6
    for row, pair in zip(rows, pairs, strict=True):
        case = by_id[pair["case_id"]]
        found = read_by_the_card(folder / "exports/mined_pairs", row)
        chosen, rejected = proposals.masks(case, [pair["chosen"], pair["rejected"]])
        for mask, name in ((chosen, "chosen"), (rejected, "rejected")):
            assert found[name].dtype == np.uint8
            assert np.array_equal(np.squeeze(found[name]), np.squeeze(mask))
        assert found["differ"].sum() == pair["disagreement"]
        image = cases.image(case)
        expected = np.moveaxis(image, 0, -1) if channels > 1 else image[0]
        worst = np.abs(np.squeeze(found["image"]) - np.squeeze(expected)).reshape(-1, channels).max(axis=0)
        if bits is None:
            assert worst.max() == 0
        else:
            steps = np.ptp(image.reshape(channels, -1), axis=1) / (2**bits - 1)
            assert row["scale"] == pytest.approx(steps)
            assert (worst <= 0.5 * steps * (1 + 1e-9)).all()
        told = {name: row[name] for name in pair if name in row and name not in ("chosen", "rejected")}
        assert told == {name: pair[name] for name in told}
        assert told.keys() > {"margin", "p_correct", "judge", "strategy", "case_id", "disagreement"}
        assert (row["group"], row["spacing_mm"], row["class_names"]) == (case.group, None, cases.class_names)


def test_the_head_of_the_card_is_read_by_the_hub(tmp_path: Path) -> None:
    card = DatasetCard.load(exported(run_of(tmp_path)) / "README.md")
    head = card.data.to_dict()
    assert head["license"] == "cc-by-4.0"
    assert head["task_categories"] == ["image-segmentation"]
    assert head["size_categories"] == ["n<1K"]
    assert {"medical", "segpref", "2d"} <= set(head["tags"])
    (shard,) = (tmp_path / "out/data").iterdir()
    assert shard.match(head["configs"][0]["data_files"][0]["path"])


def test_the_card_says_what_the_pairs_are_worth(tmp_path: Path) -> None:
    text = (exported(run_of(tmp_path)) / "README.md").read_text()
    for line in (
        "| 6 | 3 | 3 | 0 |",
        "- judge: agreement (agreement)",
        "- judge: verdict <on> agreement",
        "- objective that the noise of the pairs favours, DPO or RN-DPO: undecided",
        "- pairs in the wrong order: 30 % [20, 40] of 3 pairs of labelled validation cases",
        "- classes: 0 class_0, 1 class_1, 255 unknown",
    ):
        assert f"\n{line}\n" in text
    assert "reads truth" not in text


def test_what_is_not_known_is_said(tmp_path: Path) -> None:
    folder = run_of(tmp_path)
    for file in (tmp_path / "audit").iterdir():
        file.unlink()
    path = folder / "data/pairs/mined.parquet"
    pairs = pl.read_parquet(path).with_columns(p_correct=pl.lit(None, pl.Float64))
    write_table(pairs, schema.PAIRS, path, load_params(folder / "params.yaml").pairs["mined"])
    text = (exported(folder) / "README.md").read_text()
    assert "Not audited: the share of pairs in the wrong order is unknown." in text
    assert "`p_correct` is null" in text


def test_a_judge_that_reads_the_truth_is_a_ceiling(tmp_path: Path) -> None:
    folder = run_of(tmp_path, pairs={"none": NO_PAIRS, "mined": {**MINED, "judge": "oracle"}})
    text = (exported(folder) / "README.md").read_text()
    assert "- judge: oracle (oracle); the judge reads the truth, so the pairs are a ceiling for research\n" in text
    assert "- the judge reads truth that is not available in practice" in text


# ---- shards ------------------------------------------------------------------------------------------------------


def test_shards_and_row_groups_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row group of one pair, a shard of two: 6 pairs make 3 shards. Order and content stay."""
    folder = run_of(tmp_path)
    one = loaded(exported(folder, "one"))
    size = max(sum(len(row[name]["bytes"]) for name in ("image", "chosen", "rejected")) for row in undecoded(one))
    monkeypatch.setattr(pair_rows, "GROUP_BYTES", size)
    monkeypatch.setattr(pair_rows, "SHARD_BYTES", 2 * size)
    shards = sorted((exported(folder, "several") / "data").iterdir())
    assert [re.sub(r"-\w{16}\.", ".", shard.name) for shard in shards] == [
        f"train-0000{number}-of-00003.parquet" for number in range(3)
    ]
    assert [pq.ParquetFile(shard).num_row_groups for shard in shards] == [2, 2, 2]
    assert undecoded(loaded(folder / "several")) == undecoded(one)


def undecoded(rows: Any) -> list[dict[str, Any]]:
    """Rows with the bytes of their files."""
    return list(rows.with_format("arrow").data.table.to_pylist())


def test_equal_runs_give_equal_bytes(tmp_path: Path) -> None:
    folder = run_of(tmp_path, scene(3))
    one, two = exported(folder, "one"), exported(folder, "two")
    names = [path.relative_to(one) for path in sorted(one.rglob("*")) if path.is_file()]
    assert len(names) == 2
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in names)


def test_another_export_under_the_same_name_is_not_taken_for_the_first(tmp_path: Path) -> None:
    """`datasets` keeps what it has loaded. A second run with other images is exported to the place of the first."""
    first = run_of(tmp_path / "first")
    exported(first).rename(tmp_path / "set")
    assert np.ptp(np.asarray(loaded(tmp_path / "set")[0]["image"])) == 0
    (tmp_path / "set").rename(tmp_path / "old")
    exported(run_of(tmp_path / "second", scene(channels=1))).rename(tmp_path / "set")
    assert np.ptp(np.asarray(loaded(tmp_path / "set")[0]["image"])) == 65_535


@pytest.mark.parametrize("error", [BadInput, KeyboardInterrupt])
def test_an_interrupted_export_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    folder = run_of(tmp_path)

    def interrupted(*_: object) -> str:
        assert list((tmp_path / ".out.partial/data").iterdir()), "the shards are written before the card"
        raise error

    monkeypatch.setattr(pair_set, "pair_set_card", interrupted)
    with pytest.raises(error):
        exported(folder)
    assert not [path.name for path in tmp_path.iterdir() if "out" in path.name]


def test_what_a_killed_export_left_is_not_in_the_next(tmp_path: Path) -> None:
    folder = run_of(tmp_path)
    left = tmp_path / ".out.partial/data/train-00000-of-00009.parquet"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half a shard")
    assert len(list((exported(folder) / "data").iterdir())) == 1
    assert not left.exists()


# ---- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["mined"],
            "error: --license: expected the licence of the pair set, found none. The images, and masks of them",
        ),
        (["mined", "--license", "CC BY 4.0"], "error: --license: expected an identifier of the Hub, such as cc-by-4.0"),
        (["other", "--license", "mit"], "error: params.yaml: pairs has no entry 'other'; the entries are ['mined', "),
        (["none", "--license", "mit"], "error: data/pairs/none.parquet: expected pairs, found none; data/pairs/none.d"),
        (["mined", "--license", "mit", "--out", "data"], "error: data: expected a new or empty folder, found files"),
        (["mined", "--license", "mit", "--out", "params.yaml"], "error: params.yaml: expected a new or empty folder"),
    ],
)
def test_what_cannot_be_exported_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: Sequence[str], message: str
) -> None:
    monkeypatch.chdir(run_of(tmp_path))
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert result.output.startswith(message)
    assert not (tmp_path / "exports").exists()


def test_pairs_of_another_judge_or_of_other_proposals_are_refused(tmp_path: Path) -> None:
    folder = run_of(tmp_path)
    changed = with_changes(judges=JUDGES, pairs={**PAIRS, "mined": {**MINED, "judge": "oracle"}}, students={})
    write_params(folder, changed)
    with pytest.raises(BadInput, match=r"mined.parquet: expected the pairs of `pairs.mined` in params.yaml, found pai"):
        exported(folder)
    other = run_of(tmp_path / "other", scene(lengths=(3, 6, 10, 5)))
    (other / "data/pairs/mined.parquet").write_bytes((folder / "data/pairs/mined.parquet").read_bytes())
    with pytest.raises(BadInput, match=r"case 'c1': expected proposals \d and \d to differ on \d+ voxels, found \d+; "):
        exported(other)
    assert not (other / "out").exists()


# ---- files -------------------------------------------------------------------------------------------------------

CASE = Case("c", 0, "c", "pool", False, (2, 3), None, (2, 3), None, None)


def decoded(cell: dict[str, Any]) -> np.ndarray:
    from datasets import Image

    return np.asarray(Image().decode_example(cell))


@given(arrays(np.float32, (1, 2, 3), elements=st.floats(-1e6, 1e6, width=32)))
def test_an_intensity_is_kept_within_half_a_step(image: np.ndarray) -> None:
    cells = Pictures((False,), False).image(image, CASE)
    back = decoded(cells["image"]) * cells["scale"] + cells["offset"]
    assert np.abs(back - image[0]).max() <= 0.5 * cells["scale"][0] * (1 + 1e-6)


@pytest.mark.parametrize("rgb", [False, True])
def test_pixels_of_8_bits_are_kept_exactly_by_unit(rgb: bool) -> None:
    """A picture that was only divided by 255: every value of 8 bits, in a picture that has not all of them."""
    values = (np.arange(2, 250, dtype=np.float64) / 255).astype(np.float32).reshape(1, 8, 31)
    image = np.repeat(values, 3, axis=0) if rgb else values
    cells = Pictures((True,) * len(image), rgb).image(image, CASE)
    back = decoded(cells["image"]) * cells["scale"] + cells["offset"]
    assert np.array_equal(back.astype(np.float32), np.moveaxis(image, 0, -1) if rgb else image[0])


def test_the_affine_of_a_volume_is_that_of_its_grid() -> None:
    """4 x 2 x 2 voxels of 1 x 2 x 3 mm, halved along the first axis: its first voxel covers 0 and 1, so x is .5."""
    from datasets import Nifti

    affine = tuple(np.diag([1.0, 2.0, 3.0, 1.0]).ravel())
    case = Case("c", 0, "c", "pool", False, (2, 2, 2), (2.0, 2.0, 3.0), (4, 2, 2), (1.0, 2.0, 3.0), affine)
    cell = Volumes("x, y, z").mask(np.ones((2, 2, 2), np.uint8), case, "00")
    assert cell["path"] == "c_00.nii.gz"
    found = Nifti().decode_example(cell)
    assert found.affine.tolist() == [[2, 0, 0, 0.5], [0, 2, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1]]
    plain = Nifti().decode_example(
        Volumes("x, y, z").mask(np.ones((2, 2, 2), np.uint8), replace(case, affine=None), "")
    )
    assert plain.header.get_zooms() == (2.0, 2.0, 3.0)
    assert (int(plain.header["sform_code"]), int(plain.header["qform_code"])) == (0, 0)
