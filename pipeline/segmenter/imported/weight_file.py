"""The weights of a file that others wrote, read without unpickling code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import BadInput
from pipeline.segmenter.program import found_format
from pipeline.segmenter.weights import read_safetensors

NESTED = ("state_dict", "network_weights", "model")
"""Keys under which trainers keep the weights: Lightning, nnU-Net, MONAI."""
PREFIXES = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before the name of every weight."""
SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")


def read_state(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors by name, and what was done to find them, in plain words.

    `.safetensors`, or a `state_dict` written by `torch.save`, plain or under one of `NESTED`; a prefix of `PREFIXES`
    that all names have is taken off. Raises `BadInput` for a file with more than plain values in it: none of its code
    is run.
    """
    if not path.is_file():
        raise BadInput(f"{path}: no such file of weights; correct `model`, or where a bundle names its weights")
    found, notes = (read_safetensors(path) if path.suffix == ".safetensors" else _torch(path)), []
    for key in NESTED:
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
            notes.append(f"{path.name}: the weights are those under '{key}'")
            break
    if not (isinstance(found, dict) and found and all(isinstance(value, Tensor) for value in found.values())):
        kinds = sorted({type(value).__name__ for value in found.values()}) if isinstance(found, dict) else type(found)
        raise BadInput(
            f"{path}: expected tensors by name, plain or under one of {list(NESTED)}, found {kinds}; save "
            "network.state_dict()"
        )
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in found):
            found = {name.removeprefix(prefix): value for name, value in found.items()}
            notes.append(f"{path.name}: the prefix '{prefix}' of all names was taken off")
    return found, notes


def _torch(path: Path) -> Any:
    import pickle

    if found_format(path):
        raise BadInput(f"{path}: a program, not weights; use base.kind 'program', or save network.state_dict()")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        ran = f", the code '{code[1]}'" if code else ""
        raise BadInput(
            f"{path}: expected a state_dict of plain tensors, which loads without running code, found something else"
            f"{ran}; load it where you trust it and save network.state_dict()"
        ) from error
