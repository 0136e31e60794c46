"""Faults of NRRD and MetaImage files in the layout `nnunet`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.faults.damage import Make, cut, flip_bit, move, text
from benchmarks.faults.entry import PREPARE, Bad
from tests.fixtures.attached_files import write_attached
from tests.fixtures.phantoms import disc

_nrrd = partial(Bad, kind="NRRD and MetaImage files", start="nrrd", line=PREPARE)
_mha = partial(Bad, kind="NRRD and MetaImage files", start="metaimage", line=PREPARE)
_pictures = partial(Bad, kind="NRRD and MetaImage files", start="pictures", line=PREPARE)

NRRD = "raw/set/imagesTr/case_03_0000.nrrd"
NRRD_LABEL = "raw/set/labelsTr/case_03.nrrd"
MHA = "raw/set/imagesTr/case_03_0000.mha"
MHA_LABEL = "raw/set/labelsTr/case_03.mha"
SHAPE = (6, 10, 8)


def _written(file: str, voxels: np.ndarray | None = None, **fields: Any) -> Make:
    """A file with these fields in its header, and by default with a ball."""
    return lambda: write_attached(Path(file), disc(SHAPE, 3) if voxels is None else voxels, **fields)


def _plain(file: str) -> None:
    """A file without compression that is cut off."""
    _written(file, packed=False)()
    cut(file, 0.9)()


ATTACHED = [
    _nrrd("one flipped bit in the voxels of an `.nrrd`", flip_bit(NRRD, 0.9), "case_03"),
    _nrrd("a compressed `.nrrd` that is cut off", cut(NRRD, 0.95), "case_03"),
    _nrrd("an `.nrrd` without compression that is cut off", lambda: _plain(NRRD), "case_03"),
    _nrrd("text behind `.nrrd`", text(NRRD, "<html>\n"), "case_03"),
    _nrrd("an `.nrrd` whose voxels are in another file", _written(NRRD, data_file="case_03.raw"), "case_03"),
    _nrrd("an axis of vectors", _written(NRRD, kinds="vector domain domain"), "case_03"),
    _nrrd("an axis of time", _written(NRRD, kinds="domain domain time"), "case_03"),
    _nrrd("four axes", _written(NRRD, dimension=4, sizes="6 10 8 1"), "case_03"),
    _nrrd("a space that says nothing of the patient", _written(NRRD, space="scanner-xyz"), "case_03"),
    _nrrd("directions without a space", _written(NRRD, space=None, space_dimension=3), "case_03"),
    _nrrd("two axes in one direction", _written(NRRD, space_directions="(1,0,0) (1,0,0) (0,0,2)"), "case_03"),
    _nrrd("edges that are stated twice", _written(NRRD, spacings="1 1 1"), "case_03"),
    _nrrd("a space in centimetres", _written(NRRD, space_units='"cm" "cm" "cm"'), "case_03"),
    _nrrd("a field that is there twice", _written(NRRD, Sizes="6 10 8"), "case_03"),
    _nrrd("volumes of two orientations", _written(NRRD, space="left-anterior-superior"), "case_03"),
    _nrrd("a label with another origin", _written(NRRD_LABEL, space_origin="(0,0,5)"), "labelsTr/case_03"),
    _nrrd("a label of another shape", _written(NRRD_LABEL, disc((6, 10, 7), 3)), "labelsTr/case_03"),
    _mha("one flipped bit in the voxels of an `.mha`", flip_bit(MHA, 0.9), "case_03"),
    _mha("a compressed `.mha` that is cut off", cut(MHA, 0.95), "case_03"),
    _mha("an `.mha` without compression that is cut off", lambda: _plain(MHA), "case_03"),
    _mha("an `.mha` whose voxels are in another file", _written(MHA, ElementDataFile="case_03.raw"), "case_03"),
    _mha("a header `.mhd`", move(MHA, MHA.replace(".mha", ".mhd")), ".mhd"),
    _mha("three numbers per voxel", _written(MHA, ElementNumberOfChannels=3), "case_03"),
    _mha("an intensity function", _written(MHA, ElementToIntensityFunctionSlope=2), "case_03"),
    _mha("directions that are no directions", _written(MHA, TransformMatrix="0 0 0 0 1 0 0 0 1"), "case_03"),
    _mha("an edge below 0", _written(MHA, ElementSpacing="1 -1 1"), "case_03"),
    _mha("voxels as text", _written(MHA, BinaryData="False"), "case_03"),
    _mha("voxels that are NaN", _written(MHA, np.full(SHAPE, np.nan, np.float32)), "case_03"),
    _mha("a label without orientation", _written(MHA_LABEL, TransformMatrix=None), "labelsTr/case_03"),
    _pictures(
        "a volume among pictures", _written("raw/set/images/case_99.mha", np.zeros((20, 24), np.uint8)), "case_99.mha"
    ),
]
