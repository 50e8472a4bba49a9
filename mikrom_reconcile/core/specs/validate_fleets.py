"""The checks of Fleet documents beyond their schema: rows of the table in `validate.py`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from mikrom_reconcile.core.model.specs import Diagnostic, SpecDocument
from mikrom_reconcile.core.parsing.patterns import EVERY, PatternError
from mikrom_reconcile.core.parsing.schema_errors import nearest
from mikrom_reconcile.core.parsing.variables import names_in
from mikrom_reconcile.core.parsing.yaml_words import shown
from mikrom_reconcile.core.specs.inventory import UNARY, Inventory
from mikrom_reconcile.core.specs.references import Documents

Pointer = tuple[str | int, ...]


def whole_numbers(document: SpecDocument, known: Documents) -> Iterator[Diagnostic]:
    """JSON Schema takes 3.0 for a whole number."""
    del known
    spec = document.body["spec"]
    serial = spec.get("rollout", {}).get("serial")
    numbers: list[tuple[Pointer, Any]] = [
        (("replicas",), spec.get("replicas")),
        (("prune", "max"), spec.get("prune", {}).get("max")),
        *([(("rollout", "serial", number), size) for number, size in enumerate(serial)]
          if isinstance(serial, list) else [(("rollout", "serial"), serial)]),
    ]  # fmt: skip
    for pointer, value in numbers:
        if isinstance(value, float):
            wanted = "a whole number" if pointer == ("replicas",) else "a whole number or text"
            message = f"spec.{'.'.join(map(str, pointer))} must be {wanted}, not {value}"
            yield Diagnostic(document, ("spec", *pointer), message)


def replicas_or_instances(document: SpecDocument, known: Documents) -> Iterator[Diagnostic]:
    """A fleet has one of them, and names only replicas by a rule."""
    del known
    spec = document.body["spec"]
    if ("replicas" in spec) == ("instances" in spec):
        found = "both" if "replicas" in spec else "neither"
        message = f"a fleet has either replicas or instances, and this has {found}"
        yield Diagnostic(document, ("spec",), message)
    if "instances" in spec and "vm_name" in spec:
        message = "vm_name is for replicas; instances have names of their own"
        yield Diagnostic(document, ("spec", "vm_name"), message, "remove it", key=True)


def images(document: SpecDocument, known: Documents) -> Iterator[Diagnostic]:
    """Every image that is written without variables is one that is there."""
    spec, names = document.body["spec"], known.images
    places: list[tuple[Pointer, dict[str, Any]]] = [(("spec", "template"), spec.get("template", {}))]
    places += [(("spec", "overrides", number), entry) for number, entry in enumerate(spec.get("overrides", ()))]
    places += [(("spec", "instances", name), fields or {}) for name, fields in spec.get("instances", {}).items()]
    for pointer, fields in places:
        image = fields.get("image")
        if image is not None and image not in names and not names_in(image):
            message = f"unknown image {shown(image)}"
            yield Diagnostic(document, (*pointer, "image"), message, nearest(image, names))


def hosts(document: SpecDocument, known: Documents) -> Iterator[Diagnostic]:
    """The pattern of a fleet selects hosts, and the host of an instance is one."""
    spec, inventory = document.body["spec"], known.inventory
    if "hosts" in spec and (mistake := _pattern_mistake(spec["hosts"], inventory)):
        yield Diagnostic(document, ("spec", "hosts"), *mistake)
    for name, fields in spec.get("instances", {}).items():
        host = (fields or {}).get("host")
        if host is not None and host not in known.hosts:
            mistake = f"the inventory has no host {shown(host)}", nearest(host, known.hosts)
            yield Diagnostic(document, ("spec", "instances", name, "host"), *(mistake if inventory else _NO_INVENTORY))


_NO_INVENTORY = "there is no Inventory, so no host can be named", "add one, or leave this out"


def _pattern_mistake(pattern: str, inventory: Inventory | None) -> tuple[str, str] | None:
    if inventory is None:
        return None if pattern in EVERY else _NO_INVENTORY
    try:
        chosen = inventory.select(pattern)
    except PatternError as error:
        return str(error), nearest(error.term, (*inventory.hosts, *inventory.groups))
    return None if chosen else (f"{shown(pattern)} selects no host", "")


def placement(document: SpecDocument, known: Documents) -> Iterator[Diagnostic]:
    """What decides placement must be known before the host is, and look at what hosts have."""
    for kind, entries in document.body["spec"].get("placement", {}).items():
        for number, entry in enumerate(entries):
            pointer = ("spec", "placement", kind, number)
            attribute = entry["attribute"]
            if ".".join(attribute.split(".")[:2]) not in known.attributes:
                message = f"no host of the inventory has {shown(attribute)}"
                yield Diagnostic(document, (*pointer, "attribute"), message, nearest(attribute, known.attributes))
            if mistake := _entry_mistake(kind, entry):
                yield Diagnostic(document, pointer, mistake)


def _entry_mistake(kind: str, entry: dict[str, Any]) -> str:
    operator, value = entry.get("operator", "="), entry.get("value")
    if number := next((field for field in ("weight", "max_skew") if isinstance(entry.get(field), float)), ""):
        return f"{number} must be a whole number, not {entry[number]}"
    if kind == "spread":
        return ""
    if isinstance(value, str) and names_in(value):
        return "what decides placement may not depend on the host and looks nothing up: write the value itself"
    if (value is None) != (operator in UNARY):
        return f"{operator} takes no value" if operator in UNARY else f"{operator} needs a value"
    try:
        re.compile(str(value) if operator == "regexp" else "")
    except re.error as error:
        return f"{shown(str(value))} is not a regular expression: {error}"
    return ""
