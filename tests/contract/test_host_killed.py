"""A host whose executor is killed between any two steps, or whose disk is full: the next order mends it.

Killed means `kill -9` of a process that is carrying out the order; what is judged afterwards is what is left on
disk and in /proc.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from mikrom_reconcile.core.model.desired import DesiredVM
from mikrom_reconcile.core.model.observed import WANTS_VMM, ObservedVM
from mikrom_reconcile.core.model.plan import Order, Verb
from mikrom_reconcile.host.records import UnreadableRecord
from tests.contract.drivers import Bench
from tests.contract.hosts import Host
from tests.fakes import BIGGER, desired_vm

# Python 3.12 and later warn when a process with threads forks, and pytest-xdist has some; the child touches none
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
    # what is killed here is the executor, which knows no driver: QEMU's starts cost too much to try each step with them
    pytest.mark.parametrize(
        "bench",
        [
            pytest.param("real", marks=pytest.mark.kvm),
            pytest.param("qemu", marks=[pytest.mark.needs("qemu-system-x86_64"), pytest.mark.soak]),
            "simulated",
        ],
        indirect=True,
    ),
]

Prepare = Callable[[Host, str], tuple[Order, DesiredVM | None]]


@pytest.fixture
def host(bench: Bench, own_environment: Path) -> Host:
    return Host(bench, own_environment)


def killed_before_step(number: int, host: Host, given: Order) -> bool:
    """Carry the order out in a process that is killed before its step `number`; False when it has fewer steps."""
    child = os.fork()
    if child == 0:
        steps = count()

        def on_step(_vm: str, _step: str) -> None:
            if next(steps) == number:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            host.another(on_step).execute(given)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


# ---- every verb, with what it is given and what is wanted in the end ----------------------------------------------


def create(host: Host, vm: str) -> tuple[Order, DesiredVM | None]:
    return host.order("create", vm), desired_vm(vm)


def create_over_an_interrupted_delete(host: Host, vm: str) -> tuple[Order, DesiredVM | None]:
    delete = host.order("delete", vm, host.created(vm))
    assert killed_before_step(2, host, delete)
    seen = host.seen(vm)
    assert seen is not None
    assert seen.phase == "deleting"
    return host.order("create", vm, seen), desired_vm(vm)


def start(host: Host, vm: str) -> tuple[Order, DesiredVM | None]:
    seen = host.created(vm, desired_vm(vm, state="stopped"))
    return host.order("start", vm, seen, desired=desired_vm(vm, BIGGER)), desired_vm(vm, BIGGER)


def stop(host: Host, vm: str) -> tuple[Order, DesiredVM | None]:
    return host.order("stop", vm, host.created(vm), deadline_s=2), desired_vm(vm, state="stopped")


def stop_paused(host: Host, vm: str) -> tuple[Order, DesiredVM | None]:
    seen = host.created(vm, desired_vm(vm, state="paused"))
    return host.order("stop", vm, seen, deadline_s=2), desired_vm(vm, state="stopped")


def pause(host: Host, vm: str) -> tuple[Order, DesiredVM | None]:
    return host.order("pause", vm, host.created(vm)), desired_vm(vm, state="paused")


def resume(host: Host, vm: str) -> tuple[Order, DesiredVM | None]:
    return host.order("resume", vm, host.created(vm, desired_vm(vm, state="paused"))), desired_vm(vm)


def restart_paused(host: Host, vm: str) -> tuple[Order, DesiredVM | None]:
    seen, wanted = host.created(vm, desired_vm(vm, state="paused")), desired_vm(vm, BIGGER, state="paused")
    return host.order("restart", vm, seen, desired=wanted, deadline_s=2), wanted


def restart(host: Host, vm: str) -> tuple[Order, DesiredVM | None]:
    seen = host.created(vm)
    return host.order("restart", vm, seen, desired=desired_vm(vm, BIGGER), deadline_s=2), desired_vm(vm, BIGGER)


def update(host: Host, vm: str) -> tuple[Order, DesiredVM | None]:
    wanted = desired_vm(vm, prune_max=9)
    return host.order("update", vm, host.created(vm), desired=wanted), wanted


def delete(host: Host, vm: str) -> tuple[Order, DesiredVM | None]:
    return host.order("delete", vm, host.created(vm), deadline_s=2), None


DEEDS: list[Prepare] = [
    create, create_over_an_interrupted_delete, start, stop, stop_paused, pause, resume,
    restart, restart_paused, update, delete,
]  # fmt: skip


def same_order_again(host: Host, given: Order, desired: DesiredVM | None) -> None:
    outcome = host.another().execute(given)
    assert outcome.result in {"done", "already_done"}, outcome.error


def next_run(host: Host, given: Order, desired: DesiredVM | None) -> None:
    for outcome in host.converge(given.action.vm, desired):
        assert outcome.result == "done", outcome.error


@pytest.mark.parametrize("mend", [same_order_again, next_run])
@pytest.mark.parametrize("prepare", DEEDS)
def test_killed_before_any_step_it_is_mended(
    host: Host, prepare: Prepare, mend: Callable[[Host, Order, DesiredVM | None], None]
) -> None:
    for number in count():
        vm = f"web-{number:03d}"
        given, desired = prepare(host, vm)
        was_killed = killed_before_step(number, host, given)
        assert len(host.bench.pids(vm)) <= 1
        assert not isinstance(host.records.read(vm), UnreadableRecord)
        mend(host, given, desired)
        assert_as_wanted(host, vm, desired)
        host.converge(vm, None)
        if not was_killed:
            break
    assert number >= 2, "this verb was never killed"
    assert host.bench.driver.strays(()) == ()
    assert host.leftovers() == []


def assert_as_wanted(host: Host, vm: str, desired: DesiredVM | None) -> None:
    assert host.next_order(vm, desired) is None
    seen = host.seen(vm)
    pids = host.bench.pids(vm)
    if desired is None:
        assert (seen, pids) == (None, [])
        return
    assert isinstance(seen, ObservedVM)
    assert (seen.spec, seen.policy, seen.last_error) == (desired.spec, desired.policy, None)
    assert seen.attempt is None or seen.attempt.count == 0  # one that began, and did not fail
    assert pids == ([seen.pid] if desired.state in WANTS_VMM else [])


def test_what_a_killed_create_left_goes_with_the_first_order_for_any_vm(host: Host) -> None:
    half = host.state_dir / "vms/web-000/record.json.new"
    half.parent.mkdir(mode=0o700, parents=True)
    half.write_text("killed while it wrote this")
    gone = host.created("web-001")
    assert not half.parent.exists()
    host.another().execute(host.order("delete", "web-001", gone, deadline_s=2))
    assert host.leftovers() == []


def test_a_lock_dies_with_its_holder(host: Host) -> None:
    assert killed_before_step(1, host, host.order("create", "web-000"))
    with host.records.lock("web-000"):
        pass


# ---- a disk that takes nothing more -------------------------------------------------------------------------------


class SmallDisk:
    """A file system of 64 KiB where the host keeps its VMs' records."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, mode=0o700)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "tmpfs", folder], check=True)

    def fill(self) -> None:
        with (self.folder / "filler").open("wb", buffering=0) as file:
            for size in (4096, 1):
                try:
                    while True:
                        file.write(b"x" * size)
                except OSError:
                    pass

    def free(self) -> None:
        (self.folder / "filler").unlink()

    def forbid(self) -> None:
        subprocess.run(["mount", "--bind", self.folder, self.folder], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", self.folder], check=True)

    def allow(self) -> None:
        subprocess.run(["umount", self.folder], check=True)

    def close(self) -> None:
        while os.path.ismount(self.folder):
            subprocess.run(["umount", "--lazy", self.folder], check=True)


@pytest.fixture
def disk(own_environment: Path) -> Iterator[SmallDisk]:
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk to fill it")
    disk = SmallDisk(own_environment / "state/vms")
    yield disk
    disk.close()


FULL = (SmallDisk.fill, SmallDisk.free, "No space left on device")
READ_ONLY = (SmallDisk.forbid, SmallDisk.allow, "Read-only")


@pytest.mark.parametrize(
    ("verb", "break_it", "mend_it", "message"),
    [("create", *FULL), *((verb, *READ_ONLY) for verb in ("create", "stop", "restart", "update", "delete"))],
)
def test_what_cannot_be_written_down_is_not_done(
    host: Host,
    disk: SmallDisk,
    verb: Verb,
    break_it: Callable[[SmallDisk], None],
    mend_it: Callable[[SmallDisk], None],
    message: str,
) -> None:
    vm = "web-000"
    before = None if verb == "create" else host.created(vm)
    given = host.order(
        verb, vm, before, desired=desired_vm(vm, prune_max=9) if verb == "update" else None, deadline_s=2
    )
    break_it(disk)
    outcome = host.agent.execute(given)
    assert outcome.result == "failed_temporary"
    assert message in (outcome.error or "")
    assert "nothing was changed" in (outcome.error or "")
    assert outcome.observed == before == host.seen(vm)
    assert [path.name for path in disk.folder.rglob("*.new")] == []
    assert (disk.folder / vm).exists() == (verb != "create")
    mend_it(disk)
    assert host.agent.execute(given).result == "done"
