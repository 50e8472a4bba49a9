"""The app of a worker whose simulated microVMs are slow, MIKROM_TEST_BOOT_S seconds for a start, and flaky: the first
MIKROM_TEST_FAILURES starts fail. The disk stalls for as long as there is a file MIKROM_TEST_STALL. All else is the real
one. With MIKROM_TEST_HANG the worker never comes to its end by itself.
"""

from __future__ import annotations

import os
import threading
from functools import cache
from pathlib import Path

from celery import signals
from gevent.monkey import get_original

from mikrom_reconcile import wiring
from mikrom_reconcile.control.snapshot import Snapshots
from mikrom_reconcile.control.stores.redis import RedisStore
from mikrom_reconcile.dispatch.app import make_app
from mikrom_reconcile.dispatch.hosts.remote import CeleryHosts
from mikrom_reconcile.dispatch.process import FleetProcess
from mikrom_reconcile.settings import load
from tests.slow_host import slow_host


def stalling_fsync(fd: int) -> None:
    """As a disk does: nothing else runs in the thread that waits for it."""
    while stall.exists():
        get_original("time", "sleep")(0.02)
    real_fsync(fd)


if "MIKROM_TEST_STALL" in os.environ:
    stall, real_fsync = Path(os.environ["MIKROM_TEST_STALL"]), os.fsync
    os.fsync = stalling_fsync  # type: ignore[assignment]

if "MIKROM_TEST_HANG" in os.environ:
    signals.worker_shutdown.connect(lambda **_: threading.Event().wait(), weak=False)

settings = load()
app = make_app(settings)
boot_s = float(os.environ.get("MIKROM_TEST_BOOT_S", "0.2"))
failures = int(os.environ.get("MIKROM_TEST_FAILURES", "0"))
hosts = CeleryHosts(app, app.redis)
store = RedisStore(app.redis, prefix=app.keys.prefix)
engine = cache(lambda: wiring.make_reconciler(settings, hosts, store))
FleetProcess(
    app,
    agent=cache(lambda: slow_host(settings, boot_s, failures=failures)),
    engine=engine,
    source=wiring.make_source(settings),
    store=store,
    snapshots=Snapshots(engine, wiring.schemas(), settings.host),
)
