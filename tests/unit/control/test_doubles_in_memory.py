"""A host that was given up comes back with its VMs as they were: whatever the memory and the digests say."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from mikrom_reconcile import wiring
from mikrom_reconcile.control.reconcile import Reconciler
from mikrom_reconcile.control.stores.files import FileStore
from mikrom_reconcile.core.model.documents import SourceFile, SourceTree
from mikrom_reconcile.core.model.observed import Console, HostView, ObserveQuery
from mikrom_reconcile.core.model.plan import ActionOutcome, Order, RunRequest
from mikrom_reconcile.dispatch.transport.order_envelope import given_up
from mikrom_reconcile.system.time_limits import Clock
from tests.properties.world import World

SPECS = """\
apiVersion: mikrom/v1
kind: Inventory
metadata: {name: lab}
spec: {hosts: {hv1: {}, hv2: {}}}
---
apiVersion: mikrom/v1
kind: Fleet
metadata: {name: web}
spec: {replicas: 4, prune: {max: 50%}, template: {image: hello}}
"""
REQUEST = RunRequest(
    run_id="r", origin="a test", tree=SourceTree(revision="r", files=(SourceFile(path="web.yml", text=SPECS),))
)


class WorldHosts:
    def __init__(self, world: World) -> None:
        self.world = world
        self.looks = 0

    def names(self, *, unreachable: bool = True) -> tuple[str, ...]:
        return tuple(self.world.hosts)

    def give_up(self, hosts: Iterable[str]) -> None:
        assert not [*hosts]

    def observe(self, queries: Mapping[str, ObserveQuery], *, deadline_s: float) -> Iterator[HostView]:
        self.looks += 1
        yield from self.world.observe(dict(queries)).hosts

    def execute(self, orders: Iterable[Order], *, forks: int, deadline_s: float) -> Iterator[ActionOutcome]:
        for order in orders:
            self.world.token = order.token
            assert self.world.act(order.action) == "done"
            yield given_up(order, "done", "")

    def console(self, host: str, vm: str, *, max_bytes: int, after: int | None = None) -> Console:
        raise AssertionError("nobody reads a console here")


def test_the_older_of_two_equal_vms_is_found_though_a_digest_proves_each_as_wanted(tmp_path: Path) -> None:
    world = World(hosts={"hv1": {}, "hv2": {}})
    hosts = WorldHosts(world)
    store = FileStore(tmp_path / "store", tmp_path)
    engine = Reconciler(here="hv1", hosts=hosts, store=store, clock=Clock(), schemas=wiring.schemas())
    engine.apply(REQUEST, None, progress=lambda _: None)
    newer = next(host for host, vms in world.hosts.items() if "web-000" in vms)
    older = "hv2" if newer == "hv1" else "hv1"
    hosts.looks = 0
    assert engine.plan(REQUEST).changes == ()
    assert hosts.looks == 1, "where nothing is in doubt, one look is enough"

    found = world.hosts[newer]["web-000"]
    world.hosts[older]["web-000"] = replace(found, token=0, uid="older")
    (change,) = engine.plan(REQUEST).changes
    assert (change.kind, change.name, change.host, change.rule) == ("delete", "web-000", older, "duplicate")
    engine.apply(REQUEST, None, progress=lambda _: None)
    assert world.copies("web-000", "default") == [newer]
    assert world.hosts[newer]["web-000"] == found
