"""Specs to VMs: a fleet's template times its replicas. Which host each runs on is decided in `placement`."""

from __future__ import annotations

import msgspec

from mikrom_reconcile.core.model.desired import PendingVM, State, VMSpec
from mikrom_reconcile.core.specs import FleetSpec, Specs, vm_name

HELLO_BOOT_ARGS = "console=ttyS0"
"""Boot arguments of the built-in image."""


def expand(specs: Specs) -> tuple[PendingVM, ...]:
    """Every VM that the specs want, sorted by name. VMs of one fleet share their spec object."""
    vms = [vm for fleet in specs.fleets for vm in _fleet_vms(specs.project, fleet)]
    return tuple(sorted(vms, key=lambda vm: vm.name))


def _fleet_vms(project: str, fleet: FleetSpec) -> list[PendingVM]:
    state: State = fleet.template.get("state", "running")
    spec = _vm_spec(fleet)
    return [
        PendingVM(
            name=vm_name(fleet.name, index),
            project=project,
            fleet=fleet.name,
            state=state,
            spec=spec,
            policy=fleet.policy,
        )
        for index in range(fleet.replicas)
    ]


def _vm_spec(fleet: FleetSpec) -> VMSpec:
    fields = {key: value for key, value in fleet.template.items() if key != "state"}
    return msgspec.convert({"boot_args": HELLO_BOOT_ARGS} | fields, VMSpec)
