"""What a host does with orders, over every driver: each verb, and every way in which an order can come wrong.

`test_host_gevent.py` runs all of it again in greenlets.
"""

from __future__ import annotations

import secrets
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from mikrom_reconcile.core.model.encoding import fleet_digest
from mikrom_reconcile.core.model.observed import ObserveQuery
from mikrom_reconcile.core.model.plan import Order, Verb
from tests.contract.drivers import Bench, SimulatedBench
from tests.contract.hosts import Host
from tests.fakes import BIGGER, SPEC, desired_vm, order
from tests.guests import SLOWNESS

VM = "web-000"
ALL_VERBS: tuple[Verb, ...] = ("create", "start", "stop", "pause", "resume", "update", "restart", "delete")


@pytest.fixture
def host(bench: Bench, own_environment: Path) -> Host:
    return Host(bench, own_environment)


# ---- the verbs ------------------------------------------------------------------------------------------------


def test_a_vm_lives_through_every_verb_and_leaves_nothing(host: Host) -> None:
    seen = host.created(VM)
    assert (seen.phase, seen.project, seen.drift, seen.generation) == ("running", "shop", (), 1)
    assert [seen.pid] == host.bench.pids(VM)
    steps: list[tuple[Verb, str]] = [
        ("stop", "stopped"), ("start", "running"), ("update", "running"), ("pause", "paused"), ("resume", "running"),
        ("pause", "paused"), ("restart", "running"), ("pause", "paused"), ("stop", "stopped"), ("pause", "paused"),
    ]  # fmt: skip
    for generation, (verb, phase) in enumerate(steps, start=2):
        wanted = desired_vm(VM, prune_max=9) if verb == "update" else None
        outcome = host.agent.execute(order(verb, VM, seen, desired=wanted))
        assert outcome.result == "done", (verb, outcome.error)
        assert outcome.observed is not None
        assert (outcome.observed.phase, outcome.observed.generation) == (phase, generation)
        assert outcome.observed.uid == seen.uid
        assert len(host.bench.pids(VM)) == (phase != "stopped")
        assert host.seen(VM) == outcome.observed
        seen = outcome.observed
    deleted = host.agent.execute(order("delete", VM, seen))
    assert (deleted.result, deleted.observed) == ("done", None), deleted.error
    assert host.seen(VM) is None
    assert host.bench.pids(VM) == []
    assert host.leftovers() == []


def test_a_stopped_guest_was_asked_and_not_killed(host: Host) -> None:
    seen = host.created(VM)
    host.agent.execute(order("stop", VM, seen))
    assert b"MIKROM-CAD bye" in host.agent.console(VM, max_bytes=1000).content


def test_restart_gives_the_vmm_its_new_spec_and_update_touches_no_process(host: Host) -> None:
    seen = host.created(VM)
    (before,) = host.bench.pids(VM)
    updated = host.agent.execute(order("update", VM, seen, desired=desired_vm(VM, prune_max=9))).observed
    assert host.bench.pids(VM) == [before]
    outcome = host.agent.execute(order("restart", VM, updated, desired=desired_vm(VM, BIGGER)))
    assert outcome.result == "done", outcome.error
    assert host.bench.pids(VM) != [before]
    assert host.next_order(VM, desired_vm(VM, BIGGER)) is None


def test_a_vm_that_is_to_be_paused_boots_and_is_paused(host: Host) -> None:
    paused = desired_vm(VM, state="paused")
    seen = host.created(VM, paused)
    assert (seen.phase, host.next_order(VM, paused)) == ("paused", None)
    bigger = desired_vm(VM, BIGGER, state="paused")
    assert [outcome.verb for outcome in host.converge(VM, bigger)] == ["restart"]
    host.bench.kill(VM)
    assert [outcome.verb for outcome in host.converge(VM, bigger)] == ["start"]
    assert [outcome.verb for outcome in host.converge(VM, desired_vm(VM, BIGGER))] == ["resume"]
    assert len(host.bench.pids(VM)) == 1


def test_a_guest_that_somebody_else_paused_or_resumed_is_put_right(host: Host) -> None:
    host.created(VM)
    host.bench.driver.set_paused(host.record(VM), paused=True, deadline_s=5)
    assert [outcome.verb for outcome in host.converge(VM, desired_vm(VM))] == ["resume"]
    host.converge(VM, desired_vm(VM, state="paused"))
    host.bench.driver.set_paused(host.record(VM), paused=False, deadline_s=5)
    assert [outcome.verb for outcome in host.converge(VM, desired_vm(VM, state="paused"))] == ["pause"]


def test_a_killed_vmm_and_a_hung_one_are_seen_and_brought_back(host: Host) -> None:
    host.created(VM)
    for harm, phase in ((host.bench.kill, "killed"), (host.bench.hang, "unresponsive")):
        harm(VM)
        seen = host.seen(VM)
        assert seen is not None
        assert seen.phase == phase
        assert [outcome.result for outcome in host.converge(VM, desired_vm(VM))] == ["done"]
        assert len(host.bench.pids(VM)) == 1


def test_a_vmm_that_answers_again_is_not_restarted_for_its_silence(host: Host) -> None:
    host.created(VM)
    (before,) = host.bench.pids(VM)
    host.bench.hang(VM)
    restart = host.next_order(VM, desired_vm(VM))
    assert restart is not None
    host.bench.go_on(VM)
    assert host.agent.execute(restart).result == "stale"
    assert host.bench.pids(VM) == [before]
    assert host.next_order(VM, desired_vm(VM)) is None


def test_an_order_that_failed_on_a_vm_that_lives_leaves_it_to_its_supervision(host: Host) -> None:
    seen = host.created(VM)
    hanging = host.another(lambda vm, step: host.bench.hang(vm) if step == "pausing" else None)
    outcome = hanging.execute(order("pause", VM, seen, deadline_s=5.0 * SLOWNESS))
    assert outcome.result == "failed_temporary"
    assert host.record(VM).last_error is None
    host.bench.kill(VM)
    now = host.seen(VM)
    assert now is not None
    assert now.phase == "killed", "failed would be left to the next run"
    assert [outcome.result for outcome in host.converge(VM, desired_vm(VM, state="paused"))] == ["done"]


def test_a_fleet_that_is_as_ordered_has_the_digest_that_control_computes_from_its_wishes(host: Host) -> None:
    wishes = [desired_vm("web-000"), desired_vm("web-001", state="stopped")]
    for wish in wishes:
        host.created(wish.name, wish)
    expected = fleet_digest((wish.name, wish.spec_digest, wish.state, ()) for wish in wishes)
    report = host.agent.observe(ObserveQuery(project="shop", known={"web": expected}))
    assert (report.digests, report.vms) == ({"web": expected}, ())
    host.bench.kill("web-000")
    report = host.agent.observe(ObserveQuery(project="shop", known={"web": expected}))
    assert [(row.name, row.phase) for row in report.vms] == [("web-000", "killed"), ("web-001", "stopped")]


def test_a_refused_spec_changes_nothing(host: Host) -> None:
    outcome = host.agent.execute(order("create", VM, desired=desired_vm(VM, type(SPEC)(image="nope"))))
    assert outcome.result == "failed_permanent"
    assert "nope" in (outcome.error or "")
    assert host.leftovers() == []


# ---- orders that come twice, late, or from another time ---------------------------------------------------------


def test_an_order_that_comes_twice_has_no_second_effect(host: Host) -> None:
    seen = host.created(VM)
    orders = [order("create", VM), order("update", VM, seen, desired=desired_vm(VM, prune_max=9))]
    for given_order, result in ((orders[0], "already_done"), (orders[1], "done"), (orders[1], "already_done")):
        before = host.bench.pids(VM)
        assert host.agent.execute(given_order).result == result
        assert host.bench.pids(VM) == before
    assert host.agent.execute(orders[0]).result == "stale", "a late one after a newer one"
    delete = order("delete", VM, host.seen(VM))
    assert [host.agent.execute(delete).result for _ in range(2)] == ["done", "already_done"]


def test_an_order_from_an_older_run_is_stale_whichever_vm_the_newer_run_changed(host: Host) -> None:
    host.token = 9
    host.created("web-000")
    late = host.agent.execute(order("create", "web-001", token=8))
    assert late.result == "stale"
    assert "token 9" in (late.error or "")
    assert host.bench.pids("web-001") == []
    other = order("create", "cms-000", desired=desired_vm("cms-000", project="blog"), project="blog", token=1)
    assert host.agent.execute(other).result == "done", "tokens of one project fence no other"
    report = host.another().observe(ObserveQuery())
    assert report.highest_tokens == {"blog": 1, "shop": 9}


def test_a_late_delete_does_not_reach_the_next_vm_of_that_name(host: Host) -> None:
    delete = order("delete", VM, host.created(VM))
    assert host.agent.execute(delete).result == "done"
    seen = host.created(VM)
    assert host.agent.execute(delete).result == "stale"
    assert host.seen(VM) == seen


def test_a_vm_of_another_project_is_left_alone(host: Host) -> None:
    foreign = host.created(VM)
    for verb in ALL_VERBS:
        for expected in (foreign, None):
            outcome = host.agent.execute(order(verb, VM, expected, project="blog", token=99))
            assert outcome.result == "stale", verb
    assert host.seen(VM) == foreign


@pytest.mark.parametrize(
    "content", [b"", b'{"format_version":1,', b'{"format_version":2}', b'{"format_version":1,"checksum":"x"}']
)
def test_a_vm_whose_record_cannot_be_read_is_reported_and_left_alone(host: Host, content: bytes) -> None:
    seen = host.created(VM)
    path = host.state_dir / "vms" / VM / "record.json"
    whole = path.read_bytes()
    path.write_bytes(content)
    copy = host.state_dir / "copies" / f"{VM}.json"
    copy.unlink()
    row = host.seen(VM)
    assert row is not None
    assert (row.phase, row.project) == ("unreadable", "")
    for verb in ALL_VERBS:
        outcome = host.agent.execute(order(verb, VM, seen))
        assert outcome.result == "failed_permanent"
        assert "record.json" in (outcome.error or "")
    assert path.read_bytes() == content
    assert len(host.bench.pids(VM)) == 1
    path.write_bytes(whole)
    assert host.seen(VM) == seen


def test_a_record_that_was_deleted_under_a_running_vm_is_written_anew(host: Host) -> None:
    host.created(VM)
    pids = host.bench.pids(VM)
    (host.state_dir / "vms" / VM / "record.json").unlink()
    assert [(outcome.verb, outcome.result) for outcome in host.converge(VM, desired_vm(VM))] == [("update", "done")]
    assert (host.state_dir / "vms" / VM / "record.json").exists()
    assert host.bench.pids(VM) == pids


def test_a_vmm_without_a_record_may_be_anybodys_and_is_left_alone(host: Host) -> None:
    host.created(VM)
    (host.state_dir / "vms" / VM / "record.json").unlink()
    (host.state_dir / "copies" / f"{VM}.json").unlink()
    pids = host.bench.pids(VM)
    outcome = host.agent.execute(order("create", VM))
    assert outcome.result == "failed_permanent"
    assert "without a record" in (outcome.error or "")
    assert host.bench.pids(VM) == pids
    assert host.records.read(VM) is None


@pytest.mark.parametrize("verb", ["create", "delete"])
def test_what_a_killed_writer_left_of_a_vm_without_a_record_goes_with_the_next_order(host: Host, verb: Verb) -> None:
    draft = host.state_dir / "vms" / VM / "record.json.new"
    draft.parent.mkdir(parents=True)
    draft.write_text('{"format_ver')
    assert host.seen(VM) is None
    result = host.agent.execute(order(verb, VM)).result
    assert result == ("done" if verb == "create" else "already_done")
    assert not draft.exists()
    assert draft.parent.exists() == (verb == "create")


def test_whoever_holds_the_lock_is_not_waited_for(host: Host) -> None:
    with host.records.lock(VM):
        outcome = host.another().execute(order("create", VM))
    assert outcome.result == "failed_temporary"
    assert "another order is at work" in (outcome.error or "")
    assert host.leftovers() == []


@pytest.mark.parametrize("late", ["already_done", "stale"])
def test_of_many_orders_for_one_vm_at_once_exactly_one_acts(host: Host, late: str) -> None:
    orders = [order("create", VM)] * 8
    if late == "stale":
        orders = [order("create", VM, desired=desired_vm(VM, prune_max=number)) for number in range(8)]
    at_once = threading.Barrier(8)

    def execute(given_order: Order) -> str:
        agent = host.another()
        at_once.wait(10)
        return agent.execute(given_order).result

    with ThreadPoolExecutor(8) as pool:
        results = Counter(pool.map(execute, orders))
    assert results["done"] == 1, results
    assert set(results) <= {"done", "failed_temporary", late}
    assert len(host.bench.pids(VM)) == 1
    assert host.record(VM).generation == 1


CHOICES: dict[str, list[Verb]] = {
    "none": ["create"],
    "running": ["start", "stop", "update", "restart", "pause", "delete"],
    "paused": ["resume", "stop", "pause", "restart", "delete"],
    "stopped": ["start", "stop", "pause", "delete"],
}


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(choices=st.lists(st.integers(0, 5), min_size=1, max_size=8), random=st.randoms(use_true_random=False))
def test_old_orders_replayed_in_any_order_change_nothing(
    own_environment: Path, choices: list[int], random: Random
) -> None:
    folder = own_environment / secrets.token_hex(4)
    host = Host(SimulatedBench(folder), folder)
    history: list[Order] = []
    for token, choice in enumerate(choices, start=1):
        seen = host.seen(VM)
        verbs = CHOICES[seen.phase if seen else "none"]
        given_order = order(verbs[choice % len(verbs)], VM, seen, token=token)
        history.append(given_order)
        assert host.agent.execute(given_order).result == "done"
    before = host.seen(VM)
    late = history * 2
    random.shuffle(late)
    for given_order in late:
        expected = "already_done" if given_order == history[-1] else "stale"
        assert host.another().execute(given_order).result == expected
        assert host.seen(VM) == before
