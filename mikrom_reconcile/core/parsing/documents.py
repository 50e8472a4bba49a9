"""A source tree to documents that obey their schema, and every mistake in the others; also, which files are read. A
file is cut at its `---` lines, so that a mistake leaves other documents readable, and few are read slowly.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from mikrom_reconcile.core.model.documents import Diagnostic, SourceFile, SourceTree, SpecDocument, SpecProblem
from mikrom_reconcile.core.model.errors import SpecError
from mikrom_reconcile.core.parsing.schema_errors import Schemas, describe_value, nearest, schema_mistakes
from mikrom_reconcile.core.parsing.variables import dig
from mikrom_reconcile.core.parsing.yaml_words import SUSPECT, Lines, is_plain_text, plain, shown
from mikrom_reconcile.times_and_sizes import SPECS

if TYPE_CHECKING:
    from mikrom_reconcile.core.parsing.yaml_nodes import Node

_LEAD = re.compile(r"(?:---)?[ \t]*(?:(?:#[^\n]*)?\n[ \t]*)*")

# What the quick parser reads otherwise, or where lines end otherwise.
_MAYBE_UNUSUAL = ("&", "*", "!", "<<", "0x", "0o", "0b", "\r", "\x85", "\u2028", "\u2029", "\ufeff")
_UNUSUAL = re.compile("(?:^|[\\s\\[{,:])[&*!]|<<|0[xob]|[\r\x85\u2028\u2029\ufeff]")
_SLOWLY: Final = object()


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


def _usual(document: Any) -> bool:
    """Whether no word in it may have been a guess; floats do not tell how they were written. It goes by levels, in half
    the time of a recursion: this is a third of reading a document.
    """
    level = [document]
    for _ in range(SPECS.max_depth + 1):
        keys: list[Any] = []
        below: list[Any] = []
        for value in level:
            kind = type(value)
            if kind is str:
                if value[:1] in SUSPECT and not is_plain_text(value):
                    return False
            elif kind is dict:
                keys += value
                below += value.values()
            elif kind is list:
                below += value
            elif kind is float or (kind is int and not -SPECS.max_int < value < SPECS.max_int):
                return False
        if not {*map(type, keys)} <= {str}:
            return False
        level = below + keys
        if not level:
            return True
    return False


VARS_FOLDERS = {"group_vars": "GroupVars", "host_vars": "HostVars"}
"""Ansible's folders, and the kind of what is in them."""

SUFFIXES = (".yml", ".yaml")
_OF_VARIABLES = (*SUFFIXES, ".json")
_PROSE = (".md", ".rst", ".txt", "~")

_LOOKS_LIKE_ONE = re.compile(
    rb"\A(?:\xef\xbb\xbf)?(?:[ \t]*(?:#[^\n]*|---[^\n]*)?\r?\n)*[ \t{]*(?:\r?\n)?[ \t]*"
    rb"[\"']?(?:apiVersion|kind|metadata|spec)[\"']?[ \t]*:"
)

NOT_READ = "this looks like a spec, and files of that name are not read"
NOT_READ_HINT = "end its name with .yml, or begin it with a dot to leave it out"


def variables_of(path: str) -> tuple[str, str, str]:
    """Of a file of variables the kind, the name of the group or host, and the path below its folder if it has one."""
    steps = path.split("/")
    at = next((number for number in range(len(steps) - 2, -1, -1) if steps[number] in VARS_FOLDERS), None)
    if at is None:
        return "", "", ""
    name, below = steps[at + 1], "/".join(steps[at + 2 :])
    suffix = next((suffix for suffix in _OF_VARIABLES if not below and name.lower().endswith(suffix)), "")
    return VARS_FOLDERS[steps[at]], name[: len(name) - len(suffix)], below


def sorted_out(paths: Iterable[str]) -> Iterator[tuple[str, Literal["read", "refuse", "look"]]]:
    """What to do about each file that is not hidden: read it, refuse it, or look whether it `looks_like_a_spec`. What
    is missing is left alone: texts for people beside variables, and copies beside the file that they are of.
    """
    paths = sorted(paths)
    read = {path for path in paths if path.lower().endswith(SUFFIXES)}
    for path in paths:
        kind, _, below = ("", "", "") if path in read else variables_of(path)
        if path in read or (kind and path.lower().endswith(_OF_VARIABLES)):
            yield path, "read"
        elif _is_copy(path, read) or (kind and path.lower().endswith(_PROSE)):
            continue
        elif kind:
            yield path, "refuse" if "." in below.rpartition("/")[2] else "read"
        else:
            yield path, "look"


def _is_copy(path: str, read: set[str]) -> bool:
    """Whether it is `web.yml~`, `web.yml.bak` or `#web.yml#` beside `web.yml`."""
    folder, slash, name = path.rpartition("/")
    name = name.lstrip("#")
    return any(f"{folder}{slash}{name[:length]}" in read for length in range(4, len(name)))


def looks_like_a_spec(head: bytes) -> bool:
    """Whether a file that begins so may be somebody's spec."""
    return b"mikrom/v" in head and _LOOKS_LIKE_ONE.match(head) is not None


class Reading(msgspec.Struct, kw_only=True):
    """What could be read of a source tree. `documents` obey their schema, in file order; `misspelt` ones only have
    unknown keys, `broken` ones more than that, and `diagnostics` say why. `problems` are what YAML itself refused.
    `whole` says that no document is missing.
    """

    documents: list[SpecDocument] = []
    misspelt: list[SpecDocument] = []
    broken: list[SpecDocument] = []
    diagnostics: list[Diagnostic] = []
    problems: list[SpecProblem] = []
    whole: bool = True


def raise_for(found: Collection[Diagnostic], tree: SourceTree) -> None:
    """Raise SpecError if any mistakes were found."""
    if found:
        raise SpecError(dedupe_by_position(map(Places(tree).problem, found)))


def dedupe_by_position(problems: Iterable[SpecProblem]) -> tuple[SpecProblem, ...]:
    """Sorted by place; of several at one place the deepest. At most SPECS.max_problems, and one that says so."""
    kept: dict[tuple[str, int, int], SpecProblem] = {}
    for problem in sorted(problems, key=lambda problem: -problem.pointer.count("/")):
        kept.setdefault((problem.path, problem.line, problem.column), problem)
    reported = [kept[key] for key in sorted(kept)]
    if len(reported) > SPECS.max_problems:
        more = f"only the first {SPECS.max_problems} problems are told; this and others follow"
        reported[SPECS.max_problems :] = [msgspec.structs.replace(reported[SPECS.max_problems], message=more, hint="")]
    return tuple(reported)


def read_tree(tree: SourceTree, schemas: Schemas) -> Reading:
    """Everything in the tree, until there are more mistakes than are reported."""
    reading = Reading()
    for file in tree.files:
        for document, value in read_file(file, reading):
            mistakes = list(islice(_mistakes(document, value, schemas), SPECS.max_problems))
            reading.diagnostics += mistakes
            is_misspelt = all(each.key for each in mistakes) and isinstance(document.body.get("spec"), dict)
            alike = reading.misspelt if is_misspelt else reading.broken
            (alike if mistakes else reading.documents).append(document)
    return reading


def read_file(file: SourceFile, reading: Reading) -> Iterator[tuple[SpecDocument, Any]]:
    """The documents of one file but empty ones, each with its value; mistakes of YAML are added to `reading`."""
    lines = Lines(file.path, file.text)
    if file.text.count("\n---") >= SPECS.max_documents:
        too_many = f"more than {SPECS.max_documents} documents in one file"
        reading.problems.append(lines.problem(0, too_many, "split it"))
        reading.whole = False
        return
    line = 1
    for start, end in lines.cuts:
        if len(reading.problems) + len(reading.diagnostics) > SPECS.max_problems:
            reading.whole = False
            break
        chunk = file.text[start:end]
        value = _quickly(chunk)
        if value is _SLOWLY:
            roots, problems, whole = _slowly(lines, start, end)
            reading.problems += problems
            reading.whole = reading.whole and whole
            for root in roots:
                yield _spec_document(file.path, lines.at(root.at)[0], root.value, spelled=True), root.value
        elif value is not None:
            lead = _LEAD.match(chunk)
            yield _spec_document(file.path, line + (lead[0].count("\n") if lead else 0), value), value
        line += chunk.count("\n")


def _spec_document(path: str, line: int, value: Any, *, spelled: bool = False) -> SpecDocument:
    """`line` is where the value begins; numbers in it may be `Spelled`."""
    body = value if isinstance(value, dict) else {}
    kind, name, _ = variables_of(path)
    if kind:
        return SpecDocument(path=path, line=line, kind=kind, name=name, body=body)
    if spelled:
        body = plain(body, kept=_is_variables)
    name = dig(body, ("metadata", "name"))
    named = name if isinstance(name, str) else ""
    return SpecDocument(path=path, line=line, kind=str(body.get("kind")), name=named, body=body)


def _is_variables(at: tuple[str, ...]) -> bool:
    return at == ("spec", "vars") or (at[:1] == ("spec",) and at[3:] == ("vars",) and at[1] in {"hosts", "groups"})


def _mistakes(document: SpecDocument, value: Any, schemas: Schemas) -> Iterator[Diagnostic]:
    kind = document.kind
    if not isinstance(value, dict):
        yield Diagnostic(document, (), "a document must be a mapping", "begin with apiVersion, kind and metadata")
    elif variables_of(document.path)[0]:
        return
    elif "kind" not in value:
        yield Diagnostic(document, (), "kind is missing", f"known are {', '.join(sorted(schemas))}")
    elif kind not in schemas:
        named = isinstance(value["kind"], str)
        message = f"unknown kind {shown(kind)}" if named else f"kind cannot be {describe_value(value['kind'])}"
        yield Diagnostic(document, ("kind",), message, nearest(kind, sorted(schemas)))
    else:
        yield from schema_mistakes(document, schemas[kind])
