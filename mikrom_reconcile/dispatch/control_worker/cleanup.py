"""Beat's cleanup: what is left in Redis of hosts that are gone, and that nothing else removes.

Requests, plans, answers, calls and results expire by themselves, and a store keeps its latest runs only. But Celery's
lists have no end of their own. It must never touch what a host that was seen within a day may still want.
"""

from __future__ import annotations

import logging
from typing import Any

from mikrom_reconcile.dispatch.transport.heartbeats import known

_log = logging.getLogger(__name__)


def cleanup_task(task: Any, *, tick: str | None = None) -> dict[str, Any]:
    """Remove the queues, and the messages that were fetched and not begun, of hosts not seen for a day."""
    del tick  # doing it twice or late does no harm
    redis, keys = task.app.redis, task.app.keys
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
    return {"hosts": gone}
