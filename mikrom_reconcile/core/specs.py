"""The specs: typed documents that fit together, or every mistake in them at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from mikrom_reconcile.core.documents import Flaw, Schemas, nearest, problems_of, read_tree
from mikrom_reconcile.core.errors import SourceError, SpecError
from mikrom_reconcile.core.inventory import Group, Host, Inventory
from mikrom_reconcile.core.model.desired import Policy
from mikrom_reconcile.core.model.specs import SourceTree, SpecDocument, SpecProblem
from mikrom_reconcile.core.patterns import PatternError, select

DEFAULT_PROJECT = "default"
IMAGES = ("hello",)
"""Images that need no document of their own."""


class Override(msgspec.Struct, frozen=True, kw_only=True):
    """Template fields for the VMs whose names match `match`, a wildcard."""

    match: str
    fields: dict[str, Any]


class FleetSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One Fleet document. `replicas` is None for a fleet of named instances. `hosts` are those that `pattern` selects,
    None where there is no inventory: this machine.
    """

    document: SpecDocument
    name: str
    tags: tuple[str, ...]
    vars: Mapping[str, Any]
    hosts: tuple[str, ...] | None
    pattern: str
    replicas: int | None
    vm_name: str
    template: dict[str, Any]
    overrides: tuple[Override, ...]
    instances: dict[str, dict[str, Any]]
    policy: Policy
    ignore_changes: tuple[str, ...]


class Specs(msgspec.Struct, frozen=True, kw_only=True):
    """All that the specs say, fleets sorted by name. `whole`: a Project document stands among them."""

    tree: SourceTree
    documents: int
    project: str
    whole: bool
    inventory: Inventory | None
    extra_vars: dict[str, Any]
    fleets: tuple[FleetSpec, ...]


def read_specs(tree: SourceTree, schemas: Schemas, extra_vars: dict[str, Any] | None = None) -> Specs:
    """The specs in `tree`. Raises SpecError with every problem, sorted by place, and SourceError if it says nothing."""
    documents, flaws, problems = read_tree(tree, schemas)
    inventory = _inventory(documents)
    flaws += [*_doubles(documents), *_inventory_flaws(documents, inventory), *_fleet_flaws(documents, inventory)]
    if flaws or problems:
        raise SpecError(one_per_place([*problems, *problems_of(flaws, tree)]))
    if not documents:
        raise SourceError(f"no document in {', '.join(file.path for file in tree.files)}: nothing to plan from")
    projects = [document.name for document in documents if document.kind == "Project"]
    fleets = [_fleet(document, inventory) for document in documents if document.kind == "Fleet"]
    return Specs(
        tree=tree,
        documents=len(documents),
        project=projects[0] if projects else DEFAULT_PROJECT,
        whole=bool(projects),
        inventory=inventory,
        extra_vars=extra_vars or {},
        fleets=tuple(sorted(fleets, key=lambda fleet: fleet.name)),
    )


def hosts_of(specs: Specs, here: str) -> tuple[str, ...]:
    """The hosts of the inventory, sorted; without one, `here`."""
    return tuple(sorted(specs.inventory.hosts)) if specs.inventory else (here,)


def _fleet(document: SpecDocument, inventory: Inventory | None) -> FleetSpec:
    spec = document.body["spec"]
    prune, lifecycle = spec.get("prune", {}), spec.get("lifecycle", {})
    default = Policy()
    hosts, pattern = None, spec.get("hosts", "all")
    if inventory is not None:
        hosts = select(pattern, inventory.hosts, inventory.members())
    return FleetSpec(
        document=document,
        name=document.name,
        tags=tuple(document.body["metadata"].get("tags", ())),
        vars=spec.get("vars", {}),
        hosts=hosts,
        pattern=pattern,
        replicas=spec.get("replicas"),
        vm_name=spec.get("vm_name", "${fleet}-${index:03d}"),
        template=spec.get("template", {}),
        overrides=tuple(
            Override(match=entry["match"], fields={key: value for key, value in entry.items() if key != "match"})
            for entry in spec.get("overrides", ())
        ),
        instances={name: fields or {} for name, fields in spec.get("instances", {}).items()},
        policy=Policy(
            prune_max=prune.get("max", default.prune_max),
            allow_empty=prune.get("allow_empty", default.allow_empty),
            prevent_destroy=lifecycle.get("prevent_destroy"),
        ),
        ignore_changes=tuple(lifecycle.get("ignore_changes", ())),
    )


def _inventory(documents: list[SpecDocument]) -> Inventory | None:
    """The inventory and the variables beside it; the first document counts, a second is a problem of its own."""
    document = next((document for document in documents if document.kind == "Inventory"), None)
    if document is None:
        return None
    spec = document.body["spec"]
    return Inventory(
        hosts={name: msgspec.convert(host or {}, Host) for name, host in spec["hosts"].items()},
        groups={name: msgspec.convert(group or {}, Group) for name, group in spec.get("groups", {}).items()},
        group_vars=_vars_files(documents, "GroupVars"),
        host_vars=_vars_files(documents, "HostVars"),
        origin=document.path,
    )


def _vars_files(documents: list[SpecDocument], kind: str) -> dict[str, dict[str, Any]]:
    return {document.name: document.body for document in documents if document.kind == kind}


# ---- mistakes that no single document shows ---------------------------------------------------------------------


def _doubles(documents: list[SpecDocument]) -> Iterator[Flaw]:
    first: dict[tuple[str, str], SpecDocument] = {}
    for document in documents:
        single = document.kind in {"Project", "Inventory"}
        earlier = first.setdefault((document.kind, "" if single else document.name), document)
        if earlier is not document:
            message = f"a second {document.kind} {document.name}; the first is {earlier.path}:{earlier.line}"
            pointer = () if document.kind.endswith("Vars") else ("metadata", "name")
            yield Flaw(document=document, pointer=pointer, message=message)


def _inventory_flaws(documents: list[SpecDocument], inventory: Inventory | None) -> Iterator[Flaw]:
    hosts = tuple(inventory.hosts) if inventory else ()
    groups = tuple(inventory.groups) if inventory else ()
    for document in documents:
        if document.kind == "Inventory":
            yield from _group_flaws(document, hosts, groups)
        known = {"GroupVars": (*groups, "all"), "HostVars": hosts}.get(document.kind)
        if known is not None and inventory is None:
            message, hint = "there is no Inventory, so nothing has these variables", "add one, or remove the file"
            yield Flaw(document=document, pointer=(), message=message, hint=hint)
        elif known is not None and document.name not in known:
            what = "group" if document.kind == "GroupVars" else "host"
            message = f"the inventory has no {what} {document.name}"
            yield Flaw(document=document, pointer=(), message=message, hint=nearest(document.name, known))


def _group_flaws(document: SpecDocument, hosts: tuple[str, ...], groups: tuple[str, ...]) -> Iterator[Flaw]:
    for name, group in document.body["spec"].get("groups", {}).items():
        pointer: tuple[str | int, ...] = ("spec", "groups", name)
        if name in hosts or name == "all":
            message = f"{name} cannot be a group: it is a host's name or all"
            yield Flaw(document=document, pointer=pointer, message=message, key=True)
        for word, known in (("hosts", hosts), ("children", groups)):
            for number, entry in enumerate((group or {}).get(word, ())):
                if entry not in known:
                    message = f"the inventory has no {'host' if word == 'hosts' else 'group'} {entry}"
                    hint = nearest(entry, known)
                    yield Flaw(document=document, pointer=(*pointer, word, number), message=message, hint=hint)


def _fleet_flaws(documents: list[SpecDocument], inventory: Inventory | None) -> Iterator[Flaw]:
    for document in documents:
        if document.kind != "Fleet":
            continue
        spec = document.body["spec"]
        if ("replicas" in spec) == ("instances" in spec):
            found = "both" if "replicas" in spec else "neither"
            message = f"a fleet has either replicas or instances, and this has {found}"
            yield Flaw(document=document, pointer=("spec",), message=message)
        if "instances" in spec and "vm_name" in spec:
            message = "vm_name is for replicas; instances have names of their own"
            yield Flaw(document=document, pointer=("spec", "vm_name"), message=message, hint="remove it", key=True)
        yield from _host_flaws(document, spec, inventory)
        yield from _image_flaws(document, spec)


def _host_flaws(document: SpecDocument, spec: dict[str, Any], inventory: Inventory | None) -> Iterator[Flaw]:
    named: dict[tuple[str, ...], str] = {("spec", "hosts"): spec["hosts"]} if "hosts" in spec else {}
    for name, fields in (spec.get("instances") or {}).items():
        if fields and "host" in fields:
            named["spec", "instances", name, "host"] = fields["host"]
    for pointer, pattern in named.items():
        if inventory is None:
            message, hint = "there is no Inventory, so no host can be named", "add one, or leave this out"
            yield Flaw(document=document, pointer=pointer, message=message, hint=hint)
        elif pointer == ("spec", "hosts"):
            try:
                if not select(pattern, inventory.hosts, inventory.members()):
                    yield Flaw(document=document, pointer=pointer, message=f"{pattern!r} selects no host")
            except PatternError as error:
                hint = nearest(error.term.lstrip("&!"), (*inventory.hosts, *inventory.groups))
                yield Flaw(document=document, pointer=pointer, message=str(error), hint=hint)
        elif pattern not in inventory.hosts:
            message, hint = f"the inventory has no host {pattern}", nearest(pattern, tuple(inventory.hosts))
            yield Flaw(document=document, pointer=pointer, message=message, hint=hint)


def _image_flaws(document: SpecDocument, spec: dict[str, Any]) -> Iterator[Flaw]:
    places: list[tuple[tuple[str | int, ...], dict[str, Any]]] = [(("spec", "template"), spec.get("template", {}))]
    places += [(("spec", "overrides", number), entry) for number, entry in enumerate(spec.get("overrides", ()))]
    places += [(("spec", "instances", name), fields or {}) for name, fields in spec.get("instances", {}).items()]
    for pointer, fields in places:
        image = fields.get("image")
        if image is not None and image not in IMAGES and "${" not in image:
            message, hint = f"unknown image {image!r}", nearest(image, IMAGES)
            yield Flaw(document=document, pointer=(*pointer, "image"), message=message, hint=hint)


def one_per_place(problems: list[SpecProblem]) -> tuple[SpecProblem, ...]:
    """Sorted by place; where several complain of one place, the one that points deepest into the document stays."""
    kept: dict[tuple[str, int, int], SpecProblem] = {}
    for problem in sorted(problems, key=lambda problem: -problem.pointer.count("/")):
        kept.setdefault((problem.path, problem.line, problem.column), problem)
    return tuple(kept[key] for key in sorted(kept))
