"""Specs to VMs: template, overrides and instances merged, variables looked up.

What decides placement (machine, state, image) is resolved here, without host variables; everything else once the
host is known. VMs that come out equal share one spec object, so that a fleet of 100,000 costs little more than one.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase, translate
from operator import attrgetter
from typing import Any

import msgspec

from mikrom_reconcile.core.model.desired import Machine, State, VMSpec
from mikrom_reconcile.core.model.devices import NetworkInterface
from mikrom_reconcile.core.model.errors import SpecError
from mikrom_reconcile.core.model.lifecycle import WANTS_VMM
from mikrom_reconcile.core.model.observed import Capacity
from mikrom_reconcile.core.model.ready import ready
from mikrom_reconcile.core.parsing.documents import Diagnostic, problems_of
from mikrom_reconcile.core.parsing.merging import merged
from mikrom_reconcile.core.parsing.schema_errors import describe_value, expectation, nearest
from mikrom_reconcile.core.parsing.variables import Layer, Scope, VariableError, names_in
from mikrom_reconcile.core.specs.inventory import Inventory
from mikrom_reconcile.core.specs.load import VM_NAME, FleetSpec, Specs, dedupe_by_position
from mikrom_reconcile.core.specs.networks import WHOLE
from mikrom_reconcile.core.specs.vm_checks import problems_in
from mikrom_reconcile.limits import SPECS

PER_VM = frozenset({"name", "index"})
"""Variables that differ from VM to VM."""

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")

_DECIDES_PLACEMENT = ("machine", "state", "image")


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


def expand(specs: Specs) -> tuple[UnplacedVM, ...]:
    """Every VM that the specs want, sorted by name. Raises SpecError."""
    flaws: list[Diagnostic] = []
    vms: dict[str, UnplacedVM] = {}
    shared = shared_lookups(specs)
    for fleet in specs.fleets:
        for vm in _fleet_vms(fleet, specs, shared, flaws):
            other = vms.setdefault(vm.name, vm)
            if other is not vm:
                message = f"two VMs would be called {vm.name}; the other is of fleet {other.fleet.name}"
                flaws.append(_flaw(fleet, ("metadata", "name"), message))
                break
    if flaws:
        raise SpecError(tuple(dedupe_by_position(problems_of(flaws, specs.tree))))
    return tuple(sorted(vms.values(), key=attrgetter("name")))


def shared_lookups(specs: Specs) -> frozenset[str]:
    """Names that the variables of all fleets look up: those of the command line and of the inventory."""
    inventory = specs.inventory or Inventory()
    own = [host.vars for host in inventory.hosts.values()] + [group.vars for group in inventory.groups.values()]
    return names_in([specs.extra_vars, inventory.group_vars, inventory.host_vars, *own])


def _fleet_vms(fleet: FleetSpec, specs: Specs, shared: frozenset[str], flaws: list[Diagnostic]) -> Iterator[UnplacedVM]:
    templates: dict[tuple[int, ...], MergedTemplate] = {}
    try:
        names = list(_names(fleet, specs))
    except VariableError as error:
        flaws.append(_flaw(fleet, ("spec", "vm_name"), str(error)))
        return
    longest = max((name for name, _ in names), key=len, default="")
    if len(longest) > SPECS.name_characters:
        message = f"the VM name {longest} has {len(longest)} characters; at most {SPECS.name_characters} are allowed"
        flaws.append(_flaw(fleet, ("metadata", "name"), message))
        return
    matching_of = _matcher(fleet)
    for name, index in names:
        matching = matching_of(name) if fleet.overrides else ()
        if index is None:
            own = fleet.instances[name]
            hosts = (own["host"],) if own.get("host") else fleet.hosts
            yield UnplacedVM(
                name=name, index=None, fleet=fleet, template=_merged_template(fleet, matching, own, shared), hosts=hosts
            )
            continue
        template = templates.get(matching)
        if template is None:
            template = templates[matching] = _merged_template(fleet, matching, {}, shared)
        yield UnplacedVM(name=name, index=index, fleet=fleet, template=template, hosts=fleet.hosts)


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
            name = str(Scope(number, *fleet_layers(fleet, specs)).resolve(fleet.vm_name))
            if not _NAME.fullmatch(name):
                raise VariableError(f"{name!r} cannot be a VM's name: it has only a-z, 0-9 and, inside, '-'", "")
            yield name, index


def _merged_template(
    fleet: FleetSpec, overrides: tuple[int, ...], own: dict[str, Any], shared: frozenset[str]
) -> MergedTemplate:
    fields = merged({}, fleet.template)
    for number in overrides:
        fields = merged(fields, fleet.overrides[number].fields)
    if own:
        fields = merged(fields, {key: value for key, value in own.items() if key != "host"})
    variables_used = names_in(fields)
    if variables_used:
        variables_used |= shared | names_in(dict(fleet.vars))  # through one variable, others
    else:
        fields = Scope().resolve(fields)  # $${ stands for ${ here, too
    return MergedTemplate(fleet=fleet, fields=fields, variables_used=variables_used, overrides=overrides)


def fleet_layers(fleet: FleetSpec, specs: Specs) -> tuple[Layer, ...]:
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
        self.flaws: list[Diagnostic] = []

    def check(self) -> None:
        """Raise SpecError when anything could not be resolved."""
        if self.flaws:
            raise SpecError(tuple(dedupe_by_position(problems_of(self.flaws, self._specs.tree))))

    def resolve(self, vm: UnplacedVM, host: str) -> tuple[State, VMSpec]:
        """The VM's state and spec on `host`. A mistake is noted in `flaws`, once for each template."""
        names = vm.template.variables_used
        key = (id(vm.template), host, vm.name if names & PER_VM else "") if names else id(vm.template)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._resolved(vm, host)
        return found

    def need(self, vm: UnplacedVM) -> Capacity:
        """What the VM takes of any host: nothing while it is to be down. Mistakes are noted where it is resolved."""
        key = (id(vm.template), vm.name if vm.template.variables_used & PER_VM else "")
        found = self._needs.get(key)
        if found is None:
            fields = {key: value for key, value in vm.template.fields.items() if key in {"machine", "state"}}
            try:
                sized = msgspec.convert(scope_of(vm, self._specs, None).resolve(fields), ready(_Sized))
            except (VariableError, msgspec.ValidationError):
                sized = _Sized(state="absent")
            machine = sized.machine
            needed = Capacity(vcpu_count=machine.vcpu_count, mem_size_mib=machine.mem_size_mib)
            found = self._needs[key] = needed if sized.state in WANTS_VMM else NOTHING
        return found

    def _resolved(self, vm: UnplacedVM, host: str) -> tuple[State, VMSpec]:
        known = len(self.flaws)
        state, spec = self._converted(vm, host)
        for path, message in problems_in(spec) if len(self.flaws) == known else ():
            self._tell(vm, path, message)
        return (state, spec) if len(self.flaws) == known else ("running", VMSpec(image="hello"))

    def _converted(self, vm: UnplacedVM, host: str) -> tuple[State, VMSpec]:
        fields: dict[str, Any] = {}
        try:
            fields = self._fields(vm, host)
            image = self._specs.images.get(str(fields.get("image")))
            if image is not None:
                fields = {"boot_args": image.boot_args, "boot": image.boot} | fields
            spec = msgspec.convert(fields, ready(VMSpec))
            if image is None:
                self._tell(
                    vm, ("image",), f"unknown image {spec.image!r}", nearest(spec.image, tuple(self._specs.images))
                )
            return msgspec.convert(fields, ready(_Stated)).state, self._on_networks(vm, spec)
        except VariableError:
            for text, error in self._unanswered(vm, host):
                self.flaws.append(_flaw(vm.fleet, _where(vm, error.name, text), f"{vm.name}: {error}"))
        except msgspec.ValidationError:
            for path, value, wanted in _misfits(fields):
                written = _dig(vm.template.fields, path)
                found = "missing" if value is None else describe_value(value) + self._from(vm, host, written)
                self._tell(vm, path, f"{'.'.join(path)} is {found}; {wanted}")
        return "running", VMSpec(image="hello")

    def _from(self, vm: UnplacedVM, host: str, written: Any) -> str:
        """Which variables made a value, and where each is set."""
        scope = scope_of(vm, self._specs, host)
        names = sorted(names_in(written))
        scope.resolve(written)
        return f" ({', '.join(f'${{{name}}}: {scope.used[name][1]}' for name in names)})" if names else ""

    def _tell(self, vm: UnplacedVM, path: tuple[str | int, ...], message: str, hint: str = "") -> None:
        self.flaws.append(_flaw(vm.fleet, written_at(vm, path), f"{vm.name}: {message}", hint))

    def _on_networks(self, vm: UnplacedVM, spec: VMSpec) -> VMSpec:
        """The spec with what the networks of its interfaces say."""
        interfaces = {name: self._on_network(vm, name, nic) for name, nic in spec.network_interfaces.items()}
        return msgspec.structs.replace(spec, network_interfaces=interfaces) if interfaces else spec

    def _on_network(self, vm: UnplacedVM, name: str, nic: NetworkInterface) -> NetworkInterface:
        path = ("network_interfaces", name)
        network = self._specs.networks.get(nic.network)
        if network is None:
            message, hint = f"unknown network {nic.network!r}", nearest(nic.network, tuple(self._specs.networks))
            self._tell(vm, (*path, "network"), message, hint)
            return nic
        if nic.ip is not None and (complaint := network.complaint(nic.ip)):
            self._tell(vm, (*path, "ip"), complaint)
        if (nic.pool or WHOLE) not in network.pools and (nic.pool or nic.ip is None):
            said = f"network {network.name} has no pool {nic.pool!r}" if nic.pool else "say which pool, or which ip"
            hint = nearest(nic.pool or "", tuple(filter(None, network.pools)))
            self._tell(vm, (*path, "pool"), said, hint)
        return msgspec.structs.replace(nic, cidr=network.cidr, gateway=network.gateway, nat=network.nat)

    def _fields(self, vm: UnplacedVM, host: str) -> dict[str, Any]:
        if not vm.template.variables_used:
            return dict(vm.template.fields)
        scopes = self._scopes(vm, host)
        return {key: scopes[key in _DECIDES_PLACEMENT].resolve(value) for key, value in vm.template.fields.items()}

    def _scopes(self, vm: UnplacedVM, host: str) -> tuple[Scope, Scope]:
        """What variables mean once the host is known, and before."""
        return scope_of(vm, self._specs, host), scope_of(vm, self._specs, None)

    def _unanswered(self, vm: UnplacedVM, host: str) -> Iterator[tuple[str, VariableError]]:
        """Each text that cannot be resolved, and why."""
        scopes = self._scopes(vm, host)
        for key, value in vm.template.fields.items():
            for text in _texts_in(value):
                try:
                    scopes[key in _DECIDES_PLACEMENT].resolve(text)
                except VariableError as error:
                    yield text, self._disagreeing(vm, error) if key in _DECIDES_PLACEMENT else error

    def _disagreeing(self, vm: UnplacedVM, error: VariableError) -> VariableError:
        """Why what decides placement has no answer, although some host has one."""
        found: dict[str, str] = {}
        for host in vm.hosts or ():
            try:
                value = describe_value(scope_of(vm, self._specs, host).lookup(error.name))
            except VariableError:
                value = "not set"
            found.setdefault(value, host)
        if len(found) < _UNLIKE:
            return error
        told = " and ".join(f"{value} on {host}" for value, host in list(found.items())[:_UNLIKE])
        why = "what decides placement must be the same on every host that may have the VM"
        message = f"${{{error.name}}} is {told}; {why}: narrow its hosts, or write the value"
        return VariableError(message, error.name)


def _misfits(fields: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], Any, str]]:
    """Each field that is not what it must be: its path, its value, and what it must be."""
    for key, value in ({"image": None} | fields).items():
        named = key in _OF_NAMED_THINGS and isinstance(value, dict)
        for name in value if named else ("",):
            try:
                msgspec.convert({"image": "", key: {name: value[name]} if named else value}, ready(VMSpec))
            except msgspec.ValidationError as error:
                what, _, where = str(error).partition(" - at `$")
                steps = where.rstrip("`").replace("[...]", f".{name}").split(".")[1:]
                missing = re.search("missing required field `(.*)`", what)
                path = (*steps, missing[1]) if missing else tuple(steps)
                yield path, _dig(fields, path), expectation(what)


_UNLIKE = 2

_OF_NAMED_THINGS = frozenset({"drives", "network_interfaces", "checks"})


def _dig(fields: dict[str, Any], path: tuple[str | int, ...]) -> Any:
    value: Any = fields
    for step in path:
        value = value.get(step) if isinstance(value, dict) else None
    return value


def layers(vm: UnplacedVM) -> Iterator[tuple[str, tuple[str | int, ...], dict[str, Any]]]:
    """What may say something about a VM, the strongest first: its name, its place, and what it says."""
    fleet = vm.fleet
    if vm.name in fleet.instances:
        yield f"instance {vm.name}", ("spec", "instances", vm.name), fleet.instances[vm.name]
    for number in reversed(range(len(fleet.overrides))):
        override = fleet.overrides[number]
        if fnmatchcase(vm.name, override.match):
            yield f"override {override.match}", ("spec", "overrides", number), override.fields
    yield "template", ("spec", "template"), fleet.template


def written_at(vm: UnplacedVM, path: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """Where the field at `path` is written, or what it is missing in."""
    for length in range(len(path), 0, -1):
        for _, pointer, fields in layers(vm):
            if _dig(fields, path[:length]) is not None:
                return (*pointer, *path)
    return ("spec", "template", *path)


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for item in value.values():
            yield from _texts_in(item)
    elif isinstance(value, str):
        yield value


def _flaw(fleet: FleetSpec, pointer: tuple[str | int, ...], message: str, hint: str = "") -> Diagnostic:
    return Diagnostic(document=fleet.document, pointer=pointer, message=message, hint=hint)


def _where(vm: UnplacedVM, name: str, text: str) -> tuple[str | int, ...]:
    """The first field whose text looks `name` up, or does so through other variables: that of `text`."""
    spec = vm.fleet.document.body["spec"]
    direct = _pointers_to(spec, lambda found: name in names_in(found), ("spec",))
    return next(direct, None) or next(_pointers_to(spec, lambda found: found == text, ("spec",)))


def _pointers_to(
    value: Any, wanted: Callable[[str], bool], pointer: tuple[str | int, ...]
) -> Iterator[tuple[str | int, ...]]:
    if isinstance(value, str) and wanted(value):
        yield pointer
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _pointers_to(item, wanted, (*pointer, key))
