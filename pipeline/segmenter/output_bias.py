"""Offsets of a student in the bias of its last layer: the weights alone then predict as weights and offsets did."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from pipeline.errors import BadInput
from pipeline.segmenter.architecture import Architecture
from pipeline.segmenter.models import Model
from pipeline.segmenter.student_record import StudentRecord

_CLOSE = 1e-3
"""Largest error of a moved logit, in nats. Rounding stays far below, and a bias of another layer moves far more."""


def with_offsets(model: Model) -> nn.Module | None:
    """The network of a student with its offsets in the bias of the last layer; None for a model without offsets.

    A base and a model of nnU-Net have no offsets beside their weights, and must predict as the student did. Raises
    `BadInput` for a network without such a bias.
    """
    record = StudentRecord.of(model.folder)
    offsets = () if record is None else record.offsets or ()
    if not any(offsets):
        return None
    network = None if model.architecture.program else model.load()
    if network is None or not add_to_output_bias(network, model.architecture, offsets):
        raise BadInput(
            f"{model.folder}: expected a network whose last layer has a bias to hold the offsets {list(offsets)} of "
            f"the student, found none in {model.architecture.name}; its weights alone cannot predict as the student, "
            "so remove `offsets` from the student and run `dvc repro`"
        )
    return network


@torch.no_grad()
def add_to_output_bias(network: nn.Module, architecture: Architecture, offsets: Sequence[float]) -> bool:
    """Add offsets of the foreground classes to the bias of the last layer, in place. False if there is none.

    Networks name their last layer as they like, and residual connections may end behind the last layer. So the bias is
    found by its effect: in eval mode it moves every logit of a class by the offset of the class.
    """
    shift = torch.tensor(offsets if architecture.outputs == 1 else [0.0, *offsets])
    generator = torch.Generator().manual_seed(0)
    image = torch.randn((1, architecture.channels, *architecture.window), generator=generator)
    before = network.eval()(image)
    expected = before + shift.view(1, -1, *([1] * (before.ndim - 2)))
    biases = [value for name, value in network.named_parameters() if name.endswith("bias")]
    for bias in reversed([value for value in biases if value.shape == (architecture.outputs,)]):
        kept = bias.clone()
        bias.add_(shift)
        if torch.allclose(network(image), expected, rtol=0, atol=_CLOSE):
            return True
        bias.copy_(kept)
    return False
