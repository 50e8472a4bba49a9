"""What was approved and is something else by now is told, also when the VM is on another host by then."""

from __future__ import annotations

from mikrom_reconcile.control.reconcile import replay, stale_outcomes
from mikrom_reconcile.core.model.plan import Plan, VMChange
from mikrom_reconcile.core.planning.context import actions_of
from tests.samples import change, desired, observed, plan


def planned(*changes: VMChange) -> Plan:
    return plan(*changes, actions=tuple(actions_of(changes, "demo")))


def told(approved: VMChange, *now: VMChange) -> list[tuple[str, str]]:
    return [(outcome.result, outcome.error or "") for outcome in stale_outcomes(planned(approved), planned(*now))]


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


def test_what_waited_and_was_changed_is_stale_and_what_stayed_as_it_was_may_go_on() -> None:
    seen, changed = observed("web-000"), observed("web-000", generation=2)
    wait = change("web-000", "wait", host="hv1", desired=WANTED, observed=seen)
    assert told(wait, change("web-000", "restart", host="hv1", desired=WANTED, observed=seen)) == []
    restart = change("web-000", "restart", host="hv1", desired=WANTED, observed=changed)
    ((result, error),) = told(wait, restart)
    assert (result, "now: restart on hv1" in error) == ("stale", True)
    assert [change.kind for change in replay(planned(wait), planned(restart)).changes] == ["blocked"]


def test_what_needs_nothing_any_more_is_no_matter() -> None:
    assert told(change("web-000", "create", host="hv1", desired=WANTED)) == []


def test_a_removal_says_nothing_of_the_vm_that_is_kept_elsewhere() -> None:
    seen = observed("web-000")
    delete = change("web-000", "delete", host="hv1", observed=seen)
    assert told(delete, change("web-000", "start", host="hv2", desired=WANTED, observed=seen)) == []


def test_a_check_tells_a_vm_that_moved_once() -> None:
    create = change("web-000", "create", host="hv1", desired=WANTED)
    found = replay(planned(create), planned(change("web-000", "create", host="hv2", desired=WANTED)))
    assert [(told.name, told.host, told.kind) for told in found.changes] == [("web-000", "hv2", "blocked")]
    assert len(found.refusals) == 1


def test_a_check_tells_what_the_plan_knew_nothing_of_and_keeps_what_guards_said() -> None:
    held = change("db-000", "blocked", host="hv1", desired=WANTED, reasons=("protected",))
    found = replay(planned(), planned(change("web-000", "start", host="hv1", desired=WANTED), held))
    assert {told.name: told.kind for told in found.changes} == {"web-000": "blocked", "db-000": "blocked"}
    assert [(told.vm, told.rule) for told in found.refusals] == [("web-000", "stale")]
    assert found.actions == ()


def test_a_check_of_a_world_that_stands_still_is_the_plan_itself() -> None:
    approved = planned(change("web-000", "create", host="hv1", desired=WANTED))
    assert replay(approved, approved) is approved
