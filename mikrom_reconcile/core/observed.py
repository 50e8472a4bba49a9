"""What the hosts' reports mean for one project: rows by VM, digests that already match, and who is dark."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

import msgspec

from mikrom_reconcile.core.digests import fleet_digest
from mikrom_reconcile.core.model.desired import DesiredState, DesiredVM
from mikrom_reconcile.core.model.observed import HostView, ObservedState, ObservedVM, ObserveQuery, Placements

SETTLED = {"running": "running", "stopped": "stopped"}
"""The phase in which control expects a VM of each state when nothing is to be done."""

FleetOnHost = tuple[str, str]
"""Host and fleet."""


class Sight(msgspec.Struct, frozen=True, kw_only=True):
    """The reports, sorted out for one project.

    `own` holds the rows of the project's VMs by name, the VM's keeper first: the row with the highest token.
    `others` holds rows that are not ours: of another project, or unreadable. `matched` names the fleets on hosts
    whose digest says that all is as wanted; they have no rows. `dark` maps hosts without a report to the reason.
    """

    own: Mapping[str, tuple[ObservedVM, ...]]
    others: Mapping[str, ObservedVM]
    matched: frozenset[FleetOnHost]
    dark: Mapping[str, str]
    highest_token: int


def expected_digests(vms: Iterable[DesiredVM]) -> dict[FleetOnHost, str]:
    """The digest that each fleet has on each host once everything is as `vms` want it."""
    groups: dict[FleetOnHost, list[DesiredVM]] = defaultdict(list)
    for vm in vms:
        if vm.state in SETTLED:
            groups[vm.host, vm.fleet].append(vm)
    return {
        key: fleet_digest((vm.name, vm.spec_digest, SETTLED[vm.state], ()) for vm in group)
        for key, group in groups.items()
    }


def queries(desired: DesiredState, placements: Placements, hosts: Iterable[str]) -> dict[str, ObserveQuery]:
    """What to ask each host: rows only of fleets that are not as the remembered placement makes us expect."""
    known = expected_digests(vm for vm in desired.vms if placements.vms.get(vm.name) == vm.host)
    by_host: dict[str, dict[str, str]] = defaultdict(dict)
    for (host, fleet), digest in known.items():
        by_host[host][fleet] = digest
    return {host: ObserveQuery(project=desired.project, known=by_host[host]) for host in sorted(hosts)}


def sight_of(state: ObservedState, project: str, asked: Mapping[str, ObserveQuery]) -> Sight:
    """The reports of all hosts, sorted out for `project`; `asked` are the queries that they answer."""
    own: dict[str, list[ObservedVM]] = defaultdict(list)
    others: dict[str, ObservedVM] = {}
    for view in state.hosts:
        for vm in view.report.vms if view.report else ():
            if vm.project == project and vm.phase != "unreadable":
                own[vm.name].append(vm)
            else:
                others.setdefault(vm.name, vm)
    tokens = [view.report.highest_tokens.get(project, 0) for view in state.hosts if view.report]
    return Sight(
        own={name: tuple(sorted(rows, key=lambda row: (-row.token, row.host))) for name, rows in own.items()},
        others=others,
        matched=frozenset(match for view in state.hosts for match in _matches(view, asked)),
        dark={view.host: view.error for view in state.hosts if view.report is None},
        highest_token=max(tokens, default=0),
    )


def locations(sight: Sight, desired: DesiredState, placements: Placements) -> dict[str, str]:
    """Where each known VM is: as observed, else as remembered on a host that is dark or whose digest matched."""
    fleets = {vm.name: vm.fleet for vm in desired.vms}
    located = {name: rows[0].host for name, rows in sight.own.items()}
    for name, host in placements.vms.items():
        believed = host in sight.dark or (host, fleets.get(name, "")) in sight.matched
        if name not in located and believed:
            located[name] = host
    return located


def _matches(view: HostView, asked: Mapping[str, ObserveQuery]) -> Iterable[FleetOnHost]:
    known = asked[view.host].known if view.host in asked else {}
    digests = view.report.digests if view.report else {}
    return ((view.host, fleet) for fleet, digest in known.items() if digests.get(fleet) == digest)
