"""Segmentation networks by name, of MONAI or of nnU-Net's plans: arguments, and windows on which the networks run."""

from __future__ import annotations

import inspect
import json
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.errors import BadInput
from pipeline.segmenter.heads import all_heads, keep_main_head
from pipeline.segmenter.knobs import Network
from pipeline.segmenter.planned import PLANNED, planned_network
from pipeline.store.manifest import read_json, write_json

ARCHITECTURE = "network.json"
PROGRAM = "program"
"""Name of a network that is a program file. The argument `format` is a key of `program.FORMATS`."""
MULTIPLES = (*(2**n for n in range(8)), *(3 * 2**n for n in range(6)))
"""Multiples that a window is rounded up to, tried in this order until the network runs."""
# Names that classes of MONAI give to the same argument.
_SPACE = ("spatial_dims", "dimensions")
_CHANNELS = ("in_channels", "num_channels", "n_input_channels")
_OUTPUTS = ("out_channels", "num_classes")
_SIZES = ("img_size", "image_size", "input_image_size")
_FAILURES = (RuntimeError, ValueError, AssertionError, TypeError, LookupError, ImportError, ArithmeticError)
"""Exceptions that MONAI's networks raise for an unsuitable argument or window."""
_BUILDING = threading.Lock()


@dataclass(frozen=True)
class Architecture:
    """Everything that is needed to rebuild a network, stored as `network.json` beside the weights."""

    name: str  # class of `monai.networks.nets`, whole name of a class of nnU-Net's plans (`PLANNED`), or `PROGRAM`
    arguments: dict[str, Any]
    dimensions: int  # spatial axes, 2 or 3
    channels: int
    classes: int  # background included
    head: str
    window: tuple[int, ...]

    @classmethod
    def of(cls, knobs: Network, channels: int, classes: int, padded: Sequence[int]) -> Architecture:
        """Architecture of these knobs for images of `channels` channels and a largest case of shape `padded`.

        Raises `BadInput` for an unknown network, for knobs that do not fit the data, and, with `multiple` null, for a
        network that runs on no multiple of `MULTIPLES`.
        """
        if knobs.head == "sigmoid" and classes != 2:
            raise BadInput(f"base.network.head: 'sigmoid' is for 2 classes, the data has {classes}; use 'softmax'")
        window = tuple(padded) if knobs.window is None else knobs.window
        if len(window) != len(padded):
            raise BadInput(f"base.network.window: expected {len(padded)} numbers for this data, found {list(window)}")
        made = cls(knobs.name, knobs.arguments, len(padded), channels, classes, knobs.head, window)
        if knobs.multiple is not None:
            return made.rounded(knobs.multiple)
        return _smallest(json.dumps(asdict(made)))

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Architecture:
        return cls(**{**content, "window": tuple(content["window"])})

    def rounded(self, multiple: int) -> Architecture:
        """Architecture with the window rounded up to a multiple, and with the arguments that follow from the window."""
        window = tuple(-(-length // multiple) * multiple for length in self.window)
        arguments = dict(self.arguments)
        parameters = inspect.signature(self._kind()).parameters
        arguments |= {name: list(window) for name in _SIZES if name in parameters and name not in arguments}
        if self.name.lower() == "dynunet":
            arguments = {**_dynunet(window, arguments.get("strides"), len(arguments.get("filters") or ())), **arguments}
        return replace(self, arguments=arguments, window=window)

    @property
    def program(self) -> bool:
        """Whether the network is a program, which cannot be rebuilt, rather than a network of MONAI."""
        return self.name == PROGRAM

    @property
    def planned(self) -> bool:
        """Whether the network is of nnU-Net's plans. Its inference pads, cuts and blends windows as nnU-Net does."""
        return self.name.startswith(PLANNED)

    @property
    def mirror(self) -> tuple[int, ...]:
        """Axes over which inference mirrors, to average the logits. Empty for networks that are not of plans."""
        return tuple(self.arguments["mirror"]) if self.planned else ()

    @property
    def outputs(self) -> int:
        """Number of output channels: one for a sigmoid head, else one per class."""
        return 1 if self.head == "sigmoid" else self.classes

    def build(self, seed: int) -> nn.Module:
        """The network with random initial weights from `seed`. A call of the network returns logits of the main head.

        torch's global generator keeps its state. Raises `BadInput` for arguments that the class refuses.
        """
        # Initialisation draws from torch's global generator, so threads build networks one at a time.
        with _BUILDING, torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                return keep_main_head(self._new())
            except BadInput:
                raise
            except _FAILURES as error:
                raise BadInput(
                    f"base.network.arguments: {self.name} refuses {self.arguments} for {self.dimensions}D images of "
                    f"{self.channels} channels: {error}"
                ) from error

    def _new(self) -> nn.Module:
        if self.planned:
            return planned_network(self.name, self.arguments, self.channels, self.outputs)
        sizes = {name: value for name, value, _ in self.sizes()}
        return self._kind()(**sizes, **self.arguments)

    def sizes(self) -> list[tuple[str, int, int | None]]:
        """Arguments of the class for the numbers of axes, channels and outputs: name, value, and default of the class.

        The default is None for an argument without an integer default. A class for 2D or 3D only has no argument for
        axes.
        """
        kind = self._kind()
        parameters = inspect.signature(kind).parameters
        values = (self.dimensions, self.channels, self.outputs)
        named = [(name, value) for name, value in zip(self._names(kind), values, strict=True) if name is not None]
        defaults = {name: parameter.default for name, parameter in parameters.items()}
        return [(n, value, d if isinstance(d := defaults.get(n), int) else None) for n, value in named]

    def objection(self, device: str) -> str | None:
        """Reason why the network cannot be used with its window on a device. None if it gives logits of window size.

        The network runs once in training mode on two images, because batch normalisation refuses one image, and once in
        eval mode on one image.
        """
        network = self.build(0)
        try:
            network = network.to(torch.device(device))
            images = torch.zeros((2, self.channels, *self.window), device=device)
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                logits = all_heads(network.train(), images)[0].logits, network.eval()(images[:1])
        except _FAILURES as error:
            return (str(error).strip() or type(error).__name__).splitlines()[0]
        for count, found in zip((2, 1), logits, strict=True):
            expected = (count, self.outputs, *self.window)
            if tuple(found.shape) != expected:
                return f"expected logits of shape {expected}, found {tuple(found.shape)}"
        return None

    def save(self, folder: Path) -> None:
        """Write `network.json`."""
        write_json(folder / ARCHITECTURE, asdict(self))

    @classmethod
    def load(cls, folder: Path) -> Architecture:
        """Read `network.json`."""
        path = folder / ARCHITECTURE
        if not path.is_file():
            raise BadInput(f"{path}: no such model; run the stage that trains it with `dvc repro`")
        return cls.from_json(read_json(path, *(field.name for field in fields(cls))))

    def _kind(self) -> type[nn.Module]:
        from monai.networks import nets

        kind = getattr(nets, self.name, None)
        if not (inspect.isclass(kind) and issubclass(kind, nn.Module)):
            raise BadInput(f"base.network.name: MONAI has no network '{self.name}'; see monai.networks.nets")
        return kind

    def _names(self, kind: type[nn.Module]) -> list[str | None]:
        """Argument names for axes, channels and outputs. The first is None for a class of 2D or 3D networks only."""
        parameters = inspect.signature(kind).parameters
        # A class that passes keywords on to another class takes the usual names.
        passes_on = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        names: list[str | None] = []
        for known in (_SPACE, _CHANNELS, _OUTPUTS):
            found = next((name for name in known if name in parameters), known[0] if passes_on else None)
            if found is None and known is not _SPACE:
                raise BadInput(
                    f"base.network.name: {self.name} has no argument {' or '.join(known)}, so the class is no network "
                    "for segmentation; choose another network"
                )
            names.append(found)
        return names


@lru_cache
def _smallest(wanted: str) -> Architecture:
    """Architecture whose window is rounded up to the first of `MULTIPLES` on which the network runs.

    `wanted` is the architecture as JSON, because a cache needs a hashable argument. The network runs on torch's meta
    device, which computes shapes only, and on the CPU if the network does not support the meta device. Raises
    `BadInput` if no multiple works.
    """
    made = Architecture.from_json(json.loads(wanted))
    tried: dict[tuple[int, ...], str] = {}
    for multiple in MULTIPLES:
        found = made.rounded(multiple)
        # Several multiples may give the same window.
        if found.window in tried:
            continue
        objection = _objection(found)
        if objection is None:
            return found
        tried[found.window] = objection
    _refuse_dimensions(made)
    largest = made.rounded(128).window
    raise BadInput(
        f"base.network: {made.name} does not run on a window of {list(made.window)}, nor on the window rounded up to a "
        f"multiple of at most 128; with {list(largest)}: {tried[largest]}; correct `arguments` or `window`, or choose "
        "another network"
    )


def _objection(architecture: Architecture) -> str | None:
    try:
        # Layers that read values of their input raise errors that name the meta device.
        objection = architecture.objection("meta")
        return architecture.objection("cpu") if objection and "meta" in objection.lower() else objection
    except BadInput as error:
        return str(error)


def _refuse_dimensions(made: Architecture) -> None:
    """Raise `BadInput` for a class of 2D networks on 3D data, or of 3D networks on 2D data."""
    if made._names(made._kind())[0] is None:
        # A class without an argument for axes says only by running which number of axes fits: 2 or 3.
        other = 5 - made.dimensions
        if _objection(replace(made, dimensions=other, window=(64,) * other).rounded(1)) is None:
            raise BadInput(
                f"base.network.name: {made.name} is for {other}D images and the data is {made.dimensions}D; choose "
                "another network"
            )


def _dynunet(window: Sequence[int], strides: Sequence[int | Sequence[int]] | None, filters: int) -> dict[str, Any]:
    """Kernels and strides of a DynUNet as nnU-Net plans them for equal spacings (Isensee et al. 2021).

    Every level halves all axes that have at least 8 voxels (`create_nnunet_plans` of MONAI's tutorials). Halving ends
    when every axis is shorter than 8 voxels, or at as many levels as there are `filters` (0: not given). `strides`
    replaces the planned strides (null: planned).
    """
    if strides is None:
        sizes, strides = list(window), [1]
        while any(size >= 8 for size in sizes) and len(strides) != filters:
            strides = [*strides, [2 if size >= 8 else 1 for size in sizes]]
            sizes = [size // 2 if size >= 8 else size for size in sizes]
    return {"kernel_size": [3] * len(strides), "strides": list(strides), "upsample_kernel_size": list(strides[1:])}
