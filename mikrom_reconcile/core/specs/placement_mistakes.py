"""Mistakes in what decides placement: circles of groups, attributes that no host has, values that cannot be compared.

It only finds them; the schema has said before that everything has its form.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from itertools import islice
from typing import Any

from mikrom_reconcile.core.model.specs import SpecDocument
from mikrom_reconcile.core.parsing.documents import Diagnostic
from mikrom_reconcile.core.parsing.schema_errors import nearest
from mikrom_reconcile.core.parsing.variables import names_in
from mikrom_reconcile.core.parsing.yaml_words import shown
from mikrom_reconcile.core.specs.constraints import UNARY
from mikrom_reconcile.core.specs.inventory import Inventory
from mikrom_reconcile.limits import SPECS


def circle_flaws(document: SpecDocument) -> Iterator[Diagnostic]:
    """Groups of an Inventory that contain themselves."""
    groups = document.body["spec"].get("groups", {})
    children = {name: (group or {}).get("children", ()) for name, group in groups.items()}
    for circle in islice(_circles(children), SPECS.max_problems):
        pointer = ("spec", "groups", circle[-1], "children", children[circle[-1]].index(circle[0]))
        message = f"groups may not contain each other in a circle: {' > '.join((*circle, circle[0]))}"
        yield Diagnostic(document=document, pointer=pointer, message=message)


def _circles(children: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, ...]]:
    """Each circle from parent to child, beginning with its first group by name."""
    left = {name: list(inside) for name, inside in sorted(children.items())}
    while True:
        try:
            TopologicalSorter(left).prepare()
        except CycleError as error:
            found = error.args[1][:0:-1]
            start = found.index(min(found))
            circle = (*found[start:], *found[:start])
            left[circle[-1]].remove(circle[0])
            yield circle
        else:
            return


def placement_flaws(fleets: Iterable[SpecDocument], inventory: Inventory) -> Iterator[Diagnostic]:
    """What decides placement must be known before the host is, and look at what hosts have."""
    fleets = [document for document in fleets if "placement" in document.body["spec"]]
    if not fleets:
        return
    known = tuple(sorted({f"host.{name}" for host in inventory.hosts for name in inventory.facts(host)}))
    for document in fleets:
        for kind, entries in document.body["spec"]["placement"].items():
            for number, entry in enumerate(entries):
                pointer = ("spec", "placement", kind, number)
                attribute = entry["attribute"]
                if ".".join(attribute.split(".")[:2]) not in known:
                    message, hint = f"no host of the inventory has {shown(attribute)}", nearest(attribute, known)
                    yield Diagnostic(document=document, pointer=(*pointer, "attribute"), message=message, hint=hint)
                if complaint := _complaint(kind, entry):
                    yield Diagnostic(document=document, pointer=pointer, message=complaint)


def _complaint(kind: str, entry: dict[str, Any]) -> str:
    for field in ("weight", "max_skew"):
        if isinstance(entry.get(field), float):  # JSON Schema takes 3.0 for a whole number
            return f"{field} must be a whole number, not {entry[field]}"
    if kind == "spread":
        return ""
    operator, value = entry.get("operator", "="), entry.get("value")
    if isinstance(value, str) and names_in(value):
        return "what decides placement may not depend on the host and looks nothing up: write the value itself"
    if (value is None) != (operator in UNARY):
        return f"{operator} takes no value" if operator in UNARY else f"{operator} needs a value"
    if operator != "regexp":
        return ""
    try:
        re.compile(str(value))
    except re.error as error:
        return f"{shown(str(value))} is not a regular expression: {error}"
    return ""
