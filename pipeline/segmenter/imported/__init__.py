"""Kinds of base segmenters: trained here, or imported from a model of the user; the union `AnyBase` lists the kinds."""

from typing import Annotated

from pydantic import Discriminator, Tag

from pipeline.segmenter.imported.bundle import Bundle
from pipeline.segmenter.imported.checkpoint import Checkpoint
from pipeline.segmenter.imported.nnunet import NnUNetFolder
from pipeline.segmenter.imported.program import ImportedProgram
from pipeline.segmenter.knobs import Base, kind_of_base

AnyBase = Annotated[
    Annotated[Base, Tag("trained")]
    | Annotated[Checkpoint, Tag("checkpoint")]
    | Annotated[Bundle, Tag("bundle")]
    | Annotated[NnUNetFolder, Tag("nnunet")]
    | Annotated[ImportedProgram, Tag("program")],
    Discriminator(kind_of_base),
]
