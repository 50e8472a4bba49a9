"""From specs and reports to a plan: `prepare` says what to ask hosts, `make_plan` makes the plan of their reports."""

from collections import Counter
from collections.abc import Iterator, Mapping

from msgspec.structs import replace

from mikrom_reconcile.core.model.desired import DesiredVM, seconds_of
from mikrom_reconcile.core.model.fields import keep_applied
from mikrom_reconcile.core.model.observed import SATISFIES, ObservedState, ObservedVM, ObserveQuery, Placements
from mikrom_reconcile.core.model.plan import Refusal, RunOverrides, VMChange, group_by
from mikrom_reconcile.core.placement.capacity import mem_limit_mib, room_of
from mikrom_reconcile.core.placement.desired_state import render
from mikrom_reconcile.core.placement.scheduler import Scheduler
from mikrom_reconcile.core.planning import context as shared
from mikrom_reconcile.core.planning.context import VERBS, Draft, Expected, PlanContext, PlanInput, PlanResult
from mikrom_reconcile.core.planning.drift import not_done, unattended, unfrozen
from mikrom_reconcile.core.planning.guards import protect, prune
from mikrom_reconcile.core.planning.leases import held_addresses, lease, seen_addresses
from mikrom_reconcile.core.planning.rollout import roll_out
from mikrom_reconcile.core.planning.rules import STANDS_IN_THE_WAY, DiffInput, judge
from mikrom_reconcile.core.planning.selection import select
from mikrom_reconcile.core.specs.load import VM_NAME, Specs, expand, renames
from mikrom_reconcile.core.specs.resolve import Resolver
from mikrom_reconcile.core.specs.warnings import spec_warnings

Names = tuple[str, ...]


def prepare(
    specs: Specs, placements: Placements, *, here: str, destroy: bool = False, dead: Names = (), living: Names = ()
) -> PlanInput:
    """What to ask the hosts of the inventory, or `here` without one, those on which VMs are remembered, and the other
    `living` ones: a host that left the inventory may come back with VMs that were made elsewhere since. `destroy` wants
    everything that the specs own gone, so every row is asked for. Raises SpecError.
    """
    unplaced, was = expand(specs), renames(specs)
    placements = shared.remembered_as_named_now(placements, was)
    alive = _without(placements, dead)
    scheduler = Scheduler(specs, here, located=alive.vms)
    known = ((vm, alive.vms.get(vm.name, "")) for vm in unplaced)
    staying = [(vm, at) for vm, at in known if at in scheduler.eligible_hosts(vm) and scheduler.claims_ports(vm, at)]
    rendered = {vm.name: vm for vm in render(specs, here, staying, alive.addresses)}
    expected = {} if destroy else shared.expectations(rendered.values())
    creating = len(staying) < len(unplaced) and not destroy
    asked = dict.fromkeys(() if destroy else living, False)  # names are free to others outside the inventory
    asked |= dict.fromkeys((*scheduler.hosts, *placements.vms.values()), creating)
    return PlanInput(
        specs=specs,
        here=here,
        placements=placements,
        dead=dead,
        living=living,
        destroy=destroy,
        unplaced=unplaced,
        rendered=rendered,
        expected=expected,
        queries=_queries(specs, expected, asked),
        warnings=tuple(f"{each.path}:{each.line}: {each.message}" for each in spec_warnings(specs, unplaced)),
        renames=was,
    )


def _queries(specs: Specs, expected: Mapping[str, Expected], asked: Mapping[str, bool]) -> dict[str, ObserveQuery]:
    """What to ask each host; `asked` says whether it is asked for VMs of other projects, too."""
    rollouts = {fleet.name: fleet.rollout for fleet in specs.fleets if fleet.rollout}
    healthy_s = {name: time_s for name, its in rollouts.items() if (time_s := seconds_of(its.min_healthy_time))}
    on_trial = {name: its for name, its in rollouts.items() if its.healthy_deadline or its.progress_deadline}
    limits = {name: its.healthy_deadline for name, its in on_trial.items()}
    trials = {name: seconds_of(limit) if limit else None for name, limit in limits.items()}
    about = ObserveQuery(project=specs.project, min_healthy_s=healthy_s, trials=trials)
    known = {host: expected[host].digests if host in expected else {} for host in asked}
    return {host: replace(about, known=known[host], others=others) for host, others in sorted(asked.items())}


def requery_all(given: PlanInput) -> PlanInput:
    """The same, asking for every row, and for what was before: of a VM that is on two hosts, only rows tell which is
    newer, and of what rollouts brought, only its hosts know to what it could go back.
    """
    queries = {host: replace(query, known={}, before=True) for host, query in given.queries.items()}
    return replace(given, expected={}, queries=queries)


def make_plan(
    given: PlanInput, observed: ObservedState, overrides: RunOverrides, tried: frozenset[str] = frozenset()
) -> PlanResult:
    """The plan that follows from the reports. Pure: the same arguments give the same bytes. Raises SpecError."""
    view = shared.refactored(shared.merge_reports(observed, given.specs.project, given.expected), given)
    dead = tuple(host for host in given.dead if host in view.unreachable)
    placements = _without(given.placements, dead)
    context = PlanContext(
        given=given, view=view, placements=placements, overrides=overrides, tried=tried, now=observed.taken_at
    )
    draft = Draft()
    for stage in (place, diff, protect, prune, select, await_room, roll_out, protect, lease):
        draft = stage(draft, context)
    draft = replace(draft, refusals=tuple(_refusals(draft)))
    booting = (it.observed for it in draft.changes if it.observed and it.observed.phase == "booting")
    polls = [min((seconds_of(check.interval) for check in row.spec.checks.values()), default=1.0) for row in booting]
    acted_on = {it.host for it in draft.changes if it.kind in VERBS}
    limits = {
        host: mem_limit_mib(given.specs.inventory, report) for host, report in view.reports.items() if host in acted_on
    }
    plan = shared.plan_of(
        draft,
        observed,
        project=given.specs.project,
        revision=given.specs.tree.revision,
        warnings=(*given.warnings, *shared.warnings_of(draft, context)),
        mem_limits_mib={host: limit for host, limit in limits.items() if limit is not None},
    )
    return PlanResult(
        plan=plan,
        placements=_to_remember(draft, context),
        highest_token=view.highest_token,
        unmatched=draft.unmatched,
        ambiguous=draft.ambiguous or not view.up_to_date.isdisjoint(view.own),  # which is newer, only rows can tell
        retry_after_s=min([*filter(None, (draft.retry_after_s,)), *polls], default=None),
    )


def _without(placements: Placements, dead: tuple[str, ...]) -> Placements:
    if not dead:
        return placements
    vms = {name: host for name, host in placements.vms.items() if host not in dead}
    leases = {name: found for name, found in placements.addresses.items() if name in vms}
    return replace(placements, vms=vms, addresses=leases)


def place(draft: Draft, context: PlanContext) -> Draft:
    """All that the specs want, each VM on its host: where it was found, or the one that the scheduler chooses."""
    given, specs = context.given, context.given.specs
    if given.destroy:
        return draft
    located = context.view.locations(context.placements)
    leases = context.placements.addresses | (seen_addresses(context.view) if specs.networks else {})
    as_remembered = located == given.placements.vms and leases == given.placements.addresses
    if as_remembered and len(given.rendered) == len(given.unplaced) and not context.view.unreachable:
        return replace(draft, desired=tuple(given.rendered.values()))
    placing = _scheduler(context, located, going={}).place(given.unplaced, Resolver(specs).need)
    placed = zip(given.unplaced, placing.hosts, strict=True)
    return replace(draft, desired=render(specs, given.here, placed, leases, given.rendered), placing=placing)


def await_room(draft: Draft, context: PlanContext) -> Draft:
    """VMs for which no host has room wait, if what goes by this very plan makes it."""
    leaving = (change.observed for change in draft.changes if change.kind in {"delete", "move"} and change.observed)
    going = group_by(leaving, lambda row: row.host)
    lacking = {change.name for change in draft.changes if change.rule == "unplaceable"}
    if not going or not lacking:
        return draft
    scheduler = _scheduler(context, context.view.locations(context.placements), going)
    placing = scheduler.place(context.given.unplaced, Resolver(context.given.specs).need)
    pairs = zip(context.given.unplaced, placing.hosts, strict=True)
    found = {vm.name: host for vm, host in pairs if vm.name in lacking}
    changes = []
    for change in draft.changes:
        if change.desired and (host := found.get(change.name)):
            why, desired = f"waits for the room that is made on {host}", replace(change.desired, host=host)
            changes.append(replace(change, kind="wait", host=host, reasons=(why,), desired=desired))
        else:
            changes.append(change)
    return replace(draft, changes=changes)


def _scheduler(context: PlanContext, located: Mapping[str, str], going: Mapping[str, list[ObservedVM]]) -> Scheduler:
    """The hosts as they were found, once those of their VMs are gone that are `going`."""
    view, inventory = context.view, context.given.specs.inventory
    drives = {name: sorted(rows[0].spec.drives) for name, rows in view.own.items() if rows[0].spec.drives}
    return Scheduler(
        context.given.specs,
        context.given.here,
        located=located,
        unreachable=view.unreachable,
        previous_hosts=context.placements.vms,
        rooms={host: room_of(inventory, report, going.get(host, ())) for host, report in view.reports.items()},
        pinned={name: f"its drives ({', '.join(its)}) do not travel" for name, its in drives.items()},
    )


def diff(draft: Draft, context: PlanContext) -> Draft:
    """Every change, sorted by name and host, and how many VMs of each host are as they should be."""
    changes: list[VMChange] = []
    unchanged: Counter[str] = Counter()
    for case in (*_wanted(draft, context, unchanged), *_unwanted(draft, context)):
        verdict = judge(case)
        if isinstance(verdict, VMChange):
            changes.append(unfrozen(case, unattended(case, verdict, context), context))
        else:
            unchanged[case.host] += 1
    changes.sort(key=lambda change: (change.name, change.host))
    told = (*draft.refusals, *not_done(changes))
    return replace(draft, changes=changes, unchanged=dict(sorted(unchanged.items())), refusals=told)


def _wanted(draft: Draft, context: PlanContext, up_to_date: Counter[str]) -> Iterator[DiffInput]:
    """The wanted VMs that rules have to decide about; those that are proven to be as wanted are only counted."""
    view, removed, placing = context.view, context.removed_hosts, draft.placing
    for vm in draft.desired:
        rows = () if vm.host in view.unreachable else view.own.get(vm.name, ())  # an older copy tells nothing of it
        as_digest = len(rows) == 1 and (rows[0].host, rows[0].phase, rows[0].drift) == (vm.host, vm.state, ())
        as_ours = as_digest and rows[0].name == vm.name and not rows[0].unmanaged
        proven = vm.name in view.up_to_date or (as_ours and rows[0].spec_digest == vm.spec_digest)
        if proven and vm.name not in placing.rejections and vm.host not in removed:
            up_to_date[vm.host] += 1
            continue
        keeper = rows[0] if rows else None
        yield DiffInput(
            desired=effective(vm, keeper) if keeper else vm,
            observed=keeper,
            name_conflict=view.others.get(vm.name),
            host_unreachable=view.unreachable.get(vm.host, ""),
            possible_on=() if rows else context.possible_on,
            eviction_reason=placing.eviction_reasons.get(vm.name, ""),
            rejections=placing.rejections.get(vm.name, ()),
            host_removed=keeper is not None and keeper.host in removed,
            retry=context.overrides.retry,
        )


def _unwanted(draft: Draft, context: PlanContext) -> Iterator[DiffInput]:
    own, left = context.view.own, context.removed_hosts
    wanted = {vm.name for vm in draft.desired} if own else set()
    moved = {} if context.given.destroy else {was: name for name, was in context.given.renames.items()}
    for name, rows in own.items():
        kept_on = rows[0].host if name in wanted else ""
        proven = rows[0].host not in left and rows[0].phase in SATISFIES[rows[0].state]
        for row in rows:
            removed = context.removal_of(row)
            if row.host != kept_on and (kept_on or removed is not None or context.in_scope(row.fleet)):
                yield DiffInput(
                    desired=None,
                    observed=row,
                    duplicate_on=kept_on,
                    proven=proven,
                    host_removed=row.host in left,
                    destroy=context.given.destroy,
                    removed=None if kept_on else removed,
                    moved_to="" if kept_on else moved.get(name, ""),
                )


def effective(desired: DesiredVM, observed: ObservedVM) -> DesiredVM:
    """What to bring this VM to: protection that the spec does not mention, and ignored fields, stay as applied."""
    policy, spec = desired.policy, desired.spec
    if policy.prevent_destroy is None and observed.policy.prevent_destroy:
        policy = replace(policy, prevent_destroy=True)
    if desired.ignore_changes:
        spec = keep_applied(spec, desired.ignore_changes, observed.spec)
    if policy is desired.policy and spec is desired.spec:
        return desired
    return replace(desired, policy=policy, spec=spec)


def _refusals(draft: Draft) -> Iterator[Refusal]:
    """Those of the stages that concern what is left, and one for each change that somebody has to make way for."""
    concerned = {(change.fleet, name) for change in draft.changes for name in (change.name, "")}
    for refusal in draft.refusals:
        if (refusal.fleet, refusal.vm) in concerned:
            yield refusal
    for change in draft.changes:
        if change.kind == "blocked" and change.rule in STANDS_IN_THE_WAY:
            yield Refusal(fleet=change.fleet, vm=change.name, rule=change.rule, message="; ".join(change.reasons))


def _to_remember(draft: Draft, context: PlanContext) -> Placements:
    """Where everything is, or is made now; what was remembered on unreachable hosts stays remembered. A VM that is to
    move is remembered where it still is, one whose name is taken where that was seen: if that host becomes unreachable,
    it must not be made elsewhere. One that may not be made yet is not, so that the next run asks who has its name.
    """
    given, view = context.given, context.view
    made = [change for change in draft.changes if change.kind in {"create", "import"}]
    vms = view.locations(given.placements) | {change.name: change.host for change in made}
    if view.others:
        missing = {vm.name for vm in draft.desired} - vms.keys()
        vms |= {name: row.host for name, row in view.others.items() if name in missing}
    answered = given.queries.keys() - view.unreachable.keys()
    leased = {it.name: it.desired.addresses for it in draft.changes if it.desired and it.kind in VERBS}
    leases = held_addresses(draft, context) | leased if context.given.specs.networks else {}
    return Placements(
        vms={name: vms[name] for name in sorted(vms)},
        covers=tuple(sorted({*given.placements.covers, *answered})),
        addresses={name: leases[name] for name in sorted(leases) if leases[name]},
        fleets=_odd_fleets(draft, context, vms),
    )


def _odd_fleets(draft: Draft, context: PlanContext, vms: Mapping[str, str]) -> dict[str, str]:
    """The fleets of VMs whose names do not say them; most fleets name their VMs so that they do."""
    view, remembered = context.view, context.given.placements
    odd = {fleet.name for fleet in context.given.specs.fleets if fleet.replicas is None or fleet.vm_name != VM_NAME}
    fleets = {name: fleet for name, fleet in remembered.fleets.items() if vms.get(name) in view.unreachable}
    fleets |= {vm.name: vm.fleet for vm in (draft.desired if odd else ()) if vm.fleet in odd and vm.name in vms}
    fleets |= {name: rows[0].fleet for name, rows in view.own.items()}
    return {name: fleets[name] for name in sorted(fleets) if name.rpartition("-")[0] != fleets[name]}
