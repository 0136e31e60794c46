"""Where the base segmenter comes from: trained here, or a model that the user has."""

from typing import Annotated, Any

from pydantic import Discriminator, Tag

from pipeline.segmenter.imported.bundle import Bundle
from pipeline.segmenter.imported.checkpoint import Checkpoint
from pipeline.segmenter.imported.program import Program
from pipeline.segmenter.knobs import Base


def _kind(block: Any) -> Any:
    """A block without `kind` is trained here."""
    if isinstance(block, dict):
        return block.get("kind", "trained")
    return getattr(block, "kind", "trained")


AnyBase = Annotated[
    Annotated[Base, Tag("trained")]
    | Annotated[Checkpoint, Tag("checkpoint")]
    | Annotated[Bundle, Tag("bundle")]
    | Annotated[Program, Tag("program")],
    Discriminator(_kind),
]

__all__ = ["AnyBase", "Bundle", "Checkpoint", "Program"]
