"""Tasks of a control worker: plan, apply, Beat's reconcile, and actions that people ask for by task.

They drive the same engine as the embedded CLI. An apply goes on only while its caller waits: once the caller's key
is gone, nothing more is sent. Errors go back as values, and a run that nobody waits for is not begun.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from celery import current_task

from mikrom_reconcile import traces
from mikrom_reconcile.control.ports import Engine
from mikrom_reconcile.core.model.errors import BusyError, MikromError, SourceError, UsageError
from mikrom_reconcile.core.model.plan import Plan, Verb
from mikrom_reconcile.core.model.run import BEAT, ActionOutcome, RunReport, RunRequest, UnfinishedRun
from mikrom_reconcile.core.model.specs import SourceTree
from mikrom_reconcile.dispatch.control_worker.metrics import NoMetrics, Tick
from mikrom_reconcile.dispatch.control_worker.schedule import SourceSync, clean_up
from mikrom_reconcile.dispatch.transport import ending_work, rpc
from mikrom_reconcile.dispatch.transport.redis_keys import Keys
from mikrom_reconcile.dispatch.transport.shared_state import RunStatus, tell, waiting_run
from mikrom_reconcile.output.run_result import LATE, USAGE, result_of
from mikrom_reconcile.settings import Settings
from mikrom_reconcile.times_and_sizes import BROKER, RUNS

if TYPE_CHECKING:
    from redis import Redis

T = TypeVar("T")

_log = logging.getLogger(__name__)

Say = Callable[[str, Any], None]
Progress = Callable[[ActionOutcome], None]


@dataclass(kw_only=True)
class ControlTasks:
    """The tasks of a control worker over an engine and the source of scheduled runs.

    `engine` is asked again for every task; `worker_id` says who this worker is once it lives.
    """

    redis: Redis
    keys: Keys
    settings: Settings
    engine: Callable[[], Engine]
    source: SourceSync
    worker_id: Callable[[], rpc.WorkerId]
    metrics: NoMetrics = field(default_factory=NoMetrics)

    def plan(self, *, call: str, run: str) -> None:
        """Plan the stored request of a run and keep the plan for its apply."""
        with self._answering(call) as say:
            with traces.span("run", run=run):
                plan = self.engine().plan(self._request(run))
            self.redis.set(self.keys.plan(run), rpc.pack(plan), ex=BROKER.result_ttl_s)
            say("planned", plan.id)
            _log.info("plan %s: %d actions", plan.id, len(plan.actions), extra={"run": run})

    def apply(self, *, call: str | None, run: str, plan: str | None) -> None:
        """Carry out the plan of a run, by its id; None approves whatever is found. No `call`: nobody waits for it."""
        with self._unwatched(run) if call is None else self._answering(call) as say:
            request, shown = self._request(run), self._plan(run, plan)
            refuse = ending_work.refuse_when_stopping if call is None else self._watch(call)

            def progress(outcome: ActionOutcome) -> None:
                say("outcome", outcome)
                refuse()

            report = self._carry_out(request, shown, progress)
            say("report", report)
            _log.info("apply: %s", summary(report), extra={"run": run})

    def reconcile(self, *, tick: str | None = None) -> dict[str, Any]:
        """Beat's run: read the specs, plan, apply what is allowed unattended. A tick that is late does nothing."""
        return _unattended(BEAT, lambda run: self._reconcile(run, tick))

    def by_hand(self, verb: Verb, vm: str) -> dict[str, Any]:
        """A VM task that a person called: one action on the VMs of this name; create and update follow the specs."""
        return _unattended("task", lambda run: self._act(run, verb, vm))

    def sync_source(self) -> dict[str, Any]:
        """Look at MIKROM_SPECS now; every scheduled run begins with the same look."""
        try:
            tree, problem = self.source.specs_now()
        except SourceError as error:
            return {"revision": "", "problem": str(error)}
        return {"revision": tree.revision, "problem": problem}

    def cleanup(self, *, tick: str | None = None) -> dict[str, Any]:
        """Remove what is left in Redis of hosts that are gone. Twice or late does no harm."""
        del tick
        return {"hosts": clean_up(self.redis, self.keys)}

    def _carry_out(self, request: RunRequest, plan: Plan | None, progress: Progress) -> RunReport:
        """Every run of a control worker, told to who looks while it goes on."""
        waiting = waiting_run(request, None if plan is None else len(plan.actions))
        with RunStatus(self.redis, self.keys, self.worker_id(), waiting) as status:

            def heard(outcome: ActionOutcome) -> None:
                status.heard(outcome)
                progress(outcome)

            began_s, report = time.monotonic(), None
            try:
                with traces.span("run", run=request.run_id, origin=request.origin):
                    report = self.engine().apply(request, plan, progress=heard)
            finally:
                self.metrics.ran(request, report, time.monotonic() - began_s)
        return report

    def _reconcile(self, run: str, tick: str | None) -> tuple[str, int]:
        key = self.keys.tick("reconcile")
        if tick is not None and self.redis.get(key) != tick.encode():
            self.metrics.ticked("late")
            return "nothing: this tick is late, a newer one is due", 0
        if tick is not None:
            left_ms: Any = self.redis.pttl(key)
            self.redis.set(self.keys.next_run, time.time() + left_ms / 1000)
        try:
            # one at a time: a run that takes longer than the interval swallows the ticks that it misses
            turn = self.engine().store.lease("beat:reconcile", holder=run, ttl_s=BROKER.heartbeat_ttl_s, at_least=0)
        except BusyError:
            self.metrics.ticked("skipped")
            return "nothing: the run of an earlier tick still goes on", 0
        became: Tick = "failed"
        try:
            done = self._apply_alone(run, BEAT)
            became = "run"
            return done
        finally:
            turn.release()
            self.metrics.ticked(became)

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
        """Apply what may be done unattended: one line about it, and the exit code.

        Without a `tree`, of the specs that are good now.
        """
        if "tree" not in asked:
            asked["tree"], asked["source_problem"] = self.source.specs_now()
        forks, timeout_s = self.settings.forks, self.settings.timeout_s
        request = RunRequest(run_id=run, origin=origin, forks=forks, timeout_s=timeout_s, **asked)
        report = self._carry_out(request, None, lambda _: ending_work.refuse_when_stopping())
        return summary(report), result_of(report).exit_code

    @contextmanager
    def _answering(self, call: str) -> Iterator[Say]:
        """A way to answer the call. What goes wrong inside is told to the caller, once."""

        def say(kind: str, value: Any) -> None:
            rpc.answer(self.redis, self.keys, call, "control", kind, rpc.pack(value))

        if not rpc.is_awaited(self.redis, self.keys, call):
            raise MikromError("nobody waits for this run any more")
        say("accepted", self.worker_id())
        try:
            yield say
        except Exception as error:  # noqa: BLE001 - the caller is told of every end; who else would be
            say("error", _failed(error, call))

    @contextmanager
    def _unwatched(self, run: str) -> Iterator[Say]:
        """As `_answering`, where nobody waits: an error is told to whoever looks for the run."""
        try:
            yield lambda _kind, _value: None
        except Exception as error:  # noqa: BLE001 - as above
            why, request = _failed(error, run).message, self._kept(self.keys.request(run), RunRequest)
            origin = request.origin if request else "apply"
            ended = UnfinishedRun(run_id=run, origin=origin, since=datetime.now(UTC), state="failed", error=why)
            tell(self.redis, self.keys, ended)

    def _watch(self, call: str) -> Callable[[], None]:
        """A check that raises once the caller has gone or this worker is to end; it asks Redis once a second."""
        look_at = 0.0

        def refuse_when_left() -> None:
            nonlocal look_at
            ending_work.refuse_when_stopping()
            if time.monotonic() < look_at:
                return
            look_at = time.monotonic() + RUNS.caller_check_s
            if not rpc.is_awaited(self.redis, self.keys, call):
                raise MikromError("the caller has gone: nothing more is sent")

        return refuse_when_left

    def _request(self, run: str) -> RunRequest:
        request = self._kept(self.keys.request(run), RunRequest)
        if request is None:
            raise UsageError(f"the request of run {run} is not in Redis any more; plan again")
        return request

    def _plan(self, run: str, plan_id: str | None) -> Plan | None:
        if plan_id is None:
            return None
        plan = self._kept(self.keys.plan(run), Plan)
        if plan is None or plan.id != plan_id:
            raise UsageError(f"plan {plan_id} is not in Redis any more; plan again")
        return plan

    def _kept(self, key: str, kind: type[T]) -> T | None:
        packed: Any = self.redis.get(key)
        return None if packed is None else rpc.unpack(packed, kind)


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
    did = ", ".join(f"{count} {what}" for what, count in sorted(counts.items())) or "nothing to do"
    left = "" if report.remaining is None else _left(report.remaining)
    late = "; the deadline passed first" if report.late else ""
    source = f"; the source is broken, {report.plan.revision} was used: {report.source_problem}"
    return f"{did}{left}{late}{source if report.source_problem else ''}"


def _left(plan: Plan) -> str:
    changes = f"; {len(plan.changes)} changes remain" if plan.changes else ""
    refused = f"; {len(plan.refusals)} refused" if plan.refusals else ""
    unreachable = f"; unreachable: {', '.join(sorted(plan.unreachable))}" if plan.unreachable else ""
    return f"{changes}{refused}{unreachable}"


def _failed(error: Exception, run: str) -> rpc.Failure:
    """Log what ended a run, and what to tell whoever waits for it."""
    if isinstance(error, MikromError):
        _log.warning("ended: %s", error, extra={"run": run})
    else:
        _log.error("internal error", exc_info=error, extra={"run": run})
    return rpc.failure_of(error, task_id=current_task.request.id)
