"""The documents of a file as plain values, and the places of those values.

A file is cut at its `---` lines, so that a mistake leaves other documents readable, and few are read slowly.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import msgspec

from mikrom_reconcile.core.model.documents import Diagnostic, SourceTree, SpecDocument, SpecProblem
from mikrom_reconcile.core.parsing.yaml_words import SUSPECT, Lines, is_plain_text
from mikrom_reconcile.times_and_sizes import SPECS

if TYPE_CHECKING:
    from mikrom_reconcile.core.parsing.yaml_nodes import Node

_LEAD = re.compile(r"(?:---)?[ \t]*(?:(?:#[^\n]*)?\n[ \t]*)*")

# What the quick parser reads otherwise, or where lines end otherwise.
_MAYBE_UNUSUAL = ("&", "*", "!", "<<", "0x", "0o", "0b", "\r", "\x85", "\u2028", "\u2029", "\ufeff")
_UNUSUAL = re.compile("(?:^|[\\s\\[{,:])[&*!]|<<|0[xob]|[\r\x85\u2028\u2029\ufeff]")
_SLOWLY: Final = object()


class YamlDocument(msgspec.Struct, frozen=True, kw_only=True):
    """One document: its value, and the line its value begins on, from 1. `spelled`: numbers in it may be `Spelled`."""

    line: int
    value: Any
    spelled: bool = False


class YamlFile(msgspec.Struct, kw_only=True):
    """The documents of a file, empty ones left out, and what YAML itself makes wrong with them.

    `whole` says that every document could be read, mistakes or not.
    """

    documents: list[YamlDocument]
    problems: list[SpecProblem]
    whole: bool


def read_file(path: str, text: str) -> YamlFile:
    """The documents of one file, and every mistake of YAML in it."""
    lines = Lines(path, text)
    if text.count("\n---") >= SPECS.max_documents:
        too_many = lines.problem(0, f"more than {SPECS.max_documents} documents in one file", "split it")
        return YamlFile(documents=[], problems=[too_many], whole=False)
    found = YamlFile(documents=[], problems=[], whole=True)
    line = 1
    for start, end in lines.cuts:
        chunk = text[start:end]
        value = _quickly(chunk)
        if value is _SLOWLY:
            roots, problems, whole = _slowly(lines, start, end)
            found.documents += [YamlDocument(line=lines.at(it.at)[0], value=it.value, spelled=True) for it in roots]
            found.problems += problems
            found.whole = found.whole and whole
            if len(found.problems) >= SPECS.max_problems:
                found.whole = False
                break
        elif value is not None:
            lead = _LEAD.match(chunk)
            found.documents.append(YamlDocument(line=line + (lead[0].count("\n") if lead else 0), value=value))
        line += chunk.count("\n")
    return found


class Places:
    """Where values stand in a tree. Documents are read slowly for it, but only those that are asked about."""

    def __init__(self, tree: SourceTree) -> None:
        self._lines = {file.path: Lines(file.path, file.text) for file in tree.files}
        self._roots: dict[tuple[str, int], list[Node]] = {}

    def problem(self, found: Diagnostic) -> SpecProblem:
        """A mistake with its place."""
        at = self._offset(found.document, found.pointer, key=found.key)
        pointer = "".join(f"/{step}" for step in found.pointer)
        return self._lines[found.document.path].problem(at, found.message, found.hint, pointer)

    def find(self, document: SpecDocument, pointer: tuple[str | int, ...]) -> tuple[int, int]:
        """Line and column, from 1, of the value at `pointer`, or of its nearest parent."""
        return self._lines[document.path].at(self._offset(document, pointer))

    def _offset(self, document: SpecDocument, pointer: tuple[str | int, ...], *, key: bool = False) -> int:
        """Where the value at `pointer` begins, or its key; that of the nearest parent if it is absent."""
        node = self._root(document)
        at = node.at
        for step in pointer:
            if isinstance(node.parts, dict) and step in node.parts:
                key_at, node = node.parts[str(step)]
            elif isinstance(node.parts, list) and isinstance(step, int) and step < len(node.parts):
                key_at = node.at
                node = node.parts[step]
            else:
                break
            at = key_at if key else node.at
        return at

    def _root(self, document: SpecDocument) -> Node:
        lines = self._lines[document.path]
        number = lines.cut_of(document.line)
        if (roots := self._roots.get((document.path, number))) is None:
            roots = self._roots[document.path, number] = _slowly(lines, *lines.cuts[number])[0]
        return next((root for root in roots if lines.at(root.at)[0] == document.line), roots[0])


def _slowly(lines: Lines, start: int, end: int) -> tuple[list[Node], list[SpecProblem], bool]:
    from mikrom_reconcile.core.parsing.yaml_nodes import read_nodes  # noqa: PLC0415 - PyYAML: 17 ms for the unusual only

    return read_nodes(lines, start, end)


def _quickly(chunk: str) -> Any:
    """The value of a document that both parsers read alike, else `_SLOWLY`."""
    opened = chunk.count("[") + chunk.count("{")
    if len(chunk) > SPECS.max_values or opened > SPECS.max_brackets:
        return _SLOWLY
    if any(mark in chunk for mark in _MAYBE_UNUSUAL) and _UNUSUAL.search(chunk):
        return _SLOWLY
    import ryaml  # noqa: PLC0415 - 10 ms that a command without specs need not pay

    try:
        value = ryaml.loads(chunk)
    except ValueError:
        return _SLOWLY
    return value if _usual(value) else _SLOWLY


def _usual(value: Any, depth: int = 0) -> bool:
    """Whether no word in it may have been a guess; floats do not tell how they were written."""
    kind = type(value)
    if kind is str:
        return value[:1] not in SUSPECT or is_plain_text(value)
    if kind is dict:
        keys = all(type(key) is str and _usual(key) for key in value)
        return keys and depth < SPECS.max_depth and all(_usual(item, depth + 1) for item in value.values())
    if kind is list:
        return depth < SPECS.max_depth and all(_usual(item, depth + 1) for item in value)
    return kind is not float and (kind is not int or -SPECS.max_int < value < SPECS.max_int)
