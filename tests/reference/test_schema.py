"""The JSON schema: it accepts what is shipped, refuses mistakes where they are, and explains every knob."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydantic import BaseModel, Field, ValidationError
from ruamel.yaml import YAML

from pipeline.judges.kinds.agreement import Agreement
from pipeline.knobs import Knobs
from pipeline.params import Params
from pipeline.reference.docstrings import docstrings
from pipeline.reference.schema import _Generator, params_schema, unwrapped
from pipeline.students.objectives.preference import Preference
from tests.test_params import GONE

ROOT = Path(__file__).parents[2]
SHIPPED = [ROOT / "params.yaml", *sorted((ROOT / "examples").glob("*.yaml"))]
MANY = ROOT / "tests/fixtures/params.yaml"


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return params_schema()


def content(file: Path) -> Any:
    """As editors see the file: the keys are text."""
    return json.loads(json.dumps(YAML(typ="safe").load(file)))


def test_it_is_a_schema_that_accepts_all_shipped_files(schema: dict[str, Any]) -> None:
    jsonschema.Draft7Validator.check_schema(schema)
    for file in (*SHIPPED, MANY):
        jsonschema.Draft7Validator(schema).validate(content(file))


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.name)
def test_the_first_line_of_a_file_names_the_schema(file: Path) -> None:
    start, _, name = file.read_text().splitlines()[0].partition("$schema=")
    assert start == "# yaml-language-server: "
    assert (file.parent / name).resolve() == ROOT / "params.schema.json"


@pytest.mark.parametrize(
    ("path", "value", "where", "said"),
    [
        ("jduges", {}, "$", "'jduges' was unexpected"),
        ("judges", GONE, "$", "'judges' is a required property"),
        ("seed", "zero", "$.seed", "'zero' is not of type 'integer'"),
        ("base.batchsize", 4, "$.base", "'batchsize' was unexpected"),
        ("base.kind", "trainde", "$.base.kind", "'trainde' is not one of"),
        ("base.batch", 0, "$.base.batch", "0 is less than or equal to the minimum of 0"),
        ("judges.my-judge", {"kind": "agreement"}, "$.judges", "'my-judge' does not match"),
        ("judges.agreement.kind", "agrement", "$.judges.agreement.kind", "'agrement' is not one of"),
        ("judges.agreement.kind", GONE, "$.judges.agreement", "'kind' is a required property"),
        ("judges.agreement.balance", True, "$.judges.agreement", "'balance' was unexpected"),
        ("students.rn_cdpo.objective.link.epsilon", 0.1, "$.students.rn_cdpo.objective.link", "'epsilon' was unexp"),
        ("students.rn_cdpo.objective.link.kind", "dpo", "$.students.rn_cdpo.objective.link.kind", "'dpo' is not one"),
        ("augmentation.swap_labels", [[0, 1]], "$.augmentation.swap_labels[0]", "[0, 1] is too short"),
    ],
)
def test_a_mistake_is_said_once_and_where_it_is(
    schema: dict[str, Any], path: str, value: Any, where: str, said: str
) -> None:
    """Not at the kinds that were not meant. The stages refuse the same mistakes."""
    changed = content(MANY)
    *above, last = path.split(".")
    at = changed
    for key in above:
        at = at[key]
    at.pop(last, None) if value is GONE else at.update({last: value})
    (problem,) = jsonschema.Draft7Validator(schema).iter_errors(changed)
    error = jsonschema.exceptions.best_match([problem])  # of `base`, which may be null
    assert error is not None
    assert error.json_path == where
    assert said in error.message
    with pytest.raises(ValidationError):
        Params.model_validate_json(json.dumps(changed))


def test_every_knob_is_explained_by_its_docstring(schema: dict[str, Any]) -> None:
    assert schema["properties"]["seed"]["description"] == unwrapped(docstrings(Params)["seed"])
    without = []
    for name, definition in schema["$defs"].items():
        without += [f"{name}.{key}" for key, node in definition["properties"].items() if not node.get("description")]
    assert not [knob for knob in without if not knob.endswith(".kind")]
    beta = schema["$defs"]["Preference"]["properties"]["beta"]
    assert beta["description"].startswith("Strength of the preference. Under `region`, h is beta times")
    assert "\n" not in beta["description"], "an editor would show the lines of the code"


def test_a_description_comes_before_a_docstring() -> None:
    class Own(Knobs):
        first: int = Field(0, description="Given.")
        """Below."""
        second: int = 0
        """Below."""

    properties = Own.model_json_schema(schema_generator=_Generator)["properties"]
    assert {key: node["description"] for key, node in properties.items()} == {"first": "Given.", "second": "Below."}


def test_kinds_are_listed_with_what_they_are(schema: dict[str, Any]) -> None:
    """An editor shows the first line of the docstring beside each kind."""
    first_line: dict[type[BaseModel], str] = {Agreement: "judges", Preference: "students"}
    for kind, block in first_line.items():
        entry = schema["properties"][block]["additionalProperties"]
        if block == "students":
            entry = schema["$defs"]["Student"]["properties"]["objective"]
        listed = entry["properties"]["kind"]
        shown = dict(zip(listed["enum"], listed["enumDescriptions"], strict=True))
        name = str(kind.model_fields["kind"].annotation.__args__[0])  # type: ignore[union-attr]
        assert shown[name] == (kind.__doc__ or "").splitlines()[0]


def test_a_default_block_shows_only_what_it_changes(schema: dict[str, Any]) -> None:
    """The knobs of the default network of `error_map` that are not those of every network."""
    default = schema["$defs"]["ErrorMap"]["properties"]["network"]["default"]
    assert default == {"arguments": {"channels": [16, 32, 64, 128], "strides": [2, 2, 2]}, "multiple": 8}
    assert schema["$defs"]["Preference"]["properties"]["link"]["default"] == {"kind": "sigmoid"}
