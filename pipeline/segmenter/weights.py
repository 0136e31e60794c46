"""Weights of networks on disk: writing, reading, and one network per thread."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from itertools import takewhile
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.compute import LOADED
from pipeline.errors import BadInput

_TIED = "tied"
"""Key of the metadata of our safetensors: further names of tensors by name, as JSON. The tensors are written once."""


def save_weights(network: nn.Module, path: Path) -> None:
    """Write the state of a network as safetensors, and rename the file into place.

    A tensor with several names, such as a layer of a DynUNet, is written once.
    """
    from safetensors.torch import save

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    whole = network.state_dict()
    tied = _tied(whole)
    state = {name: value.detach().cpu().contiguous() for name, value in whole.items() if name not in tied}
    # safetensors refuses tensors that share a part of their memory.
    seen: set[int] = set()
    for name, value in state.items():
        state[name] = value.clone() if value.untyped_storage().data_ptr() in seen else value
        seen.add(value.untyped_storage().data_ptr())
    # One key, because safetensors writes several keys in an order that differs between runs.
    metadata = {_TIED: json.dumps(tied, sort_keys=True)} if tied else None
    # `save` in place of `save_file`, whose files only the owner can read.
    partial.write_bytes(save(state, metadata))
    partial.replace(path)


def _tied(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Further names of tensors with several names, each with the first name of its tensor."""
    first: dict[tuple[object, ...], str] = {}
    tied = {}
    for name, value in state.items():
        key = (value.data_ptr(), value.dtype, value.shape, value.stride())
        # Empty tensors have no memory to share.
        if value.numel() and first.setdefault(key, name) != name:
            tied[name] = first[key]
    return tied


def load_weights(network: nn.Module, path: Path) -> nn.Module:
    """Load a safetensors file into a network and return the network. Raises `BadInput` as `load_state` does."""
    if not path.is_file():
        raise BadInput(f"{path}: no such weights; run the stage that trains them with `dvc repro`")
    return load_state(network, read_safetensors(path), str(path))


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file by name. Names of one tensor get the same tensor.

    Raises `BadInput` for another file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            tied = json.loads((file.metadata() or {}).get(_TIED, "{}"))
        return found | {name: found[first] for name, first in tied.items()}
    except (SafetensorError, ValueError, KeyError, AttributeError) as error:
        raise BadInput(f"{path}: not a readable safetensors file ({error}); fetch it or write it again") from error


def load_state(network: nn.Module, found: Mapping[str, Tensor], path: str) -> nn.Module:
    """Load a state from the file `path` into a network and return the network.

    Raises `BadInput` with names and shapes for a state of another network, and with names for weights that are not
    finite or not floats, and for different weights under two names of one layer.
    """
    expected = network.state_dict()
    if wrong := _differences(expected, found):
        advice = _prefix(expected, found) or ["take the weights of this network, or name the network of the weights"]
        raise BadInput(f"{path}: weights of another network: " + "; ".join([*wrong, *advice]))
    for name, value in found.items():
        if kind := _no_floats(value, expected[name].is_floating_point()):
            raise BadInput(
                f"{path}: '{name}': expected floats, found {kind}; save the weights of the network that was trained, "
                "before they are quantised or masked"
            )
        # Numbers that only float64 can hold are infinite in the network.
        as_loaded = value.to(expected[name].dtype) if expected[name].is_floating_point() else value
        if lost := int((~as_loaded.isfinite()).sum()):
            raise BadInput(
                f"{path}: '{name}': expected finite numbers, found {lost} of {value.numel()} NaN or infinite; train or "
                "fetch the weights again"
            )
    for name, first in _tied(expected).items():
        if found[name] is not found[first] and not torch.equal(found[name], found[first]):
            raise BadInput(
                f"{path}: expected equal weights under the names '{first}' and '{name}', which are one layer of the "
                "network, found different weights; train or fetch the weights again"
            )
    network.load_state_dict(dict(found))
    return network


def _no_floats(value: Tensor, expected: bool) -> str:
    """Kind of a tensor that holds no numbers one by one, or no floats where floats are expected; else empty."""
    if value.is_meta:
        return "a tensor without numbers"
    if value.layout is not torch.strided:
        return "a sparse tensor"
    return str(value.dtype) if expected and not value.is_floating_point() else ""


_SHOWN = 4
"""Number of differences of one kind that a message shows."""


def _differences(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """Differences of names and shapes. The first of each kind are shown, so that no kind hides another."""
    shapes = [
        f"'{name}' expected {tuple(expected[name].shape)}, found {tuple(found[name].shape)}"
        for name in sorted(expected.keys() & found.keys())
        if expected[name].shape != found[name].shape
    ]
    missing = [f"missing '{name}' {tuple(expected[name].shape)}" for name in sorted(expected.keys() - found.keys())]
    further = [f"unexpected '{name}' {tuple(found[name].shape)}" for name in sorted(found.keys() - expected.keys())]
    wrong = []
    for kind, all_of_kind in (("of other shapes", shapes), ("missing", missing), ("unexpected", further)):
        wrong += all_of_kind[:_SHOWN]
        if more := len(all_of_kind[_SHOWN:]):
            wrong.append(f"{more} more {kind}")
    return wrong


def _prefix(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """Advice on a prefix of the names in a file that the names of the network lack. Empty without such a prefix."""
    if not expected:
        return []
    first = min(expected)
    # Before all names of the network, beside which a file may hold further names; or else before all names of the file.
    before = [name.removesuffix(first) for name in found if name.endswith(f".{first}")]
    prefix = next((one for one in before if all(f"{one}{name}" in found for name in expected)), None)
    if prefix is None:
        levels = zip(*(name.split(".")[:-1] for name in found), strict=False)
        shared = takewhile(lambda level: len(set(level)) == 1, levels)
        prefix = "".join(f"{level[0]}." for level in shared)
    if not prefix or any(name.startswith(prefix) for name in expected):
        return []
    return [
        f"the names of the file begin with '{prefix}', which the network does not have: save the weights under names "
        f"without it, {{name.removeprefix('{prefix}'): value for name, value in state.items()}}"
    ]


def per_thread(file: Path, device: str, load: Callable[[], nn.Module]) -> nn.Module:
    """Network of a weights file. `load` runs once per thread, file and device, and again if the file has changed."""
    networks: dict[str, nn.Module] = LOADED.__dict__
    stat = file.stat() if file.is_file() else None
    # The time of change tells new weights under an old name.
    key = f"{file.resolve()}:{stat and stat.st_mtime_ns}:{device}"
    if key not in networks:
        networks[key] = load()
    return networks[key]
