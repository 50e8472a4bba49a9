"""What an order makes of a VM's record: nothing is done here, and nothing is written."""

from __future__ import annotations

import secrets
from datetime import datetime
from typing import Any

from msgspec.structs import replace

from mikrom_reconcile.core.model.desired import DesiredVM
from mikrom_reconcile.core.model.fields import needs_restart
from mikrom_reconcile.core.model.observed import WANTS_VMM, Attempt, Before, Trial
from mikrom_reconcile.core.model.plan import Order
from mikrom_reconcile.host.ports import VMRecord


def next_record(
    order: Order,
    found: VMRecord | None,
    *,
    tombstone: VMRecord | None,
    now: datetime,
    made_as: str = "",
    proven: bool = False,
) -> VMRecord:
    """What `found` becomes by `order`; a VM with a uid of its own when there is none, or one that was half deleted. A
    new VM goes on with the generation of the last one of its name, which its `tombstone` holds. Its files are called
    `made_as`, if not as itself. `proven` says that `found` has been healthy with its spec.
    """
    action, desired = order.action, order.action.desired
    if found is not None and action.verb in {"import", "forget"}:
        return replace(found, unmanaged=action.verb == "forget", **provenance_fields(order, found))
    if desired is None:
        assert found is not None, "a delete of the absent was answered before"  # noqa: S101
        return replace(found, state="absent", last_error=None, **provenance_fields(order, found))
    if found is not None and action.verb == "rename":
        named = {"vm": action.vm, "fleet": desired.fleet, "spec_digest": desired.spec_digest}
        home = "" if found.home == action.vm else found.home
        return replace(found, **named, made_as=home, **provenance_fields(order, found))
    wanted = _wanted(desired, found, trial=trial_of(order, found, now), before=before_of(order, found, proven=proven))
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
            made_as=made_as,
            attempt=Attempt(spec_digest=desired.spec_digest, count=0),
            **wanted,
        )
    if action.verb == "update":  # changes nothing about what runs, and so nothing about why it does not
        return replace(found, **wanted, **provenance_fields(order, found))
    # a start of the same again, such as Beat's, must not let a crash loop begin anew for ever
    same = action.verb == "start" and found.spec_digest == desired.spec_digest and not found.crash_loop
    restarts = found.restarts if same else ()
    attempt = found.attempt  # what is known of bringing the VM to that spec, None when it was so before
    if attempt is None or attempt.spec_digest != desired.spec_digest:
        was_so = found.spec_digest == desired.spec_digest
        attempt = None if was_so else Attempt(spec_digest=desired.spec_digest, count=0)
    wanted |= provenance_fields(order, found)
    return replace(found, **wanted, attempt=attempt, last_error=None, restarts=restarts, crash_loop=False)


def _wanted(desired: DesiredVM, found: VMRecord | None, **kept: Trial | Before | None) -> dict[str, Any]:
    """The fields that an order of a spec sets, with what is `kept` of how the VM does with it."""
    return {
        "fleet": desired.fleet, "state": desired.state, "spec": desired.spec, "policy": desired.policy,
        "spec_digest": desired.spec_digest, "addresses": desired.addresses,
        "halt": desired.halt or (found.halt if found and found.spec == desired.spec else None),
        **kept,
    }  # fmt: skip


def trial_of(order: Order, found: VMRecord | None, now: datetime) -> Trial | None:
    """The trial of the spec that is ordered. One that the VM had goes on, from the start if it was to be down."""
    desired = order.action.desired
    assert desired is not None, "what is deleted has no trial"  # noqa: S101
    anew = Trial(since=now, token=desired.rollout or order.token)
    if desired.goes_back and found and found.before:
        trial: Trial | None = replace(anew, token=found.before.token)
    elif found is None or found.state == "absent" or needs_restart(found.spec, desired.spec):
        trial = anew
    elif _begins_again(found, desired):
        trial = replace(found.trial or anew, since=now)
    else:
        trial = found.trial
    return trial if trial is None or desired.canary is None else replace(trial, canary=desired.canary)


def before_of(order: Order, found: VMRecord | None, *, proven: bool) -> Before | None:
    """What the VM can go back to: the latest spec but its own with which it has been healthy. A spec that it has proven
    and begins again with is no news, and nothing that its rollout could be blamed for.
    """
    desired = order.action.desired
    if found is None or found.state == "absent" or desired is None:
        return None
    if desired.goes_back or not needs_restart(found.spec, desired.spec):
        return None if proven and not desired.goes_back and _begins_again(found, desired) else found.before
    if proven and found.trial and desired.rollout is not None:
        return Before(spec=found.spec, token=found.trial.token, addresses=found.addresses)
    return None if desired.rollout is None else found.before


def _begins_again(found: VMRecord, desired: DesiredVM) -> bool:
    """Whether a VM that was to be down comes up."""
    return desired.state in WANTS_VMM and (found.state not in WANTS_VMM or found.crash_loop)


def provenance_fields(order: Order, found: VMRecord) -> dict[str, Any]:
    """Who changes the record; an order that carries on where it was interrupted is the same generation."""
    generation = found.generation if found.action_id == order.action.id else found.generation + 1
    return {"generation": generation, "token": order.token, "action_id": order.action.id, "damage": ""}
