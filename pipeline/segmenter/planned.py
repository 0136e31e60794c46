"""Networks of nnU-Net's plans: classes of `dynamic_network_architectures`, called with the axes of this project.

nnU-Net's axes are the axes of its reader, permuted by `transpose_forward`. Weights keep the names and the axes that
nnU-Net gives them, so that they fit back into nnU-Net.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.errors import BadInput

PLANNED = "dynamic_network_architectures.architectures."
"""Start of the names of networks of nnU-Net's plans.

The arguments of such a network are `plans` (`arch_kwargs` of the plans, with classes of torch by name), `axes` (axis of
this project for each axis of nnU-Net) and `mirror` (axes of this project over which inference mirrors).
"""
_MODULE = f"{PLANNED}unet."
_TORCH = "torch.nn."


class _Turned:
    """Network that gets images, and returns logits, with the axes of this project."""

    axes: tuple[int, ...]

    def forward(self, image: Tensor) -> Any:
        there = [0, 1, *(2 + axis for axis in self.axes)]
        found = super().forward(image.permute(there))  # type: ignore[misc]
        back = np.argsort(there).tolist()
        return found.permute(back) if isinstance(found, Tensor) else [head.permute(back) for head in found]


def planned_network(name: str, arguments: Mapping[str, Any], channels: int, outputs: int) -> nn.Module:
    """The network of a class and of plans, with deep supervision and with random weights of torch's global generator.

    `arguments` are described at `PLANNED`. Raises `BadInput` for an unknown class, and if the package is not installed.
    """
    kind = planned_class(name)
    known = {key: _torch_class(value, key) for key, value in arguments["plans"].items()}
    # A subclass and not a wrapper, because a wrapper would change the names of the weights.
    turned = type(kind.__name__, (_Turned, kind), {"axes": tuple(arguments["axes"])})
    return turned(input_channels=channels, num_classes=outputs, **{**known, "deep_supervision": True})


def planned_class(name: str) -> type[nn.Module]:
    """Class of a network of plans by its whole name. Raises `BadInput` as `planned_network` does."""
    try:
        from dynamic_network_architectures.architectures import unet
    except ImportError as error:
        raise BadInput(
            "base: the networks of nnU-Net's plans need the package dynamic-network-architectures, which is not "
            "installed; run `pip install 'segpref[nnunet]'`"
        ) from error
    known = [one for one, kind in vars(unet).items() if inspect.isclass(kind) and kind.__module__ == unet.__name__]
    # Classes moved between the modules of the package, so the module in a name is not compared.
    short = name.rsplit(".", 1)[-1]
    if not name.startswith(PLANNED) or short not in known:
        raise BadInput(
            f"expected a network {' or '.join(f'{_MODULE}{one}' for one in known)}, found '{name}', which is not "
            "known here; use a model with one of these networks"
        )
    return getattr(unet, short)


def _torch_class(value: Any, key: str) -> Any:
    """Class of torch for its name, such as `torch.nn.modules.conv.Conv3d`; any other value as it is."""
    if not (isinstance(value, str) and "." in value):
        return value
    found = getattr(nn, value.rsplit(".", 1)[1], None) if value.startswith(_TORCH) else None
    if not (inspect.isclass(found) and issubclass(found, nn.Module)):
        raise BadInput(f"arch_kwargs: {key}: expected a class of torch.nn, found '{value}'; use a model with one")
    return found


def mirrorings(axes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Sets of axes that are mirrored together, without the empty set, as nnU-Net's inference mirrors."""
    for count in range(1, len(axes) + 1):
        yield from combinations(axes, count)


def even_starts(have: int, want: int) -> list[int]:
    """First voxels of windows of `want` voxels at most half a window apart, all at about the same distance.

    `have` is the length of the case. The rule is nnU-Net's `compute_steps_for_sliding_window`.
    """
    last = max(0, have - want)
    count = int(np.ceil(last / (want * 0.5))) + 1
    return [int(np.round(last / (count - 1) * i)) for i in range(count)] if count > 1 else [0]


def centre_weights(window: Sequence[int]) -> Tensor:
    """Weight of each voxel of a window in the blend, f32 `[*window]`: nnU-Net's Gaussian, of an eighth of the window.

    The highest weight is 10. Weights are rounded to half precision as nnU-Net does, and weights that become 0 there are
    the smallest of the others.
    """
    whole = torch.ones(())
    for length in window:
        distance = torch.arange(length, dtype=torch.float64) - length // 2
        whole = whole[..., None] * torch.exp(-0.5 * (distance / (length / 8)) ** 2)
    found = (10 * whole).half().float()
    return torch.where(found == 0, found[found > 0].min(), found)
