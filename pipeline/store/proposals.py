"""The proposals on disk: table, masks, mean probability and disagreement."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from pipeline.errors import BadInput
from pipeline.knobs import MEAN, NOTHING
from pipeline.store import schema
from pipeline.store.arrays import open_array, read_array
from pipeline.store.cases import Case, CaseStore, Where
from pipeline.store.manifest import check_manifest
from pipeline.store.tables import read_table

if TYPE_CHECKING:
    import zarr


def proposal_name(sampler: str, setting: str) -> str:
    """Name of a proposal: sampler and setting, such as `ensemble mean`. Equal names are named once: `base`."""
    return sampler if sampler == setting else f"{sampler} {setting}"


@dataclass(frozen=True)
class ProposalStore:
    """The folder that `propose` writes: `proposals.parquet`, masks, mean probability and disagreement."""

    folder: Path

    def __reduce__(self) -> tuple[type[ProposalStore], tuple[Path]]:
        return ProposalStore, (self.folder,)

    @cached_property
    def table(self) -> pl.DataFrame:
        """The table of proposals. Raises `BadInput` if the store is unfinished or of another version."""
        check_manifest(self.folder)
        return read_table(self.folder / "proposals.parquet", schema.PROPOSALS)

    @cached_property
    def _masks(self) -> zarr.Array:
        return open_array(self.folder, schema.MASKS)

    @cached_property
    def _source_masks(self) -> zarr.Array:
        return open_array(self.folder, schema.SOURCE_MASKS)

    @cached_property
    def _probability(self) -> zarr.Array:
        return open_array(self.folder, schema.PROBABILITY)

    @cached_property
    def _disagreement(self) -> zarr.Array:
        return open_array(self.folder, schema.DISAGREEMENT)

    @cached_property
    def names(self) -> list[str]:
        """Name of every slot."""
        # A slot has the same sampler and setting in every case, so one row per slot names all slots.
        rows = self.table.unique("proposal", keep="first").sort("proposal").select("sampler", "setting").iter_rows()
        return [proposal_name(sampler, setting) for sampler, setting in rows]

    def slot(self, name: str) -> int:
        """Slot of a sampler and setting. Raises `BadInput` with the known names for another name."""
        if name not in self.names:
            raise BadInput(
                f"{self.folder}: expected the sampler and setting of a proposal, found '{name}'; the proposals are "
                f"{self.names}"
            )
        return self.names.index(name)

    def case_ids(self) -> list[str]:
        """Ids of the cases that have proposals."""
        return self.table["case_id"].unique(maintain_order=True).to_list()

    def masks(self, case: Case, slots: Sequence[int] | None = None, where: Where | None = None) -> np.ndarray:
        """Label maps u8 `[proposal, *space]`, without padding.

        `slots` chooses and orders the proposals. `where` is a box of the working grid.
        """
        box: Any = case.space if where is None else where
        if slots is None or self._masks.chunks[1] > 1:
            block = read_array(self._masks, (case.case, slice(None), *box))
            return block if slots is None else block[list(slots)]
        # A chunk holds one proposal, so only the chunks of the wanted slots are read.
        read = sorted(set(slots))
        block = read_array(self._masks, (case.case, np.array(read), *box))
        return block[[read.index(slot) for slot in slots]]

    def named_mask(self, case: Case, name: str, where: Where | None = None) -> np.ndarray:
        """Label map u8 `[*space]` of one proposal by name. `mean` is the most probable class of the mean probability.

        Raises `BadInput` with the known names for another name. `where` is a box of the working grid.
        """
        if name == MEAN:
            return self.probability(case, where).argmax(0).astype(np.uint8)
        return self.masks(case, [self.slot(name)], where)[0]

    def source_mask(self, case: Case, slot: int) -> np.ndarray:
        """Label map u8 `[*source]` of one proposal of a validation or test case on the source's grid, for metrics."""
        if not case.resampled:
            return self.masks(case, [slot])[0]
        box: Any = tuple(slice(0, length) for length in case.original_shape)
        return read_array(self._source_masks, (case.case, slot, *box))

    @cached_property
    def _distinct(self) -> dict[str, list[int]]:
        first = self.table.filter(pl.col("duplicate_of").is_null()).sort("case_id", "proposal")
        groups = first.group_by("case_id", maintain_order=True).agg("proposal")
        return dict(zip(groups["case_id"], groups["proposal"].to_list(), strict=True))

    def distinct(self, case: Case) -> list[int]:
        """Slots of a case that do not duplicate an earlier slot."""
        return self._distinct[case.case_id]

    def mask_hashes(self, case: Case) -> list[str]:
        """A short hash per proposal, which tells whether a score from another tool belongs to the same mask."""
        return [hashlib.blake2b(mask.tobytes(), digest_size=8).hexdigest() for mask in self.masks(case)]

    def probability(self, case: Case, where: Where | None = None) -> np.ndarray:
        """Mean f32 `[class, *space]` over the proposals that have probabilities, in steps of 1/255."""
        box: Any = case.space if where is None else where
        return read_array(self._probability, (case.case, slice(None), *box)).astype(np.float32) / 255

    def disagreement(self, case: Case) -> np.ndarray:
        """Voxels on which two proposals differ, u32 `[proposal, proposal]`."""
        return read_array(self._disagreement, case.case)

    def disagreement_of(self, rows: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """|D| i64 `[n]` of many pairs, from the array row and the two slots of each pair, all `[n]`.

        A shard is read once for all of its pairs.
        """
        out = np.empty(len(rows), np.int64)
        step = self._disagreement.chunks[0]
        order = np.argsort(rows, kind="stable")
        bounds = np.searchsorted(rows[order], np.arange(0, self._disagreement.shape[0] + step, step))
        for start, (low, high) in enumerate(pairwise(bounds.tolist())):
            if low < high:
                block = read_array(self._disagreement, slice(start * step, (start + 1) * step))
                at = order[low:high]
                out[at] = block[rows[at] - start * step, first[at], second[at]]
        return out


@dataclass(frozen=True)
class Data:
    """The preference data set: cases, their proposals, and the answers of reviewers."""

    cases: CaseStore
    proposals: ProposalStore
    verdicts: Path = NOTHING
    """Table of the answers of reviewers on the proposals."""
