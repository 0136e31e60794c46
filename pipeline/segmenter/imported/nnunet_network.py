"""Network of nnU-Net's plans, with the window and the mirroring of nnU-Net on the axes of this project."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.segmenter.architecture import Architecture
from pipeline.segmenter.planned import planned_class

if TYPE_CHECKING:
    from pipeline.cases.nnunet_plans import Plans
    from pipeline.store.cases import CaseStore


def network_of(plans: Plans, cases: CaseStore, mirror: Sequence[int]) -> Architecture:
    """Network of a configuration for these cases. `mirror` holds axes of the network.

    Raises `BadInput` for an unknown class and for a network of other windows than the cases.
    """
    dimensions = len(cases.padded)
    axes = plans.axes(dimensions)
    block = plans.value("architecture")
    arguments = {
        "plans": block["arch_kwargs"],
        "axes": list(axes),
        "mirror": sorted(axes[axis] for axis in mirror),
    }
    window = tuple(int(length) for length in plans.on_our_axes(plans.value("patch_size"), dimensions))
    name = block["network_class_name"]
    # Any other name would be looked up among MONAI's networks.
    planned_class(name)
    channels, classes = len(plans.channel_names), len(plans.class_names)
    return Architecture(name, arguments, dimensions, channels, classes, "softmax", window)
