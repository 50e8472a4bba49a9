"""An order as a message: which goes first, and what of it everybody may read."""

from __future__ import annotations

from mikrom_reconcile.core.model.run import Order
from mikrom_reconcile.dispatch.transport.redis_keys import ORDERS


def priority_of(order: Order) -> int:
    """What people asked for goes before what is scheduled, and within both what makes room before what takes it."""
    makes_room, other = ORDERS[order.scheduled]
    return makes_room if order.action.verb in {"stop", "delete"} else other


def shown_of(order: Order) -> str:
    """The arguments of its task in Flower, in events and in logs."""
    return f"{order.action.vm} on {order.action.host} · run {order.run_id[:8]}"
