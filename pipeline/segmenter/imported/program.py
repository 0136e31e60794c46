"""Base of kind `program`: a network without its source code, which makes proposals and cannot be trained."""

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
    """A TorchScript file or a `torch.export` archive that takes images and returns logits.

    A program makes proposals but cannot be trained. Samplers that drop features find no layers in a program.
    """

    kind: Literal["program"]
    window: tuple[Annotated[int, Field(gt=0)], ...]
    """Size of the program's input, in voxels per axis. Smaller cases are padded; larger cases need several windows."""
    head: Literal["softmax", "sigmoid"] = "softmax"
    """Outputs of the program. `softmax`: a logit per class. `sigmoid`: one logit for the foreground of two classes."""
    trust: bool = False
    """Loading a program runs code of its file, in this stage and in every later stage. Set to true if you know where
    the file is from."""

    def read(self, model: Path, cases: CaseStore, device: str) -> ImportedModel:
        """The program as the base. Raises `BadInput` if the program is not trusted or does not fit the cases."""
        from pipeline.segmenter.architecture import PROGRAM, Architecture
        from pipeline.segmenter.imported.importer import ImportedModel, ImportedNetwork
        from pipeline.segmenter.program import format_of, load_program

        if not model.is_file():
            raise BadInput(f"model: {model}: expected the file of a program, found a folder; name the file in `model`")
        kind = format_of(model)
        if not self.trust:
            raise BadInput(
                f"model: {model}: loading a {kind} program runs code that is in the file; set base.trust: true if you "
                "trust the source of the file, or use base.kind 'checkpoint' with the weights of the network"
            )
        if self.head == "sigmoid" and len(cases.class_names) != 2:
            raise BadInput(
                f"base.head: 'sigmoid' is for 2 classes, the data has {len(cases.class_names)}; use 'softmax'"
            )
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
