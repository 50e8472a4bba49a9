"""A host whose simulated microVMs take their time, so that a test can come in between, or fail at first."""

from __future__ import annotations

import time

from mikrom_reconcile.core.model.errors import TemporaryError
from mikrom_reconcile.host.agent import HostAgent
from mikrom_reconcile.host.drivers.simulated import SimulatedDriver
from mikrom_reconcile.host.ports import VMRecord
from mikrom_reconcile.host.records import Records
from mikrom_reconcile.host.resources.images import ImageCache
from mikrom_reconcile.settings import Settings
from mikrom_reconcile.system.time_limits import Clock

LATE_S = 5.0


class FlakyDriver(SimulatedDriver):
    """Its first `failures` starts fail for a reason that passes, the others take `boot_s`, or longer for late VMs."""

    boot_s, failures = 0.0, 0

    def start(self, record: VMRecord, *, deadline_s: float) -> str:
        if self.failures:
            self.failures -= 1
            raise TemporaryError("no memory", vm=record.vm, step="booting")
        time.sleep(LATE_S if record.vm.startswith("late-") else min(self.boot_s, deadline_s))
        return super().start(record, deadline_s=deadline_s)


def slow_host(settings: Settings, boot_s: float, *, failures: int = 0) -> HostAgent:
    driver = FlakyDriver(settings.state_dir)
    driver.boot_s, driver.failures = boot_s, failures
    images = ImageCache(settings.state_dir, folders=settings.image_dirs)
    records = Records(settings.state_dir)
    return HostAgent(settings.host, driver=driver, records=records, clock=Clock(), images=images)
