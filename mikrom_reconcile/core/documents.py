"""A source tree to documents that obey their schema, or every mistake in it, each with its place and a way out."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import msgspec

from mikrom_reconcile.core.model.specs import SourceTree, SpecDocument, SpecProblem
from mikrom_reconcile.core.yaml_text import Places, YamlDocument, read_documents

Schemas = Mapping[str, str]
"""Kind to the text of its JSON Schema."""

VARS_FOLDERS = {"group_vars": "GroupVars", "host_vars": "HostVars"}
"""Ansible's folders: a file in them holds the variables of the group or host that it is named after."""

_PLANNED = ("Network", "Image", "Refactor")


class Flaw(msgspec.Struct, frozen=True, kw_only=True):
    """A mistake in a document: at the value at `pointer`, or at its key. Its place in the file is found later."""

    document: SpecDocument
    pointer: tuple[str | int, ...]
    message: str
    hint: str = ""
    key: bool = False


def problems_of(flaws: Iterable[Flaw], tree: SourceTree) -> list[SpecProblem]:
    """The flaws with their places; only the files that have flaws are looked through for them."""
    places: dict[str, Places] = {}
    problems = []
    for flaw in flaws:
        path = flaw.document.path
        if path not in places:
            places[path] = places_of(flaw.document, tree)
        line, column = places[path].find(flaw.document.line, flaw.pointer, key=flaw.key)
        problems.append(
            SpecProblem(
                path=path,
                line=line,
                column=column,
                pointer="".join(f"/{step}" for step in flaw.pointer),
                message=flaw.message,
                hint=flaw.hint,
                excerpt=places[path].line(line),
            )
        )
    return problems


def places_of(document: SpecDocument, tree: SourceTree) -> Places:
    """Where the values of the file stand that `document` is in."""
    return Places(next(file.text for file in tree.files if file.path == document.path))


def read_tree(tree: SourceTree, schemas: Schemas) -> tuple[list[SpecDocument], list[Flaw], list[SpecProblem]]:
    """The documents that obey their schema, in file order; the flaws of the others; what YAML itself refused."""
    validators = _Validators(schemas)
    good: list[SpecDocument] = []
    flaws: list[Flaw] = []
    problems: list[SpecProblem] = []
    for file in tree.files:
        documents, mistakes = read_documents(file.path, file.text)
        problems += mistakes
        for yaml_document in documents:
            document = _spec_document(file.path, yaml_document)
            found = list(_document_flaws(document, yaml_document.value, validators))
            flaws += found
            if not found:
                good.append(document)
    return good, flaws, problems


def _spec_document(path: str, document: YamlDocument) -> SpecDocument:
    above, _, file_name = path.rpartition("/")
    folder, stem = above.rpartition("/")[2], file_name.rpartition(".")[0]
    body = document.value if isinstance(document.value, dict) else {}
    if folder in VARS_FOLDERS:
        return SpecDocument(path=path, line=document.line, kind=VARS_FOLDERS[folder], name=stem, body=body)
    metadata = body.get("metadata")
    name = str(metadata.get("name")) if isinstance(metadata, dict) else ""
    return SpecDocument(path=path, line=document.line, kind=str(body.get("kind")), name=name, body=body)


def _document_flaws(document: SpecDocument, value: Any, validators: _Validators) -> Iterator[Flaw]:
    if not isinstance(value, dict):
        hint = "begin with apiVersion, kind and metadata"
        yield Flaw(document=document, pointer=(), message="a document must be a mapping", hint=hint)
    elif document.kind in VARS_FOLDERS.values():
        return
    elif "kind" not in value:
        yield Flaw(document=document, pointer=(), message="kind is missing", hint=", ".join(validators.kinds))
    elif document.kind not in validators.kinds:
        planned = document.kind in _PLANNED
        message = f"kind {document.kind} is not implemented yet" if planned else f"unknown kind {value['kind']!r}"
        hint = "" if planned else nearest(document.kind, validators.kinds)
        yield Flaw(document=document, pointer=("kind",), message=message, hint=hint)
    else:
        for error in validators.of(document.kind).iter_errors(value):
            yield from _schema_flaws(document, error)


class _Validators:
    """One compiled validator per kind, made when it is first needed."""

    def __init__(self, schemas: Schemas) -> None:
        self._schemas = schemas
        self._compiled: dict[str, Any] = {}
        self.kinds = tuple(sorted(schemas))

    def of(self, kind: str) -> Any:
        if kind not in self._compiled:
            from jsonschema import Draft202012Validator  # noqa: PLC0415 - 85 ms that `get vms` need not pay

            self._compiled[kind] = Draft202012Validator(json.loads(self._schemas[kind]))
        return self._compiled[kind]


def _schema_flaws(document: SpecDocument, error: Any) -> Iterator[Flaw]:
    pointer = tuple(error.absolute_path)
    where = ".".join(str(step) for step in pointer) or "the document"
    if error.validator == "additionalProperties":
        known = tuple(error.schema.get("properties", {}))
        for key in error.instance:
            if key not in known:
                message, hint = f"unknown key {key!r} in {where}", nearest(str(key), known)
                yield Flaw(document=document, pointer=(*pointer, key), message=message, hint=hint, key=True)
    elif error.validator == "required":
        missing = next(key for key in error.validator_value if f"'{key}'" in error.message)
        hint = _described(error.schema, missing)
        yield Flaw(document=document, pointer=pointer, message=f"{missing} is missing in {where}", hint=hint)
    else:
        message, hint = _MESSAGES.get(error.validator, _other)(where, error)
        yield Flaw(document=document, pointer=pointer, message=message, hint=hint)


def _wrong_type(where: str, error: Any) -> tuple[str, str]:
    types = error.validator_value if isinstance(error.validator_value, list) else [error.validator_value]
    wanted = " or ".join(_TYPE_WORDS[word] for word in types)
    return f"{where} must be {wanted}, not {_shown(error.instance)}", error.schema.get("description", "")


def _wrong_word(where: str, error: Any) -> tuple[str, str]:
    words = tuple(str(word) for word in error.validator_value)
    return f"{where} cannot be {_shown(error.instance)}", nearest(str(error.instance), words)


def _wrong_constant(where: str, error: Any) -> tuple[str, str]:
    return f"{where} cannot be {_shown(error.instance)}", f"write {error.validator_value}"


def _wrong_pattern(where: str, error: Any) -> tuple[str, str]:
    hint = _PATTERN_HINTS.get(error.validator_value, f"it must match {error.validator_value}")
    return f"{where} cannot be {_shown(error.instance)}", hint


def _out_of_range(where: str, error: Any) -> tuple[str, str]:
    low, high = error.schema.get("minimum"), error.schema.get("maximum")
    limits = f"from {low} up" if high is None else f"from {low} to {high}"
    return f"{where} is {error.instance}; it must be {limits}", ""


def _other(where: str, error: Any) -> tuple[str, str]:
    return f"{where}: {error.message}"[:300], error.schema.get("description", "")


_MESSAGES: dict[str, Callable[[str, Any], tuple[str, str]]] = {
    "type": _wrong_type,
    "enum": _wrong_word,
    "const": _wrong_constant,
    "pattern": _wrong_pattern,
    "minimum": _out_of_range,
    "maximum": _out_of_range,
}
_TYPE_WORDS = {
    "object": "a mapping",
    "array": "a list",
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "null": "empty",
}
_PATTERN_HINTS = {
    "^[a-z0-9]([a-z0-9-]{0,46}[a-z0-9])?$": "up to 48 of a-z, 0-9 and '-', a letter or digit at both ends",
    "^(100|[0-9]{1,2})%$": "a number of VMs, or a percentage from 0% to 100%",
    "^[ -~]*$": "printable ASCII only",
    "^\\$\\{[^}]+\\}$": "a whole number, or a ${variable}",
    "^([0-9]{1,6}(ms|s|m|h|d)|\\$\\{[^}]+\\})$": "a whole number and a unit: 250ms, 10s, 5m, 1h, 2d",
}


def nearest(word: str, known: tuple[str, ...]) -> str:
    """A hint: the known word that `word` may have been meant for, or all of them."""
    close = difflib.get_close_matches(word, known, n=1)
    if close:
        return f"did you mean {close[0]}?"
    return f"known are {', '.join(known)}" if known else ""


def _described(schema: Any, key: str) -> str:
    entry = schema.get("properties", {}).get(key, {})
    return entry.get("description") or (f"write {key}: {entry['const']}" if "const" in entry else "")


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"
