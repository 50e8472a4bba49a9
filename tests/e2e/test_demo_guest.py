"""Shows that the demo guest does under the real Firecracker what its README says.

Every later test that runs microVMs stands on this guest, so this one stands on nothing: it drives the
Firecracker binary itself and imports nothing of mikrom, whose driver would hide the guest's mistakes.
`MIKROM_GUEST_ELF` puts a freshly built guest to the same test (`make check` in its folder does).
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
GUEST = Path(os.environ.get("MIKROM_GUEST_ELF", PROJECT / "mikrom_reconcile/guest/hello.elf"))
DEADLINE_S = 5.0
LEAST_MEM_SIZE_MIB = 2


def firecracker_binary() -> str | None:
    state_dir = Path(os.environ.get("MIKROM_STATE_DIR", "/var/lib/mikrom"))
    candidates = (
        os.environ.get("MIKROM_FIRECRACKER"),
        shutil.which("firecracker"),
        str(state_dir / "bin/firecracker"),
        "/var/lib/mikrom/bin/firecracker",
    )
    return next((path for path in candidates if path and os.access(path, os.X_OK)), None)


def why_nothing_can_run() -> str | None:
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "THE DEMO GUEST IS UNTESTED: /dev/kvm is missing or closed to this user"
    if firecracker_binary() is None:
        return "THE DEMO GUEST IS UNTESTED: no firecracker (MIKROM_FIRECRACKER, PATH, /var/lib/mikrom/bin)"
    return None


MISSING = why_nothing_can_run()
pytestmark = [pytest.mark.kvm, pytest.mark.skipif(MISSING is not None, reason=MISSING or "")]


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=DEADLINE_S)
        self.path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def wait_until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < deadline, f"waited {DEADLINE_S} s for {what}"
        time.sleep(0.001)


class Guest:
    """One Firecracker process with the demo guest in it; `folder` is short enough for a socket's path."""

    def __init__(self, folder: Path) -> None:
        self.api = folder / "api.sock"
        self.console_file = folder / "console.log"
        self.metrics_file = folder / "metrics"
        log_file = folder / "fc.log"
        for path in (self.metrics_file, log_file):
            path.touch()  # Firecracker opens them, but does not make them
        with self.console_file.open("wb") as console:
            self.process = subprocess.Popen(
                [
                    *(str(firecracker_binary()), "--api-sock", str(self.api)),
                    *("--metrics-path", str(self.metrics_file), "--log-path", str(log_file)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
            )

    def put(self, path: str, body: dict[str, object]) -> tuple[int, str]:
        with closing(UnixConnection(self.api)) as connection:
            connection.request("PUT", path, json.dumps(body))
            response = connection.getresponse()
            return response.status, response.read().decode()

    def answers(self) -> bool:
        with (
            closing(UnixConnection(self.api)) as connection,
            suppress(FileNotFoundError, ConnectionRefusedError),
        ):
            connection.connect()
            return True
        return False

    def start(self, boot_args: str, mem_size_mib: int, vcpu_count: int) -> tuple[int, str]:
        wait_until(self.answers, "the API socket")
        machine: dict[str, object] = {"vcpu_count": vcpu_count, "mem_size_mib": mem_size_mib}
        boot: dict[str, object] = {"kernel_image_path": str(GUEST), "boot_args": boot_args}
        assert self.put("/machine-config", machine) == (204, "")
        assert self.put("/boot-source", boot) == (204, "")
        self.started_at = time.monotonic()
        return self.act("InstanceStart")

    def age_s(self) -> float:
        return time.monotonic() - self.started_at

    def act(self, action_type: str) -> tuple[int, str]:
        return self.put("/actions", {"action_type": action_type})

    def console(self) -> str:
        return self.console_file.read_text(errors="replace")

    def wait_for(self, text: str) -> None:
        wait_until(lambda: text in self.console(), f"{text!r} on the console")

    def wait_for_exit(self) -> int:
        return self.process.wait(DEADLINE_S)

    def resets(self) -> int:
        """How often the guest reset itself: the proof of a clean end, written when Firecracker exits."""
        last = self.metrics_file.read_text().splitlines()[-1]
        count: int = json.loads(last)["i8042"]["reset_count"]
        return count

    def cpu_ticks(self) -> int:
        """Ticks of 10 ms that the whole process, its vCPUs included, has used."""
        stat = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return int(stat[11]) + int(stat[12])

    def resident_mib(self) -> int:
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * 4096 >> 20


@contextmanager
def firecracker() -> Iterator[Guest]:
    with tempfile.TemporaryDirectory(prefix="mikrom-") as folder:
        empty = Guest(Path(folder))
        try:
            yield empty
        finally:
            empty.process.kill()
            empty.process.wait()


@contextmanager
def guest(boot_args: str = "", mem_size_mib: int = 4, vcpu_count: int = 1) -> Iterator[Guest]:
    with firecracker() as running:
        assert running.start(boot_args, mem_size_mib, vcpu_count) == (204, "")
        running.wait_for("\n")
        yield running


def assert_stops_on_ctrl_alt_del(running: Guest) -> None:
    assert running.act("SendCtrlAltDel") == (204, "")
    assert running.wait_for_exit() == 0
    assert "MIKROM-CAD bye\n" in running.console()
    assert running.resets() == 1


@pytest.mark.parametrize("vcpu_count", [1, 2])
@pytest.mark.parametrize("mem_size_mib", [LEAST_MEM_SIZE_MIB, 3, 4, 128])
def test_it_names_itself_and_leaves_on_ctrl_alt_del(mem_size_mib: int, vcpu_count: int) -> None:
    with guest("console=ttyS0 reboot=k", mem_size_mib, vcpu_count) as running:
        assert running.console().startswith("MIKROM-UP console=ttyS0 reboot=k\n")
        assert_stops_on_ctrl_alt_del(running)


def test_it_hears_a_ctrl_alt_del_that_is_sent_at_once() -> None:
    for _ in range(5):
        with firecracker() as running:
            assert running.start("", mem_size_mib=4, vcpu_count=1) == (204, "")
            assert_stops_on_ctrl_alt_del(running)


@pytest.mark.parametrize("mode", ["", "mikrom.mode=ignore"])
def test_it_uses_no_cpu_while_it_waits(mode: str) -> None:
    with guest(mode) as running:
        time.sleep(0.1)  # Firecracker itself is still busy for some milliseconds after the start
        before = running.cpu_ticks()
        time.sleep(0.3)
        assert running.cpu_ticks() - before <= 1


def test_ignore_never_reacts_to_ctrl_alt_del() -> None:
    with guest("mikrom.mode=ignore mikrom.heartbeat=1") as running:
        assert running.act("SendCtrlAltDel") == (204, "")
        running.wait_for("MIKROM-BEAT 1\n")
        assert running.process.poll() is None
        assert "CAD" not in running.console()


def test_exit_ends_cleanly_after_its_time() -> None:
    with guest("mikrom.mode=exit:200") as running:
        assert running.wait_for_exit() == 0
        assert running.age_s() > 0.19  # a tick of 10 ms may be nearly over when it is first counted
        assert running.console().endswith("MIKROM-EXIT bye\n")
        assert running.resets() == 1


def test_crash_ends_without_a_reset_after_its_time() -> None:
    with guest("mikrom.mode=crash:200") as running:
        assert running.wait_for_exit() in (0, 1)  # 1.12.1 is not of one mind: only the metrics tell
        assert running.age_s() > 0.19
        assert "MIKROM-CRASH\n" in running.console()
        assert running.resets() == 0


@pytest.mark.parametrize("mode", ["exit", "crash"])
def test_a_timed_guest_still_leaves_on_ctrl_alt_del(mode: str) -> None:
    with guest(f"mikrom.mode={mode}:60000") as running:
        assert_stops_on_ctrl_alt_del(running)


def test_spin_burns_cpu_and_is_deaf() -> None:
    with guest("mikrom.mode=spin") as running:
        before = running.cpu_ticks()
        assert running.act("SendCtrlAltDel") == (204, "")
        wait_until(lambda: running.cpu_ticks() - before >= 10, "100 ms of CPU time")
        assert running.process.poll() is None


@pytest.mark.parametrize(("wanted_mib", "touched_mib"), [(0, 0), (20, 20), (999, 30)])
def test_touch_takes_memory_as_far_as_there_is_some(wanted_mib: int, touched_mib: int) -> None:
    with guest(f"mikrom.mode=touch:{wanted_mib}", mem_size_mib=32) as running:
        running.wait_for(f"MIKROM-TOUCHED {touched_mib}\n")
        assert touched_mib <= running.resident_mib() < touched_mib + 6
        assert_stops_on_ctrl_alt_del(running)


def test_flood_never_stops_talking_and_is_deaf() -> None:
    with guest("mikrom.mode=flood") as running:
        running.wait_for("MIKROM-FLOOD \x1b[2J\a\ufffd 100\n")
        assert running.act("SendCtrlAltDel") == (204, "")
        length = len(running.console())
        wait_until(lambda: len(running.console()) > length + 1000, "more output")
        assert running.process.poll() is None


def test_a_heartbeat_is_a_line_a_second() -> None:
    with guest("mikrom.heartbeat=1") as running:
        running.wait_for("MIKROM-BEAT 1\n")
        assert running.age_s() > 0.99
        assert_stops_on_ctrl_alt_del(running)


@pytest.mark.parametrize("mode", ["nonsense", "ignored", "ignore:5", "exit", "exit:", "exit:5x", "touch:-1", ""])
def test_an_unknown_mode_is_named_and_behaves_as_none(mode: str) -> None:
    with guest(f"quiet mikrom.mode={mode} ro") as running:
        running.wait_for("MIKROM-UNKNOWN-MODE\n")
        assert_stops_on_ctrl_alt_del(running)


@pytest.mark.parametrize(
    "boot_args",
    [
        "mikrom.modes=flood mikrom.mod=spin my-mikrom.mode=ignore",
        "init=mikrom.mode=ignore",
        "mikrom.mode=ignore mikrom.mode=exit:60000",
    ],
)
def test_only_whole_words_count_and_the_last_one_wins(boot_args: str) -> None:
    with guest(boot_args) as running:
        assert_stops_on_ctrl_alt_del(running)
        assert running.console() == f"MIKROM-UP {boot_args}\nMIKROM-CAD bye\n"


def test_firecracker_refuses_less_memory_than_it_needs() -> None:
    with firecracker() as refusing:
        status, answer = refusing.start("", LEAST_MEM_SIZE_MIB - 1, vcpu_count=1)
        assert status == 400
        assert "kernel image" in answer
