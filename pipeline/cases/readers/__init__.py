"""Readers of raw data sets: one file per kind, and the union `Reader` that lists the kinds."""

from typing import Annotated

from pydantic import Field

from pipeline.cases.readers.decathlon import Decathlon
from pipeline.cases.readers.folders import Folders
from pipeline.cases.readers.nnunet import NnUNet
from pipeline.cases.readers.phantom import Phantom

Reader = Annotated[Phantom | Decathlon | Folders | NnUNet, Field(discriminator="kind")]
