"""Heaps choose what somebody would choose who looks at every host anew each time."""

from __future__ import annotations

from collections import Counter
from functools import partial
from random import Random

import pytest

from mikrom_reconcile.core.model.observed import Capacity
from mikrom_reconcile.core.placement.capacity import HostHeap, HostLoads, Path, Paths, Room, SpreadCounts, SpreadHeap

NEEDS = (Capacity(vcpu_count=1, mem_size_mib=8), Capacity(vcpu_count=2, mem_size_mib=32))


class Slow:
    """The same rules, read off the documentation, without any order that is kept."""

    def __init__(
        self, paths: dict[str, Path], skews: tuple[int, ...], weights: dict[str, int], room_mib: dict[str, int]
    ) -> None:
        self.paths, self.skews, self.weights, self.room_mib = paths, skews, weights, room_mib
        self.vms: Counter[str] = Counter()
        self.counts: Counter[Path] = Counter()

    def best(self, need: Capacity) -> str | None:
        open_hosts = [host for host, left in self.room_mib.items() if left >= need.mem_size_mib]
        for depth, skew in enumerate(self.skews):
            if not open_hosts:
                return None
            values = {self.paths[host][: depth + 1] for host in open_hosts}
            above = self.paths[open_hosts[0]][:depth]
            every = {path[: depth + 1] for path in self.paths.values() if path[:depth] == above}
            floor = min(self.counts[value] for value in every)
            chosen = min(values, key=lambda value: self._rank(value, open_hosts, floor + skew))
            open_hosts = [host for host in open_hosts if self.paths[host][: depth + 1] == chosen]
        return min(open_hosts, key=lambda host: (-self.weights[host], self.vms[host], host), default=None)

    def _rank(self, value: Path, open_hosts: list[str], most: int) -> tuple[int, int, int, Path]:
        inside = [self.weights[host] for host in open_hosts if self.paths[host][: len(value)] == value]
        return max(0, self.counts[value] + 1 - most), -max(inside), self.counts[value], value

    def add(self, host: str, need: Capacity) -> None:
        self.vms[host] += 1
        self.room_mib[host] -= need.mem_size_mib
        self.counts.update(self.paths[host][:depth] for depth in range(1, len(self.paths[host]) + 1))


@pytest.mark.parametrize("seed", range(120))
def test_every_choice_is_the_one_that_a_look_at_all_hosts_gives(seed: int) -> None:
    chance = Random(seed)
    depth = chance.randint(0, 2)
    hosts = [f"hv{number}" for number in range(chance.randint(1, 9))]
    paths = {host: tuple(chance.choice("abc") for _ in range(depth)) for host in hosts}
    skews = tuple(chance.randint(1, 3) for _ in range(depth))
    weights = {host: chance.choice([0, 0, 10, -5]) for host in hosts}
    room_mib = {host: chance.choice([16, 64, 200, 1000]) for host in hosts}
    slow = Slow(paths, skews, weights, dict(room_mib))
    loads = HostLoads({}, {host: Room(mem_limit_mib=left) for host, left in room_mib.items()})
    places = Paths(paths)
    census = SpreadCounts(places, skews, ())
    parts = {need: places.heaps(weights, partial(loads.fits, need=need), loads) for need in NEEDS}
    heaps = {need: part if isinstance(part, HostHeap) else SpreadHeap(part, census) for need, part in parts.items()}
    for _ in range(60):
        need = chance.choice(NEEDS)
        host = heaps[need].best()
        assert host == slow.best(need)
        if host is None:
            continue
        if chance.random() < 0.2:  # somebody else takes a place, past these heaps
            host = chance.choice([other for other in hosts if loads.fits(other, need)])
        loads.add(host, need)
        slow.add(host, need)
        census.add(host)
