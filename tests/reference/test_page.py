"""The page of all knobs: it is current, complete, and its examples are read as they stand."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from pydantic import TypeAdapter
from ruamel.yaml import YAML

from pipeline.cases.case_table import described
from pipeline.cases.readers import Reader
from pipeline.params import Params
from pipeline.reference.page import knob_page
from pipeline.reference.schema import params_schema
from pipeline.reference.words import words
from stages.knobs import main
from tests.fixtures.phantoms import save_image
from tests.runs.test_readme import kinds_of

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/knobs.md").read_text("utf-8")
FILES = ("params.schema.json", "docs/knobs.md")


def section(title: str) -> str:
    """Text from a heading to the next of the page's own headings."""
    _, _, rest = PAGE.partition(f"# {title}\n")
    assert rest, f"no section '{title}'"
    return re.split(r"^###? ", rest, maxsplit=1, flags=re.M)[0]


def code(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.S | re.M)


# ---- the command -------------------------------------------------------------------------------------------------


def test_both_files_are_current(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found = CliRunner().invoke(main, ["--check"])
    assert found.exit_code == 0, found.output


def test_a_file_that_is_not_current_is_named_and_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = CliRunner().invoke(main, ["--check"])
    assert found.exit_code == 2
    expected = "expected the knobs of the code, found no file; run segpref knobs"
    assert found.output.splitlines() == [f"error: {file}: {expected}" for file in FILES]
    assert CliRunner().invoke(main, []).exit_code == 0
    assert [Path(file).read_bytes() for file in FILES] == [(ROOT / file).read_bytes() for file in FILES]
    Path("docs/knobs.md").write_text("# Knobs\n")
    found = CliRunner().invoke(main, ["--check"])
    assert found.exit_code == 2
    assert found.output.splitlines() == [f"error: {FILES[1]}: {expected.replace('no file', 'other content')}"]
    assert Path("docs/knobs.md").read_text() == "# Knobs\n", "`--check` writes nothing"


# ---- what the page holds -----------------------------------------------------------------------------------------


def test_blocks_are_in_the_order_of_the_file() -> None:
    shipped = list(YAML(typ="safe").load(ROOT / "params.yaml"))
    assert re.findall(r"^## `(\w+)`$", PAGE, re.M) == shipped == list(Params.model_fields)


def test_every_kind_has_a_section_and_every_key_a_row() -> None:
    """Score tables and experts have blocks of their own. Families may share the name of a kind."""
    blocks = [block["properties"] for block in params_schema()["$defs"].values()]
    kinds = sorted(block["kind"]["const"] for block in blocks if "kind" in block)
    assert sorted([*re.findall(r"^### Kind `(\w+)` of", PAGE, re.M), "expert", "table"]) == kinds
    rows = re.findall(r"^\| `(\w+)` \|", PAGE, re.M)
    assert not {key for block in blocks for key in block} - {*rows, "kind"}


def test_a_section_has_type_default_and_meaning() -> None:
    assert "| `seed` | whole number | `0` | Seed of the assignment. Another seed assigns other patients. |" in section(
        "`splits`"
    )
    given = section("Block `given` of `splits`")
    assert "In `params.yaml`: `splits.given`" in given
    assert "| `fold` | whole number at least 0 | `0` | Index of the fold in the file, from 0. |" in given
    in_two_places = section("Block `normalise` of `preprocess`")
    assert re.findall(r"^\| `(\w+)` \|", in_two_places, re.M) == ["range", "to", "clip"]
    assert "| `nsd_tolerance` | number at least 0 | required | Largest distance" in section("`evaluation`")


def test_a_kind_points_to_the_keys_of_an_earlier_kind() -> None:
    """`top_quantile` has one knob of its own, and the five filters of all strategies."""
    text = section("Kind `top_quantile` of `strategy`")
    assert re.findall(r"^\| `(\w+)` \|", text, re.M) == ["deviations"]
    assert "Keys as in [`top_bottom`](#kind-top_bottom-of-strategy): `min_margin`, `min_p_correct`" in text
    filters = re.findall(r"^\| `(\w+)` \|", section("Kind `top_bottom` of `strategy`"), re.M)
    assert filters == ["min_margin", "min_p_correct", "min_disagreement", "max_pairs_per_case", "keep_fraction"]


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        ({"type": "integer", "exclusiveMinimum": 0}, "whole number at least 1"),
        ({"type": "number", "minimum": 0, "maximum": 1}, "number from 0 to 1"),
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 1}, "number above 0 and at most 1"),
        ({"type": "number", "minimum": 0.5, "exclusiveMaximum": 1}, "number at least 0.5 and below 1"),
        ({"type": "boolean"}, "`true` or `false`"),
        ({"anyOf": [{"enum": ["grey", "rgb"], "type": "string"}, {"type": "null"}]}, "`grey`, `rgb` or `null`"),
        ({"type": "array", "items": {"type": "string"}, "minItems": 2}, "list of texts, at least 2"),
        ({"type": "array", "items": [{"type": "number"}] * 2}, "list of 2 numbers"),
        (
            {"type": "array", "items": {"type": "array", "items": [{"type": "integer", "minimum": 0}] * 3}},
            "list of lists of 3 whole numbers at least 0",
        ),
        ({"anyOf": [{"const": "a"}, {"type": "array", "items": {"anyOf": [{"const": "a"}]}}]}, "`a` or list of these"),
        ({"type": "object", "additionalProperties": True}, "keys with any values"),
        ({"type": "object", "additionalProperties": {"$ref": "#/$defs/A"}, "propertyNames": {}}, "`NAME`: the block"),
    ],
)
def test_types_in_words(node: dict[str, Any], expected: str) -> None:
    assert words(node, lambda block: "the block") == expected


def test_a_text_without_a_section_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prose = tmp_path / "prose.md"
    prose.write_text("<!-- intro -->\n\n# Knobs\n\n<!-- dat -->\n\nlost\n")
    monkeypatch.setattr("pipeline.reference.page.PROSE", prose)
    with pytest.raises(AssertionError, match="texts without a section: \\['dat'\\]"):
        knob_page(params_schema())


# ---- the examples ------------------------------------------------------------------------------------------------


def test_every_example_is_valid() -> None:
    """Blocks that stand in `params.yaml`, and at least one for every layout."""
    layouts = set()
    for text in code(PAGE, "yaml"):
        for block, content in YAML(typ="safe").load(text).items():
            found: Any = TypeAdapter(Params.model_fields[block].annotation).validate_json(json.dumps(content))
            layouts |= {found.kind} if block == "data" else set()
    assert layouts == set(kinds_of(Reader))


@pytest.mark.parametrize("kind", ["decathlon", "folders", "nnunet"])
def test_the_tree_of_a_layout_is_a_data_set(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files as in the tree of the page: two cases with a mask, and a third of the second patient without a mask."""
    monkeypatch.chdir(tmp_path)
    text = section(f"Kind `{kind}` of `data`")
    (tree,), (table,) = code(text, "text"), code(text, "csv")
    files = files_of(tree)
    classes = np.arange(80).reshape(4, 5, 4)[..., : 4 if ".nii.gz" in tree else 1].squeeze() % 2
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        is_mask = file.parent.name.startswith(("labels", "masks"))
        if file.name == "dataset.json":
            file.write_text(*code(text, "json"))
        elif file.name == "cases.csv":
            file.write_text(table)
        else:
            save_image(file, (classes * (255 if kind == "folders" or not is_mask else 1)).astype(np.uint8))
    block = YAML(typ="safe").load(code(text, "yaml")[0])["data"]
    reader: Any = TypeAdapter(Reader).validate_json(json.dumps(block))
    sources, notes = described(reader.scan(), reader.path, reader.case_table)
    assert not notes
    assert [source.group for source in sources] == ["patient_a", "patient_b", "patient_b"]
    for source in sources:
        image, label = reader.read(source)
        assert len(image) == len(reader.channel_names())
        assert (label is None) == (source is sources[-1])
        assert label is None or np.array_equal(label, classes)
    used = {str(reader.path / file) for source in sources for file in source.files}
    assert {str(file) for file in files} - used <= {f"{reader.path}/{name}" for name in ("dataset.json", "cases.csv")}


def files_of(tree: str) -> list[Path]:
    """Paths of the files in a tree of which each level is indented by two spaces, and folders end with a slash."""
    files, above = [], [""]
    for line in tree.splitlines():
        name = line.strip()
        above[(len(line) - len(name)) // 2 :] = [name]
        if not name.endswith("/"):
            files.append(Path("".join(above)))
    return files
