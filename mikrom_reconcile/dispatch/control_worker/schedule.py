"""Scheduled runs: Beat's ticks, once per interval however many Beats there are, their specs, and an hourly cleanup.

Whichever Beat first sets the key of the interval sends the tick; the key holds its id, and a control worker runs only
the tick that the key still names: what waited in a queue past its interval does nothing. There is no schedule file.
Each control worker keeps the last good specs on its disk; Redis has them, too, so that one whose source is away uses
what another has seen since. Either may be lost. No plan is made of a source that cannot be read.
"""

from __future__ import annotations

import logging
import secrets
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
from celery.beat import Scheduler
from redis import RedisError

from mikrom_reconcile.control.sources.last_good import Good, LastGood
from mikrom_reconcile.core.model.encoding import texts_digest
from mikrom_reconcile.core.model.errors import MikromError, SourceError
from mikrom_reconcile.core.model.specs import SourceState, SourceTree
from mikrom_reconcile.dispatch.app import FleetApp
from mikrom_reconcile.dispatch.transport import rpc
from mikrom_reconcile.dispatch.transport.heartbeats import known
from mikrom_reconcile.dispatch.transport.redis_keys import Keys
from mikrom_reconcile.dispatch.transport.shared_state import source_state
from mikrom_reconcile.times_and_sizes import RUNS

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


@dataclass
class SourceSync:
    """MIKROM_SPECS, called `name`, as this control worker and the others see it."""

    redis: Redis
    keys: Keys
    source: LastGood
    name: str

    def specs_now(self) -> tuple[SourceTree, str]:
        """The specs to use, and why they are the last good ones instead of those that are there now, else "".

        Raises SourceError when nothing good is known.
        """
        before = source_state(self.redis, self.keys)
        good, problem, broken = self.source.poll(before.number if before else 0)
        if problem and (other := self._shared()) is not None:
            self.source.take(other)
            good = max((other, *([good] if good else [])), key=lambda one: one.number)
        self._share(before, good, problem, broken)
        if good is None:
            raise SourceError(f"{problem}; no good revision of it is known, so nothing is planned")
        if problem:
            _log.warning("the source is broken, revision %s is used: %s", good.tree.revision, problem)
        return good.tree, problem

    def _shared(self) -> Good | None:
        found: Any = self.redis.get(self.keys.good_specs)
        try:
            return rpc.unpack(found, Good) if found else None
        except MikromError:
            return None

    def _share(self, before: SourceState | None, good: Good | None, problem: str, broken: str) -> None:
        """Tell the others. A Redis that is away ends the run soon enough, and says so itself."""
        now, highest = datetime.now(UTC), before.number if before else 0
        state = SourceState(
            name=self.name,
            revision=good.tree.revision if good else "",
            number=max(highest, good.number if good else 0),
            digest=texts_digest(good.tree) if good else "",
            since=good.since if good else None,
            good_at=now if not problem else before.good_at if before else None,
            looked_at=now,
            problem=problem,
            broken=broken,
        )
        try:
            if good and (good.number > highest or not self.redis.exists(self.keys.good_specs)):
                self.redis.set(self.keys.good_specs, rpc.pack(good))
            self.redis.set(self.keys.source, msgspec.json.encode(state))
        except (RedisError, MikromError) as error:
            _log.warning("the state of the source could not be told: %s", error)
