"""Logits of networks with several heads: the main head for inference, all heads for supervised training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn


class Head(NamedTuple):
    """Logits `[image, output, *space]` of one head, of full or lower resolution, and the head's weight in the loss."""

    weight: float
    logits: Tensor


def heads_of(output: Any, space: Sequence[int]) -> list[Head]:
    """Heads in a network's output for images of shape `space`, the main head first, with weights that add up to 1.

    - A tensor `[image, output, *space]` is a single head.
    - A tensor `[image, head, output, *space]` holds the heads from the main head to the deepest, all resized to full
      resolution (DynUNet).
    - A list holds heads of several resolutions. The main head is the last head of full resolution: the only one, or,
      in a UNet++, the head behind all others.

    The weight of a head is half the weight of the next higher resolution (nnU-Net, Isensee et al. 2021). Heads of equal
    resolution have equal weights (UNet++, Zhou et al. 2018). Raises `ValueError` for any other output.
    """
    rank = len(space) + 2
    if isinstance(output, Tensor) and output.ndim == rank + 1:
        heads = list(output.unbind(1))
        # In a stack, every head was resized from half the resolution of the head before.
        levels = list(range(len(heads)))
    else:
        heads = list(output) if isinstance(output, list | tuple) else [output]
        alike = all(isinstance(head, Tensor) and head.ndim == rank for head in heads)
        # A list may hold other tensors than heads, such as the image and the latent code of an autoencoder.
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
    """Make calls of the network return the main head alone, in training as well. Names of weights do not change."""
    network.register_forward_hook(_main)
    return network


def _main(network: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> Tensor:
    if isinstance(output, Tensor) and output.ndim <= inputs[0].ndim:
        return output
    return heads_of(output, inputs[0].shape[2:])[0].logits


def all_heads(network: nn.Module, images: Tensor) -> list[Head]:
    """All heads of a network for a batch of images, the main head first, in training mode and in eval mode."""
    training = network.training
    # Networks return all heads in training mode only. The layers, dropout among them, keep their own modes.
    network.training = True
    try:
        # `forward` in place of a call, which would run the hook that drops all heads but the main head.
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
