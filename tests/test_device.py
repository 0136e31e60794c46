"""What computes: a GPU gives what a CPU gives, and the same files twice."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from pipeline.recipe import Compute
from tests.chain import hashes, run_chain, with_changes


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
def test_the_chain_on_a_gpu_gives_the_same_files_twice_and_the_masks_of_a_cpu(tmp_path: Path):
    for name in ("one", "two"):
        run_chain(tmp_path / name, with_changes(compute={"device": "cuda"}))
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")
    run_chain(tmp_path / "cpu", with_changes(compute={"device": "cpu"}))
    # Bases are trained apart, so their last bits and with them single voxels may differ.
    masks = [np.asarray(zarr.open_array(tmp_path / name / "data/proposals/masks.zarr")[:]) for name in ("one", "cpu")]
    assert np.mean(masks[0] != masks[1]) < 0.05
