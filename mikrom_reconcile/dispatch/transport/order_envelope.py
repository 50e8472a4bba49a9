"""An order as it travels, and how a host takes it apart without believing it.

Control and hosts are upgraded one after the other: an order that this release understands only in part is refused
whole, because a VM made without a field that its spec has would look as if it were as wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from mikrom_reconcile import __version__
from mikrom_reconcile.core.model.errors import MikromError
from mikrom_reconcile.core.model.plan import Verb
from mikrom_reconcile.core.model.ready import ready
from mikrom_reconcile.core.model.run import ActionOutcome, Order
from mikrom_reconcile.dispatch.transport.unreported import ended

_UNSIGNED = "the order is not signed, and this host has MIKROM_VERIFY_KEY: control needs MIKROM_SIGNING_KEY, its pair"
_FORGED = "the order is not what control signed for this worker: changed, sent before, or both keys are no pair"


class SentOrder(msgspec.Struct, frozen=True, kw_only=True):
    """The arguments of a VM task. `order` is the JSON of an `Order`; `signature` is hexadecimal, empty without a key.

    `release` is that of the sender and proves nothing: it is there for the message.
    `spent_s` of the action's deadline have passed in earlier attempts; the host itself says so, and nobody signs it.
    """

    call: str
    order: str
    release: str = "unknown"
    signature: str = ""
    spent_s: float = 0.0


def read_order(sent: SentOrder, is_genuine: Callable[[], bool]) -> Order:
    """The order, proved before it is parsed. Raises MikromError saying why it may not be obeyed."""
    if not is_genuine():
        raise MikromError(_FORGED if sent.signature else _UNSIGNED)
    try:
        order = msgspec.json.decode(sent.order, type=ready(Order))
        is_lossy = _loses(msgspec.json.decode(sent.order), msgspec.to_builtins(order))
    except (msgspec.MsgspecError, RecursionError) as error:
        raise MikromError(f"not an order: {error}; {_releases(sent)}") from error
    if is_lossy:
        raise MikromError(f"the order says something that this host does not know; {_releases(sent)}")
    return order


class _Names(msgspec.Struct, frozen=True):
    """What an answer needs of an order that says more, or less, than this release knows."""

    id: str = ""
    vm: str = ""


class _Named(msgspec.Struct, frozen=True):
    action: _Names = _Names()


def refused(sent: SentOrder, verb: Verb, host: str, why: str) -> ActionOutcome:
    """The outcome of an order that may not be obeyed; control finds it by its action's id, if it has one."""
    try:
        action = msgspec.json.decode(sent.order, type=ready(_Named)).action
    except (msgspec.MsgspecError, RecursionError):
        action = _Names()
    return ended(action.id, action.vm, host, verb, "failed_permanent", why)


def _releases(sent: SentOrder) -> str:
    return f"it came from mikrom {sent.release[:32]}, this is {__version__}: upgrade both sides to one release"


def _loses(sent: Any, kept: Any) -> bool:
    """Whether a field of `sent` is not in what was made of it."""
    if isinstance(sent, dict) and isinstance(kept, dict):
        return any(name not in kept or _loses(value, kept[name]) for name, value in sent.items())
    if isinstance(sent, list) and isinstance(kept, list | tuple):
        return any(map(_loses, sent, kept))
    return False
