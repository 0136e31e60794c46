"""The raw data sets that can be read; the union is the registry."""

from typing import Annotated

from pydantic import Field

from pipeline.cases.decathlon import Decathlon
from pipeline.cases.folders import Folders
from pipeline.cases.nnunet import NnUNet
from pipeline.cases.phantom import Phantom

Reader = Annotated[Phantom | Decathlon | Folders | NnUNet, Field(discriminator="kind")]
