"""One look at all hosts, for the commands that only look."""

from __future__ import annotations

from mikrom_reconcile.cli.terminal import warn
from mikrom_reconcile.control.ports import Engine
from mikrom_reconcile.core.model.observed import HostView, ObservedVM, ObserveQuery

DEADLINE_S = 10.0
"""A host answers in milliseconds; a person waits for a dark one no longer than a run does."""


def views_of(engine: Engine) -> tuple[HostView, ...]:
    """What every host says of all of its VMs, sorted by host."""
    queries = {host: ObserveQuery() for host in engine.hosts.names()}
    return tuple(sorted(engine.hosts.observe(queries, deadline_s=DEADLINE_S), key=lambda view: view.host))


def vms_in(views: tuple[HostView, ...]) -> list[ObservedVM]:
    """Every VM that was reported, sorted by name and host."""
    return sorted((vm for view in views if view.report for vm in view.report.vms), key=lambda vm: (vm.name, vm.host))


def warn_of_dark_hosts(views: tuple[HostView, ...]) -> bool:
    """Name on stderr every host that gave no report; whether there was one."""
    dark = [view for view in views if view.report is None]
    for view in dark:
        warn(f"host {view.host} could not be read: {view.error}; its VMs are not shown")
    return bool(dark)
