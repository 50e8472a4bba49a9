"""What to expect of the hosts of a project, and what their reports mean: rows by VM, and what digests prove."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import chain
from operator import itemgetter

import msgspec

from mikrom_reconcile.core.model.desired import DesiredVM, State
from mikrom_reconcile.core.model.encoding import fleet_digest, row_digest
from mikrom_reconcile.core.model.observed import (
    Attempt,
    HostReport,
    ObservedState,
    ObservedVM,
    Phase,
    Placements,
)

EXPECTED_PHASE: dict[State, Phase] = {"running": "running", "stopped": "stopped", "paused": "paused"}
"""The phase in which control expects a VM of each state when nothing is to be done."""


class Expected(msgspec.Struct, frozen=True, kw_only=True):
    """What a host reports of each fleet once everything is as wanted, and which VMs that proves to be up to date."""

    digests: dict[str, str]
    names: dict[str, tuple[str, ...]]


class ProjectView(msgspec.Struct, frozen=True, kw_only=True):
    """The reports of all hosts, merged for one project.

    `own` holds the rows of the project's VMs by name, the keeper first: the row with the highest token. `others` holds
    rows that are not ours: of another project, or unreadable. `up_to_date` names the VMs that a digest proves to be as
    wanted; they have no rows. `unreachable` maps hosts without a report to the reason. `reports` are those of the
    others by host, `maturing`, `attempts` and `released` what all of them say.
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

    @property
    def ambiguous(self) -> bool:
        """Whether a VM is up to date on one host and seen on another: which is newer, only its rows can tell."""
        return not self.up_to_date.isdisjoint(self.own)

    def locations(self, placements: Placements) -> dict[str, str]:
        """Where each known VM is: where it was observed, else where it is remembered, if that host is unreachable."""
        remembered = placements.vms
        if not remembered.keys() <= self.up_to_date:
            unreachable, proven = self.unreachable, self.up_to_date
            remembered = {name: host for name, host in remembered.items() if name in proven or host in unreachable}
        return remembered | {name: rows[0].host for name, rows in self.own.items()} if self.own else remembered


def expectations(vms: Iterable[DesiredVM]) -> dict[str, Expected]:
    """What to expect of each host: the wanted VMs that are remembered to be there, as they are wanted."""
    groups: dict[str, dict[str, list[DesiredVM]]] = defaultdict(lambda: defaultdict(list))
    for vm in vms:
        if vm.state in EXPECTED_PHASE:
            groups[vm.host][vm.fleet].append(vm)
    return {
        host: Expected(
            digests={fleet: _digest(group) for fleet, group in fleets.items()},
            names={fleet: tuple([vm.name for vm in group]) for fleet, group in fleets.items()},
        )
        for host, fleets in groups.items()
    }


def _digest(group: list[DesiredVM]) -> str:
    return fleet_digest(
        (vm.name, row_digest(vm.spec_digest, vm.addresses), EXPECTED_PHASE[vm.state], ()) for vm in group
    )


def merge_reports(state: ObservedState, project: str, expected: Mapping[str, Expected]) -> ProjectView:
    """The reports of all hosts for `project`; `expected` is what the queries were made from."""
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
    released = (item for report in reports for item in report.released.items())
    return ProjectView(
        own=own,
        others=others,
        up_to_date=frozenset(chain.from_iterable(_proven(report, expected.get(report.host)) for report in reports)),
        unreachable={view.host: view.error for view in views if view.report is None},
        highest_token=max((report.highest_tokens.get(project, 0) for report in reports), default=0),
        released=dict(sorted(released, key=itemgetter(1), reverse=True)),  # the latest time counts
        reports={report.host: report for report in reports},
        maturing={name: left_s for report in reports for name, left_s in report.maturing.items()},
        attempts={name: attempt for report in reports for name, attempt in report.attempts.items()},
    )


def _proven(report: HostReport, expected: Expected | None) -> Iterable[str]:
    """The VMs of the fleets whose digest is the expected one."""
    if expected is None:
        return ()
    if report.digests == expected.digests:  # as a rule; comparing whole dicts is what makes 100,000 fleets cheap
        return chain.from_iterable(expected.names.values())
    same = (fleet for fleet, digest in report.digests.items() if expected.digests.get(fleet) == digest)
    return chain.from_iterable(expected.names[fleet] for fleet in same)


def rank(row: ObservedVM) -> tuple[int, str]:
    """The keeper first."""
    return -row.token, row.host
