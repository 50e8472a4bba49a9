"""Names of everything that a fleet keeps in Redis, in one place.

Each host has a queue, unacknowledged messages and answer streams of its own, so that an ACL can give one host its
keys and no other's. Nothing here is the truth about a VM: all of it may be lost.
"""

from __future__ import annotations

from dataclasses import dataclass

HEARTBEAT_S = 5.0
"""Whoever lives or waits renews its key this often."""

TTL_S = 15.0
"""…and is dead to the others when its key has not been renewed for this long; the server's clock judges."""

LEFTOVER_S = 3600
"""What nobody fetched is dropped after this long: as long as Celery keeps results."""


@dataclass(frozen=True, slots=True)
class Keys:
    """The names that follow from the control queue's name ("mikrom:queue" unless inherited)."""

    queue: str

    @property
    def prefix(self) -> str:
        """What every key of this fleet begins with, so that two fleets can share one Redis."""
        return self.queue.removesuffix(":queue")

    def host_queue(self, host: str) -> str:
        """Queue that only the worker of `host` consumes."""
        return f"{self.queue}.{host}"

    def unacked(self, owner: str) -> str:
        """Where Celery keeps the messages that `owner` ("host:hv01", "control") has fetched but not begun."""
        return f"{self.prefix}:unacked:{owner}"

    def heartbeat(self, owner: str) -> str:
        """Start id of the process behind `owner` ("host:hv01", "control:hv01", "beat:hv01"), while it lives."""
        return f"{self.prefix}:alive:{owner}"

    def known(self, host: str) -> str:
        """Exists for a day after the worker of `host` was last seen."""
        return f"{self.prefix}:known:{host}"

    def call(self, call: str) -> str:
        """Exists while somebody waits for this call: without it no order is carried out."""
        return f"{self.prefix}:call:{call}"

    def answers(self, call: str, owner: str) -> str:
        """Stream of what `owner` ("host:hv01", "control") answers to this call."""
        return f"{self.prefix}:answers:{call}:{owner}"

    def request(self, run: str) -> str:
        """The request of a run, its source tree included."""
        return f"{self.prefix}:run:{run}:request"

    def plan(self, run: str) -> str:
        """The plan that was shown for a run; an apply names it and does not bring its own."""
        return f"{self.prefix}:run:{run}:plan"

    def tick(self, entry: str) -> str:
        """The tick of an entry of Beat's ("reconcile") in the present interval; whichever Beat sets it sends it."""
        return f"{self.prefix}:tick:{entry}"
