"""Export of a pair set as a data set of its own: Parquet shards with images and masks, and a data set card."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import BadInput
from pipeline.exports.card import FinishedRun, check_mined
from pipeline.exports.hub import LICENCES, check_licence
from pipeline.exports.new_folder import new_folder
from pipeline.exports.pair_files import files_of
from pipeline.exports.pair_rows import rows_of, write_shards
from pipeline.exports.pair_set_card import pair_set_card
from pipeline.params import entry
from pipeline.store import schema
from pipeline.store.cases import CaseStore
from pipeline.store.proposals import ProposalStore
from pipeline.store.tables import read_table

CARD = "README.md"
SHARDS = "data"


def export_pair_set(
    name: str, run: FinishedRun, proposals: ProposalStore, licence: str | None, out: Path
) -> tuple[int, int]:
    """Write the shards `data/train-*.parquet` and the card `README.md` to `out`. Return numbers of pairs and shards.

    `licence` is an identifier of the Hub. The pairs are read case by case. A failed export leaves no folder `out`.
    Raises `BadInput` without a licence, for an unknown or empty pair set, for pairs that are not those of `params.yaml`
    or of the proposals, and if `out` is not empty.
    """
    if licence is None:
        raise BadInput(
            "--license: expected the licence of the pair set, found none. The images, and masks of them, stand under "
            "the terms of the source data, which segpref cannot know. Look the terms up, and give the Hub's "
            f"identifier, such as cc-by-4.0, or `other` for terms of their own ({LICENCES})"
        )
    check_licence(licence)
    entry(run.params.pairs, name, "pairs")
    file = run.pairs / f"{name}.parquet"
    pairs = read_table(file, schema.PAIRS)
    check_mined(file, name, run.params, f"run `dvc repro mine@{name}`, then export again")
    if pairs.is_empty():
        raise BadInput(
            f"{file}: expected pairs, found none; {file.with_suffix('.drops.json')} counts the cases without a pair by "
            "reason. Export another pair set, or change the judge or the strategy"
        )
    cases = CaseStore(run.cases)
    files = files_of(cases)
    with new_folder(out) as partial:
        shards = write_shards(rows_of(pairs, cases, proposals, files), files, partial / SHARDS)
        card = pair_set_card(name, run, proposals, pairs, files, shards, licence)
        (partial / CARD).write_text(card)
    return len(pairs), len(shards)
