"""Words for the types and defaults of a JSON schema, for readers who do not know JSON schemas."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pipeline.reference.schema import Schema


def reference(node: Schema) -> str | None:
    """Name of the definition that a schema refers to, or None."""
    found = node.get("$ref") or next((part["$ref"] for part in node.get("allOf", ()) if "$ref" in part), "")
    return found.rpartition("/")[2] or None


def kinds(node: Schema) -> dict[str, str]:
    """Name of the definition of each kind, if a `kind` chooses the schema. Empty otherwise."""
    branches = [part for part in node.get("allOf", ()) if "if" in part]
    return {part["if"]["properties"]["kind"]["const"]: reference(part["then"]) or "" for part in branches}


def blocks(node: Schema) -> list[Schema]:
    """The different schemas of blocks in a schema: references, and blocks with kinds.

    Blocks in these blocks are left out.
    """
    if reference(node) or kinds(node):
        return [node]
    items, entries = node.get("items", []), node.get("additionalProperties")
    parts = [*node.get("anyOf", ()), *(items if isinstance(items, list) else [items])]
    parts += [entries] if isinstance(entries, dict) else []
    found: list[Schema] = []
    for part in parts:
        found += [block for block in blocks(part) if block not in found]
    return found


def has_names(node: Schema) -> bool:
    """Whether the content is entries under names that the user chooses."""
    return "propertyNames" in node


def value(content: Any) -> str:
    """A value as YAML in one line."""
    if isinstance(content, dict):
        return f"{{{', '.join(f'{key}: {value(each)}' for key, each in content.items())}}}"
    if isinstance(content, list):
        return f"[{', '.join(map(value, content))}]"
    return content if isinstance(content, str) else json.dumps(content)


def words(node: Schema, block: Callable[[Schema], str], many: bool = False) -> str:
    """What a schema allows, for example `list of numbers above 0`; with `many` in the plural.

    `block` gives the words for a reference or a block with kinds.
    """
    return listed(list(_alternatives(node, block, many)))


def _alternatives(node: Schema, block: Callable[[Schema], str], many: bool) -> Iterator[str]:
    """Words for everything that a schema allows."""
    few: dict[str, list[Any]] = {"null": [None], "boolean": [True, False]}
    values = few.get(node.get("type", "")) or node.get("enum") or ([node["const"]] if "const" in node else [])
    if "anyOf" in node:
        for part in node["anyOf"]:
            others = [other for other in node["anyOf"] if other is not part]
            if part.get("items") == {"anyOf": others}:
                yield "list of these"
            else:
                yield from _alternatives(part, block, many)
    elif reference(node) or kinds(node):
        yield block(node)
    elif values:
        yield from (f"`{value(each)}`" for each in values)
    else:
        yield _type(node, block, many)


def _type(node: Schema, block: Callable[[Schema], str], many: bool) -> str:
    match node.get("type"):
        case "string":
            noun = "name" if "pattern" in node else "text"
            return f"{noun}s" if many else noun
        case "integer" | "number":
            noun = "whole number" if node["type"] == "integer" else "number"
            return " ".join([f"{noun}s" if many else noun, *_range(node)])
        case "array":
            return _list(node, block, many)
    entries = node["additionalProperties"]
    if entries is True:
        return "keys with any values"
    return f"`NAME`: {words(entries, block)}" if has_names(node) else f"keys with {words(entries, block, many=True)}"


def listed(parts: Sequence[str]) -> str:
    """`a, b or c`."""
    return " or ".join([*([", ".join(parts[:-1])] if parts[:-1] else []), *parts[-1:]])


def _list(node: Schema, block: Callable[[Schema], str], many: bool) -> str:
    noun = "lists of" if many else "list of"
    if isinstance(node["items"], list):
        first, *others = node["items"]
        assert all(other == first for other in others), "entries of different types need words of their own"
        return f"{noun} {len(node['items'])} {words(first, block, many=True)}"
    least = f", at least {node['minItems']}" if "minItems" in node else ""
    return f"{noun} {words(node['items'], block, many=True)}{least}"


def _range(node: Schema) -> Iterator[str]:
    low, high = node.get("minimum"), node.get("maximum")
    above, below = node.get("exclusiveMinimum"), node.get("exclusiveMaximum")
    if node["type"] == "integer" and above is not None:
        low, above = above + 1, None
    if low is not None and high is not None:
        yield f"from {low:g} to {high:g}"
        return
    parts = {"at least": low, "above": above, "at most": high, "below": below}
    if found := [f"{word} {bound:g}" for word, bound in parts.items() if bound is not None]:
        yield " and ".join(found)
