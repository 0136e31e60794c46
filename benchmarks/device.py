"""A GPU beside the CPU: milliseconds of a training step, and whether the chain gives the same.

`python -m benchmarks.device` (with the packages of `[test]`). Steps are of DiceCE on 4 cases with AdamW, with cuDNN's
deterministic algorithms and with PyTorch's default ones. Then the chain, with all judges and most kinds of students on
tiny networks, runs on the CPU and twice on the device: files that differ between these two, voxels of proposals that
differ from the CPU's where its weights propose, and the largest difference of the judges' scores of its proposals.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import zarr

from pipeline.compute import Compute
from pipeline.segmenter.architecture import Architecture
from pipeline.segmenter.knobs import Network
from pipeline.segmenter.losses import dice_ce
from tests.fixtures.chain import commands, hashes, invoke, run_chain, with_changes, write_params

PRECISIONS = ("float32", "tf32", "bfloat16")
UNET: dict[str, Any] = {"channels": [16, 32, 64, 128], "strides": [2, 2, 2]}
STEPS = {
    "UNETR, 3D": ("UNETR", {"feature_size": 8, "hidden_size": 96, "mlp_dim": 192, "num_heads": 4}, (43, 59, 47), 1),
    "UNet, 3D": ("UNet", UNET, (43, 59, 47), 1),
    "UNet with residual units, 2D": ("UNet", {**UNET, "num_res_units": 2}, (96, 96), 3),
}
"""Network, arguments, largest case and channels."""

ANCHOR = {"supervised": 1.0}
SHORT = {"steps": 20, "learning_rate": 1e-3, "evaluate_every": 10}
MAPO = {"kind": "mapo", "tau": 0.001}
STUDENTS: dict[str, Any] = {
    "supervised": {"pairs": "none", "objective": {"kind": "supervised"}},
    "mapo": {"pairs": "none", "objective": MAPO},
    "mapo_pool": {"pairs": "none", "objective": {**MAPO, "ranker": {"kind": "agreement"}}, "anchor": ANCHOR},
    "threshold": {"pairs": "none", "objective": {"kind": "threshold"}},
    "full": {"pairs": "none", "objective": {"kind": "full", "optimisation": SHORT}},
    **{name: {"pairs": "mined", "objective": {"kind": name}, "anchor": ANCHOR} for name in ("preference", "sft")},
    **{
        name: {"pairs": "none", "objective": {"kind": name}, "anchor": ANCHOR}
        for name in ("pseudo_label", "mean_teacher", "distill")
    },
}
JUDGES = {
    **{name: {"kind": name} for name in ("agreement", "expected_dice", "likelihood", "entropy", "shape", "rca")},
    **{name: {"kind": name} for name in ("oracle", "pairwise")},
    **{name: {"kind": name, "optimisation": SHORT} for name in ("error_map", "quality")},
}


def step_ms(title: str, compute: Compute, deterministic: bool) -> float:
    """Milliseconds of a step, the mean of 10 after 3."""
    network, arguments, space, channels = STEPS[title]
    architecture = Architecture.of(Network(name=network, arguments=arguments), channels, 3, space)
    images = torch.randn((4, channels, *architecture.window), device=compute.device)
    labels = torch.randint(0, 3, (4, *architecture.window), device=compute.device, dtype=torch.uint8)
    model = architecture.build(0).to(compute.device)
    optimiser = torch.optim.AdamW(model.parameters())
    for step in range(13):
        if step == 3:
            start = time.perf_counter()
        with compute.autocast():
            torch.backends.cudnn.deterministic = deterministic
            logits = model(images)
        loss = dice_ce(logits, labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        loss.item()
    return 100 * (time.perf_counter() - start)


def steps(device: str) -> None:
    print(f"{'network':<32}{'precision':<12}{'deterministic, ms':>20}{'default, ms':>14}")
    for title in STEPS:
        for precision in PRECISIONS:
            compute = Compute(device=device, precision=precision)
            found = [step_ms(title, compute, deterministic) for deterministic in (True, False)]
            print(f"{title:<32}{precision:<12}{found[0]:>20.1f}{found[1]:>14.1f}", flush=True)


def params(dimensions: int, **compute: Any) -> dict[str, Any]:
    """Of the chain, in 2D on images of 48x48, in 3D on volumes of 40x40x40 by windows of 32."""
    flat = dimensions == 2
    network: dict[str, Any] = {"name": "UNet", "arguments": {"channels": [16, 32, 64], "strides": [2, 2]}}
    network["arguments"]["num_res_units"] = 2
    optimisation = {"steps": 200 if flat else 40, "learning_rate": 2e-3, "evaluate_every": 40}
    counts = (10, 20, 12, 12) if flat else (6, 6, 4, 4)
    return with_changes(
        data={
            "kind": "phantom",
            "path": "raw/none",
            "cases": 60 if flat else 24,
            "size": [48, 48] if flat else [40, 40, 40],
            "classes": 3,
        },
        splits=dict(zip(("labelled", "pool", "validation", "test"), counts, strict=True)),
        augmentation={"flips": list(range(dimensions))},
        base={
            "network": network | ({} if flat else {"window": [32, 32, 32]}),
            "optimisation": optimisation,
            "batch": 4,
            "members": 1,
            "folds": 2,
        },
        judges=JUDGES,
        pairs={
            "none": {"judge": "none", "strategy": {"kind": "none"}},
            "mined": {"judge": "oracle", "strategy": {"kind": "top_bottom", "min_p_correct": 0.0}},
        },
        students=STUDENTS,
        training={"optimisation": {**SHORT, "learning_rate": 1e-4}, "images": 2, "labelled": 2},
        compute={"threads": 1, **compute},
        execution={"scheduler": "threads", "workers": 2, "progress": "none"},
    )


def stages_of(source: Path, folder: Path, knobs: dict[str, Any], name: str) -> Path:
    """A copy of a finished chain in which these stages ran once more with other knobs."""
    shutil.copytree(source, folder, symlinks=True)
    shutil.rmtree(folder / ".work", ignore_errors=True)
    write_params(folder, knobs)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for line in commands(knobs):
            if line.split()[2] == f"stages.{name}":
                invoke(line)
    return folder


def masks(folder: Path) -> np.ndarray:
    return np.asarray(zarr.open_array(folder / "data/proposals/masks.zarr")[:])


def chain(dimensions: int, device: str, work: Path) -> None:
    run_chain(work / "cpu", params(dimensions), skip=("report",))
    for name in ("one", "two"):
        run_chain(work / name, params(dimensions, device=device), skip=("report",))
    one, two = hashes(work / "one"), hashes(work / "two")
    differing = sorted(name for name in one if one[name] != two.get(name))
    print(f"{dimensions}D: {len(differing)} of {len(one)} files differ between two runs on {device}: {differing}")
    expected = masks(work / "cpu")
    for precision in PRECISIONS:
        knobs = params(dimensions, device=device, precision=precision)
        found = masks(stages_of(work / "cpu", work / precision, knobs, "propose"))
        print(f"{dimensions}D: {precision}: {int((found != expected).sum())} of {found.size} proposed voxels differ")
    judged = stages_of(work / "cpu", work / "judged", params(dimensions, device=device), "judge")
    for name in JUDGES:
        scores = [pl.read_parquet(folder / f"data/scores/{name}.parquet")["score"] for folder in (judged, work / "cpu")]
        print(f"{dimensions}D: {name}: scores differ by at most {(scores[0] - scores[1]).abs().max():.2g}", flush=True)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--device", default="cuda")
    chosen = options.parse_args()
    steps(chosen.device)
    for dimensions in (2, 3):
        with tempfile.TemporaryDirectory() as work:
            chain(dimensions, chosen.device, Path(work))


if __name__ == "__main__":
    main()
