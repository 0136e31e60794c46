"""Verdicts beside proposals: slots by hash, and verdicts on masks that are gone."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.errors import BadInput
from pipeline.knobs import NOTHING
from pipeline.store import schema
from pipeline.store.cases import CaseStore
from pipeline.store.proposals import ProposalStore
from pipeline.store.tables import write_table
from pipeline.store.verdicts import read_verdicts
from tests.fixtures.builders import bars, case_store, proposal_store

Stores = tuple[CaseStore, ProposalStore]


def verdict(stores: Stores, number: int, **changes: Any) -> dict[str, Any]:
    """An answer on the proposals 0 and 2 of case `c0`."""
    hashes = stores[1].mask_hashes(stores[0].case("c0"))
    return {
        "reviewer": "ann",
        "number": number,
        "case_id": "c0",
        "group": "c0",
        "split": "pool",
        "mask_a": hashes[0],
        "mask_b": hashes[2],
        "answer": "a",
        "a_side": "left",
        "seconds": 4.0,
        "time": datetime(2026, 1, 1, tzinfo=UTC),
        "draw": "audit",
        "target": "agreement",
        "stratum": "all",
        "population": 3,
        "disagreement": 7,
        **changes,
    }


def written(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "verdicts.parquet"
    write_table(pl.DataFrame(rows, schema=schema.VERDICTS.columns), schema.VERDICTS, path, "a test")
    return path


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Stores:
    """Two cases with bars of 3, 5, 10 and again 5 pixels."""
    folder = tmp_path_factory.mktemp("verdicts")
    masks = bars([3, 5, 10, 5])
    return case_store(folder / "cases", [masks[0]] * 2), proposal_store(folder / "proposals", [masks] * 2)


def test_masks_are_found_by_hash(stores: Stores, tmp_path: Path) -> None:
    """Of equal masks the first slot is found: the bars of 5 are slots 1 and 3."""
    hashes = stores[1].mask_hashes(stores[0].case("c0"))
    rows = [verdict(stores, 1), verdict(stores, 2, mask_a=hashes[3], mask_b=hashes[0])]
    table = read_verdicts(written(tmp_path, rows), *stores)
    assert table.select("slot_a", "slot_b").rows() == [(0, 2), (1, 0)]
    assert table.columns == [*schema.VERDICTS.columns, "slot_a", "slot_b"]


def test_group_and_split_are_those_of_the_case_now(stores: Stores, tmp_path: Path) -> None:
    rows = [verdict(stores, 1, group="another", split="validation")]
    table = read_verdicts(written(tmp_path, rows), *stores)
    assert table.select("group", "split").rows() == [("c0", "pool")]


def test_the_placeholder_means_no_verdicts(stores: Stores, tmp_path: Path) -> None:
    none = read_verdicts(NOTHING, *stores)
    some = read_verdicts(written(tmp_path, [verdict(stores, 1)]), *stores)
    assert len(none) == 0
    assert none.schema == some.schema


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask_b": "0" * 16}, r"verdict 2 of reviewer 'ann': expected masks of case 'c0', found the hash 0000"),
        ({"case_id": "gone"}, r"verdict 2 .* expected a case with proposals, found 'gone'.*--discard-stale"),
    ],
)
def test_verdicts_on_other_masks_are_refused(
    stores: Stores, tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    path = written(tmp_path, [verdict(stores, 1), verdict(stores, 2, **changes)])
    with pytest.raises(BadInput, match=message):
        read_verdicts(path, *stores)


def test_a_verdict_on_a_test_case_is_refused(stores: Stores, tmp_path: Path) -> None:
    masks = bars([3, 5, 10, 5])
    cases = case_store(tmp_path / "cases", [masks[0]] * 2, ["test", "pool"])
    with pytest.raises(BadInput, match="expected a case outside of the test split, found 'c0'"):
        read_verdicts(written(tmp_path, [verdict(stores, 1)]), cases, stores[1])


def test_a_missing_or_older_table_says_what_to_do(stores: Stores, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no such table; answer pairs with `segpref review`.*raw/none"):
        read_verdicts(tmp_path / "verdicts.parquet", *stores)
    pl.DataFrame({"a": [1]}).write_parquet(tmp_path / "other.parquet", metadata={"schema": "verdicts", "version": "6"})
    with pytest.raises(BadInput, match=r"expected version '7', found '6'; run `segpref review --table`"):
        read_verdicts(tmp_path / "other.parquet", *stores)
