"""Mining: the preference pairs of a pair set, from the scores of one judge and the filters of one strategy."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import polars as pl

from pipeline.errors import BadInput
from pipeline.knobs import Knobs, Name
from pipeline.pairs.calibration import REVIEWED, Curve, curve_of
from pipeline.pairs.strategies import Mined, Strategy
from pipeline.pairs.strategies.none import NoPairs
from pipeline.pairs.strategies.reviewed import Reviewed
from pipeline.pairs.strategies.strategy import Scored, StrategyKnobs
from pipeline.store import schema
from pipeline.store.manifest import write_json
from pipeline.store.proposals import ProposalStore
from pipeline.store.tables import read_table, scan_table, write_table

BLOCK = 32_768
"""Number of cases that are mined together. The number bounds the memory."""

WORKERS = 2
"""Number of blocks that are mined in parallel."""

REASONS = ("base_is_top", "tie", "margin", "p_correct", "disagreement")
"""Reasons why a candidate is no pair, in the order of the checks. The first reason that applies is counted."""


class PairSet(Knobs):
    """Preferences of one judge, mined by one strategy."""

    judge: Name
    """Name of a judge, a score table, an expert or a consensus entry. `none` for strategy `none`, and for strategy
    `reviewed` without `otherwise`."""
    strategy: Strategy
    """Which two proposals of a case make a pair, and the filters that a pair must pass."""
    split: Literal["pool", "labelled"] = "pool"
    """Split whose cases are mined. `labelled` needs proposals for that split (`propose.splits`). `labelled` with judge
    `oracle` is the offline form of MAPO."""

    @property
    def drops_by_p_correct(self) -> bool:
        """Whether pairs that the judge orders are dropped where `p_correct` is small."""
        strategy = self.strategy.otherwise if isinstance(self.strategy, Reviewed) else self.strategy
        return isinstance(strategy, StrategyKnobs) and strategy.least_p_correct > 0


def mine(
    panel: pl.LazyFrame,
    proposals: ProposalStore,
    pairs: PairSet,
    split: str,
    seed: int,
    calibration: Curve | None = None,
) -> tuple[pl.DataFrame, dict[str, object]]:
    """Pairs of a split (schema `PAIRS`), and counts: `cases`, `cases_with_pairs`, `pairs` and `dropped`.

    `dropped` is the number of cases without a pair by reason, without reasons that no case has.
    The panel must be in the order of its key. Duplicates and proposals without a score are left out before ranking.
    `calibration` gives `p_correct`; without a calibration `p_correct` is null.

    The reason of a case is the reason of its first candidate: `base_is_top`, `tie`, `margin`, `p_correct` (below
    `min_p_correct`) or `disagreement`. A case without a candidate counts as `fewer_than_two_scored`. A case whose pairs
    pass all filters and which `keep_fraction` leaves out counts as `fraction`.

    Raises `BadInput` for an unknown judge, an infinite score, and `min_p_correct` without a calibration.
    """
    strategy = pairs.strategy
    nothing: dict[str, object] = {"cases": 0, "cases_with_pairs": 0, "pairs": 0, "dropped": {}}
    assert not isinstance(strategy, Reviewed)
    if isinstance(strategy, NoPairs):
        return pl.DataFrame(schema=schema.PAIRS.columns), nothing
    score = f"score_{pairs.judge}"
    if score not in panel.collect_schema():
        raise BadInput(
            f"pairs: judge '{pairs.judge}' is not in the panel; name an entry of judges, tables or consensus"
        )
    if strategy.min_p_correct and calibration is None:
        raise BadInput(
            f"pairs: min_p_correct is {strategy.min_p_correct}, but pairs of judge '{pairs.judge}' by "
            f"'{strategy.kind}' are not calibrated. The audit calibrates on labelled validation cases: label some, add "
            "'validation' to propose.splits and mine with --audit, or set min_p_correct to null"
        )
    rows = panel.select(*_COLUMNS, pl.col(score).alias("score"))
    slots = _slots(rows)
    total = rows.select(pl.len()).collect().item()

    def mined_from(start: int) -> _Block:
        return _mined(_block(rows, start, slots, split), slots, proposals, pairs, strategy, calibration, seed)

    with ThreadPoolExecutor(WORKERS) as pool:
        blocks = list(pool.map(mined_from, range(0, total, BLOCK * slots)))
    n_cases = sum(part.cases for part in blocks)
    if not n_cases:
        return pl.DataFrame(schema=schema.PAIRS.columns), nothing
    table = pl.concat(part.table for part in blocks)
    counts = np.sum([part.dropped for part in blocks], axis=0)
    del blocks
    reasons = {name: int(count) for name, count in zip(REASONS, counts, strict=True)}
    before = table["case"].n_unique()
    reasons["fewer_than_two_scored"] = n_cases - before - int(counts.sum())
    table = widest(table, strategy.keep_fraction)
    with_pairs = table["case"].n_unique()
    reasons["fraction"] = before - with_pairs
    # A panel in the order of its key gives sorted pairs. The check saves a sort of the whole table.
    if not table["case_id"].is_sorted():
        table = table.sort(schema.PAIRS.key)
    return table, {
        "cases": n_cases,
        "cases_with_pairs": with_pairs,
        "pairs": len(table),
        "dropped": {name: count for name, count in reasons.items() if count},
    }


_COLUMNS = ("case_id", "case", "split", "proposal", "sampler", "duplicate_of")


class _Block(NamedTuple):
    """Result of mining one block of cases."""

    cases: int
    table: pl.DataFrame  # schema `PAIRS`, in the order of the cases
    dropped: np.ndarray  # i64 [reason], number of cases that each of `REASONS` left out


def _slots(rows: pl.LazyFrame) -> int:
    """Number of proposals per case, counted in the first case; 1 for an empty panel."""
    first = rows.select("case").head(schema.ROW_GROUP).collect()["case"]
    return int((first == first[0]).sum()) if len(first) else 1


def _block(rows: pl.LazyFrame, start: int, slots: int, split: str) -> pl.DataFrame:
    """Panel rows of one split in the block that starts at row `start`: whole cases with the slots 0, 1, ... in order.

    The slice comes before the filter, so that only the row groups of the block are read. Raises `BadInput` for rows in
    another order.
    """
    block = rows.slice(start, BLOCK * slots).collect()
    whole = len(block) % slots == 0
    if whole:
        case, proposal = (block[name].to_numpy().reshape(-1, slots) for name in ("case", "proposal"))
        whole = bool((proposal == np.arange(slots)).all() and (case == case[:, :1]).all())
    if not whole:
        raise BadInput(
            f"panel: expected the rows in the order of case_id and proposal, with the proposals 0 to {slots - 1} of "
            f"every case; found another order from case '{block['case_id'][0]}' on; run `dvc repro panel`"
        )
    if (block["split"].gather_every(slots) == split).all():
        return block
    return block.filter(pl.col("split") == split)


def _mined(
    block: pl.DataFrame,
    slots: int,
    proposals: ProposalStore,
    pairs: PairSet,
    strategy: Mined,
    calibration: Curve | None,
    seed: int,
) -> _Block:
    """Pairs of a block, and the number of its cases without a pair by reason."""
    score = pl.when(pl.col("duplicate_of").is_null()).then("score").cast(pl.Float64)
    scores = block.select(score.fill_null(float("nan"))).to_series().to_numpy().reshape(-1, slots)
    case_id = block["case_id"].gather_every(slots)
    if (infinite := np.isinf(scores)).any():
        case = case_id[int(infinite.any(axis=1).argmax())]
        raise BadInput(
            f"panel: judge '{pairs.judge}': case '{case}' has an infinite score; scores are finite, or null if the "
            "judge abstains"
        )
    found = strategy.candidates(Scored(case_id, scores), seed)
    chosen_score, rejected_score = scores[found.row, found.chosen], scores[found.row, found.rejected]
    margin = chosen_score - rejected_score
    p = None if calibration is None else calibration(margin)
    # A margin below 0 comes from `top_base` alone: the judge scores the base above the candidate.
    failed = np.select(
        [
            margin < 0,
            found.tie | (margin == 0),
            margin < strategy.min_margin,
            np.zeros(len(margin), bool) if p is None else p < strategy.least_p_correct,
        ],
        range(4),
        default=-1,
    )
    array_row = block["case"].to_numpy()[::slots][found.row]
    # |D| is read from disk, and therefore only for candidates that passed the other filters.
    differ = np.zeros(len(array_row), np.int64)
    passed = failed < 0
    differ[passed] = proposals.disagreement_of(array_row[passed], found.chosen[passed], found.rejected[passed])
    failed[passed & (differ < strategy.min_disagreement)] = REASONS.index("disagreement")

    with_pair = np.zeros(len(case_id), bool)
    with_pair[found.row[failed < 0]] = True
    # The candidates of a case lie beside each other: a case's first candidate is where the row changes.
    first = np.diff(found.row, prepend=-1) > 0
    dropped = np.bincount(failed[first & ~with_pair[found.row]], minlength=len(REASONS))

    kept = np.flatnonzero(failed < 0)
    row, chosen, rejected = found.row[kept], found.chosen[kept], found.rejected[kept]
    order = np.argsort((row * slots + chosen) * slots + rejected)
    kept, row, chosen, rejected = kept[order], row[order], chosen[order], rejected[order]
    table = pl.DataFrame(
        {
            "case_id": case_id.gather(row),
            "case": array_row[kept],
            "chosen": chosen.astype(np.int32),
            "rejected": rejected.astype(np.int32),
            "chosen_score": chosen_score[kept],
            "rejected_score": rejected_score[kept],
            "margin": margin[kept],
            "p_correct": pl.repeat(None, len(kept), dtype=pl.Float64, eager=True) if p is None else p[kept],
            "disagreement": differ[kept],
            "chosen_sampler": block["sampler"].gather(row * slots + chosen),
            "rejected_sampler": block["sampler"].gather(row * slots + rejected),
            "judge": pl.repeat(pairs.judge, len(kept), eager=True),
            "strategy": pl.repeat(strategy.kind, len(kept), eager=True),
        },
        schema=schema.PAIRS.columns,
    )
    return _Block(len(case_id), table, dropped)


def widest(table: pl.DataFrame, fraction: float) -> pl.DataFrame:
    """Pairs of the cases whose widest margin is largest: a share `fraction` of the cases in the table.

    The number of cases is rounded and at least one. Cases that share the margin at the cut are all dropped, so fewer
    cases, or none, may be kept.
    """
    # With fraction 1 no case is left out, so no margin is grouped: `of_case` stays empty.
    of_case = table.group_by("case").agg(pl.col("margin").max())["margin"] if fraction < 1 else table["margin"].head(0)
    keep = max(1, round(fraction * len(of_case)))
    if keep >= len(of_case):
        return table
    cut = of_case.sort(descending=True)[keep]
    return table.filter(pl.col("margin").max().over("case") > cut)


def mine_to(
    panel_file: Path,
    judges: list[str],
    proposals: ProposalStore,
    pairs: PairSet,
    seed: int,
    out: Path,
    calibration: Curve | None = None,
) -> None:
    """Write the pairs of a pair set to `out`, and the counts of `mine` to `NAME.drops.json` beside `out`.

    Without a calibration `p_correct` is null.
    """
    panel = scan_table(panel_file, schema.panel(judges)).drop("true_dice")
    table, drops = mine(panel, proposals, pairs, pairs.split, seed, calibration)
    write_table(table, schema.PAIRS, out, pairs)
    write_json(out.with_suffix(".drops.json"), drops)


def calibration_of(audit: Path, name: str, pairs: PairSet) -> Curve | None:
    """Curve of a pair set in the folder of the audit; None if the audit has no curve of the pair set.

    Raises `BadInput` for a curve of another judge or strategy.
    """
    file = audit / "calibration.parquet"
    table = read_table(file, schema.CALIBRATION).filter(pl.col("pairs") == name, pl.col("strategy") != REVIEWED)
    expected = (pairs.judge, pairs.strategy.kind)
    for found in table.select("judge", "strategy").unique().rows():
        if found != expected:
            raise BadInput(
                f"{file}: pair set '{name}' is calibrated for judge and strategy {found}, expected {expected}; "
                "run `dvc repro audit`"
            )
    return curve_of(table, name)
