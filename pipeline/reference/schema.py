"""JSON schema of `params.yaml`, with which an editor completes keys, explains them and marks mistakes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from pipeline.knobs import Knobs
from pipeline.params import Params
from pipeline.reference.docstrings import docstrings

Schema = dict[str, Any]

_NODES = ("items", "additionalProperties", "propertyNames")
_MAPS = ("properties", "$defs")
_LISTS = ("anyOf", "allOf", "oneOf", "prefixItems")
"""Keywords of JSON Schema whose values hold schemas: one, one per name, and a list."""


def params_schema() -> Schema:
    """The schema, in draft 7, which old and new editors read. Every kind of every family is in it.

    Editors learn keys, kinds, types and bounds of single knobs. What several knobs must have in common, and what
    depends on the data, is checked by the stages.
    """
    found = Params.model_json_schema(schema_generator=_Generator)
    return {"$schema": "http://json-schema.org/draft-07/schema#", **_for_editors(found, found["$defs"])}


class _Generator(GenerateJsonSchema):
    def field_title_should_be_set(self, schema: Any) -> bool:
        """No field has a title: the title would repeat the key."""
        return False

    def model_schema(self, schema: Any) -> Schema:
        """With the docstring of every field as its description. A description that the field has comes first."""
        found = super().model_schema(schema)
        for name, text in docstrings(schema["cls"]).items():
            found["properties"][name].setdefault("description", text)
        return found

    def encode_default(self, dft: Any) -> Any:
        """Without the knobs that a default block leaves at their own defaults."""
        return super().encode_default(_set_knobs(dft))


def _set_knobs(value: Any) -> Any:
    if isinstance(value, Knobs):
        fields = type(value).model_fields
        return {key: _set_knobs(each) for key, each in value if key == "kind" or each != fields[key].default}
    return {key: _set_knobs(each) for key, each in value.items()} if isinstance(value, dict) else value


def _for_editors(node: Schema, definitions: Mapping[str, Schema]) -> Schema:
    """A schema and all schemas in it, in the form in which editors complete and explain best."""
    # A class has the name of its code as title. Kinds have a name in the file, other blocks have none.
    found = {key: value for key, value in node.items() if key not in ("title", "format", "discriminator")}
    if kind := _kind(node):
        found["title"] = kind
    if "description" in found:
        found["description"] = unwrapped(found["description"])
    for key, value in found.items():
        if key in _MAPS:
            found[key] = {name: _for_editors(inner, definitions) for name, inner in value.items()}
        elif key in _LISTS:
            found[key] = [_for_editors(inner, definitions) for inner in value]
        elif key in _NODES and isinstance(value, dict):
            found[key] = _for_editors(value, definitions)
    if "prefixItems" in found:  # the name of draft 2020
        found |= {"items": found.pop("prefixItems"), "additionalItems": False}
    if "patternProperties" in found:  # other names would be allowed, with any content
        ((pattern, inner),) = found.pop("patternProperties").items()
        found["additionalProperties"] = _for_editors(inner, definitions)
        found["propertyNames"] = {"pattern": pattern, **found["propertyNames"]}
    if "oneOf" in found:
        found |= _by_kind(found.pop("oneOf"), definitions, "discriminator" in node)
    if "$ref" in found and len(found) > 1:  # draft 7 ignores what stands beside a reference
        found["allOf"] = [{"$ref": found.pop("$ref")}]
    return found


def _by_kind(references: list[Schema], definitions: Mapping[str, Schema], required: bool) -> Schema:
    """A block whose `kind` chooses one of the schemas. A kind with a default may be left out unless `required`.

    With `oneOf` an editor guesses which kind is meant, and reports the mistakes of a wrong one.
    """
    classes = {reference["$ref"].rpartition("/")[2]: reference for reference in references}
    kinds = {_kind(definitions[name]): reference for name, reference in classes.items()}
    first_lines = [unwrapped(definitions[name]["description"]).splitlines()[0] for name in classes]
    branches = []
    for name, reference in classes.items():
        needs = required or "kind" in definitions[name].get("required", ())
        test = {"properties": {"kind": {"const": _kind(definitions[name])}}}
        branches.append({"if": {**test, **({"required": ["kind"]} if needs else {})}, "then": reference})
    return {
        "type": "object",
        "properties": {"kind": {"enum": list(kinds), "enumDescriptions": first_lines}},
        **({"required": ["kind"]} if required else {}),
        "allOf": branches,
    }


def _kind(definition: Schema) -> str | None:
    return definition.get("properties", {}).get("kind", {}).get("const")


def unwrapped(docstring: str) -> str:
    """Paragraphs and list entries of a docstring, one line each, without empty lines."""
    entries = re.split(r"\n\s*\n|\n\s*(?=- )", docstring.strip())
    return "\n".join(" ".join(entry.split()) for entry in entries)
