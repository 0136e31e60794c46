"""A preference step (all pairs of each image in one pass) over a supervised step of the same network and batch.

`python -m benchmarks.preference_step`; budgets: 1.10 with cached reference logits, 1.45 with recomputed ones, and 1.20
with strong views of the images in both steps.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from pipeline.segmenter.architecture import Architecture
from pipeline.segmenter.losses import dice_ce
from pipeline.segmenter.strong_views import StrongViews
from pipeline.students.batch import PairStatistics, PoolBatch
from pipeline.students.objectives.preference import Preference

ROUNDS = 15


def step(network: torch.nn.Module, loss: Callable[[], torch.Tensor]) -> float:
    """Seconds of one optimiser step."""
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-6)
    start = time.perf_counter()
    optimiser.zero_grad()
    loss().backward()
    optimiser.step()
    return time.perf_counter() - start


def compare(shape: tuple[int, ...], images: int, pairs: int, classes: int) -> tuple[float, float, float]:
    """Median ratio with cached and with recomputed reference logits, and with strong views and cached logits."""
    arguments = {"channels": [16, 32, 64, 128], "strides": [2, 2, 2], "num_res_units": 2}
    head = "sigmoid" if classes == 2 else "softmax"
    architecture = Architecture("UNet", arguments, len(shape), 1, classes, head, shape)
    network, reference = architecture.build(0), architecture.build(0).eval()
    generator = torch.Generator().manual_seed(0)
    batch = torch.randn(images, 1, *shape, generator=generator)
    masks = torch.randint(0, classes, (2, images * pairs, *shape), generator=generator, dtype=torch.uint8)
    index = torch.arange(images).repeat_interleave(pairs)
    voxels = torch.full((images * pairs,), int(np.prod(shape)))
    size = (masks[0] != masks[1]).flatten(1).sum(1).numpy()
    bound = Preference(kind="preference").bind(PairStatistics(size, voxels.numpy(), len(shape)))
    with torch.no_grad():
        kept = reference(batch)

    def recomputed() -> torch.Tensor:
        with torch.no_grad():
            return reference(batch)

    def preference(logits_of_reference: Callable[[], torch.Tensor], seen: Callable[[], torch.Tensor]) -> torch.Tensor:
        pair_batch = PoolBatch(network(seen()), logits_of_reference(), masks[0], masks[1], index, voxels)
        return bound(pair_batch)[0]

    views = StrongViews()

    def varied(turn: int) -> torch.Tensor:
        return torch.stack([views.varied(image, turn * images + place) for place, image in enumerate(batch)])

    labels = masks[0, ::pairs]
    ratios: list[tuple[float, float, float]] = []
    for turn in range(ROUNDS):
        plain = step(network, lambda: dice_ce(network(batch), labels))
        cached = step(network, lambda: preference(lambda: kept, lambda: batch))
        again = step(network, lambda: preference(recomputed, lambda: batch))
        of_view = step(network, lambda turn=turn: dice_ce(network(varied(turn)), labels))
        viewed = step(network, lambda turn=turn: preference(lambda: kept, lambda: varied(turn)))
        if turn:
            ratios.append((cached / plain, again / plain, viewed / of_view))
    first, second, third = (statistics.median(column) for column in zip(*ratios, strict=True))
    return first, second, third


if __name__ == "__main__":
    torch.set_num_threads(1)
    print("network                    pairs  cached  recomputed  views   (budget 1.10, 1.45, 1.20)")
    for shape, images, pairs, classes in (
        ((128, 128), 4, 1, 2),
        ((128, 128), 4, 4, 2),
        ((128, 128), 4, 4, 4),
        ((48, 64, 48), 2, 1, 3),
        ((48, 64, 48), 2, 4, 3),
    ):
        cached, recomputed, viewed = compare(shape, images, pairs, classes)
        print(f"{shape!s:16} {classes} classes {pairs:7} {cached:7.2f} {recomputed:11.2f} {viewed:6.2f}")
