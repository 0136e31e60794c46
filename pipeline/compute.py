"""What computes: device, threads and precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Literal

from pydantic import Field

from pipeline.knobs import Knobs


class Compute(Knobs):
    """What computes. It changes results in the last bits, so every stage that trains or infers depends on it."""

    device: str = "cpu"
    """A torch device, e.g. `cuda:0`. cuDNN then uses deterministic algorithms; gradients of interpolation and of 3D
    pooling stay as PyTorch has them, and may differ in the last bits from run to run."""
    threads: Annotated[int, Field(gt=0)] = 1
    """Torch threads of one training; inference always uses one thread per worker. More than one only pays on cores
    that nothing else uses."""
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """Of the network only; losses are always float32. `tf32` and `bfloat16` round the factors of products to 10 and to
    7 bits, which large 3D networks gain from on a GPU. On a CPU `tf32` is `float32`."""

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Run the network in this precision."""
        import torch

        kind = torch.device(self.device).type
        if kind == "cuda":
            # PyTorch's own defaults are TF32 in convolutions, and algorithms whose sums change their order from run to
            # run. Both are of the process, and backward passes run outside of this context: nothing is set back.
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = self.precision != "float32"
            torch.backends.cudnn.deterministic = True
        with torch.autocast(kind, torch.bfloat16, enabled=self.precision == "bfloat16"):
            yield
