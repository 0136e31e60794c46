"""Seeds of named draws. A seed depends on the name of the draw, never on the time or place of drawing."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def seed_of(*what: object) -> int:
    """63-bit seed of a named draw, e.g. `seed_of(seed, case_id, "mc_dropout", 3)`.

    Equal parts give equal seeds in every version of Python and of the libraries.
    """
    # The type names tell 1 from "1". The separator tells ("ab", "c") from ("a", "bc").
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in what)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def numpy_generator(*what: object) -> np.random.Generator:
    """NumPy generator of a named draw."""
    return np.random.Generator(np.random.PCG64(seed_of(*what)))


def torch_generator(*what: object, device: str = "cpu") -> torch.Generator:
    """Torch generator of a named draw.

    Threads share torch's global generator, so a task that shares its process with others draws from a named generator.
    """
    import torch

    return torch.Generator(device=device).manual_seed(seed_of(*what))
