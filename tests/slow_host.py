"""A host whose simulated microVMs take their time, so that a test can come in between."""

from __future__ import annotations

from mikrom_reconcile.host.drivers.simulated import SimulatedDriver
from mikrom_reconcile.host.hypervisor import Hypervisor
from mikrom_reconcile.host.records import Records
from mikrom_reconcile.settings import Settings
from mikrom_reconcile.wiring import SystemClock


def slow_host(settings: Settings, boot_s: float) -> Hypervisor:
    driver = SimulatedDriver(settings.state_dir, boot_s=boot_s)
    return Hypervisor(settings.host, driver=driver, records=Records(settings.state_dir), clock=SystemClock())
