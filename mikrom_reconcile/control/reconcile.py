"""One run: read, observe, plan, act, observe again. Level-triggered: what it does follows from what it sees now."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from mikrom_reconcile import traces
from mikrom_reconcile.control import revisions
from mikrom_reconcile.control.policy import Policy
from mikrom_reconcile.control.ports import Engine, Hosts, Lease, RunStore
from mikrom_reconcile.control.run_log import RunLog
from mikrom_reconcile.core.model.errors import BusyError, SetupError, UsageError
from mikrom_reconcile.core.model.observed import HostView, ObservedState, ObserveQuery, Placements
from mikrom_reconcile.core.model.plan import BEAT, Action, ActionOutcome, Expect, Order, Plan, RunReport, RunRequest
from mikrom_reconcile.core.placement.desired_state import validate_specs
from mikrom_reconcile.core.planning import one_off, planner, selection
from mikrom_reconcile.core.planning.context import LEFT_OUT, PlanInput, PlanResult, expect_of
from mikrom_reconcile.core.planning.guards import with_refusals
from mikrom_reconcile.core.specs.load import Specs, hosts_of
from mikrom_reconcile.system.time_limits import Clock
from mikrom_reconcile.times_and_sizes import OBSERVING, RUNS


@dataclass(kw_only=True, eq=False, repr=False)
class Reconciler(Engine):
    """The Engine of this process, for specs of `here`; `alone`: no other host can be reached; `policy` judges plans."""

    hosts: Hosts
    store: RunStore
    here: str
    clock: Clock
    schemas: Mapping[str, str]
    alone: bool = False
    policy: Policy = field(default_factory=Policy)
    prepared: PlanInput | None = None  # for the run before, where the next is of the same specs and placements

    def plan(self, request: RunRequest) -> Plan:
        """What the request would change; changes nothing. Raises UsageError for names that mean nothing here."""
        if request.verb is not None:
            return self.policy.judged(self.policy.warned(self._by_name(request).plan, request))
        result = self._plan(request, self._specs(request))
        if result.unmatched:
            raise UsageError(result.unmatched)
        alive = sorted({*request.assume_dead} - {*result.plan.unreachable})
        if alive:
            raise UsageError(f"--assume-dead: {', '.join(alive) or repr('')} answers, or is no host of this project")
        return revisions.noted(self.store, request, self.policy.judged(self.policy.warned(result.plan, request)))

    def apply(self, request: RunRequest, plan: Plan | None, *, progress: Callable[[ActionOutcome], None]) -> RunReport:
        """Carry out `plan`, or with None whatever is found, in passes until nothing is left that may be done."""
        request, held = self.policy.approved(request, plan)
        project, plan_again = self._project(request, held)
        started_at, ends_at = self.clock.now(), self.clock.monotonic() + request.timeout_s
        lease = self._lease(project, request, ends_at, at_least=1)
        try:
            result = plan_again(())
            if plan is None and result.unmatched:
                raise UsageError(result.unmatched)
            if result.highest_token >= lease.token:  # the store was lost; hosts remember higher tokens
                lease.release()
                lease = self._lease(project, request, ends_at, at_least=result.highest_token + 1)
            # the plan of now: what was saved before, or comes from elsewhere, need not be what is carried out
            result, approved, refused = self._judged(result, plan and held(plan))
            self.hosts.give_up(set() if refused else {*request.assume_dead} & result.plan.unreachable.keys())
            with RunLog(self.store, self.clock, request, approved, started_at, progress) as log:
                for outcome in stale_outcomes(approved, result.plan):
                    log.heard(outcome)
                while not refused:
                    actions = runnable_actions(approved, result.plan, log.outcomes)
                    if request.verb is None and lease.held():
                        self.store.remember(project, remembered(result, actions, log.outcomes))
                    wait_s = 0.0 if actions else retry_after_s(request, approved, result, log.outcomes)
                    if self._left_s(ends_at) == 0 or not lease.held() or wait_s is None:
                        break
                    self.clock.sleep(min(wait_s, self._left_s(ends_at)))
                    self._dispatch(request, actions, result.plan, lease, self._left_s(ends_at), log)
                    result = plan_again(log.outcomes)
            is_over = not result.plan.actions and result.retry_after_s is None
            return log.ended(result.plan, late=not is_over and self._left_s(ends_at) == 0)
        finally:
            lease.release()

    def _judged(self, result: PlanResult, plan: Plan | None) -> tuple[PlanResult, Plan, bool]:
        """What was found, which plan is approved, and whether the policy refused it: then it is one without actions."""
        now = self.policy.judged(result.plan)
        if now is result.plan:
            return result, plan or now, False
        return msgspec.structs.replace(result, plan=now, retry_after_s=None), now, True

    def _dispatch(
        self, request: RunRequest, actions: list[Action], plan: Plan, lease: Lease, deadline_s: float, log: RunLog
    ) -> None:
        about: dict[str, Any] = {"run_id": request.run_id, "token": lease.token}
        about |= {"losses": request.losses, "approvals": request.approvals, "scheduled": request.origin == BEAT}
        changes = {(change.name, change.host): change for change in plan.changes}
        orders = (Order(action=action, **about) for action in log.sending(action for action in actions if lease.held()))
        with traces.span("dispatch", actions=len(actions)):
            for outcome in self.hosts.execute(orders, forks=request.forks, deadline_s=deadline_s):
                log.heard(outcome, changes.get((outcome.vm, outcome.host)))
                if not lease.held():  # its new holder decides; leaving the loop sends nothing more
                    break

    def _project(
        self, request: RunRequest, held: Callable[[Plan], Plan]
    ) -> tuple[str, Callable[[Iterable[ActionOutcome]], PlanResult]]:
        """The project of a request, and how to plan it again, given what was done so far."""
        if request.without_hosts:
            raise UsageError("--without-host only asks what would be: such a plan cannot be carried out")
        specs = self._specs(request) if request.verb is None else None
        project = specs.project if specs else self._by_name(request).plan.project

        def plan_again(outcomes: Iterable[ActionOutcome]) -> PlanResult:
            found = self._plan(request, specs, outcomes) if specs else self._by_name(request, outcomes, project)
            return msgspec.structs.replace(found, plan=held(found.plan))

        return project, plan_again

    def _plan(self, request: RunRequest, specs: Specs, outcomes: Iterable[ActionOutcome] = ()) -> PlanResult:
        tried = frozenset(outcome.vm for outcome in outcomes)
        with traces.span("plan"):
            given = msgspec.structs.replace(self._prepare(request, specs), freezes=revisions.freezes(self.store))
            given = planner.requery_all(given) if request.promote or request.abort or request.retry else given
            result = planner.make_plan(given, self._observe(given.queries, request.without_hosts), request, tried)
            if result.ambiguous:
                given = planner.requery_all(given)
                result = planner.make_plan(given, self._observe(given.queries, request.without_hosts), request, tried)
            return result

    def _prepare(self, request: RunRequest, specs: Specs) -> PlanInput:
        placements, living = self.store.placements(specs.project), self.hosts.names(unreachable=False)
        dead, destroy, last = request.assume_dead + request.without_hosts, request.destroy, self.prepared
        now = (placements, dead, living, destroy)
        if last and last.specs is specs and now == (last.placements, last.dead, last.living, last.destroy):
            return last
        given = planner.prepare(specs, placements, here=self.here, destroy=destroy, dead=dead, living=living)
        self.prepared = given
        return given

    def _by_name(self, request: RunRequest, outcomes: Iterable[ActionOutcome] = (), project: str = "") -> PlanResult:
        assert request.verb is not None, "asked only for those"  # noqa: S101
        queries = {host: ObserveQuery() for host in self.hosts.names()}
        acted_on, seen = frozenset(outcome.vm for outcome in outcomes), self._observe(queries, ())
        projects = {row.project for view in seen.hosts if view.report for row in view.report.vms} - {""}
        placements = {name: self.store.placements(name) for name in sorted(projects)}
        return one_off.decide_by_name(request.verb, request.names, seen, acted_on, project, placements)

    def _specs(self, request: RunRequest) -> Specs:
        """The specs of the request, those of the run before if they are the same. Raises SpecError and UsageError."""
        last, variables = self.prepared, repr(request.extra_vars)  # 1, 1.0 and true are equal in Python
        is_same = last is not None and repr(last.specs.extra_vars) == variables and last.specs.tree == request.tree
        specs = last.specs if last and is_same else self._read(request)
        hosts = hosts_of(specs, self.here)
        selection.refuse_unknown("--without-host", request.without_hosts, hosts, "the inventory has no host {}")
        return specs

    def _read(self, request: RunRequest) -> Specs:
        specs = validate_specs(request.tree, self.schemas, here=self.here, extra_vars=request.extra_vars)
        selection.refuse_unread(specs)
        others = sorted({*hosts_of(specs, self.here)} - {self.here})
        if self.alone and others:
            raise SetupError(
                f"the specs name {', '.join(others)}, and without a broker only {self.here} can be reached:"
                " set MIKROM_BROKER_URL, or start `mikrom up`"
            )
        return specs

    def _observe(self, queries: Mapping[str, ObserveQuery], without: tuple[str, ...]) -> ObservedState:
        asked = {host: query for host, query in queries.items() if host not in without}
        with traces.span("observe", hosts=len(asked)):
            views = {view.host: view for view in self.hosts.observe(asked, deadline_s=OBSERVING.deadline_s)}
        views |= {host: HostView(host=host, error=LEFT_OUT) for host in without}
        hosts = tuple(views.get(host) or HostView(host=host, error="gave no answer") for host in sorted(queries))
        return ObservedState(taken_at=self.clock.now(), hosts=hosts)

    def _lease(self, project: str, request: RunRequest, ends_at: float, *, at_least: int) -> Lease:
        while True:
            try:
                return self.store.lease(project, holder=request.origin, ttl_s=RUNS.lease_ttl_s, at_least=at_least)
            except BusyError:
                if self._left_s(ends_at) < RUNS.lease_retry_s:
                    raise
                self.clock.sleep(RUNS.lease_retry_s)

    def _left_s(self, ends_at: float) -> float:
        return max(0.0, ends_at - self.clock.monotonic())


def stale_outcomes(approved: Plan, now: Plan) -> Iterator[ActionOutcome]:
    """A `stale` outcome for each approved action whose VM needs something else by now, on any host, and for each action
    on a VM that waited and was changed. A VM that needs nothing any more has none: another run did it.
    """
    still = {action.id for action in now.actions}
    changes = {(change.name, change.host): change for change in now.changes}
    elsewhere = {change.name: change for change in now.changes if change.desired is not None}
    kept = {(change.name, change.host) for change in approved.changes if change.desired is not None}
    as_found = waiting(approved)
    waits = {(change.name, change.host) for change in approved.changes if change.kind == "wait"}
    begun = (a for a in now.actions if (a.vm, a.host) in waits and (a.vm, a.expect) not in as_found)
    for action in (*approved.actions, *begun):
        vm = (action.vm, action.host)
        change = changes.get(vm) or (elsewhere.get(action.vm) if vm in kept else None)
        if change is not None and (action.id not in still or vm in waits):
            needs = f"{change.kind} on {change.host}: {'; '.join(change.reasons)}"
            yield ActionOutcome(
                action_id=action.id,
                vm=action.vm,
                host=action.host,
                verb=action.verb,
                result="stale",
                started_at=now.taken_at,
                finished_at=now.taken_at,
                error=f"the world has moved since the plan; now: {needs}",
            )


def replay(approved: Plan, now: Plan) -> Plan:
    """The plan of now as an apply of `approved` would carry it out: what was not approved, as it is now, is blocked.
    The approved one itself if nothing has moved.
    """
    stale = {outcome.vm: outcome.error or "" for outcome in stale_outcomes(approved, now)}
    runnable = {(action.vm, action.host) for action in runnable_actions(approved, now, ())}
    why, as_found = {}, waiting(approved)
    for change in now.changes:
        still_waits = change.kind == "wait" and (change.name, expect_of(change.observed)) in as_found
        if change.kind != "blocked" and not still_waits and (change.name, change.host) not in runnable:
            new = f"needs {change.kind} since after the plan was made; run again"
            why[change.name, change.host] = stale.get(change.name) or new
    found = with_refusals(now, why, rule="stale")
    return approved if found.id == approved.id else found


def runnable_actions(approved: Plan, now: Plan, outcomes: Collection[ActionOutcome]) -> list[Action]:
    """The actions of `now` that were approved: those of the plan, what waited in it and was not changed since, and the
    second half of its moves, and what goes back of a rollout that it has to do with. Each VM is acted on once per run,
    and once more to go back: one that keeps falling over must not keep it going.
    """
    tried = Counter((outcome.vm, outcome.host) for outcome in outcomes)
    fleets = {outcome.fleet for outcome in outcomes}
    approved_ids, as_found = {action.id for action in approved.actions}, waiting(approved)
    moves = {c.name for c in approved.changes if c.kind == "move" or (c.kind == "wait" and c.wanted == "move")}

    def is_runnable(action: Action) -> bool:
        if action.desired and action.desired.goes_back and action.desired.fleet in fleets:
            return tried[action.vm, action.host] < 2
        second_half = action.verb == "create" and action.vm in moves
        is_approved = action.id in approved_ids or (action.vm, action.expect) in as_found or second_half
        return is_approved and not tried[action.vm, action.host]

    return list(filter(is_runnable, now.actions))


def retry_after_s(request: RunRequest, plan: Plan, now: PlanResult, outcomes: Iterable[ActionOutcome]) -> float | None:
    """How long to wait for VMs that approved ones wait for, or that this run brought up; None: it is over, also where
    the rest waits for a budget that opens after longer than a run may take.
    """
    acted_on = {(outcome.vm, outcome.host) for outcome in outcomes}
    changes = now.plan.changes
    is_booting = any(c.observed and c.observed.phase == "booting" and (c.name, c.host) in acted_on for c in changes)
    is_waiting = bool(waiting(plan) & waiting(now.plan))
    wait_s = now.retry_after_s if request.origin != BEAT and (is_waiting or is_booting) else None
    is_closed = all(change.held_by for change in changes if change.kind == "wait")
    return None if is_closed and wait_s is not None and wait_s > request.timeout_s else wait_s


def remembered(result: PlanResult, actions: Iterable[Action], outcomes: Iterable[ActionOutcome]) -> Placements:
    """The placements, but for VMs that this run does not try to make: if their host were lost, nobody could."""
    making = {(outcome.vm, outcome.host) for outcome in outcomes if outcome.result != "stale"}
    making |= {(action.vm, action.host) for action in actions}
    creates = (change for change in result.plan.changes if change.kind == "create")
    others = {change.name for change in creates if (change.name, change.host) not in making}
    vms = {name: host for name, host in result.placements.vms.items() if name not in others}
    return msgspec.structs.replace(result.placements, vms=vms)


def waiting(plan: Plan) -> set[tuple[str, Expect]]:
    """The VMs that wait in a plan, as it found them."""
    return {(change.name, expect_of(change.observed)) for change in plan.changes if change.kind == "wait"}
