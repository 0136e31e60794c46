"""The README repeats the contract; these tests keep it true."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline import schema

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_every_table_and_column_is_in_the_readme() -> None:
    for table in schema.TABLES:
        (row,) = re.findall(rf"^\| `{table.name}` \|.*$", README, re.M)
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[2] == table.row
        assert re.findall(r"`(\w+)`", cells[3]) == list(table.key)
        assert set(re.findall(r"`([\w.]+)`", cells[4])) == set(table.columns) - set(table.key), table.name


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
