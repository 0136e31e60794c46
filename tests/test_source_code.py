"""Hashes of code: what changes them and what does not, by hand and by property."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.judges.kinds.agreement import Agreement
from pipeline.judges.kinds.table import ScoreTable
from pipeline.source_code import code_of, kinds_of, syntax_of
from pipeline.students.links.cdpo import ConservativeDPO
from pipeline.students.objectives.preference import Preference

ROOT = Path(__file__).parents[1]
CODE = '''"""Of a module."""
# A comment.
LEVEL = 3
"""Of a name."""


class Thing:
    """Of a class."""

    width: int = 2
    """Of a field."""

    def area(self, height=1):
        """Of a function."""
        return f"{self.width * height:.2f} px"
'''


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# A comment.\n", ""),
        ("# A comment.", "# Another comment."),
        ('"""Of a module."""', '"""Of another\n\nmodule."""'),
        ('"""Of a name."""\n', ""),
        ('    """Of a class."""\n\n', ""),
        ('    """Of a field."""', '    "Of another field."'),
        ('"""Of a function."""', "'''Of a function, at length.'''"),
        ("self, height=1", "\n        self,\n        height=1,\n    "),
        ("LEVEL = 3", "LEVEL = (3)"),
        ("\n\n\nclass", "\n\n\n\n\nclass"),
        ('f"{self.width * height:.2f} px"', 'f"{self.width * height:.2f}" " px"'),
        ('f"{self.width * height:.2f} px"', "f'{self.width * height:.2f} px'"),
    ],
)
def test_words_and_layout_leave_the_syntax_as_it_is(old: str, new: str) -> None:
    assert old in CODE
    assert syntax_of(CODE.replace(old, new)) == syntax_of(CODE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("LEVEL = 3", "LEVEL = 4"),
        ("LEVEL = 3", "LEVEL = 3.0"),
        ("LEVEL = 3", 'LEVEL = "3"'),
        ("LEVEL = 3", "LEVEL: int = 3"),
        ("height=1", "height=2"),
        ("width: int", "width: float"),
        (".2f", ".3f"),
        (" px", " mm"),
        ("self.width * height", "height * self.width"),
        ("class Thing", "class Thing(dict)"),
    ],
)
def test_code_changes_the_syntax(old: str, new: str) -> None:
    assert old in CODE
    assert syntax_of(CODE.replace(old, new)) != syntax_of(CODE)


@pytest.mark.parametrize("path", sorted((ROOT / "pipeline").rglob("*.py")), ids=lambda path: path.stem)
def test_every_file_of_the_library_survives_a_reformat(path: Path) -> None:
    """`ast.unparse` loses every comment and all layout, and keeps the code."""
    source = path.read_text()
    assert syntax_of(ast.unparse(ast.parse(source))) == syntax_of(source)


def test_the_text_of_a_tree_is_the_same_on_every_python() -> None:
    """Written down from Python 3.11; newer versions have further fields, which are empty."""
    assert syntax_of("def f(x: int = 1) -> str:\n    return f'{x}'") == (
        "Module(body=[FunctionDef(args=arguments(args=[arg(annotation=Name(ctx=Load(),id='int'),arg='x')],"
        "defaults=[Constant(value=1)]),body=[Return(value=JoinedStr(values=[FormattedValue(conversion=-1,"
        "value=Name(ctx=Load(),id='x'))]))],name='f',returns=Name(ctx=Load(),id='str'))])"
    )


@given(st.integers(), st.integers())
def test_constants_tell_programs_apart(one: int, two: int) -> None:
    assert (syntax_of(f"x = {one}") == syntax_of(f"x = {two}")) == (one == two)


def test_kinds_are_found_at_any_depth() -> None:
    cdpo = Preference(kind="preference", link=ConservativeDPO(kind="cdpo"))
    found = set(kinds_of({"a": [cdpo, "text", 3], "b": (Agreement(kind="agreement"), None)}))
    assert found == {Preference, ConservativeDPO, Agreement}


def test_a_module_follows_from_what_it_imports_and_the_kinds_in_use() -> None:
    module = "pipeline.judges.score"
    agreement = code_of(module, {"agreement": Agreement(kind="agreement")})
    table = code_of(module, ScoreTable(kind="table", path=Path("scores.csv")))
    assert {"pipeline/judges/score.py", "pipeline/store/schema.py", "pipeline/measures/overlap.py"} <= agreement.keys()
    assert "pipeline/judges/kinds/agreement.py" in agreement.keys() - table.keys()
    assert "pipeline/judges/kinds/table.py" in table.keys() - agreement.keys()
    shared = agreement.keys() & table.keys()
    assert {file: agreement[file] for file in shared} == {file: table[file] for file in shared}
    assert not any(file.endswith(("__init__.py", "/params.py", "/execution.py")) for file in agreement)


def test_files_that_are_no_python_count_beside_a_module() -> None:
    assert {"pipeline/report/page.html", "pipeline/report/page.css"} <= code_of("stages.report", ()).keys()


def test_a_class_from_elsewhere_counts_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_kinds").mkdir()
    (tmp_path / "own_kinds/mine.py").write_text(
        "from pipeline.knobs import Knobs\n\n\nclass Mine(Knobs):\n    width: int = 1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    from own_kinds.mine import Mine  # type: ignore[import-not-found]

    first = code_of("pipeline.judges.panel", Mine())
    assert "own_kinds/mine.py" in first
    path = tmp_path / "own_kinds/mine.py"
    path.write_text(path.read_text().replace("width: int = 1", "width: int = 22"))
    assert code_of("pipeline.judges.panel", Mine())["own_kinds/mine.py"] != first["own_kinds/mine.py"]
