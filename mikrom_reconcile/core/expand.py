"""Specs to VMs: template, overrides and instances merged, variables looked up.

What decides placement (machine, state, image) is resolved here, without host variables; everything else once the
host is known. VMs that come out equal share one spec object, so that a fleet of 100,000 costs little more than one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from operator import attrgetter
from typing import Any

import msgspec

from mikrom_reconcile.core.documents import Flaw, problems_of
from mikrom_reconcile.core.errors import SpecError
from mikrom_reconcile.core.inventory import Inventory
from mikrom_reconcile.core.lifecycle import UP
from mikrom_reconcile.core.merging import merged
from mikrom_reconcile.core.model.desired import NAME_LENGTH, Machine, State, VMSpec
from mikrom_reconcile.core.model.devices import Check, NetworkInterface
from mikrom_reconcile.core.model.observed import Capacity
from mikrom_reconcile.core.networks import WHOLE
from mikrom_reconcile.core.schema_words import nearest
from mikrom_reconcile.core.specs import VM_NAME, FleetSpec, Specs, one_per_place
from mikrom_reconcile.core.variables import Layer, Scope, VariableError, names_in
from mikrom_reconcile.core.yaml_words import shown

PER_VM = frozenset({"name", "index"})
"""Variables that differ from VM to VM."""

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")

_DECIDES_PLACEMENT = ("machine", "state", "image")


class Recipe(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """Merged template fields, shared by all VMs that have the same overrides, and what they look up."""

    fleet: FleetSpec
    fields: dict[str, Any]
    looked_up: frozenset[str]


class PendingVM(msgspec.Struct, frozen=True, kw_only=True):
    """One VM as the specs want it, not yet placed. `hosts` may have it; None where there is no inventory."""

    name: str
    index: int | None
    fleet: FleetSpec
    recipe: Recipe
    hosts: tuple[str, ...] | None


def expand(specs: Specs) -> tuple[PendingVM, ...]:
    """Every VM that the specs want, sorted by name. Raises SpecError."""
    flaws: list[Flaw] = []
    vms: dict[str, PendingVM] = {}
    shared = _shared_lookups(specs)
    for fleet in specs.fleets:
        for vm in _fleet_vms(fleet, specs, shared, flaws):
            other = vms.setdefault(vm.name, vm)
            if other is not vm:
                message = f"two VMs would be called {vm.name}; the other is of fleet {other.fleet.name}"
                flaws.append(_flaw(fleet, ("metadata", "name"), message))
                break
    if flaws:
        raise SpecError(tuple(one_per_place(problems_of(flaws, specs.tree))))
    return tuple(sorted(vms.values(), key=attrgetter("name")))


def _shared_lookups(specs: Specs) -> frozenset[str]:
    """Names that the variables of all fleets look up: those of the command line and of the inventory."""
    inventory = specs.inventory or Inventory()
    own = [host.vars for host in inventory.hosts.values()] + [group.vars for group in inventory.groups.values()]
    return names_in([specs.extra_vars, inventory.group_vars, inventory.host_vars, *own])


def _fleet_vms(fleet: FleetSpec, specs: Specs, shared: frozenset[str], flaws: list[Flaw]) -> Iterator[PendingVM]:
    recipes: dict[tuple[int, ...], Recipe] = {}
    try:
        names = list(_names(fleet, specs))
    except VariableError as error:
        flaws.append(_flaw(fleet, ("spec", "vm_name"), str(error)))
        return
    longest = max((name for name, _ in names), key=len, default="")
    if len(longest) > NAME_LENGTH:
        message = f"the VM name {longest} has {len(longest)} characters; at most {NAME_LENGTH} are allowed"
        flaws.append(_flaw(fleet, ("metadata", "name"), message))
        return
    patterns = [(number, override.match) for number, override in enumerate(fleet.overrides)]
    for name, index in names:
        matching = tuple([number for number, pattern in patterns if fnmatchcase(name, pattern)]) if patterns else ()
        if index is None:
            own = fleet.instances[name]
            hosts = (own["host"],) if own.get("host") else fleet.hosts
            yield PendingVM(
                name=name, index=None, fleet=fleet, recipe=_recipe(fleet, matching, own, shared), hosts=hosts
            )
            continue
        recipe = recipes.get(matching)
        if recipe is None:
            recipe = recipes[matching] = _recipe(fleet, matching, {}, shared)
        yield PendingVM(name=name, index=index, fleet=fleet, recipe=recipe, hosts=fleet.hosts)


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
            name = str(Scope(number, *fleet_layers(fleet, specs)).resolve(fleet.vm_name))
            if not _NAME.fullmatch(name):
                raise VariableError(f"{name!r} cannot be a VM's name: it has only a-z, 0-9 and, inside, '-'", "")
            yield name, index


def _recipe(fleet: FleetSpec, overrides: tuple[int, ...], own: dict[str, Any], shared: frozenset[str]) -> Recipe:
    fields = merged({}, fleet.template)
    for number in overrides:
        fields = merged(fields, fleet.overrides[number].fields)
    if own:
        fields = merged(fields, {key: value for key, value in own.items() if key != "host"})
    looked_up = names_in(fields)
    if looked_up:
        looked_up |= shared | names_in(dict(fleet.vars))  # through one variable, others
    else:
        fields = Scope().resolve(fields)  # $${ stands for ${ here, too
    return Recipe(fleet=fleet, fields=fields, looked_up=looked_up)


def fleet_layers(fleet: FleetSpec, specs: Specs) -> tuple[Layer, ...]:
    """The variables that are the same for all VMs of a fleet on all hosts, the strongest first."""
    return (
        Layer(origin="built in", values={"fleet": fleet.name, "project": specs.project}),
        Layer(origin="-e", values=specs.extra_vars),
        Layer(origin=f"fleet {fleet.name}", values=fleet.vars),
    )


def scope_of(vm: PendingVM, specs: Specs, host: str | None) -> Scope:
    """What variables mean for a VM; without a host, host variables are not defined."""
    built_in: dict[str, Any] = {"name": vm.name}
    if vm.index is not None:
        built_in["index"] = vm.index
    beneath: tuple[Layer, ...] = ()
    if host is not None:
        inventory = specs.inventory or Inventory()
        built_in["host"] = inventory.facts(host)
        beneath = inventory.layers(host)
    return Scope(Layer(origin="built in", values=built_in), *fleet_layers(vm.fleet, specs), *beneath)


class _Stated(msgspec.Struct, frozen=True):
    state: State = "running"


class _Sized(_Stated, frozen=True):
    machine: Machine = Machine()


NOTHING = Capacity(vcpu_count=0, mem_size_mib=0)


class Resolver:
    """Turns pending VMs on hosts into state and spec; equal ones share their spec object."""

    def __init__(self, specs: Specs) -> None:
        self._specs = specs
        self._known: dict[int | tuple[int, str, str], tuple[State, VMSpec]] = {}
        self._needs: dict[tuple[int, str], Capacity] = {}
        self.flaws: list[Flaw] = []

    def check(self) -> None:
        """Raise SpecError when anything could not be resolved."""
        if self.flaws:
            raise SpecError(tuple(one_per_place(problems_of(self.flaws, self._specs.tree))))

    def resolve(self, vm: PendingVM, host: str) -> tuple[State, VMSpec]:
        """The VM's state and spec on `host`. A mistake is noted in `flaws`, once for each recipe."""
        names = vm.recipe.looked_up
        key = (id(vm.recipe), host, vm.name if names & PER_VM else "") if names else id(vm.recipe)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._resolved(vm, host)
        return found

    def need(self, vm: PendingVM) -> Capacity:
        """What the VM takes of any host: nothing while it is to be down. Mistakes are noted where it is resolved."""
        key = (id(vm.recipe), vm.name if vm.recipe.looked_up & PER_VM else "")
        found = self._needs.get(key)
        if found is None:
            fields = {key: value for key, value in vm.recipe.fields.items() if key in {"machine", "state"}}
            try:
                sized = msgspec.convert(scope_of(vm, self._specs, None).resolve(fields), _Sized)
            except (VariableError, msgspec.ValidationError):
                sized = _Sized(state="absent")
            machine = sized.machine
            needed = Capacity(vcpu_count=machine.vcpu_count, mem_size_mib=machine.mem_size_mib)
            found = self._needs[key] = needed if sized.state in UP else NOTHING
        return found

    def _resolved(self, vm: PendingVM, host: str) -> tuple[State, VMSpec]:
        try:
            fields = self._fields(vm, host)
            state = msgspec.convert(fields, _Stated).state
            image = self._specs.images.get(str(fields.get("image")))
            if image is not None:
                fields = {"boot_args": image.boot_args, "boot": image.boot} | fields
            spec = msgspec.convert(fields, VMSpec)
            if image is not None:
                self._look_at_checks(vm, spec)
                return state, self._on_networks(vm, spec)
            pointer = _where(vm, min(names_in(vm.recipe.fields["image"])))
            self.flaws.append(_flaw(vm.fleet, pointer, f"{vm.name}: unknown image {spec.image!r}"))
        except VariableError:
            for error in self._unanswered(vm, host):
                self.flaws.append(_flaw(vm.fleet, _where(vm, error.name), f"{vm.name}: {error}"))
        except msgspec.ValidationError as error:
            what, _, where = str(error).partition(" - at `$")
            path = where.rstrip("`").lstrip(".").replace("[...]", ".*")  # it does not say which of the named things
            pointer = ("spec", "template", *path.partition(".*")[0].split(".")) if path else ("spec", "template")
            self.flaws.append(_flaw(vm.fleet, pointer, f"{vm.name}: {path or 'template'}: {what.replace('`', '')}"))
        return "running", VMSpec(image="hello")

    def _look_at_checks(self, vm: PendingVM, spec: VMSpec) -> None:
        for name, check in spec.checks.items():
            for complaint in check_complaints(check):
                self.flaws.append(_flaw(vm.fleet, ("spec", "template", "checks", name), f"{vm.name}: {complaint}"))

    def _on_networks(self, vm: PendingVM, spec: VMSpec) -> VMSpec:
        """The spec with what the networks of its interfaces say."""
        interfaces = {name: self._on_network(vm, name, nic) for name, nic in spec.network_interfaces.items()}
        return msgspec.structs.replace(spec, network_interfaces=interfaces) if interfaces else spec

    def _on_network(self, vm: PendingVM, name: str, nic: NetworkInterface) -> NetworkInterface:
        own = vm.fleet.instances.get(vm.name, {}).get("network_interfaces", {})
        written = ("instances", vm.name) if name in own else ("template",)
        pointer = ("spec", *written, "network_interfaces", name)
        network = self._specs.networks.get(nic.network)
        if network is None:
            message, hint = f"unknown network {nic.network!r}", nearest(nic.network, tuple(self._specs.networks))
            self.flaws.append(_flaw(vm.fleet, (*pointer, "network"), f"{vm.name}: {message}", hint))
            return nic
        if nic.ip is not None:
            if complaint := network.complaint(nic.ip):
                self.flaws.append(_flaw(vm.fleet, (*pointer, "ip"), f"{vm.name}: {complaint}"))
        elif (nic.pool or WHOLE) not in network.pools:
            said = f"network {network.name} has no pool {nic.pool!r}" if nic.pool else "say which pool, or which ip"
            hint = nearest(nic.pool or "", tuple(network.pools))
            self.flaws.append(_flaw(vm.fleet, (*pointer, "pool"), f"{vm.name}: {said}", hint))
        return msgspec.structs.replace(nic, cidr=network.cidr, gateway=network.gateway, nat=network.nat)

    def _fields(self, vm: PendingVM, host: str) -> dict[str, Any]:
        if not vm.recipe.looked_up:
            return dict(vm.recipe.fields)
        scopes = self._scopes(vm, host)
        return {key: scopes[key in _DECIDES_PLACEMENT].resolve(value) for key, value in vm.recipe.fields.items()}

    def _scopes(self, vm: PendingVM, host: str) -> tuple[Scope, Scope]:
        """What variables mean once the host is known, and before."""
        return scope_of(vm, self._specs, host), scope_of(vm, self._specs, None)

    def _unanswered(self, vm: PendingVM, host: str) -> Iterator[VariableError]:
        """Why a text cannot be resolved, for each that cannot."""
        scopes = self._scopes(vm, host)
        for key, value in vm.recipe.fields.items():
            for text in _texts_in(value):
                try:
                    scopes[key in _DECIDES_PLACEMENT].resolve(text)
                except VariableError as error:
                    yield error


def check_complaints(check: Check) -> Iterator[str]:
    """What a schema cannot see in a check."""
    if check.type == "tcp" and check.port is None:
        yield "a tcp check needs a port"
    if check.type == "console" and check.expect is None and check.deny is None:
        yield "a console check needs expect, deny or both"
    for word in (check.expect, check.deny):
        try:
            re.compile(word or "")
        except re.error as error:
            yield f"{shown(word or '')} is no regular expression: {error}"


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for item in value.values():
            yield from _texts_in(item)
    elif isinstance(value, str):
        yield value


def _flaw(fleet: FleetSpec, pointer: tuple[str | int, ...], message: str, hint: str = "") -> Flaw:
    return Flaw(document=fleet.document, pointer=pointer, message=message, hint=hint)


def _where(vm: PendingVM, name: str) -> tuple[str | int, ...]:
    """The first field whose text looks `name` up."""
    spec = vm.fleet.document.body["spec"]
    return next(_pointers_to(spec, name, ("spec",)), ("spec", "template"))


def _pointers_to(value: Any, name: str, pointer: tuple[str | int, ...]) -> Iterator[tuple[str | int, ...]]:
    if isinstance(value, str) and name in names_in(value):
        yield pointer
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _pointers_to(item, name, (*pointer, key))
