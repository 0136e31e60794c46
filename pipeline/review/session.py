"""A review in progress: what each reviewer sees next, and what each answer does."""

from __future__ import annotations

import math
import secrets
import sys
import threading
from collections import Counter, OrderedDict
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from pipeline.cases.on_page import case_on_page
from pipeline.errors import BadInput
from pipeline.review.draw import JUDGES_OF_DOUBT, Counts, Draws, Pair, next_repeat, side_of
from pipeline.review.journal import (
    Answer,
    Answered,
    History,
    Journal,
    Shown,
    Skipped,
    Undone,
    histories,
    opened,
    write_verdicts,
)
from pipeline.review.views import View, view_of
from pipeline.store.proposals import Data
from pipeline.store.verdicts import Slots

AHEAD = 2
"""Pairs of a reviewer that are drawn: the one on the page, and the next, which the page loads in advance."""
KEPT = 4
"""Pairs whose image and masks stay in memory."""
MORE = 10
"""Answers ahead for which the width of an interval is told."""
LONGEST_S = 86_400.0
HELD = timedelta(minutes=30)
"""Time for which a pair that waits for one reviewer is not drawn for another."""

Given = Literal["left", "right", "equal", "unusable", "skip"]
"""What the page sends."""


class Unknown(Exception):
    """The page asks for a pair that is not shown now."""


@dataclass
class _Reviewer:
    """A reviewer whose journal is open."""

    name: str
    journal: Journal
    lock: threading.RLock = field(default_factory=threading.RLock)


class _Pairs(NamedTuple):
    """Pairs that were drawn."""

    audited: set[Pair]
    """Those of the audited target."""
    seen: set[Pair]
    """Those of every draw and target."""


@dataclass
class Review:
    """A review in a folder. `close` closes the journals and derives the table."""

    data: Data
    draws: Draws
    folder: Path

    def __post_init__(self) -> None:
        self._slots = Slots(self.data.cases, self.data.proposals)
        self._reviewers: dict[str, _Reviewer] = {}
        self._open = ExitStack()
        self._opening, self._drawing, self._viewing = threading.Lock(), threading.Lock(), threading.Lock()
        self._views: OrderedDict[str, View] = OrderedDict()
        audit = self.draws.audit
        rows = [] if audit is None else audit.select("case_id", "slot_a", "slot_b").rows()
        self._of_target: set[Pair] = {(case, a, b) for case, a, b in rows}

    # ---- what the page asks for ----------------------------------------------------------------------------------

    def reviewer(self, name: str) -> _Reviewer:
        """A reviewer, whose journal is opened at the first call.

        Raises `BadInput` for a bad name, and for a journal that another process has open.
        """
        with self._opening:
            if name not in self._reviewers:
                journal = self._open.enter_context(opened(self.folder, name))
                self._reviewers[name] = _Reviewer(name, journal)
                if journal.torn:
                    cut = f"cut off a last line of {journal.torn} bytes, which was never confirmed"
                    print(f"review: {journal.path}: {cut}", file=sys.stderr)
            return self._reviewers[name]

    def waiting(self, name: str) -> list[Shown]:
        """The pair on the page and the one after it. Pairs are drawn as needed; the list is shorter if none is left."""
        one = self.reviewer(name)
        # One draw at a time, so that two reviewers never get the same pair from this server.
        with self._drawing, one.lock:
            others = {other: history for other, history in histories(self.folder).items() if other != name}
            theirs = self._pairs_of(*others.values(), own=False)
            while len(found := self._waiting(one.journal.history, theirs)) < AHEAD:
                if (drawn := self._draw(one, theirs)) is None:
                    break
                one.journal.write(drawn)
            return found

    def answer(self, name: str, showing: str, given: Given, seconds: float) -> str:
        """Write an answer, or a skip, and return what is on the disk.

        A showing that was answered before keeps its answer, so an answer that is sent twice counts once. Raises
        `Unknown` for a showing that was never shown or whose answer was undone.
        """
        one = self.reviewer(name)
        with one.lock:
            history = one.journal.history
            shown = history.shown.get(showing)
            if shown is None or showing in history.gone:
                raise Unknown(showing)
            if showing not in history.closed:
                if given == "skip":
                    one.journal.write(Skipped(showing=showing))
                else:
                    kept = min(max(seconds, 0.0), LONGEST_S) if math.isfinite(seconds) else 0.0
                    one.journal.write(Answered(showing=showing, answer=_of_side(given, shown), seconds=round(kept, 3)))
            recorded = history.closed[showing]
            return "skip" if isinstance(recorded, Skipped) else _on_page(recorded.answer, shown)

    def undo(self, name: str, showing: str) -> bool:
        """Take back the answer to a showing, which is the last one, and show the pair again before all others.

        False if the answer was taken back before. Raises `Unknown` if the showing is not the last one.
        """
        one = self.reviewer(name)
        with one.lock:
            history = one.journal.history
            if showing in history.gone:
                return False
            if history.last != showing:
                raise Unknown(showing)
            before = history.shown[showing]
            # On the same sides, so that a reviewer who corrects a slip presses the other key.
            again = before.model_copy(update={**self._fresh(one), "a_side": before.a_side, "undone": showing})
            one.journal.write(Undone(showing=showing), again)
            return True

    def view(self, name: str, showing: str) -> View:
        """Slices of a pair that waits for an answer. Raises `Unknown` for another showing."""
        one = self.reviewer(name)
        with one.lock:
            shown = one.journal.history.shown.get(showing)
            if shown is None or showing in one.journal.history.gone:
                raise Unknown(showing)
        # One at a time: several large images at once could fill the memory.
        with self._viewing:
            if showing not in self._views:
                self._views[showing] = self._view(shown)
                while len(self._views) > KEPT:
                    self._views.popitem(last=False)
            self._views.move_to_end(showing)
            return self._views[showing]

    def progress(self, name: str) -> dict[str, Any]:
        """Numbers of answers of a reviewer, the showing that an undo takes back, and the worth of the next answers.

        The worth depends on the journals of all reviewers. A journal that cannot be read is told in its place.
        """
        one = self.reviewer(name)
        with one.lock:
            history = one.journal.history
            try:
                worth = self._worth({**histories(self.folder), name: history})
            except (BadInput, OSError) as error:
                worth = f"The worth of the next answers is unknown: {error}"
            return {
                "answered": len(history.counted),
                "skipped": len(history.closed) - len(history.counted),
                "last": history.last,
                "worth": worth,
            }

    # ---- the end of a review --------------------------------------------------------------------------------------

    def close(self) -> int:
        """Close the journals, derive the table and return its number of verdicts."""
        self._open.close()
        return write_verdicts(self.folder)

    # ---- parts ---------------------------------------------------------------------------------------------------

    def _waiting(self, history: History, theirs: _Pairs) -> list[Shown]:
        """Pairs that wait and that this review shows.

        Pairs of other targets, pairs that other reviewers have meanwhile, and pairs with masks that are gone are left.
        """
        found = []
        for shown in history.waiting:
            pair = self._pair(shown)
            open_to = pair not in (theirs.audited if shown.draw == "audit" else theirs.seen)
            wanted = self._is_of_this_review(shown) and (shown.draw == "repeat" or open_to)
            wanted = shown.undone is not None or wanted
            if wanted and pair is not None:
                found.append(shown)
            if len(found) == AHEAD:
                break
        return found

    def _is_of_this_review(self, shown: Shown) -> bool:
        """Whether a pair is of the draws, the target and the split that are reviewed now. Repeats are of any target."""
        of_target = shown.draw == "repeat" or (shown.draw, shown.target) in self.draws.targets
        return of_target and shown.split == self.draws.split

    def _fresh(self, one: _Reviewer) -> dict[str, Any]:
        """What differs each time a pair is shown."""
        number = len(one.journal.history.shown)
        return {
            "showing": secrets.token_hex(8),
            "a_side": side_of(self.draws.seed, one.name, number),
            "time": Shown.model_fields["time"].get_default(call_default_factory=True, validated_data={}),
        }

    def _draw(self, one: _Reviewer, theirs: _Pairs) -> Shown | None:
        history, fresh = one.journal.history, self._fresh(one)
        again = next_repeat(history, self.draws.repeats, self.draws.seed, one.name)
        if again is not None and not self._slots.fault(*again.pair):
            return again.model_copy(update={**fresh, "draw": "repeat", "population": None, "undone": None})
        mine = self._pairs_of(history, own=True)
        drawn = Counter[str](
            shown.draw
            for key, shown in history.shown.items()
            if key not in history.gone and self._is_of_this_review(shown)
        )
        counts = Counts(mine.seen | theirs.seen, mine.audited | theirs.audited, drawn)
        if (found := self.draws.next(counts)) is None:
            return None
        draw, target, pair = found
        case = self.data.cases.case(pair.case_id)
        hashes = {slot: mask for mask, slot in (self._slots.of(pair.case_id) or {}).items()}
        return Shown(
            **fresh,
            case_id=case.case_id,
            group=case.group,
            split=case.split,
            mask_a=hashes[pair.slot_a],
            mask_b=hashes[pair.slot_b],
            draw=draw,
            target=target,
            stratum=pair.stratum,
            population=pair.population,
            disagreement=pair.disagreement,
        )

    def _pairs_of(self, *of: History, own: bool) -> _Pairs:
        """Pairs that were drawn for the reviewers of these journals, without repeats.

        Of other reviewers (`own` is false) these are the pairs that they answered, and those that they have before
        them. What they skipped may be shown to another.
        """
        found, since = _Pairs(set(), set()), datetime.now(UTC) - HELD
        for history in of:
            for key, shown in history.shown.items():
                given = history.closed.get(key)
                has = own or isinstance(given, Answered) or (given is None and shown.time > since)
                if not has or key in history.gone or shown.draw == "repeat" or (pair := self._pair(shown)) is None:
                    continue
                found.seen.add(pair)
                if (shown.draw, shown.target) == ("audit", self.draws.target):
                    found.audited.add(pair)
        return found

    def _pair(self, shown: Shown) -> Pair | None:
        """Slots of the masks of a pair, the lower first; None if they are gone."""
        if self._slots.fault(*shown.pair):
            return None
        known = self._slots.of(shown.case_id) or {}
        low, high = sorted((known[shown.mask_a], known[shown.mask_b]))
        return shown.case_id, low, high

    def _view(self, shown: Shown) -> View:
        if self._slots.fault(*shown.pair):
            raise Unknown(shown.showing)
        known = self._slots.of(shown.case_id) or {}
        slots = [known[shown.mask_a], known[shown.mask_b]]
        cases, case = self.data.cases, self.data.cases.case(shown.case_id)
        left_first = slots if shown.a_side == "left" else slots[::-1]
        masks = self.data.proposals.masks(case, left_first)
        return view_of(cases.image(case), masks, case_on_page(cases, case), cases.rgb)

    def _worth(self, all_histories: Mapping[str, History]) -> str:
        """How far the answers reach, and what ten more would add, as sentences.

        The numbers follow from the number of answers alone. The share of wrong pairs would tell the reviewer what the
        judge says of the last pair.
        """
        said = []
        if self.draws.audit is not None:
            given = {
                self._pair(shown)
                for history in all_histories.values()
                for shown, answered in history.counted
                if (shown.draw, shown.target) == ("audit", self.draws.target) and answered.answer != "unusable"
            }
            count = len(given & self._of_target)
            said.append(_width(self.draws.target, count, len(self._of_target), self.draws.least))
        if self.draws.doubt is not None:
            answered = [one for h in all_histories.values() for one, _ in h.counted if one.target == JUDGES_OF_DOUBT]
            left = max(0, len(self.draws.doubt) - len({one.pair for one in answered}))
            said.append(f"The judges disagree on {left} more pairs.")
        return " ".join(said)


def _width(target: str, count: int, population: int, least: int) -> str:
    """Half the width of the interval of a share of wrong pairs of one half, now and after ten more answers.

    The variance is 1 / (4 count), the largest that a share can have. Strata, patients and the reviewer's own errors are
    left to the audit.
    """
    if count < least:
        return f"{count} of the {least} pairs that an estimate of the noise of '{target}' needs."
    now, then = (98 / math.sqrt(n) for n in (count, count + MORE))
    return (
        f"{count} of {population} pairs tell how often '{target}' is wrong, to within ±{now:.0f} percentage points or "
        f"less; {MORE} more answers: ±{then:.0f}."
    )


def _of_side(given: str, shown: Shown) -> Answer:
    """An answer on the page as an answer on masks."""
    if given in ("left", "right"):
        return "a" if given == shown.a_side else "b"
    answer: Answer = next(one for one in get_args(Answer) if one == given)
    return answer


def _on_page(answer: str, shown: Shown) -> str:
    """An answer on masks as an answer on the page."""
    if answer in ("a", "b"):
        return shown.a_side if answer == "a" else {"left": "right", "right": "left"}[shown.a_side]
    return answer
