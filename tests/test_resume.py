"""`kill -9` in the middle of a stage, then `dvc repro`: finished shards are used, and only by the same code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.chain import TINY, checkout, dvc, hashes, with_changes


def start(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro", *arguments],
        cwd=folder,
        env=environment,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def kill_after_a_shard(folder: Path, target: str, work: str) -> list[str]:
    """`kill -9` of a whole `dvc repro` once a shard is done; the names of the finished shards."""
    return kill_after_more(folder, target, work, 0)


def kill_after_more(folder: Path, target: str, work: str, known: int) -> list[str]:
    """The same once there are more finished shards than before."""
    running = start(folder, target)
    deadline = time.monotonic() + 300
    done: list[Path] = []
    while len(done) <= known:
        assert running.poll() is None, "the stage ended before it could be killed; make it longer"
        assert time.monotonic() < deadline
        done = list((folder / ".work" / work).glob("*/done/*.arrow"))
        time.sleep(0.002)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    return sorted(path.name for path in (folder / ".work" / work).glob("*/done/*.arrow"))


def test_a_killed_judge_resumes_with_equal_bytes(tmp_path: Path) -> None:
    folder = tmp_path / "project"
    checkout(folder, TINY)
    slow = folder / "pipeline/judges/agreement.py"
    slow.write_text(
        slow.read_text().replace("        dice = ", "        __import__('time').sleep(0.1)\n        dice = ")
    )
    dvc(folder, "repro", "judge@agreement")
    uninterrupted = hashes(folder)
    slow.write_text(slow.read_text() + "\n# Another version.\n")
    finished = kill_after_a_shard(folder, "judge@agreement", "judge_agreement")
    assert not (folder / "data/scores/agreement.parquet").exists()
    (work,) = (folder / ".work/judge_agreement").iterdir()
    before = {name: (work / "done" / name).stat().st_mtime_ns for name in finished}
    again = kill_after_more(folder, "judge@agreement", "judge_agreement", len(finished))
    assert set(finished) < set(again)
    assert all((work / "done" / name).stat().st_mtime_ns == stamp for name, stamp in before.items())
    dvc(folder, "repro", "judge@agreement")
    assert hashes(folder) == uninterrupted


def test_a_killed_stage_resumes_with_equal_bytes_but_not_after_a_change_of_code(tmp_path: Path) -> None:
    many = {"kind": "mc_dropout", "rates": [0.3], "passes": 30, "at": "all"}
    params = with_changes(
        data={**TINY["data"], "cases": 120},
        splits={"labelled": 6, "pool": 90, "validation": 10, "test": 6},
        propose={"imports": "pipeline/samplers/imported.py", "samplers": {"dropout": many}},
    )
    folder = tmp_path / "project"
    checkout(folder, params)
    dvc(folder, "repro", "base")

    finished = kill_after_a_shard(folder, "propose", "propose")
    assert not (folder / "data/proposals").exists()
    (work,) = (folder / ".work/propose").iterdir()
    before = {name: (work / "done" / name).stat().st_mtime_ns for name in finished}
    # A second kill proves that finished shards are kept, not made again.
    kill_after = kill_after_more(folder, "propose", "propose", len(finished))
    assert set(finished) < set(kill_after)
    assert all((work / "done" / name).stat().st_mtime_ns == stamp for name, stamp in before.items())
    dvc(folder, "repro", "judge@agreement")
    resumed = hashes(folder)

    other = tmp_path / "uninterrupted"
    checkout(other, params)
    dvc(other, "repro", "judge@agreement")
    assert hashes(other) == resumed

    with (folder / "pipeline/samplers/mc_dropout.py").open("a") as file:
        file.write("\n# Another version.\n")
    kill_after_a_shard(folder, "propose", "propose")
    (fresh,) = (folder / ".work/propose").iterdir()
    assert fresh.name != work.name
    with (folder / "pipeline/samplers/mc_dropout.py").open("a") as file:
        file.write("# And another.\n")
    dvc(folder, "repro", "judge@agreement")
    assert hashes(folder) == resumed
