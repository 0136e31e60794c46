"""What swapping a judge costs beside the judge itself: DVC and the panel.

`python -m benchmarks.judge_swap PROJECT`, a folder where `dvc repro` has finished; budget 5 s.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    project = Path(sys.argv[1])
    panel = (
        "-m stages.panel --cases data/cases --proposals data/proposals --scores data/scores --out .work/panel.parquet"
    )
    (project / ".work").mkdir(exist_ok=True)
    seconds = {}
    for name, line in (("DVC, nothing to do", "-m dvc repro -q panel"), ("panel", panel)):
        start = time.perf_counter()
        subprocess.run([sys.executable, *line.split()], cwd=project, check=True)
        seconds[name] = time.perf_counter() - start
        print(f"{name}: {seconds[name]:.2f} s")
    (project / ".work/panel.parquet").unlink()
    print(f"together {sum(seconds.values()):.2f} s (budget 5 s)")
