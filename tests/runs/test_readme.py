"""The README repeats the contract; these tests keep it true."""

from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from pipeline.params import load_params
from pipeline.store import schema
from tests.fixtures.phantoms import disc

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_every_table_and_column_is_in_the_readme() -> None:
    for table in schema.TABLES:
        (row,) = re.findall(rf"^\| `{table.name}` \|.*$", README, re.M)
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[2] == table.row
        assert re.findall(r"`(\w+)`", cells[3]) == list(table.key)
        named = re.findall(r"`([\w.]+)`(±?)", cells[4])
        columns = {f"{name}{end}" for name, ends in named for end in (("", "_low", "_high") if ends else ("",))}
        assert columns == set(table.columns) - set(table.key), table.name


def test_every_array_is_in_the_readme() -> None:
    for array in schema.ARRAYS:
        axes = re.escape(", ".join(array.axes))
        assert re.search(
            rf"^\| `{array.name}` \|[^|]*\| {array.dtype} \| `\[{axes}\]` \| {array.fill:g} \|$", README, re.M
        )


def test_both_commands_are_one_line() -> None:
    for name in ("run", "test"):
        (block,) = re.findall(rf"<!-- {name} command -->\n```bash\n(.*?)```", README, re.S)
        assert len(block.strip().splitlines()) == 1


def test_the_example_judge_scores_masks(tmp_path: Path) -> None:
    """A disc is more compact than a bar; an empty mask gets no score."""
    (code,) = re.findall(r"<!-- example judge -->\n```python\n(.*?)```", README, re.S)
    path = tmp_path / "compactness.py"
    path.write_text(code)
    spec = importlib.util.spec_from_file_location("compactness", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    bar = np.zeros((20, 20), np.uint8)
    bar[9:11] = 1
    evidence = SimpleNamespace(masks=np.stack([disc((20, 20), 6), bar, np.zeros_like(bar)]))
    scores = module.Compactness(kind="compactness").score(evidence)
    assert scores[0] > scores[1]
    assert np.isnan(scores[2])
    assert module.Compactness.research is False


def test_the_overrides_shown_are_accepted_by_dvc(tmp_path: Path) -> None:
    from dvc.utils.hydra import apply_overrides

    overrides = re.findall(r"-S (\S+)", README)
    assert len(overrides) >= 4
    path = tmp_path / "params.yaml"
    shutil.copy(ROOT / "params.yaml", path)
    apply_overrides(path, overrides)
    assert load_params(path).pairs["agreement"].judge == "expected_dice"
