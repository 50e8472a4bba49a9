"""What a run that changes nothing sends: Redis commands and bytes, by the number of VMs and of hosts.

It must depend on the number of hosts only. A run here is Beat's: it reads the specs where it runs, so that their size
is not in it; `mikrom plan` and `apply` send the tree of their specs once, whatever changes. Redis counts, and what it
counts while nobody runs (heartbeats, workers that wait) is measured first and subtracted.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from redis import Redis

from benchmarks.dispatch import Fleet, wait
from benchmarks.rows import Goal, Row
from benchmarks.scratch import scratch
from mikrom_reconcile import wiring
from mikrom_reconcile.control.ports import Engine
from mikrom_reconcile.control.stores.redis import RedisStore
from mikrom_reconcile.core.model.documents import SourceFile, SourceTree
from mikrom_reconcile.core.model.plan import BEAT, RunRequest
from mikrom_reconcile.dispatch.app import make_app
from mikrom_reconcile.dispatch.hosts.remote import CeleryHosts
from mikrom_reconcile.services import commands as services

RUNS = 20
IDLE_S = 8.0
MOST_HOSTS = 4
SPECS = """
apiVersion: mikrom/v1
kind: Inventory
metadata: {{name: bench}}
spec: {{hosts: {{{hosts}}}}}
---
apiVersion: mikrom/v1
kind: Fleet
metadata: {{name: web}}
spec:
  replicas: {vms}
  hosts: all
  prune: {{max: 100%, allow_empty: true}}
  template: {{image: hello, machine: {{mem_size_mib: 4}}}}
"""


class Traffic(NamedTuple):
    """As Redis counts it, with the second at which it did."""

    at_s: float
    commands: float
    received_bytes: float
    sent_bytes: float

    def text(self) -> str:
        """For a column."""
        return f"{self.commands:.0f} {(self.received_bytes + self.sent_bytes) / 1000:.1f} kB"


def measure() -> Iterator[Row]:
    """10 and 1,000 VMs on 2 hosts, then on 4."""
    with scratch() as folder:
        fleet = Fleet(folder)
        workers: list[subprocess.Popen[bytes]] = []
        try:
            workers.extend(_worker(fleet, f"hv{number:02d}") for number in range(MOST_HOSTS))
            app = make_app(fleet.settings("control"))
            hosts = CeleryHosts(app, app.redis)
            engine = wiring.make_reconciler(app.settings, hosts, RedisStore(app.redis, prefix=app.keys.prefix))
            for count in (2, 4):
                few, many = (_traffic(engine, fleet.redis, vms, count) for vms in (10, 1000))
                ratio = sum(many[2:]) / sum(few[2:])
                yield Row(
                    what=f"a run without changes, {count} hosts: 1,000 VMs | 10 VMs",
                    ours=many.text(),
                    other=few.text(),
                    ratio=f"{ratio:.2f}",
                    goal=Goal(
                        number=7, bound=1.2, at_most=True
                    ),  # the same, but for beats that fall into one and not the other
                    figure=ratio,
                )
        finally:
            for process in (*workers, fleet.server):
                process.kill()
                process.wait()


def _worker(fleet: Fleet, host: str) -> subprocess.Popen[bytes]:
    log_path = fleet.folder / f"{host}.log"
    argv = services.command("host", fleet.settings(host))
    with log_path.open("wb") as log:
        worker = subprocess.Popen(argv, env=fleet.environment(host), stdout=log, stderr=log)
    wait(lambda: b" ready." in log_path.read_bytes(), f"the worker of {host}")
    return worker


def _traffic(engine: Engine, redis: Redis, vms: int, hosts: int) -> Traffic:
    """Of one run on average, after some that make it all so."""
    while _run(engine, vms, hosts):
        pass
    before = counted(redis)
    time.sleep(IDLE_S)
    idle = difference(before, counted(redis))
    before = counted(redis)
    for _ in range(RUNS):
        assert _run(engine, vms, hosts) == 0
    busy = difference(before, counted(redis))
    share = busy.at_s / idle.at_s
    return Traffic(*((all_of_it - share * others) / RUNS for all_of_it, others in zip(busy, idle, strict=True)))


def difference(early: Traffic, late: Traffic) -> Traffic:
    """What came from one count to the other."""
    return Traffic(*(after - before for before, after in zip(early, late, strict=True)))


def _run(engine: Engine, vms: int, hosts: int) -> int:
    """How many actions a run of Beat has carried out."""
    named = ", ".join(f"hv{number:02d}: {{}}" for number in range(hosts))
    tree = SourceTree(revision="bench", files=(SourceFile(path="a.yml", text=SPECS.format(hosts=named, vms=vms)),))
    report = engine.apply(RunRequest(run_id="bench", origin=BEAT, tree=tree), None, progress=lambda _: None)
    assert report.remaining is not None
    assert report.remaining.changes == ()
    return len(report.outcomes)


def counted(redis: Redis) -> Traffic:
    """All that came so far."""
    stats: Any = redis.info("stats")
    read, written = stats["total_net_input_bytes"], stats["total_net_output_bytes"]
    return Traffic(time.monotonic(), stats["total_commands_processed"], read, written)
