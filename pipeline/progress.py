"""Progress on standard error: finished tasks of a stage, and steps of a training with the time left.

Progress changes no result. A training shows its steps inside `showing`, and is silent elsewhere: a task that runs in
another thread, or a training of a test, needs no display.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

Style = Literal["auto", "bar", "lines", "none"]

MARKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Shares of the steps of a training after which a line is due. The first marks say soon how long a training takes."""
LEAST_SECONDS = 5.0
"""Least time before a line of a training, so that short trainings write few lines."""

ShowStep = Callable[[int, float | None], None]
"""Shows a step, counted from 1, and the newest value of the measure."""


@dataclass(frozen=True)
class _Shown:
    """Display of this thread."""

    style: Literal["bar", "lines", "none"]
    title: str
    measure: str
    bar: Progress | None
    rows: list[TaskID] = field(default_factory=list)  # of trainings


_SHOWN: ContextVar[_Shown | None] = ContextVar("shown", default=None)


@contextmanager
def showing(style: Style, title: str, measure: str = "") -> Iterator[None]:
    """Context in which the trainings of this thread show their steps under a title.

    `measure` is the name of the number in `validation_dice`, a Dice that is shown in points. Without a name the number
    is not shown: judges keep another measure there. Bars inside another `showing` or `counting` join its bars.
    """
    form, outer = _form(style), _SHOWN.get()
    shared = outer.bar if outer is not None and form == "bar" else None
    if form == "bar" and shared is None:
        with _live_bars() as bar, _current(_Shown(form, title, measure, bar)):
            yield
        return
    shown = _Shown(form, title, measure, shared)
    try:
        with _current(shown):
            yield
    finally:
        if shared is not None:
            for row in shown.rows:
                shared.remove_task(row)


@contextmanager
def counting(style: Style, what: str, total: int, unit: str) -> Iterator[Callable[[], None]]:
    """Context that gives a function to call after each of `total` tasks. `unit` is the user's word for tasks."""
    with showing(style, what):
        shown = _SHOWN.get()
        if shown is not None and shown.bar is not None:
            bar = shown.bar
            row = bar.add_task(what, total=total)
            yield lambda: bar.advance(row)
            return
        finished = 0

        def advance() -> None:
            nonlocal finished
            finished += 1
            if _form(style) == "lines" and (finished == total or finished % -(-total // 5) == 0):
                _line(f"{what}: {finished} of {total} {unit}")

        yield advance


def training_steps(steps: int) -> ShowStep:
    """Function that shows the steps of one training of `steps` steps, as the innermost `showing` asks."""
    shown = _SHOWN.get()
    if shown is None or shown.style == "none":
        return lambda step, value: None
    return _in_lines(shown, steps) if shown.bar is None else _on_bar(shown, shown.bar, steps)


def _in_lines(shown: _Shown, steps: int) -> ShowStep:
    began = said = time.monotonic()
    due = 0

    def show(step: int, value: float | None) -> None:
        nonlocal said, due
        now = time.monotonic()
        if due == len(MARKS) or step < MARKS[due] * steps or now - said < LEAST_SECONDS:
            return
        said, due = now, sum(mark * steps <= step for mark in MARKS)
        left = duration((now - began) / step * (steps - step))
        _line(f"{shown.title}: step {step} of {steps}{_measured(shown, value)}, at most {left} left")

    return show


def _on_bar(shown: _Shown, bar: Progress, steps: int) -> ShowStep:
    row = bar.add_task(shown.title, total=steps)
    shown.rows.append(row)

    def show(step: int, value: float | None) -> None:
        bar.update(row, completed=step, description=f"{shown.title}{_measured(shown, value)}")

    return show


def _measured(shown: _Shown, value: float | None) -> str:
    return f", {shown.measure} {100 * value:.1f}" if shown.measure and value is not None else ""


def duration(seconds: float) -> str:
    """A time in its two largest units: `40 s`, `3 min 20 s`, `2 h 5 min`."""
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _form(style: Style) -> Literal["bar", "lines", "none"]:
    """Style of the display. The bars of several processes would overwrite each other, so workers write lines."""
    if style == "none":
        return "none"
    bars = style == "bar" or (style == "auto" and sys.stderr.isatty())
    return "bar" if bars and multiprocessing.parent_process() is None else "lines"


@contextmanager
def _live_bars() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        yield bar


@contextmanager
def _current(shown: _Shown) -> Iterator[None]:
    token = _SHOWN.set(shown)
    try:
        yield
    finally:
        _SHOWN.reset(token)


def _line(text: str) -> None:
    # One write, because several processes write to one terminal.
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
