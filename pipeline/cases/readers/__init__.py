"""Readers of raw data sets: one file per kind, and the union `Reader` that lists the kinds."""

from typing import Annotated

from pipeline.cases.readers.decathlon import Decathlon
from pipeline.cases.readers.folders import Folders
from pipeline.cases.readers.nnunet import NnUNet
from pipeline.cases.readers.phantom import Phantom
from pipeline.own_kinds import Family

Reader = Annotated[Phantom | Decathlon | Folders | NnUNet, Family("reader", ("scan", "read"))]
