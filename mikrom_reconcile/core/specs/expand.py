"""Specs to VMs: template, overrides and instances merged. `resolve.py` looks up their variables."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase, translate
from operator import attrgetter
from typing import Any

import msgspec

from mikrom_reconcile.core.model.specs import Diagnostic
from mikrom_reconcile.core.parsing.documents import raise_for
from mikrom_reconcile.core.parsing.variables import Layer, Scope, VariableError, names_in
from mikrom_reconcile.core.specs.inventory import Inventory
from mikrom_reconcile.core.specs.load import VM_NAME, FleetSpec, Specs
from mikrom_reconcile.times_and_sizes import SPECS

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")


class MergedTemplate(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """Merged template fields, shared by all VMs that have the same overrides (by number), and what they look up."""

    fleet: FleetSpec
    fields: dict[str, Any]
    variables_used: frozenset[str]
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
        for number, override in reversed([*enumerate(fleet.overrides)]):
            if fnmatchcase(self.name, override.match):
                yield f"override {override.match}", ("spec", "overrides", number), override.fields
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
    raise_for(mistakes, specs.tree)
    return tuple(sorted(vms.values(), key=attrgetter("name")))


def shared_lookups(specs: Specs) -> frozenset[str]:
    """Names that the variables of all fleets look up: those of the command line and of the inventory."""
    inventory = specs.inventory or Inventory()
    own = [host.vars for host in inventory.hosts.values()] + [group.vars for group in inventory.groups.values()]
    return names_in([specs.extra_vars, inventory.group_vars, inventory.host_vars, *own])


def _fleet_vms(fleet: FleetSpec, names: list[tuple[str, int | None]], shared: frozenset[str]) -> Iterator[UnplacedVM]:
    templates: dict[tuple[int, ...], MergedTemplate] = {}
    matching_of = _matcher(fleet)
    for name, index in names:
        matching = matching_of(name) if fleet.overrides else ()
        own = fleet.instances.get(name, {}) if index is None else {}
        template = templates.get(matching)
        if template is None or index is None:
            template = templates[matching] = _merged_template(fleet, matching, own, shared)
        hosts = (own["host"],) if own.get("host") else fleet.hosts
        yield UnplacedVM(name=name, index=index, fleet=fleet, template=template, hosts=hosts)


def _matcher(fleet: FleetSpec) -> Callable[[str], tuple[int, ...]]:
    """Says which overrides a name matches; it looks one by one only at those with wildcards."""
    exact: dict[str, list[int]] = defaultdict(list)
    wild: list[tuple[int, Callable[[str], Any]]] = []
    for number, override in enumerate(fleet.overrides):
        if frozenset("*?[").isdisjoint(override.match):
            exact[override.match].append(number)
        else:
            wild.append((number, re.compile(translate(override.match)).match))
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


def _merged_template(
    fleet: FleetSpec, overrides: tuple[int, ...], own: dict[str, Any], shared: frozenset[str]
) -> MergedTemplate:
    fields = merged({}, fleet.template)
    for number in overrides:
        fields = merged(fields, fleet.overrides[number].fields)
    fields = merged(fields, {key: value for key, value in own.items() if key != "host"})
    variables_used = names_in(fields)
    if variables_used:
        variables_used |= shared | names_in(dict(fleet.vars))  # through one variable, others
    else:
        fields = Scope().resolve(fields)  # $${ stands for ${ here, too
    return MergedTemplate(fleet=fleet, fields=fields, variables_used=variables_used, overrides=overrides)


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
    return (
        Layer(origin="built in", values={"fleet": fleet.name, "project": specs.project}),
        Layer(origin="-e", values=specs.extra_vars),
        Layer(origin=f"fleet {fleet.name}", values=fleet.vars),
    )


def scope_of(vm: UnplacedVM, specs: Specs, host: str | None) -> Scope:
    """What variables mean for a VM; without a host, those of hosts in which all agree that may have it."""
    built_in: dict[str, Any] = {"name": vm.name}
    if vm.index is not None:
        built_in["index"] = vm.index
    inventory = specs.inventory or Inventory()
    beneath: tuple[Layer, ...] = ()
    if host is not None:
        built_in["host"] = inventory.facts(host)
        beneath = inventory.layers(host)
    elif vm.hosts is not None:
        built_in["host"] = inventory.agreed(vm.fleet.pattern if vm.hosts is vm.fleet.hosts else vm.hosts[0])
        beneath = (Layer(origin="every host that may have it", values=built_in["host"]),)
    return Scope(Layer(origin="built in", values=built_in), *_fleet_layers(vm.fleet, specs), *beneath)
