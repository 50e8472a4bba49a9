"""What is written in good specs and has no effect, as far as that is no mistake for sure: one table of warnings."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from mikrom_reconcile.core.model.desired import DISRUPTION, resolve_share
from mikrom_reconcile.core.model.documents import Diagnostic, SpecProblem
from mikrom_reconcile.core.parsing import documents, variables, yaml_words
from mikrom_reconcile.core.specs.budgets import largest
from mikrom_reconcile.core.specs.load import FleetSpec, Specs, UnplacedVM, shared_lookups
from mikrom_reconcile.core.specs.resolve import NOTHING, Resolver
from mikrom_reconcile.times_and_sizes import SPECS


def spec_warnings(specs: Specs, pending: Sequence[UnplacedVM]) -> tuple[SpecProblem, ...]:
    """Everything in the specs that has no effect, sorted by place."""
    found = (found for warning in WARNINGS for found in warning(specs, pending))
    places = documents.Places(specs.tree)
    return documents.dedupe_by_position(map(places.problem, islice(found, SPECS.max_problems + 1)))


def _overrides(specs: Specs, pending: Sequence[UnplacedVM]) -> Iterator[Diagnostic]:
    used = {(vm.fleet.name, number) for vm in pending for number in vm.template.overrides}
    for fleet in specs.fleets:
        for number, override in enumerate(fleet.overrides):
            if (fleet.name, number) not in used:
                pointer = ("spec", "overrides", number, "match")
                message = f"override {yaml_words.shown(override['match'])} matches no VM of fleet {fleet.name}"
                yield Diagnostic(fleet.document, pointer, message)


def _variables(specs: Specs, _: Sequence[UnplacedVM]) -> Iterator[Diagnostic]:
    shared = shared_lookups(specs)
    for fleet in specs.fleets:
        for name in sorted(fleet.vars.keys() - _reached(fleet, shared)) if fleet.vars else ():
            message = f"nothing in fleet {fleet.name} looks the variable {name} up"
            yield Diagnostic(fleet.document, ("spec", "vars", name), message, key=True)


def _reached(fleet: FleetSpec, shared: frozenset[str]) -> set[str]:
    """The names that a fleet looks up, directly or through variables of its own."""
    written: list[Any] = [fleet.vm_name, fleet.template, fleet.instances, *fleet.overrides]
    reached: set[str] = set()
    left = {*shared, *variables.names_in(written)}
    while left:
        name = left.pop().partition(".")[0]
        if name not in reached:
            reached.add(name)
            left |= variables.names_in(fleet.vars.get(name))
    return reached


def _groups(specs: Specs, _: Sequence[UnplacedVM]) -> Iterator[Diagnostic]:
    for name, hosts in specs.inventory.members.items():
        if not hosts:
            yield Diagnostic(specs.inventory.document, ("spec", "groups", name), f"group {name} has no hosts", key=True)


def _serial(specs: Specs, pending: Sequence[UnplacedVM]) -> Iterator[Diagnostic]:
    need = Resolver(specs).need
    sizes = Counter(vm.fleet.name for vm in pending if vm.fleet.rollout and need(vm) is not NOTHING)
    for fleet in specs.fleets:
        serial = fleet.rollout.serial if fleet.rollout else ()
        size = sizes[fleet.name]
        share = largest(fleet.budgets, size)
        batches = serial if isinstance(serial, tuple) else (serial,)
        over = [each for each in batches if resolve_share(each, size) > share]
        if over and share < size:
            told = " and ".join(map(str, over))
            message = (
                f"fleet {fleet.name}: serial {told} has no effect beyond {share}:"
                f" at most {DISRUPTION} of its {size} VMs that are to be up, or what disruption.budgets allow,"
                " are taken down at a time"
            )
            yield Diagnostic(fleet.document, ("spec", "rollout", "serial"), message)


def _order(specs: Specs, pending: Sequence[UnplacedVM]) -> Iterator[Diagnostic]:
    for fleet in specs.fleets:
        order = fleet.rollout.order if fleet.rollout else ()
        known = {vm.name for vm in pending if vm.fleet is fleet} | {*(fleet.hosts or ())} if order else ()
        for number, word in enumerate(order if isinstance(order, tuple) else ()):
            if word not in known:
                message = f"fleet {fleet.name}: {yaml_words.shown(word)} in order is neither a VM nor a host of it"
                yield Diagnostic(fleet.document, ("spec", "rollout", "order", number), message)


WARNINGS = (_order, _overrides, _variables, _groups, _serial)
