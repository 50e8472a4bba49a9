"""Tasks of a host worker: carry out one order, observe, fetch a console or images. Thin, plain functions.

A VM task that comes with a VM's name instead of an order was called by a person, and is for control to carry out.

An order is judged by what it says itself, never by the name of the task that brought it: a message whose header was
changed must not turn a stop into a delete. An order whose caller has gone is not begun, and questions change nothing,
whoever asks them. Nothing here raises because a VM failed or an order cannot be read: what became of it is a value on
the call's stream.
"""

from __future__ import annotations

import logging
import random
from contextlib import suppress
from typing import Any

import msgspec
from celery.exceptions import Reject
from msgspec.structs import replace
from redis import RedisError

from mikrom_reconcile import traces
from mikrom_reconcile.core.model.devices import PinnedFile
from mikrom_reconcile.core.model.errors import MikromError
from mikrom_reconcile.core.model.observed import ObserveQuery
from mikrom_reconcile.core.model.plan import Verb
from mikrom_reconcile.core.model.ready import ready
from mikrom_reconcile.core.model.run import ActionOutcome, Order
from mikrom_reconcile.dispatch.control_worker.tasks import by_hand
from mikrom_reconcile.dispatch.transport import deadlines, rpc
from mikrom_reconcile.dispatch.transport.order_envelope import SentOrder, read_order, refused
from mikrom_reconcile.dispatch.transport.order_message import shown_of
from mikrom_reconcile.dispatch.transport.unreported import given_up
from mikrom_reconcile.limits import BROKER, ORDERS

_log = logging.getLogger(__name__)

_UNSIGNED = (
    "to fetch is an order, not signed for this worker, and this host has MIKROM_VERIFY_KEY: "
    "ask from where its pair is, MIKROM_SIGNING_KEY"
)


def create_vm_task(task: Any, vm: str = "", **order: Any) -> dict[str, Any]:
    """Create a VM: its record first, then its VMM."""
    return _vm_task(task, "create", vm, order)


def start_vm_task(task: Any, vm: str = "", **order: Any) -> dict[str, Any]:
    """Start a VM that has a record."""
    return _vm_task(task, "start", vm, order)


def stop_vm_task(task: Any, vm: str = "", **order: Any) -> dict[str, Any]:
    """Stop a VM; its record and its disks stay."""
    return _vm_task(task, "stop", vm, order)


def pause_vm_task(task: Any, vm: str = "", **order: Any) -> dict[str, Any]:
    """Let a guest stand still; its VMM and its memory stay."""
    return _vm_task(task, "pause", vm, order)


def resume_vm_task(task: Any, vm: str = "", **order: Any) -> dict[str, Any]:
    """Let a paused guest go on."""
    return _vm_task(task, "resume", vm, order)


def restart_vm_task(task: Any, vm: str = "", **order: Any) -> dict[str, Any]:
    """Stop a VM and start it with what is wanted now."""
    return _vm_task(task, "restart", vm, order)


def update_vm_task(task: Any, vm: str = "", **order: Any) -> dict[str, Any]:
    """Change a VM's record, and what can change while it runs."""
    return _vm_task(task, "update", vm, order)


def delete_vm_task(task: Any, vm: str = "", **order: Any) -> dict[str, Any]:
    """Remove a VM and everything that was made for it."""
    return _vm_task(task, "delete", vm, order)


VM_TASKS = {
    "create": create_vm_task,
    "start": start_vm_task,
    "stop": stop_vm_task,
    "pause": pause_vm_task,
    "resume": resume_vm_task,
    "restart": restart_vm_task,
    "update": update_vm_task,
    "delete": delete_vm_task,
}


def observe_host_task(task: Any, *, call: str, query: str) -> None:
    """Tell the call what is on this host."""
    try:
        if not task.app.answering.is_awaited(call):
            return
        report = task.app.parts.agent().observe(msgspec.json.decode(query, type=ready(ObserveQuery)))
        task.app.answering.tell(call, "report", rpc.pack(report))
    except Exception as error:  # noqa: BLE001 - silence would keep control waiting until its deadline
        _log.exception("cannot observe")
        task.app.answering.tell(
            call, "error", rpc.pack(f"cannot observe: {error}; the log of the host's worker has more")
        )


def console_task(task: Any, *, call: str, vm: str, max_bytes: int, after: int | None = None) -> None:
    """Tell the call the end of a VM's console, or what came after a place in it."""
    try:
        console = task.app.parts.agent().console(vm, max_bytes=min(max_bytes, BROKER.console_bytes), after=after)
        task.app.answering.tell(call, "console", rpc.pack(console))
    except MikromError as error:
        task.app.answering.tell(call, "error", rpc.pack(str(error)))


def images_task(task: Any, *, call: str, files: str, deadline_s: float, signature: str = "") -> None:
    """Tell the call what is cached here once `files` (the JSON of pinned files) were fetched.

    To have them fetched is an order, and signed like one: a host does not ask other servers for whoever asks it to.
    """
    try:
        wanted = _wanted_files(task, SentOrder(call=call, order=files, signature=signature))
        if task.app.answering.is_awaited(call):
            stock = task.app.parts.agent().images(wanted, deadline_s=deadline_s)
            task.app.answering.tell(call, "stock", rpc.pack(stock))
    except Exception as error:  # noqa: BLE001 - as above
        _log.exception("cannot tell of images")
        task.app.answering.tell(call, "error", rpc.pack(f"cannot tell of images: {error}"))


def _wanted_files(task: Any, sent: SentOrder) -> tuple[PinnedFile, ...]:
    wanted = msgspec.json.decode(sent.order, type=ready(tuple[PinnedFile, ...]))
    if wanted and not _is_genuine(task, sent):
        raise MikromError(_UNSIGNED)
    return wanted


def _vm_task(task: Any, verb: Verb, vm: str, order: dict[str, Any]) -> dict[str, Any]:
    """Control sends an order to a host; people send a VM's name to control, which makes orders of it."""
    return _carry_out(task, verb, order) if order else by_hand(task, verb, vm)


def _carry_out(task: Any, verb: Verb, arguments: dict[str, Any]) -> dict[str, Any]:
    """What became of an order that control sent."""
    sent = msgspec.convert(arguments, ready(SentOrder))
    try:
        outcome = _obey(task, verb, sent, read_order(sent, lambda: _is_genuine(task, sent)))
    except MikromError as error:
        _log.warning("%s: refused, %s", verb, error)
        outcome = refused(sent, verb, task.app.settings.host, str(error))
    task.app.answering.tell(sent.call, "outcome", rpc.pack(outcome))
    return {"vm": outcome.vm, "host": outcome.host, "verb": verb, "result": outcome.result, "error": outcome.error}


def _is_genuine(task: Any, sent: SentOrder) -> bool:
    """Whether the control side made this order for this worker; without a key of its own, a host believes it."""
    app = task.app
    if app.verifier is None:
        return True
    queue = app.keys.host_queue(app.settings.host)
    genuine: bool = app.verifier.is_genuine(
        sent.order, sent.signature, queue=queue, start_id=app.heartbeat.start_id, call=sent.call
    )
    return genuine


def _obey(task: Any, verb: Verb, sent: SentOrder, order: Order) -> ActionOutcome:
    if why := _refusal(task, verb, order, sent.call):
        _log.warning("%s %s: refused, %s", verb, order.action.vm, why, extra=_fields(order))
        return given_up(order, "skipped", why)
    left_s = order.action.deadline_s - max(0.0, sent.spent_s)
    outcome = _execute(task, replace(order, action=replace(order.action, deadline_s=left_s)))
    if outcome.result == "failed_temporary":
        spent_s = sent.spent_s + (outcome.finished_at - outcome.started_at).total_seconds()
        with suppress(Reject):  # the broker did not take it: then this was the last attempt
            _try_again(task, order, outcome.error, replace(sent, spent_s=spent_s))
    return outcome


def _try_again(task: Any, order: Order, error: str | None, sent: SentOrder) -> None:
    """Put the order into this host's own queue for its next attempt and end this one; nothing where none is left."""
    attempt = task.request.retries + 1
    # twice as long each time, and never the same for two that failed together
    pause_s = random.uniform(0.5, 1.0) * ORDERS.first_retry_s * 2 ** (attempt - 1)  # noqa: S311 - jitter is no secret
    spent_s = sent.spent_s + pause_s
    if attempt >= ORDERS.attempts or spent_s >= order.action.deadline_s or deadlines.is_stopping():
        return
    fields = _fields(order) | {"step": f"attempt {attempt} of {ORDERS.attempts}"}
    _log.warning("%s %s: again in %.1f s", order.action.verb, order.action.vm, pause_s, extra=fields)
    raise task.retry(
        kwargs=msgspec.to_builtins(replace(sent, spent_s=spent_s)),
        countdown=pause_s,
        max_retries=ORDERS.attempts - 1,
        exc=MikromError(error),
        queue=task.app.keys.host_queue(task.app.settings.host),
        kwargsrepr=shown_of(order),
        headers=_trace_of(task),
    )


def _refusal(task: Any, verb: Verb, order: Order, call: str) -> str | None:
    """Why the order may not be carried out here and now, or None."""
    if order.action.verb != verb:
        return f"the order says {order.action.verb}"
    if order.action.host != task.app.settings.host:
        return f"the order is for host {order.action.host}, this is {task.app.settings.host}"
    if deadlines.is_stopping():
        return "the host's worker is being stopped"
    try:
        return None if task.app.answering.is_awaited(call) else "nobody waits for it any more"
    except RedisError as error:
        return f"it is not known whether anybody waits for it: {error}"


def _execute(task: Any, order: Order) -> ActionOutcome:
    action = order.action
    about = {"run": order.run_id, "vm": action.vm, "host": action.host, "task_id": task.request.id}
    with traces.span(f"{action.verb} VM", _trace_of(task), **about) as span:
        try:
            with deadlines.limited(action.deadline_s + ORDERS.task_margin_s):
                outcome: ActionOutcome = task.app.parts.agent().execute(order)
        except MikromError as error:
            outcome = given_up(order, "failed_temporary", str(error))
        span.ended(outcome.result, outcome.error)
    return outcome


def _trace_of(task: Any) -> dict[str, str]:
    """What the message says of the trace that it belongs to."""
    parent = getattr(task.request, "traceparent", None)
    return {"traceparent": parent} if isinstance(parent, str) else {}


def _fields(order: Order) -> dict[str, Any]:
    """What every line of the log carries about an order; the task's id is added where logs are written."""
    return {"run": order.run_id, "vm": order.action.vm, "host": order.action.host}
