"""What a schema cannot see in documents: one table of checks, run once over all of them. To add one: a function from a
document, and what is known of the others, to what is wrong in it, and a row.
"""

import re
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from itertools import islice
from typing import Any, Final, Literal

import msgspec

from mikrom_reconcile.core.model.documents import Diagnostic, Pointer, SpecDocument
from mikrom_reconcile.core.parsing.documents import Reading, variables_of
from mikrom_reconcile.core.parsing.schema_errors import nearest
from mikrom_reconcile.core.parsing.variables import BUILT_IN_NAMES, names_in, walk
from mikrom_reconcile.core.parsing.yaml_words import shown
from mikrom_reconcile.core.specs.budgets import budget_mistakes
from mikrom_reconcile.core.specs.images import BUILT_IN, root_disk_flaw
from mikrom_reconcile.core.specs.inventory import EVERY, RESERVED, UNARY, Inventory, PatternError
from mikrom_reconcile.core.specs.networks import network_mistakes, network_of, overlapping
from mikrom_reconcile.times_and_sizes import SPECS


class Documents:
    """All documents of a tree, and what they may refer to. `images` are the names that fleets may use; `images_known`
    says that none is missing, `hosts_known` that no host and no group is.
    """

    def __init__(self, reading: Reading, inventory: Inventory) -> None:
        self.good, self.misspelt = reading.documents, reading.misspelt
        self.named = [each for each in (*self.good, *self.misspelt, *reading.broken) if each.name]
        refused = {document.kind for document in (*reading.misspelt, *reading.broken)}
        self.inventory = inventory
        self.hosts = tuple(inventory.hosts)
        self.groups = tuple(inventory.groups)
        self.complete = reading.whole and {"Fleet", "Project", "Refactor"} >= refused
        self.hosts_known = self.complete or bool(inventory.hosts)
        self.images_known = reading.whole and "Image" not in refused
        self.images = (*BUILT_IN, *(each.name for each in reading.documents if each.kind == "Image"))

    @cached_property
    def attributes(self) -> tuple[str, ...]:
        """What constraints can ask of hosts: the variables that any of them has."""
        return tuple(sorted({f"host.{name}" for host in self.hosts for name in self.inventory.facts(host)}))


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One row: what finds the problems of documents of these `kinds`, `misspelt` ones included, and what it needs."""

    problems: Callable[[SpecDocument, Documents], Iterator[Diagnostic]]
    kinds: frozenset[str]
    misspelt: bool = False
    needs: Literal["", "hosts_known", "images_known"] = ""


def validate(known: Documents) -> Iterator[Diagnostic]:
    """What the checks find in all documents."""
    yield from _duplicates(known.named)
    yield from _overlaps([document for document in known.good if document.kind == "Network"])
    checks = [check for check in CHECKS if not check.needs or getattr(known, check.needs)]
    for documents, rows in ((known.good, checks), (known.misspelt, [check for check in checks if check.misspelt])):
        for document in documents:
            for check in rows:
                if document.kind in check.kinds:
                    yield from check.problems(document, known)


def _duplicates(documents: list[SpecDocument]) -> Iterator[Diagnostic]:
    known: dict[tuple[str, str], SpecDocument] = {}
    for document in sorted(documents, key=lambda document: (document.path, document.line)):
        name = "" if document.kind in {"Project", "Inventory"} else document.name
        first = known.setdefault((document.kind, name), document)
        in_one_folder = first.path != document.path and all(variables_of(each.path)[2] for each in (first, document))
        if first is not document and not in_one_folder:
            message = f"a second {document.kind} {document.name}; the first is {first.path}:{first.line}"
            yield Diagnostic(document, () if document.kind.endswith("Vars") else ("metadata", "name"), message)


def _image(document: SpecDocument, _: Documents) -> Iterator[Diagnostic]:
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


def _reserved_names(document: SpecDocument, _: Documents) -> Iterator[Diagnostic]:
    """Words with a meaning in patterns: whoever selects them would get more than what is called so."""
    spec, tags = document.body["spec"], document.body["metadata"].get("tags", ())
    named: list[tuple[Pointer, str]] = [(("metadata", "tags", at), tag) for at, tag in enumerate(tags)]
    named += [(("spec", word, name), name) for word in ("instances", "hosts", "groups")
              if isinstance(spec.get(word), dict) for name in spec[word]]  # fmt: skip
    named += [(("metadata", "name"), document.name)] if document.kind == "Fleet" else []
    for pointer, name in named:
        if name in RESERVED:
            message = f"{name} cannot be a name: it has a meaning in patterns"
            yield Diagnostic(document, pointer, message, key=pointer[-1] == name)


def _variable_names(document: SpecDocument, _: Documents) -> Iterator[Diagnostic]:
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


def _network(document: SpecDocument, _: Documents) -> Iterator[Diagnostic]:
    for pointer, message in network_mistakes(document.body["spec"]):
        yield Diagnostic(document, ("spec", *pointer), message)


def _overlaps(documents: list[SpecDocument]) -> Iterator[Diagnostic]:
    """Networks that have addresses of others before them, where nothing else is wrong in both."""
    good = {each.name: each for each in documents if not any(network_mistakes(each.body["spec"]))}
    networks = [network_of(name, document.body["spec"]) for name, document in good.items()]
    for name, before in islice(overlapping(networks), SPECS.max_problems):
        other = good[before]
        message = f"network {name} shares addresses with network {before} ({other.path}:{other.line})"
        yield Diagnostic(good[name], ("spec", "cidr"), message)


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


def _circles(document: SpecDocument, _: Documents) -> Iterator[Diagnostic]:
    """Each circle of groups from parent to child, beginning with its first group by name."""
    groups = document.body["spec"].get("groups", {})
    children = {name: (group or {}).get("children", ()) for name, group in sorted(groups.items())}
    left = {name: list(inside) for name, inside in children.items()}
    for _number in range(SPECS.max_problems):
        try:
            TopologicalSorter(left).prepare()
            break
        except CycleError as error:
            found = error.args[1][:0:-1]
        start = found.index(min(found))
        circle = (*found[start:], *found[:start])
        left[circle[-1]].remove(circle[0])
        pointer = ("spec", "groups", circle[-1], "children", children[circle[-1]].index(circle[0]))
        message = f"groups may not contain each other in a circle: {' > '.join((*circle, circle[0]))}"
        yield Diagnostic(document, pointer, message)


def _variables_of_nothing(document: SpecDocument, known: Documents) -> Iterator[Diagnostic]:
    of_group = document.kind == "GroupVars"
    names = (*known.groups, "all") if of_group else known.hosts
    if not known.hosts:
        message, hint = "there is no Inventory, so nothing has these variables", "add one, or remove the file"
        yield Diagnostic(document, (), message, hint)
    elif document.name not in names:
        message = f"the inventory has no {'group' if of_group else 'host'} {document.name}"
        yield Diagnostic(document, (), message, nearest(document.name, names))


def _whole_numbers(document: SpecDocument, _: Documents) -> Iterator[Diagnostic]:
    """JSON Schema takes 3.0 for a whole number."""
    counted = {word: said for word, said in document.body["spec"].items() if word in _COUNTED}
    for pointer, value in walk(counted, ("spec",)):
        if isinstance(value, float) and pointer[-1] not in {"max_fail_percentage", "value"}:
            yield Diagnostic(document, pointer, f"{'.'.join(map(str, pointer))} must be a whole number, not {value}")


_COUNTED = frozenset({"replicas", "prune", "rollout", "disruption", "placement"})


def _replicas_or_instances(document: SpecDocument, _: Documents) -> Iterator[Diagnostic]:
    """A fleet has one of them, and names only replicas by a rule."""
    spec = document.body["spec"]
    if ("replicas" in spec) == ("instances" in spec):
        found = "both" if "replicas" in spec else "neither"
        yield Diagnostic(document, ("spec",), f"a fleet has either replicas or instances, and this has {found}")
    if "instances" in spec and "vm_name" in spec:
        message = "vm_name is for replicas; instances have names of their own"
        yield Diagnostic(document, ("spec", "vm_name"), message, "remove it", key=True)


def _fleet_images(document: SpecDocument, known: Documents) -> Iterator[Diagnostic]:
    spec, names = document.body["spec"], known.images
    places: list[tuple[Pointer, dict[str, Any]]] = [(("spec", "template"), spec.get("template", {}))]
    places += [(("spec", "overrides", number), entry) for number, entry in enumerate(spec.get("overrides", ()))]
    places += [(("spec", "instances", name), fields or {}) for name, fields in spec.get("instances", {}).items()]
    for pointer, fields in places:
        image = fields.get("image")
        if image is not None and image not in names and not names_in(image):
            yield Diagnostic(document, (*pointer, "image"), f"unknown image {shown(image)}", nearest(image, names))


def _fleet_hosts(document: SpecDocument, known: Documents) -> Iterator[Diagnostic]:
    """The pattern of a fleet selects hosts, and the host of an instance is one."""
    spec = document.body["spec"]
    if "hosts" in spec and (mistake := _pattern_mistake(spec["hosts"], known.inventory)):
        yield Diagnostic(document, ("spec", "hosts"), *mistake)
    for name, fields in spec.get("instances", {}).items():
        host = (fields or {}).get("host")
        if host is not None and host not in known.hosts:
            mistake = f"the inventory has no host {shown(host)}", nearest(host, known.hosts)
            pointer = ("spec", "instances", name, "host")
            yield Diagnostic(document, pointer, *(mistake if known.hosts else _NO_INVENTORY))


_NO_INVENTORY = "there is no Inventory, so no host can be named", "add one, or leave this out"


def _pattern_mistake(pattern: str, inventory: Inventory) -> tuple[str, str] | None:
    if not inventory.hosts:
        return None if pattern in EVERY else _NO_INVENTORY
    try:
        chosen = inventory.select(pattern)
    except PatternError as error:
        return str(error), nearest(error.term, (*inventory.hosts, *inventory.groups))
    return None if chosen else (f"{shown(pattern)} selects no host", "")


def _placement(document: SpecDocument, known: Documents) -> Iterator[Diagnostic]:
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


def _freeze(document: SpecDocument, _: Documents) -> Iterator[Diagnostic]:
    until = document.body.get("spec", {}).get("freeze", {}).get("until")
    try:
        datetime.fromisoformat(until or "2026-11-29")
    except ValueError as error:
        yield Diagnostic(document, ("spec", "freeze", "until"), f"{shown(until)} is no time: {error}")


_FLEET, _INVENTORY, _VARIABLES = frozenset({"Fleet"}), frozenset({"Inventory"}), frozenset({"GroupVars", "HostVars"})

CHECKS: Final = (
    Check(kinds=frozenset({"Image"}), problems=_image),
    Check(kinds=_FLEET | _INVENTORY, problems=_reserved_names),
    Check(kinds=_FLEET | _INVENTORY | _VARIABLES, problems=_variable_names),
    Check(kinds=_FLEET, problems=_whole_numbers),
    Check(kinds=_FLEET, problems=_replicas_or_instances),
    Check(kinds=frozenset({"Network"}), problems=_network),
    Check(kinds=_FLEET, problems=_fleet_images, misspelt=True, needs="images_known"),
    Check(kinds=_INVENTORY, problems=_circles, needs="hosts_known"),
    Check(kinds=_INVENTORY, problems=_groups, needs="hosts_known"),
    Check(kinds=_VARIABLES, problems=_variables_of_nothing, needs="hosts_known"),
    Check(kinds=_FLEET, problems=_fleet_hosts, misspelt=True, needs="hosts_known"),
    Check(kinds=_FLEET, problems=_placement, needs="hosts_known"),
    Check(kinds=_FLEET, problems=budget_mistakes),
    Check(kinds=frozenset({"Project"}), problems=_freeze),
)
