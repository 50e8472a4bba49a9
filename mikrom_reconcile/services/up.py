"""`mikrom up`: every service on this machine with a private Redis, under one supervisor.

The microVMs are nobody's children: they stay when the services end. It runs in the main thread (signals, and a death
signal that follows the thread) and must not import Celery.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import msgspec

from mikrom_reconcile.core.model.errors import BusyError, SetupError
from mikrom_reconcile.services.commands import Connection, Service, connection_file, running_up
from mikrom_reconcile.services.private_services import (
    apply_child,
    logs_of,
    private_settings,
    redis_child,
    service_children,
)
from mikrom_reconcile.services.supervise import Child, end_all
from mikrom_reconcile.settings import Settings
from mikrom_reconcile.system import locks

STOP_S = 7.0
"""A gevent worker takes 4.5 s to end even when idle; everything has to be over within 10 s."""

_REDIS_S = 5.0
_LOOK_S = 0.1
_NEEDED: tuple[Service, ...] = ("host", "control")  # without these an order is not carried out
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Tell = Callable[[str], None]


def up(settings: Settings, *, run: bool, tell: Tell) -> int:
    """Run the services until SIGINT, SIGTERM or SIGHUP; 0 then. With `run`, apply the specs once when all is ready.

    Raises BusyError when another `up` runs here, UsageError and SetupError when this one cannot.
    """
    chosen = private_settings(settings)
    with _held(settings) as announce, _end_asked() as ended:
        redis = redis_child(chosen)
        children = service_children(chosen)
        try:
            _await(redis, within_s=_REDIS_S)
            tell(f"logs are in {logs_of(chosen)}")
            tell(f"Flower: http://127.0.0.1:{chosen.flower_port}")
            if not settings.flower_basic_auth:
                tell(f"Flower's user and password, until this ends: {chosen.flower_basic_auth}")
            workers = [child for child in children if child.name in _NEEDED]
            _keep([redis, *children], tell, until=lambda: ended.is_set() or all(child.ready for child in workers))
            announce(Connection(pid=os.getpid(), broker_url=chosen.broker_url))
            tell("ready: other commands on this machine find these services; Ctrl-C ends them")
            if run:
                children.append(apply_child(chosen))
            _keep([redis, *children], tell, until=ended.is_set)
        finally:
            tell("ending the services; microVMs stay as they are")
            end_all(children, within_s=STOP_S)
            end_all([redis], within_s=1.0)
    return 0


def _keep(children: Sequence[Child], tell: Tell, *, until: Callable[[], bool]) -> None:
    """Keep `children` running, and tell what becomes of them."""
    while not until():
        for child in children:
            if (news := child.look()) is not None:
                tell(news)
        time.sleep(_LOOK_S)


def _await(redis: Child, *, within_s: float) -> None:
    """Start Redis and wait until it answers. Raises SetupError with what it said instead."""
    until = time.monotonic() + within_s
    while True:
        news = redis.look()
        if redis.ready:
            return
        if news is not None or time.monotonic() > until:
            raise SetupError(f"the private Redis does not run: {news or 'no answer'}")
        time.sleep(_LOOK_S / 2)


@contextmanager
def _held(settings: Settings) -> Iterator[Callable[[Connection], None]]:
    """The lock that says that an `up` runs here, and a way to write beside it what others need to know."""
    path = connection_file(settings)
    fd = locks.open_taken(path)
    if fd is None:
        other = running_up(settings)
        pid = f", pid {other.pid}" if other else ""
        raise BusyError(f"another `mikrom up` runs here{pid} ({path}); end it first, or set another MIKROM_RUN_DIR")

    def announce(connection: Connection) -> None:
        encoded = msgspec.json.encode(connection)
        os.pwrite(fd, encoded, 0)
        os.ftruncate(fd, len(encoded))

    try:
        announce(Connection(pid=os.getpid()))
        yield announce
    finally:
        os.ftruncate(fd, 0)
        locks.give_back(fd)


@contextmanager
def _end_asked() -> Iterator[threading.Event]:
    """An event that is set by SIGINT, SIGTERM and SIGHUP."""
    asked = threading.Event()
    before = {number: signal.signal(number, lambda *_: asked.set()) for number in _SIGNALS}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
