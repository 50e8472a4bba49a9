"""Hosts, fleets and the last run on one screen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

import msgspec

from mikrom_reconcile.core.model.observed import HostView
from mikrom_reconcile.core.model.run import RunRecord
from mikrom_reconcile.core.model.specs import SourceState
from mikrom_reconcile.output.run_text import painted
from mikrom_reconcile.output.sanitize import one_line
from mikrom_reconcile.output.style import Style
from mikrom_reconcile.output.table import Cell, table
from mikrom_reconcile.output.units import age, mebibytes

GRACE = timedelta(minutes=1)
"""After which a scheduled run that has not come does not come."""

FleetKey = tuple[str, str]
"""Project and fleet."""


class FleetStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One fleet: how many VMs the specs want (None: the specs do not name it), have a record, and run.

    `rollout` says where its rollout stands, "" if nothing is rolled out.
    """

    project: str
    fleet: str
    wanted: int | None
    vms: int
    running: int
    rollout: str = ""


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What the specs want of one fleet: how many VMs, and where its rollout stands."""

    vms: int
    rollout: str = ""


class HostStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One host: what it has in all and how many VMs; only `error` when it could not be read."""

    host: str
    error: str
    vcpu_count: int
    mem_size_mib: int
    vms: int
    running: int


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """Everything on the screen."""

    hosts: tuple[HostStatus, ...]
    fleets: tuple[FleetStatus, ...]
    last_run: RunRecord | None
    source: SourceState | None = None


def status_of(
    views: Iterable[HostView],
    wanted: Mapping[FleetKey, Wish],
    last_run: RunRecord | None,
    source: SourceState | None = None,
) -> Status:
    """The status from the reports of all hosts, from what the specs want, and what is known of scheduled runs."""
    views = tuple(views)
    rows = [vm for view in views if view.report for vm in view.report.vms]
    vms = Counter((vm.project, vm.fleet) for vm in rows)
    running = Counter((vm.project, vm.fleet) for vm in rows if vm.phase == "running")
    fleets = tuple(
        FleetStatus(
            project=key[0],
            fleet=key[1],
            wanted=wish.vms if wish else None,
            vms=vms[key],
            running=running[key],
            rollout=wish.rollout if wish else "",
        )
        for key in sorted({*vms, *wanted})
        for wish in [wanted.get(key)]
    )
    return Status(hosts=tuple(_host(view) for view in views), fleets=fleets, last_run=last_run, source=source)


def status_text(status: Status, now: datetime, style: Style) -> str:
    """The screen. Ends with a line break."""
    parts = [hosts_text(status.hosts, style)]
    if status.fleets:
        parts.append(fleets_text(status.fleets, style))
    parts.append(_last_run(status.last_run, now, style))
    if status.source is not None:
        line = source_line(status.source, now)
        bad = status.source.problem or is_overdue(status.source, now)
        parts.append((style.paint(line, "red") if bad else line) + "\n")
    return "\n".join(parts)


def is_overdue(source: SourceState | None, now: datetime) -> bool:
    """Whether a scheduled run should have come, and has not."""
    return source is not None and source.next_at is not None and now - source.next_at > GRACE


def source_line(source: SourceState, now: datetime) -> str:
    """What is known of the specs of scheduled runs, without a line break."""
    name, late = f"Scheduled runs use {one_line(source.name)}", ""
    if source.next_at is not None and is_overdue(source, now):
        since = age(source.next_at, now)
        late = f"; none has come since one was due {since} ago: are Beat and a control worker running?"
    if not source.problem:
        read = f"revision {one_line(source.revision)}, read {age(source.looked_at, now)} ago"
        return f"{name}: {read}{late or '.'}"
    used = f"revision {one_line(source.revision)} is used on" if source.revision else "nothing is planned"
    good = f", which was good until {age(source.good_at, now)} ago" if source.good_at else ""
    return f"{name}{good}; {used}: {one_line(source.problem)}{late}"


def hosts_text(hosts: Iterable[HostStatus], style: Style) -> str:
    """One line per host."""
    return table(("HOST", "VCPU", "MEM", "VMS", "RUNNING", ""), [_host_row(host) for host in hosts], style)


def fleets_text(fleets: Iterable[FleetStatus], style: Style) -> str:
    """One line per fleet."""
    return table(("PROJECT", "FLEET", "WANTED", "VMS", "RUNNING", ""), [_fleet_row(fleet) for fleet in fleets], style)


def _host(view: HostView) -> HostStatus:
    report = view.report
    return HostStatus(
        host=view.host,
        error=view.error,
        vcpu_count=report.capacity.vcpu_count if report else 0,
        mem_size_mib=report.capacity.mem_size_mib if report else 0,
        vms=len(report.vms) if report else 0,
        running=sum(vm.phase == "running" for vm in report.vms) if report else 0,
    )


def _host_row(host: HostStatus) -> tuple[Cell, ...]:
    if host.error:
        return ((host.host, ""), *[("-", "dim")] * 4, (f"could not be read: {host.error}", "red"))
    cells = (host.host, str(host.vcpu_count), mebibytes(host.mem_size_mib), str(host.vms), str(host.running), "")
    return tuple((cell, "") for cell in cells)


def _fleet_row(fleet: FleetStatus) -> tuple[Cell, ...]:
    wanted = "-" if fleet.wanted is None else str(fleet.wanted)
    look = "green" if fleet.running == fleet.wanted else "yellow"
    return (
        (fleet.project, ""),
        (fleet.fleet, ""),
        (wanted, ""),
        (str(fleet.vms), ""),
        (str(fleet.running), look),
        (fleet.rollout, "red" if fleet.rollout == "halted" else "yellow"),
    )


def _last_run(run: RunRecord | None, now: datetime, style: Style) -> str:
    if run is None:
        return "No run so far.\n"
    at = f"{run.revision} by {run.author}" if run.author else run.revision or run.origin
    times = f", the same {run.times} times in a row" if run.times > 1 else ""
    when = one_line(f"{age(run.finished_at, now)} ago, project {run.project} at {at}{times}")
    return f"Last run {when}:\n{painted(run.conclusion, run.exit_code, style)}\n"
