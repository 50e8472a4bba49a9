"""Which addresses a VM may have or keep: those that its spec says, and leases that its spec still allows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Address

from mikrom_reconcile.core.model.desired import DesiredVM, VMSpec
from mikrom_reconcile.core.networks import Network

Addresses = Mapping[str, str]
"""Interface name to its address."""


def fixed(spec: VMSpec) -> dict[str, str]:
    """The addresses that a spec says itself."""
    return {name: nic.ip for name, nic in spec.network_interfaces.items() if nic.ip}


def still_good(spec: VMSpec, held: Addresses, networks: Mapping[str, Network]) -> dict[str, str]:
    """The static addresses of a VM, and those of its leases that its spec still allows."""
    leases = {
        name: held[name]
        for name, nic in spec.network_interfaces.items()
        if not nic.ip and name in held and _in_pool(held[name], networks[nic.network], nic.pool or "")
    }
    return fixed(spec) | leases


def _in_pool(ip: str, network: Network, pool: str) -> bool:
    return pool in network.pools and int(IPv4Address(ip)) in network.pools[pool].range and network.complaint(ip) is None


def clashes(vms: Iterable[DesiredVM], networks: Mapping[str, Network]) -> Iterator[tuple[DesiredVM, str, str]]:
    """VMs, interfaces and why they cannot be: a static address of another's, more leases than a pool has addresses."""
    owners: dict[tuple[str, str], str] = {}
    leases: Counter[tuple[str, str]] = Counter()
    for vm in vms:
        for name, nic in vm.spec.network_interfaces.items():
            if nic.ip:
                owner = owners.setdefault((nic.network, nic.ip), vm.name)
                if owner != vm.name:
                    yield vm, name, f"{nic.ip} is {owner}'s already"
            elif vm.state != "absent":
                key = nic.network, nic.pool or ""
                leases[key] += 1
                if leases[key] == _size(networks[key[0]], key[1]) + 1:
                    yield vm, name, f"{where(*key)} has {leases[key] - 1} addresses, and more VMs want one"


def _size(network: Network, pool: str) -> int:
    return sum(1 for _ in network.addresses(pool))


def where(network: str, pool: str) -> str:
    """A pool, in words."""
    return f"pool {pool} of network {network}" if pool else f"network {network}"
