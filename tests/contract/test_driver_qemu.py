"""What is QEMU's own: how it ends, what it keeps to itself, and that no other driver's VMM is taken for it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from msgspec.structs import replace

from mikrom_reconcile.core.model.desired import Machine, VMSpec
from mikrom_reconcile.core.model.errors import PermanentError, TemporaryError
from mikrom_reconcile.core.model.observed import VMMFacts
from mikrom_reconcile.host.drivers import vmm_driver
from mikrom_reconcile.host.drivers.qemu import QemuDriver
from mikrom_reconcile.host.drivers.vmm import VMM
from mikrom_reconcile.times_and_sizes import VMMS
from tests.contract.drivers import DEADLINE_S, QemuBench, RealBench, record_of, wait_until

pytestmark = pytest.mark.needs("qemu-system-x86_64")

RECORD = record_of("a")


def start(qemu: QemuBench, boot_args: str = "") -> int:
    qemu.driver.start(record_of("a", boot_args), deadline_s=DEADLINE_S)
    (pid,) = qemu.all_pids()
    return pid


def test_a_qemu_has_a_session_an_empty_environment_and_private_files(qemu: QemuBench) -> None:
    pid = start(qemu)
    assert os.getsid(pid) == pid
    assert Path(f"/proc/{pid}/environ").read_bytes() == b""
    for path in qemu.folder.rglob("*"):
        if path.is_dir():
            assert path.stat().st_mode & 0o777 == 0o700, path
        elif not path.is_socket():  # QEMU makes it, in a folder that is closed
            assert path.stat().st_mode & 0o777 == 0o600, path


def test_a_guest_hears_a_stop_that_comes_before_it_can_read(qemu: QemuBench) -> None:
    for _ in range(3):
        start(qemu)
        qemu.driver.stop(RECORD, grace_s=DEADLINE_S)
        assert qemu.driver.observe(RECORD) == VMMFacts(status="none", end="clean")


def test_a_qemu_that_was_never_told_to_run_its_guest_is_starting_and_a_start_replaces_it(
    qemu: QemuBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object, **__: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patched:  # a spawner that is killed: nothing is cleaned up
        patched.setattr(QemuDriver, "_boot", die)
        patched.setattr(VMM, "kill_and_clean", lambda _: None)
        with pytest.raises(SystemExit):
            qemu.driver.start(RECORD, deadline_s=DEADLINE_S)
    wait_until(qemu.socket("a").exists, "the QMP socket")
    assert qemu.driver.observe(RECORD).status == "starting"
    assert b"MIKROM-UP" not in qemu.driver.console("a", max_bytes=100).content
    (before,) = qemu.all_pids()
    assert start(qemu) != before


def test_a_signal_that_somebody_sends_is_no_end_of_the_guests_own(qemu: QemuBench) -> None:
    start(qemu)
    qemu.kill(RECORD.vm, signal.SIGTERM)
    assert qemu.driver.observe(RECORD) == VMMFacts(status="none", end="killed")


def test_a_lost_socket_is_starting_at_first_and_then_lost(qemu: QemuBench, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = start(qemu)
    qemu.socket("a").unlink()
    assert qemu.driver.observe(RECORD).status == "starting"
    monkeypatch.setattr(vmm_driver, "VMMS", replace(VMMS, boot_s=0.0))
    assert qemu.driver.observe(RECORD).status == "socket_lost"
    assert start(qemu) != pid


def test_a_qemu_that_cannot_start_is_told_with_its_last_words(qemu: QemuBench) -> None:
    start(qemu)
    qemu.driver.delete(RECORD)
    (kernel,) = (qemu.folder / "state/images").iterdir()
    kernel.write_bytes(b"\x7fELF".ljust(kernel.stat().st_size, b"\0"))
    with pytest.raises(TemporaryError, match=r"QEMU ended by itself, saying: qemu-system-x86_64: .*kernel"):
        qemu.driver.start(RECORD, deadline_s=DEADLINE_S)
    assert qemu.all_pids() == []
    assert qemu.driver.observe(RECORD) == VMMFacts(status="none")
    kernel.write_bytes(b"\0" * kernel.stat().st_size)
    with pytest.raises(PermanentError, match="neither a bzImage nor a vmlinux"):
        qemu.driver.start(RECORD, deadline_s=DEADLINE_S)


def test_what_is_firecrackers_own_is_refused_by_name(qemu: QemuBench) -> None:
    for machine in (Machine(smt=True, vcpu_count=2), Machine(cpu_template="T2")):
        spec = VMSpec(image="hello", machine=machine)
        assert "is Firecracker's; this host runs its VMs in QEMU" in str(qemu.driver.unsupported(spec))
        with pytest.raises(PermanentError, match=r"machine\.(smt|cpu_template)"):
            qemu.driver.start(replace(RECORD, spec=spec), deadline_s=DEADLINE_S)


def test_a_guest_that_writes_without_end_takes_bounded_disk(qemu: QemuBench) -> None:
    start(qemu, "mikrom.mode=flood")
    console = qemu.state_file("a", "console.log")
    for _ in range(10):
        time.sleep(0.1)
        qemu.driver.trim()
        assert console.stat().st_blocks * 512 < 4 * VMMS.console_bytes
    qemu.driver.stop(RECORD, grace_s=0)


def test_a_qemu_takes_no_more_memory_than_was_promised_for_it(qemu: QemuBench) -> None:
    record = record_of("a", "mikrom.mode=touch:30", mem_size_mib=32)
    qemu.driver.start(record, deadline_s=DEADLINE_S)
    wait_until(lambda: b"TOUCHED 30" in qemu.driver.console("a", max_bytes=1000).content, "its memory to be touched")
    (pid,) = qemu.all_pids()
    resident_mib = int(Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()[0]) >> 10
    assert 30 < resident_mib < qemu.driver.memory_mib(record.spec)


def test_a_qemu_of_another_state_folder_is_foreign_and_no_stray(qemu: QemuBench) -> None:
    pid = start(qemu)
    elsewhere = QemuDriver(qemu.binary, state_dir=qemu.folder / "b/state", run_dir=qemu.folder / "b/run")
    assert pid not in [stray.pid for stray in qemu.driver.foreign()]
    assert ("a", pid) in [(stray.vm, stray.pid) for stray in elsewhere.foreign()]
    assert elsewhere.strays(()) == ()


@pytest.mark.kvm
def test_a_vmm_of_another_driver_is_neither_judged_nor_replaced_and_can_be_deleted(
    qemu: QemuBench, real: RealBench
) -> None:
    for mine, theirs in ((qemu, real), (real, qemu)):
        theirs.driver.start(RECORD, deadline_s=DEADLINE_S)
        pids = theirs.pids("a")
        for deed in (
            lambda: mine.driver.observe(RECORD),  # noqa: B023 - called within the loop
            lambda: mine.driver.start(RECORD, deadline_s=DEADLINE_S),  # noqa: B023
            lambda: mine.driver.set_paused(RECORD, paused=True, deadline_s=DEADLINE_S),  # noqa: B023
        ):
            with pytest.raises(PermanentError, match=f"started by the driver {theirs.driver.name}"):
                deed()
        assert theirs.pids("a") == pids
        mine.driver.delete(RECORD)
        assert theirs.pids("a") == []
