"""`mikrom up`: every service on one machine, found by the other commands, ended by one Ctrl-C."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError

import pytest

from mikrom_reconcile.host.drivers.simulated import SimulatedDriver
from mikrom_reconcile.settings import load
from mikrom_reconcile.system import locks
from tests.fleet import ROOT, wait_until
from tests.scratch import SCRATCH

pytestmark = pytest.mark.redis

CREDENTIALS = "ana:not-the-default"
SERVICES = {"redis", "host", "control", "beat", "flower"}


class Up:
    """A running `mikrom up` with simulated microVMs, unless told otherwise."""

    def __init__(self, folder: Path, *options: str, driver: str = "simulated", **more: str) -> None:
        self.folder = folder
        self.specs = folder / "web.yml"
        fleet = "apiVersion: mikrom/v1\nkind: Fleet\nmetadata: {name: web}\n"
        self.specs.write_text(
            f"{fleet}spec:\n  replicas: 3\n  template: {{image: hello, machine: {{mem_size_mib: 4}}}}\n"
        )
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        own = {
            "MIKROM_DRIVER": driver,
            "MIKROM_STATE_DIR": f"{folder}/state",
            "MIKROM_RUN_DIR": f"{folder}/run",
            "MIKROM_RECONCILE_INTERVAL": "1",
            "FLOWER_BASIC_AUTH": CREDENTIALS,
            "MIKROM_PAGE_AUTH": CREDENTIALS,
            "FLOWER_PORT": str(self.port),
        }
        self.environment = {**os.environ, **own, **more}
        self.settings = load(self.environment)
        argv = [sys.executable, "-m", "mikrom_reconcile", "up", *options]
        environment = {"MIKROM_SPECS": str(self.specs)} | self.environment
        with (folder / "up.log").open("wb") as log:
            self.process = subprocess.Popen(argv, env=environment, stdout=log, stderr=log, cwd=ROOT)
        wait_until(lambda: self.process.poll() is not None or "ready:" in self.said(), "mikrom up")
        assert self.process.poll() is None, self.said()

    def said(self) -> str:
        return (self.folder / "up.log").read_text()

    def mikrom(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Another command, which has to find these services by itself."""
        argv = [sys.executable, "-m", "mikrom_reconcile", *words]
        return subprocess.run(argv, env=self.environment, capture_output=True, text=True, cwd=ROOT, check=False)

    def rows(self) -> dict[str, dict[str, object]]:
        """What `mikrom get vms` tells of each VM."""
        return {row["name"]: row for row in json.loads(self.mikrom("get", "vms", "-o", "json").stdout)["vms"]}

    def children(self) -> dict[int, str]:
        """Pid and command line of each process that runs for this `up`."""
        mark = f"MIKROM_STATE_DIR={self.folder}/state".encode()
        found = {}
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit() and int(folder.name) not in {os.getpid(), self.process.pid}:
                try:
                    command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    ours = mark in (folder / "environ").read_bytes().split(b"\0")
                except OSError:
                    continue  # it has just ended
                if ours or str(self.folder) in command:  # Redis writes its title over its environment
                    found[int(folder.name)] = command
        return found

    def flower(self, path: str, credentials: str | None = None) -> tuple[int, bytes]:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}")
        if credentials:
            request.add_header("Authorization", f"Basic {base64.b64encode(credentials.encode()).decode()}")
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return answer.status, answer.read()
        except HTTPError as error:
            with error:
                return error.code, b""
        except OSError:
            return 0, b""  # it does not listen yet


@pytest.fixture(scope="module")
def up() -> Iterator[Up]:
    """Ended by the hardest of all ends, after which nothing may run on."""
    with tempfile.TemporaryDirectory(prefix="mk-", dir=SCRATCH) as folder:
        up = Up(Path(folder), "--no-run")
        try:
            yield up
        finally:
            up.process.kill()
            up.process.wait()
            wait_until(lambda: not up.children(), "the end of every service after the death of its parent")


def test_other_commands_find_it_and_beat_brings_a_killed_vm_back(up: Up) -> None:
    applied = up.mikrom("apply", str(up.specs), "--yes")
    assert applied.returncode == 0, applied.stderr
    driver = SimulatedDriver(up.settings.state_dir)
    before = driver.console("web-001", max_bytes=1000).content
    driver.change("web-001", end="killed")
    wait_until(lambda: len(driver.console("web-001", max_bytes=1000).content) > len(before), "web-001 to boot again")
    assert {vm: row["phase"] for vm, row in up.rows().items()} == {f"web-00{n}": "running" for n in range(3)}


def test_flower_wants_credentials_and_shows_tasks_without_their_arguments(up: Up) -> None:
    wait_until(lambda: up.flower("/")[0] == 401, "Flower to answer")
    assert up.flower("/api/tasks")[0] == 401
    assert up.flower("/api/tasks", "ana:guess")[0] == 401
    wait_until(lambda: b"mikrom.observe_host" in up.flower("/api/tasks", CREDENTIALS)[1], "a task in Flower")
    status, tasks = up.flower("/api/tasks", CREDENTIALS)
    assert status == 200
    shown = {(task["name"], task["args"], task["kwargs"]) for task in json.loads(tasks).values()}
    assert ("mikrom.observe_host", "(not shown)", "localhost") in shown
    assert ("mikrom.reconcile", "(not shown)", "(not shown)") in shown
    assert b"workers" in up.flower("/", CREDENTIALS)[1].lower()


def test_a_second_one_says_who_is_there_already(up: Up) -> None:
    second = up.mikrom("up", "--no-run")
    assert second.returncode == 16
    assert f"another `mikrom up` runs here, pid {up.process.pid}" in second.stderr


def test_a_port_of_flower_that_is_taken_is_said_before_anything_is_started(own_environment: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        argv = [sys.executable, "-m", "mikrom_reconcile", "up", "--no-run"]
        environment = {**os.environ, "FLOWER_PORT": port}
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"Flower cannot listen on 127.0.0.1:{port}: Address already in use" in done.stderr
    assert "set FLOWER_PORT" in done.stderr
    assert not (own_environment / "run" / "redis.conf").exists()


def test_a_service_that_dies_is_started_again_and_told(up: Up) -> None:
    (control,) = [pid for pid, command in up.children().items() if " -P threads " in command]
    os.kill(control, signal.SIGKILL)
    wait_until(lambda: "control: ended (SIGKILL), starts again in 1 s" in up.said(), "the news")
    wait_until(lambda: up.mikrom("apply", str(up.specs), "--yes").returncode == 0, "control to be back")


def test_no_secret_is_in_an_argument_and_no_file_is_open_to_others(up: Up) -> None:
    password = json.loads((up.folder / "run" / "up.json").read_text())["broker_url"].split(":")[2].partition("@")[0]
    assert len(password) > 20
    commands = up.children()
    assert len(commands) == len(SERVICES)
    assert not [command for command in commands.values() if password in command or CREDENTIALS in command]
    files = [*(up.folder / "run").rglob("*"), *(up.folder / "state" / "log").rglob("*")]
    assert not [path for path in files if path.stat().st_mode & 0o077]


def test_each_service_is_told_only_the_secrets_that_are_its_own(up: Up) -> None:
    told: dict[str, set[str]] = {}
    for pid, command in up.children().items():
        if "celery" in command:
            service = next(name for name in (" gevent ", " threads ", " beat ", " flower ") if name in command)
            environ = (Path("/proc") / str(pid) / "environ").read_bytes().decode().split("\0")
            told[service.strip()] = {variable.partition("=")[0] for variable in environ}
    kept = {
        "FLOWER_BASIC_AUTH": "flower",
        "MIKROM_PAGE_AUTH": "threads",
        "MIKROM_SIGNING_KEY": "threads",
        "MIKROM_VERIFY_KEY": "gevent",
    }
    assert {name: [service for service in told if name in told[service]] for name in kept} == {
        name: [service] for name, service in kept.items()
    }


@pytest.mark.parametrize(
    "driver", [pytest.param("simulated", marks=pytest.mark.soak), pytest.param("firecracker", marks=pytest.mark.kvm)]
)
def test_one_ctrl_c_ends_the_services_within_ten_seconds_and_leaves_the_microvms(
    own_environment: Path, driver: str
) -> None:
    up = Up(own_environment, driver=driver)
    try:
        wait_until(lambda: "apply: ended (exit code 0)" in up.said(), "the specs to be applied once")
        rows = up.rows()
        assert {row["phase"] for row in rows.values()} == {"running"}
        assert len(rows) == 3
        asked_at = time.monotonic()
        up.process.send_signal(signal.SIGINT)
        assert up.process.wait(timeout=240) == 0
        assert time.monotonic() - asked_at < 10
        assert not [command for command in up.children().values() if "celery" in command or "redis" in command]
        assert not locks.is_taken(own_environment / "run" / "up.json")
        assert "embedded" in up.mikrom("doctor").stdout
        assert up.rows() == rows, "the same microVMs, with the same pids"
    finally:
        up.process.kill()
        up.process.wait()
        destroyed = up.mikrom("destroy", str(up.specs), "--yes")
    assert destroyed.returncode == 0, destroyed.stderr
