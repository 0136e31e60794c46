"""`kill -9` in the middle of a stage, then `dvc repro`: finished shards are used, and only by the same code."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.fixtures.chain import TINY, checkout, dvc, dvc_process, hashes, repro

pytestmark = pytest.mark.first


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a trained base, in which a case takes long enough to propose for and judge to be killed in."""
    folder = tmp_path_factory.mktemp("resume") / "base"
    checkout(folder, TINY)
    slow_down(folder / "pipeline/proposals/plan.py", "        family, compute = self.families.get(")
    slow_down(folder / "pipeline/judges/kinds/agreement.py", "        dice = pairwise_dice(")
    repro(folder, "base")
    return folder


@pytest.fixture(scope="module")
def uninterrupted(base: Path) -> Path:
    folder = copy(base, "uninterrupted")
    repro(folder, "judge@agreement")
    return folder


def slow_down(file: Path, line: str) -> None:
    """Sleep before this line, once for every case."""
    before, after = file.read_text().split(line)
    file.write_text(f"{before}        __import__('time').sleep(0.1)\n{line}{after}")


def copy(project: Path, name: str) -> Path:
    return Path(shutil.copytree(project, project.parent / name, symlinks=True))


def other_version(file: Path) -> None:
    """Code that does the same, and is other code to DVC and to the fingerprint of unfinished work."""
    file.write_text(file.read_text() + "\n_ANOTHER_VERSION = True\n")


def kill_after_more(folder: Path, target: str, work: str, known: int) -> list[Path]:
    """`kill -9` of a whole `dvc repro` once there are more finished shards than these; all that it leaves."""
    deadline = time.monotonic() + 300
    with dvc_process(folder, "repro", target) as running:
        while len(finished(folder, work)) <= known:
            assert running.poll() is None, "the stage ended before it could be killed; make it longer"
            assert time.monotonic() < deadline
            time.sleep(0.002)
        os.killpg(running.pid, signal.SIGKILL)
    return finished(folder, work)


def finished(folder: Path, work: str) -> list[Path]:
    # Folders may go while they are listed, which `os.walk` passes over.
    tree = os.walk(folder / ".work" / work)
    return sorted(Path(root) / name for root, _, names in tree for name in names if name.endswith(".arrow"))


def resumed(folder: Path, target: str, what: str) -> int:
    """Shards that the run to the end says it found done."""
    (line,) = [line for line in dvc(folder, "repro", target).splitlines() if line.startswith(f"{what}: resuming, ")]
    return int(line.removeprefix(f"{what}: resuming, ").split()[0])


def test_a_killed_judge_resumes_with_equal_bytes(uninterrupted: Path) -> None:
    """Killed twice: the second run adds to the shards of the first and writes none of them again."""
    folder = copy(uninterrupted, "judge")
    other_version(folder / "pipeline/judges/kinds/agreement.py")
    first = kill_after_more(folder, "judge@agreement", "judge_agreement", 0)
    assert not (folder / "data/scores/agreement.parquet").exists()
    written = {path: path.stat().st_mtime_ns for path in first}
    again = kill_after_more(folder, "judge@agreement", "judge_agreement", len(first))
    assert set(first) < set(again)
    assert {path: path.stat().st_mtime_ns for path in first} == written
    assert resumed(folder, "judge@agreement", "judge agreement") == len(again)
    assert hashes(folder) == hashes(uninterrupted)


def test_killed_proposals_resume_with_equal_bytes_but_not_after_a_change_of_code(
    base: Path, uninterrupted: Path
) -> None:
    folder = copy(base, "propose")
    old = kill_after_more(folder, "propose", "propose", 0)
    assert not (folder / "data/proposals").exists()
    other_version(folder / "pipeline/proposals/samplers/mc_dropout.py")
    new = kill_after_more(folder, "propose", "propose", len(old))
    assert not any(path.exists() for path in old)
    assert len({path.parent for path in new}) == 1
    assert resumed(folder, "propose", "propose") == len(new)
    found, expected = hashes(folder), hashes(uninterrupted)
    assert "data/proposals/proposals.parquet" in found
    assert found == {path: expected[path] for path in found}
