"""The desired state: what the specs want, on the hosts where it belongs."""

from __future__ import annotations

from collections.abc import Mapping

from mikrom_reconcile.core.digests import spec_digest
from mikrom_reconcile.core.expand import expand
from mikrom_reconcile.core.model.desired import DesiredState, DesiredVM
from mikrom_reconcile.core.placement import place
from mikrom_reconcile.core.specs import Specs


def desired_state(specs: Specs, located: Mapping[str, str], hosts: tuple[str, ...]) -> DesiredState:
    """All that the specs want. `located` says where VMs are known to be; `hosts` may get new ones."""
    digests: dict[tuple[int, str, str], str] = {}  # VMs of one fleet share their spec object: one digest for all
    vms = []
    for vm, host in place(expand(specs), located, hosts):
        key = (id(vm.spec), vm.fleet, vm.state)
        if key not in digests:
            digests[key] = spec_digest(
                project=vm.project, fleet=vm.fleet, state=vm.state, spec=vm.spec, policy=vm.policy
            )
        vms.append(
            DesiredVM(
                name=vm.name,
                project=vm.project,
                fleet=vm.fleet,
                host=host,
                state=vm.state,
                spec=vm.spec,
                policy=vm.policy,
                spec_digest=digests[key],
            )
        )
    return DesiredState(
        revision=specs.revision,
        project=specs.project,
        whole=specs.whole,
        fleets=tuple(fleet.name for fleet in specs.fleets),
        vms=tuple(vms),
    )
