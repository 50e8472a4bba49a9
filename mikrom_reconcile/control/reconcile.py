"""One run: read, observe, plan, act, observe again. Level-triggered: what it does follows from what it sees now."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import msgspec

from mikrom_reconcile.control.ports import Clock, Hosts, Lease, RunStore
from mikrom_reconcile.core.desired import checked
from mikrom_reconcile.core.digests import digest_of
from mikrom_reconcile.core.errors import BusyError, SetupError, UsageError
from mikrom_reconcile.core.guards import Limits
from mikrom_reconcile.core.known_files import NO_CACHE, Cache
from mikrom_reconcile.core.model.observed import HostView, ObservedState, ObserveQuery
from mikrom_reconcile.core.model.plan import Action, Expect, Plan, VMChange
from mikrom_reconcile.core.model.run import BEAT, ActionOutcome, Order, RunReport, RunRequest, UnfinishedRun
from mikrom_reconcile.core.model.specs import SourceState
from mikrom_reconcile.core.one_off import decide_by_name
from mikrom_reconcile.core.plan import LEFT_OUT, Decision, Question, decide, expect_of, question, thorough
from mikrom_reconcile.core.selection import Selection
from mikrom_reconcile.core.specs import Specs, hosts_of
from mikrom_reconcile.core.standstill import Standstill, key_of, standstill

OBSERVE_DEADLINE_S = 10.0
"""A host that has not reported by then counts as unreachable for this look; reports take milliseconds."""

LEASE_TTL_S = 15.0
"""How long a dead run keeps others waiting."""

LEASE_RETRY_S = 0.5


class Reconciler:
    """The Engine that plans and applies in this process. `here` is the host of specs without an Inventory.

    `alone` says that no other host can be reached from here.
    """

    def __init__(
        self,
        *,
        here: str,
        hosts: Hosts,
        store: RunStore,
        clock: Clock,
        schemas: Mapping[str, str],
        cache: Cache = NO_CACHE,
        alone: bool = False,
    ) -> None:
        self.hosts = hosts
        self.store = store
        self._here = here
        self._clock = clock
        self._schemas = schemas
        self._cache = cache
        self._alone = alone

    def source(self) -> SourceState | None:
        """None: what is scheduled, and told of, is a matter of control workers."""
        return None

    def unfinished(self) -> tuple[UnfinishedRun, ...]:
        """None: a run in this process is told by this process."""
        return ()

    def hand_over(self, request: RunRequest, plan: Plan) -> None:
        """Refused: this process is the one that carries it out."""
        del request, plan
        raise UsageError("--no-wait needs somebody who goes on: set MIKROM_BROKER_URL, or start `mikrom up`")

    def plan(self, request: RunRequest) -> Plan:
        """What the request would change; changes nothing. Raises UsageError for names that mean nothing here."""
        if request.verb is not None:
            return self._look_by_name(request).plan
        key = key_of(request, self._schemas, self._here)
        earlier = self._earlier(key)
        if earlier is not None:
            return earlier
        specs = self._specs(request)
        unknown = sorted({*request.without_hosts} - {*hosts_of(specs, self._here)})
        if unknown:
            raise UsageError(f"--without-host: the inventory has no host {', '.join(unknown)}")
        asked, decision = self._answered(request, specs)
        if decision.unmatched:
            raise UsageError(f"--limit: {decision.unmatched!r} matches no VM, host, group or fleet")
        alive = sorted({*request.assume_dead} - {*decision.plan.unreachable})
        if alive:
            raise UsageError(f"--assume-dead: {', '.join(alive)} answers, or is no host of this project")
        if (still := standstill(asked, decision.plan)) is not None:
            self._cache.put(key, msgspec.msgpack.encode(still))
        return decision.plan

    def _earlier(self, key: str) -> Plan | None:
        """The plan of an earlier run that found nothing to do, if nothing has moved since."""
        content = self._cache.get(key)
        if content is None:
            return None
        try:
            found = msgspec.msgpack.decode(content, type=Standstill)
        except msgspec.MsgspecError:
            return None
        if digest_of(self.store.placements(found.plan.project)) != found.placements:
            return None
        observed = self._observe(found.queries, ())
        return msgspec.structs.replace(found.plan, taken_at=observed.taken_at) if found.holds(observed) else None

    def apply(self, request: RunRequest, plan: Plan | None, *, progress: Callable[[ActionOutcome], None]) -> RunReport:
        """Carry out `plan`, or with None whatever is found, in passes until nothing is left that may be done."""
        project, look = self._project(request)
        started_at = self._clock.now()
        deadline = Deadline(self._clock, request.timeout_s)
        lease = self._lease(project, request, deadline, at_least=1)
        try:
            decision = look(())
            if decision.highest_token >= lease.token:  # the store was lost; hosts remember higher tokens
                lease.release()
                lease = self._lease(project, request, deadline, at_least=decision.highest_token + 1)
            approved = plan or decision.plan
            outcomes = told(moved(approved, decision.plan), progress)
            while True:
                if request.verb is None and lease.held():
                    self.store.remember(project, decision.placements)
                actions = due(approved, decision.plan, outcomes)
                ended = deadline.passed() or not lease.held()
                if ended or not (actions or self._waits(request, approved, decision, deadline)):
                    break
                for outcome in self._execute(request, actions, lease, deadline):
                    outcomes.append(outcome)
                    progress(outcome)
                    if not lease.held():  # whoever has it now decides; leaving the loop sends nothing more
                        break
                decision = look(outcomes)
        finally:
            lease.release()
        report = RunReport(
            run_id=request.run_id,
            plan=approved,
            outcomes=tuple(outcomes),
            remaining=decision.plan,
            late=deadline.passed() and (bool(decision.plan.actions) or decision.again_s is not None),
            started_at=started_at,
            finished_at=self._clock.now(),
            origin=request.origin,
            source_problem=request.source_problem,
        )
        if request.origin != BEAT or outcomes or approved.changes:  # ticks that find nothing would bury the others
            self.store.save(report)
        return report

    def _waits(self, request: RunRequest, approved: Plan, decision: Decision, deadline: Deadline) -> bool:
        """Sleep until VMs may be healthy for which what was approved waits. False for none; Beat comes again anyway."""
        waiting = waited(approved) & waited(decision.plan)
        if decision.again_s is None or request.origin == BEAT or not waiting:
            return False
        self._clock.sleep(min(decision.again_s, deadline.left_s()))
        return True

    def _execute(
        self, request: RunRequest, actions: list[Action], lease: Lease, deadline: Deadline
    ) -> Iterator[ActionOutcome]:
        scheduled = request.origin == BEAT
        orders = (
            Order(run_id=request.run_id, token=lease.token, action=action, scheduled=scheduled)
            for action in actions
            if lease.held()
        )
        return self.hosts.execute(orders, forks=request.forks, deadline_s=deadline.left_s())

    def _project(self, request: RunRequest) -> tuple[str, Callable[[Iterable[ActionOutcome]], Decision]]:
        """The project that a request is about, and how to look at it, given what was done so far."""
        if request.without_hosts:
            raise UsageError("--without-host only asks what would be: such a plan cannot be carried out")
        if request.verb is not None:
            project = self._look_by_name(request).plan.project
            return project, lambda outcomes: self._look_by_name(request, outcomes, project)
        specs = self._specs(request)
        return specs.project, lambda outcomes: self._look(request, specs, outcomes)

    def _look_by_name(self, request: RunRequest, outcomes: Iterable[ActionOutcome] = (), project: str = "") -> Decision:
        """Observe every host that answers, and plan what was asked for by name."""
        assert request.verb is not None, "asked only for those"  # noqa: S101
        queries = {host: ObserveQuery() for host in self.hosts.names()}
        acted_on = frozenset(outcome.vm for outcome in outcomes)
        return decide_by_name(request.verb, request.names, self._observe(queries, ()), acted_on, project)

    def _specs(self, request: RunRequest) -> Specs:
        specs = checked(request.tree, self._schemas, here=self._here, extra_vars=request.extra_vars, cache=self._cache)
        others = sorted({*hosts_of(specs, self._here)} - {self._here})
        if self._alone and others:
            raise SetupError(
                f"the specs name {', '.join(others)}, and without a broker only {self._here} can be reached:"
                " set MIKROM_BROKER_URL, or start `mikrom up`"
            )
        return specs

    def _look(self, request: RunRequest, specs: Specs, outcomes: Iterable[ActionOutcome]) -> Decision:
        """Observe every host and plan from what they report."""
        return self._answered(request, specs, frozenset(outcome.vm for outcome in outcomes))[1]

    def _answered(
        self, request: RunRequest, specs: Specs, tried: frozenset[str] = frozenset()
    ) -> tuple[Question, Decision]:
        placements = self.store.placements(specs.project)
        dead = request.assume_dead + request.without_hosts
        asked = question(specs, placements, here=self._here, destroy=request.destroy, dead=dead)
        decision = self._decide(request, asked, tried)
        if decision.doubtful:
            asked = thorough(asked, decision.doubtful)
            decision = self._decide(request, asked, tried)
        return asked, decision

    def _decide(self, request: RunRequest, asked: Question, tried: frozenset[str]) -> Decision:
        limits = Limits(
            prune_max=request.prune_max,
            confirmed=request.confirmed,
            all_removals=request.destroy,
            retry=request.retry,
            tried=tried,
        )
        selection = Selection(limit=request.limit, tags=request.tags, skip_tags=request.skip_tags)
        return decide(asked, self._observe(asked.queries, request.without_hosts), limits, selection)

    def _observe(self, queries: Mapping[str, ObserveQuery], without: tuple[str, ...]) -> ObservedState:
        asked = {host: query for host, query in queries.items() if host not in without}
        views = {view.host: view for view in self.hosts.observe(asked, deadline_s=OBSERVE_DEADLINE_S)}
        views |= {host: HostView(host=host, error=LEFT_OUT) for host in without}
        silent = HostView(host="", error="gave no answer")
        hosts = tuple(views.get(host) or msgspec.structs.replace(silent, host=host) for host in sorted(queries))
        return ObservedState(taken_at=self._clock.now(), hosts=hosts)

    def _lease(self, project: str, request: RunRequest, deadline: Deadline, *, at_least: int) -> Lease:
        """Wait for the project's lease until the run's deadline. Raises BusyError naming the holder."""
        while True:
            try:
                return self.store.lease(project, holder=request.origin, ttl_s=LEASE_TTL_S, at_least=at_least)
            except BusyError:
                if deadline.left_s() < LEASE_RETRY_S:
                    raise
                self._clock.sleep(LEASE_RETRY_S)


def told(outcomes: Iterable[ActionOutcome], progress: Callable[[ActionOutcome], None]) -> list[ActionOutcome]:
    """The outcomes, of which `progress` has heard."""
    heard = list(outcomes)
    for outcome in heard:
        progress(outcome)
    return heard


def moved(approved: Plan, now: Plan) -> Iterator[ActionOutcome]:
    """A `stale` outcome for each approved action whose VM needs something else by now.

    A VM that needs nothing any more is no matter: somebody else did it.
    """
    still = {action.id for action in now.actions}
    changes = {(change.name, change.host): change for change in now.changes}
    for action in approved.actions:
        change = changes.get((action.vm, action.host))
        if action.id not in still and change is not None:
            yield ActionOutcome(
                action_id=action.id,
                vm=action.vm,
                host=action.host,
                verb=action.verb,
                result="stale",
                started_at=now.taken_at,
                finished_at=now.taken_at,
                error=f"the world has moved since the plan; now: {change.kind}: {'; '.join(change.reasons)}",
            )


def due(approved: Plan, now: Plan, outcomes: Iterable[ActionOutcome]) -> list[Action]:
    """The actions of `now` that were approved and not tried yet: those of the plan, what waited in it and was not
    changed by anybody since, and the second half of its moves.

    Each VM is acted on once per run, so that one that keeps falling over cannot keep a run going.
    """
    tried = {(outcome.vm, outcome.host) for outcome in outcomes}
    approved_ids = {action.id for action in approved.actions}
    waiting = waited(approved)
    moves = {change.name for change in approved.changes if change.kind == "move" or _waits_to_move(change)}
    return [
        action
        for action in now.actions
        if (action.vm, action.host) not in tried
        and (
            action.id in approved_ids
            or (action.vm, action.expect) in waiting
            or (action.verb == "create" and action.vm in moves)
        )
    ]


def waited(plan: Plan) -> set[tuple[str, Expect]]:
    """The VMs that wait in a plan, as it found them."""
    return {(change.name, expect_of(change.observed)) for change in plan.changes if change.kind == "wait"}


def _waits_to_move(change: VMChange) -> bool:
    return change.kind == "wait" and change.wanted == "move"


class Deadline:
    """The end of a run, by a clock that does not jump."""

    def __init__(self, clock: Clock, timeout_s: float) -> None:
        self._clock = clock
        self._at = clock.monotonic() + timeout_s

    def left_s(self) -> float:
        """Seconds left, 0 once it has passed."""
        return max(0.0, self._at - self._clock.monotonic())

    def passed(self) -> bool:
        """Whether no time is left."""
        return self.left_s() == 0
