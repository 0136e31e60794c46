"""A program as the base: a network without its source, for proposals only."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from pipeline.errors import BadInput
from pipeline.knobs import Knobs

if TYPE_CHECKING:
    from pipeline.segmenter.imported.importer import ImportedModel
    from pipeline.store.cases import CaseStore


class ImportedProgram(Knobs):
    """A TorchScript file or a `torch.export` archive that takes an image and returns logits. It proposes, but it cannot
    be trained, and samplers that drop features have no layers to drop."""

    kind: Literal["program"]
    window: tuple[Annotated[int, Field(gt=0)], ...]
    """Voxels that the program takes at once; smaller cases are padded to it, larger ones slid over."""
    head: Literal["softmax", "sigmoid"] = "softmax"
    """What its outputs are logits of: one per class, or one for the foreground of two classes."""
    trust: bool = False
    """Loading a program runs code that is in its file, in this and in every later stage: true says that you know where
    it is from."""

    def read(self, model: Path, cases: CaseStore, device: str) -> ImportedModel:
        """The program; raises `BadInput` where it is not trusted."""
        from pipeline.segmenter.architecture import PROGRAM, Architecture
        from pipeline.segmenter.imported.importer import ImportedModel, ImportedNetwork
        from pipeline.segmenter.program import format_of, load_program

        if not model.is_file():
            raise BadInput(f"model: {model}: expected the file of a program, found a folder")
        kind = format_of(model)
        if not self.trust:
            raise BadInput(
                f"model: {model}: loading a {kind} program runs code that is in the file; set base.trust: true if you "
                "trust where it is from, or use base.kind 'checkpoint' with its weights"
            )
        if self.head == "sigmoid" and len(cases.class_names) != 2:
            raise BadInput(f"base.head: 'sigmoid' is for 2 classes, the data has {len(cases.class_names)}")
        if len(self.window) != len(cases.padded):
            raise BadInput(f"base.window: expected {len(cases.padded)} numbers for this data, found {self.window}")
        architecture = Architecture(
            PROGRAM,
            {"format": kind},
            len(self.window),
            cases.channels,
            len(cases.class_names),
            self.head,
            self.window,
        )
        return ImportedModel(ImportedNetwork(architecture, model, load_program(model, device)))
