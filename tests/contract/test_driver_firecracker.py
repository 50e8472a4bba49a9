"""What only a real process can do wrong: be half started, be somebody else, lose its socket, stay as a zombie."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from mikrom_reconcile.core.model.errors import ActionError, PermanentError, TemporaryError
from mikrom_reconcile.core.model.observed import End, VMMFacts
from mikrom_reconcile.host.drivers import vmm_driver
from mikrom_reconcile.host.drivers.firecracker import FirecrackerDriver
from mikrom_reconcile.host.drivers.vmm import VMM, StateLayout, VMMProcess
from mikrom_reconcile.system import locks, processes
from mikrom_reconcile.times_and_sizes import SPECS, VMMS
from tests.contract.drivers import DEADLINE_S, RealBench, is_live, record_of, wait_until
from tests.guests import LINUX, MEM_MIB

pytestmark = pytest.mark.kvm

RECORD = record_of("a")


def start(real: RealBench, boot_args: str = "") -> int:
    real.driver.start(record_of("a", boot_args), deadline_s=DEADLINE_S)
    return written_down(real).pid


def wait_for(real: RealBench, said: bytes) -> None:
    wait_until(lambda: said in real.state_file("a", "console.log").read_bytes(), f"the guest's {said!r}")


def assert_starts_anew(real: RealBench) -> None:
    real.driver.start(RECORD, deadline_s=DEADLINE_S)
    assert real.driver.observe(RECORD).status == "running"
    assert len(real.all_pids()) == 1


def written_down(real: RealBench) -> VMMProcess:
    return msgspec.json.decode(real.state_file("a", "proc.json").read_bytes(), type=VMMProcess)


def edit_proc(real: RealBench, **changes: object) -> None:
    real.state_file("a", "proc.json").write_bytes(msgspec.json.encode(replace(written_down(real), **changes)))


@contextmanager
def bystander(stdin: int = subprocess.DEVNULL) -> Iterator[processes.Identity]:
    """A process that has nothing to do with any VM, and must survive."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], stdin=stdin) as other:
        identity = processes.identify(other.pid)
        assert identity is not None
        try:
            yield identity
            assert other.poll() is None, "a process that is not ours was killed"
        finally:
            other.kill()


def spawn_unconfigured(real: RealBench, monkeypatch: pytest.MonkeyPatch) -> int:
    """What a spawner leaves that is killed before it could write down and configure its VMM."""

    def die(*_: object, **__: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patched:
        patched.setattr(FirecrackerDriver, "_boot", die)
        patched.setattr(VMM, "kill_and_clean", lambda _: None)
        with pytest.raises(SystemExit):
            real.driver.start(RECORD, deadline_s=DEADLINE_S)
    wait_until(lambda: bool(real.all_pids()), "its command line, which the kernel sets after the spawn")
    (pid,) = real.all_pids()
    return pid


def test_folders_are_closed_and_files_private(real: RealBench) -> None:
    start(real)
    assert real.socket("a").exists()
    for path in real.folder.rglob("*"):
        if path.is_dir():
            assert path.stat().st_mode & 0o777 == 0o700, path
        elif not path.is_socket():  # Firecracker makes it, in a folder that is closed
            assert path.stat().st_mode & 0o777 == 0o600, path


def test_a_vmm_has_a_session_and_nothing_of_ours(real: RealBench) -> None:
    pid = start(real)
    assert os.getsid(pid) == pid
    assert Path(f"/proc/{pid}/environ").read_bytes() == b""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    blocked = int(status.partition("SigBlk:")[2].split()[0], 16)
    ignored = int(status.partition("SigIgn:")[2].split()[0], 16)
    assert not blocked & 1 << (signal.SIGTERM - 1)
    assert not ignored & 1 << (signal.SIGINT - 1)
    open_files = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the VMM closes the connection that started it about now
            open_files.append(str(link.readlink()))
    images = real.folder / "state/images"
    ours = {real.lock("a"), *(real.state_file("a", name) for name in ("console.log", "vmm.log", "metrics"))}
    regular = {Path(path) for path in open_files if Path(path).is_file()}
    assert {path for path in regular if path.parent != images} == ours


def test_a_spawned_vmm_that_was_never_configured_is_starting_and_a_start_replaces_it(
    real: RealBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = spawn_unconfigured(real, monkeypatch)
    wait_until(real.socket("a").exists, "the API socket")
    facts = real.driver.observe(RECORD)
    assert (facts.status, facts.pid) == ("starting", pid)
    assert_starts_anew(real)


@pytest.mark.parametrize("content", [None, b"", b"{}", b'{"pid": 1', b"\xff" * 100, b"x" * 10_000])
def test_a_vmm_that_nothing_readable_is_written_about_is_found_all_the_same(
    real: RealBench, content: bytes | None
) -> None:
    pid = start(real)
    proc = real.state_file("a", "proc.json")
    proc.unlink() if content is None else proc.write_bytes(content)

    facts = real.driver.observe(RECORD)
    assert (facts.status, facts.pid) == ("running", pid)
    assert [stray.pid for stray in real.driver.strays(())] == [pid]
    real.driver.stop(RECORD, grace_s=DEADLINE_S)
    assert not is_live(pid)
    assert_starts_anew(real)


def test_a_vmm_is_found_though_its_lock_file_was_removed_and_made_anew(real: RealBench) -> None:
    pid = start(real)
    real.lock("a").unlink()
    real.lock("a").touch()
    assert real.driver.observe(RECORD).pid == pid
    real.driver.start(RECORD, deadline_s=DEADLINE_S)
    assert real.all_pids() == [pid]


def test_a_held_lock_without_a_vmm_is_starting_and_nobody_is_harmed(real: RealBench) -> None:
    lock = locks.open_taken(real.lock("a"))
    assert lock is not None
    try:
        assert real.driver.observe(RECORD) == VMMFacts(status="starting")
        with pytest.raises(TemporaryError, match="cannot be found; see who with `fuser"):
            real.driver.start(RECORD, deadline_s=0.1)
    finally:
        locks.give_back(lock)
    assert real.all_pids() == []
    assert_starts_anew(real)


def test_a_vmm_that_is_being_torn_down_is_waited_for(real: RealBench) -> None:
    start(real)
    real.kill("a")
    closing = "import os, sys, time; os.close(0); print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", closing], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as dying:
        assert dying.stdout is not None
        dying.stdout.readline()
        identity = processes.identify(dying.pid)
        assert identity is not None
        edit_proc(real, pid=identity.pid, starttime=identity.starttime)
        assert real.driver.observe(RECORD).status == "none"
        with pytest.raises(TemporaryError, match=f"pid {dying.pid} is dying and still not gone"):
            real.driver.start(RECORD, deadline_s=0.1)
        assert real.all_pids() == []
        dying.kill()
    assert_starts_anew(real)


def test_giving_up_a_start_leaves_another_ones_vmm_alone(real: RealBench) -> None:
    start(real)
    real.kill("a")
    given_up = VMM(StateLayout(real.folder / "state", real.folder / "run").of("a"), driver="firecracker", program="it")
    given_up._process = written_down(real)
    pid = start(real)
    given_up.kill_and_clean()
    facts = real.driver.observe(RECORD)
    assert (facts.status, facts.pid) == ("running", pid)


def test_a_stale_socket_is_in_nobodys_way(real: RealBench) -> None:
    real.socket("a").parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(real.socket("a")))
    assert real.driver.observe(RECORD).status == "none"
    assert_starts_anew(real)


@pytest.mark.parametrize("forged", ["pid", "pid and start time", "all but the lock"])
def test_another_process_under_the_recorded_pid_is_never_signalled(real: RealBench, forged: str) -> None:
    start(real)
    real.kill("a")
    other_lock = os.open(real.lock("b"), os.O_RDWR | os.O_CREAT, 0o600)
    with bystander(other_lock if forged == "all but the lock" else subprocess.DEVNULL) as other:
        edit_proc(real, pid=other.pid)
        if forged != "pid":
            edit_proc(real, starttime=other.starttime)
        assert real.driver.observe(RECORD).status == "none"
        assert real.driver.strays(()) == ()
        real.driver.stop(RECORD, grace_s=0)
        assert_starts_anew(real)
        edit_proc(real, pid=other.pid, starttime=other.starttime)
        real.driver.delete(RECORD)
        assert real.all_pids() == []
    os.close(other_lock)


def test_a_foreign_server_at_the_socket_is_not_the_vmm(real: RealBench, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = start(real)
    real.socket("a").unlink()
    with socket.socket(socket.AF_UNIX) as foreign:
        foreign.bind(str(real.socket("a")))
        foreign.listen()
        monkeypatch.setattr(vmm_driver, "VMMS", replace(VMMS, boot_s=0.0))
        facts = real.driver.observe(RECORD)
        assert (facts.status, facts.pid) == ("socket_lost", pid)
        real.driver.stop(RECORD, grace_s=DEADLINE_S)
    assert not is_live(pid)


def test_a_lost_socket_is_starting_at_first_and_then_lost(real: RealBench, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = start(real)
    real.socket("a").unlink()
    assert real.driver.observe(RECORD).status == "starting"
    monkeypatch.setattr(vmm_driver, "VMMS", replace(VMMS, boot_s=0.0))
    facts = real.driver.observe(RECORD)
    assert (facts.status, facts.pid) == ("socket_lost", pid)
    assert_starts_anew(real)
    assert not is_live(pid)


def test_a_vmm_of_an_earlier_boot_was_ended_by_the_reboot(real: RealBench) -> None:
    start(real)
    real.kill("a")
    edit_proc(real, boot_id="00000000-0000-0000-0000-000000000000")
    assert real.driver.observe(RECORD) == VMMFacts(status="none", end="rebooted")


def test_the_pid_of_an_earlier_boot_is_nobody(real: RealBench) -> None:
    with bystander() as other:
        start(real)
        real.kill("a")
        edit_proc(real, pid=other.pid, starttime=other.starttime, boot_id="0")
        assert real.driver.observe(RECORD).end == "rebooted"
        assert_starts_anew(real)


def test_a_paused_guest_writes_nothing_until_it_is_resumed(real: RealBench) -> None:
    start(real, "mikrom.heartbeat=1")
    console = real.state_file("a", "console.log")
    wait_for(real, b"MIKROM-UP")
    real.driver.set_paused(RECORD, paused=True, deadline_s=DEADLINE_S)
    said = console.read_bytes()
    time.sleep(1.5)
    assert console.read_bytes() == said
    real.driver.set_paused(RECORD, paused=False, deadline_s=DEADLINE_S)
    wait_until(lambda: len(console.read_bytes()) > len(said), "its heartbeat")


def test_a_vmm_that_is_just_dying_is_none_whatever_of_it_is_left(real: RealBench) -> None:
    for _ in range(20):
        os.kill(start(real), signal.SIGKILL)
        assert real.driver.observe(RECORD).status in {"running", "none"}
        wait_until(lambda: real.driver.observe(RECORD).status == "none", "its death")
        assert real.driver.observe(RECORD).end == "killed"


def test_a_bad_kernel_is_told_in_firecrackers_words_and_leaves_nothing(real: RealBench) -> None:
    start(real)
    real.driver.delete(RECORD)
    (kernel,) = (real.folder / "state/images").iterdir()
    whole = kernel.read_bytes()
    kernel.write_bytes(whole[:24] + b"\xff" * (len(whole) - 24))
    with pytest.raises(PermanentError, match=r"a: its VMM refused: .*\(while starting the guest\)"):
        real.driver.start(RECORD, deadline_s=DEADLINE_S)
    assert real.all_pids() == []
    assert real.driver.observe(RECORD) == VMMFacts(status="none")
    assert not real.socket("a").exists()


def test_an_image_that_was_cut_short_is_put_right(real: RealBench) -> None:
    start(real)
    real.driver.delete(RECORD)
    (kernel,) = (real.folder / "state/images").iterdir()
    kernel.write_bytes(b"")
    assert_starts_anew(real)


def test_a_fault_of_the_configuration_names_its_step(real: RealBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mikrom_reconcile.core.specs.validate_vms.SPECS", replace(SPECS, boot_args_bytes=4000))
    with pytest.raises(PermanentError, match=r"cmdline capacity.*\(while configuring the boot source\)"):
        real.driver.start(record_of("a", "x" * 3000), deadline_s=DEADLINE_S)
    assert real.all_pids() == []


def test_a_start_ends_at_its_deadline_and_leaves_nothing(real: RealBench) -> None:
    # so much memory that Firecracker is busy for seconds with mapping it
    huge = record_of("a", mem_size_mib=4_000_000)
    began = time.monotonic()
    with pytest.raises(TemporaryError, match="did not answer in time"):
        real.driver.start(huge, deadline_s=0.3)
    assert time.monotonic() - began < DEADLINE_S
    assert real.all_pids() == []


def test_a_socket_path_that_is_too_long_is_refused_with_a_way_out(real: RealBench) -> None:
    long = real.folder / ("x" * (108 - len(f"{real.folder}//a/api.sock")))
    too_long = FirecrackerDriver(real.binary, state_dir=real.folder / "state", run_dir=long)
    with pytest.raises(PermanentError, match=r"has 108 bytes and Linux takes 107; set MIKROM_RUN_DIR"):
        too_long.start(RECORD, deadline_s=DEADLINE_S)
    assert real.leftovers() == []
    just_right = FirecrackerDriver(real.binary, state_dir=real.folder / "state", run_dir=Path(str(long)[:-1]))
    just_right.start(RECORD, deadline_s=DEADLINE_S)
    assert just_right.observe(RECORD).status == "running"


def test_a_missing_binary_is_a_permanent_error_that_names_it(real: RealBench) -> None:
    gone = FirecrackerDriver(Path("/nope/fc"), state_dir=real.folder / "state", run_dir=real.folder / "run")
    with pytest.raises(PermanentError, match=r"/nope/fc: No such file or directory \(while starting Firecracker\)"):
        gone.start(RECORD, deadline_s=DEADLINE_S)
    assert gone.observe(RECORD) == VMMFacts(status="none")


def test_a_firecracker_that_ends_by_itself_is_told_with_its_last_words(real: RealBench) -> None:
    sulking = real.folder / "sulking"
    sulking.write_text("#!/bin/sh\necho no mood today >&2\nexit 1\n", encoding="utf-8")
    sulking.chmod(0o700)
    driver = FirecrackerDriver(sulking, state_dir=real.folder / "state", run_dir=real.folder / "run")
    with pytest.raises(TemporaryError, match="ended by itself, saying: no mood today"):
        driver.start(RECORD, deadline_s=DEADLINE_S)
    assert driver.observe(RECORD) == VMMFacts(status="none")


def test_what_a_dead_vmm_left_goes_though_its_lock_is_free_a_moment_later(own_environment: Path) -> None:
    paths = StateLayout(own_environment / "state", own_environment / "run").of("a")
    paths.run_folder.mkdir(parents=True)
    paths.socket.touch()
    lock = locks.open_taken(paths.lock)
    assert lock is not None
    later = threading.Timer(0.1, locks.give_back, (lock,))
    later.start()
    VMM(paths, driver="firecracker", program="Firecracker").kill_and_clean()
    later.join()
    assert not paths.socket.exists()


def test_a_disk_that_is_full_when_the_vmm_is_written_down_leaves_no_vmm(
    real: RealBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "proc.json")

    with monkeypatch.context() as patched:
        patched.setattr("mikrom_reconcile.host.drivers.vmm.write_over", full)
        with pytest.raises(TemporaryError, match="No space left on device"):
            real.driver.start(RECORD, deadline_s=DEADLINE_S)
    assert real.all_pids() == []
    assert_starts_anew(real)


def test_no_descriptor_left_is_an_error_and_never_an_absent_or_unresponsive_vm(
    real: RealBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(real)

    def none_left(*_: object) -> None:
        raise OSError(24, "Too many open files")

    for target in ("mikrom_reconcile.system.locks.os.open", "socket.socket"):
        with monkeypatch.context() as patched:
            patched.setattr(target, none_left)
            with pytest.raises(TemporaryError, match="Too many open files"):
                real.driver.observe(RECORD)


def test_starts_at_the_same_moment_lead_to_one_vmm(real: RealBench) -> None:
    seen: set[int] = set()
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            seen.add(len(real.pids("a")))
            time.sleep(0.002)

    def try_to_start(_: int) -> bool:
        try:
            real.another().start(RECORD, deadline_s=DEADLINE_S)
        except ActionError:
            return False
        return True

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(try_to_start, range(12)))
    finally:
        over.set()
        watcher.join()
    assert_starts_anew(real)
    assert max(seen) <= 1


def test_no_zombie_stays_in_who_started_it(real: RealBench) -> None:
    pids = [start(real, "mikrom.mode=exit:0")]
    wait_until(lambda: not real.pids("a"), "the guest's end")
    pids.append(start(real))
    real.driver.stop(RECORD, grace_s=DEADLINE_S)
    pids.append(start(real))
    real.kill("a")
    real.driver.start(record_of("b"), deadline_s=DEADLINE_S)
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []


def test_a_zombie_that_nobody_reaps_is_not_a_vmm(real: RealBench) -> None:
    script = (
        "import sys, time; from pathlib import Path; from tests.contract.drivers import RealBench, record_of\n"
        f"record = record_of('a', mem_size_mib={MEM_MIB})\n"
        f"RealBench(sys.argv[1], Path(sys.argv[2])).driver.start(record, deadline_s={DEADLINE_S})\n"
        f"print('started', flush=True); time.sleep({DEADLINE_S})"
    )
    command = [sys.executable, "-c", script, str(real.binary), str(real.folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"started\n"
        (pid,) = real.pids("a")
        real.kill("a")
        assert Path(f"/proc/{pid}").exists(), "its parent sleeps"
        assert real.driver.observe(RECORD) == VMMFacts(status="none", end="killed")
        assert_starts_anew(real)
        real.driver.stop(RECORD, grace_s=DEADLINE_S)
        parent.kill()


@pytest.mark.parametrize("name", ["console.log", "vmm.log"])
def test_a_file_that_has_grown_gives_its_beginning_back_and_keeps_its_end(real: RealBench, name: str) -> None:
    start(real)
    wait_for(real, b"MIKROM-UP")
    path, kept = real.state_file("a", name), b"x" * 4096 + b"the end\n"
    with path.open("ab") as file:
        file.write(b"x" * (8 << 20) + kept)
    assert real.driver.observe(RECORD).status == "running"
    assert path.stat().st_blocks * 512 <= VMMS.console_bytes + 8192
    assert kept in path.read_bytes()[-VMMS.log_bytes :], "whatever a guest that has just booted said since"
    real.driver.trim()
    real.driver.stop(RECORD, grace_s=DEADLINE_S)
    assert real.driver.observe(RECORD).end == "clean"


def test_a_guest_that_writes_without_end_takes_bounded_disk_and_memory(real: RealBench) -> None:
    start(real, "mikrom.mode=flood")
    console = real.state_file("a", "console.log")
    pid = written_down(real).pid
    wait_until(lambda: len(real.driver.console("a", max_bytes=1000).content) == 1000, "its flood")
    for _ in range(20):
        time.sleep(0.1)
        real.driver.trim()
        # what it writes between the measurement and the hole comes on top
        assert console.stat().st_blocks * 512 < 4 * VMMS.console_bytes
    resident_kib = int(Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()[0])
    assert resident_kib < (32 + MEM_MIB) * 1024
    real.driver.stop(RECORD, grace_s=0)


def test_a_firecracker_of_another_state_folder_is_foreign_and_no_stray(real: RealBench) -> None:
    pid = start(real)
    own = real.driver.foreign()
    elsewhere = FirecrackerDriver(real.binary, state_dir=real.folder / "b/state", run_dir=real.folder / "b/run")
    assert pid not in [stray.pid for stray in own]
    assert ("a", pid) in [(stray.vm, stray.pid) for stray in elsewhere.foreign()]
    assert elsewhere.strays(()) == ()


def test_a_delete_leaves_what_it_did_not_make(real: RealBench) -> None:
    start(real)
    theirs = real.state_file("a", "record.json")
    theirs.touch()
    real.driver.delete(RECORD)
    assert real.leftovers() == [theirs]


@pytest.mark.parametrize(("mode", "end"), [("crash", "crashed"), ("exit", "clean")])
def test_a_question_at_the_moment_when_a_guest_ends_keeps_no_vmm(real: RealBench, mode: str, end: End) -> None:
    record = record_of("a", f"mikrom.mode={mode}:20")
    for _ in range(2 if LINUX else 15):  # a third of them hang, if they are asked all the time
        real.driver.start(record, deadline_s=DEADLINE_S)
        while (facts := real.driver.observe(record)).status != "none":
            pass
        assert facts == VMMFacts(status="none", end=end)
        assert real.all_pids() == []
