"""Deeds by name: which VMs are meant, and what a verb means for a VM as it is."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from mikrom_reconcile.core.model.desired import Policy, State
from mikrom_reconcile.core.model.errors import UsageError
from mikrom_reconcile.core.model.observed import (
    Capacity,
    Drift,
    HostReport,
    HostView,
    ObservedState,
    ObservedVM,
    Phase,
    Placements,
)
from mikrom_reconcile.core.model.plan import Plan, Verb
from mikrom_reconcile.core.planning.one_off import PAST_THE_SPECS, decide_by_name
from tests.samples import NOW, observed


def row(name: str, phase: Phase = "running", state: State = "running", **fields: Any) -> ObservedVM:
    return observed(name, phase=phase, state=state, host="hv01", **fields)


def planned(verb: Verb, names: tuple[str, ...], *rows: ObservedVM, acted_on: tuple[str, ...] = ()) -> Plan:
    report = HostReport(host="hv01", observed_at=NOW, capacity=Capacity(vcpu_count=2, mem_size_mib=1024), vms=rows)
    views = (HostView(host="hv01", report=report),)
    return decide_by_name(
        verb, names, ObservedState(taken_at=NOW, hosts=views), frozenset(acted_on), "demo" if acted_on else ""
    ).plan


@pytest.mark.parametrize(
    ("verb", "phase", "state", "kind"),
    [
        ("start", "running", "running", None),
        ("start", "stopped", "stopped", "start"),
        ("start", "crash_loop", "running", "start"),
        ("start", "paused", "paused", "resume"),
        ("start", "stopping", "stopped", "restart"),
        ("start", "unresponsive", "running", "restart"),
        ("stop", "running", "running", "stop"),
        ("stop", "paused", "paused", "stop"),
        ("stop", "crashed", "running", "stop"),
        ("stop", "stopped", "stopped", None),
        ("pause", "running", "running", "pause"),
        ("pause", "paused", "paused", None),
        ("pause", "stopped", "stopped", "blocked"),
        ("resume", "paused", "paused", "resume"),
        ("resume", "crashed", "running", "blocked"),
        ("suspend", "running", "running", "suspend"),
        ("suspend", "paused", "paused", "suspend"),
        ("suspend", "suspended", "suspended", None),
        ("suspend", "stopped", "suspended", None),
        ("suspend", "stopped", "stopped", "blocked"),
        ("pause", "suspended", "suspended", "blocked"),
        ("start", "suspended", "suspended", "start"),
        ("resume", "suspended", "suspended", "start"),
        ("stop", "suspended", "suspended", "stop"),
        ("restart", "suspended", "suspended", "restart"),
        ("restart", "running", "running", "restart"),
        ("restart", "paused", "paused", "restart"),
        ("restart", "stopped", "stopped", "start"),
        ("delete", "running", "running", "delete"),
        ("delete", "deleting", "absent", "delete"),
        ("start", "deleting", "absent", "blocked"),
        ("delete", "unreadable", "stopped", "blocked"),
    ],
)
def test_what_a_verb_means_for_a_vm(verb: Verb, phase: Phase, state: State, kind: str | None) -> None:
    plan = planned(verb, ("web-000",), row("web-000", phase, state))
    assert [change.kind for change in plan.changes] == ([kind] if kind else [])
    assert sum(plan.unchanged.values()) == (kind is None)
    assert [action.vm for action in plan.actions] == ([] if kind in {None, "blocked"} else ["web-000"])


def test_names_may_be_patterns_and_each_has_to_mean_something() -> None:
    rows = [row(f"web-{number:03d}") for number in (0, 1, 10)] + [row("db-000")]
    assert [action.vm for action in planned("stop", ("web-00*", "db-000"), *rows).actions] == [
        "db-000", "web-000", "web-001",
    ]  # fmt: skip
    with pytest.raises(UsageError, match="no host has a VM 'web-9'; did you mean web-0"):
        planned("stop", ("web-000", "web-9"), *rows)


def test_vms_of_several_projects_are_not_taken_in_one_run() -> None:
    with pytest.raises(UsageError, match=r"several projects \(blog, shop\)"):
        planned("stop", ("*",), row("web-000", project="shop"), row("cms-000", project="blog"))


def test_a_name_that_two_projects_have_is_not_guessed_by_its_tokens() -> None:
    with pytest.raises(UsageError, match=r"several projects \(blog, shop\)"):
        planned("delete", ("web-000",), row("web-000", project="shop", token=9), row("web-000", project="blog"))


def test_a_vm_that_cannot_be_read_belongs_to_nobody() -> None:
    unreadable = row("web-000", "unreadable", "stopped", project="", last_error="its checksum is wrong")
    with pytest.raises(UsageError, match="web-000 on hv01 cannot be read: its checksum is wrong"):
        planned("stop", ("web-000",), unreadable)


@pytest.mark.parametrize("tokens", [(1, 2), (2, 1)])
def test_of_two_vms_of_one_name_the_one_that_was_changed_last_is_meant(tokens: tuple[int, int]) -> None:
    rows = [row("web-000", token=token, uid=f"uid-{token}") for token in tokens]
    (action,) = planned("stop", ("web-000",), *rows).actions
    assert action.expect.uid == "uid-2"


def test_a_delete_does_not_guess_which_of_two_vms_of_one_name_is_meant() -> None:
    rows = [row("web-000", token=1), msgspec.structs.replace(row("web-000", token=2), host="hv02"), row("web-001")]
    for names in (("web-000",), ("web-*",)):
        with pytest.raises(UsageError, match=r"web-000 is on hv01 and hv02: `mikrom orphans` says which is older"):
            planned("delete", names, *rows)
    assert [action.vm for action in planned("delete", ("web-001",), *rows).actions] == ["web-001"]


@pytest.mark.parametrize(("tokens", "meant"), [((1, 2), "hv02"), ((2, 1), "hv01"), ((2, 2), "hv01")])
def test_of_two_vms_of_one_name_the_newer_is_meant_and_of_equals_the_one_that_plans_keep(
    tokens: tuple[int, int], meant: str
) -> None:
    rows = [
        msgspec.structs.replace(row("web-000", token=token), host=host)
        for token, host in zip(tokens, ("hv01", "hv02"), strict=True)
    ]
    assert [action.host for action in planned("stop", ("web-000",), *rows).actions] == [meant]


def test_the_digest_differs_from_the_specs_only_where_the_state_does() -> None:
    there = row("web-000")
    (stop,) = planned("stop", ("web-000",), there).actions
    (restart,) = planned("restart", ("web-000",), there).actions
    assert stop.desired is not None
    assert restart.desired is not None
    assert stop.desired.spec_digest != there.spec_digest == restart.desired.spec_digest


@pytest.mark.parametrize("verb", ["stop", "restart", "pause"])
def test_a_vm_keeps_its_addresses(verb: Verb) -> None:
    (action,) = planned(verb, ("web-000",), row("web-000", addresses={"eth0": "10.0.0.9"})).actions
    assert action.desired is not None
    assert action.desired.addresses == {"eth0": "10.0.0.9"}


def test_it_is_said_that_the_next_run_undoes_it_where_that_is_so() -> None:
    assert planned("stop", ("web-000",), row("web-000")).warnings == (PAST_THE_SPECS,)
    assert planned("delete", ("web-000",), row("web-000")).warnings == (PAST_THE_SPECS,)
    assert planned("restart", ("web-000",), row("web-000")).warnings == ()


def test_what_is_protected_is_not_deleted_and_the_way_out_is_told() -> None:
    plan = planned("delete", ("*",), row("a", policy=Policy(prevent_destroy=True)), row("b"))
    assert [(change.name, change.kind) for change in plan.changes] == [("a", "blocked"), ("b", "delete")]
    assert [(refusal.vm, refusal.rule) for refusal in plan.refusals] == [("a", "protection")]
    assert "prevent_destroy: false" in plan.refusals[0].message


def test_a_vm_of_another_project_that_comes_later_is_left_alone() -> None:
    after = planned("stop", ("*",), row("a", "stopped", "stopped"), row("b", project="blog"), acted_on=("a",))
    assert (after.changes, after.unchanged) == ((), {"hv01": 1})


def test_a_vm_that_was_restarted_only_has_to_run() -> None:
    assert planned("restart", ("*",), row("a"), acted_on=("a",)).changes == ()
    after = planned("restart", ("*",), row("a", "crashed"), acted_on=("a",))
    assert [change.kind for change in after.changes] == ["start"]


def test_a_paused_vm_that_was_restarted_is_as_asked_when_it_is_paused_again() -> None:
    assert planned("restart", ("*",), row("a", "paused", "paused"), acted_on=("a",)).changes == ()
    after = planned("restart", ("*",), row("a", "running", "paused"), acted_on=("a",))
    assert [change.kind for change in after.changes] == ["restart"]


@pytest.mark.parametrize(("verb", "state", "other"), [("pause", "paused", "running"), ("resume", "running", "paused")])
def test_pause_and_resume_never_become_a_restart_that_loses_memory(verb: Verb, state: Any, other: Any) -> None:
    drift = (Drift(path="machine.vcpu_count", recorded=1, actual=2),)
    assert planned(verb, ("*",), row("a", state, state, drift=drift)).changes == ()
    (change,) = planned(verb, ("*",), row("a", other, other, drift=drift)).changes
    assert (change.kind, "machine.vcpu_count" in change.reasons[0]) == ("blocked", True)


def test_what_its_host_mends_while_it_runs_keeps_nobody_from_pausing_a_vm() -> None:
    drift = (Drift(path="network_interfaces.eth0.nat", recorded=True, actual=False),)
    assert [change.kind for change in planned("pause", ("*",), row("a", drift=drift)).changes] == ["pause"]


def test_a_start_leaves_a_running_vm_that_drifted_alone_and_says_so() -> None:
    drift = (Drift(path="machine.vcpu_count", recorded=1, actual=2),)
    plan = planned("start", ("*",), row("a", drift=drift))
    assert (plan.changes, plan.unchanged) == ((), {"hv01": 1})
    (told,) = plan.warnings
    assert "a on hv01 is running already, and left alone" in told
    assert "(machine.vcpu_count); `mikrom restart` puts that right" in told
    (change,) = planned("start", ("*",), row("a", "paused", "paused", drift=drift)).changes
    assert (change.kind, "mikrom restart" in change.reasons[0]) == ("blocked", True)
    (change,) = planned("start", ("*",), row("a", "unresponsive", drift=drift)).changes
    assert change.kind == "restart"


def test_a_restart_that_leaves_drift_behind_has_not_done_what_was_asked() -> None:
    drift = (Drift(path="machine.vcpu_count", recorded=1, actual=2),)
    assert planned("restart", ("a",), row("a"), acted_on=("a",)).changes == ()
    assert [change.kind for change in planned("restart", ("a",), row("a", drift=drift), acted_on=("a",)).changes] == [
        "restart"
    ]


@pytest.mark.parametrize(("verb", "kind"), [("start", "blocked"), ("delete", "blocked"), ("stop", None)])
def test_an_older_copy_is_left_alone_while_the_host_of_the_newer_is_dark(verb: Verb, kind: str | None) -> None:
    copy = row("web-000", "stopped", "stopped")
    report = HostReport(host="hv01", observed_at=NOW, capacity=Capacity(vcpu_count=2, mem_size_mib=1024), vms=(copy,))
    views = HostView(host="hv01", report=report), HostView(host="hv02", error="no answer")
    remembered = {"demo": Placements(vms={"web-000": "hv02"})}
    seen = ObservedState(taken_at=NOW, hosts=views)
    changes = decide_by_name(verb, ("web-000",), seen, placements=remembered).plan.changes
    assert [change.kind for change in changes] == [kind] * bool(kind)
