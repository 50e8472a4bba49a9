"""Celery Beat's scheduler, so that several Beats tick once per interval. It keeps no schedule file.

Whichever Beat first sets the interval's key sends the tick; the key holds the tick's id, and a control worker runs
only the tick that the key still names: what waited in a queue past its interval does nothing. It must only tick.
"""

from __future__ import annotations

import logging
import secrets
import time
from typing import Any

from celery.beat import Scheduler

from mikrom_reconcile.dispatch.app import FleetApp
from mikrom_reconcile.limits import RUNS

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
