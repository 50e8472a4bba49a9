"""Where each value of a VM came from: which text, in which file, and which variables. For people, on demand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from mikrom_reconcile.core.model.fields import recorded
from mikrom_reconcile.core.parsing.variables import names_in
from mikrom_reconcile.core.parsing.yaml_text import Places
from mikrom_reconcile.core.parsing.yaml_words import plain
from mikrom_reconcile.core.specs.expand import UnplacedVM, scope_of
from mikrom_reconcile.core.specs.load import Specs
from mikrom_reconcile.core.specs.resolve import Resolver

Pointer = tuple[str | int, ...]


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
        """Every field of `vm` on `host`, sorted by path. Raises SpecError for what cannot be resolved.

        A VM that no host can have is described as its first host would have it.
        """
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
        shown = ".".join(path)
        for layer, pointer, fields in (*vm.sources(), _of_fleet(vm)):
            found, written = _at(fields, path)
            if found:
                if written is None:  # a null resets the field
                    break
                return FieldOrigin(
                    path=shown,
                    value=value,
                    written=written,
                    place=f"{self.place(vm, (*pointer, *path))} {layer}",
                    variables=tuple(_variables(self._specs, vm, host, written)),
                )
        return FieldOrigin(path=shown, value=value, written=value, place="default")


def _of_fleet(vm: UnplacedVM) -> tuple[str, Pointer, dict[str, Any]]:
    spec = vm.fleet.document.body["spec"]
    return "fleet", ("spec",), {key: spec.get(key, {}) for key in ("prune", "lifecycle")}


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


def _at(fields: dict[str, Any], path: tuple[str, ...]) -> tuple[bool, Any]:
    """Whether a layer says something about `path`: the value there, or a null above it."""
    value: Any = fields
    for step in path:
        if value is None:
            return True, None
        if not isinstance(value, dict) or step not in value:
            return False, None
        value = value[step]
    return True, value
