"""What each verb does on a host, step by step; the driver is a fake that does as it is told."""

from __future__ import annotations

import pytest

from mikrom_reconcile.core.model.observed import VMMFacts
from mikrom_reconcile.host.agent import HostAgent
from mikrom_reconcile.host.observe import row_of
from mikrom_reconcile.times_and_sizes import ORDERS
from tests.fakes import BIGGER, HOST, desired_vm, order
from tests.unit.host.conftest import PERMANENT, TEMPORARY, VM, Host, error


def test_create_records_boots_verifies_and_reports_what_it_saw(host: Host) -> None:
    given = order("create", VM, token=5)
    outcome = host.execute(given)
    assert outcome.result == "done"
    assert host.steps == ["recording the order", "starting", "verifying", "done"]
    record = host.record()
    assert (record.generation, record.token, record.action_id) == (1, 5, given.action.id)
    assert (record.attempt, record.last_error) == (None, None)
    assert outcome.observed is not None
    assert (outcome.observed.phase, outcome.observed.uid) == ("running", record.uid)
    assert outcome.observed == row_of(record, host.driver.observe(record), HOST)


def test_create_of_a_stopped_vm_boots_nothing(host: Host) -> None:
    outcome = host.execute(order("create", VM, desired=desired_vm(VM, state="stopped")))
    assert outcome.result == "done"
    assert host.driver.calls == []
    assert outcome.observed is not None
    assert outcome.observed.phase == "stopped"


def test_stop_asks_the_guest_and_leaves_time_to_kill_it(host: Host) -> None:
    seen = host.created()
    assert host.execute(order("stop", VM, seen)).result == "done"
    assert host.driver.calls == ["stop"]
    assert host.driver.graces == [ORDERS.shutdown_grace_s]
    again = host.execute(order("start", VM, host.record())).observed
    host.execute(order("stop", VM, again, deadline_s=4))
    assert host.driver.graces[-1] == 2


def test_start_boots_what_is_down_with_the_spec_that_is_ordered(host: Host) -> None:
    seen = host.created()
    host.driver.vmms.clear()
    outcome = host.execute(order("start", VM, seen, desired=desired_vm(VM, BIGGER)))
    assert outcome.result == "done"
    assert host.driver.vmms[VM] == BIGGER
    assert (host.record().spec, host.record().uid, host.record().generation) == (BIGGER, seen.uid, 2)


def test_start_of_what_runs_as_ordered_touches_no_process(host: Host) -> None:
    seen = host.created()
    assert host.execute(order("start", VM, seen, token=2)).result == "done"
    assert host.driver.calls == []
    assert (host.record().generation, host.record().token) == (2, 2)


def test_start_of_what_came_up_with_another_spec_is_left_to_a_restart_under_the_share(host: Host) -> None:
    seen = host.created()
    outcome = host.execute(order("start", VM, seen, desired=desired_vm(VM, BIGGER)))
    assert (outcome.result, host.driver.calls) == ("stale", [])
    assert "only a restart" in error(outcome)


@pytest.mark.parametrize("there", ["drift", "unresponsive", "socket_lost"])
def test_start_of_what_runs_otherwise_restarts_it(host: Host, there: str) -> None:
    seen = host.created()
    wanted = desired_vm(VM)
    if there == "drift":
        host.driver.vmms[VM] = BIGGER
    if there in {"unresponsive", "socket_lost"}:
        host.driver.facts[VM] = VMMFacts(status=there, pid=1)  # type: ignore[arg-type]
    assert host.execute(order("start", VM, seen, desired=wanted)).result == "done"
    assert host.driver.calls == ["stop", "start"]
    assert host.driver.vmms[VM] == wanted.spec


def test_restart_orders_down_before_it_records_a_new_spec(host: Host) -> None:
    seen = host.created()
    states: list[tuple[str, str, int]] = []

    def look(_vm: str, step: str) -> None:
        states.append((step, host.record().state, host.record().spec.machine.mem_size_mib))

    watched = HostAgent(HOST, driver=host.driver, records=host.records, clock=host.clock, on_step=look)
    assert watched.execute(order("restart", VM, seen, desired=desired_vm(VM, BIGGER))).result == "done"
    assert states == [
        ("recording that it goes down", "running", 4),
        ("stopping", "stopped", 4),
        ("recording the order", "stopped", 4),
        ("starting", "running", 8),
        ("verifying", "running", 8),
        ("done", "running", 8),
    ]
    assert host.record().generation == 2, "one order is one generation"


def test_update_changes_the_record_alone(host: Host) -> None:
    seen = host.created()
    outcome = host.execute(order("update", VM, seen, desired=desired_vm(VM, prune_max=9)))
    assert outcome.result == "done"
    assert host.driver.calls == []
    assert (host.record().policy.prune_max, host.record().generation) == (9, 2)
    assert outcome.observed is not None
    assert outcome.observed.phase == "running"


def test_update_respecifies_what_is_down_and_refuses_what_runs(host: Host) -> None:
    seen = host.created()
    refused = host.execute(order("update", VM, seen, desired=desired_vm(VM, BIGGER)))
    assert refused.result == "failed_permanent"
    assert "restart it" in error(refused)
    assert (host.record().generation, host.record().last_error) == (1, None), "a refusal was recorded"
    stopped = host.execute(order("stop", VM, seen)).observed
    wanted = desired_vm(VM, BIGGER, state="stopped")
    assert host.execute(order("update", VM, stopped, desired=wanted)).result == "done"
    assert host.record().spec == BIGGER


def test_update_of_a_failed_vm_does_not_forget_why_it_failed(host: Host) -> None:
    host.driver.faults["start"] = [PERMANENT]
    seen = host.execute(order("create", VM)).observed
    host.execute(order("update", VM, seen, desired=desired_vm(VM, prune_max=9)))
    assert "bad kernel" in (host.record().last_error or "")
    assert host.record().attempt is not None


def test_delete_leaves_a_tombstone_whose_generation_goes_on(host: Host) -> None:
    seen = host.created()
    outcome = host.execute(order("delete", VM, seen))
    assert (outcome.result, outcome.observed) == ("done", None)
    assert host.driver.calls == ["stop", "delete"]
    assert host.driver.vmms == {}
    assert list((host.path / "vms").iterdir()) == []
    again = host.created()
    assert again.generation == 3, "created, deleted, created"
    assert again.uid != seen.uid


def test_delete_goes_on_when_the_guest_cannot_be_stopped(host: Host) -> None:
    seen = host.created()
    host.driver.faults["stop"] = [TEMPORARY]
    assert host.execute(order("delete", VM, seen)).result == "done"
    assert host.driver.vmms == {}


def test_delete_that_fails_keeps_the_record_and_is_finished_by_the_next_create(host: Host) -> None:
    seen = host.created()
    host.driver.faults["delete"] = [TEMPORARY]
    outcome = host.execute(order("delete", VM, seen))
    assert outcome.result == "failed_temporary"
    assert outcome.observed is not None
    assert (outcome.observed.phase, host.record().state) == ("deleting", "absent")
    created = host.execute(order("create", VM, outcome.observed))
    assert created.result == "done", created.error
    assert host.driver.calls == ["delete", "start"]
    assert created.observed is not None
    assert created.observed.uid != seen.uid
    assert created.observed.generation == outcome.observed.generation + 1
