"""Device, threads and precision of training and inference."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Literal

from pydantic import Field

from pipeline.knobs import Knobs

LOADED = threading.local()
"""Networks that all code of a thread shares, by file and device (`pipeline/segmenter/weights.py`).

Per thread, because hooks and modes of a network are not safe to share.
"""


class Compute(Knobs):
    """Device, threads and precision of training and inference.

    These knobs change results in the last bits, so every stage that trains or infers depends on them.
    """

    device: str = "cpu"
    """A torch device, e.g. `cuda:0`. On a GPU, cuDNN uses deterministic algorithms. PyTorch's gradients of
    interpolation and of 3D pooling are not deterministic there and may differ in the last bits from run to run."""
    threads: Annotated[int, Field(gt=0)] = 1
    """Torch threads of one training. Inference always uses one thread per worker. Several threads pay only on cores
    that nothing else uses."""
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """Precision of the network. Losses are always float32.

    `tf32` rounds the factors of products to 10 bits, `bfloat16` to 7 bits. Large 3D networks gain from both on a GPU.
    On a CPU `tf32` is `float32`.
    """

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Context in which networks run at `precision`."""
        import torch

        kind = torch.device(self.device).type
        if kind == "cuda":
            # By default PyTorch convolves in TF32 and uses algorithms that sum in another order in every run. Both
            # settings belong to the process. Backward passes run outside this context, so nothing is set back.
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = self.precision != "float32"
            torch.backends.cudnn.deterministic = True
        with torch.autocast(kind, torch.bfloat16, enabled=self.precision == "bfloat16"):
            yield
