"""Outcomes of orders of which the host itself said nothing."""

from __future__ import annotations

from datetime import UTC, datetime

from mikrom_reconcile.core.model.plan import Verb
from mikrom_reconcile.core.model.run import ActionOutcome, Order, Result


def given_up(order: Order, result: Result, why: str) -> ActionOutcome:
    """The outcome of an order that was not sent, was refused, or whose end nobody knows."""
    action = order.action
    return ended(action.id, action.vm, action.host, action.verb, result, why)


def ended(action_id: str, vm: str, host: str, verb: Verb, result: Result, why: str) -> ActionOutcome:
    """The outcome of an order of which no more is known than this."""
    now = datetime.now(UTC)
    return ActionOutcome(
        action_id=action_id,
        vm=vm,
        host=host,
        verb=verb,
        result=result,
        started_at=now,
        finished_at=now,
        error=why,
    )
