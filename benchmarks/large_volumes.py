"""Peak memory of every stage on volumes larger than the window: `python -m benchmarks.large_volumes`.

Phantoms of 256x256x160 with 3 classes as NIfTI files, a window of 64x64x64, a base and a member trained for some
steps, 4 proposals (the base, one with dropout, one flipped, one of the member), one preference step with anchor, and
the evaluation of the base. Each stage is a process of its own; its peak is the largest resident memory above what is
resident once its libraries are imported. Stages marked + run once more with `MALLOC_TRIM_THRESHOLD_` set, which has
the C library give freed memory back. Then `prepare` and `propose` of volumes of another depth. What the volumes would
take in memory is printed beside.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

CLASSES, SLOTS = 3, 4
WINDOW = (64, 64, 64)
SIZE = (256, 256, 160)
DEPTHS = (80, 160, 320)
CASES = 8  # drawn from; 5 are used, since patients are not split
STEPS = 40  # of base and member: masks, and so surfaces, are then of about the organs' size
BASE = Path("../base")  # beside the folders of the sizes
STAGES = ("draw", "prepare", "base", "propose", "train", "evaluate")
TRIMMED = ("propose", "train", "evaluate")


def _draw(size: tuple[int, ...]) -> Callable[[], Any]:
    """Phantoms in the layout of the Medical Segmentation Decathlon."""
    import nibabel
    import numpy as np

    from pipeline.cases.readers.phantom import Phantom
    from pipeline.store.manifest import write_json

    content = {"cases": CASES, "size": size, "classes": CLASSES, "empty": 0, "seed": 1}
    phantom = Phantom.model_validate_json(json.dumps(content))

    def draw() -> None:
        files = []
        for source in phantom.scan():
            files.append({"image": f"images/{source.case_id}.nii.gz", "label": f"labels/{source.case_id}.nii.gz"})
            image, label = phantom.read(source)
            for name, voxels in zip(files[-1].values(), (image[0], label), strict=True):
                file = Path("raw") / name
                file.parent.mkdir(parents=True, exist_ok=True)
                nibabel.save(nibabel.Nifti1Image(voxels, np.diag([0.8, 0.8, 0.8, 1])), file)
        names = dict(enumerate(phantom.class_names()))
        write_json(Path("raw/dataset.json"), {"labels": names, "modality": {"0": "MRI"}, "training": files})

    return draw


def _prepare() -> Callable[[], Any]:
    from benchmarks.proposals import ONE
    from pipeline.cases.prepare import prepare
    from pipeline.cases.preprocess import Preprocess
    from pipeline.cases.readers.decathlon import Decathlon
    from pipeline.cases.splits import Splits

    splits = Splits(labelled=1, pool=2, validation=1, test=1)
    knobs = Decathlon(path=Path("raw")), Preprocess(normalise="zscore", resize=None), splits
    return lambda: prepare(*knobs, Path("cases"), ONE)


def _base() -> Callable[[], Any]:
    from benchmarks.proposals import RUNTIME
    from pipeline.segmenter.augmentation import Augmentation
    from pipeline.segmenter.base import train_base
    from pipeline.segmenter.knobs import Base, Network, Optimisation
    from pipeline.store.cases import CaseStore

    network = Network(arguments={"channels": [8, 16, 32], "strides": [2, 2]}, window=WINDOW)
    steps = Optimisation(steps=STEPS, learning_rate=1e-2, evaluate_every=STEPS)
    knobs = Base(network=network, optimisation=steps, batch=2, members=1)
    flips = Augmentation(flips=(0, 1, 2))
    cases = CaseStore(Path("cases"))
    return lambda: train_base(cases, knobs, flips, RUNTIME, BASE, Path("base.csv"))


def _propose(splits: tuple[str, ...]) -> Callable[[], Any]:
    from benchmarks.proposals import RUNTIME
    from pipeline.proposals.knobs import Propose
    from pipeline.proposals.propose import propose
    from pipeline.proposals.samplers.ensemble import Ensemble
    from pipeline.proposals.samplers.mc_dropout import MCDropout
    from pipeline.proposals.samplers.tta import TTA
    from pipeline.store.cases import CaseStore

    samplers = {
        "dropout": MCDropout(kind="mc_dropout", rates=(0.3,)),
        "flips": TTA(kind="tta", flips=((0,),), mean=False),
        "ensemble": Ensemble(kind="ensemble", mean=False),
    }
    knobs = Propose.model_validate({"samplers": samplers, "splits": splits})
    cases = CaseStore(Path("cases"))
    return lambda: propose(cases, BASE, knobs, Path("proposals"), RUNTIME)


def _pairs() -> None:
    """The flipped proposal rather than the base's, for every pool case."""
    import polars as pl

    from pipeline.store import schema
    from pipeline.store.cases import CaseStore
    from pipeline.store.proposals import ProposalStore
    from pipeline.store.tables import write_table

    proposals = ProposalStore(Path("proposals"))
    rows = [
        {
            "case_id": case.case_id,
            "case": case.case,
            "chosen": 2,
            "rejected": 0,
            "chosen_score": 1.0,
            "rejected_score": 0.5,
            "margin": 0.5,
            "p_correct": None,
            "disagreement": int(proposals.disagreement(case)[2, 0]),
            "chosen_sampler": "flips",
            "rejected_sampler": "base",
            "judge": "oracle",
            "strategy": "top_base",
        }
        for case in CaseStore(Path("cases")).split("pool")
    ]
    write_table(pl.DataFrame(rows, schema=schema.PAIRS.columns), schema.PAIRS, Path("pairs.parquet"), "benchmark")


def _train() -> Callable[[], Any]:
    from pipeline.compute import Compute
    from pipeline.segmenter.augmentation import Augmentation
    from pipeline.segmenter.knobs import Optimisation
    from pipeline.segmenter.models import Model
    from pipeline.store.cases import CaseStore
    from pipeline.store.proposals import Data, ProposalStore
    from pipeline.students.objectives.preference import Preference
    from pipeline.students.start import Start
    from pipeline.students.student import Anchor, Student, Training
    from pipeline.students.train import train_student

    _pairs()
    steps = Optimisation(steps=1, learning_rate=1e-4, evaluate_every=1)
    student = Student(pairs="pairs", objective=Preference(kind="preference"), anchor=Anchor())
    training = Training(optimisation=steps, images=2, labelled=2)
    data = Data(CaseStore(Path("cases")), ProposalStore(Path("proposals")))
    flips = Augmentation(flips=(0, 1, 2))
    start = Start("student", student, Model(BASE), data, Path("pairs.parquet"), training, flips, Compute(), 0)
    return lambda: train_student(start, Path("student"), Path("student.csv"))


def _evaluate() -> Callable[[], Any]:
    from benchmarks.proposals import RUNTIME
    from pipeline.evaluation.evaluate import EvaluationFiles, evaluate_model
    from pipeline.evaluation.metrics import Evaluation
    from pipeline.store.cases import CaseStore
    from pipeline.store.proposals import Data, ProposalStore

    data = Data(CaseStore(Path("cases")), ProposalStore(Path("proposals")))
    files = EvaluationFiles(BASE, Path("base.parquet"), Path("base.json"))
    return lambda: evaluate_model("base", data, files, None, Evaluation(nsd_tolerance=2), RUNTIME)


def _measured(stage: str, size: tuple[int, ...]) -> None:
    """Run one stage in this process and print its peak and its seconds as JSON."""
    import torch
    from monai.inferers import sliding_window_inference  # noqa: F401
    from monai.networks import nets  # noqa: F401

    torch.set_num_threads(1)
    splits = ("pool", "validation") if size == SIZE else ("validation",)
    stages = {
        "draw": lambda: _draw(size),
        "prepare": _prepare,
        "base": _base,
        "propose": lambda: _propose(splits),
        "train": _train,
        "evaluate": _evaluate,
    }
    work = stages[stage]()
    imported = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    start = time.perf_counter()
    work()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"peak": peak, "above": peak - imported, "seconds": time.perf_counter() - start}))


def _run(stage: str, size: tuple[int, ...], folder: Path, trim: bool = False) -> None:
    """Run one stage in a process of its own and print its row."""
    command = [sys.executable, "-m", "benchmarks.large_volumes", "--stage", stage, "--size", *map(str, size)]
    root = {"PYTHONPATH": str(Path(__file__).parent.parent)}
    trimming = {"MALLOC_TRIM_THRESHOLD_": "1048576"} if trim else {}
    environment = {**os.environ, **root, **trimming}
    done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    print(
        f"{stage + ('+' if trim else ''):<10}{'x'.join(map(str, size)):>14}{found['above'] / 2**20:>14.0f}"
        f"{found['peak'] / 2**20:>12.0f}{found['seconds']:>10.1f}{4 * prod(size) * SLOTS * CLASSES / 2**20:>18.0f}",
        flush=True,
    )


def main(depths: tuple[int, ...]) -> None:
    print(f"{'stage':<10}{'case':>14}{'peak above, MB':>14}{'in all, MB':>12}{'seconds':>10}{'K x classes f32':>18}")
    with tempfile.TemporaryDirectory() as root:
        for depth in dict.fromkeys((SIZE[-1], *depths)):
            size = (*SIZE[:-1], depth)
            folder = Path(root) / str(depth)
            folder.mkdir()
            for stage in STAGES if size == SIZE else ("draw", "prepare", "propose"):
                _run(stage, size, folder)
                if stage in TRIMMED:
                    shutil.rmtree(folder / ".work", ignore_errors=True)
                    _run(stage, size, folder, trim=True)
    voxels = prod(SIZE)
    sizes = {"image f32": 4, "label": 1, "masks": SLOTS, "probability u8": CLASSES}
    sizes["logits f32 of all proposals"] = 4 * SLOTS * CLASSES
    print(
        ", ".join(f"{what} {each * voxels / 2**20:.0f} MB" for what, each in sizes.items()), f"per case; {CASES} cases"
    )


if __name__ == "__main__":
    options = argparse.ArgumentParser()
    options.add_argument("--stage", choices=STAGES)
    options.add_argument("--size", type=int, nargs=3)
    options.add_argument("--depths", type=int, nargs="*", default=DEPTHS)
    chosen = options.parse_args()
    if chosen.stage:
        _measured(chosen.stage, tuple(chosen.size))
    else:
        main(tuple(chosen.depths))
