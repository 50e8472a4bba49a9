"""What a worker does each time that it has connected to its broker, before it takes a message."""

from __future__ import annotations

import time
from typing import Any

from celery import bootsteps
from celery.worker.consumer.connection import Connection

from mikrom_reconcile.limits import BROKER


class Connecting(bootsteps.StartStopStep):  # type: ignore[misc]  # Celery has no types
    """Has control know at once that what it sent before may be lost: a host's messages are acknowledged early.

    And waits between attempts with a broker that answers and then refuses, of which Celery makes five a second.
    """

    requires = (Connection,)

    def __init__(self, consumer: Any, **_: Any) -> None:
        self._again_at = 0.0
        super().__init__(consumer)

    def start(self, consumer: Any) -> None:
        """Begin with the connection that was just made."""
        consumer.app.heartbeat.begin_anew()

    def stop(self, consumer: Any) -> None:
        """End an attempt, however far it came."""
        del consumer
        time.sleep(max(0.0, self._again_at - time.monotonic()))
        self._again_at = time.monotonic() + BROKER.reconnect_s
