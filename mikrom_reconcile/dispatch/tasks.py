"""Tasks of a host worker: carry out one order, observe, fetch a console. Thin, plain functions.

An order is judged by what it says itself, never by the name of the task that brought it: a message whose header was
changed must not turn a stop into a delete. An order whose caller has gone is not begun, and questions change nothing,
whoever asks them. Nothing here raises because a VM failed or an order cannot be read: what became of it is a value on
the call's stream.
"""

from __future__ import annotations

import logging
from typing import Any

import msgspec
from redis import RedisError

from mikrom_reconcile.core.errors import MikromError
from mikrom_reconcile.core.model.observed import ObserveQuery
from mikrom_reconcile.core.model.plan import Verb
from mikrom_reconcile.core.model.run import ActionOutcome, Order
from mikrom_reconcile.dispatch import calls, deadlines
from mikrom_reconcile.dispatch.outcomes import given_up
from mikrom_reconcile.dispatch.sent_order import SentOrder, read_order, refused

_log = logging.getLogger(__name__)

CONSOLE_BYTES = 1024 * 1024
"""More of a console than this is fetched on the host itself."""

_MARGIN_S = 5.0  # the action keeps its own deadline, and only what has lost its way is ended from outside


def create_vm_task(task: Any, **sent: Any) -> dict[str, Any]:
    """Create a VM: its record first, then its VMM."""
    return _carry_out(task, "create", sent)


def start_vm_task(task: Any, **sent: Any) -> dict[str, Any]:
    """Start a VM that has a record."""
    return _carry_out(task, "start", sent)


def stop_vm_task(task: Any, **sent: Any) -> dict[str, Any]:
    """Stop a VM; its record and its disks stay."""
    return _carry_out(task, "stop", sent)


def pause_vm_task(task: Any, **sent: Any) -> dict[str, Any]:
    """Let a guest stand still; its VMM and its memory stay."""
    return _carry_out(task, "pause", sent)


def resume_vm_task(task: Any, **sent: Any) -> dict[str, Any]:
    """Let a paused guest go on."""
    return _carry_out(task, "resume", sent)


def restart_vm_task(task: Any, **sent: Any) -> dict[str, Any]:
    """Stop a VM and start it with what is wanted now."""
    return _carry_out(task, "restart", sent)


def update_vm_task(task: Any, **sent: Any) -> dict[str, Any]:
    """Change a VM's record only."""
    return _carry_out(task, "update", sent)


def delete_vm_task(task: Any, **sent: Any) -> dict[str, Any]:
    """Remove a VM and everything that was made for it."""
    return _carry_out(task, "delete", sent)


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
    if not calls.is_awaited(task.app.redis, task.app.keys, call):
        return
    try:
        report = task.app.parts.hypervisor().observe(msgspec.json.decode(query, type=ObserveQuery))
        _say(task, call, "report", calls.pack(report))
    except Exception as error:  # noqa: BLE001 - silence would keep control waiting until its deadline
        _log.exception("cannot observe")
        _say(task, call, "error", calls.pack(f"cannot observe: {error}; the log of the host's worker has more"))


def console_task(task: Any, *, call: str, vm: str, max_bytes: int, after: int | None = None) -> None:
    """Tell the call the end of a VM's console, or what came after a place in it."""
    try:
        console = task.app.parts.hypervisor().console(vm, max_bytes=min(max_bytes, CONSOLE_BYTES), after=after)
        _say(task, call, "console", calls.pack(console))
    except MikromError as error:
        _say(task, call, "error", calls.pack(str(error)))


def _carry_out(task: Any, verb: Verb, arguments: dict[str, Any]) -> dict[str, Any]:
    """What became of the order, for people who called the task themselves."""
    sent = msgspec.convert(arguments, SentOrder)
    try:
        order = read_order(sent, lambda: _is_genuine(task, sent))
    except MikromError as error:
        _log.warning("%s: refused, %s", verb, error)
        outcome = refused(sent, verb, task.app.settings.host, str(error))
    else:
        if why := _refusal(task, verb, order, sent.call):
            _log.warning("%s %s: refused, %s", verb, order.action.vm, why, extra=_fields(order))
            outcome = given_up(order, "skipped", why)
        else:
            outcome = _execute(task, order)
    try:
        _say(task, sent.call, "outcome", calls.pack(outcome))
    except RedisError as error:
        _log.warning("%s %s: nobody could be told: %s", verb, outcome.vm, error)
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


def _refusal(task: Any, verb: Verb, order: Order, call: str) -> str | None:
    """Why the order may not be carried out here and now, or None."""
    if order.action.verb != verb:
        return f"the order says {order.action.verb}"
    if order.action.host != task.app.settings.host:
        return f"the order is for host {order.action.host}, this is {task.app.settings.host}"
    if deadlines.is_stopping():
        return "the host's worker is being stopped"
    if not calls.is_awaited(task.app.redis, task.app.keys, call):
        return "nobody waits for it any more"
    return None


def _execute(task: Any, order: Order) -> ActionOutcome:
    try:
        with deadlines.limited(order.action.deadline_s + _MARGIN_S):
            outcome: ActionOutcome = task.app.parts.hypervisor().execute(order)
            return outcome
    except MikromError as error:
        return given_up(order, "failed_temporary", str(error))


def _say(task: Any, call: str, kind: str, body: bytes) -> None:
    owner = f"host:{task.app.settings.host}"
    calls.answer(task.app.redis, task.app.keys, call, owner, kind, body)


def _fields(order: Order) -> dict[str, Any]:
    """What every line of the log carries about an order; the task's id is added where logs are written."""
    return {"run": order.run_id, "vm": order.action.vm, "host": order.action.host}
