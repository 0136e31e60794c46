"""Mining 10 million score rows: seconds and peak memory per strategy, each in a process of its own.

`python -m benchmarks.mining [ROWS]`; budgets: `top_bottom` 2 s and 0.6 GB, other strategies 30 s.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import get_args

import numpy as np
import polars as pl

from pipeline.pairs.mine import PairSet, mine
from pipeline.pairs.strategies import Mined
from pipeline.store import schema
from pipeline.store.arrays import create_array, open_array
from pipeline.store.proposals import ProposalStore
from pipeline.store.tables import scan_table, write_table

SLOTS = 16
STRATEGIES = tuple(get_args(kind.model_fields["kind"].annotation)[0] for kind in get_args(Mined))


def make(folder: Path, rows: int) -> None:
    """A panel of one judge over `rows` proposals, and their disagreement matrices."""
    cases = rows // SLOTS
    generator = np.random.default_rng(0)
    case = np.repeat(np.arange(cases, dtype=np.int32), SLOTS)
    slot = np.tile(np.arange(SLOTS, dtype=np.int32), cases)
    names = pl.Series(case).cast(pl.String).str.zfill(8)
    frame = pl.DataFrame({"case_id": names, "proposal": slot, "case": case}).with_columns(
        group=pl.col("case_id"),
        split=pl.lit("pool"),
        sampler=pl.lit("dropout"),
        setting=pl.lit("rate=0.3"),
        voxels=pl.lit([0, 0], pl.List(pl.Int64)),
        dice_to_base=pl.lit(0.9),
        duplicate_of=pl.lit(None, pl.Int32),
        score_judge=pl.Series(generator.random(cases * SLOTS)),
        true_dice=pl.lit(None, pl.Float64),
    )
    write_table(frame, schema.panel(["judge"]), folder / "panel.parquet", "benchmark")
    size = 4096
    create_array(folder, schema.DISAGREEMENT, (cases, SLOTS, SLOTS), size)
    array = open_array(folder, schema.DISAGREEMENT, "r+")
    block = generator.integers(1, 1000, (size, SLOTS, SLOTS), dtype=np.uint32)
    for start in range(0, cases, size):
        array[start : start + size] = block[: min(size, cases - start)]


def measure(folder: Path, strategy: str) -> None:
    """Mine once; print seconds, peak GB and pairs."""
    pairs = PairSet.model_validate_json(f'{{"judge": "judge", "strategy": {{"kind": "{strategy}"}}}}')
    start = time.perf_counter()
    panel = scan_table(folder / "panel.parquet", schema.panel(["judge"]))
    table, _ = mine(panel, ProposalStore(folder), pairs, "pool", seed=0)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{strategy:12} {seconds:7.2f} s {peak:7.2f} GB {len(table):9} pairs", flush=True)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        measure(Path(sys.argv[1]), sys.argv[2])
    else:
        rows = int(sys.argv[1]) if len(sys.argv) == 2 else 10_000_000
        with tempfile.TemporaryDirectory() as name:
            # Also in a process of its own: a child's peak memory counts that of its parent before it starts.
            make_it = f"from benchmarks.mining import make; from pathlib import Path; make(Path({name!r}), {rows})"
            subprocess.run([sys.executable, "-c", make_it], check=True)
            for strategy in STRATEGIES:
                subprocess.run([sys.executable, "-m", "benchmarks.mining", name, strategy], check=True)
