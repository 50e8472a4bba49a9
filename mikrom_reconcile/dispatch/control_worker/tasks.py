"""Tasks of a control worker: plan, apply, scheduled runs and specs, actions by task. Errors go back as values."""

import logging
import secrets
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec
from celery import current_task
from celery.beat import Scheduler
from msgspec.structs import replace
from redis import Redis, RedisError

from mikrom_reconcile import traces
from mikrom_reconcile.control.ports import Engine
from mikrom_reconcile.control.snapshot import Snapshots
from mikrom_reconcile.control.sources.last_good import Good, LastGood
from mikrom_reconcile.core.model.documents import SourceState, SourceTree
from mikrom_reconcile.core.model.encoding import texts_digest
from mikrom_reconcile.core.model.errors import BusyError, HeldError, MikromError, SourceError, UsageError
from mikrom_reconcile.core.model.plan import BEAT, ActionOutcome, Plan, RunReport, RunRequest, UnfinishedRun, Verb
from mikrom_reconcile.dispatch import celery_patches
from mikrom_reconcile.dispatch.app import FleetApp
from mikrom_reconcile.dispatch.control_worker.metrics import NOTE, Metrics
from mikrom_reconcile.dispatch.control_worker.webhooks import Webhooks
from mikrom_reconcile.dispatch.transport import rpc, shared_state
from mikrom_reconcile.dispatch.transport.broker import Keys
from mikrom_reconcile.output.pages import status_html
from mikrom_reconcile.output.run_result import LATE, USAGE, result_of
from mikrom_reconcile.settings import Settings
from mikrom_reconcile.times_and_sizes import BROKER, RUNS

T = TypeVar("T")

_log = logging.getLogger(__name__)

Say = Callable[[str, Any], None]


class OncePerInterval(Scheduler):  # type: ignore[misc]  # Celery has no types
    """Sends an entry only when no other Beat has sent it in this interval."""

    app: FleetApp

    def apply_async(self, entry: Any, producer: Any = None, advance: bool = True, **options: Any) -> Any:  # noqa: FBT001, FBT002 - Celery's signature
        """Send the entry's task with the id of this tick, or nothing."""
        tick = secrets.token_hex(8)
        # until the entry is due again, seconds and cron lines alike
        interval_s = entry.schedule.remaining_estimate(entry.schedule.now()).total_seconds()
        lives_ms = int(1000 * max(interval_s - RUNS.beat_margin_s, interval_s / 2))
        if not self.app.redis.set(self.app.keys.tick(entry.name), tick, nx=True, px=lives_ms):
            _log.debug("%s has had its tick in this interval", entry.name)
            return None
        if entry.name == "reconcile":  # from then on it is who has the ticks that says when it is due again
            self.app.redis.set(self.app.keys.next_run, time.time() + interval_s, nx=True)
        entry.kwargs = {"tick": tick}
        return super().apply_async(entry, producer=producer, advance=advance, **options)


@dataclass
class ControlTasks:
    """The tasks of a control worker over an engine and the source of scheduled runs."""

    redis: Redis
    keys: Keys
    settings: Settings
    replies: rpc.ReplySender
    engine: Callable[[], Engine]
    source: LastGood
    worker_id: Callable[[], rpc.WorkerId]
    snapshots: Snapshots
    metrics: Metrics | None = None
    webhooks: Webhooks | None = None

    def plan(self, *, call: str, run: str) -> None:
        """Plan the stored request of a run and keep the plan for its apply."""
        with self._answering(call, run) as say:
            with traces.span("run", run=run):
                plan = self.engine().plan(self._request(run))
            self.redis.set(self.keys.plan(run), rpc.pack(plan), ex=BROKER.result_ttl_s)
            say("planned", plan.id)
            _log.info("plan %s: %d actions", plan.id, len(plan.actions), extra={"run": run})

    def apply(self, *, call: str | None, run: str, plan: str | None) -> None:
        """Carry out the plan of a run, by its id; None approves whatever is found. No `call`: nobody waits for it."""
        with self._answering(call, run) as say:
            request, approved = self._request(run), self._plan(run, plan)

            def progress(outcome: ActionOutcome) -> None:
                say("outcome", outcome)
                celery_patches.refuse_when_stopping()
                if call is not None and not self.replies.is_awaited(call):
                    raise MikromError("the caller has gone: nothing more is sent")

            report = self._carry_out(request, approved, progress, awaited=call is not None)
            say("report", report)
            _log.info("apply: %s", summary(report), extra={"run": run})

    def reconcile(self, *, tick: str | None = None) -> dict[str, Any]:
        """Beat's run: read the specs, plan, apply what is allowed unattended. A tick that is late does nothing."""
        return _unattended(BEAT, lambda run: self._reconcile(run, tick))

    def by_hand(self, verb: Verb, vm: str) -> dict[str, Any]:
        """A VM task that a person called: one action on the VMs of this name; create and update follow the specs."""
        return _unattended("task", lambda run: self._act(run, verb, vm))

    def sync_source(self, *, accept: str = "") -> dict[str, Any]:
        """Look at MIKROM_SPECS now, as scheduled runs do; `accept` is a forced commit that a person wants used."""
        try:
            tree, problem = self._specs_now(accept)
        except SourceError as error:
            return {"revision": "", "problem": str(error)}
        return {"revision": tree.revision, "problem": problem}

    def cleanup(self, *, tick: str | None = None) -> dict[str, Any]:
        """Remove the queues of hosts not seen for a day, and what was fetched from them; all else expires by itself."""
        del tick
        redis, keys = self.redis, self.keys
        waiting = {name.partition("\x06")[0] for name in shared_state.names_of(redis, keys.host_queue(""))}
        fetched = {name.partition(":")[0] for name in shared_state.names_of(redis, keys.unacked("host:"))}
        gone = sorted((waiting | fetched) - {*shared_state.known(redis, keys)})
        for host in gone:
            queue, unacked = keys.host_queue(host), keys.unacked(f"host:{host}")
            bindings = [f"_kombu.{kind}.{queue}" for kind in ("binding", "binding_permanent")]
            redis.delete(*keys.lists(queue), *bindings, unacked, f"{unacked}:index", f"{unacked}:mutex")
            _log.info("removed the queue of a host that was not seen for a day", extra={"host": host})
        return {"hosts": gone}

    def page(self) -> str:
        """The status of all there is, with what the next scheduled run would do, as a page."""
        good = self._shared()
        seen = self.snapshots.take(good.tree if good else None, "No good revision of the specs is known so far.")
        source = shared_state.source_state(self.redis, self.keys)
        unfinished = shared_state.unfinished_runs(self.redis, self.keys)
        return status_html(replace(seen, source=source, unfinished=unfinished), NOTE)

    def _carry_out(
        self, request: RunRequest, plan: Plan | None, tell: shared_state.Progress, *, awaited: bool = True
    ) -> RunReport:
        run, worker = shared_state.waiting_run(request, plan), self.worker_id()
        with shared_state.shown(self.redis, self.keys, worker, run, tell, awaited=awaited) as heard:
            began_s, report = time.monotonic(), None
            try:
                with traces.span("run", run=request.run_id, origin=request.origin):
                    report = self.engine().apply(request, plan, progress=heard)
            finally:
                if self.metrics and not isinstance(sys.exception(), HeldError):  # then there was no run
                    self.metrics.ran(request, report, time.monotonic() - began_s)
        return report

    def _reconcile(self, run: str, tick: str | None) -> tuple[str, int]:
        key = self.keys.tick("reconcile")
        if tick is not None:
            if self.redis.get(key) != tick.encode():
                return "nothing: this tick is late, a newer one is due", 0
            left_ms: Any = self.redis.pttl(key)
            self.redis.set(self.keys.next_run, time.time() + left_ms / 1000)
        try:
            # one at a time: a run that takes longer than the interval swallows the ticks that it misses
            turn = self.engine().store.lease("beat:reconcile", holder=run, ttl_s=BROKER.heartbeat_ttl_s, at_least=0)
        except BusyError:
            return "nothing: the run of an earlier tick still goes on", 0
        try:
            return self._apply_alone(run, BEAT, drift_mode=self.settings.reconcile_mode)
        except HeldError as error:
            return f"nothing: {error}", 0
        finally:
            turn.release()

    def _act(self, run: str, verb: Verb, vm: str) -> tuple[str, int]:
        if self.settings.worker_role != "control" or not vm:
            queue = self.keys.queue
            raise UsageError(f"mikrom.{verb}_vm takes the name of a VM, and goes to the control queue {queue}")
        origin = f"mikrom.{verb}_vm"
        if verb in {"create", "update"}:
            return self._apply_alone(run, origin, limit=vm)
        nothing = SourceTree(revision="", files=())
        return self._apply_alone(run, origin, tree=nothing, verb=verb, names=(vm,))

    def _apply_alone(self, run: str, origin: str, **asked: Any) -> tuple[str, int]:
        """Apply what may be done unattended, of the specs that are good now unless a `tree` is given."""
        if "tree" not in asked:
            asked["tree"], asked["source_problem"] = self._specs_now()
        forks, timeout_s = self.settings.forks, self.settings.timeout_s
        request = RunRequest(run_id=run, origin=origin, forks=forks, timeout_s=timeout_s, **asked)
        report = self._carry_out(request, None, lambda _: celery_patches.refuse_when_stopping())
        if origin == BEAT and self.webhooks:
            self.webhooks.tell(report, request.tree.commit)
        return summary(report), result_of(report).exit_code

    def _specs_now(self, accept: str = "") -> tuple[SourceTree, str]:
        """The specs to use, and why they are the last good ones, or "". Raises SourceError where none are known."""
        before = shared_state.source_state(self.redis, self.keys)
        highest = before.number if before else 0
        is_behind = before and before.name == self.settings.specs and highest > self.source.number()
        if is_behind and (other := self._shared()) is not None:  # what others have followed already would look forced
            self.source.take(other)
        good, problem, broken = self.source.poll(highest, accept=accept)
        if problem and (other := self._shared()) is not None:
            good = self.source.take(other)
        self._share(before, good, problem, broken)
        if good is None:
            raise SourceError(f"{problem}; no good revision of it is known, so nothing is planned")
        if problem:
            _log.warning("the source is broken, revision %s is used: %s", good.tree.revision, problem)
        return good.tree, problem

    def _shared(self) -> Good | None:
        with suppress(MikromError):  # of another release
            return self._kept(self.keys.good_specs, Good)
        return None

    def _share(self, before: SourceState | None, good: Good | None, problem: str, broken: str) -> None:
        """Tell the others. A Redis that is away ends the run soon enough, and says so itself."""
        now, highest = datetime.now(UTC), before.number if before else 0
        state = SourceState(
            name=self.settings.specs or "",
            revision=good.tree.revision if good else "",
            number=max(highest, good.number if good else 0),
            digest=texts_digest(good.tree) if good else "",
            since=good.since if good else None,
            good_at=now if not problem else before.good_at if before else None,
            looked_at=now,
            problem=problem,
            broken=broken,
        )
        try:
            if good and (good.number > highest or not self.redis.exists(self.keys.good_specs)):
                self.redis.set(self.keys.good_specs, rpc.pack(good))
            self.redis.set(self.keys.source, msgspec.json.encode(state))
        except (RedisError, MikromError) as error:
            _log.warning("the state of the source could not be told: %s", error)

    @contextmanager
    def _answering(self, call: str | None, run: str) -> Iterator[Say]:
        """A way to answer the call. What goes wrong inside is told to its caller, or to whoever looks for the run."""

        def say(kind: str, value: Any) -> None:
            if call is not None:
                self.replies.tell(call, kind, rpc.pack(value))

        if call is not None and not self.replies.is_awaited(call):
            raise MikromError("nobody waits for this run any more")
        say("accepted", self.worker_id())
        try:
            yield say
        except Exception as error:  # noqa: BLE001 - every end is told; who else would tell it
            failure = _failed(error, call or run)
            say("error", failure)
            if call is None:
                request = self._kept(self.keys.request(run), RunRequest)
                origin, now = request.origin if request else "apply", datetime.now(UTC)
                ended = UnfinishedRun(run_id=run, origin=origin, since=now, state="failed", error=failure.message)
                shared_state.tell(self.redis, self.keys, ended)

    def _request(self, run: str) -> RunRequest:
        if (request := self._kept(self.keys.request(run), RunRequest)) is None:
            raise UsageError(f"the request of run {run} is not in Redis any more; plan again")
        return request

    def _plan(self, run: str, plan_id: str | None) -> Plan | None:
        plan = self._kept(self.keys.plan(run), Plan) if plan_id else None
        if plan_id and (plan is None or plan.id != plan_id):
            raise UsageError(f"plan {plan_id} is not in Redis any more; plan again")
        return plan

    def _kept(self, key: str, kind: type[T]) -> T | None:
        packed: Any = self.redis.get(key)
        return rpc.unpack(packed, kind) if packed else None


def _unattended(kind: str, carry_out: Callable[[str], tuple[str, int]]) -> dict[str, Any]:
    """What became of a run that nobody watches; `exit_code` is that of `mikrom apply`."""
    run = f"{kind}-{secrets.token_hex(6)}"
    try:
        done, exit_code = carry_out(run)
    except MikromError as error:
        done = f"nothing: {error}"
        exit_code = LATE if isinstance(error, BusyError) else USAGE if isinstance(error, UsageError) else 1
    level = logging.WARNING if exit_code else logging.INFO
    _log.log(level, "%s: %s", kind, done, extra={"run": run})
    return {"run": run, "done": done, "exit_code": exit_code}


def summary(report: RunReport) -> str:
    """One line about a run: what became of how many actions, and what is left."""
    counts = Counter(f"{outcome.verb} {outcome.result}" for outcome in report.outcomes)
    parts = [", ".join(f"{count} {what}" for what, count in sorted(counts.items())) or "nothing to do"]
    if left := report.remaining:
        parts += [f"{len(left.changes)} changes remain"] if left.changes else []
        parts += [f"{len(left.refusals)} refused"] if left.refusals else []
        parts += [f"unreachable: {', '.join(sorted(left.unreachable))}"] if left.unreachable else []
    parts += ["the deadline passed first"] if report.late else []
    source = f"the source is broken, {report.plan.revision} was used: {report.source_problem}"
    return "; ".join([*parts, source] if report.source_problem else parts)


def _failed(error: Exception, run: str) -> rpc.Failure:
    if isinstance(error, MikromError):
        _log.warning("ended: %s", error, extra={"run": run})
        return rpc.failure_of(error)
    _log.error("internal error", exc_info=error, extra={"run": run})
    where = f"in the control worker ({type(error).__name__}); its log has it under task {current_task.request.id}"
    return rpc.failure_of(MikromError(f"internal error {where}"))
