"""Sections of the page of all knobs: one per block of `params.yaml`, per block in a block, and per kind."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.reference.schema import Schema
from pipeline.reference.words import blocks, has_names, kinds, reference

_FIRST = ("tables", "experts", "pairs")
"""Blocks that are searched first. `judges` knows score tables and experts too, and `audit` knows strategies, but these
have their sections in `tables`, `experts` and `pairs`."""


@dataclass(frozen=True)
class Section:
    """A heading of the page."""

    title: str  # Markdown
    place: str  # key path in params.yaml, with NAME for a name of the user's choice
    node: Schema  # schema of the block
    of_kind: bool = False
    earlier: tuple[str, ...] = ()  # of a kind: definitions of the kinds that the family lists before this kind

    @property
    def anchor(self) -> str:
        """Anchor that GitHub makes of the heading."""
        return re.sub(r"[^\w -]", "", self.title).lower().replace(" ", "-")

    @property
    def link(self) -> str:
        """Link to the section. The text is the title, or the name of the kind alone."""
        text = self.title.split(" ")[1] if self.of_kind else self.title.lower()
        return f"[{text}](#{self.anchor})"


class Sections:
    """The sections of all knobs. A class that is used in several places has its section at the first of them."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self.of_definition: dict[str, Section] = {}
        """Section of each definition of the schema."""
        self.of_family: dict[frozenset[str], Section] = {}
        """Section that lists all kinds of a family, by the definitions of the kinds."""
        keys = list(schema["properties"])
        found = {key: list(self._of_block(key)) for key in sorted(keys, key=lambda key: key not in _FIRST)}
        self.of_block: dict[str, list[Section]] = {key: found[key] for key in keys}
        """Sections of each block of the first level, in the order of `params.yaml`. The block itself is first."""

    def _of_block(self, key: str) -> Iterator[Section]:
        node = self._schema["properties"][key]
        yield from self._with_inner(Section(f"`{key}`", _place(key, node), node), key)

    def _with_inner(self, section: Section, key: str) -> Iterator[Section]:
        """The section of a key, then the sections of all kinds and blocks in it that have no section yet."""
        yield section
        new = []
        for node in blocks(section.node):
            if (name := reference(node)) and name not in self.of_definition:
                self.of_definition[name] = section
                new.append(name)
            family = kinds(node)
            if family:
                self.of_family.setdefault(frozenset(family.values()), section)
            for number, (kind, name) in enumerate(family.items()):
                if name not in self.of_definition:
                    earlier = tuple(family.values())[:number]
                    title = f"Kind `{kind}` of `{key}`"
                    self.of_definition[name] = Section(title, section.place, {"$ref": f"/{name}"}, True, earlier)
                    yield self.of_definition[name]
                    new.append(name)
        for name in new:
            for inner, node in self._schema["$defs"][name]["properties"].items():
                found = blocks(node)
                names = [name for block in found for name in (reference(block), *kinds(block).values()) if name]
                if not set(names) <= self.of_definition.keys():
                    title = f"Kinds of `{inner}`" if any(map(kinds, found)) else f"Block `{inner}` of `{key}`"
                    place = _place(f"{section.place}.{inner}", node)
                    yield from self._with_inner(Section(title, place, node), inner)


def _place(path: str, node: Schema) -> str:
    return f"{path}.NAME" if has_names(node) else path
