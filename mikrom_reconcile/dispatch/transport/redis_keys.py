"""Names of everything that a fleet keeps in Redis, in one place.

Each host has a queue, unacknowledged messages and answer streams of its own, so that an ACL can give one host its
keys and no other's. Nothing here is the truth about a VM: all of it may be lost.
"""

from __future__ import annotations

FIRST, LAST = 0, 8
"""Priorities, lower first: people who look; the ticks of Beat."""

ORDERS = {False: (2, 4), True: (6, 8)}
"""Priorities of orders by whether they are scheduled: those that make room (stop and delete), and all others."""

STEPS = (FIRST, *ORDERS[False], *ORDERS[True])


class Keys:
    """The names that follow from the control queue's name ("mikrom:queue" unless inherited).

    `prefix` is what every key of this fleet begins with, so that two fleets can share one Redis.
    """

    def __init__(self, queue: str) -> None:
        self.queue = queue
        self.prefix = queue.removesuffix(":queue")
        self.source = f"{self.prefix}:source"  # what the last look at MIKROM_SPECS gave, for who looks
        self.good_specs = f"{self.prefix}:source:good"  # the last good ones that any control worker has seen
        self.vms = f"{self.prefix}:vms"  # what runs have seen of each host last, and of each project there
        self.run_times = f"{self.prefix}:run-times"  # when each project's last whole run ended, and converged
        self.next_run = f"{self.prefix}:next-run"  # when it is due, as Beat says and who had the last tick

    def host_queue(self, host: str) -> str:
        """Queue that only the worker of `host` consumes."""
        return f"{self.queue}.{host}"

    def lists(self, queue: str) -> list[str]:
        """Where Celery keeps the messages of a queue: a list for each step of priority, the first without a mark."""
        return [f"{queue}\x06\x16{step}" if step else queue for step in STEPS]

    def unacked(self, owner: str) -> str:
        """Where Celery keeps the messages that `owner` ("host:hv01", "control") has fetched but not begun."""
        return f"{self.prefix}:unacked:{owner}"

    def heartbeat(self, owner: str) -> str:
        """Start id of the process behind `owner` ("host:hv01", "control:hv01", "beat:hv01"), while it lives."""
        return f"{self.prefix}:alive:{owner}"

    def known(self, host: str) -> str:
        """Exists for a day after the worker of `host` was last seen."""
        return f"{self.prefix}:known:{host}"

    def machine(self, host: str) -> str:
        """Which machine has this name, until a person says otherwise."""
        return f"{self.prefix}:machine:{host}"

    def history(self, host: str) -> str:
        """What `host` did by itself, as `control.stores` keeps it."""
        return f"{self.prefix}:history:host:{host}"

    def given_up(self, host: str) -> str:
        """Machines that had this name and were given up, until they have come back and stopped what they run."""
        return f"{self.prefix}:given-up:{host}"

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

    def unfinished(self, run: str) -> str:
        """How far a run is that has no report yet, or why it has none."""
        return f"{self.prefix}:run:{run}:unfinished"

    def tick(self, entry: str) -> str:
        """The tick of an entry of Beat's ("reconcile") in the present interval; whichever Beat sets it sends it."""
        return f"{self.prefix}:tick:{entry}"
