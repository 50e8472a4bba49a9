"""Hosts that a command names: assumed dead, or thought away. Hosts here only answer or do not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from mikrom_reconcile import wiring
from mikrom_reconcile.control.reconcile import Reconciler
from mikrom_reconcile.control.stores.files import FileStore
from mikrom_reconcile.core.model.documents import SourceFile, SourceTree
from mikrom_reconcile.core.model.errors import UsageError
from mikrom_reconcile.core.model.observed import (
    Capacity,
    Console,
    HostReport,
    HostView,
    ObserveQuery,
    Placements,
)
from mikrom_reconcile.core.model.plan import ActionOutcome, Order, Plan, RunRequest
from mikrom_reconcile.system.time_limits import Clock
from tests.samples import NOW

SPECS = """\
apiVersion: mikrom/v1
kind: Inventory
metadata: {name: lab}
spec: {hosts: {hv01: {}, hv02: {}}}
---
apiVersion: mikrom/v1
kind: Fleet
metadata: {name: web}
spec: {replicas: 1, template: {image: hello}}
"""


class EmptyHosts:
    """hv02 answers and has nothing; hv01 is off."""

    def __init__(self) -> None:
        self.asked: set[str] = set()

    def names(self, *, unreachable: bool = True) -> tuple[str, ...]:
        return ("hv02",)

    def give_up(self, hosts: Iterable[str]) -> None:
        assert not [*hosts]

    def observe(self, queries: Mapping[str, ObserveQuery], *, deadline_s: float) -> Iterator[HostView]:
        self.asked |= set(queries)
        report = HostReport(host="hv02", observed_at=NOW, capacity=Capacity(vcpu_count=4, mem_size_mib=4096))
        yield HostView(host="hv02", report=report)

    def execute(self, orders: Iterable[Order], *, forks: int, deadline_s: float) -> Iterator[ActionOutcome]:
        raise AssertionError("a plan gives no order")

    def console(self, host: str, vm: str, *, max_bytes: int, after: int | None = None) -> Console:
        raise AssertionError("a plan reads no console")


@pytest.fixture
def hosts() -> EmptyHosts:
    return EmptyHosts()


@pytest.fixture
def engine(hosts: EmptyHosts, tmp_path: Path) -> Reconciler:
    store = FileStore(tmp_path / "store", tmp_path)
    store.remember("default", Placements(vms={"web-000": "hv01"}, covers=("hv01", "hv02")))
    return Reconciler(here="localhost", hosts=hosts, store=store, clock=Clock(), schemas=wiring.schemas())


def request(**asked: Any) -> RunRequest:
    tree = SourceTree(revision="r", files=(SourceFile(path="web.yml", text=SPECS),))
    return RunRequest(run_id="7f3c", origin="test", tree=tree, **asked)


def kinds(plan: Plan) -> list[tuple[str, str]]:
    return [(change.kind, change.host) for change in plan.changes]


def test_a_host_that_is_off_holds_its_vms_until_a_person_calls_it_dead(engine: Reconciler) -> None:
    assert kinds(engine.plan(request())) == [("blocked", "hv01")]
    dead = engine.plan(request(assume_dead=("hv01",)))
    assert kinds(dead) == [("create", "hv02")]
    assert dead.unreachable == {"hv01": "gave no answer"}


@pytest.mark.parametrize("host", ["hv02", "hv03"])
def test_a_host_that_answers_or_is_unknown_cannot_be_called_dead(host: str, engine: Reconciler) -> None:
    with pytest.raises(UsageError, match=f"--assume-dead: {host} answers"):
        engine.plan(request(assume_dead=(host,)))


def test_a_host_that_is_thought_away_is_not_asked(engine: Reconciler, hosts: EmptyHosts) -> None:
    plan = engine.plan(request(without_hosts=("hv01",)))
    assert (kinds(plan), plan.unreachable) == ([("create", "hv02")], {})
    assert hosts.asked == {"hv02"}
    with pytest.raises(UsageError, match="no host 'hv03'; did you mean"):
        engine.plan(request(without_hosts=("hv03",)))


def test_what_was_only_thought_of_is_never_carried_out(engine: Reconciler) -> None:
    asked = request(without_hosts=("hv01",))
    with pytest.raises(UsageError, match="cannot be carried out"):
        engine.apply(asked, engine.plan(asked), progress=lambda _: None)
