"""The desired state: what the specs want, on the hosts where it belongs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from msgspec.structs import replace

from mikrom_reconcile.core.model.desired import DesiredState, DesiredVM
from mikrom_reconcile.core.model.digests import spec_digest
from mikrom_reconcile.core.model.errors import SpecError
from mikrom_reconcile.core.model.fields import drop_paths
from mikrom_reconcile.core.model.specs import Diagnostic, SourceTree, SpecProblem
from mikrom_reconcile.core.parsing.documents import Schemas, dedupe_by_position
from mikrom_reconcile.core.placement.addresses import Addresses, conflicts, retained
from mikrom_reconcile.core.placement.scheduler import Scheduler
from mikrom_reconcile.core.specs.expand import UnplacedVM, expand
from mikrom_reconcile.core.specs.load import Specs, load
from mikrom_reconcile.core.specs.resolve import Resolver

NO_LEASES: Mapping[str, Addresses] = MappingProxyType({})


def desired_state(
    specs: Specs, pending: Sequence[UnplacedVM], scheduler: Scheduler, leases: Mapping[str, Addresses] = NO_LEASES
) -> DesiredState:
    """What the specs want of these VMs. Raises SpecError for what cannot be resolved on the host that was chosen.

    `leases` are the addresses that VMs are known to have.
    """
    resolver = Resolver(specs)
    digests: dict[int, str] = {}  # VMs that come out equal share their resolved object: one digest
    vms = []
    placing = scheduler.place(pending, resolver.need)
    for vm, host in zip(pending, placing.hosts, strict=True):
        resolved = resolver.resolve(vm, host or (vm.hosts or scheduler.hosts)[0])
        (state, spec), fleet = resolved, vm.fleet
        if (digest := digests.get(id(resolved))) is None:
            digest = digests[id(resolved)] = spec_digest(
                project=specs.project,
                fleet=fleet.name,
                state=state,
                spec=drop_paths(spec, fleet.ignore_changes),
                policy=fleet.policy,
            )
        vms.append(
            DesiredVM(
                name=vm.name,
                project=specs.project,
                fleet=fleet.name,
                host=host,
                state=state,
                spec=spec,
                policy=fleet.policy,
                spec_digest=digest,
                ignore_changes=fleet.ignore_changes,
                addresses=retained(spec, leases.get(vm.name, {}), specs.networks) if spec.network_interfaces else {},
            )
        )
    if specs.networks:
        resolver.mistakes += _clash_flaws(specs, vms)
    resolver.check()
    return DesiredState(
        revision=specs.tree.revision,
        project=specs.project,
        whole=specs.whole,
        fleets=tuple(fleet.name for fleet in specs.fleets),
        vms=tuple(vms),
        hosts=scheduler.hosts,
        placed=placing.placed,
        eviction_reasons=placing.eviction_reasons,
        rejections=placing.rejections,
    )


def _clash_flaws(specs: Specs, vms: Sequence[DesiredVM]) -> Iterator[Diagnostic]:
    """Addresses that VMs cannot have because of each other."""
    documents = {fleet.name: fleet.document for fleet in specs.fleets}
    for vm, name, why in conflicts(vms, specs.networks):
        pointer = ("spec", "template", "network_interfaces", name)
        yield Diagnostic(document=documents[vm.fleet], pointer=pointer, message=f"{vm.name}: {why}")


def validate_specs(tree: SourceTree, schemas: Schemas, *, here: str, extra_vars: dict[str, Any] | None = None) -> Specs:
    """The specs in `tree`. Raises SpecError with every problem: where documents are wrong, what the good ones want is
    tried too, so that nobody has to mend in two rounds.
    """
    loaded = load(tree, schemas, extra_vars)
    if not loaded.problems:
        return loaded.specs
    found: tuple[SpecProblem, ...] = ()
    if loaded.complete:
        try:
            render_all(loaded.specs, here=here)
        except SpecError as error:
            found = error.problems
    raise SpecError(dedupe_by_position([*loaded.problems, *found]))


def render_all(specs: Specs, *, here: str) -> DesiredState:
    """All that the specs want, placed as if nothing existed yet. `here` is the host of specs without an Inventory.

    Raises SpecError for everything that cannot be resolved, on any host that a VM may come to.
    """
    pending = expand(specs)
    resolver = Resolver(specs)
    empty = [replace(fleet, replicas=1) for fleet in specs.fleets if fleet.replicas == 0]
    specimens = expand(replace(specs, fleets=tuple(empty)))  # what nobody is made from yet
    one_of_each = {
        id(vm.template): vm for vm in reversed((*pending, *specimens))
    }  # what cannot be answered on a host cannot for any VM
    for vm in one_of_each.values():
        hosts = vm.hosts or (here,)
        for host in hosts if vm.template.variables_used else hosts[:1]:
            resolver.resolve(vm, host)
    resolver.check()
    return desired_state(specs, pending, Scheduler(specs, here, located={}))
