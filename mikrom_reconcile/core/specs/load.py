"""The specs: typed documents that fit together, or every mistake in them at once."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import islice
from operator import attrgetter
from typing import Any

import msgspec

from mikrom_reconcile.core.model.desired import Policy, Rollout, Share
from mikrom_reconcile.core.model.errors import SourceError, SpecError, UsageError
from mikrom_reconcile.core.model.ready import ready
from mikrom_reconcile.core.model.specs import SourceTree, SpecDocument, SpecProblem
from mikrom_reconcile.core.parsing.documents import Diagnostic, Schemas, problems_of, read_tree
from mikrom_reconcile.core.parsing.patterns import EVERY, PatternError
from mikrom_reconcile.core.parsing.schema_errors import nearest
from mikrom_reconcile.core.parsing.spec_files import variables_of
from mikrom_reconcile.core.parsing.variables import BUILT_IN_NAMES, names_in
from mikrom_reconcile.core.parsing.yaml_words import shown
from mikrom_reconcile.core.specs.constraints import PlacementSpec
from mikrom_reconcile.core.specs.images import BUILT_IN, Image, image_of
from mikrom_reconcile.core.specs.inventory import Group, Host, Inventory
from mikrom_reconcile.core.specs.networks import Network, network_flaws, network_of, overlapping
from mikrom_reconcile.core.specs.placement_mistakes import circle_flaws, placement_flaws
from mikrom_reconcile.core.specs.spec_checks import document_flaws
from mikrom_reconcile.limits import SPECS

DEFAULT_PROJECT = "default"
VM_NAME = "${fleet}-${index:03d}"
"""The names of replicas, unless a fleet says otherwise."""


class Override(msgspec.Struct, frozen=True, kw_only=True):
    """Template fields for the VMs whose names match `match`, a wildcard."""

    match: str
    fields: dict[str, Any]


class FleetSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One Fleet document. `replicas` is None for a fleet of named instances. `hosts` are those that `pattern` selects,
    None where there is no inventory: this machine. `rollout` is None where it says nothing of it.
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
    placement: PlacementSpec
    rollout: Rollout | None


class Specs(msgspec.Struct, frozen=True, kw_only=True):
    """All that the specs say, fleets sorted by name. `whole`: a Project document stands among them."""

    tree: SourceTree
    documents: int
    project: str
    whole: bool
    inventory: Inventory | None
    extra_vars: dict[str, Any]
    images: dict[str, Image]
    networks: dict[str, Network]
    fleets: tuple[FleetSpec, ...]


class _Prune(msgspec.Struct, frozen=True):
    max: Share = Policy().prune_max
    allow_empty: bool = Policy().allow_empty


class _Lifecycle(msgspec.Struct, frozen=True):
    prevent_destroy: bool | None = None
    ignore_changes: tuple[str, ...] = ()


class _FleetBody(msgspec.Struct, frozen=True):
    """The `spec` of a Fleet document, with the defaults that its schema names."""

    vars: dict[str, Any] = {}
    hosts: str = "all"
    replicas: int | None = None
    vm_name: str = VM_NAME
    template: dict[str, Any] = {}
    overrides: tuple[dict[str, Any], ...] = ()
    instances: dict[str, dict[str, Any] | None] = {}
    placement: PlacementSpec = PlacementSpec()
    rollout: Rollout | None = None
    prune: _Prune = _Prune()
    lifecycle: _Lifecycle = _Lifecycle()


class LoadResult(msgspec.Struct, frozen=True, kw_only=True):
    """What the documents say that are good, and every problem of the others.

    `complete` says that nothing is missing that the good ones may refer to.
    """

    specs: Specs
    problems: tuple[SpecProblem, ...]
    complete: bool


def read_specs(tree: SourceTree, schemas: Schemas, extra_vars: dict[str, Any] | None = None) -> Specs:
    """The specs in `tree`. Raises SpecError with every problem, sorted by place, and SourceError if it says nothing."""
    loaded = load(tree, schemas, extra_vars)
    if loaded.problems:
        raise SpecError(loaded.problems)
    return loaded.specs


def load(tree: SourceTree, schemas: Schemas, extra_vars: dict[str, Any] | None = None) -> LoadResult:
    """The specs in `tree` as far as they are good, and every problem, sorted by place. Raises UsageError for variables
    that cannot be set.
    """
    if built_in := sorted(BUILT_IN_NAMES.intersection(extra_vars or ())):
        raise UsageError(f"-e: {', '.join(built_in)} is built in and cannot be set; give the variable another name")
    reading = read_tree(tree, schemas)
    documents, legible = reading.documents, [*reading.documents, *reading.misspelt]
    if reading.whole and not documents and not reading.broken:
        raise SourceError(f"no document in {', '.join(file.path for file in tree.files[:9])}: nothing to plan from")
    inventory = _inventory(documents)
    flaws = [*reading.flaws, *_duplicates([*documents, *filter(_is_named, reading.broken)])]
    flaws += [*document_flaws(documents), *_network_flaws(documents)]
    if reading.whole and not any(document.kind == "Image" for document in reading.broken):
        flaws += _image_flaws(legible, (*BUILT_IN, *(image.name for image in _of_kind(documents, "Image"))))
    complete = reading.whole and all(document.kind in {"Fleet", "Project"} for document in reading.broken)
    if complete or inventory is not None:
        flaws += [*_inventory_flaws(documents, inventory), *_host_flaws(legible, inventory)]
        flaws += placement_flaws(_of_kind(documents, "Fleet"), inventory or Inventory())
    unread = {(problem.path, problem.line, problem.column) for problem in reading.problems}
    found = problems_of(flaws[: SPECS.max_problems], tree)  # what YAML could not read needs no second complaint
    problems = [*reading.problems, *(each for each in found if (each.path, each.line, each.column) not in unread)]
    bad = {id(flaw.document) for flaw in flaws}
    specs = _specs(tree, documents, inventory, extra_vars, bad)
    return LoadResult(specs=specs, problems=dedupe_by_position(problems), complete=complete)


def _specs(
    tree: SourceTree,
    documents: list[SpecDocument],
    inventory: Inventory | None,
    extra_vars: dict[str, Any] | None,
    bad: Collection[int] = (),
) -> Specs:
    fleets = [_fleet(document, inventory) for document in _of_kind(documents, "Fleet") if id(document) not in bad]
    projects = [document.name for document in documents if document.kind == "Project"]
    return Specs(
        tree=tree,
        documents=len(documents),
        project=projects[0] if projects else DEFAULT_PROJECT,
        whole=bool(projects),
        inventory=inventory,
        extra_vars=extra_vars or {},
        images=BUILT_IN | {image.name: image_of(image.body["spec"]) for image in _of_kind(documents, "Image")},
        networks={
            found.name: network_of(found.name, found.body["spec"])
            for found in _of_kind(documents, "Network")
            if id(found) not in bad
        },
        fleets=tuple(sorted(fleets, key=attrgetter("name"))),
    )


def hosts_of(specs: Specs, here: str) -> tuple[str, ...]:
    """The hosts of the inventory, sorted; without one, `here`."""
    return tuple(sorted(specs.inventory.hosts)) if specs.inventory else (here,)


def drained_hosts(specs: Specs) -> frozenset[str]:
    """The hosts that the inventory says to drain."""
    hosts = specs.inventory.hosts.items() if specs.inventory else ()
    return frozenset(name for name, host in hosts if host.state == "drain")


def _fleet(document: SpecDocument, inventory: Inventory | None) -> FleetSpec:
    spec = msgspec.convert(document.body["spec"], ready(_FleetBody))
    return FleetSpec(
        document=document,
        name=document.name,
        tags=tuple(document.body["metadata"].get("tags", ())),
        vars=spec.vars,
        hosts=inventory.select(spec.hosts) if inventory else None,
        pattern=spec.hosts,
        replicas=spec.replicas,
        vm_name=spec.vm_name,
        template=spec.template,
        overrides=tuple(
            Override(match=entry["match"], fields={key: value for key, value in entry.items() if key != "match"})
            for entry in spec.overrides
        ),
        instances={name: fields or {} for name, fields in spec.instances.items()},
        policy=Policy(
            prune_max=spec.prune.max,
            allow_empty=spec.prune.allow_empty,
            prevent_destroy=spec.lifecycle.prevent_destroy,
        ),
        ignore_changes=spec.lifecycle.ignore_changes,
        placement=spec.placement,
        rollout=spec.rollout,
    )


def _inventory(documents: list[SpecDocument]) -> Inventory | None:
    """The inventory and the variables beside it; the first document counts, a second is a problem of its own."""
    document = next((document for document in documents if document.kind == "Inventory"), None)
    if document is None:
        return None
    spec = document.body["spec"]
    return Inventory(
        hosts=msgspec.convert(_filled(spec["hosts"]), ready(dict[str, Host]), strict=False),  # 3.0 may stand for 3
        groups=msgspec.convert(_filled(spec.get("groups", {})), ready(dict[str, Group]), strict=False),
        group_vars=_vars_files(documents, "GroupVars"),
        host_vars=_vars_files(documents, "HostVars"),
        origin=document.path,
        document=document,
    )


def _filled(entries: dict[str, Any]) -> dict[str, Any]:
    return {name: entry or {} for name, entry in entries.items()}


def _vars_files(documents: list[SpecDocument], kind: str) -> dict[str, dict[str, Any]]:
    """The variables of each group or host; of the files in its folder a later one wins, as in Ansible."""
    found: dict[str, dict[str, Any]] = {}
    for document in sorted(_of_kind(documents, kind), key=lambda document: document.path.split("/")):
        found[document.name] = found.get(document.name, {}) | document.body
    return found


# ---- mistakes that no single document shows ---------------------------------------------------------------------


def _is_named(document: SpecDocument) -> bool:
    """Whether a broken document has at least a name that others could have too."""
    metadata = document.body.get("metadata")
    return isinstance(metadata, dict) and isinstance(metadata.get("name"), str)


def _duplicates(documents: list[SpecDocument]) -> Iterator[Diagnostic]:
    first: dict[tuple[str, str], SpecDocument] = {}
    for document in sorted(documents, key=lambda document: (document.path, document.line)):
        single = document.kind in {"Project", "Inventory"}
        earlier = first.setdefault((document.kind, "" if single else document.name), document)
        in_one_folder = (
            all(variables_of(each.path)[2] for each in (earlier, document)) and earlier.path != document.path
        )
        if earlier is not document and not in_one_folder:
            message = f"a second {document.kind} {document.name}; the first is {earlier.path}:{earlier.line}"
            pointer = () if document.kind.endswith("Vars") else ("metadata", "name")
            yield Diagnostic(document=document, pointer=pointer, message=message)


def _inventory_flaws(documents: list[SpecDocument], inventory: Inventory | None) -> Iterator[Diagnostic]:
    hosts = tuple(inventory.hosts) if inventory else ()
    groups = tuple(inventory.groups) if inventory else ()
    for document in documents:
        if document.kind == "Inventory":
            yield from circle_flaws(document)
            yield from _group_flaws(document, hosts, groups)
        known = {"GroupVars": (*groups, "all"), "HostVars": hosts}.get(document.kind)
        if known is not None and inventory is None:
            message, hint = "there is no Inventory, so nothing has these variables", "add one, or remove the file"
            yield Diagnostic(document=document, pointer=(), message=message, hint=hint)
        elif known is not None and document.name not in known:
            what = "group" if document.kind == "GroupVars" else "host"
            message = f"the inventory has no {what} {document.name}"
            yield Diagnostic(document=document, pointer=(), message=message, hint=nearest(document.name, known))


def _group_flaws(document: SpecDocument, hosts: tuple[str, ...], groups: tuple[str, ...]) -> Iterator[Diagnostic]:
    for name, group in document.body["spec"].get("groups", {}).items():
        pointer: tuple[str | int, ...] = ("spec", "groups", name)
        if name in hosts:
            message = f"{name} cannot be a group: it is a host's name"
            yield Diagnostic(document=document, pointer=pointer, message=message, key=True)
        for word, known in (("hosts", hosts), ("children", groups)):
            for number, entry in enumerate((group or {}).get(word, ())):
                if entry not in known:
                    message = f"the inventory has no {'host' if word == 'hosts' else 'group'} {entry}"
                    hint = nearest(entry, known)
                    yield Diagnostic(document=document, pointer=(*pointer, word, number), message=message, hint=hint)


def _host_flaws(documents: list[SpecDocument], inventory: Inventory | None) -> Iterator[Diagnostic]:
    for document in _of_kind(documents, "Fleet"):
        for pointer, pattern in _named_hosts(document.body["spec"]):
            if complaint := _host_complaint(pointer, pattern, inventory):
                message, hint = complaint
                yield Diagnostic(document=document, pointer=pointer, message=message, hint=hint)


def _named_hosts(spec: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], str]]:
    if "hosts" in spec:
        yield ("spec", "hosts"), spec["hosts"]
    for name, fields in spec.get("instances", {}).items():
        if fields and "host" in fields:
            yield ("spec", "instances", name, "host"), fields["host"]


def _host_complaint(pointer: tuple[str, ...], pattern: str, inventory: Inventory | None) -> tuple[str, str] | None:
    if inventory is None:
        everywhere = pointer == ("spec", "hosts") and pattern in EVERY
        return None if everywhere else ("there is no Inventory, so no host can be named", "add one, or leave this out")
    if pointer != ("spec", "hosts"):
        known = pattern in inventory.hosts
        return (
            None if known else (f"the inventory has no host {shown(pattern)}", nearest(pattern, tuple(inventory.hosts)))
        )
    try:
        chosen = inventory.select(pattern)
    except PatternError as error:
        return str(error), nearest(error.term, (*inventory.hosts, *inventory.groups))
    return None if chosen else (f"{shown(pattern)} selects no host", "")


def _network_flaws(documents: list[SpecDocument]) -> Iterator[Diagnostic]:
    good = {}
    for document in _of_kind(documents, "Network"):
        flaws = list(network_flaws(document.body["spec"]))
        for pointer, message in flaws:
            yield Diagnostic(document=document, pointer=("spec", *pointer), message=message)
        if not flaws:
            good[document.name] = document
    networks = [network_of(name, document.body["spec"]) for name, document in good.items()]
    for name, other in islice(overlapping(networks), SPECS.max_problems):
        message = f"network {name} shares addresses with network {other} ({good[other].path}:{good[other].line})"
        yield Diagnostic(document=good[name], pointer=("spec", "cidr"), message=message)


def _image_flaws(documents: list[SpecDocument], known: tuple[str, ...]) -> Iterator[Diagnostic]:
    for document in _of_kind(documents, "Fleet"):
        spec = document.body["spec"]
        places: list[tuple[tuple[str | int, ...], dict[str, Any]]] = [(("spec", "template"), spec.get("template", {}))]
        places += [(("spec", "overrides", number), entry) for number, entry in enumerate(spec.get("overrides", ()))]
        places += [(("spec", "instances", name), fields or {}) for name, fields in spec.get("instances", {}).items()]
        for pointer, fields in places:
            image = fields.get("image")
            if image is not None and image not in known and not names_in(image):
                message, hint = f"unknown image {shown(image)}", nearest(image, known)
                yield Diagnostic(document=document, pointer=(*pointer, "image"), message=message, hint=hint)


def _of_kind(documents: list[SpecDocument], kind: str) -> Iterator[SpecDocument]:
    return (document for document in documents if document.kind == kind)


def dedupe_by_position(problems: Iterable[SpecProblem]) -> tuple[SpecProblem, ...]:
    """Sorted by place; where several complain of one place, the one that points deepest into the document stays. No
    more than anybody reads.
    """
    kept: dict[tuple[str, int, int], SpecProblem] = {}
    for problem in sorted(problems, key=lambda problem: -problem.pointer.count("/")):
        kept.setdefault((problem.path, problem.line, problem.column), problem)
    told = [kept[key] for key in sorted(kept)]
    if len(told) > SPECS.max_problems:
        more = f"only the first {SPECS.max_problems} problems are told; this and others follow"
        told[SPECS.max_problems :] = [msgspec.structs.replace(told[SPECS.max_problems], message=more, hint="")]
    return tuple(told)
