"""Ending work from outside: the deadline of an action, and the end of the worker itself.

Under gevent only an exception of our own, thrown into the greenlet, ends an action in a way that it can answer:
Celery's soft limit is ignored there and its hard limit loses the task. A thread cannot be ended by anybody: there
the driver's own limits hold.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mikrom_reconcile.core.model.errors import MikromError, PastDeadlineError
from mikrom_reconcile.times_and_sizes import ORDERS

_stopping = threading.Event()
_under_way: set[Any] = set()


def gevent_of_process() -> Any:
    """The module gevent where this process runs on greenlets, else None."""
    monkey = sys.modules.get("gevent.monkey")
    return sys.modules["gevent"] if monkey is not None and monkey.is_module_patched("threading") else None


@contextmanager
def limited(deadline_s: float) -> Iterator[None]:
    """Raises PastDeadlineError inside the block when `deadline_s` has passed, or when the worker ends."""
    gevent = gevent_of_process()
    if gevent is None:
        yield
        return
    here = gevent.getcurrent()
    _under_way.add(here)
    try:
        with gevent.Timeout(deadline_s, PastDeadlineError(f"not done after {deadline_s:g} s")):
            yield
    finally:
        _under_way.discard(here)


def stop() -> None:
    """Begin nothing more; under gevent, end what is under way after a short grace. Called by a signal handler."""
    _stopping.set()
    if (gevent := gevent_of_process()) is not None:
        gevent.spawn_later(ORDERS.worker_stop_grace_s, _end_all, gevent)


def is_stopping() -> bool:
    """Whether this process has been told to end."""
    return _stopping.is_set()


def refuse_when_stopping() -> None:
    """Raises MikromError once this process has been told to end."""
    if _stopping.is_set():
        raise MikromError("this worker is being stopped; what is under way goes on, the next run looks anew")


def _end_all(gevent: Any) -> None:
    for greenlet in tuple(_under_way):
        gevent.kill(greenlet, PastDeadlineError("the host's worker is being stopped"))
