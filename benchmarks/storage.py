"""Bytes per stored mask, and what DVC adds to a `propose` that writes 100,000 masks of 128x128.

`python -m benchmarks.storage`; budgets: 0.5 KB at 256x256, 2.5 KB at 64^3, DVC 3 s and 120 files.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from pipeline.measures.overlap import disagreement
from pipeline.store import schema
from pipeline.store.arrays import cases_per_shard, create_array, open_array, shard_cases
from pipeline.store.manifest import write_manifest


def write(folder: Path, space: tuple[int, ...], cases: int, slots: int) -> None:
    """Masks of a wobbling ball in the layout of the contract, with mean probability and disagreement."""
    generator = np.random.default_rng(0)
    grid = np.meshgrid(*(np.linspace(-1, 1, length) for length in space), indexing="ij", sparse=True)
    radius = np.sqrt(sum(axis**2 for axis in grid))
    noise = [gaussian_filter(generator.standard_normal(space), 5) for _ in range(8)]
    noise = [field / field.std() for field in noise]
    size = cases_per_shard(cases, int(np.prod(space)) * (slots + 2))
    shapes = {
        schema.MASKS: (cases, slots, *space),
        schema.PROBABILITY: (cases, 2, *space),
        schema.DISAGREEMENT: (cases, slots, slots),
    }
    for array, shape in shapes.items():
        create_array(folder, array, shape, size)
    stores = {array: open_array(folder, array, "r+") for array in shapes}
    for start in range(0, cases, shard_cases(stores[schema.MASKS])):
        count = min(size, cases - start)
        masks = np.empty((count, slots, *space), np.uint8)
        for case in range(count):
            field = noise[(start + case) % 8]
            edge = 0.3 + 0.4 * generator.random() + 0.02 * generator.standard_normal(slots)
            masks[case] = radius + 0.1 * field < edge.reshape(-1, *([1] * len(space)))
        mean = (masks.mean(1) * 255).round().astype(np.uint8)
        stores[schema.MASKS][start : start + count] = masks
        stores[schema.PROBABILITY][start : start + count] = np.stack([255 - mean, mean], 1)
        stores[schema.DISAGREEMENT][start : start + count] = np.stack([disagreement(m) for m in masks])
    write_manifest(folder, "benchmark")


def bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def dvc_share(cases: int, slots: int) -> None:
    """Seconds of a DVC stage that links a finished store into place, beside the same command without DVC."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write(root / "made", (128, 128), cases, slots)
        command = "cp -r made out"
        for line in (
            "git init -q",
            f"{sys.executable} -m dvc init -q",
            f"{sys.executable} -m dvc config core.analytics false",
        ):
            subprocess.run(line.split(), cwd=root, check=True)
        (root / "dvc.yaml").write_text(
            f"stages:\n  propose:\n    cmd: {command}\n    outs: [out]\n  empty:\n    cmd: 'true'\n"
        )
        seconds = {}
        for stage in ("empty", "propose"):
            start = time.perf_counter()
            subprocess.run([sys.executable, "-m", "dvc", "repro", "-q", stage], cwd=root, check=True)
            seconds[stage] = time.perf_counter() - start
        subprocess.run(["rm", "-rf", "out"], cwd=root, check=True)
        start = time.perf_counter()
        subprocess.run(command.split(), cwd=root, check=True)
        plain = time.perf_counter() - start
        files = sum(path.is_file() for path in (root / "made").rglob("*"))
        total = bytes_below(root / "made") / 2**20
    print(f"{cases * slots} masks of 128x128: {files} files, {total:.0f} MB (budget 120 files)")
    as_stage, empty = seconds["propose"], seconds["empty"]
    print(f"copying them {plain:.2f} s; as a DVC stage {as_stage:.2f} s; an empty stage {empty:.2f} s")
    print(f"DVC's share {as_stage - plain:.2f} s (budget 3 s)")


if __name__ == "__main__":
    for space, cases, budget in (((256, 256), 96, 0.5), ((64, 64, 64), 48, 2.5)):
        with tempfile.TemporaryDirectory() as name:
            write(Path(name), space, cases, 16)
            size = bytes_below(Path(name) / "masks.zarr") / (cases * 16) / 1024
        print(f"a mask of {space}: {size:.2f} KB (budget {budget})")
    dvc_share(6250, 16)
