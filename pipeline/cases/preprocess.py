"""From the source's grid and intensities to the working grid and back."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from pipeline.errors import BadInput
from pipeline.knobs import Knobs

Normalise = Literal["zscore", "percentile", "minmax", "unit"]
_CLIP = (0.5, 99.5)
_UNIT = 255.0


class Preprocess(Knobs):
    """How intensities and grids are made comparable between cases."""

    normalise: Normalise | tuple[Normalise, ...] = "zscore"
    """Per case and channel: `zscore` (mean 0, standard deviation 1), `percentile` (clipped to the percentiles 0.5 and
    99.5, then `zscore`), `minmax` (0 to 1), `unit` (divided by 255, for pictures). A list has one for each channel."""
    resize: tuple[Annotated[int, Field(ge=1)], ...] | None = None
    """Working grid of all cases, voxels per axis; null keeps the source's grid."""

    def working_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Spatial shape on the working grid; raises `BadInput` if `resize` has another number of axes."""
        if self.resize is not None and len(self.resize) != len(shape):
            raise BadInput(
                f"preprocess.resize: expected {len(shape)} axes as the cases have, found {list(self.resize)}; "
                "correct it"
            )
        return shape if self.resize is None else self.resize

    def image(self, image: np.ndarray) -> np.ndarray:
        """Image f32 `[channel, *working]`: resized linearly with anti-aliasing, then normalised channel by channel.

        A constant channel becomes 0. Raises `BadInput` for a list of another length than there are channels.
        """
        hows = (self.normalise,) * len(image) if isinstance(self.normalise, str) else self.normalise
        if len(hows) != len(image):
            raise BadInput(
                f"preprocess.normalise: expected {len(image)} entries, one for each channel, found {len(hows)}"
            )
        shape = self.working_shape(image.shape[1:])
        return np.stack([_normalised(_resized(channel, shape), how) for channel, how in zip(image, hows, strict=True)])

    def label(self, label: np.ndarray) -> np.ndarray:
        """Label u8 `[*working]`: the value whose indicator is largest after the resampling that images get.

        255 competes as a class of its own; ties go to the lower value.
        """
        shape = self.working_shape(label.shape)
        if shape == label.shape:
            return label
        values = np.unique(label)
        indicators = [_resized((label == value).astype(np.float32), shape) for value in values[:-1]]
        last = 1 - sum(indicators, np.zeros(shape, np.float32))
        return values[np.argmax([*indicators, last], axis=0)]


def restore_probability(probability: np.ndarray, original_shape: tuple[int, ...]) -> np.ndarray:
    """Probability f32 `[class, *original]` from `[class, *working]`, linearly between voxel centres.

    The same array if the shapes are equal. Classes that sum to 1 still do.
    """
    if probability.shape[1:] == tuple(original_shape):
        return probability
    import torch
    from torch.nn.functional import interpolate

    mode = {2: "bilinear", 3: "trilinear"}[len(original_shape)]
    working = torch.from_numpy(np.ascontiguousarray(probability, dtype=np.float32))
    return interpolate(working[None], size=tuple(original_shape), mode=mode, align_corners=False)[0].numpy()


def _resized(channel: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if channel.shape == shape:
        return channel
    from skimage.transform import resize

    return resize(channel, shape, order=1, mode="edge", anti_aliasing=True, preserve_range=True).astype(np.float32)


def _normalised(channel: np.ndarray, how: Normalise) -> np.ndarray:
    values = channel.astype(np.float64)
    if how == "unit":
        if values.min() < 0 or values.max() > _UNIT:
            raise BadInput(
                f"preprocess.normalise: 'unit' expected intensities from 0 to 255, found {values.min():g} to "
                f"{values.max():g}; use another normalisation"
            )
        return (values / _UNIT).astype(np.float32)
    if how == "percentile":
        values = values.clip(*np.percentile(values, _CLIP))
    low, high = values.min(), values.max()
    if low == high:
        return np.zeros(channel.shape, np.float32)
    if how == "minmax":
        return ((values - low) / (high - low)).astype(np.float32)
    return ((values - values.mean()) / values.std()).astype(np.float32)
