"""Which host each VM belongs on. An existing VM stays where it is; a new one goes where the fewest are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from mikrom_reconcile.core.model.desired import PendingVM


def place(
    vms: Iterable[PendingVM], located: Mapping[str, str], hosts: tuple[str, ...]
) -> Iterator[tuple[PendingVM, str]]:
    """Each VM with its host. `hosts` (at least one) may get new VMs; `located` may name other hosts too."""
    load = dict.fromkeys(hosts, 0)
    for host in located.values():
        if host in load:
            load[host] += 1
    for vm in vms:
        host = located.get(vm.name, "")
        if not host:
            host = min(load, key=lambda name: (load[name], name)) if len(load) > 1 else hosts[0]
            load[host] += 1
        yield vm, host
