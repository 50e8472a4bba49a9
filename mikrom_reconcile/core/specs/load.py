"""The specs: typed documents that fit together, or every mistake in them at once; and the VMs that they want."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import datetime
from fnmatch import translate
from operator import attrgetter
from typing import Any

import msgspec

from mikrom_reconcile.core.model.desired import Budget, DriftPolicy, Freeze, Policy, Rollout
from mikrom_reconcile.core.model.documents import Diagnostic, SourceTree, SpecDocument, SpecProblem
from mikrom_reconcile.core.model.encoding import ready
from mikrom_reconcile.core.model.errors import SourceError, UsageError
from mikrom_reconcile.core.parsing.documents import Places, dedupe_by_position, raise_for, read_tree
from mikrom_reconcile.core.parsing.schema_errors import Schemas
from mikrom_reconcile.core.parsing.variables import BUILT_IN_NAMES, Layer, Scope, VariableError, names_in
from mikrom_reconcile.core.specs.images import BUILT_IN, Image, image_of
from mikrom_reconcile.core.specs.inventory import Group, Host, Inventory, PlacementSpec
from mikrom_reconcile.core.specs.networks import Network, network_of, port_name
from mikrom_reconcile.core.specs.refactor import Refactor, refactor_mistakes, refactor_of
from mikrom_reconcile.core.specs.validate import Documents, validate
from mikrom_reconcile.times_and_sizes import SPECS

VM_NAME = "${fleet}-${index:03d}"  # the names of replicas, unless a fleet says otherwise


class FleetSpec(msgspec.Struct, frozen=True, kw_only=True, rename={"pattern": "hosts", "hosts": "selected"}):
    """One Fleet document, with the defaults that its schema names. `replicas` is None for a fleet of named instances.
    `hosts` are those that `pattern` selects; None: this machine. `rollout` is None where it says nothing of it. Each of
    `overrides` has, beside template fields, the wildcard that names must `match`.
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
    overrides: tuple[dict[str, Any], ...] = ()
    instances: dict[str, dict[str, Any]] = {}
    policy: Policy
    ignore_changes: tuple[str, ...] = ()
    placement: PlacementSpec = PlacementSpec()
    rollout: Rollout | None = None
    budgets: tuple[Budget, ...] = ()
    drift: DriftPolicy = DriftPolicy()


class Specs(msgspec.Struct, frozen=True, kw_only=True):
    """All that the specs say, fleets sorted by name. `whole`: a Project document stands among them."""

    tree: SourceTree
    documents: int
    project: str
    whole: bool
    inventory: Inventory
    extra_vars: dict[str, Any]
    images: dict[str, Image]
    networks: dict[str, Network]
    fleets: tuple[FleetSpec, ...]
    refactor: Refactor
    freeze: Freeze | None


def load(
    tree: SourceTree, schemas: Schemas, extra_vars: dict[str, Any] | None = None
) -> tuple[Specs, tuple[SpecProblem, ...], bool]:
    """The good specs, problems by place, and if all that fleets refer to is good. Raises UsageError, SourceError."""
    if built_in := sorted(BUILT_IN_NAMES.intersection(extra_vars or ())):
        raise UsageError(f"-e: {', '.join(built_in)} is built in and cannot be set; give the variable another name")
    reading = read_tree(tree, schemas)
    documents = reading.documents
    if reading.whole and not (documents or reading.misspelt or reading.broken):
        raise SourceError(f"no document in {', '.join(file.path for file in tree.files[:9])}: nothing to plan from")
    inventory = _inventory(documents)
    known = Documents(reading, inventory)
    mistakes = [*reading.diagnostics, *validate(known)]
    unread = {(problem.path, problem.line, problem.column) for problem in reading.problems}
    found = map(Places(tree).problem, mistakes[: SPECS.max_problems])  # what YAML could not read is not reported twice
    problems = [*reading.problems, *(each for each in found if (each.path, each.line, each.column) not in unread)]
    bad = {id(mistake.document) for mistake in mistakes}
    good = [document for document in documents if document.kind == "Image" or id(document) not in bad]
    fleets = [_fleet(document, inventory) for document in _of_kind(good, "Fleet")]
    project, refactors = next(_of_kind(documents, "Project"), None), _of_kind(good, "Refactor")
    specs = Specs(
        tree=tree,
        documents=len(documents),
        project=project.name if project else "default",
        whole=project is not None,
        inventory=inventory,
        extra_vars=extra_vars or {},
        images=BUILT_IN | {image.name: image_of(image.body["spec"]) for image in _of_kind(good, "Image")},
        networks={found.name: network_of(found.name, found.body["spec"]) for found in _of_kind(good, "Network")},
        fleets=tuple(sorted(fleets, key=attrgetter("name"))),
        refactor=refactor_of(() if any(each.document.kind == "Fleet" for each in mistakes) else refactors),
        freeze=next(map(_freeze, _of_kind(good, "Project")), None),
    )
    is_complete = known.complete and not any(mistake.document.kind == "Inventory" for mistake in mistakes)
    return specs, dedupe_by_position(problems), is_complete


def hosts_of(specs: Specs, here: str) -> tuple[str, ...]:
    """The hosts of the inventory, sorted; without one, `here`."""
    return tuple(sorted(specs.inventory.hosts)) or (here,)


def _fleet(document: SpecDocument, inventory: Inventory) -> FleetSpec:
    spec, metadata = document.body["spec"], document.body["metadata"]
    prune, lifecycle = spec.get("prune", {}), spec.get("lifecycle", {})
    policy = {"prune_max" if word == "max" else word: said for word, said in prune.items()}
    if "prevent_destroy" in lifecycle:
        policy["prevent_destroy"] = lifecycle["prevent_destroy"]
    fields = spec | {
        "document": document,
        "name": document.name,
        "tags": metadata.get("tags", ()),
        "selected": None,
        "instances": _filled(spec.get("instances", {})),
        "policy": policy,
        "ignore_changes": lifecycle.get("ignore_changes", ()),
        "budgets": spec.get("disruption", {}).get("budgets", ()),
    }
    fleet = msgspec.convert(fields, ready(FleetSpec))
    # fleets of one pattern share one tuple, by which the scheduler knows that they do; converted each had a copy
    hosts = inventory.select(spec.get("hosts", "all")) if inventory.hosts else None
    return msgspec.structs.replace(fleet, hosts=hosts)


def _freeze(document: SpecDocument) -> Freeze | None:
    said = document.body.get("spec", {}).get("freeze")
    if said is None:
        return None
    until = datetime.fromisoformat(said["until"]) if "until" in said else None
    return Freeze(by=f"{document.path}:{document.line}", reason=said["reason"], until=until)


def _inventory(documents: list[SpecDocument]) -> Inventory:
    """The inventory and the variables beside it; the first document counts, a second is a problem of its own."""
    document = next(_of_kind(documents, "Inventory"), None)
    if document is None:
        return Inventory()
    spec = document.body["spec"]
    return Inventory(
        hosts=msgspec.convert(_filled(spec["hosts"]), ready(dict[str, Host]), strict=False),  # 3.0 may stand for 3
        groups=msgspec.convert(_filled(spec.get("groups", {})), ready(dict[str, Group]), strict=False),
        group_vars=_vars_files(documents, "GroupVars"),
        host_vars=_vars_files(documents, "HostVars"),
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


_NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")


class MergedTemplate(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """Merged template fields, shared by all VMs that have the same overrides (by number), and what they look up."""

    fields: dict[str, Any]
    variables_used: frozenset[str]
    published: frozenset[str]  # the ports of a host that each VM wants for itself
    overrides: tuple[int, ...] = ()


class UnplacedVM(msgspec.Struct, frozen=True, kw_only=True):
    """One VM as the specs want it, not yet placed. `hosts` may have it; None where there is no inventory."""

    name: str
    index: int | None
    fleet: FleetSpec
    template: MergedTemplate
    hosts: tuple[str, ...] | None

    def sources(self) -> Iterator[tuple[str, tuple[str | int, ...], dict[str, Any]]]:
        """What may say something about the VM, the strongest first: its name, its place, and what it says."""
        fleet = self.fleet
        if self.name in fleet.instances:
            yield f"instance {self.name}", ("spec", "instances", self.name), fleet.instances[self.name]
        for number in reversed(self.template.overrides):
            override = fleet.overrides[number]
            yield f"override {override['match']}", ("spec", "overrides", number), override
        yield "template", ("spec", "template"), fleet.template


def expand(specs: Specs) -> tuple[UnplacedVM, ...]:
    """Every VM that the specs want, sorted by name. Raises SpecError for names that cannot be."""
    mistakes: list[Diagnostic] = []
    vms: dict[str, UnplacedVM] = {}
    shared, limit = shared_lookups(specs), SPECS.name_characters
    for fleet in specs.fleets:
        try:
            names = list(_names(fleet, specs))
        except VariableError as error:
            mistakes.append(Diagnostic(fleet.document, ("spec", "vm_name"), str(error)))
            continue
        longest = max((name for name, _ in names), key=len, default="")
        if len(longest) > limit:
            message = f"the VM name {longest} has {len(longest)} characters; at most {limit} are allowed"
            mistakes.append(Diagnostic(fleet.document, ("metadata", "name"), message))
            continue
        for vm in _fleet_vms(fleet, names, shared):
            other = vms.setdefault(vm.name, vm)
            if other is not vm:
                message = f"two VMs would be called {vm.name}; the other is of fleet {other.fleet.name}"
                mistakes.append(Diagnostic(fleet.document, ("metadata", "name"), message))
                break
    if not mistakes:
        mistakes += refactor_mistakes(specs.refactor, (fleet.name for fleet in specs.fleets), vms)
    raise_for(mistakes, specs.tree)
    return tuple(sorted(vms.values(), key=attrgetter("name")))


def renames(specs: Specs) -> dict[str, str]:
    """VMs that were moved, with the names that they had; of a fleet, those that it would have as the former one, but
    for those that were moved by their own names.
    """
    fleets = {fleet.name: fleet for fleet in specs.fleets}
    found, named = dict[str, str](), dict[str, str]()
    for was, name in specs.refactor.moved.items():
        fleet = fleets.get(name)
        if fleet is None or name in fleet.instances:
            named[name] = was
        else:
            before = _names(msgspec.structs.replace(fleet, name=was), specs)
            pairs = zip(_names(fleet, specs), before, strict=True)
            found |= {new: old for (new, _), (old, _) in pairs if new != old}
    taken = {*named.values()}
    return {new: old for new, old in found.items() if old not in taken} | named


def shared_lookups(specs: Specs) -> frozenset[str]:
    """Names that the variables of all fleets look up: those of the command line and of the inventory."""
    said = specs.inventory
    own = [host.vars for host in said.hosts.values()] + [group.vars for group in said.groups.values()]
    return names_in([specs.extra_vars, said.group_vars, said.host_vars, *own])


def _fleet_vms(fleet: FleetSpec, names: list[tuple[str, int | None]], shared: frozenset[str]) -> Iterator[UnplacedVM]:
    templates: dict[tuple[int, ...], MergedTemplate] = {}
    matching_of = _matcher(fleet)
    for name, index in names:
        matching = matching_of(name) if fleet.overrides else ()
        own = fleet.instances.get(name, {}) if index is None else {}
        template = templates.get(matching)
        if template is None or index is None:
            template = templates[matching] = _template(fleet, matching, own, shared)
        hosts = (own["host"],) if own.get("host") else fleet.hosts
        yield UnplacedVM(name=name, index=index, fleet=fleet, template=template, hosts=hosts)


def _matcher(fleet: FleetSpec) -> Callable[[str], tuple[int, ...]]:
    """Says which overrides a name matches; it looks one by one only at those with wildcards."""
    exact: dict[str, list[int]] = defaultdict(list)
    wild: list[tuple[int, Callable[[str], Any]]] = []
    for number, override in enumerate(fleet.overrides):
        if frozenset("*?[").isdisjoint(override["match"]):
            exact[override["match"]].append(number)
        else:
            wild.append((number, re.compile(translate(override["match"])).match))
    return lambda name: tuple(sorted([*exact.get(name, ()), *(number for number, match in wild if match(name))]))


def _names(fleet: FleetSpec, specs: Specs) -> Iterator[tuple[str, int | None]]:
    if fleet.replicas is None:
        for name in fleet.instances:
            yield name, None
    elif fleet.vm_name == VM_NAME:  # spares a scope for each VM of a large fleet
        for index in range(fleet.replicas):
            yield f"{fleet.name}-{index:03d}", index
    else:
        for index in range(fleet.replicas):
            number = Layer(origin="built in", values={"index": index})
            name = str(Scope(number, *_fleet_layers(fleet, specs)).resolve(fleet.vm_name))
            if not _NAME.fullmatch(name):
                raise VariableError(f"{name!r} cannot be a VM's name: it has only a-z, 0-9 and, inside, '-'", "")
            yield name, index


def _template(fleet: FleetSpec, which: tuple[int, ...], own: dict[str, Any], known: frozenset[str]) -> MergedTemplate:
    fields: dict[str, Any] = {}
    for layer in (fleet.template, *(fleet.overrides[number] for number in which), own):
        fields = merged(fields, {key: value for key, value in layer.items() if key not in {"match", "host"}})
    looks_up = "${" in repr(fields)  # most do not: this spares two walks
    variables_used: frozenset[str] = names_in(fields) if looks_up else frozenset()
    if variables_used:
        variables_used |= known | names_in(dict(fleet.vars))  # through one variable, others
    elif looks_up:
        fields = Scope().resolve(fields)  # $${ stands for ${ here, too
    interfaces = fields.get("network_interfaces", {}).values()
    ports = frozenset(port_name(text) for nic in interfaces for text in nic.get("publish", ()))
    return MergedTemplate(fields=fields, variables_used=variables_used, published=ports, overrides=which)


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` with `over` on top: maps merge deep, lists replace, a null takes the key away."""
    result = dict(base)
    for key, value in over.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict):
            below = result.get(key)
            result[key] = merged(below if isinstance(below, dict) else {}, value)
        else:
            result[key] = value
    return result


def _fleet_layers(fleet: FleetSpec, specs: Specs) -> tuple[Layer, ...]:
    """The variables that are the same for all VMs of a fleet on all hosts, the strongest first."""
    built_in = Layer(origin="built in", values={"fleet": fleet.name, "project": specs.project})
    return built_in, Layer(origin="-e", values=specs.extra_vars), Layer(origin=f"fleet {fleet.name}", values=fleet.vars)


def scope_of(vm: UnplacedVM, specs: Specs, host: str | None) -> Scope:
    """What variables mean for a VM; without a host, those of hosts in which all agree that may have it."""
    built_in: dict[str, Any] = {"name": vm.name}
    if vm.index is not None:
        built_in["index"] = vm.index
    inventory = specs.inventory
    beneath: tuple[Layer, ...] = ()
    if host is not None:
        built_in["host"] = inventory.facts(host)
        beneath = inventory.layers(host)
    elif vm.hosts is not None:
        built_in["host"] = inventory.agreed(vm.fleet.pattern if vm.hosts is vm.fleet.hosts else vm.hosts[0])
        beneath = (Layer(origin="every host that may have it", values=built_in["host"]),)
    return Scope(Layer(origin="built in", values=built_in), *_fleet_layers(vm.fleet, specs), *beneath)
