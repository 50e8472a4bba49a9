"""How much each host may be promised and has left, and the choice of one host among many, again and again. How full a
host is only ever grows, so its place on a heap is put right when its turn comes: a choice costs the logarithm of the
hosts. Where a fleet is to be spread, there is a heap for each value of the attribute.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from heapq import heapify, heappop, heapreplace
from math import floor, inf
from operator import itemgetter
from typing import Any, TypeAlias, TypeVar

import msgspec

from mikrom_reconcile.core.model.observed import WANTS_VMM, Capacity, HostReport, ObservedVM
from mikrom_reconcile.core.model.plan import group_by
from mikrom_reconcile.core.specs.inventory import Inventory, Resource, Sizing


class Room(msgspec.Struct, frozen=True, kw_only=True):
    """What may be promised on one host in all, and what already is; `inf` where nothing limits it, as vCPUs, which only
    share time, without `overcommit`. `overhead_mib` is what each VM takes beyond its own memory.
    """

    vcpu_limit: float = inf
    mem_limit_mib: float = inf
    promised: Capacity = Capacity(vcpu_count=0, mem_size_mib=0)
    overhead_mib: int = 0


class HostLoads:
    """What every host has so far: VMs, what is left to promise, and who publishes which of its ports."""

    def __init__(self, vms: Mapping[str, int], rooms: Mapping[str, Room]) -> None:
        self.vms = Counter(vms)
        self.vcpus = {host: max(0, room.vcpu_limit - room.promised.vcpu_count) for host, room in rooms.items()}
        self.mem_mib = {host: max(0, room.mem_limit_mib - room.promised.mem_size_mib) for host, room in rooms.items()}
        self.publishers: dict[tuple[str, str], str] = {}
        self._rooms = rooms

    def mem_need_mib(self, host: str, need: Capacity) -> int:
        """What the VM takes of the host's memory."""
        return need.mem_size_mib and need.mem_size_mib + self._rooms[host].overhead_mib

    def fits(self, host: str, need: Capacity, ports: frozenset[str] = frozenset()) -> bool:
        """Whether the host has room for it, and nobody publishes any of its ports there."""
        if ports and any((host, port) in self.publishers for port in ports):
            return False
        return self.mem_mib[host] >= self.mem_need_mib(host, need) and self.vcpus[host] >= need.vcpu_count

    def add(self, host: str, need: Capacity) -> None:
        """One VM more on the host."""
        self.vms[host] += 1
        self.mem_mib[host] -= self.mem_need_mib(host, need)
        self.vcpus[host] -= need.vcpu_count


def room_of(inventory: Inventory, report: HostReport, going: Iterable[ObservedVM] = ()) -> Room:
    """(capacity - reserve) * overcommit, less what the VMs were promised that are not `going`."""
    said = inventory.sizing(report.host)
    known_mib = report.capacity.mem_size_mib if report.overhead_mib is not None else None
    overhead_mib = report.overhead_mib or 0
    gone = [row.spec.machine for row in going if row.state in WANTS_VMM and row.phase != "crash_loop"]
    return Room(
        vcpu_limit=_limit(said, "vcpu_count", report.capacity.vcpu_count, None),
        mem_limit_mib=_limit(said, "mem_size_mib", known_mib, 1.0),
        promised=Capacity(
            vcpu_count=report.promised.vcpu_count - sum(machine.vcpu_count for machine in gone),
            mem_size_mib=report.promised.mem_size_mib - sum(machine.mem_size_mib + overhead_mib for machine in gone),
        ),
        overhead_mib=overhead_mib,
    )


def mem_limit_mib(inventory: Inventory, report: HostReport) -> int | None:
    """The memory limit that the inventory sets for the host; None where the host goes by what it has."""
    said = inventory.sizing(report.host)
    if not any("mem_size_mib" in each for each in (said.capacity, said.reserve, said.overcommit)):
        return None
    limit = room_of(inventory, report).mem_limit_mib
    return None if limit == inf else int(limit)


def _limit(said: Sizing, what: Resource, known: int | None, usual: float | None) -> float:
    """`known` is what the host says that it has, `usual` how often that is promised."""
    capacity, overcommit = said.capacity.get(what, known), said.overcommit.get(what, usual)
    if capacity is None or overcommit is None:
        return inf
    kept = said.reserve.get(what, 0)
    return floor(round(max(0, capacity - kept) * overcommit, 6))  # 4.35 * 100 is 434.99999999999994


T = TypeVar("T", bound=Hashable)
Path = tuple[str, ...]  # the values of a host, one for each attribute that a fleet is spread over


class Paths:
    """The paths of hosts, the same for all fleets with the same placement."""

    def __init__(self, by_host: Mapping[str, Path]) -> None:
        self.by_host = by_host
        self.different = tuple(dict.fromkeys(by_host.values()))

    def heaps(self, weights: Mapping[str, int], fits: Callable[[str], bool], loads: HostLoads, depth: int = 0) -> Heaps:
        """The hosts on heaps, by their values from the attribute at `depth` on."""
        if depth == len(next(iter(self.by_host.values()), ())):
            return HostHeap(weights, fits, loads)
        inside: dict[str, dict[str, int]] = {}
        for host, weight in weights.items():
            path = self.by_host.get(host)
            inside.setdefault(path[depth] if path else "", {})[host] = weight
        return {value: self.heaps(hosts, fits, loads, depth + 1) for value, hosts in inside.items()}


class SkewCounter:
    """How many VMs of a fleet each of some values has; `floor` is what the emptiest has."""

    def __init__(self, max_skew: int, values: Iterable[str]) -> None:
        self.counts = Counter(dict.fromkeys(values, 0))
        self.floor = 0
        self._max_skew = max_skew
        self._at_floor = len(self.counts)

    def add(self, value: str) -> None:
        """One VM more."""
        self.counts[value] += 1
        if self.counts[value] - 1 == self.floor:
            self._at_floor -= 1
            if not self._at_floor:
                self.floor = min(self.counts.values())
                self._at_floor = sum(count == self.floor for count in self.counts.values())

    def excess(self, value: str) -> int:
        """How far beyond the skew one VM more would put this value."""
        return max(0, self.counts[value] + 1 - self.floor - self._max_skew)


class SpreadCounts:
    """How a fleet is spread: over the values of the first attribute, and inside each over those of the next."""

    def __init__(self, paths: Paths, max_skews: tuple[int, ...], vms: Iterable[str]) -> None:
        self.paths = paths.by_host
        steps = ((path[:depth], path[depth]) for path in paths.different for depth in range(len(max_skews)))
        values = group_by(steps, itemgetter(0)).items()
        self.counters = {top: SkewCounter(max_skews[len(top)], map(itemgetter(1), inside)) for top, inside in values}
        for host in vms:
            self.add(host)

    def add(self, host: str) -> None:
        """One VM more on the host; one that the fleet's pattern does not name counts nowhere."""
        path = self.paths.get(host, ())
        for depth, value in enumerate(path):
            self.counters[path[:depth]].add(value)


class HostHeap:
    """Hosts that VMs which fit alike may go to, with how much their fleet prefers each."""

    def __init__(self, weights: Mapping[str, int], fits: Callable[[str], bool], loads: HostLoads) -> None:
        self._weights = weights
        self._fits = fits
        self._loads = loads
        self._hosts = _heap(weights, self._key)

    def best(self) -> str | None:
        """The host for the next VM; None if none has room."""
        return _first(self._hosts, self._key)

    def weight(self) -> int | None:
        """The weight of that host."""
        host = self.best()
        return None if host is None else self._weights[host]

    def _key(self, host: str) -> tuple[int, int] | None:
        if not self._fits(host):  # nothing is given back while hosts are chosen
            return None
        return -self._weights[host], self._loads.vms[host]


class SpreadHeap:
    """A heap of hosts, or of further values, for each value of an attribute. What is beyond the skew comes last."""

    def __init__(self, heaps: Mapping[str, Heaps], counts: SpreadCounts, above: Path = ()) -> None:
        unnamed = SkewCounter(1, ())  # of hosts that the fleet's pattern does not name
        self._counter = counts.counters.get(above) or unnamed
        self._parts = {
            value: part if isinstance(part, HostHeap) else SpreadHeap(part, counts, (*above, value))
            for value, part in heaps.items()
        }
        self._weights = _heap(self._parts, self._weight_key)
        self._order_parts()

    def best(self) -> str | None:
        """The host for the next VM; None if none has room."""
        if self._floor != self._counter.floor:  # what was too far above the old floor may be allowed now
            self._order_parts()
        value = _first(self._values, self._key)
        return None if value is None else self._parts[value].best()

    def weight(self) -> int | None:
        """The highest weight in it."""
        value = _first(self._weights, self._weight_key)
        return None if value is None else self._parts[value].weight()

    def _order_parts(self) -> None:
        self._floor = self._counter.floor
        self._values = _heap(self._parts, self._key)

    def _weight_key(self, value: str) -> int | None:
        weight = self._parts[value].weight()
        return None if weight is None else -weight

    def _key(self, value: str) -> tuple[int, int, int] | None:
        weight = self._parts[value].weight()
        return None if weight is None else (self._counter.excess(value), -weight, self._counter.counts[value])


Heaps: TypeAlias = "HostHeap | Mapping[str, Heaps]"
"""A heap, or heaps by value; all fleets with the same placement share them."""


def _heap(items: Iterable[T], key_of: Callable[[T], Any]) -> list[tuple[Any, T]]:
    heap = [(key, item) for item in items if (key := key_of(item)) is not None]
    heapify(heap)
    return heap


def _first(heap: list[tuple[Any, T]], key_of: Callable[[T], Any]) -> T | None:
    """The item with the smallest key, by name among equals; keys that have grown since are put right on the way."""
    while heap:
        key, item = heap[0]
        now = key_of(item)
        if now == key:
            return item
        if now is None:
            heappop(heap)
        else:
            heapreplace(heap, (now, item))
    return None
