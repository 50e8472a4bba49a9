"""A fleet as the command line and control see it. Its hosts, asked over Celery and heard over streams: a lost broker
means unreachable hosts and temporary failures. And its engine: a control worker far away, followed over a stream.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from itertools import chain, islice
from typing import Any, TypeVar

import msgspec
from celery.exceptions import TimeoutError as NoAnswerError
from kombu.exceptions import OperationalError
from redis import Redis, RedisError

from mikrom_reconcile import __version__
from mikrom_reconcile.control.ports import Hosts, RunStore
from mikrom_reconcile.control.stores.redis import translate_broker_errors
from mikrom_reconcile.core.model.documents import SourceState
from mikrom_reconcile.core.model.errors import MikromError, PastDeadlineError
from mikrom_reconcile.core.model.observed import Console, HostReport, HostView, ObserveQuery
from mikrom_reconcile.core.model.plan import ActionOutcome, Order, Plan, RunReport, RunRequest, UnfinishedRun
from mikrom_reconcile.dispatch import celery_patches
from mikrom_reconcile.dispatch.app import FleetApp
from mikrom_reconcile.dispatch.transport import shared_state
from mikrom_reconcile.dispatch.transport.broker import FIRST, Keys
from mikrom_reconcile.dispatch.transport.order_envelope import given_up, load_signer, priority_of, redacted_args
from mikrom_reconcile.dispatch.transport.rpc import Answer, Call, Failure, WorkerId, error_of, pack, unpack
from mikrom_reconcile.dispatch.transport.shared_state import give_up, known, living, remember_counts, starts
from mikrom_reconcile.times_and_sizes import BROKER, RUNS

T = TypeVar("T")
Question = dict[str, Any]

_log = logging.getLogger(__name__)

_LOST = (RedisError, OperationalError)
_NO_WORKER = "no worker answers for this host; is `mikrom worker` running there?"


class CeleryHosts:
    """`Hosts` over host queues. Safe to use from many threads at once."""

    def __init__(self, app: FleetApp, redis: Redis) -> None:
        self._app, self._redis, self._keys = app, redis, app.keys

    _signer = cached_property(lambda self: load_signer(self._app.settings))

    @translate_broker_errors()
    def names(self, *, unreachable: bool = True) -> tuple[str, ...]:
        return known(self._redis, self._keys) if unreachable else living(self._redis, self._keys, "host")

    @translate_broker_errors()
    def give_up(self, hosts: Iterable[str]) -> None:
        for host in hosts:
            give_up(self._redis, self._keys, host)

    def observe(self, queries: Mapping[str, ObserveQuery], *, deadline_s: float) -> Iterator[HostView]:
        """One view per queried host, as they come; a host without a living worker is unreachable at once."""
        questions = {host: {"query": msgspec.json.encode(query).decode()} for host, query in queries.items()}
        reports, fetches = [], any(query.fetch for query in queries.values())
        try:
            for host, answer in self._ask("observe_host", questions, deadline_s, signed="query" if fetches else ""):
                view = _view(host, answer)
                if view.report is not None:
                    reports.append(view.report)
                yield view
        except _LOST as error:
            yield from (HostView(host=host, error=f"the broker was lost: {error}") for host in sorted(questions))
        if project := next((query.project for query in queries.values()), None):
            remember_counts(self._redis, self._keys, project, reports)

    def execute(self, orders: Iterable[Order], *, forks: int, deadline_s: float) -> Iterator[ActionOutcome]:
        orders_left = OrderQueue(orders, forks)
        try:
            yield from self._execute(orders_left, time.monotonic() + deadline_s)
        except _LOST as error:
            yield from orders_left.give_up(f"the broker was lost: {error}")

    def _execute(self, orders: OrderQueue, until: float) -> Iterator[ActionOutcome]:
        with _HostCall(self._redis, self._keys, "execute") as call:
            while True:
                for order in islice(orders.next_orders(), BROKER.orders_between_reads):
                    if call.reach([order.action.host]):
                        self._send_order(call, order)
                    else:
                        yield from orders.lose(order.action.host, _NO_WORKER)
                if orders.is_done():
                    return
                for host, answer in call.round(0 if orders.can_send() else until):
                    if answer is None:
                        yield from orders.lose(host, "the host's worker died, was restarted or lost its broker")
                    elif (outcome := orders.finish(_outcome(answer))) is not None:
                        yield outcome
                if time.monotonic() >= until:
                    yield from orders.give_up("the deadline passed first")

    @translate_broker_errors()
    def console(self, host: str, vm: str, *, max_bytes: int, after: int | None = None) -> Console:
        question = {"vm": vm, "max_bytes": max_bytes, "after": after}
        try:
            ((_, answer),) = self._ask("console", {host: question}, BROKER.console_answer_s)
            return _value(answer, "console", Console)
        except MikromError as error:
            raise MikromError(f"{host}: {error}") from error

    def _ask(
        self, task: str, missing: dict[str, Question], deadline_s: float, *, signed: str = ""
    ) -> Iterator[tuple[str, Answer | str]]:
        """Each host's answer to its question, or why there is none, as they come; then it is not `missing` any more."""
        until = time.monotonic() + deadline_s
        with _HostCall(self._redis, self._keys, task) as call:
            for host in sorted(missing.keys() - call.reach(missing)):
                del missing[host]
                yield host, _NO_WORKER
            for host, question in sorted(missing.items()):
                signature = {"signature": self._signature(call, host, question[signed])} if signed else {}
                self._send(host, f"mikrom.{task}", {"call": call.name, **question, **signature}, note=host)
            while missing:
                for host, answer in call.round(until):
                    if missing.pop(host, None):
                        call.let_go(host)
                        yield host, answer or _NO_WORKER
                if time.monotonic() >= until:
                    for host in sorted(missing):
                        del missing[host]
                        yield host, "no answer by the deadline"

    def _send_order(self, call: _HostCall, order: Order) -> None:
        action, text = order.action, msgspec.json.encode(order).decode()
        signature = self._signature(call, action.host, text)
        sent: dict[str, object] = {"call": call.name, "order": text, "release": __version__, "signature": signature}
        note, priority = redacted_args(order), priority_of(order)
        # a backstop only: the hard limit ends the task's greenlet without a word to anybody
        limit_s = action.deadline_s + 30
        self._send(action.host, f"mikrom.{action.verb}_vm", sent, note=note, priority=priority, time_limit=limit_s)

    def _signature(self, call: _HostCall, host: str, text: str) -> str:
        if self._signer is None:
            return ""
        queue, start_id = self._keys.host_queue(host), call.starts[host].decode()
        return self._signer.sign(text, queue=queue, start_id=start_id, call=call.name)

    def _send(self, host: str, task: str, arguments: dict[str, object], *, note: str, **options: Any) -> None:
        queue, options = self._keys.host_queue(host), {"priority": FIRST, **options}
        self._app.send_task(task, kwargs=arguments, queue=queue, ignore_result=True, kwargsrepr=note, **options)


class OrderQueue:
    """The orders of one call: which wait, which are under way, at most `forks` of them per host."""

    def __init__(self, orders: Iterable[Order], forks: int) -> None:
        self._forks = forks
        self._waiting: dict[str, deque[Order]] = {}
        self._under_way: dict[str, dict[str, Order]] = {}
        for order in orders:  # all at once: a host must not wait because those before it in the plan are busy
            self._waiting.setdefault(order.action.host, deque()).append(order)

    def next_orders(self) -> Iterator[Order]:
        """Orders that may be sent now, first to hosts that have least to do; each counts as under way."""
        for host in sorted(filter(self._is_free, self._waiting), key=lambda host: len(self._under_way.get(host, ()))):
            while self._is_free(host):  # together, as they are answered together
                order = self._waiting[host].popleft()
                self._under_way.setdefault(host, {})[order.action.id] = order
                yield order

    def can_send(self) -> bool:
        """Whether `next_orders` has any."""
        return any(map(self._is_free, self._waiting))

    def is_done(self) -> bool:
        """Whether nothing is under way, and nothing waits."""
        return not any(self._under_way.values()) and not any(self._waiting.values())

    def _is_free(self, host: str) -> bool:
        return bool(self._waiting[host]) and len(self._under_way.get(host, ())) < self._forks

    def finish(self, outcome: ActionOutcome | None) -> ActionOutcome | None:
        """`outcome`, or None when it was told before or nobody asked for it."""
        if outcome and self._under_way.get(outcome.host, {}).pop(outcome.action_id, None):
            return outcome
        return None

    def lose(self, host: str, why: str) -> Iterator[ActionOutcome]:
        """A temporary failure for everything that was sent to `host` and not answered."""
        for order in self._under_way.pop(host, {}).values():
            yield given_up(order, "failed_temporary", why)

    def give_up(self, why: str) -> Iterator[ActionOutcome]:
        """The end of the call: what was sent failed, what was not is skipped."""
        for host in sorted(self._under_way):
            yield from self.lose(host, why)
        for order in chain.from_iterable(self._waiting.values()):
            yield given_up(order, "skipped", why)
        self._waiting.clear()


class _HostCall(Call):
    """A call to hosts, which also sees whether the workers that were asked still live, by their `starts`."""

    def __init__(self, redis: Redis, keys: Keys, purpose: str) -> None:
        super().__init__(redis, keys, f"{purpose}-{secrets.token_hex(8)}")
        self.starts: dict[str, bytes] = {}
        self._check_at = time.monotonic() + BROKER.worker_check_s

    def reach(self, hosts: Iterable[str]) -> set[str]:
        """Those of `hosts` that have a worker; from then on they are watched, and their answers are read."""
        wanted = {*hosts}
        self.starts |= self._living(wanted - self.starts.keys())
        reached = wanted & self.starts.keys()
        for host in reached:
            self.listen(f"host:{host}")
        return reached

    def let_go(self, host: str) -> None:
        """Read no more of it, and do not watch its worker."""
        self.ignore(f"host:{host}")
        self.starts.pop(host, None)

    def round(self, until: float) -> Iterator[tuple[str, Answer | None]]:
        """What hosts answer in a second; None: its worker is another now. Raises MikromError if this one is to end."""
        for answer in self.read(min(1.0, max(0.0, until - time.monotonic()))):
            yield _host(answer.owner), answer
        celery_patches.refuse_when_stopping()
        if time.monotonic() >= self._check_at:
            self._check_at = time.monotonic() + BROKER.worker_check_s
            before, self.starts = self.starts, self._living(self.starts)
            yield from ((host, None) for host, start in before.items() if self.starts.get(host) != start)

    def _living(self, hosts: Iterable[str]) -> dict[str, bytes]:
        found = starts(self._redis, self._keys, [f"host:{host}" for host in hosts])
        return {_host(owner): start for owner, start in found.items()}


def _host(owner: str) -> str:
    return owner.removeprefix("host:")


def _speaks_for_itself(host: str, named: Iterable[str]) -> None:
    """Raises MikromError for an answer about another host: one that was broken into may tell lies about itself only."""
    if others := {*named} - {host}:
        raise MikromError(
            f"host {host} spoke for {', '.join(sorted(others))}, and is not believed: see to it, it may be broken into"
        )


def _value(answer: Answer | str, kind: str, of: type[T]) -> T:
    if isinstance(answer, str):
        raise MikromError(answer)
    if answer.kind != kind:
        raise MikromError(unpack(answer.body, str))
    return unpack(answer.body, of)


def _outcome(answer: Answer) -> ActionOutcome | None:
    try:
        outcome = unpack(answer.body, ActionOutcome)
        _speaks_for_itself(_host(answer.owner), [outcome.host])
    except MikromError as error:
        _log.warning("%s: %s", answer.owner, error)
        return None
    return outcome


def _view(host: str, answer: Answer | str) -> HostView:
    try:
        report = _value(answer, "report", HostReport)
        _speaks_for_itself(host, [report.host, *(row.host for row in report.vms)])
    except MikromError as error:
        return HostView(host=host, error=str(error))
    return HostView(host=host, report=report)


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
        shared_state.tell(self._redis, self._keys, shared_state.waiting_run(request, plan))
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
        with Call(self._redis, self._keys, f"{request.run_id}-{secrets.token_hex(4)}") as call, call.kept():
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
                living_now = starts(self._redis, self._keys, [worker.owner])
                died = living_now.get(worker.owner) != worker.start_id.encode()
            if time.monotonic() >= until:
                why = "did not finish in time" if worker else "had no slot in time"
                raise PastDeadlineError(f"the control worker {why}; see `mikrom doctor` and its log")
