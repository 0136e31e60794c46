"""Pictures of mined pairs: the image, what was chosen, what was rejected, and where the two differ."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from pipeline import schema
from pipeline.dataset import Case
from pipeline.overlap import region
from pipeline.report.blocks import Block, Figure, Legend, Note, Section
from pipeline.report.figures import GREEN, ORANGE, PURPLE, RED, SKY, YELLOW, drawing, embed
from pipeline.report.run import Run

OUTLINES = (ORANGE, SKY, YELLOW, PURPLE, GREEN)
"""Of the foreground classes, in order and then again."""
MARGIN = 0.25
"""Of the picture around the masks, as a share of their extent."""
LEAST = 24
"""Voxels of the shortest edge of a picture, where the image has them."""


@dataclass(frozen=True)
class Slice:
    """A pair as a picture: rows and columns on the page."""

    image: np.ndarray  # [row, column] or [row, column, 3], 0 to 1
    chosen: np.ndarray  # u8 [row, column]
    rejected: np.ndarray  # u8 [row, column]
    aspect: float  # height of a voxel over its width
    where: str  # the slice of a volume

    @property
    def differ(self) -> np.ndarray:
        """bool `[row, column]`: the disagreement region."""
        return region(self.chosen, self.rejected)


def examples(run: Run) -> Section:
    """About four pairs of every pair set."""
    blocks: list[Block] = []
    rows = {case.case: case for case in run.cases.all}
    for name in run.mined:
        pairs = run.pairs_of(name)
        if pairs.is_empty():
            blocks.append(Note([f"Pair set '{name}' has no pairs."]))
        for why, pair in picked(pairs).items():
            blocks.append(_picture(run, name, why, pair, rows[pair["case"]]))
    if blocks:
        names = run.cases.class_names[1:]
        colours = [(name, OUTLINES[i % len(OUTLINES)]) for i, name in enumerate(names)]
        blocks.insert(0, Legend([*colours, ("disagreement region", RED)]))
    else:
        blocks.append(Note(["params.yaml has no pair sets."]))
    how = (
        "The student is pushed towards the chosen outline inside the disagreement region alone. Ask whether you would "
        "choose the same mask. Intensities are stretched for display, and pictures are cropped to both masks."
    )
    return Section("examples", "Examples of pairs", how, blocks)


def picked(pairs: pl.DataFrame) -> dict[str, dict]:
    """Pairs by the reason for showing them: largest and smallest margin, largest and median |D|; none twice."""
    found: dict[str, dict] = {}
    by_margin = pairs.sort("margin", *schema.PAIRS.key)
    by_size = pairs.sort("disagreement", *schema.PAIRS.key)
    seen: set[tuple] = set()
    for why, ordered, at in (
        ("largest margin", by_margin, -1),
        ("smallest margin", by_margin, 0),
        ("largest |D|", by_size, -1),
        ("median |D|", by_size, len(pairs) // 2),
    ):
        if len(pairs):
            row = ordered.row(at, named=True)
            key = tuple(row[part] for part in schema.PAIRS.key)
            if key not in seen:
                seen.add(key)
                found[why] = row
    return found


def slice_of(
    image: np.ndarray, chosen: np.ndarray, rejected: np.ndarray, spacing: tuple[float, ...] | None, colour: bool
) -> Slice:
    """The picture of a pair from its image f32 `[channel, *space]` and masks u8 `[*space]`.

    A volume is cut across its coarsest axis, the last of equals, where most voxels disagree. `colour` shows three
    channels as red, green and blue, otherwise the first is shown. Unknown spacing counts as 1.
    """
    steps = spacing or (1.0,) * chosen.ndim
    shown = image if colour else image[:1]
    where = ""
    if chosen.ndim == 3:
        axis = max(range(3), key=lambda a: (steps[a], a))
        others = tuple(a for a in range(3) if a != axis)
        index = int(region(chosen, rejected).sum(axis=others).argmax())
        where = f", slice {index + 1} of {chosen.shape[axis]} along axis {axis + 1}"
        # Volumes store x first and y upwards; a page has rows first and downwards.
        chosen, rejected = (np.take(mask, index, axis).T[::-1] for mask in (chosen, rejected))
        shown = np.take(shown, index, axis + 1).transpose(0, 2, 1)[:, ::-1]
        steps = (steps[others[1]], steps[others[0]])
    box = _box((chosen != rejected) | _foreground(chosen) | _foreground(rejected))
    low, high = np.percentile(shown, (1, 99))
    scaled = np.clip((shown - low) / max(float(high - low), 1e-6), 0, 1)
    picture = np.moveaxis(scaled, 0, -1) if colour else scaled[0]
    return Slice(picture[box], chosen[box], rejected[box], steps[0] / steps[1], where)


def _foreground(mask: np.ndarray) -> np.ndarray:
    return (mask != 0) & (mask != schema.UNKNOWN)


def _box(inside: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of a region, with a margin."""
    ends = []
    for axis, length in enumerate(inside.shape):
        filled = np.flatnonzero(inside.any(axis=1 - axis))
        first, last = (int(filled[0]), int(filled[-1]) + 1) if len(filled) else (0, length)
        extra = max(int(MARGIN * (last - first)), (LEAST - (last - first) + 1) // 2)
        ends.append(slice(max(0, first - extra), min(length, last + extra)))
    return ends[0], ends[1]


def _picture(run: Run, pairs: str, why: str, pair: dict, case: Case) -> Figure:
    chosen, rejected = run.proposals.masks(case, [pair["chosen"], pair["rejected"]])
    rgb = run.cases.info["channel_names"] == ["red", "green", "blue"]
    view = slice_of(run.cases.image(case), chosen, rejected, case.spacing_mm, rgb)
    n_classes = len(run.cases.class_names)
    caption = (
        f"{pairs}, {why}: case {pair['case_id']}{view.where}, margin {pair['margin']:.2g}, "
        f"|D| {pair['disagreement']} voxels."
    )
    height, width = view.chosen.shape
    tall = min(max(2.3 * height * view.aspect / width, 1.2), 3.5)
    with drawing(9.4, tall + 0.3) as drawn:
        axes = drawn.subplots(1, 4)
        titles = ("image", f"chosen: {pair['chosen_sampler']}", f"rejected: {pair['rejected_sampler']}", "disagreement")
        for at, title in zip(axes, titles, strict=True):
            at.imshow(view.image, cmap="gray", vmin=0, vmax=1, aspect=view.aspect, interpolation="nearest")
            at.set_title(title)
            at.set_axis_off()
        grid = np.arange(-1, width + 1), np.arange(-1, height + 1)
        for at, mask in ((axes[1], view.chosen), (axes[2], view.rejected)):
            for label in range(1, n_classes):
                # The border closes outlines at the edge of the picture.
                inside = np.pad(mask == label, 1)
                if inside.any():
                    colour = OUTLINES[(label - 1) % len(OUTLINES)]
                    at.contour(*grid, inside, levels=[0.5], colors=colour, linewidths=1.8)
            at.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
        tint = np.zeros((*view.differ.shape, 4))
        tint[view.differ] = [*(int(RED[i : i + 2], 16) / 255 for i in (1, 3, 5)), 0.75]
        axes[3].imshow(tint, aspect=view.aspect, interpolation="nearest")
        return embed(
            drawn, f"Image, chosen outline, rejected outline and disagreement region. {caption}", caption, True
        )
