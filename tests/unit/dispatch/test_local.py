"""The thread pool with a hypervisor that does what a test says; the contract over real hosts is in tests/contract."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator
from datetime import UTC, datetime
from typing import cast

import pytest

from mikrom_reconcile.core.model.errors import MikromError
from mikrom_reconcile.core.model.observed import Capacity, Console, HostReport, ObserveQuery
from mikrom_reconcile.core.model.plan import Action, ActionOutcome, Expect, Order
from mikrom_reconcile.dispatch.hosts.local import LocalHosts
from mikrom_reconcile.host.agent import HostAgent
from tests.fleet import wait_until

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


class SlowHost:
    """A hypervisor whose actions last until `gate` opens."""

    name = "localhost"

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.begun: list[str] = []
        self.at_once = 0
        self.most_at_once = 0
        self._lock = threading.Lock()

    def observe(self, query: ObserveQuery) -> HostReport:
        self.gate.wait(5)
        return HostReport(host=self.name, observed_at=NOW, capacity=Capacity(vcpu_count=1, mem_size_mib=1))

    def execute(self, order: Order) -> ActionOutcome:
        with self._lock:
            self.begun.append(order.action.vm)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        self.gate.wait(60)
        with self._lock:
            self.at_once -= 1
        return ActionOutcome(
            action_id=order.action.id, vm=order.action.vm, host=self.name, verb=order.action.verb, result="done",
            started_at=NOW, finished_at=NOW,
        )  # fmt: skip

    def console(self, vm: str, *, max_bytes: int, after: int | None = None) -> Console:
        return Console(content=f"console of {vm}".encode()[-max_bytes:])


@pytest.fixture
def host() -> Iterator[SlowHost]:
    slow = SlowHost()
    yield slow
    slow.gate.set()


def hosts_of(host: SlowHost) -> LocalHosts:
    return LocalHosts(cast("HostAgent", host))


def orders(count: int) -> Iterator[Order]:
    for number in range(count):
        action = Action(
            id=f"1:{number}", verb="create", host="localhost", vm=f"vm-{number}", project="demo", desired=None,
            expect=Expect(uid=None, generation=0), deadline_s=60,
        )  # fmt: skip
        yield Order(run_id="r", token=1, action=action)


def test_every_order_has_one_outcome_and_at_most_forks_run_at_once(host: SlowHost) -> None:
    host.gate.set()
    outcomes = list(hosts_of(host).execute(orders(50), forks=4, deadline_s=10))
    assert sorted(outcome.vm for outcome in outcomes) == sorted(f"vm-{number}" for number in range(50))
    assert {outcome.result for outcome in outcomes} == {"done"}
    assert host.most_at_once <= 4


def test_past_the_deadline_what_runs_is_given_up_and_the_rest_is_not_sent(host: SlowHost) -> None:
    outcomes = list(hosts_of(host).execute(orders(5), forks=2, deadline_s=0.2))
    assert not host.gate.is_set(), "nobody waited for it"
    told = {outcome.vm: (outcome.result, outcome.error) for outcome in outcomes}
    late = ("failed_temporary", "still running past the deadline")
    unsent = ("skipped", "not begun before the deadline")
    assert told == {"vm-0": late, "vm-1": late, "vm-2": unsent, "vm-3": unsent, "vm-4": unsent}
    host.gate.set()
    time.sleep(0.1)
    assert sorted(host.begun) == ["vm-0", "vm-1"]


def test_with_no_time_left_nothing_is_begun(host: SlowHost) -> None:
    assert [outcome.result for outcome in hosts_of(host).execute(orders(2), forks=2, deadline_s=0)] == ["skipped"] * 2
    assert host.begun == []


def test_closing_the_iterator_sends_nothing_more_and_lets_go_on_what_runs(host: SlowHost) -> None:
    pending = hosts_of(host).execute(orders(50), forks=2, deadline_s=10)
    opener = threading.Timer(0.1, host.gate.set)
    opener.start()
    next(pending)
    assert isinstance(pending, Generator)
    pending.close()
    opener.join()
    begun = len(host.begun)
    assert begun <= 4
    time.sleep(0.1)
    wait_until(lambda: host.at_once == 0, "the end of what runs")
    assert len(host.begun) == begun


def test_orders_are_taken_only_when_they_can_be_sent(host: SlowHost) -> None:
    taken: list[str] = []

    def watched() -> Iterator[Order]:
        for order in orders(10):
            taken.append(order.action.vm)
            yield order

    opener = threading.Timer(0.1, host.gate.set)
    opener.start()
    next(iter(hosts_of(host).execute(watched(), forks=3, deadline_s=10)))
    opener.join()
    assert len(taken) == 3


def test_a_host_that_does_not_answer_in_time_is_unreachable(host: SlowHost) -> None:
    (view,) = hosts_of(host).observe({"localhost": ObserveQuery()}, deadline_s=0.1)
    assert (view.report, view.error) == (None, "no answer within 0.1 s")


def test_any_other_host_is_unreachable_and_the_reason_names_the_way_out(host: SlowHost) -> None:
    host.gate.set()
    here, there = hosts_of(host).observe({"localhost": ObserveQuery(), "hv02": ObserveQuery()}, deadline_s=1)
    assert here.report is not None
    assert there.report is None
    assert "MIKROM_BROKER_URL" in there.error
    with pytest.raises(MikromError, match="only localhost can be reached"):
        hosts_of(host).console("hv02", "vm", max_bytes=10)


def test_the_console_is_that_of_the_hypervisor(host: SlowHost) -> None:
    assert hosts_of(host).console("localhost", "web-000", max_bytes=3).content == b"000"
