"""Whether an order may be carried out: ordered rules over what the host holds. Read them aloud.

Two controllers, two Beats, a message delivered twice or late, and a paused process that wakes up are all the same
case here: the order's token, uid and generation are not the host's. These rules only judge.
"""

from __future__ import annotations

import msgspec

from mikrom_reconcile.core.model.plan import Expect
from mikrom_reconcile.core.model.run import Order, Result
from mikrom_reconcile.host.ports import VMRecord
from mikrom_reconcile.host.records import Tombstone, UnreadableRecord


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """The result of an order that is not carried out, and why."""

    result: Result
    error: str | None = None


def rejection_of(
    order: Order, found: VMRecord | UnreadableRecord | None, *, tombstone: Tombstone | None, highest_token: int
) -> Answer | None:
    """Why nothing is to be done for `order`, or None when it may be carried out."""
    action = order.action
    if order.token < highest_token:
        newer = f"a newer run (token {highest_token}) has changed project {action.project} here"
        return _stale(f"this order is from a run with token {order.token}, and {newer}")
    if isinstance(found, UnreadableRecord):
        error = f"nothing is done to {action.vm}, because its record cannot be read: {found.reason}"
        return Answer(result="failed_permanent", error=f"{error}; restore the file, or move it away to give the VM up")
    if found is None:
        return _without_record(order, tombstone)
    if found.project != action.project:
        # its owner may have come after the plan was made: the next plan says `blocked`
        return _stale(f"{action.vm} belongs to project {found.project}, not to {action.project}")
    if found.action_id == action.id:
        return None  # the same order again: the executor carries on where it ended
    expected, there = _said(action.expect), f"uid {found.uid}, generation {found.generation}"
    if (action.expect.uid, action.expect.generation) != (found.uid, found.generation):
        return _stale(f"expected {expected}, found {there}; the next plan starts from what is there now")
    if found.state == "absent" and action.verb not in {"create", "delete"}:
        return _stale(f"{action.vm} is half deleted: a create or a delete finishes that first")
    return None


def _without_record(order: Order, tombstone: Tombstone | None) -> Answer | None:
    action = order.action
    if action.verb == "delete":
        return Answer(result="already_done")
    if action.expect.uid is None and action.verb == "create":
        return None  # the generation is not compared: nobody who saw no record could know a tombstone's
    gone = f", deleted at generation {tombstone.generation}" if tombstone else ""
    return _stale(f"expected {_said(action.expect)}, found no {action.vm}{gone}")


def _said(expect: Expect) -> str:
    return "no such VM" if expect.uid is None else f"uid {expect.uid}, generation {expect.generation}"


def _stale(error: str) -> Answer:
    return Answer(result="stale", error=error)
