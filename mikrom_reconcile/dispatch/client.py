"""The engine of a fleet for the command line: a control worker far away, followed over a stream."""

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from celery.exceptions import TimeoutError as NoAnswerError
from redis import Redis

from mikrom_reconcile.control.ports import Hosts, RunStore
from mikrom_reconcile.control.stores.redis import translate_broker_errors
from mikrom_reconcile.core.model.documents import SourceState
from mikrom_reconcile.core.model.errors import MikromError, PastDeadlineError
from mikrom_reconcile.core.model.plan import ActionOutcome, Plan, RunReport, RunRequest, UnfinishedRun
from mikrom_reconcile.dispatch.app import FleetApp
from mikrom_reconcile.dispatch.transport import shared_state
from mikrom_reconcile.dispatch.transport.broker import FIRST
from mikrom_reconcile.dispatch.transport.rpc import Answer, Call, Failure, WorkerId, error_of, pack, unpack
from mikrom_reconcile.times_and_sizes import BROKER, RUNS


class RemoteEngine:
    """`Engine` of a fleet."""

    def __init__(self, app: FleetApp, redis: Redis, *, hosts: Hosts, store: RunStore) -> None:
        self._app, self._redis, self._keys = app, redis, app.keys
        self.hosts, self.store = hosts, store

    @translate_broker_errors()
    def source(self) -> SourceState | None:
        """What the last look of a control worker at MIKROM_SPECS gave. Raises SetupError."""
        return shared_state.source_state(self._redis, self._keys)

    @translate_broker_errors()
    def accept(self, commit: str) -> str:
        """What a control worker says of a forced commit. Raises SetupError, and MikromError without an answer."""
        self._refuse_without_control()
        sent = self._app.send_task("mikrom.sync_source", kwargs={"accept": commit}, queue=self._keys.queue)
        try:
            return str(sent.get(timeout=RUNS.plan_wait_s)["problem"])
        except NoAnswerError as error:
            raise PastDeadlineError("the control worker gave no answer in time; see `mikrom doctor`") from error

    @translate_broker_errors()
    def unfinished(self) -> tuple[UnfinishedRun, ...]:
        """Runs that wait for a control worker, go on, or ended without a report. Raises SetupError."""
        return shared_state.unfinished_runs(self._redis, self._keys)

    @translate_broker_errors()
    def hand_over(self, request: RunRequest, plan: Plan) -> None:
        """Have a control worker carry out `plan`, and leave. It begins within the run's time, or not at all."""
        self._keep(request, plan, kept_s=int(request.timeout_s) + 1)
        shared_state.tell(self._redis, self._keys, shared_state.waiting_run(request, len(plan.actions)))
        self._send("mikrom.apply", request, {"call": None, "plan": plan.id})

    @translate_broker_errors()
    def plan(self, request: RunRequest) -> Plan:
        """What the request would change. Raises SpecError, SourceError, and MikromError without a control worker."""
        with self._asking(request, "mikrom.plan", {}, deadline_s=RUNS.plan_wait_s) as answers:
            next(answers)
        packed: Any = self._redis.get(self._keys.plan(request.run_id))
        if packed is None:
            raise MikromError("the plan vanished from Redis; was it emptied? plan again")
        return unpack(packed, Plan)

    @translate_broker_errors()
    def apply(self, request: RunRequest, plan: Plan | None, *, progress: Callable[[ActionOutcome], None]) -> RunReport:
        """Have `plan` carried out and follow it. Leaving this call ends the run: nothing more is sent."""
        arguments, deadline_s = {"plan": plan.id if plan else None}, request.timeout_s + RUNS.report_wait_s
        with self._asking(request, "mikrom.apply", arguments, deadline_s=deadline_s, plan=plan) as answers:
            for answer in answers:
                if answer.kind == "report":
                    return unpack(answer.body, RunReport)
                progress(unpack(answer.body, ActionOutcome))
        raise AssertionError("answers end with a report or an error")

    @contextmanager
    def _asking(
        self, request: RunRequest, task: str, arguments: dict[str, Any], *, deadline_s: float, plan: Plan | None = None
    ) -> Iterator[Iterator[Answer]]:
        self._keep(request, plan, kept_s=BROKER.result_ttl_s)
        with Call(self._redis, self._keys, f"{request.run_id}-{secrets.token_hex(4)}") as call:
            call.listen("control")
            self._send(task, request, {"call": call.name, **arguments})
            yield self._follow(call, time.monotonic() + deadline_s)

    def _keep(self, request: RunRequest, plan: Plan | None, *, kept_s: int) -> None:
        self._refuse_without_control()
        self._redis.set(self._keys.request(request.run_id), pack(request), ex=kept_s)
        if plan is not None:
            self._redis.set(self._keys.plan(request.run_id), pack(plan), ex=BROKER.result_ttl_s, nx=True)

    def _refuse_without_control(self) -> None:
        if not shared_state.living(self._redis, self._keys, "control"):
            raise MikromError("no control worker answers; start `mikrom worker --role control`, or see `mikrom doctor`")

    def _send(self, task: str, request: RunRequest, arguments: dict[str, Any]) -> None:
        told, note = {"run": request.run_id, **arguments}, f"run {request.run_id} · {request.origin}"
        options = {"queue": self._keys.queue, "priority": FIRST, "ignore_result": True}
        self._app.send_task(task, kwargs=told, kwargsrepr=note, **options)

    def _follow(self, call: Call, until: float) -> Iterator[Answer]:
        worker: WorkerId | None = None
        died = False
        while True:
            for answer in call.read(1.0):
                if answer.kind == "accepted":
                    worker = unpack(answer.body, WorkerId)
                elif answer.kind == "error":
                    raise error_of(unpack(answer.body, Failure))
                else:
                    yield answer
            if died:
                raise MikromError("the control worker died under this run; run again: what was done stays done")
            if worker is not None:  # it may still have said why: read once more
                died = shared_state.starts(self._redis, self._keys, [worker.owner]) != {
                    worker.owner: worker.start_id.encode()
                }
            if time.monotonic() >= until:
                why = "did not finish in time" if worker else "had no slot in time"
                raise PastDeadlineError(f"the control worker {why}; see `mikrom doctor` and its log")
