"""Many hosts in one process, each with a queue, a heartbeat, records and an executor of its own, as a host worker has.

    python -m gevent.monkey --module benchmarks.crowd FOLDER FIRST COUNT

Real are the messages, the keys and streams in Redis, the checks of orders, the executor and the records; VMs are
simulated. Not in it: Celery's consumer, which takes 1.4 ms a task on a host of its own (`dispatch.py`; here the same
BRPOP takes the same message from the same lists), and the supervision, for no simulated VMM dies. All addresses of
guests lead to this process, in a network namespace of its own, where one server answers what checks ask.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gevent
from celery.exceptions import Reject
from gevent.pool import Pool
from gevent.server import StreamServer

from benchmarks import patient  # noqa: F401 - the times of all that follows
from mikrom_reconcile import wiring
from mikrom_reconcile.dispatch import celery_patches
from mikrom_reconcile.dispatch.host_worker.tasks import HostTasks
from mikrom_reconcile.dispatch.transport.broker import Keys, client_of
from mikrom_reconcile.dispatch.transport.rpc import ReplySender
from mikrom_reconcile.dispatch.transport.shared_state import Heartbeat
from mikrom_reconcile.settings import load

NETWORK = "ip link set lo up && ip route add local 10.0.0.0/11 dev lo"
PORT = 8080
SLOTS = 100


class _Task:
    """What an order's task asks of Celery. It is tried once: nothing here fails for a reason that passes."""

    def __init__(self, headers: dict[str, Any]) -> None:
        self.request = SimpleNamespace(id=headers["id"], retries=0, traceparent=headers.get("traceparent"))

    def retry(self, **_: object) -> None:
        """No other attempt."""
        raise Reject("as a broker that does not take it")


class CrowdedHost:
    """One host: it takes messages from its queue, and gives each to a greenlet."""

    def __init__(self, name: str, environment: dict[str, str], state_dir: Path) -> None:
        state_dir.mkdir(parents=True, exist_ok=True)
        settings = load(environment | {"MIKROM_HOST": name, "MIKROM_STATE_DIR": str(state_dir)})
        self._keys, self._url = Keys(settings.queue), settings.broker_url or ""
        agent = wiring.make_host_agent(settings)
        redis = client_of(self._url)  # its own, as its connections are on a machine of its own
        replies = ReplySender(redis, self._keys, f"host:{name}")
        self._tasks = HostTasks(name, self._keys.host_queue(name), lambda: agent, replies)
        self._heartbeat = Heartbeat(redis, self._keys, f"host:{name}", state_dir=state_dir)
        self._slots = Pool(SLOTS)
        replies.start()
        self._heartbeat.start()

    def consume(self) -> None:
        """Take messages, those of the highest priority first, until the process ends."""
        redis, lists = client_of(self._url, read_s=60), self._keys.lists(self._tasks.queue)
        while True:
            found: Any = redis.brpop(lists, timeout=30)
            if found:
                self._slots.spawn(self._carry_out, json.loads(found[1]))

    def _carry_out(self, message: dict[str, Any]) -> None:
        _, arguments, _ = json.loads(base64.b64decode(message["body"]))
        name = message["headers"]["task"].removeprefix("mikrom.")
        if name.endswith("_vm"):
            self._tasks.carry_out(_Task(message["headers"]), name.removesuffix("_vm"), arguments)
        else:
            task: Callable[..., None] = getattr(self._tasks, name)
            task(**arguments)


def main(folder: str, first: str, count: str) -> None:
    """Be these hosts."""
    logging.basicConfig(level=logging.WARNING)
    celery_patches.install_gevent()
    subprocess.run(["sh", "-c", NETWORK], check=True)
    StreamServer(("0.0.0.0", PORT), lambda socket, _: socket.close(), backlog=4096).start()
    for number in range(int(first), int(first) + int(count)):
        name = f"hv{number:05d}"
        host = CrowdedHost(name, dict(os.environ), Path(folder) / name)
        gevent.spawn(host.consume)
    print("ready.", flush=True)
    gevent.wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
