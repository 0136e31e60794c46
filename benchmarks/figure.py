"""Figures of studies, as PNG files for the documentation."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save_png(sheet: Figure, file: Path, dpi: int) -> None:
    """Write a figure with a palette of 256 colours, which takes a third of the bytes."""
    drawn = io.BytesIO()
    sheet.savefig(drawn, dpi=dpi)
    Image.open(drawn).convert("RGB").quantize(256).save(file, optimize=True)
