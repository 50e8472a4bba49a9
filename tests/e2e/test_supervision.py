"""VMMs killed at random under a host worker, with Redis and without: back within moments, and never two for a VM.

What is judged is /proc and the guests' consoles. How fast it is, `python -m benchmarks supervision` measures.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from mikrom_reconcile.core.model.observed import ObservedVM, ObserveQuery
from mikrom_reconcile.wiring import make_host_agent
from tests.fleet import Fleet, wait_until
from tests.watch import VMM, Watch

VMS = 12
KILLS = 30
NAMES = [f"web-{number:03d}" for number in range(VMS)]
SPECS = """
apiVersion: mikrom/v1
kind: Fleet
metadata: {{name: web}}
spec:
  replicas: {vms}
  template: {{image: hello, machine: {{mem_size_mib: 4}}, boot_args: "{boot_args}", restart: {restart}}}
"""

pytestmark = [pytest.mark.kvm, pytest.mark.redis]


class Host:
    """A host worker and a control worker over real microVMs."""

    def __init__(self, folder: Path, watch: Watch) -> None:
        self.folder, self.watch = folder, watch
        self.fleet = Fleet(folder)
        self._real = {"MIKROM_DRIVER": "firecracker", "MIKROM_FIRECRACKER": os.environ["MIKROM_FIRECRACKER"]}
        self.fleet.worker("control", pool="threads", app="mikrom_reconcile.celery_app", **self._real)
        self.worker = self.new_worker()

    def new_worker(self) -> subprocess.Popen[bytes]:
        return self.fleet.worker("host", app="mikrom_reconcile.celery_app", **self._real)

    def apply(self, vms: int = VMS, *, boot_args: str = "", restart: str = "{attempts: 1000}") -> None:
        specs = self.folder / "specs.yml"
        specs.write_text(SPECS.format(vms=vms, boot_args=boot_args, restart=restart))
        argv = [sys.executable, "-m", "mikrom_reconcile", "apply", str(specs), "--yes"]
        ended = subprocess.run(
            argv, env=self.fleet.environment(**self._real), capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr

    def rows(self) -> dict[str, ObservedVM]:
        report = make_host_agent(self.fleet.settings(**self._real)).observe(ObserveQuery())
        return {row.name: row for row in report.vms}

    def are_up(self, restarts: int) -> bool:
        """Whether all run, after so many restarts in all."""
        rows = self.rows().values()
        return {row.phase for row in rows} == {"running"} and sum(len(row.restarts) for row in rows) == restarts

    def history(self, vm: str) -> list[dict[str, Any]]:
        argv = [sys.executable, "-m", "mikrom_reconcile", "history", vm, "-o", "json"]
        said = subprocess.run(argv, env=self.fleet.environment(**self._real), capture_output=True, check=True).stdout
        runs: list[dict[str, Any]] = json.loads(said)["runs"]
        return runs

    def one_of(self, vm: str) -> VMM | None:
        return next((vmm for vmm in self.watch.now() if vmm.vm == vm), None)


@pytest.fixture
def watch(own_environment: Path) -> Iterator[Watch]:
    """Kills what a test leaves."""
    with Watch(own_environment / "run") as watch:
        try:
            yield watch
        finally:
            for vmm in watch.now():
                os.kill(vmm.pid, signal.SIGKILL)


@pytest.fixture
def host(own_environment: Path, watch: Watch) -> Iterator[Host]:
    host = Host(own_environment, watch)
    try:
        yield host
    finally:
        host.fleet.close()


@pytest.mark.parametrize("redis", ["without Redis", pytest.param("with Redis", marks=pytest.mark.soak)])
def test_vms_killed_at_random_are_back_and_never_twice(host: Host, redis: str) -> None:
    host.apply()
    if redis == "without Redis":
        host.fleet.stop_redis()
    chance = Random(f"kills {redis}")
    for number in range(KILLS):
        victim = host.one_of(chance.choice(NAMES))
        assert victim is not None
        os.kill(victim.pid, signal.SIGKILL)
        wait_until(lambda number=number: host.are_up(number + 1), f"all to be back after kill {number}")  # type: ignore[misc]
    victims = host.watch.now()
    for vmm in victims:
        os.kill(vmm.pid, signal.SIGKILL)
    wait_until(lambda: host.are_up(KILLS + VMS), "all to be back after the death of all")
    assert host.watch.now().isdisjoint(victims)
    assert host.watch.doubles == []
    assert all(row.generation == 1 for row in host.rows().values())


def test_a_worker_that_is_back_brings_back_what_died_without_it_and_its_end_ends_no_vm(host: Host) -> None:
    host.apply()
    before = host.watch.now()
    host.worker.kill()
    host.worker.wait()
    assert host.watch.now() == before
    dead = sorted(before)[: VMS // 2]
    for vmm in dead:
        os.kill(vmm.pid, signal.SIGKILL)
    host.worker = host.new_worker()
    wait_until(lambda: host.are_up(len(dead)), "all to be back")
    before = host.watch.now()
    host.worker.terminate()
    assert host.worker.wait(timeout=240) == 0
    assert host.watch.now() == before


def test_a_vm_ordered_down_while_it_keeps_dying_stays_down(host: Host) -> None:
    host.apply(1, boot_args="mikrom.mode=crash:800")
    wait_until(lambda: len(host.rows()["web-000"].restarts) > 2, "some restarts")
    specs = host.folder / "specs.yml"
    stop = [sys.executable, "-m", "mikrom_reconcile", "destroy", str(specs), "--yes"]
    for _ in range(3):  # an order may meet the supervision at work and is refused then, as by another order
        if subprocess.run(stop, env=host.fleet.environment(), capture_output=True, check=False).returncode == 0:
            break
    wait_until(lambda: host.watch.now() == frozenset(), "its end")
    time.sleep(0.5)
    assert host.watch.now() == frozenset()
    assert host.rows() == {}


def test_a_crash_loop_is_given_up_and_then_costs_nothing(host: Host) -> None:
    host.apply(1, boot_args="mikrom.mode=crash:800", restart="{attempts: 5}")
    wait_until(lambda: host.rows()["web-000"].phase == "crash_loop", "the VM to be given up")
    row = host.rows()["web-000"]
    assert (row.phase, len(row.restarts), row.pid) == ("crash_loop", 5, None)
    assert "a crash loop: 5 restarts within 10m" in host.fleet.log("host:localhost")
    before_s = cpu_s(host.worker.pid)
    time.sleep(3)
    assert cpu_s(host.worker.pid) - before_s < 0.6, "an idle Celery worker takes some 0.1 s"
    assert host.watch.now() == frozenset()


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_what_the_supervision_did_is_in_the_history_with_its_cause(host: Host) -> None:
    host.apply(1)
    victim = host.one_of("web-000")
    assert victim is not None
    os.kill(victim.pid, signal.SIGKILL)
    wait_until(lambda: len(host.history("web-000")) == 2, "the restart to be told")
    brought_back, created = host.history("web-000")
    assert created["origin"].startswith("apply by ")
    assert (brought_back["origin"], brought_back["exit_code"]) == ("supervision of localhost", 0)
    (deed,) = brought_back["outcomes"]
    assert (deed["verb"], deed["result"], deed["reasons"]) == ("start", "done", ["it was killed"])


def test_a_crash_loop_is_kept_once_and_says_how_its_vm_ended(host: Host) -> None:
    host.apply(1, boot_args="mikrom.mode=crash:800", restart="{attempts: 3, delay: 0s}")
    wait_until(lambda: len(host.history("web-000")) == 3, "the end of the loop to be told")
    crash_loop, restarted, _ = host.history("web-000")
    assert (restarted["times"], restarted["outcomes"][0]["reasons"]) == (3, ["it was crashed"])
    (deed,) = crash_loop["outcomes"]
    assert (deed["result"], deed["reasons"]) == ("failed_permanent", ["it was crashed"])
    assert deed["error"].startswith("a crash loop: 3 restarts within")
    assert host.rows()["web-000"].last_error == "it was crashed"
