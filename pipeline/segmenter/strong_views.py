"""Strong views: variations of intensity that change what a network sees and not where anything lies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import Field

from pipeline.knobs import Knobs

if TYPE_CHECKING:
    from torch import Tensor

Modality = Literal["photograph", "microscopy", "ultrasound", "mri", "ct"]
"""Kinds of images, each with its own variations."""


class Ranges(NamedTuple):
    """Largest variations at strength 1. Intensities count from the smallest intensity of a channel."""

    gamma: float = 0.6
    """The exponent lies between 1 / (1 + gamma) and 1 + gamma."""
    contrast: float = 0.5
    """Largest relative change of the distance to the mean."""
    gain: float = 0.3
    """Largest relative change of all intensities: brightness."""
    channel_gain: float = 0.0
    """Largest relative change of the intensities of one channel: colour."""
    bias_field: float = 0.0
    """Largest coefficient of a smooth factor that varies over the image."""
    blur: float = 1.5
    """Largest standard deviation of a Gaussian filter, in voxels."""
    zoom: float = 0.5
    """Largest loss of resolution, as a share of the voxels along an axis."""
    noise: float = 0.25
    """Largest standard deviation of noise, in intensities of the normalised image."""
    cut_out: float = 0.33
    """Longest edge of a box of random intensities, as a share of the image."""


RANGES: dict[Modality | None, Ranges] = {
    None: Ranges(),
    "photograph": Ranges(channel_gain=0.2),
    # Cells are a few voxels wide on a working grid, so a blurred cell has lost the shape that its mask shows.
    "microscopy": Ranges(gamma=0.8, gain=0.4, blur=0.0, zoom=0.0),
    "ultrasound": Ranges(blur=1.0),
    # Coils make a smooth factor over the image.
    "mri": Ranges(bias_field=0.1),
    # Hounsfield units are calibrated, so CT images of one patient hardly differ in intensity.
    "ct": Ranges(gamma=0.2, contrast=0.2, gain=0.1),
}
"""Variations by modality. None is for images of an unknown kind."""

OFTEN, SELDOM = 0.5, 0.25
"""Shares of the views with blur, bias field and cut-out, and with a loss of resolution. All else always varies."""


class StrongViews(Knobs):
    """Strength of the variations of intensity in training. Strength 0 leaves every image as it is.

    Strong views of unlabelled images are those of semi-supervised training (Sohn et al., FixMatch, NeurIPS 2020), from
    the intensity transforms of MONAI.
    """

    strength: Annotated[float, Field(ge=0, le=2)] = 1.0
    """Factor of all ranges. At 0 images are not varied."""
    modality: Modality | None = None
    """Kind of the images. `photograph` also varies the gain of each channel, `mri` adds a bias field, and `ct` varies
    intensities little. Null: `photograph` for images of three channels, else variations that suit most images."""
    labelled: bool = False
    """Whether labelled images are varied as strongly as pool images. `students.NAME.labelled_views` overrides this
    knob for one student."""

    def varied(self, image: Tensor, seed: int) -> Tensor:
        """A variation of an image f32 `[channel, *space]`, drawn from `seed`. The same tensor at strength 0."""
        if not self.strength:
            return image
        space = tuple(image.shape[1:])
        transform = self._kept(("intensity", len(image), len(space)), lambda: self._made(len(image), len(space)))
        hole = self._kept(("hole", *space), lambda: self._hole(space))
        # Gains and bias fields act on intensities from 0 up, as they do in a camera or a scanner.
        floor = image.flatten(1).amin(1).view(-1, *([1] * (image.ndim - 1)))
        with _without_metadata():
            varied = _seeded(transform, seed)(image - floor)
            if hole is not None:
                varied = _seeded(hole, seed + 1)(varied)
        return varied + floor

    @cached_property
    def _transforms(self) -> dict[tuple[str | int, ...], Any]:
        """Transforms by what they were made for. Each has a generator of its own, which every view seeds again."""
        return {}

    def _kept(self, key: tuple[str | int, ...], make: Callable[[], Any]) -> Any:
        """The transform of this key, made once."""
        if key not in self._transforms:
            made = make()
            # Any seed: what matters is that the transform gets a generator of its own.
            self._transforms[key] = None if made is None else made.set_random_state(seed=0)
        return self._transforms[key]

    def _ranges(self, channels: int) -> Ranges:
        modality = self.modality or ("photograph" if channels == 3 else None)
        return Ranges(*(self.strength * width for width in RANGES[modality]))

    def _made(self, channels: int, axes: int) -> Any:
        from monai import transforms as monai

        ranges = self._ranges(channels)
        sigma = (0.25, max(0.25, ranges.blur))
        smallest = max(0.25, 1 - ranges.zoom)
        wanted = {
            "bias_field": lambda: monai.RandBiasField(prob=OFTEN, coeff_range=(0.0, ranges.bias_field)),
            "gamma": lambda: monai.RandAdjustContrast(prob=1, gamma=(1 / (1 + ranges.gamma), 1 + ranges.gamma)),
            "contrast": lambda: monai.RandScaleIntensityFixedMean(
                prob=1, factors=_factors(ranges.contrast), preserve_range=False
            ),
            "gain": lambda: monai.RandScaleIntensity(prob=1, factors=_factors(ranges.gain)),
            "channel_gain": lambda: monai.RandScaleIntensity(
                prob=1, factors=_factors(ranges.channel_gain), channel_wise=True
            ),
            "blur": lambda: monai.RandGaussianSmooth(prob=OFTEN, sigma_x=sigma, sigma_y=sigma, sigma_z=sigma),
            "zoom": lambda: monai.RandSimulateLowResolution(
                prob=SELDOM, zoom_range=(smallest, 1.0), upsample_mode={2: "bilinear", 3: "trilinear"}[axes]
            ),
            "noise": lambda: monai.RandGaussianNoise(prob=1, std=ranges.noise, sample_std=True),
        }
        return monai.Compose([make() for name, make in wanted.items() if getattr(ranges, name)])

    def _hole(self, space: tuple[int, ...]) -> Any:
        """Transform that cuts a box out of an image of this size; None if the box would be smaller than a voxel."""
        from monai.transforms import RandCoarseDropout

        edges = [int(length * RANGES[None].cut_out * self.strength) for length in space]
        if min(edges) < 1:
            return None
        smallest = [max(1, edge // 3) for edge in edges]
        return RandCoarseDropout(prob=OFTEN, holes=1, spatial_size=smallest, max_spatial_size=edges)


def _factors(width: float) -> tuple[float, float]:
    """Range of a relative change whose factors 1 / (1 + width) and 1 + width are its ends."""
    return 1 / (1 + width) - 1, width


def _seeded(transform: Any, seed: int) -> Any:
    """The transform, with the draws that `transform.set_random_state(seed % 2**32)` gives.

    MONAI makes a new generator for every transform, which takes about as long as to vary an image of 64x64. To seed the
    old generator again gives the same draws. The transform must have a generator of its own, because MONAI's default is
    shared by all transforms.
    """
    from monai.utils import MAX_SEED

    transform.R.seed(seed % MAX_SEED)
    for each in getattr(transform, "transforms", ()):
        each.R.seed(int(transform.R.randint(MAX_SEED, dtype="uint32")))
    return transform


@contextmanager
def _without_metadata() -> Iterator[None]:
    """Transforms of MONAI without metadata beside an image, which takes half of the time of a view."""
    from monai.data import get_track_meta, set_track_meta

    before = get_track_meta()
    set_track_meta(False)
    try:
        yield
    finally:
        set_track_meta(before)
