"""Export of proposals as image files, so that any QC tool can score the proposals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from pipeline.cases.grid import on_source_grid
from pipeline.errors import BadInput
from pipeline.store.cases import Case, CaseStore
from pipeline.store.proposals import ProposalStore

SHEET = "proposals.csv"
"""File of the exported proposals, one row each. With the column `score` filled in, the file can stand under
`tables:`."""


def export_proposals(cases: CaseStore, proposals: ProposalStore, splits: Sequence[str], out: Path) -> int:
    """Write one image file per proposal and the sheet `SHEET`. Return the number of proposals.

    3D cases and 2D cases with an affine get `CASE/NN.nii.gz`, all other cases `CASE/NN.png`; NN is the slot. Masks hold
    class indices on the source's grid. A NIfTI file has the affine of the source or, without an affine, the spacing of
    the source. Raises `BadInput` if `out` is not empty.
    """
    if out.is_dir() and any(out.iterdir()):
        raise BadInput(f"{out}: expected a new or empty folder, found files; choose another or remove them")
    rows = {case.case_id: case for case in cases.split(*splits)}
    table = proposals.table.filter(pl.col("case_id").is_in(list(rows)))
    sources = dict(cases.table.select("case_id", pl.col("sources").list.first()).iter_rows())
    files, images, hashes = [], [], []
    for case_id, case_rows in table.group_by("case_id", maintain_order=True):
        case = rows[str(case_id[0])]
        (out / case.case_id).mkdir(parents=True, exist_ok=True)
        masks, known = proposals.masks(case), proposals.mask_hashes(case)
        for slot in case_rows["proposal"]:
            mask = on_source_grid(masks[slot], case, len(cases.class_names))
            files.append(_write(mask, case, out / case.case_id / f"{slot:02d}").relative_to(out).as_posix())
            images.append(sources[case.case_id])
            hashes.append(known[slot])
    sheet = table.select("case_id", "proposal", "sampler", "setting").with_columns(
        pl.Series("file", files, pl.String),
        pl.Series("image", images, pl.String),
        pl.Series("mask", hashes, pl.String),
        pl.lit(None, pl.Float64).alias("score"),
    )
    out.mkdir(parents=True, exist_ok=True)
    sheet.write_csv(out / SHEET)
    return len(sheet)


def _write(mask: np.ndarray, case: Case, stem: Path) -> Path:
    if mask.ndim == 2 and case.affine is None:
        from PIL import Image

        path = stem.with_suffix(".png")
        Image.fromarray(mask).save(path)
        return path
    import nibabel

    affine = np.eye(4) if case.affine is None else np.array(case.affine).reshape(4, 4)
    if case.affine is None and case.original_spacing_mm is not None:
        affine = np.diag([*case.original_spacing_mm, *([1.0] * (4 - mask.ndim))])
    path = stem.with_suffix(".nii.gz")
    nibabel.save(nibabel.Nifti1Image(mask, affine), path)
    return path
