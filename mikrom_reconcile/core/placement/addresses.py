"""Which addresses a VM may have or keep: those that its spec says, and leases that its spec still allows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Address

from mikrom_reconcile.core.model.desired import DesiredVM, VMSpec
from mikrom_reconcile.core.specs.networks import Network

Addresses = Mapping[str, str]
"""Interface name to its address."""


def static_addresses(spec: VMSpec) -> dict[str, str]:
    """The addresses that a spec says itself."""
    return {name: nic.ip for name, nic in spec.network_interfaces.items() if nic.ip}


def retained(spec: VMSpec, held: Addresses, networks: Mapping[str, Network]) -> dict[str, str]:
    """The static addresses of a VM, and those of its leases that its spec still allows."""
    leases = {
        name: held[name]
        for name, nic in spec.network_interfaces.items()
        if not nic.ip and name in held and networks[nic.network].leases(nic.pool or "", int(IPv4Address(held[name])))
    }
    return static_addresses(spec) | leases


def conflicts(vms: Iterable[DesiredVM], networks: Mapping[str, Network]) -> Iterator[tuple[DesiredVM, str, str]]:
    """VMs, interfaces and why they cannot be: a static address of another's, more leases than a pool has addresses."""
    owners: dict[tuple[str, str], tuple[str, str]] = {}
    leases: Counter[tuple[str, str]] = Counter()
    sizes: dict[tuple[str, str], int] = {}
    for vm in vms:
        for name, nic in vm.spec.network_interfaces.items():
            if nic.ip:
                owner = owners.setdefault((nic.network, nic.ip), (vm.name, name))
                if owner != (vm.name, name):
                    yield vm, name, f"{nic.ip} is {owner[0]}'s already"
            elif vm.state != "absent":
                key = nic.network, nic.pool or ""
                leases[key] += 1
                if key not in sizes:
                    sizes[key] = sum(map(len, networks[key[0]].free(key[1])))
                if leases[key] == sizes[key] + 1:
                    yield vm, name, f"{where(*key)} has {leases[key] - 1} addresses, and more VMs want one"


def where(network: str, pool: str) -> str:
    """A pool, in words."""
    return f"pool {pool} of network {network}" if pool else f"network {network}"
