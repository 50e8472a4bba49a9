"""Tasks of a control worker: plan, apply, Beat's reconcile, and deeds that people ask for by task.

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
from datetime import UTC, datetime
from typing import Any

import msgspec

from mikrom_reconcile import traces
from mikrom_reconcile.core.model.errors import BusyError, MikromError, UsageError
from mikrom_reconcile.core.model.plan import Plan, Verb
from mikrom_reconcile.core.model.run import BEAT, ActionOutcome, RunReport, RunRequest, UnfinishedRun
from mikrom_reconcile.core.model.specs import SourceTree
from mikrom_reconcile.dispatch.app import FleetApp
from mikrom_reconcile.dispatch.control_worker.metrics import Tick
from mikrom_reconcile.dispatch.control_worker.run_status import Unfinished, tell
from mikrom_reconcile.dispatch.control_worker.source_sync import specs_now
from mikrom_reconcile.dispatch.transport import deadlines, rpc
from mikrom_reconcile.dispatch.transport.error_codec import Failure, failure_of
from mikrom_reconcile.limits import BROKER, RUNS
from mikrom_reconcile.output.run_result import LATE, USAGE, verdict_of

_log = logging.getLogger(__name__)

Say = Callable[[str, Any], None]


class Accepted(msgspec.Struct, frozen=True, kw_only=True):
    """Which control worker took the call: its heartbeat, and the start id in it."""

    owner: str
    start_id: str


def plan_task(task: Any, *, call: str, run: str) -> None:
    """Plan the stored request of a run and keep the plan for its apply."""
    with _answering(task, call) as say:
        with traces.span("run", run=run):
            plan = task.app.parts.engine().plan(_request(task, run))
        task.app.redis.set(task.app.keys.plan(run), rpc.pack(plan), ex=BROKER.result_ttl_s)
        say("planned", plan.id)
        _log.info("plan %s: %d actions", plan.id, len(plan.actions), extra={"run": run})


def apply_task(task: Any, *, call: str | None, run: str, plan: str | None) -> None:
    """Carry out the plan of a run, by its id; None approves whatever is found. Without a `call` nobody waits for it."""
    if call is None:
        _apply_unwatched(task, run, plan)
        return
    with _answering(task, call) as say:
        request = _request(task, run)
        shown = None if plan is None else _plan(task, run, plan)

        def progress(outcome: ActionOutcome) -> None:
            say("outcome", outcome)
            caller_waits()

        caller_waits = _watch(task, call)
        report = _carried_out(task.app, request, shown, progress)
        say("report", report)
        _log.info("apply: %s", summary(report), extra={"run": run})


def _apply_unwatched(task: Any, run: str, plan: str | None) -> None:
    app, origin = task.app, "apply"
    try:
        request = _request(task, run)
        origin = request.origin
        shown = None if plan is None else _plan(task, run, plan)
        report = _carried_out(app, request, shown, lambda _: deadlines.refuse_when_stopping())
        _log.info("apply: %s", summary(report), extra={"run": run})
    except Exception as error:  # noqa: BLE001 - whoever looks for the run is told of every end
        failure = _failed(error, run, task.request.id)
        ended = UnfinishedRun(run_id=run, origin=origin, since=datetime.now(UTC), state="failed", error=failure.message)
        tell(app.redis, app.keys, ended)


def _carried_out(
    app: FleetApp, request: RunRequest, plan: Plan | None, progress: Callable[[ActionOutcome], None]
) -> RunReport:
    """Every run of a control worker, told to who looks while it goes on."""
    with Unfinished(app, request, None if plan is None else len(plan.actions)) as unfinished:

        def heard(outcome: ActionOutcome) -> None:
            unfinished.heard(outcome)
            progress(outcome)

        began_s, report = time.monotonic(), None
        try:
            with traces.span("run", run=request.run_id, origin=request.origin):
                report = app.parts.engine().apply(request, plan, progress=heard)
        finally:
            app.metrics.ran(request, report, time.monotonic() - began_s)
    return report


def reconcile_task(task: Any, *, tick: str | None = None) -> dict[str, Any]:
    """Beat's run: read the specs, plan, apply what is allowed unattended. A tick that is late does nothing."""
    return _unattended(f"{BEAT}-{secrets.token_hex(6)}", lambda run: _reconcile(task, run, tick))


def by_hand(task: Any, verb: Verb, vm: str) -> dict[str, Any]:
    """A VM task that a person called: one deed on the VMs of that name, or, to create or update, what the specs say."""
    return _unattended(f"task-{secrets.token_hex(6)}", lambda run: _deed(task, run, verb, vm))


def _unattended(run: str, carry_out: Callable[[str], tuple[str, int]]) -> dict[str, Any]:
    """What became of a run that nobody watches; `exit_code` is that of `mikrom apply`."""
    try:
        done, exit_code = carry_out(run)
    except MikromError as error:
        done = f"nothing: {error}"
        exit_code = LATE if isinstance(error, BusyError) else USAGE if isinstance(error, UsageError) else 1
    level = logging.WARNING if exit_code else logging.INFO
    _log.log(level, "%s: %s", run.partition("-")[0], done, extra={"run": run})
    return {"run": run, "done": done, "exit_code": exit_code}


def _reconcile(task: Any, run: str, tick: str | None) -> tuple[str, int]:
    app = task.app
    if tick is not None and app.redis.get(app.keys.tick("reconcile")) != tick.encode():
        app.metrics.ticked("late")
        return "nothing: this tick is late, a newer one is due", 0
    if tick is not None:
        app.redis.set(app.keys.next_run, time.time() + app.redis.pttl(app.keys.tick("reconcile")) / 1000)
    try:
        # one at a time: a run that takes longer than the interval swallows the ticks that it misses
        turn = app.parts.engine().store.lease("beat:reconcile", holder=run, ttl_s=BROKER.heartbeat_ttl_s, at_least=0)
    except BusyError:
        app.metrics.ticked("skipped")
        return "nothing: the run of an earlier tick still goes on", 0
    became: Tick = "failed"
    try:
        done = _apply(app, _request_of(app, run, BEAT))
        became = "run"
        return done
    finally:
        turn.release()
        app.metrics.ticked(became)


def _deed(task: Any, run: str, verb: Verb, vm: str) -> tuple[str, int]:
    app = task.app
    if app.settings.worker_role != "control" or not vm:
        raise UsageError(f"mikrom.{verb}_vm takes the name of a VM, and goes to the control queue {app.keys.queue}")
    origin = f"mikrom.{verb}_vm"
    if verb in {"create", "update"}:
        return _apply(app, _request_of(app, run, origin, limit=vm))
    nothing = SourceTree(revision="", files=())
    return _apply(app, _request_of(app, run, origin, tree=nothing, verb=verb, names=(vm,)))


def _request_of(app: FleetApp, run: str, origin: str, **asked: Any) -> RunRequest:
    """The request of a run that nobody watches; without a tree in `asked`, of the specs that are good now."""
    if "tree" not in asked:
        asked["tree"], asked["source_problem"] = specs_now(app)
    settings = app.settings
    return RunRequest(run_id=run, origin=origin, forks=settings.forks, timeout_s=settings.timeout_s, **asked)


def _apply(app: FleetApp, request: RunRequest) -> tuple[str, int]:
    """Apply what may be done unattended: one line about it, and the exit code."""
    report = _carried_out(app, request, None, lambda _: deadlines.refuse_when_stopping())
    return summary(report), verdict_of(report).exit_code


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
    dark = f"; unreachable: {', '.join(sorted(plan.unreachable))}" if plan.unreachable else ""
    return f"{changes}{refused}{dark}"


@contextmanager
def _answering(task: Any, call: str) -> Iterator[Say]:
    """A way to answer the call. What goes wrong inside is told to the caller, once."""
    app = task.app

    def say(kind: str, value: Any) -> None:
        rpc.answer(app.redis, app.keys, call, "control", kind, rpc.pack(value))

    if not rpc.is_awaited(app.redis, app.keys, call):
        raise MikromError("nobody waits for this run any more")
    say("accepted", Accepted(owner=app.heartbeat.owner, start_id=app.heartbeat.start_id))
    try:
        yield say
    except Exception as error:  # noqa: BLE001 - the caller is told of every end; who else would be
        say("error", _failed(error, call, task.request.id))


def _failed(error: Exception, run: str, task_id: str) -> Failure:
    """Log what ended a run, and what to tell whoever waits for it."""
    if isinstance(error, MikromError):
        _log.warning("ended: %s", error, extra={"run": run})
    else:
        _log.error("internal error", exc_info=error, extra={"run": run})
    return failure_of(error, task_id=task_id)


def _watch(task: Any, call: str) -> Callable[[], None]:
    """A check that raises once the caller has gone or this worker is to end; it asks Redis once a second."""
    look_at = 0.0

    def caller_waits() -> None:
        nonlocal look_at
        deadlines.refuse_when_stopping()
        if time.monotonic() < look_at:
            return
        look_at = time.monotonic() + RUNS.caller_check_s
        if not rpc.is_awaited(task.app.redis, task.app.keys, call):
            raise MikromError("the caller has gone: nothing more is sent")

    return caller_waits


def _request(task: Any, run: str) -> RunRequest:
    packed = task.app.redis.get(task.app.keys.request(run))
    if packed is None:
        raise UsageError(f"the request of run {run} is not in Redis any more; plan again")
    return rpc.unpack(packed, RunRequest)


def _plan(task: Any, run: str, plan_id: str) -> Plan:
    packed = task.app.redis.get(task.app.keys.plan(run))
    if packed is None or (plan := rpc.unpack(packed, Plan)).id != plan_id:
        raise UsageError(f"plan {plan_id} is not in Redis any more; plan again")
    return plan
