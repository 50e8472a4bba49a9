"""What each document alone decides beyond its schema: one table of checks, gone through once.

To add a check: a function from a document to what is wrong in it, and a row of the kinds that it looks at.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec

from mikrom_reconcile.core.model.specs import SpecDocument
from mikrom_reconcile.core.parsing.documents import Diagnostic
from mikrom_reconcile.core.parsing.patterns import RESERVED
from mikrom_reconcile.core.parsing.variables import BUILT_IN_NAMES, names_in
from mikrom_reconcile.core.parsing.yaml_words import shown
from mikrom_reconcile.core.specs.images import BUILT_IN

Pointer = tuple[str | int, ...]


class SpecCheck(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the table: which kinds of documents are looked at, and what finds the problems of one."""

    name: str
    kinds: frozenset[str]
    problems: Callable[[SpecDocument], Iterator[Diagnostic]]


def document_flaws(documents: Iterable[SpecDocument]) -> Iterator[Diagnostic]:
    """What the checks find in these documents."""
    for document in documents:
        for check in CHECKS:
            if document.kind in check.kinds:
                yield from check.problems(document)


def _image_names(document: SpecDocument) -> Iterator[Diagnostic]:
    if document.name in BUILT_IN:
        message = f"the image {document.name} is built in; call this another name"
        yield Diagnostic(document=document, pointer=("metadata", "name"), message=message)


def _image_lookups(document: SpecDocument) -> Iterator[Diagnostic]:
    if names_in(document.body["spec"].get("boot_args", "")):
        hint = "write boot_args in the fleet's template, or $${ for the text"
        message = "an image looks no variables up: it is the same for every VM"
        yield Diagnostic(document=document, pointer=("spec", "boot_args"), message=message, hint=hint)


def _reserved_names(document: SpecDocument) -> Iterator[Diagnostic]:
    """Words with a meaning in patterns: whoever selects them would get more than what is called so."""
    metadata, spec = document.body["metadata"], document.body["spec"]
    named: list[tuple[Pointer, str]] = [
        (("metadata", "tags", at), tag) for at, tag in enumerate(metadata.get("tags", ()))
    ]
    named += [(("spec", word, name), name) for word in ("instances", "hosts", "groups")
              if isinstance(spec.get(word), dict) for name in spec[word]]  # fmt: skip
    named += [(("metadata", "name"), document.name)] if document.kind == "Fleet" else []
    for pointer, name in named:
        if name in RESERVED:
            message = f"{name} cannot be a name: it has a meaning in patterns"
            yield Diagnostic(document=document, pointer=pointer, message=message, key=pointer[-1] == name)


def _variable_names(document: SpecDocument) -> Iterator[Diagnostic]:
    for pointer, variables in _variables_in(document):
        for name in variables:
            if name in BUILT_IN_NAMES:
                message, hint = f"{name} is built in and cannot be set", "give the variable another name"
                yield Diagnostic(document=document, pointer=(*pointer, name), message=message, hint=hint, key=True)
            elif not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name):
                message, hint = f"{shown(name)} cannot be a variable's name", "write letters, digits and '_'"
                yield Diagnostic(document=document, pointer=(*pointer, name), message=message, hint=hint, key=True)


def _variables_in(document: SpecDocument) -> Iterator[tuple[Pointer, dict[str, Any]]]:
    if document.kind in {"GroupVars", "HostVars"}:
        yield (), document.body
        return
    spec = document.body["spec"]
    yield ("spec", "vars"), spec.get("vars", {})
    if document.kind == "Inventory":
        for word in ("hosts", "groups"):
            for name, entry in spec.get(word, {}).items():
                yield ("spec", word, name, "vars"), (entry or {}).get("vars", {})


def _whole_numbers(document: SpecDocument) -> Iterator[Diagnostic]:
    """JSON Schema takes 3.0 for a whole number."""
    spec = document.body["spec"]
    if isinstance(spec.get("replicas"), float):
        message = f"spec.replicas must be a whole number, not {spec['replicas']}"
        yield Diagnostic(document=document, pointer=("spec", "replicas"), message=message)
    for pointer, share in _shares(spec):
        if isinstance(share, float):
            message = f"{'.'.join(map(str, pointer))} must be a whole number or text, not {share}"
            yield Diagnostic(document=document, pointer=pointer, message=message)


def _shares(spec: dict[str, Any]) -> Iterator[tuple[Pointer, Any]]:
    yield ("spec", "prune", "max"), spec.get("prune", {}).get("max")
    serial = spec.get("rollout", {}).get("serial")
    sizes = enumerate(serial) if isinstance(serial, list) else [("", serial)]
    for number, share in sizes:
        yield ("spec", "rollout", "serial", *([] if number == "" else [number])), share


def _replicas_or_instances(document: SpecDocument) -> Iterator[Diagnostic]:
    spec = document.body["spec"]
    if ("replicas" in spec) == ("instances" in spec):
        found = "both" if "replicas" in spec else "neither"
        message = f"a fleet has either replicas or instances, and this has {found}"
        yield Diagnostic(document=document, pointer=("spec",), message=message)
    if "instances" in spec and "vm_name" in spec:
        message = "vm_name is for replicas; instances have names of their own"
        yield Diagnostic(document=document, pointer=("spec", "vm_name"), message=message, hint="remove it", key=True)


_FLEET, _IMAGE = frozenset({"Fleet"}), frozenset({"Image"})
_WITH_VARIABLES = frozenset({"Fleet", "Inventory", "GroupVars", "HostVars"})

CHECKS = (
    SpecCheck(name="image-name", kinds=_IMAGE, problems=_image_names),
    SpecCheck(name="image-lookup", kinds=_IMAGE, problems=_image_lookups),
    SpecCheck(name="reserved-name", kinds=frozenset({"Fleet", "Inventory"}), problems=_reserved_names),
    SpecCheck(name="variable-name", kinds=_WITH_VARIABLES, problems=_variable_names),
    SpecCheck(name="whole-number", kinds=_FLEET, problems=_whole_numbers),
    SpecCheck(name="replicas-or-instances", kinds=_FLEET, problems=_replicas_or_instances),
)
