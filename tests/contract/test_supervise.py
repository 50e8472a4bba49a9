"""What a host does when VMMs die that nobody ordered to, over every driver; in greenlets, too (`test_host_gevent.py`).

The real driver's VMMs are awaited: with its rescans an hour apart, nothing but their ends can bring them back. The
simulated driver's are not processes, and found by rescans only.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from mikrom_reconcile.core.model.desired import DesiredVM, Restart
from mikrom_reconcile.core.model.errors import TemporaryError
from mikrom_reconcile.core.model.observed import Attempt
from mikrom_reconcile.host import records
from mikrom_reconcile.host.agent import HostAgent
from mikrom_reconcile.host.records import Records
from tests.contract.drivers import Bench, RealBench, wait_until
from tests.contract.hosts import Host
from tests.fakes import HOST, SPEC, FakeDriver, HeldClock, desired_vm, order

VM = "web-000"
MEANWHILE_S = 0.3
"""Long enough for a restart that must not happen: one takes some 20 ms."""


class SupervisedHost(Host):
    """A host whose supervision a test begins."""

    def __init__(self, bench: Bench, folder: Path) -> None:
        super().__init__(bench, folder)
        self.rescan_s = 3600.0 if isinstance(bench, RealBench) else 0.05

    def supervise(self) -> None:
        self.agent.supervise(rescan_s=self.rescan_s)

    def is_up(self, vm: str = VM, *, restarts: int) -> bool:
        seen = self.seen(vm)
        return seen is not None and (seen.phase, len(seen.restarts), self.bench.pids(vm)) == (
            "running",
            restarts,
            [seen.pid],
        )

    def assert_stays_down(self, vm: str = VM) -> None:
        time.sleep(MEANWHILE_S)
        assert self.bench.pids(vm) == []


@pytest.fixture
def host(bench: Bench, own_environment: Path) -> Iterator[SupervisedHost]:
    host = SupervisedHost(bench, own_environment)
    yield host
    host.close()


def wish(boot_args: str = "", *, vm: str = VM, **restart: Any) -> DesiredVM:
    return desired_vm(vm, replace(SPEC, boot_args=boot_args, restart=Restart(**restart)))


def test_a_killed_vm_is_back_each_time_as_what_it_was(host: SupervisedHost) -> None:
    host.supervise()
    before = host.created(VM)
    for restarts in (1, 2):
        host.bench.kill(VM)
        wait_until(lambda number=restarts: host.is_up(restarts=number), "the VM to be back")  # type: ignore[misc]
    after = host.seen(VM)
    assert after is not None
    assert (after.phase, after.uid, after.generation) == ("running", before.uid, before.generation)
    assert host.next_order(VM, desired_vm(VM)) is None


def test_a_paused_vm_whose_vmm_was_killed_is_brought_back_paused(host: SupervisedHost) -> None:
    host.supervise()
    paused = desired_vm(VM, state="paused")
    before = host.created(VM, paused)
    host.bench.kill(VM)

    def is_back() -> bool:
        seen = host.seen(VM)
        return seen is not None and seen.phase == "paused" and seen.pid != before.pid

    wait_until(is_back, "the VM to be back")
    assert host.next_order(VM, paused) is None


def test_vms_that_died_while_nobody_watched_are_brought_back_at_once(host: SupervisedHost) -> None:
    names = [f"web-{number:03d}" for number in range(5)]
    for name in names:
        host.created(name)
    for name in names[1:]:
        host.bench.kill(name)
    host.supervise()
    wait_until(lambda: all(host.is_up(name, restarts=1) for name in names[1:]), "all to be back")
    assert host.is_up(names[0], restarts=0)
    host.bench.kill(names[0])
    wait_until(lambda: host.is_up(names[0], restarts=1), "the one that lived on to be watched as well")


@pytest.mark.parametrize("left", ["all", "records"])
def test_after_a_reboot_of_the_host_what_should_run_runs(
    host: SupervisedHost, left: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what was written last, a power cut may have left no more than records."""
    with monkeypatch.context() as before:
        before.setattr(records, "boot_id", lambda: "another boot")
        host.created(VM)
        host.created("web-001", desired_vm("web-001", state="stopped"))
    host.bench.kill(VM)
    name, field = (
        ("vms/web-000/proc.json", {}) if isinstance(host.bench, RealBench) else ("sim/web-000.json", {"end": None})
    )
    path = host.state_dir / name
    if left == "all":
        path.write_text(json.dumps({**json.loads(path.read_text()), **field, "boot_id": "another boot"}))
    else:
        path.unlink()
    seen = host.seen(VM)
    assert seen is not None
    assert seen.phase == "rebooted"
    host.supervise()
    wait_until(lambda: host.is_up(restarts=1), "the VM to be back")
    host.assert_stays_down("web-001")


def created_and_soon_gone(host: SupervisedHost, wanted: DesiredVM) -> None:
    """Its guest may be gone before anybody has seen it run, and then its create has failed."""
    for result in iter(lambda: host.agent.execute(host.order("create", VM, desired=wanted)).result, "done"):
        assert result == "failed_temporary"


def test_a_crash_loop_ends_given_up_with_its_history(host: SupervisedHost) -> None:
    host.supervise()
    created_and_soon_gone(host, wish("mikrom.mode=crash:200"))
    wait_until(lambda: host.record(VM).crash_loop, "the VM to be given up")
    host.assert_stays_down()
    seen = host.seen(VM)
    assert seen is not None
    assert (seen.phase, len(seen.restarts)) == ("crash_loop", 3)
    assert list(seen.restarts) == sorted(seen.restarts)
    assert host.agent.execute(host.order("start", VM, seen, desired=wish())).result == "done"
    assert host.is_up(restarts=0), "a new order begins anew"


@pytest.mark.parametrize(
    ("policy", "mode", "comes_back"),
    [
        ("always", "exit:200", True),
        ("on-failure", "exit:200", False),
        ("on-failure", "crash:200", True),
        ("never", "crash:200", False),
    ],
)
def test_the_policy_says_which_ends_are_left(host: SupervisedHost, policy: str, mode: str, *, comes_back: bool) -> None:
    host.supervise()
    created_and_soon_gone(host, wish(f"mikrom.mode={mode}", policy=policy, attempts=1))
    if comes_back:
        wait_until(lambda: host.record(VM).crash_loop, "the end after its one restart")
        assert len(host.record(VM).restarts) == 1
    else:
        wait_until(lambda: host.bench.pids(VM) == [], "the guest's end")
        host.assert_stays_down()
        assert host.record(VM).restarts == ()


def test_the_first_restart_is_at_once_and_the_next_after_the_delay(host: SupervisedHost) -> None:
    host.supervise()
    host.created(VM, wish(delay="600ms"))
    host.bench.kill(VM)
    wait_until(lambda: host.is_up(restarts=1), "the first restart")
    host.bench.kill(VM)
    host.assert_stays_down()
    wait_until(lambda: host.is_up(restarts=2), "the second restart")
    first, second = host.record(VM).restarts
    assert second - first >= timedelta(milliseconds=600)


def test_a_start_that_orders_nothing_new_lets_no_crash_loop_begin_anew(host: SupervisedHost) -> None:
    host.supervise()
    host.created(VM, wish(delay="1h"))
    host.bench.kill(VM)
    wait_until(lambda: host.is_up(restarts=1), "the first restart")
    host.bench.kill(VM)
    outcomes = host.converge(VM, wish(delay="1h"))  # the first may find that its supervision is looking at it
    assert outcomes[-1].result == "done"
    assert host.is_up(restarts=1)


@pytest.mark.parametrize("verb", ["stop", "delete"])
def test_what_was_ordered_down_stays_down(host: SupervisedHost, verb: Any) -> None:
    host.supervise()
    seen = host.created(VM)
    assert host.agent.execute(order(verb, VM, seen)).result == "done"
    host.assert_stays_down()


def test_a_vm_that_dies_while_it_is_acted_on_is_left_to_who_acts(host: SupervisedHost) -> None:
    host.supervise()
    seen = host.created(VM)
    with host.records.lock(VM):  # somebody has begun to stop it
        host.bench.kill(VM)
        host.assert_stays_down()
        host.records.write(replace(host.record(VM), state="stopped"))
    host.assert_stays_down()
    assert host.agent.execute(order("start", VM, seen)).result == "done"
    with host.records.lock(VM):
        host.bench.kill(VM)
        host.assert_stays_down()
    host.agent.execute(order("stop", VM))  # stale, so that only its end is noticed
    wait_until(lambda: host.is_up(restarts=1), "the VM to be back once the lock is free")


def test_what_another_process_started_is_learned_by_a_rescan(host: SupervisedHost) -> None:
    host.rescan_s = 0.05
    host.supervise()
    time.sleep(0.1)
    assert host.another().execute(order("create", VM)).result == "done"
    time.sleep(0.2)
    host.bench.kill(VM)
    wait_until(lambda: host.is_up(restarts=1), "the VM to be back")


def test_what_an_order_failed_to_bring_up_is_left_to_the_next_run(host: SupervisedHost) -> None:
    host.created(VM)
    with host.records.lock(VM):
        failed = {"last_error": "no", "attempt": Attempt(spec_digest="1:0", count=1)}
        host.records.write(replace(host.record(VM), **failed))
    host.bench.kill(VM)
    host.supervise()
    host.assert_stays_down()


# ---- a driver that fails, and time that is held ------------------------------------------------------------------


class Fake:
    """A host over a fake driver, with a VM that runs."""

    def __init__(self, folder: Path, **restart: Any) -> None:
        self.driver, self.clock, self.records = FakeDriver(), HeldClock(), Records(folder / "state")
        self.agent = HostAgent(HOST, driver=self.driver, records=self.records, clock=self.clock)
        assert self.agent.execute(order("create", VM, desired=wish(**restart))).result == "done"

    def kill(self) -> None:
        del self.driver.vmms[VM]
        self.driver.ends[VM] = "killed"

    @property
    def record(self) -> Any:
        return self.records.read(VM)


def test_a_start_that_fails_counts_is_told_and_tried_again_after_a_pause(own_environment: Path) -> None:
    fake = Fake(own_environment, attempts=2)
    fake.driver.faults["start"] = [TemporaryError("no memory", vm=VM, step="starting Firecracker")]
    fake.kill()
    fake.agent.supervise(rescan_s=0.02)
    wait_until(lambda: fake.record.last_error is not None, "the failure")
    assert "no memory" in fake.record.last_error
    time.sleep(MEANWHILE_S)
    assert len(fake.record.restarts) == 1
    wait_until(lambda: VM in fake.driver.vmms, "the second attempt")
    wait_until(lambda: fake.record.last_error is None, "the end of the error")
    assert (len(fake.record.restarts), fake.record.crash_loop) == (2, False)
    fake.agent.stop_supervision()


def test_a_start_that_keeps_failing_ends_given_up_with_its_error(own_environment: Path) -> None:
    fake = Fake(own_environment, attempts=1)
    fake.driver.faults["start"] = [TemporaryError("no memory", vm=VM, step="starting Firecracker")]
    fake.kill()
    fake.agent.supervise(rescan_s=0.02)
    wait_until(lambda: fake.record.crash_loop, "the VM to be given up")
    assert (len(fake.record.restarts), VM in fake.driver.vmms) == (1, False)
    assert "no memory" in fake.record.last_error
    fake.agent.stop_supervision()


def test_restarts_older_than_the_interval_do_not_count(own_environment: Path) -> None:
    fake = Fake(own_environment, attempts=1, interval="10m")
    fake.agent.supervise(rescan_s=0.02)
    for _ in range(3):
        fake.kill()
        wait_until(lambda: VM in fake.driver.vmms, "the VM to be back")
        wait_until(lambda: len(fake.record.restarts) == 1, "only the latest restart in the record")
        fake.clock.moved_s += 601
    fake.clock.moved_s -= 2
    fake.kill()
    wait_until(lambda: fake.record.crash_loop, "the VM to be given up")
    fake.agent.stop_supervision()
