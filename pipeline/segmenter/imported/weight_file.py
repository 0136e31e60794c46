"""Weights in a file of another program, read without running code of the file."""

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
"""Keys under which Lightning, nnU-Net and MONAI store the weights in a checkpoint, in this order."""
PREFIXES = ("module.", "_orig_mod.")
"""Prefixes that DataParallel and torch.compile add to the name of every weight."""
SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")


def read_state(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors of a file by name, and notes on the keys and prefixes that were removed.

    The file is `.safetensors`, or a `state_dict` written by `torch.save`, plain or under keys of `NESTED`. Prefixes of
    `PREFIXES` that all names share are removed one after the other. Raises `BadInput` for a file that holds more than
    plain values; no code of the file is run.
    """
    if not path.is_file():
        raise BadInput(f"{path}: no such file of weights; correct `model`, or base.weights of a bundle")
    found, notes = (read_safetensors(path) if path.suffix == ".safetensors" else _torch(path)), []
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


def _torch(path: Path) -> Any:
    import pickle

    if found_format(path):
        raise BadInput(
            f"{path}: expected weights, found a program; use base.kind 'program', or save network.state_dict()"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        # torch names the refused code in its message only.
        if code := re.search(r"GLOBAL (\S+)", str(error)):
            raise BadInput(
                f"{path}: expected a state_dict of plain tensors, which loads without running code, found the code "
                f"'{code[1]}'; if you trust the file, load it yourself and save network.state_dict()"
            ) from error
        raise BadInput(
            f"{path}: expected a state_dict by torch.save, found a damaged file or one of another format; fetch it "
            "again, or save network.state_dict() with torch.save"
        ) from error
