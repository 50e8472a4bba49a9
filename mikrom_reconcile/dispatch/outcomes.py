"""Outcomes of orders of which the host itself said nothing."""

from __future__ import annotations

from datetime import UTC, datetime

from mikrom_reconcile.core.model.run import ActionOutcome, Order, Result


def given_up(order: Order, result: Result, why: str) -> ActionOutcome:
    """The outcome of an order that was not sent, was refused, or whose end nobody knows."""
    now = datetime.now(UTC)
    action = order.action
    return ActionOutcome(
        action_id=action.id,
        vm=action.vm,
        host=action.host,
        verb=action.verb,
        result=result,
        started_at=now,
        finished_at=now,
        error=why,
    )
