"""1,000 actions through Celery beside 1,000 of Celery's own no-op tasks, to workers with the very same settings.

An action is sent, carried out on the simulated driver, recorded on disk, told over the stream and taken in by the
sender. A no-op is sent and its result ignored, by a plain Celery app to a plain Celery worker; that all have run is
told once. Ours is `mikrom worker` as it is, the other has the same command line and configuration and none of our
code (`dispatch/celery_patches.py` says what that saves of Celery's own costs). Each round gives both their turn, the
first does not count. CPU milliseconds are those of the worker and, after it, of the sender, for each action or no-op.

The first row has its records in memory. The second has them on the disk that a real run would use: a create waits for
it three times, in native threads, and with 32 under way it is the disk's rate that is seen. Its VMs are not removed
between the rounds, for the reason in `scratch.py`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median

from celery import Celery
from redis import Redis

from benchmarks.rows import Goal, Row, used_cpu_s
from benchmarks.scratch import scratch
from mikrom_reconcile import wiring
from mikrom_reconcile.control.stores.redis import RedisStore
from mikrom_reconcile.core.model.documents import SourceFile, SourceTree
from mikrom_reconcile.core.model.plan import Order, RunRequest
from mikrom_reconcile.dispatch.app import FleetApp, configuration, make_app
from mikrom_reconcile.dispatch.hosts.remote import CeleryHosts
from mikrom_reconcile.dispatch.transport.broker import client_of
from mikrom_reconcile.services import commands
from mikrom_reconcile.settings import Settings, load

ACTIONS = 1000
GOAL = Goal(number=6, bound=1.3, at_most=True)
TMPFS = Path("/dev/shm")
OURS, OTHER = "hv01", "hv02"
DONE = "bench:no-ops"
SPECS = f"""
apiVersion: mikrom/v1
kind: Inventory
metadata: {{name: bench}}
spec: {{hosts: {{{OURS}: {{}}}}}}
---
apiVersion: mikrom/v1
kind: Fleet
metadata: {{name: round%d}}
spec:
  replicas: {ACTIONS}
  prune: {{allow_empty: true}}
  template: {{image: hello, machine: {{mem_size_mib: 4}}}}
"""


class Side:
    """One host worker, and what it and the sender took for each round."""

    def __init__(self, host: str, app: str, fleet: Fleet) -> None:
        settings = fleet.settings(host)
        argv = commands.command("host", settings)
        argv[argv.index(commands.APP)] = app
        self._log = fleet.folder / f"{host}.log"
        with self._log.open("wb") as log:
            self.worker = subprocess.Popen(argv, env=fleet.environment(host), stdout=log, stderr=log)
        wait(lambda: b" ready." in self._log.read_bytes(), f"the worker of {host}")
        self.figures: list[tuple[float, float, float]] = []

    def time(self, act: Callable[[], None]) -> None:
        """Note wall seconds, CPU seconds of the worker, and CPU seconds of this process."""
        worker_s, own_s, began_s = used_cpu_s(self.worker.pid), time.process_time(), time.perf_counter()
        act()
        wall_s, own_s = time.perf_counter() - began_s, time.process_time() - own_s
        self.figures.append((wall_s, used_cpu_s(self.worker.pid) - worker_s, own_s))

    def text(self) -> str:
        """The medians of all rounds but the first: seconds, and CPU milliseconds of the worker and the sender."""
        wall_s, worker_s, own_s = (median(figures) for figures in zip(*self.figures[1:], strict=True))
        return f"{wall_s:.2f} s {worker_s / ACTIONS * 1000:.2f}+{own_s / ACTIONS * 1000:.2f} ms"


class Fleet:
    """A private Redis, and the settings of whoever uses it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        socket = folder / "redis.sock"
        self._url = f"redis+socket://{socket}"
        argv = ["redis-server", "--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(folder)]
        self.server = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
        wait(socket.exists, "Redis")
        self.redis: Redis = client_of(self._url)

    def environment(self, host: str) -> dict[str, str]:
        """The variables of a worker."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MIKROM_", "CELERY_"))}
        own = {"BROKER_URL": self._url, "HOST": host, "DRIVER": "simulated", "WORKER_ROLE": "host"}
        folders = {"STATE_DIR": self.folder / host / "state", "RUN_DIR": self.folder / host / "run"}
        return kept | {f"MIKROM_{name}": str(value) for name, value in (own | folders).items()}

    def settings(self, host: str) -> Settings:
        """The same as settings."""
        return load(self.environment(host))


def measure() -> Iterator[Row]:
    """Seconds for all, worker and sender CPU for each; with records in memory, then on the disk."""
    with tempfile.TemporaryDirectory(prefix="mk-", dir=TMPFS) as name:
        figure, row = _measured(Path(name), "in memory", rounds=5, removing=True)
        yield replace(row, goal=GOAL, figure=figure)
    with scratch() as folder:
        yield _measured(folder, "on disk", rounds=2, removing=False)[1]


def _measured(folder: Path, where: str, *, rounds: int, removing: bool) -> tuple[float, Row]:
    """The ratio, and the row without its goal."""
    fleet = Fleet(folder)
    workers = []
    try:
        ours = Side(OURS, commands.APP, fleet)
        workers.append(ours.worker)
        other = Side(OTHER, "benchmarks.no_op_app", fleet)
        workers.append(other.worker)
        _take_turns(fleet, ours, other, rounds=rounds, removing=removing)
    finally:
        for process in (*workers, fleet.server):
            process.kill()
            process.wait()
    ratio = median(mine[0] / theirs[0] for mine, theirs in zip(ours.figures[1:], other.figures[1:], strict=True))
    what = f"{ACTIONS} actions through Celery, records {where} | no-op tasks"
    return ratio, Row(what=what, ours=ours.text(), other=other.text(), ratio=f"{ratio:.2f}")


def _take_turns(fleet: Fleet, ours: Side, other: Side, *, rounds: int, removing: bool) -> None:
    settings = fleet.settings("sender")
    plain = Celery("bench", broker=settings.broker_url, set_as_current=False)
    plain.conf.update(configuration(settings))
    app = make_app(settings)
    hosts = CeleryHosts(app, app.redis)
    for number in range(rounds + 1):
        orders = _orders(fleet, app, hosts, number)
        ours.time(lambda orders=orders: _act(hosts, orders, app.settings.forks))  # type: ignore[misc]
        other.time(lambda: _send_no_ops(plain, app.keys.host_queue(OTHER), fleet.redis))
        if removing:
            _act(hosts, _orders(fleet, app, hosts, number, destroy=True), app.settings.forks)


def _orders(fleet: Fleet, app: FleetApp, hosts: CeleryHosts, number: int, *, destroy: bool = False) -> list[Order]:
    """Creates of a new fleet, one for each VM, or their deletes."""
    engine = wiring.make_reconciler(app.settings, hosts, RedisStore(fleet.redis, prefix=app.keys.prefix))
    tree = SourceTree(revision="bench", files=(SourceFile(path="web.yml", text=SPECS % number),))
    request = RunRequest(run_id="bench", origin="a benchmark", tree=tree, destroy=destroy, prune_max="100%")
    orders = [Order(run_id="bench", token=1, action=action) for action in engine.plan(request).actions]
    assert len(orders) == ACTIONS
    return orders


def _act(hosts: CeleryHosts, orders: list[Order], forks: int) -> None:
    outcomes = list(hosts.execute(orders, forks=forks, deadline_s=300))
    assert [outcome.result for outcome in outcomes] == ["done"] * ACTIONS


def _send_no_ops(app: Celery, queue: str, redis: Redis) -> None:
    for _ in range(ACTIONS):
        app.send_task("bench.no_op", kwargs={"of": ACTIONS, "tell": DONE}, queue=queue, ignore_result=True)
    while redis.brpop([DONE], timeout=4) is None:
        pass


def wait(holds: Callable[[], bool], what: str, *, within_s: float = 20.0) -> None:
    """Until it holds; ends this process when it has not by then."""
    until = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > until:
            sys.exit(f"waited {within_s:g} s for {what}")
        time.sleep(0.05)
