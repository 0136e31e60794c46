"""Tiny finished stores of cases and proposals, written through `pipeline.store` from arrays given by the test."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from pipeline import schema
from pipeline.cases.preprocess import Preprocess
from pipeline.dataset import CaseStore, ProposalStore
from pipeline.overlap import dice_to, disagreement
from pipeline.panel import true_dice
from pipeline.store import create_array, open_array, write_json, write_manifest, write_table


def _padded(blocks: Sequence[np.ndarray], lead: tuple[int, ...], space: tuple[int, ...], fill: float) -> np.ndarray:
    """Blocks `[*lead, *space]` of several sizes in one array `[case, *lead, *space]`, filled at the ends."""
    out = np.full((len(blocks), *lead, *space), fill, blocks[0].dtype)
    for row, block in enumerate(blocks):
        real = [slice(0, length) for length in block.shape[len(lead) :]]
        out[row][(..., *real)] = block
    return out


def _write_array(folder: Path, array: schema.Array, content: np.ndarray, per_shard: int) -> None:
    create_array(folder, array, content.shape, per_shard)
    open_array(folder, array, "r+")[...] = content


def case_store(
    folder: Path,
    labels: Sequence[np.ndarray | None],
    splits: Sequence[str] | None = None,
    images: Sequence[np.ndarray] | None = None,
    space: tuple[int, ...] = (4, 4),
    classes: int = 2,
    groups: Sequence[str] | None = None,
) -> CaseStore:
    """Cases `c0`, `c1`, ... with labels u8 `[*space]` or None, all of the pool unless `splits` says otherwise."""
    count = len(labels)
    shapes = [space if label is None else label.shape for label in labels]
    padded = tuple(np.max(shapes, axis=0).tolist())
    if images is None:
        images = [np.zeros((1, *shape), np.float32) for shape in shapes]
    unknown = [np.full(s, schema.UNKNOWN, np.uint8) if x is None else x for x, s in zip(labels, shapes, strict=True)]
    _write_array(folder, schema.IMAGES, _padded(images, images[0].shape[:1], padded, 0.0), 2)
    _write_array(folder, schema.LABELS, _padded(unknown, (), padded, schema.UNKNOWN), 2)
    names = [f"c{row}" for row in range(count)]
    table = pl.DataFrame(
        {
            "case_id": names,
            "case": range(count),
            "group": names if groups is None else groups,
            "split": ["pool"] * count if splits is None else splits,
            "has_label": [label is not None for label in labels],
            "shape": shapes,
            "spacing_mm": [None] * count,
            "original_shape": shapes,
            "original_spacing_mm": [None] * count,
            "affine": [None] * count,
            "orientation": [None] * count,
            "site": [None] * count,
            "sources": [[f"{name}.png"] for name in names],
            "sha256": [[hashlib.sha256(name.encode()).hexdigest()] for name in names],
        },
        schema=schema.CASES.columns,
    )
    write_table(table, schema.CASES, folder / "cases.parquet", "a test")
    info = {
        "class_names": [f"class_{i}" for i in range(classes)],
        "channel_names": ["grey"],
        "kind": "test",
        "notes": [],
        "preprocess": Preprocess().model_dump(mode="json"),
        "orientation": None if len(padded) == 2 else "unknown",
        "convert": None,
        "files": "pictures" if len(padded) == 2 else "nifti",
    }
    write_json(folder / "cases.json", info)
    write_manifest(folder, "a test")
    return CaseStore(folder)


def proposal_store(
    folder: Path,
    masks: Sequence[np.ndarray],
    probabilities: Sequence[np.ndarray] | None = None,
    classes: int = 2,
    per_shard: int = 2,
) -> ProposalStore:
    """Proposals u8 `[proposal, *space]` of the cases `c0`, `c1`, ..., all by sampler `s`; slot 0 by `base`.

    Without `probabilities` f32 `[class, *space]`, the share of the proposals that vote for a class.
    """
    if probabilities is None:
        probabilities = [np.stack([(m == label).mean(0) for label in range(classes)]) for m in masks]
    slots = len(masks[0])
    padded = tuple(np.max([m.shape[1:] for m in masks], axis=0).tolist())
    steps = [np.round(np.asarray(p) * 255).astype(np.uint8) for p in probabilities]
    differ = [disagreement(m) for m in masks]
    _write_array(folder, schema.MASKS, _padded(masks, (slots,), padded, schema.UNKNOWN), per_shard)
    _write_array(folder, schema.PROBABILITY, _padded(steps, (classes,), padded, 0), per_shard)
    _write_array(folder, schema.DISAGREEMENT, np.stack(differ), per_shard)
    rows = [
        {
            "case_id": f"c{row}",
            "proposal": slot,
            "sampler": "base" if slot == 0 else "s",
            "setting": "base" if slot == 0 else str(slot),
            "voxels": np.bincount(mask[mask != schema.UNKNOWN], minlength=classes).tolist(),
            "dice_to_base": float(dice_to(block[0], mask[None], classes)[0]),
            "duplicate_of": int(first) if (first := (differ[row][slot] == 0).argmax()) < slot else None,
        }
        for row, block in enumerate(masks)
        for slot, mask in enumerate(block)
    ]
    table = pl.DataFrame(rows, schema=schema.PROPOSALS.columns)
    write_table(table, schema.PROPOSALS, folder / "proposals.parquet", "a test")
    write_manifest(folder, "a test")
    return ProposalStore(folder)


def no_proposals(folder: Path) -> ProposalStore:
    """What the propose stage writes out of fold for a base without folds."""
    write_table(pl.DataFrame(schema=schema.PROPOSALS.columns), schema.PROPOSALS, folder / "proposals.parquet", "a test")
    write_manifest(folder, "a test")
    return ProposalStore(folder)


def panel_of(
    cases: CaseStore, proposals: ProposalStore, scores: Mapping[str, Sequence[Sequence[float | None]]]
) -> pl.DataFrame:
    """Panel rows with the scores `[case][proposal]` of each judge, in the order of the arrays."""
    key = ["case_id", "proposal"]
    frame = proposals.table.join(cases.table.select("case_id", "case", "group", "split"), on="case_id")
    frame = frame.sort("case", "proposal")
    for name, of_case in scores.items():
        column = pl.Series(f"score_{name}", [s for row in of_case for s in row], pl.Float64, strict=False)
        frame = frame.with_columns(column)
    frame = frame.join(true_dice(cases, proposals), on=key, how="left")
    return frame.select(list(schema.panel(scores).columns))


def rows_of(pattern: Sequence[str]) -> np.ndarray:
    """Label map u8 from rows of digits, e.g. `["0110", "0110"]`; `x` is 255."""
    return np.array([[255 if mark == "x" else int(mark) for mark in row] for row in pattern], np.uint8)


def bars(lengths: Sequence[int], width: int = 16) -> np.ndarray:
    """Masks u8 `[proposal, 1, width]` whose first `length` pixels are class 1: |D| is the difference of the lengths."""
    return np.stack([(np.arange(width) < length).astype(np.uint8)[None] for length in lengths])
