"""A copy of the project without git, such as an unpacked ZIP: what DVC says, and what the docs say to do."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from tests.fixtures.chain import ROOT, TINY, checkout, dvc, dvc_process


def test_the_advice_for_a_folder_without_git_works(tmp_path: Path) -> None:
    """The page quotes the error of DVC, and its command ends the error."""
    folder = tmp_path / "project"
    checkout(folder, TINY)
    shutil.rmtree(folder / ".git")
    with dvc_process(folder, "status", "check") as running:
        said = running.communicate()[0]
    assert running.returncode != 0
    page = (ROOT / "docs/running.md").read_text()
    (message,) = re.findall(r"`ERROR: FOLDER (is not a git repository)`", page)
    assert f"ERROR: {folder} {message}" in said
    (command,) = re.findall(r"```bash\n(git init .*)\n```", page)
    identity = "-c user.name=t -c user.email=t@t"
    subprocess.run(command.replace("git commit", f"git {identity} commit"), shell=True, cwd=folder, check=True)
    assert "changed" in dvc(folder, "status", "check")
