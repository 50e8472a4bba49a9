"""Tasks of a control worker: plan, apply, and Beat's reconcile. They drive the same engine as the embedded CLI.

An apply goes on only while its caller waits: once the caller's key is gone, nothing more is sent. Errors go back as
values, and a run that nobody waits for is not begun.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from mikrom_reconcile.control.ports import Engine
from mikrom_reconcile.core.errors import BusyError, MikromError, UsageError
from mikrom_reconcile.core.model.plan import Plan
from mikrom_reconcile.core.model.run import BEAT, ActionOutcome, RunReport, RunRequest
from mikrom_reconcile.dispatch import calls, deadlines
from mikrom_reconcile.dispatch.app import FleetApp
from mikrom_reconcile.dispatch.errors_on_the_wire import failure_of
from mikrom_reconcile.dispatch.keys import LEFTOVER_S, TTL_S

_log = logging.getLogger(__name__)

_LOOK_S = 1.0

Say = Callable[[str, Any], None]


class Accepted(msgspec.Struct, frozen=True, kw_only=True):
    """Which control worker took the call: its heartbeat, and the start id in it."""

    owner: str
    start_id: str


def plan_task(task: Any, *, call: str, run: str) -> None:
    """Plan the stored request of a run and keep the plan for its apply."""
    with _answering(task, call) as say:
        plan = task.app.parts.engine().plan(_request(task, run))
        task.app.redis.set(task.app.keys.plan(run), calls.pack(plan), ex=LEFTOVER_S)
        say("planned", plan.id)
        _log.info("plan %s: %d actions", plan.id, len(plan.actions), extra={"run": run})


def apply_task(task: Any, *, call: str, run: str, plan: str | None) -> None:
    """Carry out the plan of a run, by its id; None approves whatever is found."""
    with _answering(task, call) as say:
        request = _request(task, run)
        shown = None if plan is None else _plan(task, run, plan)

        def progress(outcome: ActionOutcome) -> None:
            say("outcome", outcome)
            caller_waits()

        caller_waits = _watch(task, call)
        report = task.app.parts.engine().apply(request, shown, progress=progress)
        say("report", report)
        _log.info("apply: %s", summary(report), extra={"run": run})


def reconcile_task(task: Any, *, tick: str | None = None) -> dict[str, Any]:
    """Beat's run: read the specs, plan, apply what is allowed unattended. A tick that is late does nothing."""
    run = f"beat-{secrets.token_hex(6)}"
    try:
        return {"run": run, "done": _reconcile(task, run, tick)}
    except MikromError as error:
        _log.warning("nothing done: %s", error, extra={"run": run})
        return {"run": run, "done": f"nothing: {error}"}


def _reconcile(task: Any, run: str, tick: str | None) -> str:
    app = task.app
    if tick is not None and app.redis.get(app.keys.tick) != tick.encode():
        return "nothing: this tick is late, a newer one is due"
    engine = app.parts.engine()
    try:
        # one at a time: a run that takes longer than the interval swallows the ticks that it misses
        turn = engine.store.lease("beat:reconcile", holder=run, ttl_s=TTL_S, at_least=0)
    except BusyError:
        return "nothing: the run of an earlier tick still goes on"
    try:
        done = _repair(app, engine, run)
    finally:
        turn.release()
    _log.info("reconcile: %s", done, extra={"run": run})
    return done


def _repair(app: FleetApp, engine: Engine, run: str) -> str:
    """Apply what may be done unattended, and one line about it."""
    settings = app.settings
    request = RunRequest(
        run_id=run, origin=BEAT, tree=app.parts.read_tree(), forks=settings.forks, timeout_s=settings.timeout_s
    )
    return summary(engine.apply(request, None, progress=lambda _: deadlines.refuse_when_stopping()))


def summary(report: RunReport) -> str:
    """One line about a run: what became of how many actions, and what is left."""
    counts = Counter(f"{outcome.verb} {outcome.result}" for outcome in report.outcomes)
    did = ", ".join(f"{count} {what}" for what, count in sorted(counts.items())) or "nothing to do"
    left = "" if report.remaining is None else _left(report.remaining)
    return f"{did}{left}{'; the deadline passed first' if report.late else ''}"


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
        calls.answer(app.redis, app.keys, call, "control", kind, calls.pack(value))

    if not calls.is_awaited(app.redis, app.keys, call):
        raise MikromError("nobody waits for this run any more")
    say("accepted", Accepted(owner=app.heartbeat.owner, start_id=app.heartbeat.start_id))
    try:
        yield say
    except Exception as error:  # noqa: BLE001 - the caller is told of every end; who else would be
        if isinstance(error, MikromError):
            _log.warning("ended: %s", error, extra={"run": call})
        else:
            _log.exception("internal error", extra={"run": call})
        say("error", failure_of(error, task_id=task.request.id))


def _watch(task: Any, call: str) -> Callable[[], None]:
    """A check that raises once the caller has gone or this worker is to end; it asks Redis once a second."""
    look_at = 0.0

    def caller_waits() -> None:
        nonlocal look_at
        deadlines.refuse_when_stopping()
        if time.monotonic() < look_at:
            return
        look_at = time.monotonic() + _LOOK_S
        if not calls.is_awaited(task.app.redis, task.app.keys, call):
            raise MikromError("the caller has gone: nothing more is sent")

    return caller_waits


def _request(task: Any, run: str) -> RunRequest:
    packed = task.app.redis.get(task.app.keys.request(run))
    if packed is None:
        raise UsageError(f"the request of run {run} is not in Redis any more; plan again")
    return calls.unpack(packed, RunRequest)


def _plan(task: Any, run: str, plan_id: str) -> Plan:
    packed = task.app.redis.get(task.app.keys.plan(run))
    if packed is None or (plan := calls.unpack(packed, Plan)).id != plan_id:
        raise UsageError(f"plan {plan_id} is not in Redis any more; plan again")
    return plan
