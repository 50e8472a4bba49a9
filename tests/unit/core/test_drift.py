"""Drift: what scheduled runs order where it is only reported, and what counts as drift, with its cause."""

from __future__ import annotations

from typing import Any

import pytest

from mikrom_reconcile.core.model.fields import RECORD
from mikrom_reconcile.core.model.observed import Drift, Phase
from mikrom_reconcile.core.model.plan import FieldChange
from mikrom_reconcile.core.planning.drift import drifted, is_pending
from tests.case import Case, Expect, Request, Row
from tests.samples import change, desired, observed

SPECS = """\
apiVersion: mikrom/v1
kind: Fleet
metadata: {name: web}
spec:
  replicas: 1
  drift: {mode: report, heal: restarts, fields: {machine.smt: ignore}}
  template: {image: hello, boot_args: b}
"""
NEW = FieldChange(path="boot_args", before="a", after="b", impact="restart")


def test_a_dead_vm_is_started_with_the_spec_that_it_had() -> None:
    left = Row(phase="crashed", spec={"boot_args": "a"}, drift={})
    case = Case(
        specs=SPECS, expect=Expect(), request=Request(drift_mode="enforce"), hosts={"localhost": {"web-000": left}}
    )
    decision, world = case.decide()
    (action,) = decision.plan.actions
    assert action.desired is not None
    assert (action.verb, action.desired.spec.boot_args) == ("start", "a")
    assert action.desired.spec_digest == world.hosts["localhost"]["web-000"].spec_digest
    assert action.desired.ignore_drift == ("machine.smt",), "its host has to find it as ordered"


@pytest.mark.parametrize(
    ("phase", "cause"),
    [
        ("crashed", "crash"), ("oom", "out-of-memory"), ("killed", "killed"), ("rebooted", "host-reboot"),
        ("exited", "guest-exit"), ("crash_loop", "crash-loop"), ("failed", "start-failed"), ("paused", "api"),
        ("unresponsive", "no-answer"), ("socket_lost", "socket-gone"), ("unhealthy", "checks"),
        ("stopping", "stopping"),
    ],
)  # fmt: skip
def test_a_vm_that_is_not_up_says_what_became_of_it(phase: Phase, cause: str) -> None:
    (found,) = drifted([change("web-000", observed=observed("web-000", phase=phase), desired=desired("web-000"))])
    assert [(it.path, it.before, it.after, it.cause) for it in found.fields] == [("phase", "running", phase, cause)]


@pytest.mark.parametrize(
    ("path", "cause"),
    [
        ("machine.mem_size_mib", "api"), ("mmds.role", "api"), ("drives.data.read_only", "api"),
        ("network_interfaces.eth0.rate_limiter.bandwidth_mbit", "api"), ("network_interfaces.eth0", "tap-gone"),
        ("network_interfaces.eth0.guard", "host-network"), ("drives.data", "disk-gone"), (RECORD, "record-edited"),
    ],
)  # fmt: skip
def test_a_field_that_differs_says_by_what(path: str, cause: str) -> None:
    row = observed("web-000", drift=(Drift(path=path, recorded=1, actual=None),))
    (found,) = drifted([change("web-000", "restart", observed=row, desired=desired("web-000"))])
    assert [(it.path, it.before, it.after, it.cause) for it in found.fields] == [(path, 1, None, cause)]


def test_a_dead_vm_that_the_specs_change_too_has_drifted_and_is_pending() -> None:
    row = observed("web-000", phase="killed", spec_digest="1:before")
    both = change("web-000", "start", observed=row, desired=desired("web-000"), fields=(NEW,))
    (found,) = drifted([both])
    assert (found.rule_id, [it.path for it in found.fields]) == ("down", ["phase"])
    assert is_pending(both, {"web-000"})


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "restart", "fields": (NEW,), "observed": observed("web-000", spec_digest="1:before")},
        {"kind": "delete", "rule": "not-in-specs", "observed": observed("web-000"), "desired": None},
        {"kind": "create", "rule": "missing"},
    ],
)
def test_what_the_specs_have_changed_since_is_pending_and_no_drift(fields: dict[str, Any]) -> None:
    it = change("web-000", **{"desired": desired("web-000"), **fields})
    assert list(drifted([it])) == []
    assert is_pending(it, ())


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "wait", "observed": observed("web-000", phase="booting")},
        {"kind": "blocked", "rule": "unreachable-host"},
    ],
)
def test_what_comes_up_and_what_cannot_be_read_is_neither(fields: dict[str, Any]) -> None:
    it = change("web-000", **{"desired": desired("web-000"), **fields})
    assert list(drifted([it])) == []
    assert not is_pending(it, ())


def test_a_vm_that_is_gone_has_drifted_if_it_was_there() -> None:
    gone = change("web-000", "create", rule="missing", desired=desired("web-000"))
    (found,) = drifted([gone], {"web-000": "localhost"})
    assert (found.rule_id, found.fields[0].cause) == ("missing", "vm-gone")
    assert not is_pending(gone, {"web-000"})


def test_what_is_ignored_is_no_drift_beside_what_is_not() -> None:
    row = observed("web-000", phase="killed", drift=(Drift(path="boot_args", recorded=1, actual=2),))
    wanted = desired("web-000", ignore_drift=("boot_args",))
    (found,) = drifted([change("web-000", "start", observed=row, desired=wanted)])
    assert [it.path for it in found.fields] == ["phase"]
