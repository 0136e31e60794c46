"""Images with the same pixels under several names, which one case id for each name cannot show."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

import numpy as np
import polars as pl

from pipeline.cases.readers import Reader
from pipeline.cases.readers.reader import Source, stamps
from pipeline.execution import CaseFailures, Execution, Shard, run, shards_of
from pipeline.workspace import workspace

_SHARD = 64
"""Images that one task reads. The images of a task are read one after the other."""


def pixel_hash(values: np.ndarray) -> str:
    """SHA-256 of shape and values of an array. Files with other names, formats or metadata give the same hash."""
    found = sha256(repr((values.shape, values.dtype.str)).encode())
    found.update(np.ascontiguousarray(values).data)
    return found.hexdigest()


def duplicates(hashes: Mapping[str, str]) -> list[list[str]]:
    """Case ids that share their hash, each list sorted, from the hash by case id. Images of their own are left out."""
    found: dict[str, list[str]] = defaultdict(list)
    for case_id in sorted(hashes):
        found[hashes[case_id]].append(case_id)
    return sorted(ids for ids in found.values() if len(ids) > 1)


def crossing(found: Sequence[Sequence[str]], splits: Mapping[str, str]) -> list[list[str]]:
    """The duplicates that lie in more than one split, from the split by case id."""
    return [list(ids) for ids in found if len({splits[case_id] for case_id in ids}) > 1]


def duplicates_text(found: Sequence[Sequence[str]], splits: Mapping[str, str]) -> str:
    """The duplicates in words: how many there are, the first one, and how many are in more than one split."""
    first = next(iter(crossing(found, splits) or found))
    example = " and ".join(f"'{case_id}' ({splits[case_id]})" for case_id in first[:3])
    crossed = len(crossing(found, splits))
    return (
        f"{len(found)} images occur more than once, as {sum(map(len, found))} cases, e.g. {example}; {crossed} of "
        f"the images are in more than one split"
    )


@dataclass(frozen=True)
class _Hashes:
    """Task that reads the images of a shard and hashes their pixels."""

    reader: Reader

    def __call__(self, shard: Shard) -> pl.DataFrame:
        failures, rows = CaseFailures(), []
        for source in shard.members:
            with failures.of(source.case_id):
                rows.append((source.case_id, pixel_hash(self.reader.read(replace(source, label=None))[0])))
        failures.raise_any()
        return pl.DataFrame(rows, schema=["case_id", "pixels"], orient="row")


def with_duplicates_grouped(sources: Sequence[Source], reader: Reader, execution: Execution) -> list[Source]:
    """The sources, with groups that share an image made one group, so that no image is in two splits.

    The group takes the first name of the groups that it joins. Every image is read once for this, before the splits
    are drawn.
    """
    with workspace("duplicates", __name__, (reader, tuple(sources), stamps(sources, reader.path)), inputs=[]) as work:
        rows = run(_Hashes(reader), shards_of(sources, _SHARD), work, execution, "duplicates")
    group = {source.case_id: source.group or source.case_id for source in sources}
    joined = {name: name for name in group.values()}

    def root(name: str) -> str:
        while joined[name] != name:
            name = joined[name]
        return name

    for ids in duplicates(dict(rows.iter_rows())):
        first, *others = sorted({root(group[case_id]) for case_id in ids})
        joined.update(dict.fromkeys(others, first))
    return [
        source if (name := root(group[source.case_id])) == group[source.case_id] else replace(source, group=name)
        for source in sources
    ]
