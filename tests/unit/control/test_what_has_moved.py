"""What was approved and is something else by now is told, also when the VM is on another host by then."""

from __future__ import annotations

from mikrom_reconcile.control.reconcile import moved
from mikrom_reconcile.core.model.plan import Plan, VMChange
from mikrom_reconcile.core.plan import actions_of
from tests.samples import change, desired, observed, plan


def planned(*changes: VMChange) -> Plan:
    return plan(*changes, actions=tuple(actions_of(changes, "demo")))


def told(approved: VMChange, *now: VMChange) -> list[tuple[str, str]]:
    return [(outcome.result, outcome.error or "") for outcome in moved(planned(approved), planned(*now))]


WANTED = desired("web-000")


def test_what_needs_something_else_on_another_host_is_stale() -> None:
    create = change("web-000", "create", host="hv1", desired=WANTED)
    ((result, error),) = told(create, change("web-000", "create", host="hv2", desired=WANTED))
    assert result == "stale"
    assert "now: create on hv2" in error


def test_a_move_whose_vm_is_elsewhere_by_now_is_stale() -> None:
    seen = observed("web-000")
    move = change("web-000", "move", host="hv1", desired=WANTED, observed=seen)
    ((result, _),) = told(move, change("web-000", "restart", host="hv3", desired=WANTED, observed=seen))
    assert result == "stale"


def test_what_needs_nothing_any_more_is_no_matter() -> None:
    assert told(change("web-000", "create", host="hv1", desired=WANTED)) == []


def test_a_removal_says_nothing_of_the_vm_that_is_kept_elsewhere() -> None:
    seen = observed("web-000")
    delete = change("web-000", "delete", host="hv1", observed=seen)
    assert told(delete, change("web-000", "start", host="hv2", desired=WANTED, observed=seen)) == []
