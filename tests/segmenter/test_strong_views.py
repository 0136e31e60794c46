"""Strong views: seeded, of the image's shape, nothing at strength 0, and each modality with variations of its own."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.segmenter.strong_views import RANGES, Modality, StrongViews, _seeded

MODALITIES = [None, *get_args(Modality)]


def image(channels: int, *space: int) -> torch.Tensor:
    return torch.randn((channels, *space), generator=torch.Generator().manual_seed(1))


def test_every_modality_has_ranges():
    assert set(RANGES) == set(MODALITIES)


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("shape", [(1, 16, 12), (3, 9, 9), (2, 8, 10, 6)])
def test_a_view_follows_from_its_seed(modality, shape):
    views, original = StrongViews(modality=modality), image(*shape)
    before = original.clone()
    one, again, other = (views.varied(original, seed) for seed in (5, 5, 6))
    assert torch.equal(one, again)
    assert torch.equal(other, StrongViews(modality=modality).varied(original, 6)), "earlier views leave no trace"
    assert not torch.equal(one, other)
    assert (one.shape, one.dtype, type(one)) == (original.shape, torch.float32, torch.Tensor)
    assert torch.isfinite(one).all()
    assert torch.equal(original, before), "the clean image stays as it was"


def test_a_seed_gives_the_draws_that_monai_gives():
    views, original = StrongViews(modality="mri"), image(1, 16, 16)
    for name, transform in (("intensity", views._made(1, 2)), ("hole", views._hole((16, 16)))):
        for seed in (*range(6), 2**40 + 3):
            expected = transform.set_random_state(seed=seed % 2**32)(original)
            kept = views._kept((name,), lambda transform=transform: transform)
            assert torch.equal(_seeded(kept, seed)(original), expected), name


@pytest.mark.parametrize("seed", [0, 2**63 - 1])
def test_strength_0_is_the_image_itself(seed):
    original = image(1, 8, 8)
    assert StrongViews(strength=0).varied(original, seed) is original


def test_views_grow_with_the_strength():
    """Mean distance to the clean image over 40 views, at three strengths."""
    original = image(1, 32, 32)
    far = [
        sum(float((StrongViews(strength=s).varied(original, seed) - original).abs().mean()) for seed in range(40))
        for s in (0.1, 0.5, 1.0)
    ]
    assert far[0] < far[1] < far[2]


def test_three_channels_are_a_photograph_unless_told():
    """Gains of their own per channel change the ratio of two equal channels; a scan of three channels keeps it."""
    grey = image(1, 24, 24).expand(3, -1, -1).contiguous()

    def spread(modality: Modality | None) -> float:
        views = [StrongViews(modality=modality).varied(grey, seed) for seed in range(20)]
        return sum(float(view.flatten(1).mean(1).max() - view.flatten(1).mean(1).min()) for view in views)

    assert spread(None) == spread("photograph")
    assert spread("ultrasound") < spread(None) / 3


@settings(max_examples=25)
@given(st.integers(1, 4), st.lists(st.integers(1, 9), min_size=2, max_size=3), st.floats(0, 2), st.integers(0, 2**40))
def test_any_image_has_a_view(channels, space, strength, seed):
    """Constant images, images of one voxel and every strength: finite, and of the same shape."""
    for original in (image(channels, *space), torch.zeros((channels, *space))):
        view = StrongViews(strength=strength).varied(original, seed)
        assert view.shape == original.shape
        assert torch.isfinite(view).all()
