"""What every store promises to a run, whatever it is made of."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mikrom_reconcile.control.ports import RunStore
from mikrom_reconcile.control.stores.redis import KEPT_RUNS, RedisStore
from mikrom_reconcile.control.stores.sqlite import SqliteStore
from mikrom_reconcile.core.errors import BusyError, SetupError
from mikrom_reconcile.core.model.observed import Placements
from mikrom_reconcile.core.model.plan import Plan
from mikrom_reconcile.core.model.run import RunReport
from tests.fleet import Fleet

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.redis)])
def store(request: pytest.FixtureRequest, own_environment: Path) -> Iterator[RunStore]:
    if request.param == "sqlite":
        yield SqliteStore(own_environment / "store.sqlite", own_environment / "locks")
        return
    fleet = Fleet(own_environment)
    try:
        yield RedisStore(fleet.redis, prefix="mikrom")
    finally:
        fleet.close()


def report(run_id: str) -> RunReport:
    plan = Plan(
        id="1:p", project="demo", revision="r", taken_at=NOW, changes=(), unchanged={}, actions=(), refusals=(),
        unreachable={}, warnings=(),
    )  # fmt: skip
    return RunReport(run_id=run_id, plan=plan, outcomes=(), remaining=None, late=False, started_at=NOW, finished_at=NOW)


def test_a_lease_is_held_by_one_and_whoever_wants_it_is_told_by_whom(store: RunStore) -> None:
    lease = store.lease("demo", holder="apply by ana@build7", ttl_s=5, at_least=1)
    assert lease.held()
    with pytest.raises(BusyError, match="demo is being changed by apply by ana@build7"):
        store.lease("demo", holder="beat", ttl_s=5, at_least=1)
    lease.release()
    assert not lease.held()
    store.lease("demo", holder="beat", ttl_s=5, at_least=1).release()


def test_leases_of_two_projects_do_not_know_each_other(store: RunStore) -> None:
    one = store.lease("one", holder="a", ttl_s=5, at_least=1)
    other = store.lease("other", holder="b", ttl_s=5, at_least=1)
    assert one.held()
    assert other.held()
    one.release()
    other.release()


def test_each_lease_has_a_higher_token_and_at_least_the_one_asked_for(store: RunStore) -> None:
    tokens = []
    for at_least in (1, 1, 40, 1, 41):
        lease = store.lease("demo", holder="a", ttl_s=5, at_least=at_least)
        tokens.append(lease.token)
        lease.release()
    assert tokens == [1, 2, 40, 41, 42]


def test_a_lease_that_was_released_twice_is_not_taken_from_the_next_holder(store: RunStore) -> None:
    first = store.lease("demo", holder="a", ttl_s=5, at_least=1)
    first.release()
    second = store.lease("demo", holder="b", ttl_s=5, at_least=1)
    first.release()
    assert second.held()
    with pytest.raises(BusyError, match="by b"):
        store.lease("demo", holder="c", ttl_s=5, at_least=1)
    second.release()


def test_a_lease_outlives_its_ttl_while_its_holder_lives(store: RunStore) -> None:
    lease = store.lease("demo", holder="a", ttl_s=0.3, at_least=1)
    time.sleep(0.7)
    assert lease.held()
    with pytest.raises(BusyError):
        store.lease("demo", holder="b", ttl_s=1, at_least=1)
    lease.release()


def test_of_many_who_want_a_lease_at_once_one_has_it_and_no_token_is_given_twice(store: RunStore) -> None:
    tokens: list[int] = []
    holding = threading.Lock()

    def work() -> None:
        for _ in range(10):
            try:
                lease = store.lease("demo", holder="a", ttl_s=5, at_least=1)
            except BusyError:
                continue
            assert holding.acquire(blocking=False), "two have it"
            tokens.append(lease.token)
            holding.release()
            lease.release()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(tokens) > 0
    assert tokens == sorted(set(tokens))


def test_placements_are_replaced_as_a_whole_and_empty_at_first(store: RunStore) -> None:
    assert store.placements("demo") == Placements()
    store.remember("demo", Placements(vms={"a": "hv01", "b": "hv02"}, covers=("hv01", "hv02")))
    store.remember("demo", Placements(vms={"c": "hv03"}, covers=("hv03",)))
    assert store.placements("demo") == Placements(vms={"c": "hv03"}, covers=("hv03",))
    assert store.placements("other") == Placements()


def test_the_latest_reports_come_first_and_old_ones_are_dropped(store: RunStore) -> None:
    for number in range(KEPT_RUNS + 2):
        store.save(report(f"run-{number}"))
    assert [kept.run_id for kept in store.runs(2)] == [f"run-{KEPT_RUNS + 1}", f"run-{KEPT_RUNS}"]
    assert len(store.runs(1000)) == KEPT_RUNS
    assert store.runs(0) == ()
    assert store.runs(1)[0] == report(f"run-{KEPT_RUNS + 1}")


@pytest.mark.redis
def test_a_lease_in_a_redis_that_was_emptied_is_lost_and_its_token_grows_from_what_hosts_remember(
    own_environment: Path,
) -> None:
    fleet = Fleet(own_environment)
    try:
        store = RedisStore(fleet.redis, prefix="mikrom")
        lost = store.lease("demo", holder="a", ttl_s=0.3, at_least=7)
        fleet.redis.flushall()
        taken = store.lease("demo", holder="b", ttl_s=5, at_least=lost.token + 1)
        time.sleep(0.4)
        assert not lost.held()
        assert taken.held()
        assert taken.token == 8
        lost.release()
        assert taken.held()
        taken.release()
    finally:
        fleet.close()
    with pytest.raises(SetupError, match="the broker was lost"):
        store.placements("demo")


@pytest.mark.redis
def test_a_lease_ends_for_its_holder_too_when_redis_is_away_for_longer_than_its_ttl(own_environment: Path) -> None:
    fleet = Fleet(own_environment)
    try:
        lease = RedisStore(fleet.redis, prefix="mikrom").lease("demo", holder="a", ttl_s=0.3, at_least=1)
        assert lease.held()
    finally:
        fleet.close()
    time.sleep(0.4)
    assert not lease.held()
    lease.release()


@pytest.mark.redis
@pytest.mark.parametrize(
    "how", [OSError(9, "Bad file descriptor"), ValueError("I/O operation on closed file"), KeyError(7)]
)
def test_a_lease_outlives_every_way_in_which_a_socket_ends_and_its_thread_does_not_outlive_it(
    own_environment: Path, monkeypatch: pytest.MonkeyPatch, how: Exception
) -> None:
    fleet = Fleet(own_environment)
    try:
        lease = RedisStore(fleet.redis, prefix="mikrom").lease("demo", holder="a", ttl_s=0.3, at_least=1)
        failed = threading.Event()

        def fails(*_: object) -> None:
            failed.set()
            raise how

        with monkeypatch.context() as patched:
            patched.setattr(fleet.redis, "eval", fails)
            assert failed.wait(5)
        lease.release()
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("lease ")]
    finally:
        fleet.close()
