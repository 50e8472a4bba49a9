"""An order as a message, and how a host opens it: one that it understands only in part it refuses whole."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from mikrom_reconcile import __version__
from mikrom_reconcile.core.model.encoding import UNREADABLE, decoded, ready
from mikrom_reconcile.core.model.errors import MikromError
from mikrom_reconcile.core.model.plan import ActionOutcome, Order, Result, Verb
from mikrom_reconcile.dispatch.transport.broker import ORDERS
from mikrom_reconcile.settings import Settings

if TYPE_CHECKING:
    from mikrom_reconcile.dispatch.transport.signing import Signer

_UNSIGNED = "the order is not signed, and this host has MIKROM_VERIFY_KEY: control needs MIKROM_SIGNING_KEY, its pair"
_FORGED = "the order is not what control signed for this worker: changed, sent before, or both keys are no pair"


class OrderEnvelope(msgspec.Struct, frozen=True, kw_only=True):
    """The arguments of a VM task; `signature` covers `order` (JSON), not `release` nor `spent_s` by attempts before."""

    call: str
    order: str
    release: str = "unknown"
    signature: str = ""
    spent_s: float = 0.0


def load_signer(settings: Settings) -> Signer | None:
    """What signs our orders. Raises SetupError for a key file that cannot be trusted."""
    if settings.signing_key is None:
        return None
    from mikrom_reconcile.dispatch.transport.signing import Signer  # noqa: PLC0415 - only who has a key pays for it

    return Signer(settings.signing_key)


def priority_of(order: Order) -> int:
    """What people asked for goes before what is scheduled, and within both what makes room before what takes it."""
    makes_room, other = ORDERS[order.scheduled]
    return makes_room if order.action.verb in {"stop", "suspend", "delete"} else other


def redacted_args(order: Order) -> str:
    """What Flower, events and logs show instead of the arguments of its task."""
    return f"{order.action.vm} on {order.action.host} · run {order.run_id[:8]}"


def addressed(arguments: dict[str, Any]) -> OrderEnvelope:
    """What an answer needs of the arguments of a task, whatever they are."""
    call, order, release = (str(arguments.get(name, "")) for name in ("call", "order", "release"))
    return OrderEnvelope(call=call, order=order, release=release)


def opened(arguments: dict[str, Any]) -> OrderEnvelope:
    """The arguments of a task as what was sent. Raises MikromError."""
    try:
        return msgspec.convert(arguments, ready(OrderEnvelope))
    except UNREADABLE as error:
        raise MikromError(f"not an order: {error}; {_releases(addressed(arguments))}") from error


def read_order(sent: OrderEnvelope, is_genuine: Callable[[], bool]) -> Order:
    """The order, proved before it is parsed. Raises MikromError saying why it may not be obeyed."""
    if not is_genuine():
        raise MikromError(_FORGED if sent.signature else _UNSIGNED)
    try:
        order = msgspec.json.decode(sent.order, type=ready(Order))
        is_lossy = _loses(msgspec.json.decode(sent.order), msgspec.to_builtins(order))
    except UNREADABLE as error:
        raise MikromError(f"not an order: {error}; {_releases(sent)}") from error
    if is_lossy:
        raise MikromError(f"the order says something that this host does not know; {_releases(sent)}")
    return order


class _Named(msgspec.Struct, frozen=True):
    """What an answer needs of an order that says more, or less, than this release knows."""

    action: dict[str, Any] = {}


def refused(sent: OrderEnvelope, verb: Verb, host: str, why: str) -> ActionOutcome:
    """The outcome of an order that may not be obeyed; control finds it by its action's id, if it has one."""
    action = (decoded(sent.order, _Named) or _Named()).action
    return _outcome(str(action.get("id", "")), str(action.get("vm", "")), host, verb, "failed_permanent", why)


def given_up(order: Order, result: Result, why: str) -> ActionOutcome:
    """The outcome of an order that was not sent, was refused, or whose end nobody knows."""
    action = order.action
    return _outcome(action.id, action.vm, action.host, action.verb, result, why)


def _outcome(action_id: str, vm: str, host: str, verb: Verb, result: Result, why: str) -> ActionOutcome:
    now = datetime.now(UTC)
    return ActionOutcome(
        action_id=action_id, vm=vm, host=host, verb=verb, result=result, started_at=now, finished_at=now, error=why
    )


def _releases(sent: OrderEnvelope) -> str:
    return f"it came from mikrom {sent.release[:32]}, this is {__version__}: upgrade both sides to one release"


def _loses(sent: Any, kept: Any) -> bool:
    if isinstance(sent, dict) and isinstance(kept, dict):
        return any(name not in kept or _loses(value, kept[name]) for name, value in sent.items())
    if isinstance(sent, list) and isinstance(kept, list | tuple):
        return any(map(_loses, sent, kept))
    return False
