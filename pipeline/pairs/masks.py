"""The two masks of a mined pair, read from the proposals that the pair was mined from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.errors import BadInput
from pipeline.measures.overlap import region
from pipeline.store.cases import Case
from pipeline.store.proposals import ProposalStore


def pair_masks(pair: Mapping[str, Any], case: Case, proposals: ProposalStore) -> np.ndarray:
    """Chosen and rejected mask u8 `[2, *space]` of a pair of this case, on the working grid. 255 is unknown.

    `pair` is a row of schema `PAIRS`. Raises `BadInput` for proposals that are not those of the pair: a slot is
    missing, or the masks differ on another number of voxels than `disagreement`.
    """
    slots = [pair["chosen"], pair["rejected"]]
    where = f"{proposals.folder}: case '{case.case_id}'"
    advice = "the pair was mined from other proposals; run `dvc repro` and read the pairs again"
    if beyond := [slot for slot in slots if not 0 <= slot < len(proposals.names)]:
        raise BadInput(
            f"{where}: expected proposals 0 to {len(proposals.names) - 1}, found proposal {beyond[0]}; {advice}"
        )
    masks = proposals.masks(case, slots)
    differ = int(region(*masks).sum())
    if differ != pair["disagreement"]:
        raise BadInput(
            f"{where}: expected proposals {slots[0]} and {slots[1]} to differ on {pair['disagreement']} voxels, found "
            f"{differ}; {advice}"
        )
    return masks
