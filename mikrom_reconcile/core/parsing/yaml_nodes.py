"""YAML, event by event: the value of each document, where every part of it stands, and what is wrong with it. Slow, and
the authority over the quick parser of `yaml_text`. Events, because composing PyYAML's nodes recurses in C (100,000
brackets end the process) and follows aliases before they can be counted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NoReturn

import msgspec
import yaml

from mikrom_reconcile.core.model.documents import SpecProblem
from mikrom_reconcile.core.parsing.yaml_words import Lines, Spelled, ambiguous_as, meaning_of, quoted, shown
from mikrom_reconcile.times_and_sizes import SPECS

# What is no text at all: https://yaml.org/spec/1.2.2/#51-character-set
_NOT_PRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Node(msgspec.Struct, kw_only=True):
    """A value and where it begins, as an offset into the text. `parts` are the nodes in it, those of a mapping each
    with the offset of its key. `size` counts the values in it, itself included; `height` is how deep it goes.
    """

    at: int
    value: Any
    parts: dict[str, tuple[int, Node]] | list[Node] | None = None
    size: int = 1
    height: int = 0


class _Unreadable(Exception):  # noqa: N818 - it never leaves this module
    """The rest of the document cannot be read."""


def read_nodes(lines: Lines, start: int, end: int) -> tuple[list[Node], list[SpecProblem], bool]:
    """The documents between two offsets that are not empty, every mistake, and whether all of it could be read."""
    roots: list[Node] = []
    reader = _Reader(lines, start, end)
    try:
        for root in reader.roots():
            if root.value is not None:
                roots.append(root)  # noqa: PERF401 - those before a mistake of syntax count
    except _Unreadable:
        return roots, reader.problems, False
    except yaml.MarkedYAMLError as error:
        return roots, [*reader.problems, _of_syntax(lines, start, end, error)], False
    return roots, reader.problems, True


class _Reader:
    """Turns events into nodes, collecting the mistakes that do not end the reading."""

    def __init__(self, lines: Lines, start: int, end: int) -> None:
        self.problems: list[SpecProblem] = []
        self._lines = lines
        self._start = start
        self._end = end
        self._loader = _LOADER(lines.text[start:end])
        self._anchors: dict[str, Node] = {}
        self._open: set[str] = set()
        self._count = 0

    def roots(self) -> Iterator[Node]:
        """The root of each document. Raises _Unreadable after it has reported why."""
        if found := _NOT_PRINTABLE.search(self._lines.text, self._start, self._end):
            self._give_up(found.start(), f"the character U+{ord(found[0]):04X} is not allowed in YAML")
        self._loader.get_event()
        while not self._loader.check_event(yaml.StreamEndEvent):
            self._loader.get_event()
            self._anchors, self._open, self._count = {}, set(), 0
            yield self._node(0)
            self._loader.get_event()

    def _node(self, depth: int, *, key: bool = False) -> Node:
        event = self._loader.get_event()
        at = self._start + event.start_mark.index
        self._count += 1
        if depth > SPECS.max_depth:
            self._give_up(at, f"nested deeper than {SPECS.max_depth} levels")
        if isinstance(event, yaml.AliasEvent):
            node = self._aliased(str(event.anchor), at, depth)
        else:
            if event.tag is not None:
                self._mistake(at, f"the tag {shown(event.tag)} is not allowed", "write the plain value")
            self._open.add(event.anchor or "")
            node = self._begun(event, at, depth, key=key)
            self._open.discard(event.anchor or "")
            self._anchors[event.anchor or ""] = node
        if self._count > SPECS.max_values:
            self._give_up(at, f"more than {SPECS.max_values} values in one document, aliases counted")
        return node

    def _begun(self, event: Any, at: int, depth: int, *, key: bool) -> Node:
        if isinstance(event, yaml.ScalarEvent):
            bare = event.implicit[0] and not event.style
            return Node(at=at, value=self._bare(event.value, at, key=key) if bare else event.value)
        before = self._count
        node = self._sequence(at, depth) if isinstance(event, yaml.SequenceStartEvent) else self._mapping(at, depth)
        self._loader.get_event()
        node.size += self._count - before
        return node

    def _aliased(self, name: str, at: int, depth: int) -> Node:
        if (found := self._anchors.get(name)) is None:
            inside = name in self._open
            message = f"*{name} stands inside &{name} itself" if inside else f"there is no &{name} above"
            self._mistake(at, message, "" if inside else "write text that begins with * in quotes")
            return Node(at=at, value=None)
        self._count += found.size - 1
        if depth + found.height > SPECS.max_depth:
            self._give_up(at, f"nested deeper than {SPECS.max_depth} levels, aliases counted")
        return Node(at=at, value=found.value, parts=found.parts, size=found.size, height=found.height)

    def _sequence(self, at: int, depth: int) -> Node:
        parts: list[Node] = []
        while not self._loader.check_event(yaml.SequenceEndEvent):
            parts.append(self._node(depth + 1))
        height = 1 + max((part.height for part in parts), default=0)
        return Node(at=at, value=[part.value for part in parts], parts=parts, height=height)

    def _mapping(self, at: int, depth: int) -> Node:
        own: dict[str, tuple[int, Node]] = {}
        merged: dict[str, tuple[int, Node]] = {}
        merge_at: int | None = None
        height = 0
        while not self._loader.check_event(yaml.MappingEndEvent):
            first = self._loader.peek_event()
            merges = isinstance(first, yaml.ScalarEvent) and first.value == "<<" and not first.style
            key = self._node(depth + 1, key=True)
            value = self._node(depth + 1)
            height = max(height, key.height, value.height)
            if merges:
                if merge_at is not None:
                    hint = "merge several mappings as one list: <<: [*one, *other]"
                    self._twice(key.at, "<<", merge_at, hint)
                merge_at = key.at
                for parts in self._mappings_in(value):
                    merged = parts | merged  # the earlier of two merged mappings wins
            elif isinstance(key.value, str):
                if key.value in own:
                    self._twice(key.at, key.value, own[key.value][0], "remove one of the two")
                own.setdefault(key.value, (key.at, value))
            else:  # reported at the mapping's own place: Jinja's {{ x }} is one mistake, not two
                hint = "write ${name} for a variable" if self._lines.text.startswith("{{", at) else ""
                self._mistake(at, "a key must be a word, not a list or a mapping", hint)
        parts = merged | own if merged else own
        values = {name: node.value for name, (_, node) in parts.items()}
        return Node(at=at, value=values, parts=parts, height=1 + height)

    def _mappings_in(self, node: Node) -> Iterator[dict[str, tuple[int, Node]]]:
        for part in node.parts if isinstance(node.parts, list) else [node]:
            if isinstance(part.parts, dict):
                yield part.parts
            else:
                self._mistake(part.at, "'<<' merges mappings only", "point it at a mapping")

    def _bare(self, word: str, at: int, *, key: bool) -> Any:
        if guess := ambiguous_as(word):
            hint = f"write {quoted(word)} for the text" + (", true or false for a boolean" * (guess == "a boolean"))
            self._mistake(at, f"{shown(word)} is read as {guess} by some programs and as text by others", hint)
            return word
        if key:
            return word
        try:
            value = meaning_of(word)
            return Spelled(word) if isinstance(value, float) and str(value) != word else value
        except OverflowError:
            self._mistake(at, f"{shown(word)} is too large a number", f"write {quoted(word)} for the text")
            return word

    def _twice(self, at: int, key: str, earlier: int, hint: str) -> None:
        line = self._lines.at(earlier)[0]
        self._mistake(at, f"duplicate key {shown(key)}; it stands already on line {line}", hint)

    def _mistake(self, at: int, message: str, hint: str = "") -> None:
        if len(self.problems) < SPECS.max_problems:
            self.problems.append(self._lines.problem(at, message, hint))

    def _give_up(self, at: int, message: str) -> NoReturn:
        self._mistake(at, message)
        raise _Unreadable


def _of_syntax(lines: Lines, start: int, end: int, error: yaml.MarkedYAMLError) -> SpecProblem:
    """What the parser says, with a hint; what is never closed is reported where it begins."""
    problem, context = str(error.problem or ""), str(error.context or "")
    mark = error.problem_mark or error.context_mark
    at = start + (mark.index if mark else 0)
    never_closed = problem in _NEVER_CLOSED or (problem in _NOT_CLOSED_YET and not lines.text[at:end].strip())
    if never_closed and error.context_mark:
        at, problem = start + error.context_mark.index, "this is never closed"
    elif problem == _NO_TOKEN and lines.text[at : at + 1] == "\t":
        problem = "a tab cannot indent"
    return lines.problem(at, f"not YAML: {problem or context}", _SYNTAX_HINTS.get(problem, ""))


_NO_TOKEN = "found character that cannot start any token"  # noqa: S105 - a parser's word
_NEVER_CLOSED = ("found unexpected end of stream", "found unexpected document indicator")
_NOT_CLOSED_YET = ("did not find expected ',' or ']'", "did not find expected ',' or '}'")
_SYNTAX_HINTS = {
    "a tab cannot indent": "use spaces",
    _NO_TOKEN: "write text that begins with this character in quotes",
    "mapping values are not allowed in this context": "write text with ': ' in it in quotes, or check the indentation",
    "found a tab character that violates indentation": "use spaces",
    "did not find expected <document start>": "begin the next document with ---",
    "could not find expected ':'": "write 'key: value', with a space after the colon",
    "did not find expected key": "check the indentation",
    "did not find expected '-' indicator": "check the indentation",
    "did not find expected ',' or ']'": "a comma or ] is missing before this",
    "did not find expected ',' or '}'": "a comma or } is missing before this",
    "found unknown escape character": "write a backslash twice, or use single quotes",
}
