"""A run that changes nothing sends as much for many VMs as for few. `python -m benchmarks traffic` has the figures."""

from __future__ import annotations

from typing import Any

import pytest

from mikrom_reconcile import wiring
from mikrom_reconcile.control.ports import Engine
from mikrom_reconcile.control.stores.redis import RedisStore
from mikrom_reconcile.core.model.documents import SourceFile, SourceTree
from mikrom_reconcile.core.model.plan import BEAT, RunRequest
from mikrom_reconcile.dispatch.app import make_app
from mikrom_reconcile.dispatch.hosts.remote import CeleryHosts
from tests.fleet import KEYS, Fleet

pytestmark = pytest.mark.redis

SPECS = """
apiVersion: mikrom/v1
kind: Fleet
metadata: {{name: web}}
spec:
  replicas: {vms}
  template: {{image: hello, machine: {{mem_size_mib: 4}}}}
"""
HEARTBEATS_BYTES = 3000
"""What a worker and its host may send by chance while a run is measured."""


def test_a_run_that_changes_nothing_sends_no_more_for_two_hundred_vms_than_for_two(fleet: Fleet) -> None:
    fleet.worker("host", app="mikrom_reconcile.celery_app")
    app = make_app(fleet.settings())
    store = RedisStore(fleet.redis, prefix=KEYS.prefix)
    engine = wiring.make_reconciler(app.settings, CeleryHosts(app, fleet.redis), store)
    few_bytes, many_bytes = (bytes_of_a_quiet_run(fleet, engine, vms) for vms in (2, 200))
    assert few_bytes > 1000
    assert many_bytes < few_bytes + HEARTBEATS_BYTES


def bytes_of_a_quiet_run(fleet: Fleet, engine: Engine, vms: int) -> int:
    assert changes(engine, vms) > 0
    assert changes(engine, vms) == 0  # knows by now what it had written down
    found = []
    for _ in range(3):
        before = sent_bytes(fleet)
        assert changes(engine, vms) == 0
        found.append(sent_bytes(fleet) - before)
    return min(found)


def changes(engine: Engine, vms: int) -> int:
    tree = SourceTree(revision="r", files=(SourceFile(path="web.yml", text=SPECS.format(vms=vms)),))
    report = engine.apply(RunRequest(run_id="r", origin=BEAT, tree=tree), None, progress=lambda _: None)
    return len(report.outcomes)


def sent_bytes(fleet: Fleet) -> int:
    stats: Any = fleet.redis.info("stats")
    return int(stats["total_net_input_bytes"]) + int(stats["total_net_output_bytes"])
