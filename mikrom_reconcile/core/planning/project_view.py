"""What the hosts' reports mean for one project: rows by VM, digests that already match, and who is dark."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

import msgspec

from mikrom_reconcile.core.model.desired import DesiredState, DesiredVM, State
from mikrom_reconcile.core.model.digests import fleet_digest, row_digest
from mikrom_reconcile.core.model.observed import (
    Attempt,
    HostReport,
    ObservedState,
    ObservedVM,
    ObserveQuery,
    Phase,
    Placements,
)

SETTLED: dict[State, Phase] = {"running": "running", "stopped": "stopped", "paused": "paused"}
"""The phase in which control expects a VM of each state when nothing is to be done."""

FleetOnHost = tuple[str, str]
"""Host and fleet."""


class Expected(msgspec.Struct, frozen=True, kw_only=True):
    """What one fleet looks like on one host once everything is as wanted."""

    digest: str
    names: tuple[str, ...]


class ProjectView(msgspec.Struct, frozen=True, kw_only=True):
    """The reports, sorted out for one project.

    `own` holds the rows of the project's VMs by name, the keeper first: the row with the highest token. `others`
    holds rows that are not ours: of another project, or unreadable. `up_to_date` names the VMs that a digest proves
    to be as wanted; they have no rows. `unreachable` maps hosts without a report to the reason. `reports` are those of
    the others by host, `maturing`, `attempts` and `released` what all of them say.
    """

    own: Mapping[str, tuple[ObservedVM, ...]]
    others: Mapping[str, ObservedVM]
    up_to_date: frozenset[str]
    unreachable: Mapping[str, str]
    highest_token: int
    released: Mapping[str, float] = {}
    reports: Mapping[str, HostReport] = {}
    maturing: Mapping[str, float] = {}
    attempts: Mapping[str, Attempt] = {}


def expected(desired: DesiredState) -> dict[FleetOnHost, Expected]:
    """What to expect of each fleet on each host: the wanted VMs that are remembered to be there, settled."""
    groups: dict[FleetOnHost, list[DesiredVM]] = defaultdict(list)
    for vm in desired.vms:
        if vm.state in SETTLED:
            groups[vm.host, vm.fleet].append(vm)
    return {key: _expected(group) for key, group in groups.items()}


def _expected(group: list[DesiredVM]) -> Expected:
    return Expected(
        digest=fleet_digest((vm.name, row_digest(vm.spec_digest, vm.addresses), SETTLED[vm.state], ()) for vm in group),
        names=tuple([vm.name for vm in group]),
    )


def queries(
    project: str,
    hosts: Iterable[str],
    known: Mapping[FleetOnHost, Expected],
    min_healthy_s: dict[str, float],
    *,
    new: bool,
) -> dict[str, ObserveQuery]:
    """What to ask each host: rows only of fleets that are not as expected.

    `new` says that VMs may have to be made. Then the rows of other projects matter too: they may have the name.
    """
    by_host: dict[str, dict[str, str]] = defaultdict(dict)
    for (host, fleet), value in known.items():
        by_host[host][fleet] = value.digest
    return {
        host: ObserveQuery(
            project=project,
            known=by_host[host],
            others=new,
            min_healthy_s=min_healthy_s,
        )
        for host in sorted(hosts)
    }


def merge_reports(state: ObservedState, project: str, known: Mapping[FleetOnHost, Expected]) -> ProjectView:
    """The reports of all hosts, sorted out for `project`; `known` is what the queries were made from."""
    own: dict[str, tuple[ObservedVM, ...]] = {}
    others: dict[str, ObservedVM] = {}
    views = sorted(state.hosts, key=lambda view: view.host)
    reports = [view.report for view in views if view.report]
    for vm in (vm for report in reports for vm in report.vms):
        if vm.project == project and vm.phase != "unreadable":
            rows = own.get(vm.name)
            own[vm.name] = (vm,) if rows is None else tuple(sorted((*rows, vm), key=rank))
        else:
            others.setdefault(vm.name, vm)
    return ProjectView(
        own=own,
        others=others,
        up_to_date=_settled(reports, known),
        unreachable={view.host: view.error for view in views if view.report is None},
        highest_token=max((report.highest_tokens.get(project, 0) for report in reports), default=0),
        released=_released(reports),
        reports={report.host: report for report in reports},
        maturing={name: left_s for report in reports for name, left_s in report.maturing.items()},
        attempts={name: attempt for report in reports for name, attempt in report.attempts.items()},
    )


def _settled(reports: Iterable[HostReport], known: Mapping[FleetOnHost, Expected]) -> frozenset[str]:
    """The names of those that a digest proves to be as wanted where they are expected."""
    settled: set[str] = set()
    for report in reports:
        for fleet, digest in report.digests.items():
            value = known.get((report.host, fleet))
            if value is not None and digest == value.digest:
                settled.update(value.names)
    return frozenset(settled)


def _released(reports: Iterable[HostReport]) -> dict[str, float]:
    """Of an address that came back on several hosts the latest time counts."""
    released: dict[str, float] = {}
    for ip, age_s in (item for report in reports for item in report.released.items()):
        released[ip] = min(age_s, released.get(ip, age_s))
    return released


def rank(row: ObservedVM) -> tuple[int, str]:
    """The keeper first."""
    return -row.token, row.host


def locations(view: ProjectView, placements: Placements) -> dict[str, str]:
    """Where each known VM is: where it was observed, else where it is remembered, if that host is dark."""
    dark, settled = view.unreachable, view.up_to_date
    remembered = {name: host for name, host in placements.vms.items() if name in settled or host in dark}
    return remembered | {name: rows[0].host for name, rows in view.own.items()}
