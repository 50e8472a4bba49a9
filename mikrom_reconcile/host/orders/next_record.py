"""The record that an order asks for. It only says what is to be written; when, is a deed's matter."""

from __future__ import annotations

import secrets
from datetime import datetime
from typing import Any

from msgspec.structs import replace

from mikrom_reconcile.core.model.desired import DesiredVM
from mikrom_reconcile.core.model.observed import Attempt
from mikrom_reconcile.core.model.run import Order
from mikrom_reconcile.host.ports import VMRecord
from mikrom_reconcile.host.records import Tombstone


def next_record(order: Order, found: VMRecord | None, *, tombstone: Tombstone | None, now: datetime) -> VMRecord:
    """What `found` becomes by `order`; a VM with a uid of its own when there is none, or one that was half deleted.

    A new VM goes on with the generation of the last one of its name, which its `tombstone` holds.
    """
    action, desired = order.action, order.action.desired
    if desired is None:
        assert found is not None, "the fence answers a delete of the absent"  # noqa: S101
        return replace(found, state="absent", last_error=None, **stamp(order, found))
    wanted: dict[str, Any] = {
        "fleet": desired.fleet, "state": desired.state, "spec": desired.spec, "policy": desired.policy,
        "spec_digest": desired.spec_digest, "addresses": desired.addresses,
    }  # fmt: skip
    if found is None or found.state == "absent":
        last = found or tombstone
        return VMRecord(
            vm=action.vm,
            uid=secrets.token_hex(8),
            project=action.project,
            generation=1 + (last.generation if last else 0),
            token=order.token,
            action_id=action.id,
            created_at=now,
            attempt=Attempt(spec_digest=desired.spec_digest, count=0),
            **wanted,
        )
    if action.verb == "update":  # changes nothing about what runs, and so nothing about why it does not
        return replace(found, **wanted, **stamp(order, found))
    # a start of the same again, such as Beat's, must not let a crash loop begin anew for ever
    same = action.verb == "start" and found.spec_digest == desired.spec_digest and not found.parked
    restarts = found.restarts if same else ()
    attempt = _attempt(found, desired)
    stamped = stamp(order, found)
    return replace(found, **wanted, **stamped, attempt=attempt, last_error=None, restarts=restarts, parked=False)


def _attempt(found: VMRecord, desired: DesiredVM) -> Attempt | None:
    """What is known of bringing the VM to `desired`; None when it was so before."""
    if found.attempt is not None and found.attempt.spec_digest == desired.spec_digest:
        return found.attempt
    return None if found.spec_digest == desired.spec_digest else Attempt(spec_digest=desired.spec_digest, count=0)


def stamp(order: Order, found: VMRecord) -> dict[str, Any]:
    """Who changes the record; an order that carries on where it was interrupted is the same generation."""
    generation = found.generation if found.action_id == order.action.id else found.generation + 1
    return {"generation": generation, "token": order.token, "action_id": order.action.id, "damage": ""}
