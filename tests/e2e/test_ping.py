"""A host worker answers whoever asks after it, whatever it is busy with."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mikrom_reconcile import wiring
from mikrom_reconcile.control.stores.redis import RedisStore
from mikrom_reconcile.core.model.documents import SourceFile, SourceTree
from mikrom_reconcile.core.model.plan import RunReport, RunRequest
from mikrom_reconcile.dispatch.app import FleetApp, make_app
from mikrom_reconcile.dispatch.hosts.remote import CeleryHosts
from mikrom_reconcile.services import commands
from tests.fleet import Fleet, wait_until
from tests.watch import Watch

VMS = 100
ANSWER_S = 1.0
ROUNDS = 3
"""A machine that is busy otherwise may keep an answer back once; a worker that stands still does it always."""

SPECS = f"""
apiVersion: mikrom/v1
kind: Project
metadata: {{name: round-%d}}
---
apiVersion: mikrom/v1
kind: Fleet
metadata: {{name: web-%d}}
spec:
  replicas: {VMS}
  template: {{image: hello, machine: {{mem_size_mib: 4}}}}
"""

pytestmark = [pytest.mark.kvm, pytest.mark.redis]


@pytest.fixture
def watch(own_environment: Path) -> Iterator[Watch]:
    """Kills what a test leaves."""
    with Watch(own_environment / "run") as watch:
        try:
            yield watch
        finally:
            for vmm in watch.now():
                os.kill(vmm.pid, signal.SIGKILL)


@pytest.fixture
def fleet(own_environment: Path, watch: Watch) -> Iterator[Fleet]:
    fleet = Fleet(own_environment)
    try:
        yield fleet
    finally:
        fleet.close()


def test_a_worker_answers_a_ping_within_a_second_while_a_hundred_vms_boot(fleet: Fleet, watch: Watch) -> None:
    real = {"MIKROM_DRIVER": "firecracker", "MIKROM_FIRECRACKER": os.environ["MIKROM_FIRECRACKER"]}
    settings = fleet.settings(**real)
    worker = fleet.run("host-localhost", commands.command("host", settings), **real)
    fleet.wait_for("host:localhost", worker)
    app = make_app(settings)
    # it says that it is ready a moment before it listens to broadcasts
    wait_until(lambda: asked(app, timeout_s=1), "the first answer")
    slowest_s = []
    for number in range(ROUNDS):
        slowest_s.append(slowest_answer_s(fleet, app, number))
        assert len(watch.now()) == VMS * len(slowest_s)
        if slowest_s[-1] < ANSWER_S:
            return
    pytest.fail(f"the slowest answers took {slowest_s} s")


def slowest_answer_s(fleet: Fleet, app: FleetApp, number: int) -> float:
    """Of all pings while a hundred more VMs boot."""
    with ThreadPoolExecutor() as pool:
        booting = pool.submit(lambda: apply(fleet, app, number))
        answers_s = []
        while not booting.done():
            answers_s.append(ping_s(app))
        report = booting.result()
    assert [outcome.result for outcome in report.outcomes] == ["done"] * VMS
    assert len(answers_s) > 1, "nothing was asked while they booted"
    return max(answers_s)


def apply(fleet: Fleet, app: FleetApp, number: int) -> RunReport:
    """All at once."""
    hosts = CeleryHosts(app, fleet.redis)
    engine = wiring.make_reconciler(app.settings, hosts, RedisStore(fleet.redis, prefix=app.keys.prefix))
    tree = SourceTree(revision="r", files=(SourceFile(path="web.yml", text=SPECS % (number, number)),))
    request = RunRequest(run_id="7f3c", origin="a test", tree=tree, forks=VMS)
    return engine.apply(request, None, progress=lambda _: None)


def ping_s(app: FleetApp) -> float:
    """Seconds until the worker has answered, as `celery inspect ping --destination host@localhost` asks it."""
    began_s = time.monotonic()
    assert asked(app, timeout_s=5) == {"host@localhost": {"ok": "pong"}}
    return time.monotonic() - began_s


def asked(app: FleetApp, *, timeout_s: float) -> object:
    return app.control.inspect(destination=["host@localhost"], timeout=timeout_s, limit=1).ping()
