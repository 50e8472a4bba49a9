"""This machine as a hypervisor host: what dispatch calls, in this process or inside a Celery worker."""

from __future__ import annotations

from mikrom_reconcile.core.model.observed import HostReport, ObserveQuery
from mikrom_reconcile.core.model.run import ActionOutcome, Order
from mikrom_reconcile.host.ports import Clock, Driver
from mikrom_reconcile.host.records import Records


class Hypervisor:
    """One host: its driver, its records and its clock. Safe to call from many threads or greenlets at once."""

    def __init__(self, name: str, *, driver: Driver, records: Records, clock: Clock) -> None:
        self.name = name
        self._driver = driver
        self._records = records
        self._clock = clock

    def observe(self, query: ObserveQuery) -> HostReport:
        """What is here now, as far as `query` asks."""
        raise NotImplementedError

    def execute(self, order: Order) -> ActionOutcome:
        """Measure, act, verify. Never raises: what went wrong is in the outcome."""
        raise NotImplementedError

    def console(self, vm: str, *, max_bytes: int) -> bytes:
        """The end of the VM's serial console, b"" if there is none."""
        return self._driver.console(vm, max_bytes=max_bytes)
