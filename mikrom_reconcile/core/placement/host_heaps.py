"""The choice of a host among many, again and again, without looking at all of them each time.

Hosts are in heaps, by how many VMs they have; where a fleet is to be spread, there is a heap for each value of the
first attribute, and inside it one for each value of the next. How full a host is only ever grows, so its place is put
right when its turn comes. A choice costs the logarithm of the hosts, not their number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from heapq import heapify, heappop, heapreplace
from typing import Any, TypeAlias, TypeVar

from mikrom_reconcile.core.model.observed import Capacity
from mikrom_reconcile.core.placement.capacity import HostLoads

T = TypeVar("T", bound=Hashable)
Path = tuple[str, ...]
"""The values of a host, one for each attribute that a fleet is spread over."""


class Paths:
    """The paths of hosts, the same for all fleets with the same placement."""

    def __init__(self, by_host: Mapping[str, Path]) -> None:
        self.by_host = by_host
        self.different = tuple(dict.fromkeys(by_host.values()))

    def heaps(self, weights: Mapping[str, int], need: Capacity, loads: HostLoads, depth: int) -> Heaps:
        """The hosts on heaps, by their values from the attribute at `depth` on."""
        if depth == len(next(iter(self.by_host.values()), ())):
            return HostHeap(weights, need, loads)
        inside: dict[str, dict[str, int]] = {}
        for host, weight in weights.items():
            path = self.by_host.get(host)
            inside.setdefault(path[depth] if path else "", {})[host] = weight
        return {value: self.heaps(hosts, need, loads, depth + 1) for value, hosts in inside.items()}


class SkewCounter:
    """How many VMs of a fleet each of some values has; `floor` is what the emptiest has."""

    def __init__(self, max_skew: int) -> None:
        self.counts: Counter[str] = Counter()
        self.floor = 0
        self._max_skew = max_skew
        self._at_floor = 0

    def open(self, value: str) -> None:
        """A value that may get VMs, before any are counted."""
        self._at_floor += value not in self.counts
        self.counts[value] += 0

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
        self.counters: dict[Path, SkewCounter] = {}
        for path in paths.different:
            for depth, max_skew in enumerate(max_skews):
                if path[:depth] not in self.counters:
                    self.counters[path[:depth]] = SkewCounter(max_skew)
                self.counters[path[:depth]].open(path[depth])
        for host in vms:
            self.add(host)

    def add(self, host: str) -> None:
        """One VM more on the host; one that the fleet's pattern does not name counts nowhere."""
        path = self.paths.get(host, ())
        for depth, value in enumerate(path):
            self.counters[path[:depth]].add(value)


class HostHeap:
    """Hosts that VMs of one size may go to, with how much their fleet prefers each."""

    def __init__(self, weights: Mapping[str, int], need: Capacity, loads: HostLoads) -> None:
        self._weights = weights
        self._need = need
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
        if not self._loads.fits(host, self._need):  # nothing is given back while hosts are chosen
            return None
        return -self._weights[host], self._loads.vms[host]


class SpreadHeap:
    """A heap of hosts, or of further values, for each value of an attribute. What is beyond the skew comes last."""

    def __init__(self, heaps: Mapping[str, Heaps], counts: SpreadCounts, above: Path = ()) -> None:
        self._counter = counts.counters.get(above) or SkewCounter(1)  # of a host that the fleet's pattern does not name
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
