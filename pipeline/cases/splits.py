"""Assignment of cases to the splits labelled, pool, validation and test. Every patient is in one split."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from pipeline.cases.nnunet_split import GivenSplit
from pipeline.cases.readers.reader import Source
from pipeline.errors import BadInput
from pipeline.knobs import Knobs
from pipeline.seeding import numpy_generator
from pipeline.store.schema import SPLITS

_DRAWN = ("test", "validation", "labelled", "pool")
"""Order in which cases are assigned to the splits.

Test and validation come first, so another number of labelled cases does not change them.
"""

_ROUNDING = 1e-9

Fraction = Annotated[float, Field(gt=0, lt=1)]
Size = Annotated[int, Field(ge=0)] | Fraction | Literal["rest"]


class Splits(Knobs):
    """Size of each split: a count, a fraction of the cases that have a label, or `rest`.

    The sizes of `labelled`, `validation` and `test` count cases that have a label. Cases without a label belong to the
    pool. Cases whose split is fixed (by `given`, the case table or the data set) count as well. A split of size 0 holds
    the cases that are fixed to the split, or no case.
    """

    labelled: Size
    """Cases that train the base segmenter."""
    pool: Size
    """Cases that are used without a label. A count takes cases without a label first, then cases whose label is hidden.
    0: all cases without a label. `rest`: all cases without a label, and the cases that no other split takes. A fraction
    hides as many labels, and all cases without a label come on top."""
    validation: Size
    """Cases that audit the judges, calibrate `p_correct` and stop training."""
    test: Size
    """Cases that measure the students."""
    duplicates: Literal["warn", "refuse", "group"] = "warn"
    """What to do with images of the same pixels under several case ids. `warn` says how many there are, and how many
    are in more than one split. `refuse` stops. `group` makes one group of them, which is in one split, and reads every
    image once more."""
    seed: int = 0
    """Seed of the assignment. Another seed assigns other patients."""
    given: GivenSplit | None = None
    """A fold of nnU-Net's `splits_final.json`. Null: no fold is used."""

    @model_validator(mode="after")
    def _add_up(self) -> Splits:
        sizes = [getattr(self, name) for name in SPLITS]
        if sizes.count("rest") > 1:
            raise ValueError("at most one split can be 'rest', found several; give the others a size")
        if (whole := sum(size for size in sizes if isinstance(size, float))) > 1 + _ROUNDING:
            raise ValueError(f"expected fractions that add up to at most 1, found {whole:g}; lower them")
        return self


def assign(sources: Sequence[Source], splits: Splits) -> tuple[dict[str, str], list[str]]:
    """Split of each case id, and notes on sizes that could not be met. Cases without a split are left out.

    Groups stay whole. A given split wins over the sizes. A size is met exactly if whole groups allow the size, else
    from below. The result depends on the case ids and groups alone, not on their order. Raises `BadInput` for a group
    in two given splits, for sizes that exceed the number of cases, and for an empty split whose size is not 0.
    """
    sources = sorted(sources, key=lambda source: source.case_id)
    groups: dict[str, list[Source]] = defaultdict(list)
    for source in sources:
        groups[source.group or source.case_id].append(source)
    given = {name: _given(name, members) for name, members in groups.items()}
    weight = {name: sum(source.label is not None for source in members) for name, members in groups.items()}
    n_labels = sum(weight.values())

    placed = {split: [name for name in groups if given[name] == split] for split in SPLITS}
    free = [name for name in groups if given[name] is None]
    random = numpy_generator(splits.seed, "splits")
    random.shuffle(free)
    wanted = _wanted(splits, n_labels)
    notes = []
    if isinstance(splits.pool, int) and splits.pool > 0:
        if left := _left_out([groups[name] for name in placed["pool"]], splits.pool, random):
            placed["pool"] = [name for name in placed["pool"] if name not in left]
            number = sum(len(groups[name]) for name in left)
            notes.append(f"splits: pool {splits.pool} leaves out {number} cases without a label; `pool: 0` takes all")
        without = sum(source.label is None for name in placed["pool"] for source in groups[name])
        wanted["pool"] = max(0, splits.pool - without)
    has = {split: sum(weight[name] for name in placed[split]) for split in SPLITS}
    asked = sum(max(0, count - has[split]) for split, count in wanted.items())
    if asked > (there := sum(weight[name] for name in free)):
        raise BadInput(
            f"splits: expected counts of at most {there}, the cases with a label and without a given split, found "
            f"{asked} ({_counts(wanted)}; already given: {_counts(has)}); lower the counts"
        )
    for split in (name for name in _DRAWN if name in wanted):
        chosen = _whole_groups([(name, weight[name]) for name in free], wanted[split] - has[split])
        placed[split] += chosen
        free = [name for name in free if name not in chosen]
        got = sum(weight[name] for name in placed[split])
        if got != wanted[split] != 0:
            reason = "the given split has more" if got > wanted[split] else "groups stay whole"
            notes.append(f"splits: {split} has {got} cases with a label, expected {wanted[split]}: {reason}")
    for split in set(SPLITS) - set(wanted):
        placed[split] += free

    assigned = {source.case_id: split for split in SPLITS for name in placed[split] for source in groups[name]}
    sizes = {split: sum(len(groups[name]) for name in placed[split]) for split in SPLITS}
    largest = max(map(len, groups.values()), default=0)
    empty = [split for split, size in sizes.items() if size == 0]
    if asked_for := [split for split in empty if getattr(splits, split) != 0 or len(empty) == len(SPLITS)]:
        raise BadInput(
            f"splits: expected cases in every split that is not 0, found none in {', '.join(asked_for)} "
            f"({_counts(sizes)}; {len(sources)} cases, {n_labels} with label; groups of up to {largest}); change the "
            "counts"
        )
    if len(assigned) < len(sources):
        notes.append(f"splits: {len(sources) - len(assigned)} of {len(sources)} cases are in no split and left out")
    return assigned, notes


def _left_out(pool: Sequence[Sequence[Source]], size: int, random: np.random.Generator) -> set[str]:
    """Names of the groups in the pool for want of a label that a pool of `size` cases has no room for."""
    fixed = sum(len(members) for members in pool if any(source.split for source in members))
    others = [members for members in pool if not any(source.split for source in members)]
    random.shuffle(others)
    names = [(members[0].group or members[0].case_id, len(members)) for members in others]
    return {name for name, _ in names} - _whole_groups(names, size - fixed)


def _given(name: str, members: Sequence[Source]) -> str | None:
    """The split that a group must be in: the given split, or the pool for cases without a label. None if free."""
    given = {source.split or ("pool" if source.label is None else None): source.case_id for source in members}
    for source in members:
        if source.label is None and source.split not in (None, "pool"):
            raise BadInput(
                f"{source.image}: case '{source.case_id}' has no label: expected split pool, found {source.split}; "
                "correct the given split, or add the label"
            )
    given.pop(None, None)
    if len(given) > 1:
        found = ", ".join(f"'{case_id}' in {split}" for split, case_id in given.items())
        raise BadInput(
            f"splits: group '{name}': expected one split, found {found}; put all its cases into one of the given "
            "splits (cases without label are always pool)"
        )
    return next(iter(given), None)


def _wanted(splits: Splits, n_labels: int) -> dict[str, int]:
    """Number of labelled cases that each split should have, without the split `rest`.

    Fractions are rounded by largest remainder, so that together they fill the rounded-down sum of the fractions.
    """
    sizes: dict[str, int | float] = {split: size for split in SPLITS if (size := getattr(splits, split)) != "rest"}
    exact = {split: size * n_labels for split, size in sizes.items() if isinstance(size, float)}
    floors = {split: int(number + _ROUNDING) for split, number in exact.items()}
    spare = int(sum(exact.values()) + _ROUNDING) - sum(floors.values())
    for split in sorted(exact, key=lambda split: floors[split] - exact[split])[:spare]:
        floors[split] += 1
    return {split: floors.get(split, int(size)) for split, size in sizes.items()}


def _whole_groups(groups: Sequence[tuple[str, int]], need: int) -> set[str]:
    """Names of groups whose sizes add up to `need`, or to the largest possible sum below. Early groups win.

    Bit s of `reachable` says whether some groups add up to s. `reached_by[s]` is the first group with which the sum s
    can be reached, so earlier groups reach the sum without the size of that group.
    """
    if need <= 0:
        return set()
    reachable, within = 1, (1 << (need + 1)) - 1
    reached_by: dict[int, int] = {}
    for index, (_, size) in enumerate(groups):
        new = (reachable << size) & within & ~reachable
        reachable |= new
        while new:
            lowest = new & -new
            reached_by[lowest.bit_length() - 1] = index
            new ^= lowest
        if need in reached_by:
            break
    total = max(reached_by, default=0)
    chosen = set()
    while total:
        name, size = groups[reached_by[total]]
        chosen.add(name)
        total -= size
    return chosen


def _counts(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{split} {size}" for split, size in sizes.items())
