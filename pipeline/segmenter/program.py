"""Networks that run without their source code: TorchScript files and `torch.export` archives."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pipeline.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Callable

FORMATS = {"torch.export": ".pt2", "torchscript": ".ts"}
"""Suffix of a program's file in a model folder, by format."""


class ProgramNetwork(nn.Module):
    """A program as a network that returns logits. The network has no layers to drop, hook or train."""

    def __init__(self, run: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.run = [run]  # a list hides the program's parts, which torch would register as layers

    def forward(self, image: Tensor) -> Any:
        # The profiling executor of TorchScript recompiles after the first calls, which may change the last bits.
        with torch.jit.optimized_execution(False):
            return self.run[0](image)


def found_format(path: Path) -> str | None:
    """Format of a program's file. None for another file."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.split("/", 1)[-1] for name in archive.namelist()}
    except (OSError, zipfile.BadZipFile):
        names = set()
    # Both formats are ZIP archives, told apart by the files inside.
    if "archive_format" in names or "serialized_exported_program.json" in names:
        return "torch.export"
    return "torchscript" if "constants.pkl" in names else None


def format_of(path: Path) -> str:
    """Format of a program's file. Raises `BadInput` for another file."""
    if (found := found_format(path)) is not None:
        return found
    raise BadInput(
        f"{path}: expected a program by torch.export.save or torch.jit.save, found another file; for weights use "
        "base.kind 'checkpoint'"
    )


def load_program(path: Path, device: str) -> ProgramNetwork:
    """Load a program onto a device. Loading runs code of the file.

    `torch.export.load` unpickles constants and custom objects (torch's documentation: never load data from an untrusted
    source). A TorchScript file is code by nature. Raises `BadInput` for a missing file and for a program that this
    torch cannot read.
    """
    if not path.is_file():
        raise BadInput(f"{path}: no such program; run the stage that imports it with `dvc repro`")
    kind = format_of(path)
    try:
        if kind == "torchscript":
            return ProgramNetwork(torch.jit.load(str(path), map_location=device).eval())
        exported = torch.export.load(path)
        if device != "cpu":
            from torch.export.passes import move_to_device_pass

            exported = move_to_device_pass(exported, device)
        return ProgramNetwork(exported.module())
    except (RuntimeError, ValueError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BadInput(f"{path}: this torch ({torch.__version__}) cannot read the program: {reason}") from error


def copy_program(source: Path, target: Path) -> None:
    """Copy a program's file, and rename the copy into place."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.partial")
    shutil.copyfile(source, partial)
    partial.replace(target)
