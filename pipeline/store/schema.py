"""The data contract: table schemas, array layouts and their version. The README repeats it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import polars as pl

VERSION = 3
"""Version of the contract; a reader refuses files of another version."""

UNKNOWN = 255
"""Fill value of masks and labels: padding, ignore region or unknown. Never a class, never in a disagreement region."""

SPLITS = ("labelled", "pool", "validation", "test")
"""Order of the splits, which is also the order of the cases in the arrays."""

ROW_GROUP = 131_072
"""Rows per Parquet row group; fixed, so that equal content is equal bytes."""


@dataclass(frozen=True)
class TableSchema:
    """A Parquet table: what one row is, its key (also the sort order) and its columns.

    `optional` columns may be null; all others may not.
    """

    name: str
    row: str
    key: tuple[str, ...]
    columns: dict[str, pl.DataType]
    optional: frozenset[str] = frozenset()


_TEXT, _INT, _COUNT, _REAL, _FLAG = pl.String(), pl.Int32(), pl.Int64(), pl.Float64(), pl.Boolean()
_INTS, _REALS, _TEXTS = pl.List(pl.Int32()), pl.List(pl.Float64()), pl.List(pl.String())
_SPLIT = pl.Enum(SPLITS)

CASES = TableSchema(
    "cases",
    "a case",
    ("case_id",),
    {
        "case_id": _TEXT,
        "case": _INT,  # row in the arrays
        "group": _TEXT,  # patient or exam; the case itself if unknown
        "split": _SPLIT,
        "has_label": _FLAG,
        "shape": _INTS,  # voxels on the working grid; beyond it the arrays are padding
        "spacing_mm": _REALS,  # of the working grid; null if unknown
        "original_shape": _INTS,  # voxels on the source's grid, in the source's order of axes
        "original_spacing_mm": _REALS,
        "affine": _REALS,  # 16 numbers, row by row, of the source's grid; null if the file says none
        "orientation": _INTS,  # per source axis its working axis, from 1, negative if reversed; null: the same axes
        "site": _TEXT,
        "sources": _TEXTS,  # image, label, then what else the case is read from, relative to the data root
        "sha256": _TEXTS,  # of the sources
    },
    frozenset({"spacing_mm", "original_spacing_mm", "affine", "orientation", "site"}),
)

PROPOSALS = TableSchema(
    "proposals",
    "a proposal",
    ("case_id", "proposal"),
    {
        "case_id": _TEXT,
        "proposal": _INT,  # slot; 0 is the base prediction
        "sampler": _TEXT,
        "setting": _TEXT,
        "voxels": pl.List(pl.Int64()),  # per class, background first
        "dice_to_base": _REAL,  # mean over foreground classes
        "duplicate_of": _INT,  # first slot with the same mask; null if this is the first
    },
    frozenset({"duplicate_of"}),
)

SCORES = TableSchema(
    "scores",
    "a proposal seen by one judge",
    ("case_id", "proposal"),
    {"case_id": _TEXT, "proposal": _INT, "score": _REAL, "judge": _TEXT},
    frozenset({"score"}),  # null = the judge abstained
)


def panel(judges: Iterable[str]) -> TableSchema:
    """The panel's schema for these judges: one `score_NAME` column per judge and consensus entry."""
    columns = {
        "case_id": _TEXT,
        "proposal": _INT,
        "case": _INT,
        "group": _TEXT,
        "split": _SPLIT,
        "sampler": _TEXT,
        "setting": _TEXT,
        "voxels": pl.List(pl.Int64()),
        "dice_to_base": _REAL,
        "duplicate_of": _INT,
        **{f"score_{name}": _REAL for name in judges},
        "true_dice": _REAL,  # validation only; never read by mining
    }
    optional = {"duplicate_of", "true_dice", *(name for name in columns if name.startswith("score_"))}
    return TableSchema("panel", "a proposal seen by all judges", ("case_id", "proposal"), columns, frozenset(optional))


PAIRS = TableSchema(
    "pairs",
    "a preference",
    ("case_id", "chosen", "rejected"),
    {
        "case_id": _TEXT,
        "case": _INT,
        "chosen": _INT,
        "rejected": _INT,
        "chosen_score": _REAL,
        "rejected_score": _REAL,
        "margin": _REAL,
        "p_correct": _REAL,  # P(the order is right); null if uncalibrated
        "disagreement": _COUNT,  # |D|, voxels of the working grid
        "chosen_sampler": _TEXT,
        "rejected_sampler": _TEXT,
        "judge": _TEXT,
        "strategy": _TEXT,
    },
    frozenset({"p_correct"}),
)

EVALUATION = TableSchema(
    "evaluation",
    "a test case and class",
    ("case_id", "class"),
    {
        "case_id": _TEXT,
        "class": _INT,
        "group": _TEXT,
        "dice": _REAL,  # mean over the last fifth of a student's evaluations, as all metrics but dice_peak
        "dice_peak": _REAL,  # at the student's best validation step
        "nsd": _REAL,
        "hd95": _REAL,
        "assd": _REAL,
        "f1": _REAL,  # of connected components; null unless evaluation.components
        "distance_unit": pl.Enum(("mm", "px")),
        "volume_error": _REAL,  # 2 (V - T) / (V + T); null where the truth is empty
        "truth_empty": _FLAG,
        "prediction_empty": _FLAG,  # in at least one of the evaluated checkpoints
    },
    frozenset({"f1", "volume_error"}),
)

_ENDS = ("", "_low", "_high")
"""A measure and the ends of its 95 % interval."""
_OF_JUDGES = (
    "spearman",
    "kendall",
    "pair_error",
    "lift",
    "lift_over_fixed",
    "lift_over_headroom",
    "top_beats_base",
    "headroom",
    "regret",
    "gap_weighted_accuracy",
    "auroc",
    "aurc",
)
_OF_PAIRS = (
    "noise_rate",
    "weighted_noise",
    "noise_difference",
    "voxel_noise",
    "weighted_voxel_noise",
    "rejected_right",
    "neither_right",
    "active_share",
    "lift",
    "lift_top_quarter",
    "lift_rest",
    "volume_bias",
)

AUDIT_JUDGES = TableSchema(
    "audit_judges",
    "a judge on validation cases",
    ("judge",),
    {
        "judge": _TEXT,
        "cases": _COUNT,  # with at least two distinct, scored proposals
        "abstained": _REAL,  # share of proposals without a score
        **{f"{measure}{end}": _REAL for measure in _OF_JUDGES for end in _ENDS},
        "fixed_sampler": _TEXT,
        "verdict": _TEXT,  # in plain language
    },
    frozenset({f"{measure}{end}" for measure in _OF_JUDGES for end in _ENDS} | {"fixed_sampler"}),
)

AUDIT_PAIRS = TableSchema(
    "audit_pairs",
    "a pair set tried on validation cases",
    ("pairs",),
    {
        "pairs": _TEXT,
        "judge": _TEXT,
        "strategy": _TEXT,
        "mined": _COUNT,
        **{f"{measure}{end}": _REAL for measure in _OF_PAIRS for end in _ENDS},
        "verdict": _TEXT,  # whom the noise favours: DPO, RN-DPO or undecided
    },
    frozenset({f"{measure}{end}" for measure in _OF_PAIRS for end in _ENDS} | {"verdict"}),
)

AUDIT_STRATEGIES = TableSchema(
    "audit_strategies",
    "a judge and a standard strategy tried on validation cases",
    ("judge", "strategy"),
    {
        "judge": _TEXT,
        "strategy": _TEXT,  # its name in audit.strategies
        "mined": _COUNT,
        **{f"{measure}{end}": _REAL for measure in _OF_PAIRS for end in _ENDS},
        "verdict": _TEXT,
    },
    frozenset({f"{measure}{end}" for measure in _OF_PAIRS for end in _ENDS} | {"verdict"}),
)

AUDIT_BINS = TableSchema(
    "audit_bins",
    "pairs of proposals of one validation case that are alike in size of gap or of disagreement",
    ("judge", "by", "bin"),
    {
        "judge": _TEXT,
        "by": pl.Enum(("gap", "disagreement")),  # of true Dice; |D| as a share of the voxels of the case
        "bin": _INT,
        "above": _REAL,
        "up_to": _REAL,
        "count": _COUNT,  # pairs
        **{f"accuracy{end}": _REAL for end in _ENDS},  # P(the judge orders them rightly)
    },
    frozenset({f"accuracy{end}" for end in _ENDS}),
)

CALIBRATION = TableSchema(
    "calibration",
    "a knot of the curve from margin to P(the order is right)",
    ("pairs", "knot"),
    {
        "pairs": _TEXT,
        "knot": _INT,
        "judge": _TEXT,
        "strategy": _TEXT,
        "margin": _REAL,  # increasing; linear in between, constant beyond
        "p_correct": _REAL,
    },
)

RELIABILITY = TableSchema(
    "reliability",
    "a bin of P(the order is right), predicted for validation pairs that were held out of the fit",
    ("pairs", "bin"),
    {
        "pairs": _TEXT,
        "bin": _INT,  # of ten; bins without a pair have no row
        "count": _COUNT,  # pairs
        "cases": _REAL,  # their weight: the pairs of a case weigh one together
        "predicted": _REAL,  # mean
        "observed": _REAL,  # share of pairs whose order is right; equal masks count one half
    },
)

TABLES = (
    CASES,
    PROPOSALS,
    SCORES,
    panel(["NAME"]),
    PAIRS,
    EVALUATION,
    AUDIT_JUDGES,
    AUDIT_PAIRS,
    AUDIT_STRATEGIES,
    AUDIT_BINS,
    CALIBRATION,
    RELIABILITY,
)
"""Every table of the contract; the README's tables are checked against it."""


@dataclass(frozen=True)
class ArraySchema:
    """A sharded Zarr v3 array: first axis the case, last axes space, padded to the largest case."""

    name: str
    dtype: str
    axes: tuple[str, ...]  # "*space" stands for the spatial axes
    fill: int | float


IMAGES = ArraySchema("images", "float32", ("case", "channel", "*space"), 0.0)
LABELS = ArraySchema("labels", "uint8", ("case", "*space"), UNKNOWN)
TRUTH = ArraySchema("truth", "uint8", ("case", "*space"), UNKNOWN)
"""Labels on the source's grid; written only where the working grid is another one, for metrics on the source's grid."""
MASKS = ArraySchema("masks", "uint8", ("case", "proposal", "*space"), UNKNOWN)
PROBABILITY = ArraySchema("probability", "uint8", ("case", "class", "*space"), 0)
"""Mean probability times 255, rounded."""
DISAGREEMENT = ArraySchema("disagreement", "uint32", ("case", "proposal", "proposal"), 0)
"""Voxels on which two proposals differ; voxels that are 255 in either do not count."""
ERROR = ArraySchema("error", "uint8", ("case", "proposal", "*space"), UNKNOWN)
"""Probability that a voxel of a proposal is wrong, as a learned judge sees it, times 254, rounded."""

ARRAYS = (IMAGES, LABELS, TRUTH, MASKS, PROBABILITY, DISAGREEMENT, ERROR)

CHUNK = {2: 256, 3: 64}
"""Longest chunk edge per number of spatial axes: the padding of a large volume is never written."""
SHARD_BYTES = 256 * 2**20
"""A shard is whole cases, at most this many raw bytes."""
SLAB_BYTES = 32 * 2**20
"""A case of more raw bytes in all arrays that are written together is alone in its shards. Proposals of such a case are
cut along its longest axis: a shard is a slab, whole chunks of at most this many raw bytes, at least one chunk thick."""
SHARDS = 16
"""Shards that a store aims at: the grain of parallel work and of resuming, whatever the number of workers."""
