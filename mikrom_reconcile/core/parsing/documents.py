"""A source tree to documents that obey their schema, or every mistake in it, each with its place and a way out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import islice
from typing import Any

import msgspec

from mikrom_reconcile.core.model.specs import SourceFile, SourceTree, SpecDocument, SpecProblem
from mikrom_reconcile.core.parsing.schema_errors import Complaint, complaints, describe_value, error_validator, nearest
from mikrom_reconcile.core.parsing.spec_files import variables_of
from mikrom_reconcile.core.parsing.yaml_text import Places, YamlDocument, read_file
from mikrom_reconcile.core.parsing.yaml_words import Mistake, plain, shown
from mikrom_reconcile.limits import SPECS

Schemas = Mapping[str, str]
"""Kind to the text of its JSON Schema."""

_PLANNED = ("Refactor",)


class Diagnostic(msgspec.Struct, frozen=True, kw_only=True):
    """A mistake in a document: at the value at `pointer`, or at its key. Its place in the file is found later."""

    document: SpecDocument
    pointer: tuple[str | int, ...]
    message: str
    hint: str = ""
    key: bool = False


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """What could be read of a source tree.

    `documents` obey their schema, in file order; `broken` do not, and `flaws` say why. Of the broken ones, those that
    are `misspelt` only have keys too many. `problems` are what YAML itself refused. `whole` says that no document is
    missing: every one is good or broken.
    """

    documents: list[SpecDocument]
    broken: list[SpecDocument]
    misspelt: list[SpecDocument]
    flaws: list[Diagnostic]
    problems: list[SpecProblem]
    whole: bool

    def mistakes(self) -> int:
        """How many were found so far."""
        return len(self.problems) + len(self.flaws)


def problems_of(flaws: Iterable[Diagnostic], tree: SourceTree) -> list[SpecProblem]:
    """The flaws with their places; only the documents that have flaws are looked through for them."""
    places: dict[str, Places] = {}
    problems = []
    for flaw in flaws:
        path = flaw.document.path
        if path not in places:
            places[path] = places_of(flaw.document, tree)
        at = places[path].offset(flaw.document.line, flaw.pointer, key=flaw.key)
        pointer = "".join(f"/{step}" for step in flaw.pointer)
        problems.append(places[path].lines.problem(Mistake(at=at, message=flaw.message, hint=flaw.hint), pointer))
    return problems


def places_of(document: SpecDocument, tree: SourceTree) -> Places:
    """Where everything in the document's file stands; slow, so make it only to tell somebody."""
    return Places(document.path, next(file.text for file in tree.files if file.path == document.path))


def read_tree(tree: SourceTree, schemas: Schemas) -> Reading:
    """Everything in the tree, until more mistakes are found than anybody reads."""
    validators = _Validators(schemas)
    reading = Reading(documents=[], broken=[], misspelt=[], flaws=[], problems=[], whole=True)
    for file in tree.files:
        reading = _with_file(reading, file, validators)
        if reading.mistakes() > SPECS.max_problems:
            return msgspec.structs.replace(reading, whole=False)
    return reading


def _with_file(reading: Reading, file: SourceFile, validators: _Validators) -> Reading:
    found = read_file(file.path, file.text)
    reading.problems.extend(found.problems)
    for yaml_document in found.documents:
        document = _spec_document(file.path, yaml_document)
        value = document.body if isinstance(yaml_document.value, dict) else yaml_document.value
        flaws = list(islice(_flaws(document, value, validators), SPECS.max_problems))
        (reading.broken if flaws else reading.documents).append(document)
        if flaws and all(flaw.key for flaw in flaws) and isinstance(document.body.get("spec"), dict):
            reading.misspelt.append(document)
        reading.flaws.extend(flaws)
        if reading.mistakes() > SPECS.max_problems:
            break
    return msgspec.structs.replace(reading, whole=reading.whole and found.whole)


def _spec_document(path: str, document: YamlDocument) -> SpecDocument:
    body = document.value if isinstance(document.value, dict) else {}
    kind, name, _ = _variables_of(path)
    if kind:
        return SpecDocument(path=path, line=document.line, kind=kind, name=name, body=body)
    if document.spelled:
        body = plain(body, kept=_is_variables)
    metadata = body.get("metadata")
    name = str(metadata.get("name")) if isinstance(metadata, dict) else ""
    return SpecDocument(path=path, line=document.line, kind=str(body.get("kind")), name=name, body=body)


def _is_variables(path: tuple[str, ...]) -> bool:
    """Whether variables stand at `path` of a Fleet or an Inventory."""
    return path == ("spec", "vars") or (
        path[:1] == ("spec",) and path[3:] == ("vars",) and path[1] in {"hosts", "groups"}
    )


_variables_of = lru_cache(maxsize=1)(variables_of)  # one file after another


def _flaws(document: SpecDocument, value: Any, validators: _Validators) -> Iterator[Diagnostic]:
    if isinstance(value, dict) and _variables_of(document.path)[0]:
        return
    for complaint in _complaints(document.kind, value, validators):
        yield Diagnostic(
            document=document,
            pointer=complaint.pointer,
            message=complaint.message,
            hint=complaint.hint,
            key=complaint.key,
        )


def _complaints(kind: str, value: Any, validators: _Validators) -> Iterator[Complaint]:
    if not isinstance(value, dict):
        hint = "begin with apiVersion, kind and metadata"
        yield Complaint(pointer=(), message="a document must be a mapping", hint=hint)
    elif "kind" not in value:
        yield Complaint(pointer=(), message="kind is missing", hint=f"known are {', '.join(validators.kinds)}")
    elif kind in _PLANNED:
        yield Complaint(pointer=("kind",), message=f"kind {kind} is not implemented yet")
    elif kind not in validators.kinds:
        written = value["kind"]
        message = (
            f"unknown kind {shown(kind)}" if isinstance(written, str) else f"kind cannot be {describe_value(written)}"
        )
        yield Complaint(pointer=("kind",), message=message, hint=nearest(kind, validators.kinds))
    elif not validators.accept(kind, value):
        yield from validators.complaints(kind, value)


class _Validators:
    """Of each kind a compiled validator, and one that can say why; made when they are first needed."""

    def __init__(self, schemas: Schemas) -> None:
        self._schemas = schemas
        self._compiled: dict[str, Any] = {}
        self._telling: dict[str, Any] = {}
        self.kinds = tuple(sorted(schemas))

    def accept(self, kind: str, value: Any) -> bool:
        """Whether `value` obeys the schema of `kind`."""
        if kind not in self._compiled:
            import jsonschema_rs  # noqa: PLC0415 - 27 ms that `get vms` need not pay

            self._compiled[kind] = jsonschema_rs.Draft202012Validator(json.loads(self._schemas[kind]))
        accepted: bool = self._compiled[kind].is_valid(value)
        return accepted

    def complaints(self, kind: str, value: Any) -> Iterator[Complaint]:
        """What is wrong with a `value` that was not accepted."""
        if kind not in self._telling:
            self._telling[kind] = error_validator(json.loads(self._schemas[kind]))
        return complaints(self._telling[kind], value)
