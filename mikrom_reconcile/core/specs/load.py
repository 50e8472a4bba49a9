"""The specs: typed documents that fit together, or every mistake in them at once."""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter
from typing import Any

import msgspec

from mikrom_reconcile.core.model.desired import Policy, Rollout
from mikrom_reconcile.core.model.encoding import ready
from mikrom_reconcile.core.model.errors import SourceError, SpecError, UsageError
from mikrom_reconcile.core.model.specs import SourceTree, SpecDocument, SpecProblem
from mikrom_reconcile.core.parsing.documents import dedupe_by_position, problems_of, read_tree
from mikrom_reconcile.core.parsing.schema_errors import Schemas
from mikrom_reconcile.core.parsing.variables import BUILT_IN_NAMES
from mikrom_reconcile.core.specs.images import BUILT_IN, Image, image_of
from mikrom_reconcile.core.specs.inventory import Group, Host, Inventory, PlacementSpec
from mikrom_reconcile.core.specs.networks import Network, network_of
from mikrom_reconcile.core.specs.validate import Documents, validate
from mikrom_reconcile.times_and_sizes import SPECS

DEFAULT_PROJECT = "default"
VM_NAME = "${fleet}-${index:03d}"
"""The names of replicas, unless a fleet says otherwise."""


class Override(msgspec.Struct, frozen=True, kw_only=True):
    """Template fields for the VMs whose names match `match`, a wildcard."""

    match: str
    fields: dict[str, Any]


class FleetSpec(msgspec.Struct, frozen=True, kw_only=True, rename={"pattern": "hosts", "hosts": "selected"}):
    """One Fleet document, with the defaults that its schema names. `replicas` is None for a fleet of named instances.
    `hosts` are those that `pattern` selects, None where there is no inventory: this machine. `rollout` is None where it
    says nothing of it.
    """

    document: SpecDocument
    name: str
    tags: tuple[str, ...] = ()
    vars: dict[str, Any] = {}
    hosts: tuple[str, ...] | None
    pattern: str = "all"
    replicas: int | None = None
    vm_name: str = VM_NAME
    template: dict[str, Any] = {}
    overrides: tuple[Override, ...] = ()
    instances: dict[str, dict[str, Any]] = {}
    policy: Policy
    ignore_changes: tuple[str, ...] = ()
    placement: PlacementSpec = PlacementSpec()
    rollout: Rollout | None = None


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
    documents = reading.documents
    if reading.whole and not documents and not reading.broken:
        raise SourceError(f"no document in {', '.join(file.path for file in tree.files[:9])}: nothing to plan from")
    inventory = _inventory(documents)
    known = Documents(reading, inventory)
    mistakes = [*reading.diagnostics, *validate(known)]
    unread = {(problem.path, problem.line, problem.column) for problem in reading.problems}
    found = problems_of(mistakes[: SPECS.max_problems], tree)  # what YAML could not read is not reported twice
    problems = [*reading.problems, *(each for each in found if (each.path, each.line, each.column) not in unread)]
    bad = {id(mistake.document) for mistake in mistakes}
    good = [document for document in documents if document.kind == "Image" or id(document) not in bad]
    fleets = [_fleet(document, inventory) for document in _of_kind(good, "Fleet")]
    project = next(_of_kind(documents, "Project"), None)
    specs = Specs(
        tree=tree,
        documents=len(documents),
        project=project.name if project else DEFAULT_PROJECT,
        whole=project is not None,
        inventory=inventory,
        extra_vars=extra_vars or {},
        images=BUILT_IN | {image.name: image_of(image.body["spec"]) for image in _of_kind(good, "Image")},
        networks={found.name: network_of(found.name, found.body["spec"]) for found in _of_kind(good, "Network")},
        fleets=tuple(sorted(fleets, key=attrgetter("name"))),
    )
    return LoadResult(specs=specs, problems=dedupe_by_position(problems), complete=known.complete)


def hosts_of(specs: Specs, here: str) -> tuple[str, ...]:
    """The hosts of the inventory, sorted; without one, `here`."""
    return tuple(sorted(specs.inventory.hosts)) if specs.inventory else (here,)


def drained_hosts(specs: Specs) -> frozenset[str]:
    """The hosts that the inventory says to drain."""
    hosts = specs.inventory.hosts.items() if specs.inventory else ()
    return frozenset(name for name, host in hosts if host.state == "drain")


def _fleet(document: SpecDocument, inventory: Inventory | None) -> FleetSpec:
    spec, metadata = document.body["spec"], document.body["metadata"]
    prune, lifecycle = spec.get("prune", {}), spec.get("lifecycle", {})
    policy = {
        "prune_max": prune.get("max"),
        "allow_empty": prune.get("allow_empty"),
        "prevent_destroy": lifecycle.get("prevent_destroy"),
    }
    overrides = [
        Override(match=entry["match"], fields={key: value for key, value in entry.items() if key != "match"})
        for entry in spec.get("overrides", ())
    ]
    found = {
        "document": document,
        "name": document.name,
        "tags": metadata.get("tags", ()),
        "selected": inventory.select(spec.get("hosts", "all")) if inventory else None,
        "overrides": overrides,
        "instances": _filled(spec.get("instances", {})),
        "policy": {key: value for key, value in policy.items() if value is not None},
        "ignore_changes": lifecycle.get("ignore_changes", ()),
    }
    return msgspec.convert(spec | found, ready(FleetSpec))


def _inventory(documents: list[SpecDocument]) -> Inventory | None:
    """The inventory and the variables beside it; the first document counts, a second is a problem of its own."""
    document = next(_of_kind(documents, "Inventory"), None)
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


def _of_kind(documents: list[SpecDocument], kind: str) -> Iterator[SpecDocument]:
    return (document for document in documents if document.kind == kind)
