"""Whether this host still has what a VM is promised: memory, of which a VMM takes any size and dies of it later, and
addresses, which control may have given to two.

The rule for memory: all VMs that are ordered to be up, this one included, were promised no more than the machine has,
or than its inventory allows instead. What they touched so far does not count, since they may touch the rest at any
time. vCPUs are not limited: they only share time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from mikrom_reconcile.core.model.desired import VMSpec
from mikrom_reconcile.core.model.lifecycle import WANTS_VMM
from mikrom_reconcile.host.ports import Clock, VMRecord
from mikrom_reconcile.host.records import Records
from mikrom_reconcile.limits import ORDERS


class Memory:
    """What is promised on this host. Safe to use from many threads or greenlets at once."""

    def __init__(self, *, mem_size_mib: int, need_mib: Callable[[VMSpec], int], records: Records, clock: Clock) -> None:
        self._mem_size_mib = mem_size_mib
        self._need_mib = need_mib
        self._records = records
        self._clock = clock
        self._lock = threading.Lock()
        self._promised: dict[str, int] = {}
        self._under_way: dict[str, int] = {}
        self._holders: dict[str, str] = {}
        self._claims: dict[str, frozenset[str]] = {}
        self._holds_until_s = float("-inf")
        self._settled = False  # since the last count: one that failed has not kept its promise

    def promise(self, vm: str, need_mib: int, limit_mib: int | None = None) -> str | None:
        """Promise `vm` its memory; why that cannot be, with what it needs and what is left, or None.

        `limit_mib` is what the inventory allows in all, instead of what the host has.
        No record says so yet, or it says that the VM goes down for a restart: the promise holds until `settle`.
        """
        with self._lock:
            self._count()
            limit_mib = self._mem_size_mib if limit_mib is None else limit_mib
            if need_mib > limit_mib - self._others(vm):
                self._count(anew=self._settled)
            left = limit_mib - self._others(vm)
            if need_mib <= left or need_mib <= self._promised.get(vm, 0):  # what was promised is kept
                self._promised[vm] = self._under_way[vm] = need_mib
                return None
            others = len(self._promised.keys() - {vm})
        return (
            f"it needs {need_mib} MiB and {max(0, left)} MiB are left: of {limit_mib} MiB that"
            f" {'the host has' if limit_mib == self._mem_size_mib else 'the inventory allows'},"
            f" {limit_mib - left} are promised to {others} other VMs"
        )

    def claim(self, vm: str, addresses: Iterable[str]) -> str:
        """Keep addresses for `vm`; who has one of them already, "" if nobody has. The claim holds until `settle`."""
        claimed = frozenset(addresses)
        if not claimed:
            return ""
        with self._lock:
            self._count()
            if self._taken(vm, claimed):
                self._count(anew=self._settled)
            if taken := self._taken(vm, claimed):
                return f"{taken} is {self._holders[taken]}'s here"
            self._claims[vm] = claimed
            self._holders |= dict.fromkeys(claimed, vm)
        return ""

    def _taken(self, vm: str, addresses: frozenset[str]) -> str:
        return min((ip for ip in addresses if self._holders.get(ip, vm) != vm), default="")

    def forget(self, vm: str) -> None:
        """The VM is to be down: its memory is free for others."""
        with self._lock:
            self._promised.pop(vm, None)
            self._under_way.pop(vm, None)

    def settle(self, vm: str) -> None:
        """The order for the VM has ended: from the next count on its record alone says what it is promised."""
        with self._lock:
            self._settled |= self._under_way.pop(vm, None) is not None or bool(self._claims.get(vm))
            self._claims.pop(vm, None)

    def _others(self, vm: str) -> int:
        return sum(self._promised.values()) - self._promised.get(vm, 0)

    def _count(self, *, anew: bool = False) -> None:
        began_s = self._clock.monotonic()
        if began_s <= self._holds_until_s and not anew:
            return
        found = [record for record in self._records.list() if isinstance(record, VMRecord)]
        held = [(record.vm, record.addresses.values()) for record in found]
        self._holders = {ip: vm for vm, addresses in (*held, *self._claims.items()) for ip in addresses}
        self._promised = {
            record.vm: self._need_mib(record.spec)
            for record in found
            if record.state in WANTS_VMM and not record.parked
        } | self._under_way
        ended_s = self._clock.monotonic()
        self._holds_until_s, self._settled = ended_s + ORDERS.memory_count_held * (ended_s - began_s), False
