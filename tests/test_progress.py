"""Progress on standard error: lines and bars of tasks and trainings, in this process and in others."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest

from pipeline import progress
from pipeline.execution import Execution, Limits, Shard, run, shards_of
from pipeline.progress import Style, duration, showing, training_steps


class Clock:
    """A clock that goes on by a fixed number of seconds at every look."""

    def __init__(self, seconds: float) -> None:
        self.now, self.seconds = 0.0, seconds

    def monotonic(self) -> float:
        self.now += self.seconds
        return self.now


def steps_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], steps: int, each: float) -> list:
    """Lines of a training whose steps take `each` seconds, with a Dice of .5."""
    monkeypatch.setattr(progress, "time", Clock(each))
    with showing("lines", "train a", "validation Dice"):
        show = training_steps(steps)
        for step in range(1, steps + 1):
            show(step, 0.5)
    return capsys.readouterr().err.splitlines()


def test_a_long_training_writes_a_line_at_every_mark(monkeypatch, capsys):
    """1000 steps of 6 s: marks at 1, 2, 5 and 10 % and then every tenth, 13 lines. 990 steps of 6 s are 99 minutes."""
    lines = steps_shown(monkeypatch, capsys, 1000, 6.0)
    assert [int(line.split()[3]) for line in lines] == [10, 20, 50, *range(100, 1001, 100)]
    assert lines[0] == "train a: step 10 of 1000, validation Dice 50.0, at most 1 h 39 min left"
    assert lines[-1] == "train a: step 1000 of 1000, validation Dice 50.0, at most 0 s left"


def test_a_short_training_writes_few_lines(monkeypatch, capsys):
    """100 steps of .08 s: 5 s have passed after step 63, behind the mark at 60 %, and do not pass again."""
    assert steps_shown(monkeypatch, capsys, 100, 0.08) == [
        "train a: step 63 of 100, validation Dice 50.0, at most 3 s left"
    ]
    assert steps_shown(monkeypatch, capsys, 10, 0.08) == []


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (3599, "59 min 59 s"), (7500, "2 h 5 min")]
)
def test_a_time_has_two_units(seconds, text):
    assert duration(seconds) == text


def trained(style: Style | None, measure: str = "validation Dice") -> list[float | None]:
    """Six steps of a network of one number whose Dice is .25; without a style nothing shows the training."""
    # Imported here, because the workers of the last tests need no torch.
    import torch
    from torch import nn

    from pipeline.segmenter.knobs import Optimisation
    from pipeline.segmenter.loop import optimise

    network = nn.Linear(1, 1)

    def step_loss(step: int) -> tuple[torch.Tensor, dict[str, float | None]]:
        return network(torch.ones(1)).sum(), {}

    knobs = Optimisation(steps=6, learning_rate=0.1, evaluate_every=3)
    if style is None:
        return [row["step"] for row in optimise(network, step_loss, lambda _: {"validation_dice": 0.25}, knobs).history]
    with showing(style, "judge b", measure):
        return trained(None)


def test_the_loop_shows_its_steps(monkeypatch, capsys):
    """A line is due at every step of so few; the Dice of the start is shown from the first step on."""
    monkeypatch.setattr(progress, "LEAST_SECONDS", 0.0)
    assert trained("lines") == [0, 3, 6]
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(", ")[:2] for line in lines] == [
        [f"judge b: step {step} of 6", "validation Dice 25.0"] for step in range(1, 7)
    ]
    trained("lines", measure="")
    assert "Dice" not in capsys.readouterr().err, "a judge keeps another measure there"


@pytest.mark.parametrize("style", ["none", None])
def test_a_silent_training(monkeypatch, capsys, style):
    monkeypatch.setattr(progress, "LEAST_SECONDS", 0.0)
    trained(style)
    assert capsys.readouterr().err == ""


def test_a_training_as_a_bar(capsys):
    trained("bar")
    err = capsys.readouterr().err
    assert "judge b, validation Dice 25.0" in err
    assert "6/6" in err


@dataclass(frozen=True)
class Trains:
    """A task with six steps, which asks for bars in its own process, as a task of `base` does on a terminal."""

    style: Style = "bar"

    def __call__(self, shard: Shard) -> pl.DataFrame:
        progress.LEAST_SECONDS = 0.0
        with showing(self.style, f"base/{shard.members[0]}", "validation Dice"):
            show = training_steps(6)
            for step in range(1, 7):
                show(step, 0.25)
        return pl.DataFrame({"member": shard.members})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "done").mkdir()
    return tmp_path


def test_trainings_of_tasks_join_the_bar_of_the_stage(folder, capsys, monkeypatch):
    """One display, since two would overwrite each other. The row of a finished model is removed."""
    monkeypatch.setattr(progress, "LEAST_SECONDS", 0.0)
    run(Trains(), shards_of(["base", "fold_0"], 1), folder, Execution(workers=1, progress="bar"), "base")
    last = capsys.readouterr().err.split("\n")[-2:]
    assert "2/2" in "".join(last)
    assert "fold_0" not in "".join(last)


def test_trainings_in_other_processes_write_lines(folder, capfd):
    """Also where bars are asked for: bars of several processes would overwrite each other. Threads become processes."""
    execution = Execution(scheduler="threads", workers=2, progress="bar")
    run(Trains(), shards_of(["base", "fold_0"], 1), folder, execution, "base", Limits(isolated=True), "models")
    lines = capfd.readouterr().err.splitlines()
    for name in ("base", "fold_0"):
        assert sum(line.startswith(f"base/{name}: step ") for line in lines) == 6
    assert [line for line in lines if line.startswith("base: ")] == ["base: 1 of 2 models", "base: 2 of 2 models"]


def test_tasks_that_ask_for_silence_have_it_in_other_processes(folder, capfd):
    execution = Execution(scheduler="processes", workers=2, progress="none")
    run(Trains("none"), shards_of(["base", "fold_0"], 1), folder, execution, "base", Limits(isolated=True))
    assert capfd.readouterr().err == ""
