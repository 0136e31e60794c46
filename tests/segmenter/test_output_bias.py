"""Offsets in the bias of the last layer: the logits move by the offsets, or the network is as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.segmenter.architecture import Architecture
from pipeline.segmenter.knobs import Network
from pipeline.segmenter.output_bias import add_to_output_bias
from tests.fixtures.networks import same

PLAIN = {"channels": [4, 8], "strides": [2]}
NETWORKS = {
    "UNet": Network(name="UNet", arguments=PLAIN, multiple=2),
    # The last layer ends in the sum of a residual connection and a convolution.
    "UNet with residual units": Network(name="UNet", arguments={**PLAIN, "num_res_units": 2}, multiple=2),
    "BasicUNet": Network(name="BasicUNet", arguments={"features": [4, 4, 4, 4, 4, 4]}, multiple=16),
    "SegResNet": Network(name="SegResNet", arguments={"init_filters": 8}, multiple=8),
    "AttentionUnet": Network(name="AttentionUnet", arguments=PLAIN, multiple=2),
}


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_logits_move_by_the_offsets(name: str, classes: int) -> None:
    architecture = Architecture.of(NETWORKS[name], 1, classes, (32, 32))
    network = architecture.build(0).eval()
    offsets = [0.4, -1.1][: classes - 1]
    image = torch.randn((2, 1, 32, 32), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = network(image)
        assert add_to_output_bias(network, architecture, offsets)
        moved = network(image) - before
    shift = torch.tensor(offsets if architecture.outputs == 1 else [0.0, *offsets])
    assert torch.allclose(moved, shift.view(1, -1, 1, 1).expand_as(moved), atol=1e-5)


class WithoutBias(nn.Module):
    """Its one bias acts before a ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 2, 1)
        self.last = nn.Conv2d(2, 2, 1, bias=False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.first(image)))


def test_a_network_without_such_a_bias_stays_as_it_was() -> None:
    network, twin = WithoutBias(), WithoutBias()
    twin.load_state_dict(network.state_dict())
    architecture = Architecture("test", {}, 2, 1, 2, "softmax", (8, 8))
    assert not add_to_output_bias(network, architecture, [0.5])
    assert same(network, twin)
