"""What VMs of this host were promised: memory, of which a VMM takes any size and dies of it later, and addresses, which
control may have given to two.

The rule for memory: all VMs that are ordered to be up, this one included, were promised no more than the machine has,
or than its inventory allows instead. What they touched so far does not count, since they may touch the rest at any
time. vCPUs are not limited: they only share time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from mikrom_reconcile.core.model.desired import VMSpec
from mikrom_reconcile.core.model.observed import WANTS_VMM
from mikrom_reconcile.host.ports import VMRecord
from mikrom_reconcile.host.records import Records
from mikrom_reconcile.system.clock import Clock
from mikrom_reconcile.times_and_sizes import ORDERS


class Reservations:
    """What the records promise, and what orders under way reserved. Any number of threads or greenlets may share it."""

    def __init__(self, *, mem_size_mib: int, need_mib: Callable[[VMSpec], int], records: Records, clock: Clock) -> None:
        self._mem_size_mib = mem_size_mib
        self._need_mib = need_mib
        self._records = records
        self._clock = clock
        self._lock = threading.Lock()
        self._mib: dict[str, int] = {}
        self._addresses: dict[str, frozenset[str]] = {}
        self._pending_mib: dict[str, int] = {}  # no record says so yet, or it says that the VM goes down for a restart
        self._pending_addresses: dict[str, frozenset[str]] = {}
        self._holds_until_s = float("-inf")

    def reserve(self, vm: str, need_mib: int, limit_mib: int | None = None) -> str:
        """Keep memory for `vm` until `commit`. Returns why that cannot be, with what is left, or "".

        `limit_mib` is what the inventory allows in all, instead of what the host has.
        """
        limit_mib = self._mem_size_mib if limit_mib is None else limit_mib
        with self._lock:
            self._count()
            others = {other: mib for other, mib in self._mib.items() if other != vm}
            left = limit_mib - sum(others.values())
            if need_mib <= left or need_mib <= self._mib.get(vm, 0):  # what was promised is kept
                self._mib[vm] = self._pending_mib[vm] = need_mib
                return ""
        return (
            f"it needs {need_mib} MiB and {max(0, left)} MiB are left: of {limit_mib} MiB that"
            f" {'the host has' if limit_mib == self._mem_size_mib else 'the inventory allows'},"
            f" {limit_mib - left} are promised to {len(others)} other VMs"
        )

    def reserve_addresses(self, vm: str, addresses: Iterable[str]) -> str:
        """Keep addresses for `vm` until `commit`. Returns who has one of them already, "" if nobody has."""
        wanted = frozenset(addresses)
        if not wanted:
            return ""
        with self._lock:
            self._count()
            for other, its in self._addresses.items():
                if other != vm and (taken := wanted & its):
                    return f"{min(taken)} is {other}'s here"
            self._pending_addresses[vm] = wanted
            self._addresses[vm] = wanted | self._addresses.get(vm, frozenset())
        return ""

    def release(self, vm: str) -> None:
        """The VM is recorded to be down: its memory is free for others."""
        with self._lock:
            self._mib.pop(vm, None)
            self._pending_mib.pop(vm, None)

    def commit(self, vm: str, record: VMRecord | None) -> None:
        """The order for the VM has ended: from now on its record says what it is promised."""
        with self._lock:
            for kept in (self._mib, self._pending_mib, self._addresses, self._pending_addresses):
                kept.pop(vm, None)
            if record is not None:
                self._add(record)

    def _count(self) -> None:
        began_s = self._clock.monotonic()
        if began_s <= self._holds_until_s:
            return
        self._mib, self._addresses = {}, {}
        for record in self._records.list():
            if isinstance(record, VMRecord):
                self._add(record)
        self._mib |= self._pending_mib
        for vm, addresses in self._pending_addresses.items():
            self._addresses[vm] = addresses | self._addresses.get(vm, frozenset())
        ended_s = self._clock.monotonic()
        self._holds_until_s = ended_s + ORDERS.memory_count_held * (ended_s - began_s)

    def _add(self, record: VMRecord) -> None:
        self._addresses[record.vm] = frozenset(record.addresses.values())
        if record.state in WANTS_VMM and not record.parked:
            self._mib[record.vm] = self._need_mib(record.spec)
