"""Hosts of a fleet are filled within their room, drained and taken out, over Celery, with simulated microVMs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mikrom_reconcile import wiring
from mikrom_reconcile.control.ports import Engine
from mikrom_reconcile.control.stores.redis import RedisStore
from mikrom_reconcile.core.model.documents import SourceFile, SourceTree
from mikrom_reconcile.core.model.plan import Plan, RunReport, RunRequest
from mikrom_reconcile.dispatch.app import make_app
from mikrom_reconcile.dispatch.hosts.remote import CeleryHosts
from tests.fleet import KEYS, Fleet

pytestmark = pytest.mark.redis

SPECS = """
apiVersion: mikrom/v1
kind: Inventory
metadata: {{name: lab}}
spec:
  hosts: {hosts}
  groups: {{all_kvm: {{hosts: [{names}], capacity: {{mem_size_mib: 768}}}}}}
---
apiVersion: mikrom/v1
kind: Fleet
metadata: {{name: web}}
spec: {{replicas: {replicas}, template: {{image: hello}}}}
"""
THREE = "{hv1: , hv2: , hv3: }"
DRAINED = "{hv1: , hv2: {state: drain}, hv3: }"
TWO = "{hv1: , hv3: }"


class Lab:
    """Three host workers, and the control side in the process of the test."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        settings = fleet.settings()
        self.app = make_app(settings)
        hosts = CeleryHosts(self.app, fleet.redis)
        self.engine: Engine = wiring.make_reconciler(settings, hosts, RedisStore(fleet.redis, prefix=KEYS.prefix))
        self.workers = {name: self._start(name) for name in ("hv1", "hv2", "hv3")}

    def _start(self, name: str) -> Callable[[], None]:
        state = {"MIKROM_STATE_DIR": f"{self.fleet.folder}/{name}", "MIKROM_RUN_DIR": f"{self.fleet.folder}/{name}-run"}
        process = self.fleet.worker("host", host=name, **state)
        return process.kill

    def request(self, hosts: str, replicas: int = 10, assume_dead: tuple[str, ...] = ()) -> RunRequest:
        names = ", ".join(name for name in ("hv1", "hv2", "hv3") if name in hosts)
        text = SPECS.format(hosts=hosts, names=names, replicas=replicas)
        tree = SourceTree(revision="r", files=(SourceFile(path="a.yml", text=text),))
        return RunRequest(run_id="r1", origin="test", tree=tree, assume_dead=assume_dead)

    def plan(self, hosts: str, replicas: int = 10) -> Plan:
        return self.engine.plan(self.request(hosts, replicas))

    def apply(self, hosts: str, replicas: int = 10, assume_dead: tuple[str, ...] = ()) -> RunReport:
        request = self.request(hosts, replicas, assume_dead)
        return self.engine.apply(request, None, progress=lambda outcome: None)

    def records(self, host: str) -> int:
        """The VMs that the host itself has, whatever anybody reports."""
        return len(list(Path(self.fleet.folder, host, "vms").glob("*/record.json")))


@pytest.fixture
def lab(own_environment: Path) -> Iterator[Lab]:
    fleet = Fleet(own_environment)
    try:
        lab = Lab(fleet)
        yield lab
        lab.app.close()
    finally:
        fleet.close()


def test_hosts_are_filled_drained_and_taken_out(lab: Lab) -> None:
    report = lab.apply(THREE)
    assert {outcome.result for outcome in report.outcomes} == {"done"}
    assert [lab.records(host) for host in ("hv1", "hv2", "hv3")] == [4, 3, 3]

    left = lab.plan(TWO)  # gone from the inventory, not yet empty: nothing is moved
    assert {(change.kind, change.host) for change in left.changes} == {("blocked", "hv2")}
    assert left.actions == ()

    report = lab.apply(DRAINED)
    assert report.remaining is not None
    assert report.remaining.changes == ()
    assert [lab.records(host) for host in ("hv1", "hv2", "hv3")] == [5, 0, 5]
    assert lab.plan(TWO).changes == ()

    full = lab.plan(TWO, replicas=13)  # six of 128 MiB on each
    refused = [change for change in full.changes if change.kind == "blocked"]
    assert len(full.actions) == 2
    assert [change.name for change in refused] == ["web-012"]
    assert "hv1: 128 MiB needed, 0 of 768 left" in refused[0].reasons


def test_a_host_that_is_lost_after_it_left_the_inventory_needs_a_persons_word(lab: Lab) -> None:
    lab.apply(THREE)
    lab.workers["hv2"]()
    stuck = lab.apply(TWO)
    assert stuck.outcomes == ()
    assert stuck.remaining is not None
    assert {(change.kind, change.host) for change in stuck.remaining.changes} == {("blocked", "hv2")}

    report = lab.apply(TWO, assume_dead=("hv2",))
    assert {outcome.verb for outcome in report.outcomes} == {"create"}
    assert [lab.records(host) for host in ("hv1", "hv3")] == [5, 5]
