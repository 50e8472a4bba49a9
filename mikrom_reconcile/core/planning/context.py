"""What a plan is made from, and the draft that its stages hand on: the words that all of planning shares."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import chain
from operator import itemgetter

import msgspec

from mikrom_reconcile.core.model.desired import DesiredVM, Share
from mikrom_reconcile.core.model.encoding import fleet_digest, row_digest
from mikrom_reconcile.core.model.observed import (
    Attempt,
    HostReport,
    ObservedState,
    ObservedVM,
    ObserveQuery,
    Placements,
)
from mikrom_reconcile.core.model.plan import ChangeKind, Peak, Plan, Refusal, VMChange
from mikrom_reconcile.core.placement.scheduler import Placing
from mikrom_reconcile.core.specs.expand import UnplacedVM
from mikrom_reconcile.core.specs.load import FleetSpec, Specs, hosts_of


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

    def locations(self, placements: Placements) -> dict[str, str]:
        """Where each known VM is: where it was observed, else where it is remembered, if that host is unreachable."""
        remembered = placements.vms
        if not remembered.keys() <= self.up_to_date:
            unreachable, proven = self.unreachable, self.up_to_date
            remembered = {name: host for name, host in remembered.items() if name in proven or host in unreachable}
        return remembered | {name: rows[0].host for name, rows in self.own.items()} if self.own else remembered


def expectations(vms: Iterable[DesiredVM]) -> dict[str, Expected]:
    """What to expect of each host: the wanted VMs that are remembered to be there, as they are wanted.

    When nothing is to be done a VM is in the phase that is called as the state in which it is wanted.
    """
    groups: dict[str, dict[str, list[DesiredVM]]] = defaultdict(lambda: defaultdict(list))
    for vm in vms:
        if vm.state != "absent":
            groups[vm.host][vm.fleet].append(vm)
    return {
        host: Expected(
            digests={
                fleet: fleet_digest((vm.name, row_digest(vm.spec_digest, vm.addresses), vm.state, ()) for vm in group)
                for fleet, group in fleets.items()
            },
            names={fleet: tuple([vm.name for vm in group]) for fleet, group in fleets.items()},
        )
        for host, fleets in groups.items()
    }


def merge_reports(state: ObservedState, project: str, expected: Mapping[str, Expected]) -> ProjectView:
    """The reports of all hosts for `project`; `expected` is what the queries were made from."""
    own: dict[str, tuple[ObservedVM, ...]] = {}
    others: dict[str, ObservedVM] = {}
    views = sorted(state.hosts, key=lambda view: view.host)
    reports = [view.report for view in views if view.report]
    for vm in (vm for report in reports for vm in report.vms):
        if vm.project == project and vm.phase != "unreadable":
            rows = own.get(vm.name)
            own[vm.name] = (vm,) if rows is None else tuple(sorted((*rows, vm), key=lambda row: (-row.token, row.host)))
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
    if expected is None:
        return ()
    if report.digests == expected.digests:  # as a rule; comparing whole dicts is what makes 100,000 fleets cheap
        return chain.from_iterable(expected.names.values())
    same = (fleet for fleet, digest in report.digests.items() if expected.digests.get(fleet) == digest)
    return chain.from_iterable(expected.names[fleet] for fleet in same)


class RunOverrides(msgspec.Struct, frozen=True, kw_only=True):
    """What this run does otherwise than the fleets' own policies say, and what it leaves out.

    `prune_max` replaces every fleet's share; `confirmed` names fleets whose removals a person has confirmed. `retry`
    brings back what was given up, once: VMs that this run has `tried` are given up again if that failed. `limit` is a
    pattern of hosts, groups, fleets and VM names, `tags` and `skip_tags` are those of fleets; None and () are all.
    """

    prune_max: Share | None = None
    confirmed: tuple[str, ...] = ()
    retry: bool = False
    tried: frozenset[str] = frozenset()
    limit: str | None = None
    tags: tuple[str, ...] = ()
    skip_tags: tuple[str, ...] = ()


class PlanInput(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a project before its hosts are asked, and what to ask them.

    `here` is the host of specs without an Inventory. `unplaced` are all VMs of the specs; `rendered` has those that are
    remembered on hosts where they may stay, as they are wanted there, and `expected` what follows from that for each
    host. `dead` names hosts whose VMs count as gone unless they answer, `living` those that can be asked. `destroy`
    wants everything gone that the specs own. `warnings` are those of the specs.
    """

    specs: Specs
    here: str
    placements: Placements
    dead: tuple[str, ...]
    living: tuple[str, ...]
    destroy: bool
    unplaced: tuple[UnplacedVM, ...]
    rendered: dict[str, DesiredVM]
    expected: dict[str, Expected]
    queries: dict[str, ObserveQuery]
    warnings: tuple[str, ...]


class PlanContext(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """What all stages of a plan read. `placements` are without hosts that are assumed dead and did not answer."""

    given: PlanInput
    view: ProjectView
    placements: Placements
    overrides: RunOverrides

    @cached_property
    def fleets(self) -> dict[str, FleetSpec]:
        """The fleets of the specs by name."""
        return {fleet.name: fleet for fleet in self.given.specs.fleets}

    def in_scope(self, fleet: str) -> bool:
        """Whether the specs speak for this fleet, so that a VM of it which they do not want has to go."""
        return self.given.specs.whole or fleet in self.fleets

    @cached_property
    def removed_hosts(self) -> frozenset[str]:
        """Hosts that answered, and left the inventory."""
        return frozenset(self.view.reports.keys() - set(hosts_of(self.given.specs, self.given.here)))

    @cached_property
    def possible_on(self) -> tuple[str, ...]:
        """Unreachable hosts on which VMs may exist that nobody remembers."""
        known = {*self.given.placements.covers, *self.given.dead}
        return tuple(sorted(self.view.unreachable.keys() - known))


class PlanResult(msgspec.Struct, frozen=True, kw_only=True):
    """The plan, and what its execution needs: the placements to remember first, and the tokens seen so far.

    `unmatched` says what is wrong with the selection. An `ambiguous` plan cannot be trusted: `requery_all` and plan
    again. `retry_after_s` is when VMs may be healthy that boot, or for which a rollout waits; None for none.
    """

    plan: Plan
    placements: Placements
    highest_token: int
    unmatched: str = ""
    ambiguous: bool = False
    retry_after_s: float | None = None


class Draft(msgspec.Struct, frozen=True, kw_only=True):
    """A plan as far as its stages have come.

    `desired` is all that the specs want, each VM on its host; nothing for a destroy. `placing` says why on which hosts.
    `left_out` are changes outside of the selection; `selected` is how many VMs that names (None: all), `unmatched` what
    is wrong with it. `unchanged` counts VMs by host. `retry_after_s` is when a batch may be healthy for which a rollout
    waits.
    """

    desired: Sequence[DesiredVM] = ()
    placing: Placing = Placing(hosts=[])
    changes: list[VMChange] = []
    left_out: list[VMChange] = []
    selected: int | None = None
    unmatched: str = ""
    unchanged: dict[str, int] = {}
    refusals: tuple[Refusal, ...] = ()
    peaks: dict[str, Peak] = {}
    retry_after_s: float | None = None


def with_kind(change: VMChange, kind: ChangeKind, reason: str) -> VMChange:
    """The change with another kind, and why; the one that it had is what is `wanted`."""
    return msgspec.structs.replace(change, kind=kind, wanted=change.kind, reasons=(*change.reasons, reason))
