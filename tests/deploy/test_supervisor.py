"""The programs of `deploy/supervisor`, run by a real supervisord."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from signal import SIGKILL, SIGTERM

import pytest

from tests.conftest import found_firecracker, why_no_microvms
from tests.deploy.installed import BIN, adapted, free_port
from tests.fleet import KEYS, ROOT, Fleet, wait_until

pytestmark = [pytest.mark.redis, pytest.mark.needs("supervisord")]

READY_S = 240.0  # four services start at once, and a loaded machine takes its time

# real microVMs where there can be some
DRIVER = {"MIKROM_DRIVER": "simulated"}
if not why_no_microvms():
    DRIVER = {"MIKROM_DRIVER": "firecracker", "MIKROM_FIRECRACKER": found_firecracker() or ""}
SPECS = """\
apiVersion: mikrom/v1
kind: Fleet
metadata: {name: web}
spec:
  replicas: 2
  template: {image: hello, machine: {mem_size_mib: 4}}
"""
SUPERVISORD = """\
[supervisord]
nodaemon=true
logfile={folder}/own.log
pidfile={folder}/supervisord.pid
[include]
files = {folder}/etc/supervisor/conf.d/*.conf
"""


class Machine:
    """Control node and host in one, its services under supervisord."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fleet = Fleet(folder)
        for name in ("etc/mikrom", "etc/supervisor/conf.d", "var/log/mikrom", "var/lib"):
            (folder / name).mkdir(parents=True)
        self.variables = {
            "MIKROM_BROKER_URL": self.fleet.url,
            **DRIVER,
            "MIKROM_STATE_DIR": f"{folder}/state",
            "MIKROM_RUN_DIR": f"{folder}/run",
            "MIKROM_SPECS": f"{folder}/web.yml",
            "FLOWER_BASIC_AUTH": "ana:not-the-default",
            "FLOWER_PORT": str(free_port()),
        }
        (folder / "web.yml").write_text(SPECS)
        (folder / "etc/mikrom/env").write_text(
            "".join(f"{name}={shlex.quote(value)}\n" for name, value in self.variables.items())
        )
        for name in ("mikrom-control.conf", "mikrom-host.conf"):
            (folder / "etc/supervisor/conf.d" / name).write_text(adapted(f"supervisor/{name}", folder))
        (folder / "own.log").touch()
        conf = folder / "supervisord.conf"
        conf.write_text(SUPERVISORD.format(folder=folder))
        self.process = self.fleet.run("supervisord", ["supervisord", "-c", str(conf)])

    def said(self) -> str:
        return (self.folder / "own.log").read_text()

    def pid(self, service: str) -> int:
        """The process that was last started for a service."""
        return int(re.findall(rf"spawned: 'mikrom-{service}' with pid (\d+)", self.said())[-1])

    def beats(self, service: str) -> bool:
        """Whether the process that was last started has told the fleet that it lives."""
        pid = self.pid(service)
        owner = "host:localhost" if service == "host" else f"{service}:localhost:{pid}"
        start_id: bytes = self.fleet.redis.get(KEYS.heartbeat(owner)) or b""  # type: ignore[assignment]
        return start_id.startswith(f"{pid}-".encode())

    def await_all(self) -> None:
        wait_until(lambda: self.said().count("spawned") >= 4, "supervisord", within_s=READY_S)
        for service in ("host", "control", "beat"):
            wait_until(partial(self.beats, service), service, within_s=READY_S)

    def mikrom(self, *words: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, **self.variables}
        argv = [str(BIN / "mikrom"), *words]
        return subprocess.run(argv, env=environment, capture_output=True, text=True, check=False, cwd=ROOT)

    def close(self) -> None:
        if self.process.poll() is None:
            self.mikrom("destroy", f"{self.folder}/web.yml", "--yes")
            self.process.terminate()
            self.process.wait(timeout=240)
        self.fleet.close()


@pytest.fixture
def machine(own_environment: Path) -> Iterator[Machine]:
    machine = Machine(own_environment)
    try:
        machine.await_all()
        yield machine
    finally:
        machine.close()


def test_killed_services_come_back_the_microvms_stay_and_all_end_in_order(machine: Machine) -> None:
    assert machine.mikrom("apply", f"{machine.folder}/web.yml", "--yes").returncode == 0
    rows = machine.mikrom("get", "vms", "-o", "json").stdout
    for services, sent in ((("beat", "control", "host"), SIGKILL), (("host",), SIGTERM)):
        before = machine.said().count("spawned")
        for service in services:
            os.kill(machine.pid(service), sent)
        wait_until(lambda: machine.said().count("spawned") == before + len(services), "new ones", within_s=READY_S)  # noqa: B023 - asked here
        machine.await_all()
    assert rows == machine.mikrom("get", "vms", "-o", "json").stdout, "the same microVMs, with the same pids"
    machine.mikrom("destroy", f"{machine.folder}/web.yml", "--yes")

    machine.process.terminate()
    machine.process.wait(timeout=240)
    stopped = re.findall(r"stopped: mikrom-(\w+) \((.*)\)", machine.said())
    assert [name for name, _ in stopped[-4:]] == ["flower", "beat", "control", "host"]
    assert {how for _, how in stopped[-4:]} == {"exit status 0"}, "none had to be killed"
    assert "not-the-default" not in machine.fleet.log("supervisord")
