"""What a schema cannot see in documents: one table of checks, run once over all of them.

To add a check: a function from a document, and what is known of the others, to what is wrong in it, and a row. Checks
of fleets are in `validate_fleets.py`, those of networks beside them. What VMs come out as is checked by
`validate_vms.py`; `warnings.py` warns of what has no effect.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from graphlib import CycleError, TopologicalSorter
from itertools import islice
from typing import Any, Final, Literal

import msgspec

from mikrom_reconcile.core.model.specs import Diagnostic, SpecDocument
from mikrom_reconcile.core.parsing.documents import variables_of
from mikrom_reconcile.core.parsing.patterns import RESERVED
from mikrom_reconcile.core.parsing.schema_errors import nearest
from mikrom_reconcile.core.parsing.variables import BUILT_IN_NAMES, names_in
from mikrom_reconcile.core.parsing.yaml_words import shown
from mikrom_reconcile.core.specs import validate_fleets
from mikrom_reconcile.core.specs.images import BUILT_IN, root_disk_flaw
from mikrom_reconcile.core.specs.networks import network_mistakes
from mikrom_reconcile.core.specs.references import GOOD, MISSPELT, NAMED, Documents, has_name, identity
from mikrom_reconcile.times_and_sizes import SPECS

Pointer = tuple[str | int, ...]


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One row: which kinds of documents are looked at (none: all), and what finds the problems of one.

    `state` is how much of a document must have been readable, `needs` says what must be known of the others.
    """

    rule: str
    problems: Callable[[SpecDocument, Documents], Iterator[Diagnostic]]
    kinds: frozenset[str] = frozenset()
    state: int = GOOD
    needs: Literal["", "hosts_known", "images_known"] = ""


def validate(known: Documents) -> Iterator[Diagnostic]:
    """What the checks find in all documents."""
    checks = [check for check in CHECKS if not check.needs or getattr(known, check.needs)]

    @cache
    def checks_of(kind: str, state: int) -> list[Check]:
        return [check for check in checks if state >= check.state and (not check.kinds or kind in check.kinds)]

    for state, documents in known.by_state.items():
        for document in documents:
            for check in checks_of(document.kind, state):
                yield from check.problems(document, known)


def _duplicates(document: SpecDocument, known: Documents) -> Iterator[Diagnostic]:
    if not has_name(document):
        return
    first = known.first[identity(document)]
    in_one_folder = first.path != document.path and all(variables_of(each.path)[2] for each in (first, document))
    if first is not document and not in_one_folder:
        message = f"a second {document.kind} {document.name}; the first is {first.path}:{first.line}"
        yield Diagnostic(document, () if document.kind.endswith("Vars") else ("metadata", "name"), message)


def _image(document: SpecDocument, known: Documents) -> Iterator[Diagnostic]:
    del known
    if document.name in BUILT_IN:
        message = f"the image {document.name} is built in; call this another name"
        yield Diagnostic(document, ("metadata", "name"), message)
    rootfs = document.body["spec"].get("rootfs")
    if rootfs is not None and (flaw := root_disk_flaw(rootfs)):
        yield Diagnostic(document, ("spec", "rootfs"), flaw)
    if names_in(document.body["spec"].get("boot_args", "")):
        hint = "write boot_args in the fleet's template, or $${ for the text"
        message = "an image looks no variables up: it is the same for every VM"
        yield Diagnostic(document, ("spec", "boot_args"), message, hint)


def _reserved_names(document: SpecDocument, known: Documents) -> Iterator[Diagnostic]:
    """Words with a meaning in patterns: whoever selects them would get more than what is called so."""
    del known
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
            yield Diagnostic(document, pointer, message, key=pointer[-1] == name)


def _variable_names(document: SpecDocument, known: Documents) -> Iterator[Diagnostic]:
    del known
    for pointer, variables in _variables_in(document):
        for name in variables:
            if name in BUILT_IN_NAMES:
                message, hint = f"{name} is built in and cannot be set", "give the variable another name"
                yield Diagnostic(document, (*pointer, name), message, hint, key=True)
            elif not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name):
                message, hint = f"{shown(name)} cannot be a variable's name", "write letters, digits and '_'"
                yield Diagnostic(document, (*pointer, name), message, hint, key=True)


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


def _network(document: SpecDocument, known: Documents) -> Iterator[Diagnostic]:
    for pointer, message in network_mistakes(document.body["spec"]):
        yield Diagnostic(document, ("spec", *pointer), message)
    if known.networks.get(document.name) is document:
        for other in known.overlaps.get(document.name, ()):
            message = f"network {document.name} shares addresses with network {other.name} ({other.path}:{other.line})"
            yield Diagnostic(document, ("spec", "cidr"), message)


def _groups(document: SpecDocument, known: Documents) -> Iterator[Diagnostic]:
    for name, group in document.body["spec"].get("groups", {}).items():
        if name in known.hosts:
            message = f"{name} cannot be a group: it is a host's name"
            yield Diagnostic(document, ("spec", "groups", name), message, key=True)
        for word, names in (("hosts", known.hosts), ("children", known.groups)):
            for number, entry in enumerate((group or {}).get(word, ())):
                if entry not in names:
                    message = f"the inventory has no {'host' if word == 'hosts' else 'group'} {entry}"
                    yield Diagnostic(document, ("spec", "groups", name, word, number), message, nearest(entry, names))


def _circles(document: SpecDocument, known: Documents) -> Iterator[Diagnostic]:
    """Groups that contain themselves."""
    del known
    groups = document.body["spec"].get("groups", {})
    children = {name: (group or {}).get("children", ()) for name, group in groups.items()}
    for circle in islice(_circles_in(children), SPECS.max_problems):
        pointer = ("spec", "groups", circle[-1], "children", children[circle[-1]].index(circle[0]))
        message = f"groups may not contain each other in a circle: {' > '.join((*circle, circle[0]))}"
        yield Diagnostic(document, pointer, message)


def _circles_in(children: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, ...]]:
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


def _variables_of_nothing(document: SpecDocument, known: Documents) -> Iterator[Diagnostic]:
    of_group = document.kind == "GroupVars"
    names = (*known.groups, "all") if of_group else known.hosts
    if known.inventory is None:
        message, hint = "there is no Inventory, so nothing has these variables", "add one, or remove the file"
        yield Diagnostic(document, (), message, hint)
    elif document.name not in names:
        message = f"the inventory has no {'group' if of_group else 'host'} {document.name}"
        yield Diagnostic(document, (), message, nearest(document.name, names))


_FLEET, _INVENTORY, _VARIABLES = frozenset({"Fleet"}), frozenset({"Inventory"}), frozenset({"GroupVars", "HostVars"})

CHECKS: Final = (
    Check(rule="duplicate", problems=_duplicates, state=NAMED),
    Check(rule="image", kinds=frozenset({"Image"}), problems=_image),
    Check(rule="reserved-name", kinds=_FLEET | _INVENTORY, problems=_reserved_names),
    Check(rule="variable-name", kinds=_FLEET | _INVENTORY | _VARIABLES, problems=_variable_names),
    Check(rule="whole-number", kinds=_FLEET, problems=validate_fleets.whole_numbers),
    Check(rule="replicas-or-instances", kinds=_FLEET, problems=validate_fleets.replicas_or_instances),
    Check(rule="network", kinds=frozenset({"Network"}), problems=_network),
    Check(rule="unknown-image", kinds=_FLEET, problems=validate_fleets.images, state=MISSPELT, needs="images_known"),
    Check(rule="group-circle", kinds=_INVENTORY, problems=_circles, needs="hosts_known"),
    Check(rule="group", kinds=_INVENTORY, problems=_groups, needs="hosts_known"),
    Check(rule="variables-of-nothing", kinds=_VARIABLES, problems=_variables_of_nothing, needs="hosts_known"),
    Check(rule="hosts", kinds=_FLEET, problems=validate_fleets.hosts, state=MISSPELT, needs="hosts_known"),
    Check(rule="placement", kinds=_FLEET, problems=validate_fleets.placement, needs="hosts_known"),
)
