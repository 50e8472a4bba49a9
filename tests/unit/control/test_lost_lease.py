"""A run whose lease is lost in the middle: somebody else decides by now, so nothing more may be sent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime

from mikrom_reconcile import wiring
from mikrom_reconcile.control.reconcile import Reconciler
from mikrom_reconcile.core.model.documents import SourceFile, SourceTree
from mikrom_reconcile.core.model.observed import (
    Capacity,
    Console,
    HostReport,
    HostView,
    ObserveQuery,
    Placements,
)
from mikrom_reconcile.core.model.plan import ActionOutcome, Order, RunRecord, RunRequest
from mikrom_reconcile.dispatch.transport.order_envelope import given_up
from mikrom_reconcile.system.time_limits import Clock

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
FLEET = "apiVersion: mikrom/v1\nkind: Fleet\nmetadata: {name: web}\nspec: {replicas: 5, template: {image: hello}}\n"


class EagerHosts:
    """Takes every order at once, as a fleet does, and sends the next when the last was answered."""

    def __init__(self) -> None:
        self.sent: list[str] = []

    def names(self, *, unreachable: bool = True) -> tuple[str, ...]:
        return ("localhost",)

    def give_up(self, hosts: Iterable[str]) -> None:
        assert not [*hosts]

    def observe(self, queries: Mapping[str, ObserveQuery], *, deadline_s: float) -> Iterator[HostView]:
        report = HostReport(host="localhost", observed_at=NOW, capacity=Capacity(vcpu_count=8, mem_size_mib=8192))
        yield HostView(host="localhost", report=report)

    def execute(self, orders: Iterable[Order], *, forks: int, deadline_s: float) -> Iterator[ActionOutcome]:
        for order in list(orders):
            self.sent.append(order.action.vm)
            yield given_up(order, "done", "")

    def console(self, host: str, vm: str, *, max_bytes: int, after: int | None = None) -> Console:
        return Console()


class LosingStore:
    """Gives a lease that is lost with the second outcome."""

    def __init__(self, hosts: EagerHosts) -> None:
        self.token = 1
        self.remembered_when_held: list[bool] = []
        self._hosts = hosts

    def held(self) -> bool:
        return len(self._hosts.sent) < 2

    def release(self) -> None:
        pass

    def lease(self, scope: str, *, holder: str, ttl_s: float, at_least: int) -> LosingStore:
        return self

    def placements(self, project: str) -> Placements:
        return Placements()

    def remember(self, project: str, placements: Placements) -> None:
        self.remembered_when_held.append(self.held())

    def save(self, run: RunRecord) -> None:
        pass

    def runs(self, limit: int) -> tuple[RunRecord, ...]:
        return ()

    def put(self, shelf: str, name: str, content: bytes | None) -> None:
        pass

    def get(self, shelf: str, name: str) -> bytes | None:
        return None

    def shelf(self, shelf: str) -> list[bytes]:
        return []


def test_nothing_more_is_sent_once_the_lease_is_lost() -> None:
    hosts = EagerHosts()
    clock = Clock()
    store = LosingStore(hosts)
    engine = Reconciler(here="localhost", hosts=hosts, store=store, clock=clock, schemas=wiring.schemas())
    tree = SourceTree(revision="r", files=(SourceFile(path="web.yml", text=FLEET),))
    report = engine.apply(RunRequest(run_id="r", origin="a test", tree=tree), None, progress=lambda _: None)
    assert len(hosts.sent) == 2
    assert len(report.outcomes) == 2
    assert report.remaining is not None
    assert report.remaining.actions
    assert store.remembered_when_held == [True], "the memory is the new holder's by then"
