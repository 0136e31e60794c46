"""Seeds that depend on what is drawn, never on when or where it is drawn."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def seed_of(*what: object) -> int:
    """63-bit seed of a named draw, e.g. `seed_of(seed, case_id, "mc_dropout", 3)`; stable across versions."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in what)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def numpy_generator(*what: object) -> np.random.Generator:
    """NumPy generator of a named draw."""
    return np.random.Generator(np.random.PCG64(seed_of(*what)))


def torch_generator(*what: object, device: str = "cpu") -> torch.Generator:
    """Torch generator of a named draw; torch's global one is shared by threads and so is never used for results."""
    import torch

    return torch.Generator(device=device).manual_seed(seed_of(*what))
