"""What a host worker tells calls arrives, in order, and not one by one."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from redis import RedisError

from mikrom_reconcile.dispatch.transport import rpc
from mikrom_reconcile.dispatch.transport.broker import client_of
from mikrom_reconcile.dispatch.transport.rpc import Call, ReplySender
from mikrom_reconcile.times_and_sizes import BROKER
from tests.fleet import KEYS, Fleet, wait_until

pytestmark = pytest.mark.redis

OWNER = "host:hv01"


@pytest.fixture
def told(fleet: Fleet) -> Iterator[ReplySender]:
    told = ReplySender(fleet.redis, KEYS, OWNER)
    told.start()
    yield told
    told.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "answers"]


@pytest.fixture
def fleet(own_environment: Path) -> Iterator[Fleet]:
    made = Fleet(own_environment)
    try:
        yield made
    finally:
        made.close()


def calls_of(fleet: Fleet, command: str) -> int:
    commands: Any = fleet.redis.info("commandstats")
    return int(commands.get(f"cmdstat_{command}", {}).get("calls", 0))


def bodies(call: Call, count: int) -> list[bytes]:
    found: list[bytes] = []
    until = time.monotonic() + 10
    while len(found) < count and time.monotonic() < until:
        found += [answer.body for answer in call.read(0.1)]
    return found


def test_who_is_ignored_is_read_no_more_and_the_others_are(fleet: Fleet, told: ReplySender) -> None:
    with Call(fleet.redis, KEYS, "one") as call:
        call.listen("host:hv02")
        call.listen(OWNER)
        call.ignore(OWNER)
        told.tell("one", "outcome", b"late")
        told.flush()
        assert call.read(0.05) == []
    assert not fleet.redis.keys("*")


def test_a_hundred_answers_arrive_in_order_in_a_few_messages(fleet: Fleet, told: ReplySender) -> None:
    expected = [str(number).encode() for number in range(100)]
    with Call(fleet.redis, KEYS, "one") as call:
        call.listen(OWNER)
        for body in expected:
            told.tell("one", "outcome", body)
        assert bodies(call, 100) == expected
    assert calls_of(fleet, "expire") < 20  # one for each message
    assert fleet.redis.ttl(KEYS.answers("one", OWNER)) < 0  # gone with the call


def test_what_is_told_while_the_broker_is_away_is_told_when_it_is_back(
    fleet: Fleet, told: ReplySender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rpc, "BROKER", replace(BROKER, reply_retry_s=0.05))
    fleet.stop_redis()
    told.tell("one", "outcome", b"first")
    told.tell("one", "outcome", b"second")
    with pytest.raises(RedisError):
        told.flush()
    fleet.run("redis-again", ["redis-server", str(fleet.folder / "redis.conf")])
    with wait_for_call(fleet) as call:
        call.listen(OWNER)
        assert bodies(call, 2) == [b"first", b"second"]


def wait_for_call(fleet: Fleet) -> Call:
    def answers() -> bool:
        try:
            return bool(fleet.redis.ping())
        except RedisError:
            return False

    wait_until(answers, "Redis to be back")
    return Call(fleet.redis, KEYS, "one")


def test_an_answer_that_the_server_refuses_keeps_no_other(
    fleet: Fleet, told: ReplySender, caplog: pytest.LogCaptureFixture
) -> None:
    fleet.redis.set(KEYS.answers("odd", OWNER), b"not a stream")
    with Call(fleet.redis, KEYS, "one") as call:
        call.listen(OWNER)
        told.tell("odd", "outcome", b"lost")
        told.tell("one", "outcome", b"kept")
        assert bodies(call, 1) == [b"kept"]
    wait_until(lambda: "WRONGTYPE" in caplog.text, "the line in the log")


@pytest.mark.parametrize(
    ("begin", "end"),
    [("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE"), ("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0")],
)
def test_what_a_broker_refuses_for_a_while_is_told_again(
    fleet: Fleet, told: ReplySender, monkeypatch: pytest.MonkeyPatch, begin: str, end: str
) -> None:
    monkeypatch.setattr(rpc, "BROKER", replace(BROKER, reply_retry_s=0.05))
    with Call(fleet.redis, KEYS, "one") as call:
        call.listen(OWNER)
        redis: Any = fleet.redis
        redis.execute_command(*begin.split())
        told.tell("one", "outcome", b"first")
        told.tell("one", "outcome", b"second")
        with pytest.raises(RedisError):
            told.flush()
        redis.execute_command(*end.split())
        assert bodies(call, 2) == [b"first", b"second"]


def test_that_a_call_is_awaited_is_asked_once_a_second(fleet: Fleet, told: ReplySender) -> None:
    with Call(fleet.redis, KEYS, "one"):
        began_s = time.monotonic()
        assert all(told.is_awaited("one") for _ in range(100))
        assert calls_of(fleet, "exists") <= 1 + (time.monotonic() - began_s)
    wait_until(lambda: not told.is_awaited("one"), "the end of the call", within_s=2 * BROKER.reply_awaited_s)
    assert not told.is_awaited("another")


def test_orders_that_begin_at_once_ask_by_one_connection(fleet: Fleet, told: ReplySender) -> None:
    """Or each host holds as many as it has slots, and Redis turns the next host away."""
    with Call(fleet.redis, KEYS, "one"), ThreadPoolExecutor(32) as orders:
        clients: Any = fleet.redis.info("clients")
        began_s = time.monotonic()
        assert all(orders.map(told.is_awaited, ["one"] * 320))
        assert calls_of(fleet, "exists") <= 1 + (time.monotonic() - began_s)
        found: Any = fleet.redis.info("clients")
        assert found["connected_clients"] <= clients["connected_clients"] + 1


def test_a_silent_broker_keeps_none_of_them_longer_than_two_answers(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rpc, "BROKER", replace(BROKER, read_s=0.2))
    told = ReplySender(client_of(fleet.url, read_s=0.2), KEYS, OWNER)
    with fleet.silent_redis(), ThreadPoolExecutor(32) as orders:
        began_s = time.monotonic()
        errors = [order.exception() for order in [orders.submit(told.is_awaited, "one") for _ in range(32)]]
        assert all(isinstance(error, RedisError) for error in errors)
        assert time.monotonic() - began_s < 32 * 0.2 / 2, "they waited one after the other"
