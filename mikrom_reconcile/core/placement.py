"""Which host each VM belongs on. An existing VM stays where it is, while that is allowed; a new one goes where the
fewest are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from heapq import heapify, heapreplace

from mikrom_reconcile.core.expand import PendingVM


class Landscape:
    """The hosts of a run, and how many VMs each has or will have."""

    def __init__(self, inventory: tuple[str, ...], dark: Iterable[str], located: Mapping[str, str]) -> None:
        self._inventory = inventory
        self._dark = frozenset(dark)
        self._located = located
        self._load: dict[str, int] = {}
        for host in located.values():
            self._load[host] = self._load.get(host, 0) + 1
        self._sets: dict[
            int, frozenset[str]
        ] = {}  # by the identity of a tuple: its fleet holds it, and hashing is slow
        self._queues: dict[int, list[tuple[int, str]]] = {}

    def place(self, vms: Iterable[PendingVM]) -> Iterator[tuple[PendingVM, str, str]]:
        """Each VM with its host, and why that host if it was chosen among several.

        A VM on a dark host stays there: nobody knows more.
        """
        for vm in vms:
            allowed = self._inventory if vm.hosts is None else vm.hosts
            host, why = self._located.get(vm.name, ""), ""
            if not host or (host not in self._set(allowed) and host not in self._dark):
                host = self._emptiest(allowed)
                load = self._load.get(host, 0)
                self._load[host] = load + 1
                if len(allowed) > 1:
                    why = f"{host} has the fewest VMs ({load}) of {vm.fleet.pattern}"
            yield vm, host, why

    def _set(self, allowed: tuple[str, ...]) -> frozenset[str]:
        found = self._sets.get(id(allowed))
        if found is None:
            found = self._sets[id(allowed)] = frozenset(allowed)
        return found

    def _emptiest(self, allowed: tuple[str, ...]) -> str:
        """The host with the fewest VMs, by name among equals; a dark one only if all are."""
        if len(allowed) == 1:
            return allowed[0]
        queue = self._queues.get(id(allowed))
        if queue is None:
            reachable = [host for host in allowed if host not in self._dark] or list(allowed)
            queue = self._queues[id(allowed)] = [(self._load.get(host, 0), host) for host in reachable]
            heapify(queue)
        while queue[0][0] != self._load.get(queue[0][1], 0):  # other fleets have filled it meanwhile
            heapreplace(queue, (self._load[queue[0][1]], queue[0][1]))
        return queue[0][1]
