"""The choice of a host among many, again and again, without looking at all of them each time.

Hosts that are equally good for a fleet stand on one shelf, sorted by how many VMs they have. What only ever grows (how
full a host is) is looked up anew when its turn comes; what may shrink (how far a value is above the emptiest) has the
shelves sorted again, which is rare. So a choice costs the logarithm of the hosts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from heapq import heapify, heappop, heapreplace

from mikrom_reconcile.core.capacity import Room
from mikrom_reconcile.core.constraints import Spread
from mikrom_reconcile.core.model.observed import Capacity

Key = tuple[int, int, int, str]
"""What is compared, the smallest wins: VMs above the allowed skew, weight (negative), VMs on the host, its name."""


class Loads:
    """What every host has so far: VMs, and what is left to promise."""

    def __init__(self, vms: Mapping[str, int], rooms: Mapping[str, Room]) -> None:
        self.vms = Counter(vms)
        self.vcpus = {host: max(0, room.vcpu_limit - room.promised.vcpu_count) for host, room in rooms.items()}
        self.mem_mib = {host: max(0, room.mem_limit_mib - room.promised.mem_size_mib) for host, room in rooms.items()}
        self._rooms = rooms

    def mem_need_mib(self, host: str, need: Capacity) -> int:
        """What the VM takes of the host's memory."""
        return need.mem_size_mib and need.mem_size_mib + self._rooms[host].overhead_mib

    def fits(self, host: str, need: Capacity) -> bool:
        """Whether the host has room for it."""
        return self.mem_mib[host] >= self.mem_need_mib(host, need) and self.vcpus[host] >= need.vcpu_count

    def add(self, host: str, need: Capacity) -> None:
        """One VM more on the host."""
        self.vms[host] += 1
        self.mem_mib[host] -= self.mem_need_mib(host, need)
        self.vcpus[host] -= need.vcpu_count


class Census:
    """How many VMs of a fleet each value of one attribute has; `floor` is what the emptiest has."""

    def __init__(self, spread: Spread, values: Mapping[str, str], vms: Iterable[str]) -> None:
        self.spread = spread
        self.values = values
        self.counts = Counter(dict.fromkeys(values.values(), 0))
        self.counts.update(values[host] for host in vms if host in values)
        self._find_floor()

    def add(self, host: str) -> None:
        """One VM more on the host; one that the fleet's pattern does not name counts nowhere."""
        value = self.values.get(host, "")
        self.counts[value] += 1
        if self.counts[value] - 1 == self.floor:
            self._at_floor -= 1
            if not self._at_floor:
                self._find_floor()

    def excess(self, value: str) -> int:
        """How far beyond the skew one VM more would put this value."""
        return max(0, self.counts[value] + 1 - self.floor - self.spread.max_skew)

    def _find_floor(self) -> None:
        self.floor = min(self.counts.values(), default=0)
        self._at_floor = sum(count == self.floor for count in self.counts.values())


class Shelves:
    """The hosts that VMs of one size may go to, with how much their fleet prefers each."""

    def __init__(self, weights: Mapping[str, int], need: Capacity, loads: Loads, census: list[Census]) -> None:
        self._need = need
        self._loads = loads
        self._census = census
        shelves: dict[tuple[int, tuple[str, ...]], list[tuple[int, str]]] = {}
        for host, weight in weights.items():
            values = tuple(each.values.get(host, "") for each in census)
            shelves.setdefault((weight, values), []).append((loads.vms[host], host))
        self._shelves = [(weight, values, queue) for (weight, values), queue in shelves.items()]
        for _, _, queue in self._shelves:
            heapify(queue)
        self._sort()

    def best(self) -> tuple[str, int] | None:
        """The host for the next VM and its weight; None if no host has room."""
        if self._floors != [each.floor for each in self._census]:
            self._sort()
        while self._order:
            key, number = self._order[0]
            now = self._key(number)
            if now == key:
                return key[3], -key[1]
            if now is None:
                heappop(self._order)
            else:
                heapreplace(self._order, (now, number))
        return None

    def _sort(self) -> None:
        self._floors = [each.floor for each in self._census]
        keys = ((self._key(number), number) for number in range(len(self._shelves)))
        self._order = [(key, number) for key, number in keys if key is not None]
        heapify(self._order)

    def _key(self, number: int) -> Key | None:
        weight, values, queue = self._shelves[number]
        loads, need = self._loads, self._need
        while queue:
            vms, host = queue[0]
            if not loads.fits(host, need):  # nothing is given back while hosts are chosen
                heappop(queue)
            elif vms != (now := loads.vms[host]):
                heapreplace(queue, (now, host))
            else:
                excess = sum(each.excess(value) for each, value in zip(self._census, values, strict=True))
                return excess, -weight, vms, host
        return None
