"""What a plan is made from, and the draft that its stages hand on: the words that all of planning shares."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from itertools import chain
from operator import itemgetter
from typing import Any, get_args

import msgspec

from mikrom_reconcile.core.model import observed, plan as model
from mikrom_reconcile.core.model.desired import DesiredVM, Freeze, Halt
from mikrom_reconcile.core.model.encoding import digest_of, fleet_digest, row_digest
from mikrom_reconcile.core.placement.scheduler import NOTHING, Placing
from mikrom_reconcile.core.specs.load import FleetSpec, Specs, UnplacedVM, hosts_of
from mikrom_reconcile.times_and_sizes import ORDERS


class Expected(msgspec.Struct, frozen=True, kw_only=True):
    """What a host reports of each fleet once everything is as wanted, and which VMs that proves to be up to date."""

    digests: dict[str, str]
    names: dict[str, tuple[str, ...]]


class ProjectView(msgspec.Struct, frozen=True, kw_only=True):
    """The reports of all hosts, merged for one project. `own` holds the rows of the project's VMs by name, the keeper
    first: the row with the highest token. `others` holds rows that are not ours: of another project, or unreadable.
    `up_to_date` names the VMs that a digest proves to be as wanted; they have no rows. `unreachable` maps hosts without
    a report to the reason. `reports` are those of the others by host, the rest is what all of them say.
    """

    own: Mapping[str, tuple[observed.ObservedVM, ...]]
    others: Mapping[str, observed.ObservedVM]
    up_to_date: frozenset[str]
    unreachable: Mapping[str, str]
    highest_token: int
    released: Mapping[str, float] = {}
    reports: Mapping[str, observed.HostReport] = {}
    maturing: Mapping[str, float] = {}
    attempts: Mapping[str, observed.Attempt] = {}
    unproven: Mapping[str, float] = {}
    progress: Mapping[str, observed.Progress] = {}
    canaries: frozenset[str] = frozenset()
    halts: Mapping[str, Halt] = {}
    before: Mapping[str, observed.Before] = {}

    def locations(self, placements: observed.Placements) -> dict[str, str]:
        """Where each known VM is: where it is remembered, if that host is unreachable, else where it was observed. A
        row elsewhere is then of an older copy, on a host that is back after it was given up.
        """
        remembered = placements.vms
        if not remembered.keys() <= self.up_to_date:
            unreachable, proven = self.unreachable, self.up_to_date
            remembered = {name: host for name, host in remembered.items() if name in proven or host in unreachable}
        found = {name: rows[0].host for name, rows in self.own.items() if remembered.get(name) not in self.unreachable}
        return remembered | found if found else remembered

    def is_down(self, vm: DesiredVM) -> bool:
        """It should be up and is not, whatever will be done about it; one that has ended as it may is done."""
        if vm.name not in self.own:
            return vm.name not in self.up_to_date
        phase, ends = self.own[vm.name][0].phase, observed.NOT_RESTARTED[vm.spec.restart.policy]
        return phase not in observed.HEALTHY and not (phase == "exited" and phase in ends)


def expectations(vms: Iterable[DesiredVM]) -> dict[str, Expected]:
    """What to expect of each host: the wanted VMs that are remembered to be there, as they are wanted. When nothing is
    to be done a VM is in the phase that is called as the state in which it is wanted.
    """
    groups: dict[str, dict[str, list[DesiredVM]]] = defaultdict(lambda: defaultdict(list))
    for vm in vms:
        if vm.state != "absent":
            groups[vm.host][vm.fleet].append(vm)
    found: dict[str, Expected] = {}
    for host, fleets in groups.items():
        names = {fleet: tuple([vm.name for vm in group]) for fleet, group in fleets.items()}
        found[host] = Expected(digests={fleet: _digest_of(group) for fleet, group in fleets.items()}, names=names)
    return found


def _digest_of(vms: list[DesiredVM]) -> str:
    return fleet_digest((vm.name, row_digest(vm.spec_digest, vm.addresses), vm.state, ()) for vm in vms)


def merge_reports(state: observed.ObservedState, project: str, expected: Mapping[str, Expected]) -> ProjectView:
    """The reports of all hosts for `project`; `expected` is what the queries were made from."""
    own: dict[str, tuple[observed.ObservedVM, ...]] = {}
    others: dict[str, observed.ObservedVM] = {}
    views = sorted(state.hosts, key=lambda view: view.host)
    reports = [view.report for view in views if view.report]
    for vm in (vm for report in reports for vm in report.vms):
        if vm.project == project and vm.phase != "unreadable" and not vm.unmanaged:
            rows = own.get(vm.name)
            own[vm.name] = (vm,) if rows is None else tuple(sorted((*rows, vm), key=lambda row: (-row.token, row.host)))
        else:
            others.setdefault(vm.name, vm)
    released = (item for report in reports for item in report.released.items())
    progress: dict[str, observed.Progress] = {}
    for fleet, its in (item for report in reports for item in report.progress.items()):
        progress[fleet] = progress.get(fleet, its).with_that_of(its)
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
        unproven={name: left_s for report in reports for name, left_s in report.unproven.items()},
        progress=progress,
        canaries=frozenset(chain.from_iterable(report.canaries for report in reports)),
        halts={name: halt for report in reports for name, halt in report.halts.items()}
        | {name: rows[0].halt for name, rows in own.items() if rows[0].halt},
        before={name: before for report in reports for name, before in report.before.items()},
    )


def _proven(report: observed.HostReport, expected: Expected | None) -> Iterable[str]:
    if expected is None:
        return ()
    if report.digests == expected.digests:  # as a rule; comparing whole dicts is what makes 100,000 fleets cheap
        return chain.from_iterable(expected.names.values())
    same = (fleet for fleet, digest in report.digests.items() if expected.digests.get(fleet) == digest)
    return chain.from_iterable(expected.names[fleet] for fleet in same)


class PlanInput(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a project before its hosts are asked, and what to ask them. `here` is the host of specs without
    an Inventory. `unplaced` are all VMs of the specs; `rendered` has those that are remembered on hosts where they may
    stay, as they are wanted there, and `expected` what follows from that for each host. `dead` names hosts whose VMs
    count as gone unless they answer, `living` those that can be asked. `destroy` wants everything gone that the specs
    own. `warnings` are those of the specs. `renames` maps VMs that were moved to the names that they had. `freezes` are
    those that people asked for by command, by project.
    """

    specs: Specs
    here: str
    placements: observed.Placements
    dead: tuple[str, ...]
    living: tuple[str, ...]
    destroy: bool
    unplaced: tuple[UnplacedVM, ...]
    rendered: dict[str, DesiredVM]
    expected: dict[str, Expected]
    queries: dict[str, observed.ObserveQuery]
    warnings: tuple[str, ...]
    renames: dict[str, str]
    freezes: Mapping[str, Freeze] = {}


def remembered_as_named_now(placements: observed.Placements, renames: Mapping[str, str]) -> observed.Placements:
    """What is remembered, under the names that VMs have in the specs: they are not made anew while a host is dark."""
    known = placements.vms
    now = {was: name for name, was in renames.items() if was in known and name not in known}
    if not now:
        return placements
    vms = {now.get(name, name): host for name, host in known.items()}
    addresses = {now.get(name, name): found for name, found in placements.addresses.items()}
    return msgspec.structs.replace(placements, vms=vms, addresses=addresses)


def refactored(view: ProjectView, given: PlanInput) -> ProjectView:
    """The VMs that were moved as those that they are now, though not by name; those that are imported are ours."""
    refactor, own, others = given.specs.refactor, dict(view.own), dict(view.others)
    if given.destroy or not refactor.documents:
        return view
    fleets = {vm.name: vm.fleet.name for vm in given.unplaced}
    for name, was in given.renames.items():
        if was in own and name not in own and name not in view.up_to_date:
            newest, *doubles = own.pop(was)
            own[name] = (msgspec.structs.replace(newest, fleet=fleets[name]),)
            own |= {was: tuple(doubles)} if doubles else {}
        elif was in others and others[was].phase == "unreadable":
            others[name] = others.pop(was)
    for name, row in view.others.items():
        if row.unmanaged and row.project == given.specs.project and {name, fleets.get(name)} & refactor.imported:
            own[name] = (others.pop(name),)
    return msgspec.structs.replace(view, own=own, others=others)


class PlanContext(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """What all stages of a plan read. `placements` are without hosts that are assumed dead and did not answer. A retry
    brings VMs back once: those that this run has `tried` are given up again if that failed.
    """

    given: PlanInput
    view: ProjectView
    placements: observed.Placements
    overrides: model.RunOverrides
    tried: frozenset[str]
    now: datetime

    @cached_property
    def fleets(self) -> dict[str, FleetSpec]:
        """The fleets of the specs by name."""
        return {fleet.name: fleet for fleet in self.given.specs.fleets}

    @cached_property
    def freezes(self) -> tuple[Freeze, ...]:
        """Those of the specs and of people that hold now."""
        return tuple(freeze for freeze in self._every_freeze if freeze.holds(self.now))

    @property
    def thawed_s(self) -> float:
        """For how long the project has been thawed, as far as one knows; below 0 while it is frozen."""
        ends = [(self.now - freeze.until).total_seconds() for freeze in self._every_freeze if freeze.until]
        return min(ends, default=math.inf)

    @property
    def _every_freeze(self) -> list[Freeze]:
        given = self.given
        return [each for each in (given.specs.freeze, given.freezes.get(given.specs.project)) if each]

    def in_scope(self, fleet: str) -> bool:
        """Whether the specs speak for this fleet, so that a VM of it which they do not want has to go."""
        return self.given.specs.whole or fleet in self.fleets

    def removal_of(self, row: observed.ObservedVM) -> bool | None:
        """Whether a Refactor document removes the VM, or its fleet, to destroy it; None: it does not remove it."""
        removed = self.given.specs.refactor.removed
        return removed.get(row.name, removed.get(row.fleet))

    @cached_property
    def removed_hosts(self) -> frozenset[str]:
        """Hosts that answered, and left the inventory."""
        return frozenset(self.view.reports.keys() - set(hosts_of(self.given.specs, self.given.here)))

    @cached_property
    def possible_on(self) -> tuple[str, ...]:
        """Unreachable hosts on which VMs may exist that nobody remembers."""
        return tuple(sorted(self.view.unreachable.keys() - {*self.given.placements.covers, *self.given.dead}))


class PlanResult(msgspec.Struct, frozen=True, kw_only=True):
    """The plan, and what its execution needs: the placements to remember first, and the tokens seen so far. `unmatched`
    says what is wrong with the selection. An `ambiguous` plan cannot be trusted: `requery_all` and plan again.
    `retry_after_s` is when VMs may be healthy that boot, or for which a rollout waits; None for none.
    """

    plan: model.Plan
    placements: observed.Placements = observed.Placements()
    highest_token: int
    unmatched: str = ""
    ambiguous: bool = False
    retry_after_s: float | None = None


class Draft(msgspec.Struct, frozen=True, kw_only=True):
    """A plan as far as its stages have come. `desired` is all that the specs want, each VM on its host; nothing for a
    destroy. `placing` says why on which hosts. `left_out` are changes outside of the selection; `selected` is how many
    VMs that names (None: all), `unmatched` what is wrong with it. `unchanged` counts VMs by host. `retry_after_s` is
    when a batch may be healthy for which a rollout waits. `ambiguous` says that only rows tell what to go back to.
    """

    desired: Sequence[DesiredVM] = ()
    placing: Placing = Placing(hosts=[])
    changes: list[model.VMChange] = []
    left_out: list[model.VMChange] = []
    selected: int | None = None
    unmatched: str = ""
    unchanged: dict[str, int] = {}
    refusals: tuple[model.Refusal, ...] = ()
    peaks: dict[str, model.Peak] = {}
    retry_after_s: float | None = None
    ambiguous: bool = False


def with_kind(change: model.VMChange, kind: model.ChangeKind, reason: str, held_by: str = "") -> model.VMChange:
    """The change with another kind, and why; the one that it had is what is `wanted`."""
    wanted, reasons = change.wanted or change.kind, (*change.reasons, reason)
    return msgspec.structs.replace(change, kind=kind, wanted=wanted, reasons=reasons, held_by=held_by)


LEFT_OUT = "left out by --without-host"  # why there is no report of a host that a plan is to do without
VERBS: dict[model.ChangeKind, model.Verb] = {verb: verb for verb in get_args(model.Verb)} | {
    "replace": "restart",  # the host makes the root disk anew where it is not of the image that the spec names
    "move": "delete",  # it is made on its new host once it is proven gone from the old one
}
"""The verb that carries a kind of change out; kinds without one are not acted on."""


def plan_of(
    draft: Draft,
    state: observed.ObservedState,
    *,
    project: str,
    revision: str,
    warnings: Iterable[str],
    mem_limits_mib: Mapping[str, int] = NOTHING,
) -> model.Plan:
    """The plan that a finished draft stands for. `mem_limits_mib` are by host."""
    unreachable = {view.host: view.error for view in state.hosts if view.report is None}
    return numbered(
        model.Plan(
            id="",
            project=project,
            revision=revision,
            taken_at=state.taken_at,
            changes=tuple(draft.changes),
            unchanged=draft.unchanged,
            actions=tuple(actions_of(draft.changes, project, mem_limits_mib)),
            refusals=draft.refusals,
            unreachable={host: why for host, why in sorted(unreachable.items()) if why != LEFT_OUT},
            warnings=tuple(warnings),
            peaks=draft.peaks,
            selected=draft.selected,
        )
    )


def actions_of(
    changes: Iterable[model.VMChange], project: str, mem_limits_mib: Mapping[str, int] = NOTHING
) -> Iterator[model.Action]:
    """One action for each change that has a verb, in the order of the changes. `mem_limits_mib` are by host."""
    for change in changes:
        if (verb := VERBS.get(change.kind)) is None:
            continue
        content: dict[str, Any] = {
            "verb": verb,
            "host": change.host,
            "vm": change.name,
            "project": project,
            "desired": None if verb in {"delete", "forget"} or change.rule == "imported" else change.desired,
            "expect": expect_of(change.observed),
            "deadline_s": ORDERS.deadline_s,
        }
        content |= {"mem_limit_mib": mem_limits_mib[change.host]} if change.host in mem_limits_mib else {}
        content |= {"moved_from": change.observed.name} if change.kind == "rename" and change.observed else {}
        same = {"desired": msgspec.structs.replace(vm, rollout=None)} if (vm := content["desired"]) else {}
        yield model.Action(id=digest_of(content | same), **content)  # in which run its rollout began is all the same


def expect_of(seen: observed.ObservedVM | None) -> model.Expect:
    """What an action that was planned from this row expects to find."""
    if seen is None:
        return model.Expect(uid=None, generation=0)
    return model.Expect(uid=seen.uid, generation=seen.generation, silent=seen.phase == "unresponsive")


def numbered(plan: model.Plan, **changes: Any) -> model.Plan:
    """The plan with these changes, and with its id: a digest of everything but the time."""
    plan = msgspec.structs.replace(plan, **changes, id="")
    content = msgspec.structs.asdict(plan)
    content.pop("taken_at")
    return msgspec.structs.replace(plan, id=digest_of(content))


def warnings_of(draft: Draft, context: PlanContext) -> Iterator[str]:
    """What is left alone and why, how to keep the VMs of a fleet that was renamed, what hosts say of themselves."""
    view = context.view
    for freeze in context.freezes:
        passed = "; --override-freeze goes past that" if context.overrides.override_freeze else ""
        yield f"project {context.given.specs.project} is {freeze}{passed}"
    rows = (row for rows in view.own.values() for row in rows)
    strangers = [row for row in rows if not context.in_scope(row.fleet) and context.removal_of(row) is None]
    adopted = {vm.name for vm in draft.desired} if strangers else set()
    for fleet in sorted({row.fleet for row in strangers if row.name not in adopted}):
        why = "only with a Project document are they the whole truth"
        yield f"fleet {fleet} is not in these specs and was left alone; {why}"
    for row in sorted(view.others.values(), key=lambda row: row.name):
        if row.phase == "unreadable":
            yield f"{row.name} on {row.host} cannot be read: {row.last_error}"
    if draft.left_out:
        yield f"{len(draft.left_out)} more changes are outside --limit, --tags or --skip-tags"
    yield from _renamed_fleets(draft, context)
    concerned = {change.host for change in draft.changes if change.kind in VERBS}
    for host, report in view.reports.items():
        if report.note and host in concerned:
            yield f"{host}: {report.note}"


def _renamed_fleets(draft: Draft, context: PlanContext) -> Iterator[str]:
    """Fleets that are made in full, just like one that is there and that the specs no longer name."""
    view = context.view
    old, new = defaultdict[str, Counter[Any]](Counter), defaultdict[str, Counter[Any]](Counter)
    for name, (row, *_) in view.own.items():
        if row.fleet not in context.fleets and re.fullmatch(re.escape(row.fleet) + r"-\d{3,}", name):  # by default
            old[row.fleet][row.spec.image, row.spec.machine] += 1
    if not old:
        return
    has = {vm.fleet for vm in draft.desired if vm.name in view.up_to_date or vm.name in view.own}
    for change in draft.changes:
        if change.kind == "create" and change.fleet not in has and (vm := change.desired) is not None:
            new[vm.fleet][vm.spec.image, vm.spec.machine] += 1
    for before, vms in sorted(old.items()):
        for after in sorted(fleet for fleet in new if new[fleet] == vms):
            keep = f"moved: [{{from: {before}, to: {after}}}] in a Refactor document keeps its VMs"
            yield f"fleet {after} is new and {before}, with VMs alike, is not in the specs: if it was renamed, {keep}"
