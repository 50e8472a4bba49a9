"""A source tree to documents that obey their schema, and every mistake in the others; also, which files are read."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from itertools import islice
from typing import Any, Literal

import msgspec

from mikrom_reconcile.core.model.documents import Diagnostic, SourceTree, SpecDocument, SpecProblem
from mikrom_reconcile.core.model.errors import SpecError
from mikrom_reconcile.core.parsing.schema_errors import Schemas, Validators, describe_value, nearest
from mikrom_reconcile.core.parsing.yaml_text import Places, YamlDocument, read_file
from mikrom_reconcile.core.parsing.yaml_words import plain, shown
from mikrom_reconcile.times_and_sizes import SPECS

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
    """What to do about each file that is not hidden: read it, refuse it, or look whether it `looks_like_a_spec`.

    What is missing is left alone: texts for people beside variables, and copies beside the file that they are of.
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
    """What could be read of a source tree.

    `documents` obey their schema, in file order; `broken` do not, and `diagnostics` say why. Of the broken ones, those
    that are `misspelt` only have unknown keys. `problems` are what YAML itself refused. `whole` says that no document
    is missing: every one is good or broken.
    """

    documents: list[SpecDocument] = []
    broken: list[SpecDocument] = []
    misspelt: list[SpecDocument] = []
    diagnostics: list[Diagnostic] = []
    problems: list[SpecProblem] = []
    whole: bool = True

    def is_full(self) -> bool:
        """Whether there are more mistakes than are reported."""
        return len(self.problems) + len(self.diagnostics) > SPECS.max_problems


def problems_of(found: Iterable[Diagnostic], tree: SourceTree) -> list[SpecProblem]:
    """The mistakes with their places; only the documents that have any are searched for them."""
    places = Places(tree)
    return [places.problem(each) for each in found]


def raise_for(found: Collection[Diagnostic], tree: SourceTree) -> None:
    """Raise SpecError if any mistakes were found."""
    if found:
        raise SpecError(dedupe_by_position(problems_of(found, tree)))


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
    validators = Validators(schemas)
    reading = Reading()
    for file in tree.files:
        found = read_file(file.path, file.text)
        reading.problems += found.problems
        reading.whole = reading.whole and found.whole
        for document in found.documents:
            if not reading.is_full():
                _add(reading, file.path, document, validators)
        if reading.is_full():
            reading.whole = False
            break
    return reading


def _add(reading: Reading, path: str, found: YamlDocument, validators: Validators) -> None:
    document = _spec_document(path, found)
    mistakes = list(islice(_mistakes(document, found.value, validators), SPECS.max_problems))
    (reading.broken if mistakes else reading.documents).append(document)
    if mistakes and all(each.key for each in mistakes) and isinstance(document.body.get("spec"), dict):
        reading.misspelt.append(document)
    reading.diagnostics += mistakes


def _spec_document(path: str, found: YamlDocument) -> SpecDocument:
    body = found.value if isinstance(found.value, dict) else {}
    kind, name, _ = variables_of(path)
    if kind:
        return SpecDocument(path=path, line=found.line, kind=kind, name=name, body=body)
    if found.spelled:
        body = plain(body, kept=_is_variables)
    metadata = body.get("metadata")
    name = str(metadata.get("name")) if isinstance(metadata, dict) else ""
    return SpecDocument(path=path, line=found.line, kind=str(body.get("kind")), name=name, body=body)


def _is_variables(path: tuple[str, ...]) -> bool:
    return path == ("spec", "vars") or (
        path[:1] == ("spec",) and path[3:] == ("vars",) and path[1] in {"hosts", "groups"}
    )


def _mistakes(document: SpecDocument, value: Any, validators: Validators) -> Iterator[Diagnostic]:
    kind = document.kind
    if not isinstance(value, dict):
        yield Diagnostic(document, (), "a document must be a mapping", "begin with apiVersion, kind and metadata")
    elif variables_of(document.path)[0]:
        return
    elif "kind" not in value:
        yield Diagnostic(document, (), "kind is missing", f"known are {', '.join(validators.kinds)}")
    elif kind == "Refactor":
        yield Diagnostic(document, ("kind",), f"kind {kind} is not implemented yet")
    elif kind not in validators.kinds:
        named = isinstance(value["kind"], str)
        message = f"unknown kind {shown(kind)}" if named else f"kind cannot be {describe_value(value['kind'])}"
        yield Diagnostic(document, ("kind",), message, nearest(kind, validators.kinds))
    else:
        yield from validators.mistakes(document)
