"""The data contract: table schemas, array layouts and their version."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import polars as pl

VERSION = 7
"""Version of the contract. Readers refuse files of another version."""

UNKNOWN = 255
"""Fill value of masks and labels for padding, ignore regions and unknown voxels.

The value is never a class and never in a disagreement region.
"""

SPLITS = ("labelled", "pool", "validation", "test")
"""The splits. The arrays hold the cases split by split, in this order."""

ROW_GROUP = 131_072
"""Rows per Parquet row group. The number is fixed, so that equal content gives equal bytes."""


@dataclass(frozen=True)
class TableSchema:
    """A Parquet table: name, unit of observation, key and columns. Rows are sorted by the key.

    Columns outside `optional` hold no null.
    """

    name: str
    row: str  # the unit of observation, in words
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
        "group": _TEXT,  # patient or exam; the case id if unknown
        "split": _SPLIT,
        "has_label": _FLAG,
        "shape": _INTS,  # voxels on the working grid; the arrays are padding beyond this shape
        "spacing_mm": _REALS,  # of the working grid; null if unknown
        "original_shape": _INTS,  # voxels on the source's grid, in the order of the source's axes
        "original_spacing_mm": _REALS,  # of the source's grid; null if unknown
        "affine": _REALS,  # 16 numbers, row by row, of the source's grid; null if the file has no orientation
        "orientation": _INTS,  # working axis of each source axis, from 1, negative if reversed; null: equal axes
        "crop": _INTS,  # first voxel and stop of each source axis that the working grid covers; null: all voxels
        "site": _TEXT,
        "sources": _TEXTS,  # files of the case: image, label, then all others; relative to the data root
        "sha256": _TEXTS,  # one per file in `sources`
    },
    frozenset({"spacing_mm", "original_spacing_mm", "affine", "orientation", "crop", "site"}),
)

PROPOSALS = TableSchema(
    "proposals",
    "a proposal",
    ("case_id", "proposal"),
    {
        "case_id": _TEXT,
        "proposal": _INT,  # slot; slot 0 is the prediction of the base
        "sampler": _TEXT,
        "setting": _TEXT,
        "voxels": pl.List(pl.Int64()),  # number of voxels per class, background first
        "dice_to_base": _REAL,  # Dice with slot 0, mean over the foreground classes
        "duplicate_of": _INT,  # first slot with the same mask; null if the proposal is the first
    },
    frozenset({"duplicate_of"}),
)

THRESHOLDS = TableSchema(
    "thresholds",
    "a threshold of the mean tried on a labelled case out of fold",
    ("sampler", "case_id", "class", "threshold"),
    {
        "sampler": _TEXT,
        "case_id": _TEXT,
        "class": _INT,  # foreground class that has the threshold; all others have one half
        "threshold": _REAL,
        "group": _TEXT,
        "dice": _REAL,  # mean over the foreground classes
    },
)

SCORES = TableSchema(
    "scores",
    "a proposal seen by one judge",
    ("case_id", "proposal"),
    {"case_id": _TEXT, "proposal": _INT, "score": _REAL, "judge": _TEXT},
    frozenset({"score"}),  # null: the judge abstained
)


def panel(judges: Iterable[str]) -> TableSchema:
    """Schema of the panel: one column `score_NAME` per judge and consensus entry in `judges`."""
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
        "true_dice": _REAL,  # on validation cases only; mining never reads the column
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
        "p_correct": _REAL,  # P(the order is right); null without a calibration
        "disagreement": _COUNT,  # |D| in voxels of the working grid
        "chosen_sampler": _TEXT,
        "rejected_sampler": _TEXT,
        "judge": _TEXT,  # `none` for a pair of reviewers, whose scores are numbers of answers
        "strategy": _TEXT,  # `reviewed` for a pair of reviewers
    },
    frozenset({"p_correct"}),
)

EVALUATION = TableSchema(
    "evaluation",
    "a test or validation case and class",
    ("case_id", "class"),
    {
        "case_id": _TEXT,
        "class": _INT,
        "group": _TEXT,
        "dice": _REAL,  # on test: mean over the last fifth of a student's evaluations, like all metrics but dice_peak
        "dice_peak": _REAL,  # on test: at the student's best validation step; on validation: equal to dice
        "nsd": _REAL,
        "hd95": _REAL,
        "assd": _REAL,
        "f1": _REAL,  # F1 of connected components; null unless evaluation.components
        "distance_unit": pl.Enum(("mm", "px")),
        "volume_error": _REAL,  # 2 (V - T) / (V + T); null if the truth is empty
        "absolute_volume_error": _REAL,  # 2 |V - T| / (V + T); null if the truth is empty
        "truth_empty": _FLAG,
        "prediction_empty": _FLAG,  # in at least one evaluated checkpoint
    },
    frozenset({"f1", "volume_error", "absolute_volume_error"}),
)

_ENDS = ("", "_low", "_high")
"""Suffixes of a measure and of the ends of its 95 % interval."""
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
        "cases": _COUNT,  # cases with at least two distinct, scored proposals
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
        "verdict": _TEXT,  # the objective that the noise favours: DPO, RN-DPO or undecided
    },
    frozenset({f"{measure}{end}" for measure in _OF_PAIRS for end in _ENDS} | {"verdict"}),
)

AUDIT_STRATEGIES = TableSchema(
    "audit_strategies",
    "a judge and a standard strategy tried on validation cases",
    ("judge", "strategy"),
    {
        "judge": _TEXT,
        "strategy": _TEXT,  # name in audit.strategies
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
        "by": pl.Enum(("gap", "disagreement")),  # gap of true Dice; |D| as a share of the voxels of the case
        "bin": _INT,
        "above": _REAL,
        "up_to": _REAL,
        "count": _COUNT,  # number of pairs
        **{f"accuracy{end}": _REAL for end in _ENDS},  # P(the judge orders a pair rightly)
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
        "margin": _REAL,  # increasing, per strategy; the curve is linear between knots and constant beyond them
        "p_correct": _REAL,
    },
)

RELIABILITY = TableSchema(
    "reliability",
    "a bin of P(the order is right), predicted for validation pairs that were held out of the fit",
    ("pairs", "bin"),
    {
        "pairs": _TEXT,
        "bin": _INT,  # one of ten bins; bins without a pair have no row
        "count": _COUNT,  # number of pairs
        "cases": _REAL,  # weight of the pairs; all pairs of a case together weigh 1
        "predicted": _REAL,  # mean of P(the order is right)
        "observed": _REAL,  # share of pairs whose order is right; pairs of equal true Dice count one half
    },
)

ANSWERS = ("a", "b", "equal", "unusable")
"""What a reviewer says of two masks: the better one, as good as each other, or neither of use."""

VERDICTS = TableSchema(
    "verdicts",
    "an answer of a reviewer on two masks of a case",
    ("reviewer", "number"),
    {
        "reviewer": _TEXT,
        "number": _INT,  # place among the answers of the reviewer that count, from 1
        "case_id": _TEXT,
        "group": _TEXT,
        "split": _SPLIT,
        "mask_a": _TEXT,  # of `ProposalStore.mask_hashes`; of two masks, that of the lower slot is `a`
        "mask_b": _TEXT,
        "answer": pl.Enum(ANSWERS),
        "a_side": pl.Enum(("left", "right")),  # side on which mask `a` was shown
        "seconds": _REAL,  # from the pair's appearance to the answer
        "time": pl.Datetime("ms", "UTC"),
        "draw": pl.Enum(("audit", "doubt", "repeat")),  # why the pair was shown
        "target": _TEXT,  # judge or pair set whose pairs were drawn; of a repeat, that of the first showing
        "stratum": _TEXT,  # stratum of the draw within the target; of a repeat, that of the first showing
        "population": _COUNT,  # pairs of the stratum that could have been drawn; null outside of draw `audit`
        "disagreement": _COUNT,  # |D| in voxels of the working grid
    },
    frozenset({"population"}),
)

AUDIT_ANSWERS = TableSchema(
    "audit_answers",
    "a judge or a pair set against the answers of reviewers",
    ("kind", "name"),
    {
        "kind": pl.Enum(("judge", "pairs")),
        "name": _TEXT,
        "drawn_for": _TEXT,  # target of the draw whose answers are used; null without an answer that counts
        "answers": _COUNT,  # answers that count
        "groups": _COUNT,  # patients with such an answer
        "equal": _COUNT,  # answers `equal` among these; they count one half
        "unusable": _COUNT,  # answers `unusable` of the draw, which do not count
        "repeats": _COUNT,  # pairs shown twice, which the error rate of the reviewers comes from
        **{
            f"{measure}{end}": _REAL
            for measure in ("noise", "observed", "reviewer_error", "on_labels")
            for end in _ENDS
        },
        "verdict": _TEXT,  # in plain language
    },
    frozenset(
        {f"{measure}{end}" for measure in ("noise", "observed", "reviewer_error", "on_labels") for end in _ENDS}
        | {"drawn_for"}
    ),
)

TABLES = (
    CASES,
    PROPOSALS,
    THRESHOLDS,
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
    VERDICTS,
    AUDIT_ANSWERS,
)
"""Every table of the contract. A test checks the documented tables against this list."""


@dataclass(frozen=True)
class ArraySchema:
    """A sharded Zarr v3 array. The first axis is the case. The last axes are space, padded to the largest case."""

    name: str
    dtype: str
    axes: tuple[str, ...]  # "*space" stands for the spatial axes
    fill: int | float


IMAGES = ArraySchema("images", "float32", ("case", "channel", "*space"), 0.0)
LABELS = ArraySchema("labels", "uint8", ("case", "*space"), UNKNOWN)
TRUTH = ArraySchema("truth", "uint8", ("case", "*space"), UNKNOWN)
"""Labels on the source's grid, for metrics. Written only if the working grid of a case differs."""
MASKS = ArraySchema("masks", "uint8", ("case", "proposal", "*space"), UNKNOWN)
SOURCE_MASKS = ArraySchema("source_masks", "uint8", ("case", "proposal", "*space"), UNKNOWN)
"""Proposals of validation and test cases on the source's grid, for metrics. Written only if the working grid of such a
case differs."""
PROBABILITY = ArraySchema("probability", "uint8", ("case", "class", "*space"), 0)
"""Mean probability of the proposals times 255, rounded."""
DISAGREEMENT = ArraySchema("disagreement", "uint32", ("case", "proposal", "proposal"), 0)
"""Number of voxels on which two proposals differ. Voxels that are 255 in either proposal do not count."""
ERROR = ArraySchema("error", "uint8", ("case", "proposal", "*space"), UNKNOWN)
"""Probability of a learned judge that a voxel of a proposal is wrong, times 254, rounded."""

ARRAYS = (IMAGES, LABELS, TRUTH, MASKS, SOURCE_MASKS, PROBABILITY, DISAGREEMENT, ERROR)

CHUNK = {2: 256, 3: 64}
"""Longest chunk edge in voxels, by number of spatial axes. Chunks of padding alone are never written."""
SHARD_BYTES = 256 * 2**20
"""Largest number of raw bytes of a shard of several cases, over all arrays that are written together."""
SLAB_BYTES = 32 * 2**20
"""Largest number of raw bytes of a case that shares shards with others, over all arrays that are written together.

A larger case has shards of its own. A shard of its image is as large as the case. Proposals of a larger case are cut
into slabs along the longest axis. A shard is a slab of whole chunks, of at most this many raw bytes and at least one
chunk thick.
"""
SHARDS = 16
"""Target number of shards of a store, for any number of workers.

A shard is the unit of parallel work and of resuming.
"""
