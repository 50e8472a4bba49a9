"""What Beat does: ticks, once per interval however many Beats there are, and an hourly cleanup.

Whichever Beat first sets the key of the interval sends the tick; the key holds its id, and a control worker runs only
the tick that the key still names: what waited in a queue past its interval does nothing. There is no schedule file.
"""

from __future__ import annotations

import logging
import secrets
import time
from typing import TYPE_CHECKING, Any

from celery.beat import Scheduler

from mikrom_reconcile.dispatch.app import FleetApp
from mikrom_reconcile.dispatch.transport.heartbeats import known
from mikrom_reconcile.dispatch.transport.redis_keys import Keys
from mikrom_reconcile.limits import RUNS

if TYPE_CHECKING:
    from redis import Redis

_log = logging.getLogger(__name__)


class OncePerInterval(Scheduler):  # type: ignore[misc]  # Celery has no types
    """Sends an entry only when no other Beat has sent it in this interval."""

    app: FleetApp

    def apply_async(self, entry: Any, producer: Any = None, advance: bool = True, **options: Any) -> Any:  # noqa: FBT001, FBT002 - Celery's signature
        """Send the entry's task with the id of this tick, or nothing."""
        tick = secrets.token_hex(8)
        # seconds and cron lines alike: until the entry is due again
        interval_s = entry.schedule.remaining_estimate(entry.schedule.now()).total_seconds()
        lives_ms = int(1000 * max(interval_s - RUNS.beat_margin_s, interval_s / 2))
        if not self.app.redis.set(self.app.keys.tick(entry.name), tick, nx=True, px=lives_ms):
            _log.debug("%s has had its tick in this interval", entry.name)
            return None
        if entry.name == "reconcile":  # from then on it is who has the ticks that says when it is due again
            self.app.redis.set(self.app.keys.next_run, time.time() + interval_s, nx=True)
        entry.kwargs = {"tick": tick}
        return super().apply_async(entry, producer=producer, advance=advance, **options)


def clean_up(redis: Redis, keys: Keys) -> list[str]:
    """Remove the queues, and the messages that were fetched and not begun, of hosts not seen for a day: these hosts.

    All else expires by itself, or keeps its latest only; Celery's lists have no end of their own.
    """
    before, found = keys.host_queue(""), redis.scan_iter(match=f"{keys.host_queue('')}*", count=1000)
    waiting = {key.decode().removeprefix(before).partition("\x06")[0] for key in found}
    before, found = keys.unacked("host:"), redis.scan_iter(match=f"{keys.unacked('host:')}*", count=1000)
    fetched = {key.decode().removeprefix(before).partition(":")[0] for key in found}
    gone = sorted((waiting | fetched) - {*known(redis, keys)})
    for host in gone:
        queue, unacked = keys.host_queue(host), keys.unacked(f"host:{host}")
        bindings = [f"_kombu.{kind}.{queue}" for kind in ("binding", "binding_permanent")]
        redis.delete(*keys.lists(queue), *bindings, unacked, f"{unacked}:index", f"{unacked}:mutex")
        _log.info("removed the queue of a host that was not seen for a day", extra={"host": host})
    return gone
