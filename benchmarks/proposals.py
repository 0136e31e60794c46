"""The stage `propose` beside the bare forward passes that it makes: `python -m benchmarks.proposals`; budget 1.15.

K = 8 passes per case: the base, four with dropout, three flips. The bare loop runs the same network as often on the
same images, which are in memory, without hooks, and drops what comes out. The network is untrained. The ratio of CPU
seconds counts every thread and leaves out what else the machine does.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from pipeline.cases.prepare import prepare
from pipeline.cases.preprocess import Preprocess
from pipeline.cases.readers.phantom import Phantom
from pipeline.cases.splits import Splits
from pipeline.compute import Compute
from pipeline.execution import Execution, Runtime
from pipeline.proposals.knobs import Propose
from pipeline.proposals.propose import propose
from pipeline.proposals.samplers.mc_dropout import MCDropout
from pipeline.proposals.samplers.tta import TTA
from pipeline.segmenter.architecture import Architecture
from pipeline.segmenter.knobs import MODELS
from pipeline.segmenter.models import Model
from pipeline.segmenter.weights import save_weights
from pipeline.store.cases import CaseStore
from pipeline.store.manifest import write_json, write_manifest

ROUNDS = 5
PASSES = 8
ONE = Execution(scheduler="synchronous", workers=1, progress="none")
RUNTIME = Runtime(Compute(), 0, ONE)
SAMPLERS = Propose(
    samplers={
        "dropout": MCDropout(kind="mc_dropout", rates=(0.1, 0.2, 0.35, 0.5)),
        "flips": TTA(kind="tta", flips=((0,), (1,), (0, 1)), mean=False),
    }
)


def case_store(folder: Path, size: tuple[int, ...], cases: int) -> CaseStore:
    """Phantoms with `cases` or a few more in the pool and validation."""
    data = Phantom.model_validate_json(f'{{"cases": {cases + 6}, "size": {list(size)}}}')
    splits = Splits(labelled=3, pool="rest", validation=3, test=3)  # groups have up to three cases
    prepare(data, Preprocess(normalise="zscore", resize=None), splits, folder, ONE)
    return CaseStore(folder)


def base_folder(folder: Path, size: tuple[int, ...]) -> Model:
    """An untrained base segmenter."""
    arguments = {"channels": [16, 32, 64, 128], "strides": [2, 2, 2], "num_res_units": 2}
    architecture = Architecture("UNet", arguments, len(size), 1, 2, "softmax", size)
    architecture.save(folder)
    save_weights(architecture.build(0), folder / "base.safetensors")
    write_json(folder / MODELS, {"members": [], "folds": {}, "fold_of": {}, "snapshots": []})
    write_manifest(folder, "benchmark")
    return Model(folder)


def seconds(work: Callable[[], None]) -> tuple[float, float]:
    """On the clock, and of all threads of this process."""
    start, start_cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - start_cpu


def compare(size: tuple[int, ...], cases: int) -> None:
    """Print the median times per case, and the median ratios of rounds in which both ran one after the other."""
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        store, model = case_store(Path("cases"), size, cases), base_folder(Path("base"), size)
        network = model.load()
        images = [torch.from_numpy(store.image(case))[None] for case in store.split("pool", "validation")]

        @torch.no_grad()
        def bare() -> None:
            for image in images:
                for _ in range(PASSES):
                    network(image)

        def stage() -> None:
            propose(store, model.folder, SAMPLERS, Path("out"), RUNTIME)

        bare()
        stage()
        rounds = [(seconds(stage), seconds(bare)) for _ in range(ROUNDS)]
    whole, passes = (
        1e3 * statistics.median(wall for wall, _ in column) / len(images) for column in zip(*rounds, strict=True)
    )
    ratios = [statistics.median(first[i] / second[i] for first, second in rounds) for i in (0, 1)]
    print(f"{size!s:<16}{len(images):>6}{whole:>14.1f}{passes:>12.1f}{ratios[0]:>8.2f}{ratios[1]:>8.2f}{1.15:>8.2f}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(f"{'K = 8':<16}{'cases':>6}{'propose, ms':>14}{'passes, ms':>12}{'ratio':>8}{'CPU':>8}{'budget':>8}")
    compare((128, 128), 64)
    compare((48, 48, 32), 8)
