"""The logits of a network that has several heads: the main one in inference, all of them in supervised training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn


class Head(NamedTuple):
    """Logits `[image, output, *space]` of one head, perhaps of lower resolution, and its share of a loss."""

    weight: float
    logits: Tensor


def heads_of(output: Any, space: Sequence[int]) -> list[Head]:
    """Heads of what a network returns for images of this size, the main one first; their weights add up to 1.

    A tensor `[image, output, *space]` is the only head. Deep supervision is either stacked, `[image, head, output,
    *space]` from the main head to the deepest, each brought to full size (DynUNet); or a list, in which the main head
    is the last one of full size: the only one of full size, or the one behind all others of a UNet++.
    A weight is half of that of the next higher resolution (nnU-Net, Isensee et al. 2021), and equal for equal
    resolutions (UNet++, Zhou et al. 2018). Raises `ValueError` for anything else.
    """
    rank = len(space) + 2
    if isinstance(output, Tensor) and output.ndim == rank + 1:
        heads = list(output.unbind(1))
        levels = list(range(len(heads)))
    else:
        heads = list(output) if isinstance(output, list | tuple) else [output]
        alike = all(isinstance(head, Tensor) and head.ndim == rank for head in heads)
        # A list may be something else, as the image and the latent code of an autoencoder.
        if not alike or len({head.shape[1] for head in heads}) != 1:
            raise ValueError(f"expected logits, or a list of logits of several heads, found {_described(output)}")
        sizes = sorted({head[0, 0].numel() for head in heads}, reverse=True)
        levels = [sizes.index(head[0, 0].numel()) for head in heads]
    full = [place for place, head in enumerate(heads) if tuple(head.shape[2:]) == tuple(space)]
    if not full:
        raise ValueError(f"expected logits of size {list(space)}, found {_described(output)}")
    main = full[0] if isinstance(output, Tensor) else full[-1]
    total = sum(2.0**-level for level in levels)
    order = [main, *(place for place in range(len(heads)) if place != main)]
    return [Head(2.0 ** -levels[place] / total, heads[place]) for place in order]


def keep_main_head(network: nn.Module) -> nn.Module:
    """Let calls of the network return its main head alone, in training too. Names of weights stay as they are."""
    network.register_forward_hook(_main)
    return network


def _main(network: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> Tensor:
    if isinstance(output, Tensor) and output.ndim <= inputs[0].ndim:
        return output
    return heads_of(output, inputs[0].shape[2:])[0].logits


def all_heads(network: nn.Module, images: Tensor) -> list[Head]:
    """Heads of the network for a batch, the main one first, whether its layers are in training or evaluation mode."""
    training = network.training
    # Networks show their further heads in training only. Dropout and normalisation are layers with modes of their own.
    network.training = True
    try:
        # Not a call, which would run the hook that leaves the main head alone.
        output = network.forward(images)
    finally:
        network.training = training
    return heads_of(output, images.shape[2:])


def _described(output: Any) -> str:
    if isinstance(output, Tensor):
        return f"a tensor {list(output.shape)}"
    if isinstance(output, list | tuple):
        return f"{type(output).__name__} of {', '.join(map(_described, output))}"
    return type(output).__name__
