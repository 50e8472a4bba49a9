"""Phases: what a host makes of the facts, and which phase satisfies which state."""

from __future__ import annotations

from mikrom_reconcile.core.model.desired import State
from mikrom_reconcile.core.model.observed import End, Phase, VMMFacts
from mikrom_reconcile.times_and_sizes import VMMS

NOT_RESTARTED: dict[str, frozenset[Phase]] = {
    "always": frozenset(),
    "on-failure": frozenset({"exited"}),
    "never": frozenset({"exited", "crashed", "killed", "oom", "rebooted"}),
}
"""Phases in which each restart policy leaves a VM that should run."""

ALIVE: dict[str, Phase] = {"unresponsive": "unresponsive", "socket_lost": "socket_lost"}
"""VMM statuses that are phases of their own, whatever was ordered (except a stop or delete)."""

ENDED: dict[End, Phase] = {
    "clean": "exited",
    "crashed": "crashed",
    "killed": "killed",
    "oom": "oom",
    "rebooted": "rebooted",
    "unknown": "defined",  # never started, or its creator died before it was
}
"""What the end of a VMM means when nobody had ordered it to end."""

SATISFIES: dict[State, frozenset[Phase]] = {
    "running": frozenset({"running"}),
    "paused": frozenset({"paused"}),
    "stopped": frozenset({"stopped", "defined"}),
    "absent": frozenset(),
}
"""Phases in which a VM is already as its spec's state wants it."""

WANTS_VMM: frozenset[State] = frozenset({"running", "paused"})
"""States that need a VMM."""

HEALTHY: frozenset[Phase] = frozenset({"running", "paused"})
"""Phases of a VM that is up: its VMM lives, can be reached and was not ordered to stop."""

DEGRADED: frozenset[Phase] = frozenset({"booting", "unhealthy"})
"""Phases of a VM whose VMM is as it should be, and whose guest does not do yet, or any more, what its checks want."""

HAS_VMM: frozenset[Phase] = DEGRADED | {"starting", "running", "paused", "unresponsive", "socket_lost", "stopping"}
"""Phases in which a VMM process lives."""


def phase_of(facts: VMMFacts, ordered: State, *, failed: bool, parked: bool) -> Phase:
    """The phase of a VM from what its driver proved and what was last ordered.

    `failed` says that the last attempt to bring it up failed and left nothing running, `parked` that the host has
    given up bringing it back.
    """
    if ordered == "absent":
        return "deleting"
    if facts.status == "none":
        if ordered == "stopped":
            return "stopped"
        if parked:
            return "parked"
        return "failed" if failed else ENDED[facts.end]
    if ordered == "stopped":
        return "stopping"
    if facts.status == "running":
        return "running"
    if facts.status == "paused":
        return "paused"
    if facts.status == "starting":
        return "failed" if facts.age_s > VMMS.boot_s else "starting"
    return ALIVE[facts.status]
