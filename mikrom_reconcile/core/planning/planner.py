"""From specs and reports to a plan: the one planner that CLI, Beat and pipelines share."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from mikrom_reconcile.core.model.desired import DesiredState, Rollout
from mikrom_reconcile.core.model.digests import digest_of
from mikrom_reconcile.core.model.durations import seconds_of
from mikrom_reconcile.core.model.observed import ObservedState, ObservedVM, ObserveQuery, Placements
from mikrom_reconcile.core.model.plan import Action, ChangeKind, Expect, Plan, Refusal, Verb, VMChange
from mikrom_reconcile.core.placement.capacity import mem_limit_mib, room_of
from mikrom_reconcile.core.placement.desired_state import desired_state
from mikrom_reconcile.core.placement.scheduler import Scheduler
from mikrom_reconcile.core.planning.diff import STANDS_IN_THE_WAY, diff
from mikrom_reconcile.core.planning.guards import RunOverrides, fleet_counts, limit_removals, protect
from mikrom_reconcile.core.planning.leases import leased, unseen
from mikrom_reconcile.core.planning.plan_warnings import notes_of_hosts, renamed_fleets, warnings_of_plan
from mikrom_reconcile.core.planning.project_view import (
    Expected,
    FleetOnHost,
    ProjectView,
    expected,
    locations,
    merge_reports,
    queries,
)
from mikrom_reconcile.core.planning.rollout import limit_disruption, min_healthy_s
from mikrom_reconcile.core.planning.selection import EVERYTHING, Selection, selected, whereabouts
from mikrom_reconcile.core.planning.spec_warnings import warnings_of
from mikrom_reconcile.core.specs.expand import UnplacedVM, expand
from mikrom_reconcile.core.specs.inventory import Inventory
from mikrom_reconcile.core.specs.load import VM_NAME, Specs, drained_hosts
from mikrom_reconcile.core.specs.resolve import Resolver
from mikrom_reconcile.limits import ORDERS

NO_LIMITS: Mapping[str, int] = {}
NOBODY: Mapping[str, list[ObservedVM]] = {}

LEFT_OUT = "left out by --without-host"
"""Why there is no report of a host that a plan is to do without."""

VERBS: dict[ChangeKind, Verb] = {
    "create": "create",
    "start": "start",
    "stop": "stop",
    "pause": "pause",
    "resume": "resume",
    "update": "update",
    "restart": "restart",
    "replace": "restart",  # the host makes the root disk anew where it is not of the image that the spec names
    "move": "delete",  # it is made on its new host once it is proven gone from the old one
    "delete": "delete",
}
"""The verb that carries a kind of change out; kinds without one are not acted on."""


class PlanInput(msgspec.Struct, frozen=True, kw_only=True):
    """What a run asks the hosts before it can plan, and what it asked it from. `hosts` may get new VMs.

    `desired` has the VMs that are remembered on hosts where they may stay; it is all that is wanted if `complete`, and
    holds if they are found there. `dead` names hosts whose VMs count as gone unless they answer. `here` is the host of
    specs without an Inventory. `warnings` are those of the specs.
    """

    specs: Specs
    pending: tuple[UnplacedVM, ...]
    placements: Placements
    desired: DesiredState
    complete: bool
    here: str
    expected: dict[FleetOnHost, Expected]
    queries: dict[str, ObserveQuery]
    destroy: bool
    dead: tuple[str, ...]
    living: tuple[str, ...]
    warnings: tuple[str, ...]


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


def prepare(
    specs: Specs,
    placements: Placements,
    *,
    here: str,
    destroy: bool = False,
    dead: tuple[str, ...] = (),
    living: tuple[str, ...] = (),
) -> PlanInput:
    """What to ask the hosts of the inventory, or `here` without one, those on which VMs are remembered, and the other
    `living` ones: a host that left the inventory may come back with VMs that were made elsewhere since.

    `destroy` wants everything that the specs own gone, so every row is asked for.
    """
    pending = expand(specs)
    alive = _without(placements, dead)
    scheduler = Scheduler(specs, here, located=alive.vms)
    staying = scheduler.correctly_placed(pending)
    desired = desired_state(specs, staying, scheduler, alive.addresses)
    if destroy:
        desired = msgspec.structs.replace(desired, vms=(), destroy=True)
    known = expected(desired)
    complete = len(staying) == len(pending)
    asked, healthy_s = {*scheduler.hosts, *placements.vms.values()}, min_healthy_s(_rollouts(specs))
    others = set() if destroy else {*living} - asked
    elsewhere = queries(specs.project, others, known, healthy_s, new=False)  # names are free to others there
    return PlanInput(
        specs=specs,
        pending=pending,
        placements=placements,
        desired=desired,
        complete=complete,
        here=here,
        expected=known,
        queries=queries(specs.project, asked, known, healthy_s, new=not complete and not destroy) | elsewhere,
        destroy=destroy,
        dead=dead,
        living=living,
        warnings=tuple(f"{each.path}:{each.line}: {each.message}" for each in warnings_of(specs, pending)),
    )


def requery_all(asked: PlanInput) -> PlanInput:
    """The same question for every row: of a VM that is as wanted on one host and seen on another, only rows tell which
    is newer.
    """
    queries = {host: msgspec.structs.replace(query, known={}) for host, query in asked.queries.items()}
    return msgspec.structs.replace(asked, expected={}, queries=queries)


def make_plan(
    asked: PlanInput, observed: ObservedState, limits: RunOverrides, selection: Selection = EVERYTHING
) -> PlanResult:
    """The plan that follows from the reports. Pure: the same arguments give the same bytes."""
    specs = asked.specs
    view = merge_reports(observed, specs.project, asked.expected)
    dead = tuple(host for host in asked.dead if host in view.unreachable)
    desired = _placed(asked, view, _without(asked.placements, dead))
    hiding = tuple(sorted(host for host in view.unreachable if host not in {*asked.placements.covers, *dead}))
    changes, unchanged = diff(desired, view, hiding, retry=limits.retry)
    policies = {fleet.name: fleet.policy for fleet in specs.fleets}
    changes, protected = protect(changes, policies)
    fleets = fleet_counts(view, desired, _without(asked.placements, dead))
    changes, pruned = limit_removals(changes, fleets, policies, limits, drained_hosts(specs))
    chosen = selected(changes, selection, specs, whereabouts(asked.pending, desired, view, asked.placements))
    mine = _awaiting_room(chosen.changes, asked, view, _without(asked.placements, dead))
    rolling = limit_disruption(mine, changes, desired, view, _rollouts(specs), limits)
    changes, unleased = leased(rolling.changes, specs.networks, desired, view, asked.placements)
    concerned = {(change.fleet, name) for change in changes for name in (change.name, "")}
    actions = tuple(actions_of(changes, specs.project, _mem_limits_mib(specs, view, changes)))
    found = (*protected, *pruned, *unleased, *_blocked(changes), *rolling.refusals)
    refusals = [refusal for refusal in found if (refusal.fleet, refusal.vm) in concerned]
    plan = numbered(
        Plan(
            id="",
            project=specs.project,
            revision=specs.tree.revision,
            taken_at=observed.taken_at,
            changes=tuple(changes),
            unchanged=unchanged,
            actions=actions,
            refusals=tuple(refusals),
            unreachable={host: why for host, why in sorted(view.unreachable.items()) if why != LEFT_OUT},
            warnings=(
                *asked.warnings,
                *warnings_of_plan(desired, view, chosen.left_out),
                *renamed_fleets(specs, desired, view, changes),
                *notes_of_hosts(observed, actions),
            ),
            peaks=rolling.peaks,
            selected=chosen.size,
        )
    )
    return PlanResult(
        plan=plan,
        placements=_to_remember(asked, desired, view, changes),
        highest_token=view.highest_token,
        unmatched=chosen.unmatched,
        ambiguous=not view.up_to_date.isdisjoint(view.own),
        retry_after_s=min([*filter(None, (rolling.retry_after_s,)), *_booting_s(changes)], default=None),
    )


def _rollouts(specs: Specs) -> dict[str, Rollout | None]:
    return {fleet.name: fleet.rollout for fleet in specs.fleets}


def actions_of(
    changes: Iterable[VMChange], project: str, mem_limits_mib: Mapping[str, int] = NO_LIMITS
) -> Iterator[Action]:
    """One action for each change that has a verb, in the order of the changes. `mem_limits_mib` are by host."""
    for change in changes:
        if change.kind not in VERBS:
            continue
        content: dict[str, Any] = {
            "verb": VERBS[change.kind],
            "host": change.host,
            "vm": change.name,
            "project": project,
            "desired": None if VERBS[change.kind] == "delete" else change.desired,
            "expect": expect_of(change.observed),
            "deadline_s": ORDERS.deadline_s,
        }
        if change.host in mem_limits_mib:
            content["mem_limit_mib"] = mem_limits_mib[change.host]
        yield Action(id=digest_of(content), **content)


def expect_of(seen: ObservedVM | None) -> Expect:
    """What an action that was planned from this row expects to find."""
    return Expect(uid=seen.uid, generation=seen.generation) if seen else Expect(uid=None, generation=0)


def _mem_limits_mib(specs: Specs, view: ProjectView, changes: Iterable[VMChange]) -> dict[str, int]:
    """What hosts are told to go by instead of the memory that they have, because the inventory says so."""
    if specs.inventory is None:
        return {}
    hosts = {change.host for change in changes if change.kind in VERBS} & view.reports.keys()
    limits = {host: mem_limit_mib(specs.inventory, view.reports[host]) for host in hosts}
    return {host: limit for host, limit in limits.items() if limit is not None}


def _without(placements: Placements, dead: tuple[str, ...]) -> Placements:
    """The placements as if nothing were known to be on the dead hosts."""
    if not dead:
        return placements
    vms = {name: host for name, host in placements.vms.items() if host not in dead}
    leases = {name: found for name, found in placements.addresses.items() if name in vms}
    return msgspec.structs.replace(placements, vms=vms, addresses=leases)


def _placed(asked: PlanInput, view: ProjectView, placements: Placements) -> DesiredState:
    """The specs on the hosts where things were found; nothing at all for a destroy."""
    located = locations(view, placements)
    leases = placements.addresses | _seen_leases(asked.specs, view)
    as_remembered = located == _without(asked.placements, asked.dead).vms and leases == placements.addresses
    if asked.complete and not view.unreachable and as_remembered:
        return asked.desired
    desired = desired_state(asked.specs, asked.pending, _scheduler(asked, view, placements, located), leases)
    return msgspec.structs.replace(desired, vms=(), destroy=True) if asked.destroy else desired


def _scheduler(
    asked: PlanInput,
    view: ProjectView,
    placements: Placements,
    located: Mapping[str, str],
    going: Mapping[str, list[ObservedVM]] = NOBODY,
) -> Scheduler:
    """The hosts as they were found, once those of their VMs are gone that are `going`."""
    inventory = asked.specs.inventory or Inventory()
    return Scheduler(
        asked.specs,
        asked.here,
        located=located,
        dark=view.unreachable,
        previous_hosts=placements.vms,
        rooms={host: room_of(inventory, report, going.get(host, ())) for host, report in view.reports.items()},
        pinned={
            name: f"its drives ({', '.join(sorted(rows[0].spec.drives))}) do not travel"
            for name, rows in view.own.items()
            if rows[0].spec.drives
        },
    )


def _awaiting_room(
    changes: list[VMChange], asked: PlanInput, view: ProjectView, placements: Placements
) -> list[VMChange]:
    """VMs for which no host has room wait, if what goes by this very plan makes it."""
    going: dict[str, list[ObservedVM]] = defaultdict(list)
    for change in changes:
        if change.kind in {"delete", "move"} and change.observed is not None:
            going[change.host].append(change.observed)
    lacking = {change.name for change in changes if change.rule == "unplaceable"}
    if not going or not lacking:
        return changes
    scheduler = _scheduler(asked, view, placements, locations(view, placements), going)
    placing = scheduler.place(asked.pending, Resolver(asked.specs).need)
    found = {vm.name: host for vm, host in zip(asked.pending, placing.hosts, strict=True) if vm.name in lacking}
    return [_waiting(change, found.get(change.name, "")) for change in changes]


def _waiting(change: VMChange, host: str) -> VMChange:
    if not host or change.desired is None:
        return change
    desired = msgspec.structs.replace(change.desired, host=host)
    reason = f"waits for the room that is made on {host}"
    return msgspec.structs.replace(change, kind="wait", host=host, reasons=(reason,), desired=desired)


def _to_remember(asked: PlanInput, desired: DesiredState, view: ProjectView, changes: Iterable[VMChange]) -> Placements:
    """Where everything is, or is made now; what was remembered on dark hosts stays remembered.

    A VM that is to move is remembered where it still is, and one whose name is taken where that was seen: if that
    host goes dark, it must not be made elsewhere. One that may not be made yet is not remembered, so that the next run
    asks again who has its name.
    """
    vms = {name: host for name, host in asked.placements.vms.items() if host in view.unreachable}
    vms |= {vm.name: vm.host for vm in desired.vms if vm.name in view.up_to_date}
    vms |= {change.name: change.host for change in changes if change.kind == "create"}
    wanted = {vm.name for vm in desired.vms} - vms.keys() if view.others else set()
    vms |= {name: row.host for name, row in view.others.items() if name in wanted}
    vms |= {name: rows[0].host for name, rows in view.own.items()}
    answered = {host for host in asked.queries if host not in view.unreachable}
    return Placements(
        vms={name: vms[name] for name in sorted(vms)},
        covers=tuple(sorted({*asked.placements.covers, *answered})),
        addresses=_to_lease(asked, desired, view, changes) if asked.specs.networks else {},
        fleets=dict(sorted(_odd_fleets(asked, desired, view, vms))),
    )


def _to_lease(
    asked: PlanInput, desired: DesiredState, view: ProjectView, changes: Iterable[VMChange]
) -> dict[str, dict[str, str]]:
    """The addresses that VMs have, or get now."""
    leases = dict(unseen(view, asked.placements))
    leases |= {vm.name: vm.addresses for vm in desired.vms if vm.name in view.up_to_date}
    leases |= _seen_leases(asked.specs, view)
    leases |= {change.name: change.desired.addresses for change in changes if change.desired and change.kind in VERBS}
    return {name: found for name, found in sorted(leases.items()) if found}


def _seen_leases(specs: Specs, view: ProjectView) -> dict[str, dict[str, str]]:
    """The addresses in the rows of VMs."""
    if not specs.networks:
        return {}
    return {name: rows[0].addresses for name, rows in view.own.items() if rows[0].addresses}


def _booting_s(changes: Iterable[VMChange]) -> Iterator[float]:
    """When VMs that boot may have passed their checks."""
    for change in changes:
        if change.observed and change.observed.phase == "booting":
            yield min((seconds_of(check.interval) for check in change.observed.spec.checks.values()), default=1.0)


def _odd_fleets(
    asked: PlanInput, desired: DesiredState, view: ProjectView, vms: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """The fleets of VMs whose names do not say them; most fleets name their VMs so that they do."""
    yield from ((name, fleet) for name, fleet in asked.placements.fleets.items() if vms.get(name) in view.unreachable)
    odd = {fleet.name for fleet in asked.specs.fleets if fleet.replicas is None or fleet.vm_name != VM_NAME}
    told = ((vm.name, vm.fleet) for vm in (desired.vms if odd else ()) if vm.fleet in odd and vm.name in vms)
    seen = ((name, rows[0].fleet) for name, rows in view.own.items())
    yield from ((name, fleet) for name, fleet in (*told, *seen) if name.rpartition("-")[0] != fleet)


def _blocked(changes: Iterable[VMChange]) -> Iterator[Refusal]:
    for change in changes:
        if change.kind == "blocked" and change.rule in STANDS_IN_THE_WAY:
            yield Refusal(fleet=change.fleet, vm=change.name, rule=change.rule, message="; ".join(change.reasons))


def numbered(plan: Plan) -> Plan:
    """The plan with its id: a digest of everything but the time."""
    content = msgspec.structs.asdict(plan)
    content.pop("taken_at")
    return msgspec.structs.replace(plan, id=digest_of(content))
