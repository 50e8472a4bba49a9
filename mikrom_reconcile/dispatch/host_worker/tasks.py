"""Tasks of a host worker: carry out one order, observe, fetch a console or images. Errors are told as values."""

import logging
import queue
import random
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec
from celery.exceptions import Reject
from msgspec.structs import replace
from redis import RedisError

from mikrom_reconcile import traces
from mikrom_reconcile.control.ports import RunStore
from mikrom_reconcile.core.model.encoding import ready
from mikrom_reconcile.core.model.errors import MikromError
from mikrom_reconcile.core.model.observed import ObserveQuery
from mikrom_reconcile.core.model.plan import SUPERVISION, ActionOutcome, Order, RunRecord, Verb
from mikrom_reconcile.dispatch import celery_patches
from mikrom_reconcile.dispatch.transport import order_envelope, rpc
from mikrom_reconcile.dispatch.transport.order_envelope import OrderEnvelope, given_up
from mikrom_reconcile.dispatch.transport.rpc import ReplySender
from mikrom_reconcile.host.agent import HostAgent
from mikrom_reconcile.host.orders.steps import log_fields
from mikrom_reconcile.output.run_result import CHANGES_OR_FAILED, FAILED, outcome_line
from mikrom_reconcile.output.text import PLAIN
from mikrom_reconcile.times_and_sizes import BROKER, ORDERS

_log = logging.getLogger(__name__)

_UNSIGNED = (
    "to fetch is an order, not signed for this worker, and this host has MIKROM_VERIFY_KEY: "
    "ask from where its pair is, MIKROM_SIGNING_KEY"
)


@dataclass(slots=True)
class HostTasks:
    """The tasks of the worker of `host`, which consumes `queue`."""

    host: str
    queue: str
    agent: Callable[[], HostAgent]
    replies: ReplySender
    is_genuine: Callable[[OrderEnvelope], bool] = lambda _: True  # a host without a key believes every order

    def observe_host(self, *, call: str, query: str, signature: str = "") -> None:
        """Tell the call what is on this host. To fetch something first is an order, and so it is signed."""
        try:
            asked = msgspec.json.decode(query, type=ready(ObserveQuery))
            if asked.fetch and not self.is_genuine(OrderEnvelope(call=call, order=query, signature=signature)):
                self.replies.tell(call, "error", rpc.pack(_UNSIGNED))
            elif self.replies.is_awaited(call):
                self.replies.tell(call, "report", rpc.pack(self.agent().observe(asked)))
        except Exception as error:  # noqa: BLE001 - silence would keep control waiting until its deadline
            _log.exception("cannot observe")
            told = f"cannot observe: {error}; the log of the host's worker has more"
            self.replies.tell(call, "error", rpc.pack(told))

    def console(self, *, call: str, vm: str, max_bytes: int, after: int | None = None) -> None:
        """Tell the call the end of a VM's console, or what came after a place in it."""
        try:
            console = self.agent().console(vm, max_bytes=min(max_bytes, BROKER.console_bytes), after=after)
            self.replies.tell(call, "console", rpc.pack(console))
        except MikromError as error:
            self.replies.tell(call, "error", rpc.pack(str(error)))

    def carry_out(self, task: Any, verb: Verb, arguments: dict[str, Any]) -> dict[str, Any]:
        """What became of an order that control sent."""
        sent = order_envelope.addressed(arguments)
        try:
            sent = order_envelope.opened(arguments)
            outcome = self._obey(task, verb, sent, order_envelope.read_order(sent, lambda: self.is_genuine(sent)))
        except MikromError as error:
            _log.warning("%s: refused, %s", verb, error)
            outcome = order_envelope.refused(sent, verb, self.host, str(error))
        self.replies.tell(sent.call, "outcome", rpc.pack(outcome))
        return {"vm": outcome.vm, "host": outcome.host, "verb": verb, "result": outcome.result, "error": outcome.error}

    def _obey(self, task: Any, verb: Verb, sent: OrderEnvelope, order: Order) -> ActionOutcome:
        if why := self._refusal(verb, order, sent.call):
            _log.warning("%s %s: refused, %s", verb, order.action.vm, why, extra=log_fields(order))
            return given_up(order, "skipped", why)
        left_s = order.action.deadline_s - max(0.0, sent.spent_s)
        outcome = self._execute(task, replace(order, action=replace(order.action, deadline_s=left_s)))
        if outcome.result == "failed_temporary":
            spent_s = sent.spent_s + (outcome.finished_at - outcome.started_at).total_seconds()
            with suppress(Reject):  # the broker did not take it: then this was the last attempt
                self._try_again(task, order, outcome.error, replace(sent, spent_s=spent_s))
        return outcome

    def _try_again(self, task: Any, order: Order, error: str | None, sent: OrderEnvelope) -> None:
        """Put the order into this host's own queue for its next attempt and end this one; nothing if none is left."""
        attempt = task.request.retries + 1
        # twice as long each time, and never the same for two that failed together
        pause_s = random.uniform(0.5, 1.0) * ORDERS.first_retry_s * 2 ** (attempt - 1)  # noqa: S311 - jitter is no secret
        spent_s = sent.spent_s + pause_s
        if attempt >= ORDERS.attempts or spent_s >= order.action.deadline_s or celery_patches.is_stopping():
            return
        fields = log_fields(order, f"attempt {attempt} of {ORDERS.attempts}")
        _log.warning("%s %s: again in %.1f s", order.action.verb, order.action.vm, pause_s, extra=fields)
        raise task.retry(
            kwargs=msgspec.to_builtins(replace(sent, spent_s=spent_s)),
            countdown=pause_s,
            max_retries=ORDERS.attempts - 1,
            exc=MikromError(error),
            queue=self.queue,
            kwargsrepr=order_envelope.redacted_args(order),
            headers=_trace_of(task),
        )

    def _refusal(self, verb: Verb, order: Order, call: str) -> str | None:
        if order.action.verb != verb:
            return f"the order says {order.action.verb}"
        if order.action.host != self.host:
            return f"the order is for host {order.action.host}, this is {self.host}"
        if celery_patches.is_stopping():
            return "the host's worker is being stopped"
        try:
            return None if self.replies.is_awaited(call) else "nobody waits for it any more"
        except RedisError as error:
            return f"it is not known whether anybody waits for it: {error}"

    def _execute(self, task: Any, order: Order) -> ActionOutcome:
        action = order.action
        about = {"run": order.run_id, "vm": action.vm, "host": action.host, "task_id": task.request.id}
        with traces.span(f"{action.verb} VM", _trace_of(task), **about) as ended:
            try:
                with celery_patches.limited(action.deadline_s + ORDERS.task_margin_s):
                    outcome: ActionOutcome = self.agent().execute(order)
            except MikromError as error:
                outcome = given_up(order, "failed_temporary", str(error))
            ended(outcome.result, outcome.error)
        return outcome


def _trace_of(task: Any) -> dict[str, str]:
    parent = getattr(task.request, "traceparent", None)
    return {"traceparent": parent} if isinstance(parent, str) else {}


def keeper(store: RunStore, host: str) -> Callable[[str, ActionOutcome], None]:
    """How the supervision tells the history what it did in a project, once the broker is there; it never waits."""
    waiting: queue.Queue[RunRecord] = queue.Queue(BROKER.host_events_waiting)

    def keep() -> None:
        record = None
        while True:
            record = record or waiting.get()
            try:
                store.save(record)
                record = None
            except MikromError as error:
                _log.debug("%s", error)
                time.sleep(BROKER.host_event_retry_s)

    def tell(project: str, outcome: ActionOutcome) -> None:
        record = RunRecord(
            run_id=f"{host}-{secrets.token_hex(6)}",
            origin=f"{SUPERVISION} of {host}",
            project=project,
            started_at=outcome.started_at,
            finished_at=outcome.finished_at,
            outcomes=(outcome,),
            conclusion=f"{outcome_line(outcome, PLAIN)}: {'; '.join(outcome.reasons)}",
            exit_code=CHANGES_OR_FAILED if outcome.result in FAILED else 0,
        )
        try:
            waiting.put_nowait(record)
        except queue.Full:
            _log.warning("%s: the broker is away, the history lacks a restart", outcome.vm, extra={"host": host})

    threading.Thread(target=keep, name="host events", daemon=True).start()
    return tell
