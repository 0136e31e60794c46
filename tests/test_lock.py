"""One process at a time on an output: what the other is told, and what a killed process leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from pipeline.errors import BadInput
from pipeline.lock import WORK, alone
from pipeline.workspace import workspace

HOLD = "import sys, time; from pathlib import Path; from pipeline.lock import alone\nwith alone(Path('data/cases')):\n"
ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def holding() -> subprocess.Popen[str]:
    """A process that holds the lock of `data/cases` until it is killed."""
    code = HOLD + "    print('held', flush=True); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_process_names_the_first_and_a_killed_process_locks_nothing() -> None:
    first = holding()
    said = rf"data/cases: expected no other process .* found that process {first.pid} is running; wait"
    with pytest.raises(BadInput, match=said), alone(Path("data/cases").resolve()):
        pass
    with alone(Path("data/other")), alone(Path("cases")):
        pass
    first.send_signal(signal.SIGKILL)
    first.wait()
    with alone(Path("data/cases")):
        assert [file.read_text() for file in WORK.iterdir()] == [str(os.getpid())]
    assert list(WORK.iterdir()) == []


def test_unfinished_work_is_called_by_its_stage() -> None:
    """Errors do not send a user to look into `.work`."""
    said = f"the unfinished work of 'base': expected no other process .* process {os.getpid()} is running"
    work = partial(workspace, "base", "pipeline.lock", None, [])
    with work(), pytest.raises(BadInput, match=said), work():
        pass


def test_a_failed_stage_locks_nothing() -> None:
    with pytest.raises(ZeroDivisionError), alone(Path("out")):
        raise ZeroDivisionError
    with alone(Path("out")):
        pass


def test_a_stage_that_runs_already_is_refused_without_a_traceback() -> None:
    first = holding()
    command = [sys.executable, "-m", "stages.prepare", "--out", "data/cases"]
    second = subprocess.run(command, capture_output=True, text=True, check=False)
    first.kill()
    first.wait()
    assert second.returncode == 2
    assert second.stderr.startswith("error: data/cases: expected no other process")
    assert len(second.stderr.splitlines()) == 1


def test_of_many_processes_at_once_one_works_at_a_time() -> None:
    """Each adds 1 to a number in a file, slowly, as often as it gets the lock. No addition is lost."""
    Path("number").write_text("0")
    code = (
        "import time; from pathlib import Path; from pipeline.errors import BadInput; from pipeline.lock import alone\n"
        "done = 0\n"
        "while done < 20:\n"
        "    try:\n"
        "        with alone(Path('number')):\n"
        "            value = int(Path('number').read_text())\n"
        "            time.sleep(.001)\n"
        "            Path('number').write_text(str(value + 1))\n"
        "        done += 1\n"
        "    except BadInput:\n"
        "        time.sleep(.0005)\n"
    )
    workers = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(4)]
    assert [worker.wait(60) for worker in workers] == [0] * 4
    assert Path("number").read_text() == "80"
