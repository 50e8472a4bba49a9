"""Celery itself with the settings of a host worker, none of our code in it, and one task that does nothing.

It counts in the process and tells once, so that to know the end costs next to nothing.
"""

from __future__ import annotations

from typing import Any

from celery import Celery

from mikrom_reconcile.dispatch.app import configuration
from mikrom_reconcile.settings import load

_settings = load()
app = Celery("bench", broker=_settings.broker_url, backend=_settings.broker_url, set_as_current=False)
app.conf.update(configuration(_settings))

_ran = 0


@app.task(name="bench.no_op", bind=True)  # type: ignore[untyped-decorator]  # Celery has no types
def no_op(task: Any, *, of: int, tell: str) -> None:
    """Nothing; the last of a round leaves an entry in the list `tell`."""
    global _ran  # noqa: PLW0603 - one worker, one counter
    _ran += 1
    if _ran == of:
        _ran = 0
        task.backend.client.lpush(tell, b"")
