"""The page of all knobs, from the JSON schema of `params.yaml` and the hand-written texts in `prose.md`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.reference.schema import Schema
from pipeline.reference.sections import Section, Sections
from pipeline.reference.words import blocks, kinds, listed, reference, value, words

PROSE = Path(__file__).with_name("prose.md")
"""Texts, each below a comment with the anchor of the section that the text ends. The text `intro` is the first."""

_REPEATED = 3
"""From this number of equal knobs on, a kind names the knobs and points to the earlier kind that has them."""


def knob_page(schema: Schema) -> str:
    """Markdown of the page. `schema` is that of `params_schema`."""
    return _Page(schema).text()


class _Page:
    def __init__(self, schema: Schema) -> None:
        self.definitions: Schema = schema["$defs"]
        self.required: list[str] = schema["required"]
        self.sections = Sections(schema)
        _, *texts = re.split(r"^<!-- ([\w-]+) -->$", PROSE.read_text("utf-8"), flags=re.M)
        self.prose = {anchor: text.strip() for anchor, text in zip(texts[::2], texts[1::2], strict=True)}

    def text(self) -> str:
        found = [section for sections in self.sections.of_block.values() for section in sections]
        anchors = [section.anchor for section in found]
        assert len(set(anchors)) == len(anchors), "two sections with one anchor"
        assert not (lost := self.prose.keys() - {"intro", *anchors}), f"texts without a section: {sorted(lost)}"
        return "\n\n".join([self.prose["intro"], self._contents(), *map(self._section, found)]) + "\n"

    def _contents(self) -> str:
        """List of the blocks, below each its inner blocks. The kinds of a block follow in its line."""
        lines: list[tuple[str, list[str]]] = []
        for first, *others in self.sections.of_block.values():
            lines.append((f"- {first.link}", []))
            for section in others:
                if section.of_kind:
                    lines[-1][1].append(section.link)
                else:
                    lines.append((f"  - {section.link}", []))
        return "\n".join(f"{line}: {', '.join(links)}" if links else line for line, links in lines)

    def _section(self, section: Section) -> str:
        key, node = section.place.partition(".")[0], section.node
        inner = blocks(node)
        parts = []
        if section is self.sections.of_block[key][0]:
            parts += [f"## {section.title}", self._status(key, node), *_paragraphs(node)]
        else:
            parts.append(f"### {section.title}")  # the table of the outer block has the meaning of the key
        if section.place != key and not section.of_kind:
            parts.append(f"In `params.yaml`: `{section.place}`")
        for block in inner:
            if name := reference(block):
                first, *others = _paragraphs(self.definitions[name])
                parts += [first, *self._keys(self.definitions[name], section.earlier), *others]
            else:
                parts.append(self._kinds(block))
        return "\n\n".join([*parts, *([self.prose[section.anchor]] if section.anchor in self.prose else [])])

    def _status(self, key: str, node: Schema) -> str:
        """Whether a block of the first level may be left out, and the type of a block that is a single value."""
        status = "required" if key in self.required else f"default: {_default(node)}"
        text = status if blocks(node) else f"{words(node, self._link)}, {status}"
        return f"{text[0].upper()}{text[1:]}."

    def _kinds(self, node: Schema) -> str:
        rows = [_row("`kind`", "meaning"), "|---|---|"]
        for kind, name in kinds(node).items():
            definition = self.definitions[name]
            required = "kind" in (*node.get("required", ()), *definition.get("required", ()))
            link = f"[`{kind}`](#{self.sections.of_definition[name].anchor})"
            rows.append(_row(link if required else f"{link} (default)", _paragraphs(definition)[0]))
        return "\n".join(rows)

    def _keys(self, definition: Schema, earlier: Sequence[str]) -> Iterator[str]:
        """Table of the keys. Keys that one of the definitions `earlier` has as well are only named."""
        rows, pointers = self._rows(definition), []
        for name in earlier:
            before = self._rows(self.definitions[name])
            equal = [key for key, row in rows.items() if before.get(key) == row]
            if len(equal) >= _REPEATED:
                rows = {key: row for key, row in rows.items() if key not in equal}
                keys = ", ".join(f"`{key}`" for key in equal)
                pointers.append(f"Keys as in {self.sections.of_definition[name].link}: {keys}.")
        if rows:
            yield "\n".join([_row("key", "type", "default", "meaning"), "|---|---|---|---|", *rows.values()])
        elif not pointers:
            yield "No other keys."
        yield from pointers

    def _rows(self, definition: Schema) -> dict[str, str]:
        """Row of each key but `kind`."""
        nodes = {key: node for key, node in definition["properties"].items() if key != "kind"}
        defaults = dict.fromkeys(definition.get("required", ()), "required")
        return {
            key: _row(f"`{key}`", words(node, self._link), defaults.get(key) or _default(node), node["description"])
            for key, node in nodes.items()
        }

    def _link(self, block: Schema) -> str:
        """Words for a block: a link to its section, or to the sections of the kinds that it may have."""
        section = self.sections.of_definition
        if name := reference(block):
            return f"[block](#{section[name].anchor})"
        names = list(kinds(block).values())
        if family := self.sections.of_family.get(frozenset(names)):
            return f"[block with a kind](#{family.anchor})"
        return f"block of kind {listed([section[name].link for name in names])}"


def _default(node: Schema) -> str:
    return f"`{value(node['default'])}`"


def _paragraphs(node: Schema) -> list[str]:
    return str(node.get("description", "")).splitlines()


def _row(*cells: str) -> str:
    escaped = [cell.replace("|", r"\|").replace("\n", "<br>") for cell in cells]
    return f"| {' | '.join(escaped)} |"
