"""Our metrics beside MONAI's on equal masks, one thread: `python -m benchmarks.metrics`."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
from monai.metrics import (
    compute_average_surface_distance,
    compute_dice,
    compute_hausdorff_distance,
    compute_surface_dice,
)
from scipy.ndimage import gaussian_filter

from pipeline.measures.overlap import pairwise_dice
from pipeline.measures.surfaces import surface_metrics
from pipeline.seeding import numpy_generator

TOLERANCE = 2.0


def blobs(count: int, shape: tuple[int, ...]) -> np.ndarray:
    """Overlapping masks bool `[count, *shape]`: one wobbly ball, redrawn with other noise."""
    generator = numpy_generator(0, "benchmark", count, shape)
    grid = np.meshgrid(*(np.linspace(-1, 1, length) for length in shape), indexing="ij")
    radius = np.sqrt(sum(axis**2 for axis in grid))
    noise = [gaussian_filter(generator.standard_normal(shape), 4) for _ in range(count)]
    return np.stack([radius + 0.1 * field / field.std() < 0.5 for field in noise])


def one_hot(mask: np.ndarray) -> torch.Tensor:
    """f32 `[1, 2, *space]`, as MONAI's metrics take masks."""
    return torch.from_numpy(np.stack([~mask, mask])[None].astype(np.float32))


def milliseconds(ours: Callable[[], object], peer: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Median time of each, run in turns so that both see the same machine."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for work, kept in zip((ours, peer), times, strict=True):
            start = time.perf_counter()
            work()
            kept.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[0]), statistics.median(times[1])


def row(what: str, ours: float, peer: float, budget: float) -> None:
    print(f"{what:<38}{ours:>10.2f}{peer:>10.2f}{peer / ours:>8.1f}x{budget:>8.0f}x")


def surfaces(shape: tuple[int, ...]) -> None:
    """HD95, ASSD and NSD of one pair of masks."""
    prediction, truth = blobs(2, shape)
    spacing = (1.0,) * len(shape)
    predicted, true = one_hot(prediction), one_hot(truth)

    def ours() -> tuple[float, float, float]:
        return surface_metrics(prediction, truth, spacing, TOLERANCE)

    def peer() -> tuple[float, float, float]:
        return (
            float(compute_surface_dice(predicted, true, [TOLERANCE], spacing=spacing)),
            float(compute_hausdorff_distance(predicted, true, percentile=95, spacing=spacing)),
            float(compute_average_surface_distance(predicted, true, symmetric=True, spacing=spacing)),
        )

    np.testing.assert_allclose(ours(), peer(), atol=1e-5)
    row("HD95 + ASSD + NSD, " + "x".join(map(str, shape)), *milliseconds(ours, peer, 30), 5)


def pairs(count: int, shape: tuple[int, ...]) -> None:
    """Dice between all pairs of masks."""
    masks = blobs(count, shape)
    labels, encoded = masks.astype(np.uint8), [one_hot(mask) for mask in masks]

    def peer() -> np.ndarray:
        found = np.eye(count)
        for first in range(count):
            for second in range(first):
                value = float(compute_dice(encoded[first], encoded[second], include_background=False))
                found[first, second] = found[second, first] = value
        return found

    np.testing.assert_allclose(pairwise_dice(labels, 2), peer(), atol=1e-5)
    name = f"pairwise Dice, K = {count}, " + "x".join(map(str, shape))
    row(name, *milliseconds(lambda: pairwise_dice(labels, 2), peer, 15), 20)


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="monai")
    print(f"{'values equal to 1e-5':<38}{'ours ms':>10}{'MONAI ms':>10}{'ratio':>9}{'budget':>9}")
    surfaces((256, 256))
    surfaces((64, 64, 64))
    pairs(16, (256, 256))
