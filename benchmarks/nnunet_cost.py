"""Processor seconds and memory of segpref's stages with a network as nnU-Net plans it: the second table of
`docs/results/nnunet.md`.

    python -m benchmarks.nnunet make --set iso --data ../shared/data --out nnreal --nnunet NNUNET/bin
    python -m benchmarks.nnunet_cost --set iso --out nnreal
    python -m benchmarks.nnunet_cost --window 128 --out nnreal

Every stage is a process of its own with one thread, as a user runs it. Its processor seconds hardly depend on other
work of the machine. Seconds of the imports are subtracted. A step of training is the difference of two runs.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import click
import numpy as np

from benchmarks.nnunet import Foreign, imported_project, write_params
from benchmarks.nnunet_sets import SETS
from benchmarks.stage import stage
from tests.fixtures.phantoms import write_nifti
from tests.fixtures.results_folder import kwargs_of, results_folder

ROOT = Path(__file__).parent.parent
STEPS = (1, 4)
CASES, PROPOSALS, BASE = "--cases=data/cases", "--proposals=data/proposals", "--base=models/base"


@click.command(help=__doc__)
@click.option("--set", "name", type=click.Choice(list(SETS)), help="Data set that nnU-Net planned.")
@click.option("--window", type=int, help="Edge of a window, for a network of 32 to 320 features with random weights.")
@click.option("--mirror", is_flag=True, help="Mirror as nnU-Net does.")
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder that `benchmarks.nnunet make` wrote."
)
def main(name: str | None, window: int | None, mirror: bool, out: Path) -> None:
    from pipeline.store.cases import CaseStore

    if (name is None) == (window is None):
        raise click.UsageError("give --set or --window")
    if name is not None:
        foreign = Foreign(name, out, Path())
        folder, raw, results = foreign.folder, foreign.raw, foreign.results
    else:
        assert window is not None
        folder = (out / f"window_{window}").resolve()
        raw, results = large(folder, window)
    params = imported_project(raw, results, folder / "cost" / ("mirror" if mirror else "plain"), mirror)
    # Samplers of proposals run the network once more per mask, and so take this long again.
    store = CaseStore(Path("data/cases"))
    cases = {split: len(store.split(split)) for split in ("pool", "validation", "test")}
    imports, _ = _measured("-c", "import torch, polars, monai.inferers; from monai.networks import nets")

    seconds, peak = _stage("propose", CASES, BASE, "--out=data/proposals")
    _say("propose, per case", (seconds - imports) / (cases["pool"] + cases["validation"]), peak)
    seconds, peak = _stage(
        "evaluate", "base", CASES, "--model=models/base", "--out=evaluation/base.parquet", "--metrics=metrics/base.json"
    )
    _say("evaluate, per case", (seconds - imports) / cases["test"], peak)
    if mirror:
        return

    stage(
        "judge", "data/scores/agreement.parquet", "agreement", CASES, PROPOSALS, "--out=data/scores/agreement.parquet"
    )
    stage("panel", "data/panel.parquet", CASES, PROPOSALS, "--scores=data/scores", "--out=data/panel.parquet")
    for student, pairs in (("supervised", "none"), ("preference", "agreement")):
        mined = f"data/pairs/{pairs}.parquet"
        stage("mine", mined, pairs, "--panel=data/panel.parquet", PROPOSALS, f"--out={mined}")
        found = []
        for steps in STEPS:
            params["training"]["optimisation"].update(steps=steps, evaluate_every=steps)
            write_params(params)
            trained = (f"--out=models/{student}_{steps}", f"--history=history/{student}.csv")
            found.append(_stage("train", student, CASES, PROPOSALS, f"--pairs={mined}", BASE, *trained))
        (few, _), (many, peak) = found
        _say(f"step of {student}", (many - few) / (STEPS[1] - STEPS[0]), peak)


def large(folder: Path, window: int) -> tuple[Path, Path]:
    """Data set of four volumes of one window each, and results folder of nnU-Net for it.

    The network has six stages of 32 to 320 features with two convolutions each, as nnU-Net plans for a GPU of 8 GiB.
    """
    raw, results = folder / "raw/Dataset999_Large", folder / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    if results.is_dir():
        return raw, results
    rng = np.random.default_rng(0)
    inside = np.linalg.norm(np.indices((window,) * 3) - window / 2, axis=0) < window / 4
    # One case each: labelled, validation, pool and test.
    for place, case in (("Tr", "a"), ("Tr", "b"), ("Tr", "c"), ("Ts", "d")):
        image = (inside + rng.normal(0, 0.5, inside.shape)).astype(np.float32)
        write_nifti(raw / f"images{place}/{case}_0000.nii.gz", image, (1.0, 1.0, 1.0))
        write_nifti(raw / f"labels{place}/{case}.nii.gz", inside.astype(np.uint8), (1.0, 1.0, 1.0))
    named = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "ball": 1}, "file_ending": ".nii.gz"}
    (raw / "dataset.json").write_text(json.dumps({**named, "numTraining": 3}))
    (raw / "splits_final.json").write_text(json.dumps([{"train": ["a"], "val": ["b"]}]))
    planned = kwargs_of(3, strides=[[1] * 3, *([[2] * 3] * 5)])
    planned |= {"features_per_stage": [32, 64, 128, 256, 320, 320]}
    planned |= {"n_conv_per_stage": [2] * 6, "n_conv_per_stage_decoder": [2] * 5}
    results_folder(results, (window,) * 3, (1.0, 1.0, 1.0), arch_kwargs=planned, **named)
    return raw, results


def _stage(name: str, *arguments: str) -> tuple[float, float]:
    return _measured("-m", f"stages.{name}", *arguments)


def _measured(*arguments: str) -> tuple[float, float]:
    """Processor seconds, and peak of resident memory in GiB, of Python with these arguments."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = os.posix_spawn(sys.executable, [sys.executable, *arguments], environment)
    _, status, used = os.wait4(process, 0)
    if status:
        raise RuntimeError(f"{' '.join(arguments)} failed; see above")
    return used.ru_utime + used.ru_stime, used.ru_maxrss / 2**20


def _say(what: str, seconds: float, peak: float) -> None:
    click.echo(f"| {what} | {seconds:.1f} s | {peak:.1f} GiB |")


if __name__ == "__main__":
    main()
