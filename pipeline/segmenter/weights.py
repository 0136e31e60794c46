"""Weights of networks on disk: written, read, and loaded once per thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor, nn

from pipeline.errors import BadInput


def save_weights(network: nn.Module, path: Path) -> None:
    """Write the network's state as safetensors, renamed into place."""
    from safetensors.torch import save

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    # A DynUNet holds its layers under two names each: safetensors takes no tensor twice.
    seen: set[int] = set()
    for name, value in state.items():
        state[name] = value.clone() if value.data_ptr() in seen else value
        seen.add(value.data_ptr())
    # Not `save_file`, whose files only their owner can read.
    partial.write_bytes(save(state))
    partial.replace(path)


def load_weights(network: nn.Module, path: Path) -> nn.Module:
    """Load safetensors into the network; a mismatch names keys and shapes. Returns the network."""
    if not path.is_file():
        raise BadInput(f"{path}: no such weights; run the stage that trains them with `dvc repro`")
    return load_state(network, read_safetensors(path), str(path))


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a file by name."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise BadInput(f"{path}: not a readable safetensors file ({error}); fetch it or write it again") from error


def load_state(network: nn.Module, found: Mapping[str, Tensor], path: str) -> nn.Module:
    """Load a state into the network; a mismatch names the file's path, keys and shapes. Returns the network."""
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


_LOADED = threading.local()


def per_thread(file: Path, device: str, load: Callable[[], nn.Module]) -> nn.Module:
    """The network of a file of weights: `load` makes it once per thread, and again where the file has changed."""
    networks: dict[str, nn.Module] = _LOADED.__dict__
    stat = file.stat() if file.is_file() else None
    key = f"{file.resolve()}:{stat and stat.st_mtime_ns}:{device}"
    if key not in networks:
        networks[key] = load()
    return networks[key]
