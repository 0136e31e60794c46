"""What computes: a GPU gives what a CPU gives, and the same files twice."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from pipeline.compute import Compute
from tests.fixtures.chain import hashes, invoke, run_chain, with_changes, write_params


@pytest.fixture
def backends():
    """PyTorch's switches, set back afterwards: they are of the process."""
    cudnn, cuda = torch.backends.cudnn, torch.backends.cuda
    before = cudnn.allow_tf32, cuda.matmul.allow_tf32, cudnn.deterministic
    yield torch.backends
    cudnn.allow_tf32, cuda.matmul.allow_tf32, cudnn.deterministic = before


@pytest.mark.parametrize(("precision", "rounded"), [("float32", False), ("tf32", True), ("bfloat16", True)])
def test_float32_is_not_rounded_to_tf32_on_a_gpu(backends, precision, rounded):
    backends.cudnn.allow_tf32 = not rounded
    backends.cudnn.deterministic = False
    backends.cuda.matmul.allow_tf32 = not rounded
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # autocast says that there is no GPU here
        with Compute(device="cuda", precision=precision).autocast():
            assert (backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32) == (rounded, rounded)
            assert backends.cudnn.deterministic


def test_a_cpu_leaves_the_switches_of_gpus_alone(backends):
    before = backends.cudnn.deterministic, backends.cudnn.allow_tf32
    with Compute(device="cpu", precision="bfloat16").autocast():
        assert (backends.cudnn.deterministic, backends.cudnn.allow_tf32) == before


def test_tf32_is_float32_on_a_cpu():
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 2, 16, 16)).astype(np.float32))
    network = torch.nn.Conv2d(2, 3, 3)
    found = []
    for precision in ("float32", "tf32"):
        with torch.no_grad(), Compute(precision=precision).autocast():
            found.append(network(image))
    assert torch.equal(*found)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_chain_on_a_gpu_gives_the_same_files_twice_and_proposes_what_a_cpu_does(tmp_path: Path, backends):
    """With the CPU's weights, of 16 cases and 8 proposals of 32x32: a voxel on the edge of a decision may turn."""
    gpu = {"compute": {"device": "cuda"}}
    for name in ("one", "two"):
        run_chain(tmp_path / name, with_changes(**gpu))
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")
    masks = []
    run_chain(tmp_path / "cpu", with_changes())
    for device in ("cpu", "gpu"):
        masks.append(np.asarray(zarr.open_array(tmp_path / "cpu/data/proposals/masks.zarr")[:]))
        if device == "cpu":
            write_params(tmp_path / "cpu", with_changes(**gpu))
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(tmp_path / "cpu")
                invoke("python -m stages.propose --cases data/cases --base models/base --out data/proposals")
    assert (masks[0] != masks[1]).sum() <= 5
