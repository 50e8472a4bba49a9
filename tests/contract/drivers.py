"""The drivers as a test sees them: the same few hooks, and an eye on /proc that asks no driver."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Protocol

import pytest

from mikrom_reconcile.core.model.desired import Machine, Policy, VMSpec
from mikrom_reconcile.core.model.errors import TemporaryError
from mikrom_reconcile.core.model.observed import VMMFacts
from mikrom_reconcile.host.drivers import jail
from mikrom_reconcile.host.drivers.firecracker import FirecrackerDriver
from mikrom_reconcile.host.drivers.jail import VMPaths
from mikrom_reconcile.host.drivers.qemu import QemuDriver
from mikrom_reconcile.host.drivers.simulated import SimulatedDriver
from mikrom_reconcile.host.drivers.vmm import StateLayout
from mikrom_reconcile.host.drivers.vmm_driver import VMMDriver
from mikrom_reconcile.host.ports import Driver, VMRecord
from mikrom_reconcile.system import processes
from tests import watch
from tests.guests import DRIVER, MEM_MIB, SLOWNESS

DEADLINE_S = 10.0 * SLOWNESS
LATEST_S = 240.0 * SLOWNESS
"""What is waited for comes late on a busy machine, and is not missed by that."""
ANSWER_S = 1.0 * SLOWNESS
"""Patience with a VMM that does not answer: that of the real driver."""

KINDS = {
    kind: pytest.param(kind, marks=marks)
    for kind, driver, marks in (
        ("real", "firecracker", [pytest.mark.kvm]),
        ("jailed", "firecracker", [pytest.mark.kvm, pytest.mark.jail]),
        ("qemu", "qemu", [pytest.mark.needs("qemu-system-x86_64")]),
        ("simulated", "simulated", []),
    )
    if DRIVER in {"", driver}
}
"""The benches below, as parameters of a test."""


def record_of(
    vm: str, boot_args: str = "", *, uid: str = "u1", vcpu_count: int = 1, mem_size_mib: int = MEM_MIB
) -> VMRecord:
    machine = Machine(vcpu_count=vcpu_count, mem_size_mib=mem_size_mib)
    return VMRecord(
        vm=vm,
        uid=uid,
        project="default",
        fleet="web",
        state="running",
        spec=VMSpec(image="hello", machine=machine, boot_args=boot_args),
        policy=Policy(),
        spec_digest="1:0",
        generation=1,
        token=1,
        action_id="a1",
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


def wait_until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + LATEST_S
    while not holds():
        assert time.monotonic() < deadline, f"waited {LATEST_S} s for {what}"
        time.sleep(0.002)


class Bench(Protocol):
    """One driver under test, and what can be done to its VMs behind its back."""

    driver: Driver
    slowness: int
    """How many times longer a start takes than Firecracker's: tests that try many places try fewer."""

    def another(self) -> Driver:
        """The same driver as another process would have it."""

    def pids(self, vm: str) -> list[int]:
        """Pids of the VM's live VMMs."""

    def kill(self, vm: str) -> None:
        """Kill the VMM."""

    def hang(self, vm: str) -> None:
        """Make the VMM stop answering."""

    def go_on(self, vm: str) -> None:
        """Make it answer again."""

    def leftovers(self) -> list[Path]:
        """Every file there is, but the lock files and the images, which are to stay."""


class RealBench:
    """A VMM that is a process: Firecracker, unless a subclass says otherwise."""

    slowness = 1

    def __init__(self, binary: str, folder: Path) -> None:
        self.binary = Path(binary)
        self.folder = folder
        self.driver: Driver = self.another()

    def another(self) -> VMMDriver:
        return FirecrackerDriver(
            self.binary, state_dir=self.folder / "state", run_dir=self.folder / "run", answer_s=ANSWER_S
        )

    def pids(self, vm: str) -> list[int]:
        return self.all_pids(f"/{vm}/api.sock")

    def all_pids(self, having: str = "") -> list[int]:
        """Every Firecracker of this folder, whatever it holds or is written about it."""
        lines = ((pid, command_line(pid)) for pid in watch.pids())
        return [pid for pid, line in lines if f"\0{self.folder}/" in line and having in line]

    def kill(self, vm: str, number: int = signal.SIGKILL) -> None:
        (pid,) = self.pids(vm)
        pidfd = os.pidfd_open(pid)
        os.kill(pid, number)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        assert poll.poll(LATEST_S * 1000), "waited for the death of what was killed"
        os.close(pidfd)

    def hang(self, vm: str) -> None:
        (pid,) = self.pids(vm)
        os.kill(pid, signal.SIGSTOP)

    def go_on(self, vm: str) -> None:
        (pid,) = self.pids(vm)
        os.kill(pid, signal.SIGCONT)

    def leftovers(self) -> list[Path]:
        kept = (self.folder / "state/locks", self.folder / "state/images")
        return [path for path in files_below(self.folder) if path.parent not in kept]

    def state_file(self, vm: str, name: str) -> Path:
        return self.folder / "state/vms" / vm / name

    def socket(self, vm: str) -> Path:
        return self.folder / "run" / vm / "api.sock"

    def lock(self, vm: str) -> Path:
        return self.folder / "state/locks" / f"{vm}.vmm"

    def close(self) -> None:
        wait_until(self._none_is_left, "the end of all VMMs")

    def _none_is_left(self) -> bool:
        """Kill what is there, once more: a jailer may leave a VMM behind at the moment of its own death."""
        found = self._to_end()
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not found

    def _to_end(self) -> list[int]:
        return self.all_pids()


class JailBench(RealBench):
    """Firecracker through its jailer, as root."""

    slowness = 2
    answer_s = ANSWER_S

    def another(self) -> VMMDriver:
        return FirecrackerDriver(
            self.binary,
            jailer=self.binary.with_name("jailer"),
            state_dir=self.folder / "state",
            run_dir=self.folder / "run",
            answer_s=self.answer_s,
        )

    def pids(self, vm: str) -> list[int]:
        """For a moment there is the jailer beside who comes out of it."""
        found = self.all_pids(f"/{vm}.vmm")
        return [pid for pid in found if is_first_of_its_namespace(pid)] or found

    def all_pids(self, having: str = "") -> list[int]:
        """Every jailer and jailed Firecracker: a path of this folder is in no command line, but behind descriptor 0."""
        names = ((pid, processes.stdin_of(pid) or "") for pid in watch.pids())
        return [pid for pid, name in names if name.startswith(f"{self.folder}/state/locks/") and name.endswith(having)]

    def leftovers(self) -> list[Path]:
        """Cgroups too: those of this state folder alone have its hash in their names."""
        return [*super().leftovers(), *self._cgroups(), *(self.folder / "state").glob("jails/*")]

    def close(self) -> None:
        super().close()
        layout = StateLayout(self.folder / "state", self.folder / "run")
        for path in self._cgroups():  # no folders of the test's, so not gone with it
            paths = layout.of(path.name.split("-", 2)[2])
            wait_until(lambda: self._is_removed(paths), "the kernel to give up its cgroups")  # noqa: B023 - asked here

    def _to_end(self) -> list[int]:
        """By their cgroups too: a test may have moved the state folder, or have failed before it moved it back."""
        lists = [path.read_text() for cgroup in self._cgroups() for path in cgroup.rglob("cgroup.procs")]
        return [*self.all_pids(), *map(int, " ".join(lists).split())]

    def _is_removed(self, paths: VMPaths) -> bool:
        """A cgroup is busy until who has died in it was waited for, by whoever is its parent."""
        with suppress(OSError):
            jail._remove_cgroups(paths)
            return True
        return False

    def _cgroups(self) -> list[Path]:
        jails = (self.folder / "state").resolve() / "jails"
        name = f"mikrom-{blake2b(bytes(jails), digest_size=4).hexdigest()}-*"
        return [path for mount in set(jail.hierarchy()[1].values()) for path in mount.glob(name)]


class QemuBench(RealBench):
    """QEMU, in software emulation: that is there on every machine."""

    slowness = 4

    def another(self) -> VMMDriver:
        driver = QemuDriver(
            self.binary,
            state_dir=self.folder / "state",
            run_dir=self.folder / "run",
            answer_s=2 * ANSWER_S,  # its threads wait for a CPU as long as everybody does
        )
        driver._accelerator = "tcg"
        return driver


class SilentDriver(SimulatedDriver):
    """The simulated driver, whose VMs of these pids answer nobody until they are killed."""

    def __init__(self, state_dir: Path, silent: set[int]) -> None:
        super().__init__(state_dir)
        self._silent = silent

    def observe(self, record: VMRecord) -> VMMFacts:
        facts = super().observe(record)
        silent = VMMFacts(status="unresponsive", pid=facts.pid, age_s=facts.age_s)
        return silent if facts.pid in self._silent else facts

    def start(self, record: VMRecord, *, deadline_s: float) -> str:
        if self._is_silent(record):
            self.stop(record, grace_s=0)
        return super().start(record, deadline_s=deadline_s)

    def set_paused(self, record: VMRecord, *, paused: bool, deadline_s: float) -> None:
        if self._is_silent(record):
            raise TemporaryError("its VMM does not answer", vm=record.vm, step="pausing its guest")
        super().set_paused(record, paused=paused, deadline_s=deadline_s)

    def stop(self, record: VMRecord, *, grace_s: float) -> None:
        super().stop(record, grace_s=0 if self._is_silent(record) else grace_s)

    def _is_silent(self, record: VMRecord) -> bool:
        return self.observe(record).status == "unresponsive"


class SimulatedBench:
    """The driver that goes through the motions."""

    slowness = 1

    def __init__(self, folder: Path) -> None:
        self.folder, self._silent = folder, set[int]()
        self._driver = self.another()
        self.driver: Driver = self._driver

    def another(self) -> SimulatedDriver:
        return SilentDriver(self.folder / "state", self._silent)

    def pids(self, vm: str) -> list[int]:
        return [stray.pid for stray in self.another().strays(()) if stray.vm == vm]

    def kill(self, vm: str) -> None:
        self._driver.change(vm, end="killed")

    def hang(self, vm: str) -> None:
        self._silent.update(self.pids(vm))

    def go_on(self, vm: str) -> None:
        self._silent.difference_update(self.pids(vm))

    def leftovers(self) -> list[Path]:
        return list(files_below(self.folder))


def is_live(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def is_first_of_its_namespace(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.partition("NSpid:")[2].partition("\n")[0].split()[1:] == ["1"]


def command_line(pid: int) -> str:
    """Its arguments, each with a NUL behind it; a zombie has none."""
    return watch.read(f"/proc/{pid}/cmdline").decode(errors="replace")


def files_below(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if not path.is_dir())
