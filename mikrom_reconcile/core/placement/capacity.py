"""How much a host may be promised, and how much of that is left.

The host says what it has, unless the inventory does. Without `overcommit` memory is limited to that and vCPUs are not
limited: they only share time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from math import floor, inf

import msgspec

from mikrom_reconcile.core.model.observed import WANTS_VMM, Capacity, HostReport, ObservedVM
from mikrom_reconcile.core.specs.inventory import Inventory


class Room(msgspec.Struct, frozen=True, kw_only=True):
    """What may be promised on one host in all, and what already is; `inf` where nothing limits it.

    `overhead_mib` is what each VM takes beyond its own memory.
    """

    vcpu_limit: float = inf
    mem_limit_mib: float = inf
    promised: Capacity = Capacity(vcpu_count=0, mem_size_mib=0)
    overhead_mib: int = 0


UNLIMITED = Room()
"""The room of a host of which nothing is known."""


class HostLoads:
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


def room_of(inventory: Inventory, report: HostReport, going: Iterable[ObservedVM] = ()) -> Room:
    """The room on the host that reports: (capacity - reserve) * overcommit, less what its VMs were promised. Those that
    are `going` count no more.
    """
    said = inventory.sizing(report.host)
    mem_size_mib = said.capacity.mem_size_mib
    if mem_size_mib is None:
        mem_size_mib = report.capacity.mem_size_mib if report.overhead_mib is not None else None
    overhead_mib = report.overhead_mib or 0
    gone = [row.spec.machine for row in going if row.state in WANTS_VMM and row.phase != "parked"]
    vcpu_count = report.capacity.vcpu_count if said.capacity.vcpu_count is None else said.capacity.vcpu_count
    return Room(
        vcpu_limit=_limit(vcpu_count, said.reserve.vcpu_count, said.overcommit.vcpu_count),
        mem_limit_mib=_limit(mem_size_mib, said.reserve.mem_size_mib, said.overcommit.mem_size_mib or 1.0),
        promised=Capacity(
            vcpu_count=report.promised.vcpu_count - sum(machine.vcpu_count for machine in gone),
            mem_size_mib=report.promised.mem_size_mib - sum(machine.mem_size_mib + overhead_mib for machine in gone),
        ),
        overhead_mib=overhead_mib,
    )


def mem_limit_mib(inventory: Inventory, report: HostReport) -> int | None:
    """The memory limit that the inventory sets for the host; None where the host goes by what it has."""
    said = inventory.sizing(report.host)
    if (said.capacity.mem_size_mib, said.reserve.mem_size_mib, said.overcommit.mem_size_mib) == (None, None, None):
        return None
    limit = room_of(inventory, report).mem_limit_mib
    return None if limit == inf else int(limit)


def _limit(capacity: int | None, reserve: int | None, overcommit: float | None) -> float:
    if capacity is None or overcommit is None:
        return inf
    return floor(round(max(0, capacity - (reserve or 0)) * overcommit, 6))  # 4.35 * 100 is 434.99999999999994
