"""VMs to what their hosts get; what decides placement is resolved without host variables. Equal VMs share a spec."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import msgspec

from mikrom_reconcile.core.model.desired import Machine, State, VMSpec
from mikrom_reconcile.core.model.documents import Diagnostic, Pointer
from mikrom_reconcile.core.model.encoding import ready
from mikrom_reconcile.core.model.fields import recorded
from mikrom_reconcile.core.model.observed import WANTS_VMM, Capacity
from mikrom_reconcile.core.parsing.documents import Places, raise_for
from mikrom_reconcile.core.parsing.schema_errors import describe_value, expectation
from mikrom_reconcile.core.parsing.variables import VariableError, dig, names_in, walk
from mikrom_reconcile.core.parsing.yaml_words import plain
from mikrom_reconcile.core.specs.load import Specs, UnplacedVM, scope_of
from mikrom_reconcile.core.specs.networks import OF_INTERFACES, Network
from mikrom_reconcile.core.specs.validate_vms import vm_problems

_PER_VM = frozenset({"name", "index"})  # variables that differ from VM to VM
_DECIDES_PLACEMENT = ("machine", "state", "image")

_OF_NAMED_THINGS = frozenset({"drives", "network_interfaces", "checks", "env"})


class _Sized(msgspec.Struct, frozen=True):
    state: State = "running"
    machine: Machine = Machine()


NOTHING: Final = Capacity(vcpu_count=0, mem_size_mib=0)
_NOT_SAID: Final = object()
_UNRESOLVED: Final[tuple[State, VMSpec]] = ("running", VMSpec(image="hello"))


class Resolver:
    """Turns VMs on hosts into state and spec; equal ones share their spec object. Mistakes are noted."""

    def __init__(self, specs: Specs) -> None:
        self._specs = specs
        self._known: dict[int | tuple[int, str, str], tuple[State, VMSpec]] = {}
        self._needs: dict[tuple[int, str], Capacity] = {}
        self.mistakes: list[Diagnostic] = []

    def check(self) -> None:
        """Raise SpecError when anything could not be resolved."""
        raise_for(self.mistakes, self._specs.tree)

    def resolve(self, vm: UnplacedVM, host: str) -> tuple[State, VMSpec]:
        """The VM's state and spec on `host`. A mistake is noted once for each template."""
        names = vm.template.variables_used
        key = (id(vm.template), host, vm.name if names & _PER_VM else "") if names else id(vm.template)
        if (found := self._known.get(key)) is None:
            found = self._known[key] = self._resolved(vm, host)
        return found

    def need(self, vm: UnplacedVM) -> Capacity:
        """What the VM takes of any host: nothing while it is to be down. Mistakes are noted where it is resolved."""
        key = (id(vm.template), vm.name if vm.template.variables_used & _PER_VM else "")
        if (found := self._needs.get(key)) is None:
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
        fields: dict[str, Any] = {}
        try:
            fields = self._fields(vm, host)
            spec = _on_networks(msgspec.convert(fields, ready(VMSpec)), self._specs.networks)
            state = msgspec.convert(fields, ready(_Sized)).state
        except VariableError:
            found = [*self._unanswered(vm, host)]
        except msgspec.ValidationError:
            found = [*self._misfits(vm, host, fields)]
        else:
            problems = vm_problems(spec, self._specs.images, self._specs.networks)
            found = [_mistake(vm, path, message, hint) for path, message, hint in problems]
            if state == "suspended" and spec.machine.huge_pages != "None":
                found.append(_mistake(vm, ("state",), "memory of huge pages is not kept: say paused or stopped"))
            if not found:
                return state, spec
        self.mistakes += found
        return _UNRESOLVED

    def _fields(self, vm: UnplacedVM, host: str) -> dict[str, Any]:
        fields = dict(vm.template.fields)
        if vm.template.variables_used:
            scope_for = self._scopes(vm, host)
            fields = {key: scope_for(key).resolve(value) for key, value in fields.items()}
        image = self._specs.images.get(str(fields.get("image")))
        return fields if image is None else {"boot_args": image.boot_args, "boot": image.boot} | fields

    def _scopes(self, vm: UnplacedVM, host: str) -> Callable[[str], Any]:
        """What variables mean in each top field: what decides placement is resolved before the host is known."""
        on_host, anywhere = scope_of(vm, self._specs, host), scope_of(vm, self._specs, None)
        return lambda field: anywhere if field in _DECIDES_PLACEMENT else on_host

    def _unanswered(self, vm: UnplacedVM, host: str) -> Iterator[Diagnostic]:
        scope_for = self._scopes(vm, host)
        for field, value in vm.template.fields.items():
            for text in (found for _, found in walk(value) if isinstance(found, str)):
                try:
                    scope_for(field).resolve(text)
                except VariableError as error:
                    why = (field in _DECIDES_PLACEMENT and self._disagreement(vm, error.name)) or str(error)
                    yield Diagnostic(vm.fleet.document, _lookup_of(vm, error.name, text), f"{vm.name}: {why}")

    def _disagreement(self, vm: UnplacedVM, name: str) -> str:
        """Why what decides placement has no answer, although some host has one; "" if none has."""
        found: dict[str, str] = {}
        for host in vm.hosts or ():
            try:
                value = describe_value(scope_of(vm, self._specs, host).lookup(name))
            except VariableError:
                value = "not set"
            found.setdefault(value, host)
        told = " and ".join(f"{value} on {host}" for value, host in list(found.items())[:2])
        why = "what decides placement must be the same on every host that may have the VM"
        return "" if len(found) < 2 else f"${{{name}}} is {told}; {why}: narrow its hosts, or write the value"

    def _misfits(self, vm: UnplacedVM, host: str, fields: dict[str, Any]) -> Iterator[Diagnostic]:
        for path, wanted in _misfits_in(fields):
            value = dig(fields, path)
            found = "missing" if value is None else describe_value(value) + self._made_from(vm, host, path)
            yield _mistake(vm, path, f"{'.'.join(path)} is {found}; {wanted}")

    def _made_from(self, vm: UnplacedVM, host: str, path: tuple[str, ...]) -> str:
        """Which variables made a value, and where each is set."""
        written = dig(vm.template.fields, path)
        scope = scope_of(vm, self._specs, host)
        names = sorted(names_in(written))
        scope.resolve(written)
        return f" ({', '.join(f'${{{name}}}: {scope.used[name][1]}' for name in names)})" if names else ""


def _on_networks(spec: VMSpec, networks: Mapping[str, Network]) -> VMSpec:
    interfaces = dict(spec.network_interfaces)
    for name, nic in spec.network_interfaces.items():
        if found := networks.get(nic.network):
            interfaces[name] = msgspec.structs.replace(nic, **{word: getattr(found, word) for word in OF_INTERFACES})
    return msgspec.structs.replace(spec, network_interfaces=interfaces) if interfaces else spec


def _misfits_in(fields: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], str]]:
    """The path of each field that is not what it must be, and what that is."""
    for key, value in ({"image": None} | fields).items():
        named = key in _OF_NAMED_THINGS and isinstance(value, dict)
        for name in value if named else ("",):
            try:
                msgspec.convert({"image": "", key: {name: value[name]} if named else value}, ready(VMSpec))
            except msgspec.ValidationError as error:
                what, _, where = str(error).partition(" - at `$")
                steps = where.rstrip("`").replace("[...]", f".{name}").split(".")[1:]
                missing = re.search("missing required field `(.*)`", what)
                yield (*steps, missing[1]) if missing else tuple(steps), expectation(what)


def _mistake(vm: UnplacedVM, path: Pointer, message: str, hint: str = "") -> Diagnostic:
    """A mistake in the field at `path`, at the place where it is written, or in what it is missing."""
    pointer: Pointer = ("spec", "template", *path)
    for length in range(len(path), 0, -1):
        says = (source for _, source, fields in vm.sources() if dig(fields, path[:length]) is not None)
        if (source := next(says, None)) is not None:
            pointer = (*source, *path)
            break
    return Diagnostic(vm.fleet.document, pointer, f"{vm.name}: {message}", hint)


def _lookup_of(vm: UnplacedVM, name: str, text: str) -> Pointer:
    """The first field whose text looks `name` up, or does so through other variables: that of `text`."""
    texts = [(at, found) for at, found in walk(vm.fleet.document.body["spec"], ("spec",)) if isinstance(found, str)]
    direct = (pointer for pointer, found in texts if name in names_in(found))
    return next(direct, None) or next(pointer for pointer, found in texts if found == text)


class VariableOrigin(msgspec.Struct, frozen=True, kw_only=True):
    """A variable that a value looked up, directly or through others, and where its own value was found."""

    name: str
    value: Any
    origin: str


class FieldOrigin(msgspec.Struct, frozen=True, kw_only=True):
    """One field of a VM. `written` is the text before variables; `place` is `path:line:column layer`, or "default"."""

    path: str
    value: Any
    written: Any
    place: str
    variables: tuple[VariableOrigin, ...] = ()


class Provenance:
    """Answers for the VMs of one reading of the specs; each file is looked through once."""

    def __init__(self, specs: Specs) -> None:
        self._specs = specs
        self._resolver = Resolver(specs)
        self._places = Places(specs.tree)

    def of(self, vm: UnplacedVM, host: str) -> tuple[FieldOrigin, ...]:
        """Every field of `vm` on `host`, else on the first that may have it, sorted by path. Raises SpecError."""
        host = host or (vm.hosts or ("",))[0]
        state, spec = self._resolver.resolve(vm, host)
        self._resolver.check()
        values = recorded(fleet=vm.fleet.name, state=state, spec=spec, policy=vm.fleet.policy)
        del values["fleet"]  # that is the document itself
        return tuple(self._origin(vm, host, path, value) for path, value in sorted(leaves(values)))

    def place(self, vm: UnplacedVM, pointer: Pointer) -> str:
        """Where `pointer` stands in the document of a VM's fleet: `path:line:column`."""
        line, column = self._places.find(vm.fleet.document, pointer)
        return f"{vm.fleet.document.path}:{line}:{column}"

    def _origin(self, vm: UnplacedVM, host: str, path: tuple[str, ...], value: Any) -> FieldOrigin:
        shown, spec = ".".join(path), vm.fleet.document.body["spec"]
        protection = {key: spec.get(key, {}) for key in ("prune", "lifecycle")}
        for layer, pointer, fields in (*vm.sources(), ("fleet", ("spec",), protection)):
            *above, written = (dig(fields, path[:length], _NOT_SAID) for length in range(len(path) + 1))
            if written is None or None in above:  # a null resets the field
                break
            if written is not _NOT_SAID:
                place = f"{self.place(vm, (*pointer, *path))} {layer}"
                used = tuple(_variables(self._specs, vm, host, written))
                return FieldOrigin(path=shown, value=value, written=written, place=place, variables=used)
        return FieldOrigin(path=shown, value=value, written=value, place="default")


def _variables(specs: Specs, vm: UnplacedVM, host: str, written: Any) -> Iterator[VariableOrigin]:
    if names_in(written):
        scope = scope_of(vm, specs, host)
        scope.resolve(written)
        for name, (value, origin) in sorted(scope.used.items()):
            yield VariableOrigin(name=name, value=plain(value), origin=origin)


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every value in nested mappings that is no mapping, with its path."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    else:
        yield path, value
