"""What a host worker does not pay for its tasks, seen from Redis."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mikrom_reconcile.dispatch.app import FleetApp, make_app
from mikrom_reconcile.dispatch.hosts.remote import CeleryHosts
from tests.fakes import order
from tests.fleet import Fleet, wait_until

pytestmark = pytest.mark.redis

ORDERS = 60


@pytest.fixture
def fleet(own_environment: Path) -> Iterator[Fleet]:
    fleet = Fleet(own_environment)
    try:
        yield fleet
    finally:
        fleet.close()


def test_sixty_orders_cost_few_messages_of_events_and_nothing_is_written_down_for_them(fleet: Fleet) -> None:
    fleet.worker("host", MIKROM_TEST_BOOT_S="0")
    app = make_app(fleet.settings())
    hosts = CeleryHosts(app, fleet.redis)
    told: list[str] = []
    with app.connection_for_read() as connection, ThreadPoolExecutor() as pool:
        receiver = app.events.Receiver(connection, handlers={"*": lambda event: told.append(event["type"])})
        listening = pool.submit(receiver.capture, limit=None, timeout=None, wakeup=False)
        wait_until(lambda: is_heard(app, told), "its first event")  # the worker itself listens to Redis, too
        fleet.redis.config_resetstat()
        orders = [order("create", f"vm-{number}", host="localhost") for number in range(ORDERS)]
        outcomes = list(hosts.execute(orders, forks=32, deadline_s=30))
        sent = calls(fleet)
        wait_until(lambda: told.count("task-succeeded") == ORDERS, "all to have been told")
        receiver.should_stop = True
        listening.result()
    assert [outcome.result for outcome in outcomes] == ["done"] * ORDERS
    assert told.count("task-received") == told.count("task-started") == ORDERS
    # three events each without it; how many go together depends on how long the orders take
    assert sent["publish"] < ORDERS
    assert all(sent.get(name, 0) < ORDERS / 4 for name in ("zadd", "zrem", "hset", "hdel")), sent


def is_heard(app: FleetApp, told: list[str]) -> bool:
    with app.events.default_dispatcher() as dispatcher:
        dispatcher.send("test-hello")
    return "test-hello" in told


def calls(fleet: Fleet) -> dict[str, int]:
    found: Any = fleet.redis.info("commandstats")
    return {name.removeprefix("cmdstat_"): int(stats["calls"]) for name, stats in found.items()}
