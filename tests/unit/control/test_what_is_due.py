"""What of a later look was approved with the plan: what waited in it counts only as long as nobody changed it."""

from __future__ import annotations

import pytest

from mikrom_reconcile.control.reconcile import remembered, runnable_actions
from mikrom_reconcile.core.model.observed import Placements
from mikrom_reconcile.core.model.plan import ActionOutcome, Plan, Result, VMChange
from mikrom_reconcile.core.planning.context import PlanResult, actions_of
from tests.samples import NOW, change, observed, plan


def planned(*changes: VMChange) -> Plan:
    return plan(*changes, actions=tuple(actions_of(changes, "demo")))


def verbs(approved: VMChange, now: VMChange) -> list[str]:
    return [action.verb for action in runnable_actions(planned(approved), planned(now), [])]


def test_what_waited_is_done_however_it_ended_up_by_itself() -> None:
    waits = change("web-000", "wait", wanted="restart", observed=observed("web-000", generation=3))
    for kind in ("restart", "start"):
        assert verbs(waits, change("web-000", kind, observed=observed("web-000", generation=3))) == [kind]


def test_what_somebody_changed_while_it_waited_was_not_approved() -> None:
    waits = change("web-000", "wait", wanted="restart", observed=observed("web-000", generation=3))
    assert verbs(waits, change("web-000", "start", observed=observed("web-000", generation=4))) == []
    assert verbs(waits, change("web-000", "create")) == []


def test_a_move_that_waited_is_brought_to_its_end() -> None:
    there = observed("web-000", generation=3)
    waits = change("web-000", "wait", wanted="move", observed=there)
    assert verbs(waits, change("web-000", "move", observed=there)) == ["delete"]
    for begun in (waits, change("web-000", "move", observed=there)):
        assert verbs(begun, change("web-000", "create")) == ["create"]


@pytest.mark.parametrize(("result", "kept"), [("failed_temporary", True), ("stale", False), (None, False)])
def test_a_create_is_remembered_if_this_run_has_tried_it(result: Result | None, *, kept: bool) -> None:
    now = planned(change("web-000", "create", host="hv01"))
    (action,) = now.actions
    memory = Placements(vms={"web-000": "hv01", "db-000": "hv02"})
    decision = PlanResult(plan=now, placements=memory, highest_token=0)
    outcomes = [
        ActionOutcome(
            action_id="a", vm="web-000", host="hv01", verb="create", result=found, started_at=NOW, finished_at=NOW
        )
        for found in ([result] if result else [])
    ]
    assert remembered(decision, [action], []) == memory
    expected = memory if kept else Placements(vms={"db-000": "hv02"})
    assert remembered(decision, [], outcomes) == expected
