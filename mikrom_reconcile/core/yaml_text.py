"""YAML text to plain values whose type never depends on a guess, with a place in the file for each of them.

YAML 1.1 (PyYAML) and 1.2 (editors, other tools) read some bare words differently: `no`, `010`, `12:30`, `2026-11-22`.
Here each of those is an error that says so, so that a value means the same to everyone who reads it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec
import yaml

from mikrom_reconcile.core.model.specs import SpecProblem

MAX_DEPTH = 32
"""Deepest nesting; the deepest legal document has 8."""

MAX_NODES = 1_000_000
"""Values of one document, aliases counted each time they are used: what stops an alias bomb."""

_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)$")
_INT_LENGTH = 20  # more than 64 bits are no number of anything here
_FLOAT = re.compile(r"[-+]?(0|[1-9][0-9]*)?(\.[0-9]+)?([eE][-+]?[0-9]+)?$")
_WORDS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_GUESSES = {"bool": "a boolean", "int": "a number", "float": "a number", "timestamp": "a date"}
_PREFIX = "tag:yaml.org,2002:"


class YamlDocument(msgspec.Struct, frozen=True, kw_only=True):
    """One document: its value, and the line its value begins on, from 1."""

    line: int
    value: Any


class _Mistake(Exception):  # noqa: N818 - it never leaves this module
    def __init__(self, node: Any, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.node = node
        self.message = message
        self.hint = hint


def read_documents(path: str, text: str) -> tuple[list[YamlDocument], list[SpecProblem]]:
    """The documents of one file, empty ones left out, and everything that YAML itself makes wrong with them.

    A syntax error ends the file: what stands before it is read, what follows cannot be.
    """
    documents: list[YamlDocument] = []
    problems: list[SpecProblem] = []
    lines = text.splitlines()
    try:
        for root in yaml.compose_all(text, Loader=_LOADER):
            if _is_null(root):
                continue
            reading = _Reading()
            value = reading.value(root, 0)
            documents.append(YamlDocument(line=root.start_mark.line + 1, value=value))
            problems += [_problem(path, lines, m.node.start_mark, m.message, m.hint) for m in reading.mistakes]
    except _Mistake as mistake:
        problems.append(_problem(path, lines, mistake.node.start_mark, mistake.message, mistake.hint))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problems.append(_problem(path, lines, mark, f"not YAML: {error.problem or error.context}"))
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position)
        column = error.position - (text.rfind("\n", 0, error.position) + 1)
        message = f"not YAML: the character U+{ord(text[error.position]):04X} is not allowed"
        problems.append(SpecProblem(path=path, line=line + 1, column=column + 1, pointer="", message=message))
    except RecursionError:
        problems.append(
            SpecProblem(path=path, line=1, column=1, pointer="", message=f"nested deeper than {MAX_DEPTH} levels")
        )
    return documents, problems


def bare(text: str) -> bool | int | float | str:
    """What a bare word means that stands alone, as on a command line: a boolean, a number, else the text itself."""
    resolver: Any = yaml.resolver.Resolver()
    tag = resolver.resolve(yaml.ScalarNode, text, (True, False))
    value = _typed(tag[len(_PREFIX) :], text)
    return text if value is None else value


def _typed(kind: str, text: str) -> bool | int | float | None:
    """The value of a word that YAML takes for `kind`, if every program reads it so."""
    if kind == "bool":
        return _WORDS.get(text)
    if kind == "int" and _INT.match(text) and len(text) < _INT_LENGTH:
        return int(text)
    return float(text) if kind == "float" and _FLOAT.match(text) else None


class Places:
    """Where values stand in one file; made only for a file that has a mistake, since finding places is slow."""

    def __init__(self, text: str) -> None:
        self.lines = text.splitlines()
        self._roots: dict[int, Any] = {}
        try:
            for root in yaml.compose_all(text, Loader=_LOADER):
                if root is not None:
                    self._roots[root.start_mark.line + 1] = root
        except yaml.YAMLError:
            pass  # the documents before the syntax error have their places

    def find(self, document_line: int, pointer: tuple[str | int, ...], *, key: bool = False) -> tuple[int, int]:
        """Line and column, from 1, of the value at `pointer`, or of its key; of the nearest parent if it is absent."""
        node = self._roots[document_line]
        mark = node.start_mark
        for step in pointer:
            child = _child(node, step)
            if child is None:
                break
            key_node, node = child
            mark = key_node.start_mark if key else node.start_mark
        return mark.line + 1, mark.column + 1

    def line(self, number: int) -> str:
        """The text of a line, from 1; "" past the end."""
        return self.lines[number - 1] if number <= len(self.lines) else ""


class _Reading:
    """Turns nodes into values, collecting the mistakes that do not end the reading."""

    def __init__(self) -> None:
        self.mistakes: list[_Mistake] = []
        self._count = 0

    def value(self, node: Any, depth: int) -> Any:
        self._count += 1
        if self._count > MAX_NODES:
            raise _Mistake(node, f"more than {MAX_NODES} values in one document, aliases counted")
        if depth > MAX_DEPTH:
            raise _Mistake(node, f"nested deeper than {MAX_DEPTH} levels")
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        if not node.tag.startswith(_PREFIX):
            self.mistakes.append(_Mistake(node, f"the tag {node.tag} is not allowed", "write the plain value"))
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, depth + 1) for item in node.value]
        return self._mapping(node, depth)

    def _mapping(self, node: Any, depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        first: dict[str, int] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _PREFIX + "merge":
                for mapping in self._merged(value_node, depth):
                    merged = mapping | merged  # the earlier of two merged mappings wins
                continue
            key = self._key(key_node)
            if key in first:
                message = f"duplicate key {key!r}; it stands already on line {first[key]}"
                self.mistakes.append(_Mistake(key_node, message, "remove one of the two"))
                continue
            first[key] = key_node.start_mark.line + 1
            result[key] = self.value(value_node, depth + 1)
        return merged | result if merged else result

    def _merged(self, node: Any, depth: int) -> Iterator[dict[str, Any]]:
        parts = node.value if isinstance(node, yaml.SequenceNode) else [node]
        for part in parts:
            if isinstance(part, yaml.MappingNode):
                yield self.value(part, depth + 1)
            else:
                self.mistakes.append(_Mistake(part, "'<<' merges mappings only", "point it at a mapping"))

    def _key(self, node: Any) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise _Mistake(node, "a key must be a word, not a list or a mapping")
        return node.value if node.style else str(self._scalar(node))

    def _scalar(self, node: Any) -> Any:
        if not node.tag.startswith(_PREFIX):
            self.mistakes.append(_Mistake(node, f"the tag {node.tag} is not allowed", "write the plain value"))
            return node.value
        kind, text = node.tag[len(_PREFIX) :], node.value
        if kind == "null":
            return None
        value = _typed(kind, text)
        if value is not None:
            return value
        if kind in _GUESSES:
            hint = f'write "{text}" for the text' + (", true or false for a boolean" if kind == "bool" else "")
            message = f"{text!r} is read as {_GUESSES[kind]} by some programs and as text by others"
            self.mistakes.append(_Mistake(node, message, hint))
        return text


def _child(node: Any, step: str | int) -> tuple[Any, Any] | None:
    if isinstance(node, yaml.SequenceNode):
        if isinstance(step, int) and step < len(node.value):
            return node.value[step], node.value[step]
        return None
    if isinstance(node, yaml.MappingNode):
        for key_node, value_node in node.value:
            if key_node.value == step:
                return key_node, value_node
    return None


def _is_null(node: Any) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == _PREFIX + "null"


def _problem(path: str, lines: list[str], mark: Any, message: str, hint: str = "") -> SpecProblem:
    excerpt = lines[mark.line] if mark.line < len(lines) else ""
    return SpecProblem(
        path=path, line=mark.line + 1, column=mark.column + 1, pointer="", message=message, hint=hint, excerpt=excerpt
    )


_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
