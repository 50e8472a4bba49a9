"""A source tree to checked documents, or every mistake in it at once, each with its place and what to write instead."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import msgspec

from mikrom_reconcile.core.errors import SpecError
from mikrom_reconcile.core.model.desired import Policy, Share
from mikrom_reconcile.core.model.specs import SourceTree, SpecDocument, SpecProblem
from mikrom_reconcile.core.yaml_text import YamlDocument, place, read_documents

API_VERSION = "mikrom/v1"
DEFAULT_PROJECT = "default"
IMAGES = ("hello",)
"""Images that need no document of their own."""

NAME_LENGTH = 48
"""Longest name of a VM: it is part of socket paths, which have at most 107 bytes."""

Schemas = Mapping[str, str]
"""Kind to the text of its JSON Schema."""

_PLANNED = ("Inventory", "Network", "Image", "Refactor")


class FleetSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One Fleet document. `template` is as written; `expand` turns it into VMs."""

    document: SpecDocument
    name: str
    replicas: int
    template: dict[str, Any]
    policy: Policy


class Specs(msgspec.Struct, frozen=True, kw_only=True):
    """All that the specs say, fleets sorted by name. `whole`: a Project document stands among them."""

    revision: str
    project: str
    whole: bool
    fleets: tuple[FleetSpec, ...]


class _Located(msgspec.Struct, frozen=True, kw_only=True):
    """A document with the nodes that tell where its values stand, and the lines to quote."""

    document: SpecDocument
    yaml: YamlDocument
    lines: list[str]

    def problem(
        self, pointer: tuple[str | int, ...], message: str, hint: str = "", *, key: bool = False
    ) -> SpecProblem:
        """A problem with the value (or the key) at `pointer`."""
        line, column = place(self.yaml, pointer, key=key)
        return SpecProblem(
            path=self.document.path,
            line=line,
            column=column,
            pointer="".join(f"/{step}" for step in pointer),
            message=message,
            hint=hint,
            excerpt=self.lines[line - 1] if line <= len(self.lines) else "",
        )


def read_specs(tree: SourceTree, schemas: Schemas) -> Specs:
    """The specs in `tree`. Raises SpecError with every problem, sorted by place."""
    problems: list[SpecProblem] = []
    located: list[_Located] = []
    validators = _Validators(schemas)
    for file in tree.files:
        documents, mistakes = read_documents(file.path, file.text)
        problems += mistakes
        lines = file.text.splitlines()
        for document in documents:
            candidate = _locate(file.path, document, lines)
            found = list(_document_problems(candidate, validators))
            problems += found
            if not found:
                located.append(candidate)
    problems += _cross_checks(located)
    if problems:
        raise SpecError(_one_per_place(problems))
    return _specs(tree.revision, [item.document for item in located])


def documents_in(tree: SourceTree) -> int:
    """How many documents the tree holds, right or wrong."""
    return sum(len(read_documents(file.path, file.text)[0]) for file in tree.files)


def _locate(path: str, document: YamlDocument, lines: list[str]) -> _Located:
    body = document.value if isinstance(document.value, dict) else {}
    metadata = body.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    spec_document = SpecDocument(path=path, line=document.line, kind=str(body.get("kind")), name=str(name), body=body)
    return _Located(document=spec_document, yaml=document, lines=lines)


def _document_problems(item: _Located, validators: _Validators) -> Iterator[SpecProblem]:
    value = item.yaml.value
    if not isinstance(value, dict):
        yield item.problem((), "a document must be a mapping", "begin with apiVersion, kind and metadata")
        return
    if "kind" not in value:
        yield item.problem((), "kind is missing", f"one of {', '.join(validators.kinds)}")
        return
    kind = value["kind"]
    if kind not in validators.kinds:
        if kind in _PLANNED:
            yield item.problem(("kind",), f"kind {kind} is not implemented yet")
        else:
            yield item.problem(("kind",), f"unknown kind {kind!r}", _nearest(str(kind), validators.kinds))
        return
    for error in validators.of(kind).iter_errors(value):
        yield from _schema_problems(item, error)


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


def _schema_problems(item: _Located, error: Any) -> Iterator[SpecProblem]:
    pointer = tuple(error.absolute_path)
    where = ".".join(str(step) for step in pointer) or "the document"
    if error.validator == "additionalProperties":
        known = tuple(error.schema.get("properties", {}))
        for key in error.instance:
            if key not in known:
                hint = _nearest(str(key), known)
                yield item.problem((*pointer, key), f"unknown key {key!r} in {where}", hint, key=True)
    elif error.validator == "required":
        missing = next(key for key in error.validator_value if f"'{key}'" in error.message)
        yield item.problem(pointer, f"{missing} is missing in {where}", _described(error.schema, missing))
    else:
        yield item.problem(pointer, *_MESSAGES.get(error.validator, _other)(where, error))


def _wrong_type(where: str, error: Any) -> tuple[str, str]:
    types = error.validator_value if isinstance(error.validator_value, list) else [error.validator_value]
    wanted = " or ".join(_TYPE_WORDS[word] for word in types)
    return f"{where} must be {wanted}, not {_shown(error.instance)}", error.schema.get("description", "")


def _wrong_word(where: str, error: Any) -> tuple[str, str]:
    words = tuple(str(word) for word in error.validator_value)
    return f"{where} cannot be {_shown(error.instance)}", _nearest(str(error.instance), words)


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
}


def _cross_checks(items: Iterable[_Located]) -> Iterator[SpecProblem]:
    """Mistakes that no single document shows."""
    first: dict[tuple[str, str], _Located] = {}
    for item in items:
        document = item.document
        key = ("Project", "") if document.kind == "Project" else (document.kind, document.name)
        if (earlier := first.setdefault(key, item)) is not item:
            there = f"{earlier.document.path}:{earlier.document.line}"
            yield item.problem(("metadata", "name"), f"a second {document.kind} {document.name}; see {there}")
        if document.kind == "Fleet":
            yield from _fleet_problems(item)


def _fleet_problems(item: _Located) -> Iterator[SpecProblem]:
    spec = item.document.body["spec"]
    image = spec["template"]["image"]
    if image not in IMAGES:
        yield item.problem(("spec", "template", "image"), f"unknown image {image!r}", _nearest(image, IMAGES))
    longest = vm_name(item.document.name, max(0, spec["replicas"] - 1))
    if len(longest) > NAME_LENGTH:
        message = f"its VMs would have names of {len(longest)} characters ({longest})"
        yield item.problem(("metadata", "name"), message, f"a VM name has at most {NAME_LENGTH}")


def vm_name(fleet: str, index: int) -> str:
    """The name of a fleet's VM number `index`, from 0."""
    return f"{fleet}-{index:03d}"


def _specs(revision: str, documents: list[SpecDocument]) -> Specs:
    projects = [document.name for document in documents if document.kind == "Project"]
    fleets = [_fleet(document) for document in documents if document.kind == "Fleet"]
    return Specs(
        revision=revision,
        project=projects[0] if projects else DEFAULT_PROJECT,
        whole=bool(projects),
        fleets=tuple(sorted(fleets, key=lambda fleet: fleet.name)),
    )


def _fleet(document: SpecDocument) -> FleetSpec:
    spec = document.body["spec"]
    prune = spec.get("prune", {})
    policy = Policy()
    maximum: Share = prune.get("max", policy.prune_max)
    return FleetSpec(
        document=document,
        name=document.name,
        replicas=spec["replicas"],
        template=spec["template"],
        policy=Policy(prune_max=maximum, allow_empty=prune.get("allow_empty", policy.allow_empty)),
    )


def _one_per_place(problems: list[SpecProblem]) -> tuple[SpecProblem, ...]:
    """Sorted by place; where YAML and the schema both complain of one value, the first complaint is enough."""
    kept: dict[tuple[str, int, int], SpecProblem] = {}
    for problem in problems:
        kept.setdefault((problem.path, problem.line, problem.column), problem)
    return tuple(kept[key] for key in sorted(kept))


def _nearest(word: str, known: tuple[str, ...]) -> str:
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
