"""Weights of networks on disk: writing, reading, and one network per thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor, nn

from pipeline.errors import BadInput


def save_weights(network: nn.Module, path: Path) -> None:
    """Write the state of a network as safetensors, and rename the file into place."""
    from safetensors.torch import save

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    # A DynUNet has two names for every layer, and safetensors refuses a tensor with two names.
    seen: set[int] = set()
    for name, value in state.items():
        state[name] = value.clone() if value.data_ptr() in seen else value
        seen.add(value.data_ptr())
    # `save` in place of `save_file`, whose files only the owner can read.
    partial.write_bytes(save(state))
    partial.replace(path)


def load_weights(network: nn.Module, path: Path) -> nn.Module:
    """Load a safetensors file into a network and return the network. Raises `BadInput` as `load_state` does."""
    if not path.is_file():
        raise BadInput(f"{path}: no such weights; run the stage that trains them with `dvc repro`")
    return load_state(network, read_safetensors(path), str(path))


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file by name. Raises `BadInput` for another file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise BadInput(f"{path}: not a readable safetensors file ({error}); fetch it or write it again") from error


def load_state(network: nn.Module, found: Mapping[str, Tensor], path: str) -> nn.Module:
    """Load a state from the file `path` into a network and return the network.

    Raises `BadInput` with names and shapes for a state of another network.
    """
    expected = network.state_dict()
    wrong = [f"missing '{name}' {tuple(expected[name].shape)}" for name in expected.keys() - found.keys()]
    wrong += [f"unexpected '{name}' {tuple(found[name].shape)}" for name in found.keys() - expected.keys()]
    wrong += [
        f"'{name}' expected {tuple(expected[name].shape)}, found {tuple(found[name].shape)}"
        for name in expected.keys() & found.keys()
        if expected[name].shape != found[name].shape
    ]
    if wrong:
        raise BadInput(f"{path}: weights of another network: " + "; ".join(sorted(wrong)[:10]))
    network.load_state_dict(dict(found))
    return network


# Per thread, because hooks and modes of a network are not safe to share.
_LOADED = threading.local()


def per_thread(file: Path, device: str, load: Callable[[], nn.Module]) -> nn.Module:
    """Network of a weights file. `load` runs once per thread, file and device, and again if the file has changed."""
    networks: dict[str, nn.Module] = _LOADED.__dict__
    stat = file.stat() if file.is_file() else None
    # The time of change tells new weights under an old name.
    key = f"{file.resolve()}:{stat and stat.st_mtime_ns}:{device}"
    if key not in networks:
        networks[key] = load()
    return networks[key]
