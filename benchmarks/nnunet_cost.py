"""Processor seconds and memory of segpref's stages with a network as nnU-Net plans it: the second table of
`docs/results/nnunet.md`.

    python -m benchmarks.nnunet make --set iso --data ../shared/data --out nnreal --nnunet NNUNET/bin
    python -m benchmarks.nnunet_cost --set iso --out nnreal

Every stage is a process of its own with one thread, as a user runs it. Its processor seconds hardly depend on other
work of the machine. Seconds of the imports are subtracted. A step of training is the difference of two runs.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from benchmarks.nnunet import Foreign, imported_project, write_params
from benchmarks.nnunet_sets import SETS
from benchmarks.stage import stage

ROOT = Path(__file__).parent.parent
STEPS = (1, 4)
CASES, PROPOSALS, BASE = "--cases=data/cases", "--proposals=data/proposals", "--base=models/base"


@click.command(help=__doc__)
@click.option("--set", "name", type=click.Choice(list(SETS)), required=True)
@click.option("--mirror", is_flag=True, help="Mirror as nnU-Net does.")
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder that `benchmarks.nnunet make` wrote."
)
def main(name: str, mirror: bool, out: Path) -> None:
    from pipeline.store.cases import CaseStore

    foreign = Foreign(name, out, Path())
    params = imported_project(foreign, foreign.folder / "cost" / ("mirror" if mirror else "plain"), mirror)
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
