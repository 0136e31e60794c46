"""Weights in a file of another program, read without running code of the file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import BadInput
from pipeline.segmenter.program import found_format
from pipeline.segmenter.weights import read_safetensors

NESTED = ("state_dict", "network_weights", "model")
"""Keys under which Lightning, nnU-Net and MONAI store the weights in a checkpoint, in this order."""
PREFIXES = ("module.", "_orig_mod.")
"""Prefixes that DataParallel and torch.compile add to the name of every weight."""
SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
_NUMBERS = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
_FLOATS = ("float16", "float32", "float64")
_SCALAR = np.float64(0).__reduce__()[0]
_SAFE: list[Any] = [
    # Trainers keep measures as NumPy scalars. NumPy 2 renamed the module of the constructor of scalars.
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("_core", "core")),
    np.dtype,
    *(type(np.dtype(name)) for name in (*_NUMBERS, *_FLOATS)),
]
"""What a checkpoint may hold besides plain values and tensors: NumPy's numbers, of which none runs code of the file."""


def read_state(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors of a file by name, and notes on the keys and prefixes that were removed.

    The file is `.safetensors`, or a `state_dict` written by `torch.save`, plain or under keys of `NESTED`. Prefixes of
    `PREFIXES` that all names share are removed one after the other. Raises `BadInput` for a file that holds more than
    plain values and NumPy's numbers; no code of the file is run.
    """
    if not path.is_file():
        raise BadInput(f"{path}: no such file of weights; correct `model`, or base.weights of a bundle")
    return state_of(read_safetensors(path) if path.suffix == ".safetensors" else read_torch(path), path)


def state_of(found: Any, path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors by name in the content of the file `path`, and notes, as of `read_state`."""
    notes = []
    while key := next((key for key in NESTED if isinstance(found, dict) and isinstance(found.get(key), dict)), None):
        found = found[key]
        notes.append(f"{path.name}: the weights were read from the key '{key}'")
    if not (isinstance(found, dict) and found and all(isinstance(value, Tensor) for value in found.values())):
        kinds = sorted({type(value).__name__ for value in found.values()}) if isinstance(found, dict) else type(found)
        raise BadInput(
            f"{path}: expected tensors by name, plain or under one of {list(NESTED)}, found {kinds}; save "
            "network.state_dict() with torch.save"
        )
    removed = ""
    while prefix := next((one for one in PREFIXES if all(name.startswith(one) for name in found)), None):
        found = {name.removeprefix(prefix): value for name, value in found.items()}
        removed += prefix
    if removed:
        notes.append(f"{path.name}: the prefix '{removed}' was removed from all names")
    return found, notes


def read_torch(path: Path) -> Any:
    """Content of a file by `torch.save`. Raises `BadInput` for other files, and names an object that may run code."""
    import pickle

    if found_format(path):
        raise BadInput(
            f"{path}: expected weights, found a program; use base.kind 'program', or save network.state_dict()"
        )
    try:
        with torch.serialization.safe_globals(_SAFE):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, TypeError) as error:
        # torch names the refused code in its message only.
        if code := re.search(r"(?:GLOBAL |got <class '|function <class ')([^\s']+)", str(error)):
            raise BadInput(
                f"{path}: expected tensors, plain values and NumPy numbers, which load without running code, found the "
                f"code '{code[1]}'; if you trust the file, load it yourself and save network.state_dict()"
            ) from error
        raise BadInput(
            f"{path}: expected a state_dict by torch.save, found a damaged file or one of another format; fetch it "
            "again, or save network.state_dict() with torch.save"
        ) from error
