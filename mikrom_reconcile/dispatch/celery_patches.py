"""What this project changes in Celery, kombu and gevent by subclasses and bootsteps (0.7 ms of CPU a task instead of
1.8), and how work ends: under gevent, an exception thrown into its greenlet is what lets an action still answer.
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from celery import Celery, bootsteps
from celery.worker.consumer.connection import Connection
from celery.worker.consumer.events import Events
from celery.worker.request import Request
from kombu.transport import TRANSPORT_ALIASES, redis as kombu_redis
from kombu.utils import functional

from mikrom_reconcile.core.model.errors import MikromError, PastDeadlineError
from mikrom_reconcile.system import files
from mikrom_reconcile.times_and_sizes import BROKER, ORDERS


class QoS(kombu_redis.QoS):
    """Kombu's; only that it also crosses out, and keeps in mind for ever, messages that it never wrote down."""

    def ack(self, delivery_tag: str) -> None:
        """Cross out a message that was written down."""
        with suppress(KeyError):
            self.get(delivery_tag)  # type: ignore[no-untyped-call]  # kombu has no types
            super().ack(delivery_tag)  # type: ignore[no-untyped-call]


class Channel(kombu_redis.Channel):
    """Kombu's; only that it makes a new client for each command, though one serves any number of greenlets."""

    QoS = QoS
    _client_of_pool: Any = None

    def _create_client(self, asynchronous: bool = False) -> Any:  # noqa: FBT001, FBT002 - kombu's signature
        if asynchronous:
            return super()._create_client(asynchronous=True)  # type: ignore[no-untyped-call]
        if self._client_of_pool is None or self._client_of_pool.connection_pool is not self.pool:
            self._client_of_pool = super()._create_client()  # type: ignore[no-untyped-call]
        return self._client_of_pool


class Transport(kombu_redis.Transport):
    """Kombu's way to Redis with these channels."""

    Channel = Channel


class EventsInBatches(bootsteps.StartStopStep):  # type: ignore[misc]  # Celery has no types
    """Has a gevent worker collect task events, which Celery does elsewhere and calls an omission there."""

    requires = (Events,)

    def start(self, consumer: Any) -> None:
        """Begin with the dispatcher that was just made."""
        if consumer.hub is not None:  # with an event loop Celery does this itself
            return
        dispatcher, is_due = consumer.event_dispatcher, False

        def flush() -> None:
            nonlocal is_due
            is_due = False
            dispatcher.flush()

        def flush_soon() -> None:
            nonlocal is_due
            if not is_due:
                is_due = True
                consumer.timer.call_after(BROKER.event_interval_s, flush)

        dispatcher.buffer_group = frozenset({"task"})
        dispatcher.buffer_limit = BROKER.events_per_message
        dispatcher.on_send_buffered = flush_soon

    def stop(self, consumer: Any) -> None:
        """Send what was collected."""
        if consumer.event_dispatcher is not None:
            consumer.event_dispatcher.flush()


class RedactedRequest(Request):  # type: ignore[misc]  # as above
    """A task under way as whoever inspects a worker sees it: without its arguments, as in events and logs."""

    def info(self, safe: bool = False) -> dict[str, Any]:  # noqa: FBT001, FBT002 - Celery's signature
        """What is told about it: never more than `argsrepr` and `kwargsrepr`."""
        del safe
        told: dict[str, Any] = super().info(safe=True)
        return told


def install(app: Celery, *, written_down: bool) -> None:
    """Have `app` use them. What is not `written_down` is lost with the worker that has fetched it, and planned anew."""
    TRANSPORT_ALIASES.update(dict.fromkeys(("redis", "rediss"), f"{__name__}:Transport"))
    app.steps["consumer"].add(EventsInBatches)
    for queue in app.conf.task_queues:
        queue.no_ack = not written_down


def on_connect(app: Celery, connected: Callable[[], None]) -> None:
    """Have a worker call `connected` each time that it has connected to its broker, before it takes a message."""

    class Connected(bootsteps.StartStopStep):  # type: ignore[misc]  # as above
        requires = (Connection,)

        def __init__(self, consumer: Any, **_: Any) -> None:
            self._again_at = 0.0
            super().__init__(consumer)

        def start(self, _: Any) -> None:
            connected()

        def stop(self, _: Any) -> None:
            # with a broker that answers and then refuses, Celery tries five times a second
            time.sleep(max(0.0, self._again_at - time.monotonic()))
            self._again_at = time.monotonic() + BROKER.reconnect_s

    app.steps["consumer"].add(Connected)


def install_gevent() -> None:
    """Where this process runs on greenlets: replace kombu's own old sleep, and sync files in native threads."""
    if (gevent := gevent_of_process()) is None:
        return
    from gevent.threadpool import ThreadPool  # noqa: PLC0415 - only where it is loaded

    fsync, hub, pool = os.fsync, gevent.get_hub(), ThreadPool(BROKER.syncs_at_once)  # gevent's own pool looks up names

    def cooperative(fd: Any) -> None:
        if gevent.get_hub() is hub:
            pool.apply(fsync, (fd,))
        else:
            fsync(fd)

    functional.sleep = time.sleep
    files.sync = cooperative


_log = logging.getLogger(__name__)
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
    """Begin nothing more; under gevent, end what is under way after a short grace, and in any case before supervisors
    kill. Called by a signal handler.
    """
    _stopping.set()
    if (gevent := gevent_of_process()) is not None:
        late = PastDeadlineError("the host's worker is being stopped")
        gevent.spawn_later(ORDERS.worker_stop_grace_s, lambda: [gevent.kill(each, late) for each in tuple(_under_way)])
        gevent.spawn_later(ORDERS.worker_end_s, _end_now)


def _end_now() -> None:
    """The end of a worker in which something waits for ever. What it did stands in records, as after any `kill -9`."""
    from gevent.util import format_run_info  # noqa: PLC0415 - only where it is loaded

    _log.critical("this worker was told to end and hangs; it ends now:\n%s", "\n".join(format_run_info()))
    logging.shutdown()
    os._exit(1)


def is_stopping() -> bool:
    """Whether this process has been told to end."""
    return _stopping.is_set()


def refuse_when_stopping() -> None:
    """Raises MikromError once this process has been told to end."""
    if _stopping.is_set():
        raise MikromError("this worker is being stopped; what is under way goes on, the next run looks anew")
