"""Boxes of the source's grid to which images are cropped. The boxes follow from the voxels, so every image is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import polars as pl

from pipeline.cases.preprocess import Preprocess
from pipeline.cases.readers import Reader
from pipeline.cases.readers.reader import Source, stamps
from pipeline.execution import CaseFailures, Execution, Shard, run, shards_of
from pipeline.store import schema
from pipeline.workspace import workspace

_SHARD = 64
"""Images that one task reads. The images of a task are read one after the other."""

Crops = dict[str, tuple[int, ...] | None]
"""Column `crop` of `schema.CASES` by case id."""


@dataclass(frozen=True)
class _Boxes:
    """Task that reads the images of a shard and finds their boxes."""

    reader: Reader
    preprocess: Preprocess

    def __call__(self, shard: Shard) -> pl.DataFrame:
        failures, rows = CaseFailures(), []
        for source in shard.members:
            with failures.of(source.case_id):
                image, _ = self.reader.read(replace(source, label=None))
                rows.append((source.case_id, self.preprocess.crop(image)))
        failures.raise_any()
        columns = {name: schema.CASES.columns[name] for name in ("case_id", "crop")}
        return pl.DataFrame(rows, schema=columns, orient="row")


def crops_of(sources: Sequence[Source], reader: Reader, preprocess: Preprocess, execution: Execution) -> Crops:
    """Crop of every case. None of all cases, without reading an image, if `preprocess` does not crop.

    Raises one `BadInput` with every image that cannot be read.
    """
    if not preprocess.crops:
        return dict.fromkeys(source.case_id for source in sources)
    knobs = (reader, preprocess, tuple(sources), stamps(sources, reader.path))
    with workspace("boxes", __name__, knobs, inputs=[]) as work:
        rows = run(_Boxes(reader, preprocess), shards_of(sources, _SHARD), work, execution, "boxes")
    return {case_id: crop and tuple(crop) for case_id, crop in rows.iter_rows()}
