"""The app of the worker that does nothing: the real one, settings, events and all, with one more task.

It counts in the process and tells once, so that to know the end costs Celery's side next to nothing.
"""

from __future__ import annotations

from typing import Any

from mikrom_reconcile.celery_app import app

_ran = 0


@app.task(name="bench.no_op", bind=True)  # type: ignore[untyped-decorator]  # Celery has no types
def no_op(task: Any, *, of: int, tell: str) -> None:
    """Nothing; the last of a round leaves an entry in the list `tell`."""
    global _ran  # noqa: PLW0603 - one worker, one counter
    _ran += 1
    if _ran == of:
        _ran = 0
        task.app.redis.lpush(tell, b"")
