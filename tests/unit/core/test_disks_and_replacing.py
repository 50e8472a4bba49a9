"""What a plan does about root disks and drives: replaced on purpose only, never shrunk, never moved."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from msgspec.structs import replace

from mikrom_reconcile.core.model.desired import (
    Boot,
    DesiredVM,
    Drive,
    Machine,
    NetworkInterface,
    PinnedFile,
    Policy,
    RateLimiter,
    RootDisk,
    VMSpec,
)
from mikrom_reconcile.core.model.encoding import spec_digest
from mikrom_reconcile.core.model.observed import Drift, ObservedVM
from mikrom_reconcile.core.model.plan import VMChange
from mikrom_reconcile.core.planning.context import Draft
from mikrom_reconcile.core.planning.guards import protected
from mikrom_reconcile.core.planning.rules import DiffInput, judge
from tests.fakes import desired_vm

NOW = datetime(2026, 11, 22, tzinfo=UTC)
POLICY = Policy(prevent_destroy=True)


def disk(letter: str, *, read_only: bool = False) -> Boot:
    kernel = PinnedFile(source="file:///k", sha256="0" * 64)
    return Boot(kernel=kernel, rootfs=RootDisk(source="file:///r", sha256=letter * 64, read_only=read_only))


def wanted(spec: VMSpec, policy: Policy = POLICY, host: str = "hv1") -> DesiredVM:
    digest = spec_digest(project="shop", fleet="web", state="running", spec=spec, policy=policy)
    return replace(desired_vm("web-000"), spec=spec, policy=policy, host=host, spec_digest=digest)


def seen(spec: VMSpec, **fields: object) -> ObservedVM:
    vm = wanted(spec)
    known: dict[str, object] = {
        "name": vm.name,
        "uid": "u",
        "project": "shop",
        "fleet": "web",
        "host": "hv1",
        "phase": "running",
    }
    known |= {"state": "running", "spec": spec, "policy": POLICY, "spec_digest": vm.spec_digest, "generation": 1}
    return ObservedVM(**known | {"token": 1, "created_at": NOW} | fields)  # type: ignore[arg-type]


def verdict(desired: DesiredVM, observed: ObservedVM) -> VMChange:
    change = judge(DiffInput(desired=desired, observed=observed))
    assert isinstance(change, VMChange)
    return change


A, B = VMSpec(image="a", boot=disk("a")), VMSpec(image="b", boot=disk("b"))


@pytest.mark.parametrize("phase", ["running", "crashed", "unresponsive"])
def test_another_root_disk_replaces_the_vm_whatever_its_phase(phase: str) -> None:
    change = verdict(wanted(B), seen(A, phase=phase))
    assert (change.kind, change.rule) == ("replace", "needs-replace")


@pytest.mark.parametrize(
    ("before", "policy", "kinds"),
    [
        (A, POLICY, ["blocked"]),
        (VMSpec(image="a", boot=disk("a", read_only=True)), POLICY, ["replace"]),
        (VMSpec(image="hello"), POLICY, ["replace"]),
        (A, Policy(prevent_destroy=False), ["update"]),
    ],
)
def test_protection_holds_for_a_root_disk_that_the_guest_has_written_to(
    before: VMSpec, policy: Policy, kinds: list[str]
) -> None:
    draft = protected(Draft(changes=[verdict(wanted(B, policy), seen(before))]), {"web": policy}.get)
    assert [change.kind for change in draft.changes] == kinds


def test_a_stopped_vm_is_protected_too() -> None:
    desired = replace(wanted(B), state="stopped")
    change = verdict(desired, seen(A, phase="stopped", state="stopped"))
    draft = protected(Draft(changes=[change]), {"web": POLICY}.get)
    assert [change.kind for change in draft.changes] == ["blocked"]
    assert [refusal.rule for refusal in draft.refusals] == ["protection"]


def test_a_drive_grows_and_never_shrinks() -> None:
    small, large = (VMSpec(image="hello", drives={"data": Drive(size_mib=size)}) for size in (64, 128))
    assert verdict(wanted(large), seen(small)).kind == "restart"
    change = verdict(wanted(small), seen(large))
    assert (change.kind, change.rule) == ("blocked", "shrinking-drive")
    assert change.reasons[0] == "drives.data.size_mib would shrink from 128 to 64"
    assert protected(Draft(changes=[change]), {"web": POLICY}.get).changes == [change]


def test_a_rate_limit_changes_while_the_vm_runs_and_so_does_its_drift() -> None:
    free, slow = (
        VMSpec(image="hello", network_interfaces={"eth0": NetworkInterface(network="n", rate_limiter=limit)})
        for limit in (RateLimiter(), RateLimiter(bandwidth_mbit=5))
    )
    assert verdict(wanted(slow), seen(free)).kind == "update"
    drift = Drift(path="network_interfaces.eth0.rate_limiter.bandwidth_mbit", recorded=None, actual=5)
    change = verdict(wanted(free), seen(free, drift=(drift,)))
    assert (change.kind, change.reasons) == ("update", (f"drift: {drift.path} is 5, recorded None",))
    other = Drift(path="machine.vcpu_count", recorded=1, actual=2)
    assert verdict(wanted(free), seen(free, drift=(drift, other))).kind == "restart"
    faster = replace(free, machine=Machine(vcpu_count=2))
    assert verdict(wanted(faster), seen(slow)).kind == "restart"
