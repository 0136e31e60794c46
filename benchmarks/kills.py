"""What is left of a run that was interrupted: `kill -9`, a full disk, a damaged file, and two runs at once.

Every event interrupts a tiny run, ends it with the same command, and compares all files with those of a run that was
never interrupted. A row of `kills.csv` is one event. A second call goes on where the first one was stopped. Once the
first call has made the run that is never interrupted, others may share its events.

    python -m benchmarks.kills run --kind stage --events 180 --out kills
    python -m benchmarks.kills run --kind repro --events 20 --out kills
    python -m benchmarks.kills run --kind disk --events 40 --out kills        # mounts a tmpfs, so as root
    python -m benchmarks.kills run --kind truncate --events 40 --out kills
    python -m benchmarks.kills run --kind twice --events 5 --out kills
    python -m benchmarks.kills draw --out kills
"""

from __future__ import annotations

import csv
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import polars as pl
from ruamel.yaml import YAML

from pipeline.seeding import numpy_generator
from tests.fixtures.chain import OUTPUTS, checkout, dvc_process, hashes, with_changes

PARAMS = with_changes(
    base={
        "network": {"name": "UNet", "arguments": {"channels": [4, 8], "strides": [2]}, "multiple": 2},
        "optimisation": {"steps": 12, "learning_rate": 5e-3, "evaluate_every": 6, "patience": 2},
        "batch": 2,
        "members": 1,
        "folds": 2,
        "fold_members": 1,
    },
    propose={
        "imports": "raw/none",
        "samplers": {
            "dropout": {"kind": "mc_dropout", "rates": [0.3, 0.6], "at": "all"},
            "ensemble": {"kind": "ensemble"},
            "mean": {"kind": "mean"},
            "regions": {"kind": "regions"},
        },
    },
    judges={"agreement": {"kind": "agreement"}, "pairwise": {"kind": "pairwise"}},
    splits={"labelled": 8, "pool": 10, "validation": 6, "test": 6},
)
"""A run with every kind of stage: folds, fitted samplers, a learned judge, pairs, students and a choice."""

RUNNING = ("running", "finished before")
NAMES = ("kind", "event", "stage", "after_s", "found", "again", "equal", "said")


@dataclass(frozen=True)
class Event:
    """A row of `kills.csv`."""

    kind: str
    event: int
    stage: str
    after_s: float
    found: str
    """What the interruption met: a process that was running or had finished, and whether it had written."""
    again: int
    """Runs until the end, after the interruption."""
    equal: bool
    """Whether all files have the bytes of the run that was never interrupted, with nothing left in `.work`."""
    said: str
    """What a run said that did not end well: the run after the interruption, or the run on a full disk."""


@dataclass(frozen=True)
class Command:
    """A stage or an entry of a stage, as DVC runs it."""

    name: str
    line: str
    outs: tuple[str, ...]


def stage_commands(folder: Path) -> list[Command]:
    """All commands of the project in the order of `dvc.yaml`, with their outputs."""
    params = YAML(typ="safe").load(folder / "params.yaml")
    found = []
    for name, stage in YAML(typ="safe").load(folder / "dvc.yaml")["stages"].items():
        entries: dict[str, Any] = {"": {}}
        if "foreach" in stage:
            entries = params[stage["foreach"].strip("${}")]
        for key, item in entries.items():
            text = stage.get("do", stage)
            parts = [text["cmd"], *_outs(text)]
            pairs = item.get("pairs", "") if isinstance(item, dict) else ""
            line, *outs = (part.replace("${key}", key).replace("${item.pairs}", pairs) for part in parts)
            line = line.replace("${review.verdicts}", params["review"]["verdicts"])
            found.append(Command(f"{name}@{key}" if key else name, line, tuple(outs)))
    return found


def _outs(stage: dict[str, Any]) -> list[str]:
    """Outputs of a stage of `dvc.yaml`, whose entries are paths or a path with options."""
    entries = [entry for kind in ("outs", "metrics", "plots") for entry in stage.get(kind, [])]
    return [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]


def start(folder: Path, line: str) -> subprocess.Popen[str]:
    """A stage in a session of its own."""
    return subprocess.Popen(
        [sys.executable, *line.split()[1:]],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(folder: Path, line: str) -> tuple[int, str]:
    """Exit status and last line of a stage."""
    process = start(folder, line)
    said = process.communicate()[0]
    return process.returncode, _last(said)


def _last(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1][:200] if lines else ""


class Reference:
    """A finished project that was never interrupted, the hashes of its files, and how long each stage takes."""

    def __init__(self, out: Path) -> None:
        self.folder = out / "reference"
        if not (self.folder / "reports/index.html").exists():
            shutil.rmtree(self.folder, ignore_errors=True)
            checkout(self.folder, PARAMS)
            status, said = _repro(self.folder)
            assert status == 0, said
        self.hashes = hashes(self.folder, without="")
        self.commands = stage_commands(self.folder)
        seconds = out / "seconds.csv"
        if not seconds.exists():
            rows = [(command.name, self._seconds(out, command)) for command in self.commands]
            pl.DataFrame(rows, schema=["stage", "seconds"], orient="row").write_csv(seconds)
        self.seconds = dict(pl.read_csv(seconds).iter_rows())

    def _seconds(self, out: Path, command: Command) -> float:
        with self.copy(out / "timed", command) as folder:
            began = time.monotonic()
            status, said = ended(folder, command.line)
            assert status == 0, said
            return time.monotonic() - began

    @contextmanager
    def copy(self, folder: Path, command: Command | None = None) -> Iterator[Path]:
        """A copy of the project without the outputs of a command, which DVC removes first. None: without outputs."""
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.folder, folder, symlinks=True, ignore=shutil.ignore_patterns(".work", "tmp", "cache"))
        gone = OUTPUTS if command is None else command.outs
        for name in (*gone, *(("dvc.lock", "provenance") if command is None else ())):
            path = folder / name
            if path.is_dir():
                shutil.rmtree(path)
            path.unlink(missing_ok=True)
        if command is None:
            (folder / "models/students").mkdir(parents=True)
            shutil.copy(self.folder / "models/students/.gitkeep", folder / "models/students/.gitkeep")
        yield folder
        shutil.rmtree(folder)

    def equal(self, folder: Path) -> bool:
        """Whether all files have the bytes of the reference, and nothing is left of unfinished work."""
        work = folder / ".work"
        return hashes(folder, without="") == self.hashes and not (work.is_dir() and any(work.iterdir()))


def _repro(folder: Path) -> tuple[int, str]:
    with dvc_process(folder, "repro", "--no-run-cache") as running:
        said = running.communicate()[0]
    return running.returncode, said


def _to_the_end(folder: Path) -> tuple[int, str]:
    """Number of `dvc repro` until one ends well, and what the last one before said. At most 20 are tried."""
    said = ""
    for count in range(1, 21):
        status, output = _repro(folder)
        if status == 0:
            return count, said
        said = next((line for line in output.splitlines() if line.startswith("error: ")), _last(output))
        time.sleep(2)
    return 20, said


def _written(folder: Path, command: Command) -> str:
    work = any((folder / ".work").rglob("*.arrow")) if (folder / ".work").is_dir() else False
    outs = any((folder / out).exists() for out in command.outs)
    return ", ".join(text for text, is_so in (("finished shards", work), ("outputs", outs)) if is_so) or "nothing"


def kill_stage(reference: Reference, event: int, out: Path, random: np.random.Generator) -> Event:
    """`kill -9` of a stage and its workers at a random moment."""
    command = reference.commands[event % len(reference.commands)]
    after = float(random.uniform(0, reference.seconds[command.name]))
    with reference.copy(out / f"stage_{event}", command) as folder:
        process = start(folder, command.line)
        found = RUNNING[_killed(process, after)]
        found += f", written: {_written(folder, command)}"
        status, said = ended(folder, command.line)
        equal = status == 0 and reference.equal(folder)
        return Event("stage", event, command.name, after, found, 1, equal, said if status else "")


def _killed(process: subprocess.Popen[str], after: float) -> bool:
    """Kill the session of a process after some seconds. Returns whether the process had ended before."""
    try:
        process.communicate(timeout=after)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return False
    return True


def kill_repro(reference: Reference, event: int, out: Path, random: np.random.Generator) -> Event:
    """`kill -9` of a whole `dvc repro`: of all its processes, or of DVC alone, whose stage then goes on without it."""
    alone = bool(event % 2)
    after = float(random.uniform(0, sum(reference.seconds.values())))
    with reference.copy(out / f"repro_{event}") as folder:
        process = dvc_process(folder, "repro", "--no-run-cache")
        try:
            process.wait(after)
            found = "finished before"
        except subprocess.TimeoutExpired:
            found = "running"
            (os.kill if alone else os.killpg)(process.pid, signal.SIGKILL)
            # A shell takes note of the end of its processes. DVC believes that one that nobody took note of still runs.
            process.wait()
        again, said = _to_the_end(folder)
        # A stage that outlived its DVC keeps the pipe of the output open until its end.
        process.communicate()
        name = "dvc repro, DVC alone" if alone else "dvc repro, all processes"
        return Event("repro", event, name, after, found, again, reference.equal(folder), said)


def full_disk(reference: Reference, event: int, out: Path, random: np.random.Generator) -> Event:
    """A stage on a file system that is full before the stage has written everything; then there is space again."""
    command = reference.commands[event % len(reference.commands)]
    mount = out / f"disk_{event}"
    mount.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400m", "tmpfs", mount], check=True)
    try:
        with reference.copy(mount / "project", command) as folder:
            whole = sum(_size(reference.folder / name) for name in command.outs)
            left = int(random.uniform(0, whole)) if whole else 0
            filler = mount / "filler"
            with filler.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, max(0, shutil.disk_usage(mount).free - left))
            status, said = ended(folder, command.line)
            found = "refused" if status == 2 else "failed" if status else "finished in spite of it"
            filler.unlink()
            last, again = ended(folder, command.line)
            equal = last == 0 and reference.equal(folder)
            return Event("disk", event, command.name, 0.0, found, 1, equal, again if last else said)
    finally:
        subprocess.run(["umount", mount], check=True)
        mount.rmdir()


def _size(path: Path) -> int:
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def truncate(reference: Reference, event: int, out: Path, random: np.random.Generator) -> Event:
    """A stage that is killed while it has unfinished work, and a file of this work that is cut at a random length."""
    working = [command for command in reference.commands if command.name.split("@")[0] in WITH_WORK]
    command = working[event % len(working)]
    for attempt in range(50):
        with reference.copy(out / f"truncate_{event}_{attempt}", command) as folder:
            began = time.monotonic()
            process = start(folder, command.line)
            while process.poll() is None and not _unfinished(folder):
                time.sleep(0.005)
            _killed(process, float(random.exponential(0.1)))
            after = time.monotonic() - began
            files = _unfinished(folder)
            if not files:
                continue
            file = files[int(random.integers(len(files)))]
            os.truncate(file, int(random.integers(file.stat().st_size)))
            status, said = ended(folder, command.line)
            found = f"{'/'.join(file.relative_to(folder).parts[3:])} cut"
            equal = status == 0 and reference.equal(folder)
            return Event("truncate", event, command.name, after, found, 1, equal, said if status else "")
    return Event("truncate", event, command.name, 0.0, "no unfinished work to cut in 50 kills", 0, False, "")


def _unfinished(folder: Path) -> list[Path]:
    """Files with content that a stage keeps in `.work`. A running stage may remove files while they are listed."""
    found = []
    for parent, _, names in os.walk(folder / ".work"):
        for file in (Path(parent, name) for name in names if not name.endswith(".lock")):
            with suppress(FileNotFoundError):
                if stat.S_ISREG(file.lstat().st_mode) and file.stat().st_size:
                    found.append(file)
    return sorted(found)


WITH_WORK = ("prepare", "base", "propose", "judge", "validate_base", "validate", "evaluate_base", "evaluate")
"""Stages that keep unfinished work."""


def twice(reference: Reference, event: int, out: Path, random: np.random.Generator) -> Event:
    """Two `dvc repro` of one project at once."""
    after = float(random.uniform(0, 10))
    with reference.copy(out / f"twice_{event}") as folder:
        first = dvc_process(folder, "repro", "--no-run-cache")
        time.sleep(after)
        _, output = _repro(folder)
        first.communicate()
        again, _ = _to_the_end(folder)
        return Event("twice", event, "dvc repro", after, "running", again, reference.equal(folder), _last(output))


KINDS = {"stage": kill_stage, "repro": kill_repro, "disk": full_disk, "truncate": truncate, "twice": twice}


@click.group(help=__doc__)
def main() -> None:
    pass


@main.command()
@click.option("--kind", type=click.Choice(list(KINDS)), required=True)
@click.option("--events", type=int, required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--first", type=int, default=0, show_default=True, help="Number of the first event, to share the work.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the moments.")
def run(kind: str, events: int, out: Path, first: int, seed: int) -> None:
    """Interrupt as many runs; events that are in the table already are kept."""
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    reference, table = Reference(out), out / "kills.csv"
    if not table.exists():
        table.write_text(",".join(NAMES) + "\n")
    known = {row["event"] for row in pl.read_csv(table).iter_rows(named=True) if row["kind"] == kind}
    for event in range(first, first + events):
        if event not in known:
            row = KINDS[kind](reference, event, out, numpy_generator(seed, "kills", kind, event))
            with table.open("a", newline="") as file:
                csv.DictWriter(file, NAMES).writerow(asdict(row))
            print(row, flush=True)


@main.command()
@click.option("--out", type=click.Path(path_type=Path), required=True)
def draw(out: Path) -> None:
    """Events, and ends with equal bytes, by kind and stage."""
    table = pl.read_csv(out / "kills.csv")
    with pl.Config(tbl_rows=-1, fmt_str_lengths=120, tbl_width_chars=200):
        print(
            table.group_by("kind", pl.col("stage").str.split("@").list.first())
            .agg(pl.len(), pl.sum("equal"))
            .sort("kind")
        )
        print(table.group_by("kind", "found").agg(pl.len(), pl.sum("equal")).sort("kind"))
        print(table.filter(~pl.col("equal")))


if __name__ == "__main__":
    main()
