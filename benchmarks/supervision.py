"""From the kill of a VMM to its guest running again, under a host worker that supervises 200 of them.

A guest lives from its first line on the console, whose time the kernel writes down with the file (4 ms too early at
most); so nothing is polled while it is measured. Single kills come at random moments, each VM dies once.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from statistics import quantiles

import msgspec

from benchmarks.rows import Goal, Row, used_cpu_s
from benchmarks.scratch import scratch
from benchmarks.starts import kill_all
from benchmarks.startup import MIKROM
from mikrom_reconcile.host.drivers.select import find, kvm_problem
from mikrom_reconcile.host.resources.images import ImageCache
from mikrom_reconcile.settings import load

VMS = 200
KILLS_PER_S = 20
IDLE_S = 10.0
PATIENCE_S = 60.0
GOAL = Goal(number=8, bound=250, unit="ms", at_most=True)
FIRST_LINE = b"MIKROM-UP"
SPECS = f"""
apiVersion: mikrom/v1
kind: Fleet
metadata: {{name: web}}
spec:
  replicas: {VMS}
  template: {{image: hello, machine: {{mem_size_mib: 4}}, restart: {{attempts: 1000}}}}
"""


class _Proc(msgspec.Struct):
    pid: int


class Fleet:
    """Running VMs, a Redis and a host worker below one folder."""

    def __init__(self, folder: Path, binary: Path) -> None:
        self._vms = folder / "state" / "vms"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MIKROM_", "CELERY_"))}
        own = {"STATE_DIR": folder / "state", "RUN_DIR": folder / "run", "FIRECRACKER": binary, "DRIVER": "firecracker"}
        environment = kept | {f"MIKROM_{name}": str(value) for name, value in own.items()}
        (folder / "web.yml").write_text(SPECS)
        apply = [MIKROM, "apply", str(folder / "web.yml"), "--yes"]
        subprocess.run(apply, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.names = tuple(sorted(path.name for path in self._vms.iterdir()))
        socket, self._log = folder / "redis.sock", folder / "worker.log"
        redis = ["redis-server", "--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(folder)]
        self.redis = subprocess.Popen(redis, stdout=subprocess.DEVNULL)
        _wait(socket.exists, "Redis")
        environment |= {"MIKROM_BROKER_URL": f"redis+socket://{socket}"}
        with self._log.open("wb") as log:
            self.worker = subprocess.Popen([MIKROM, "worker"], env=environment, stdout=log, stderr=log)
        _wait(lambda: b" ready." in self._log.read_bytes(), "the worker")
        time.sleep(2)  # its first look at all VMs

    def close(self) -> None:
        """End the worker first: it would bring VMs back."""
        for process in (self.worker, self.redis):
            process.kill()
            process.wait()

    def lives_ms(self, pauses_s: Iterator[float]) -> list[float]:
        """Kill every VM once, with these pauses; milliseconds from each kill to the guest's first line."""
        pids = {
            vm: msgspec.json.decode((self._vms / vm / "proc.json").read_bytes(), type=_Proc).pid for vm in self.names
        }
        lines = {vm: self._lines(vm) for vm in self.names}
        killed_ns = {}
        for vm, pause_s in zip(Random(len(lines)).sample(self.names, VMS), pauses_s, strict=False):
            time.sleep(pause_s)
            killed_ns[vm] = time.time_ns()
            os.kill(pids[vm], signal.SIGKILL)
        _wait(lambda: all(self._lines(vm) > lines[vm] for vm in self.names), "all to be back")
        assert all(self._lines(vm) == lines[vm] + 1 for vm in self.names)
        return [((self._vms / vm / "console.log").stat().st_mtime_ns - killed_ns[vm]) / 1e6 for vm in self.names]

    def _lines(self, vm: str) -> int:
        return (self._vms / vm / "console.log").read_bytes().count(FIRST_LINE)


def measure() -> Iterator[Row]:
    """Single deaths and the death of all, with Redis and without; and what the waiting costs."""
    settings = load()
    binary = find("firecracker", settings.firecracker, settings.state_dir)
    problem = kvm_problem() or (None if binary else "no firecracker was found")
    if problem or binary is None:
        yield Row(what=f"time to life of {VMS} microVMs: {problem}", ours="not measured", goal=GOAL)
        return
    with scratch() as folder, _running(folder, binary) as fleet:
        yield from _idle(fleet)
        yield from _times_to_life(fleet, "", _bare_loop_s(binary, folder / "bare"))
        fleet.redis.kill()
        time.sleep(1)
        yield from _times_to_life(fleet, ", Redis stopped", None)


@contextmanager
def _running(folder: Path, binary: Path) -> Iterator[Fleet]:
    try:
        fleet = Fleet(folder, binary)
        try:
            yield fleet
        finally:
            fleet.close()
    finally:
        kill_all(folder)


def _idle(fleet: Fleet) -> Iterator[Row]:
    before_s = used_cpu_s(fleet.worker.pid)
    time.sleep(IDLE_S)
    share = (used_cpu_s(fleet.worker.pid) - before_s) / IDLE_S
    yield Row(what=f"CPU of an idle host worker that supervises {VMS} microVMs", ours=f"{share:.2%}")


def _times_to_life(fleet: Fleet, where: str, bare_s: float | None) -> Iterator[Row]:
    chance = Random(where)
    single = fleet.lives_ms(chance.expovariate(KILLS_PER_S) for _ in range(VMS))
    what = f"life after single kills, {KILLS_PER_S}/s{where}: p50, p99, max"
    yield Row(what=what, ours=_spread(single), goal=GOAL, figure=max(single))
    at_once = fleet.lives_ms(0.0 for _ in range(VMS))
    other = f"{bare_s * 1000:.0f} ms" if bare_s else ""
    yield Row(what=f"after {VMS} kills at once{where} | bare loop", ours=_spread(at_once), other=other)


def _spread(lives_ms: list[float]) -> str:
    cuts = quantiles(lives_ms, n=100)
    return f"{cuts[49]:.0f}, {cuts[98]:.0f}, {max(lives_ms):.0f} ms"


def _bare_loop_s(binary: Path, folder: Path) -> float:
    """Seconds in which the bare loop starts as many, 32 at once."""
    folder.mkdir()
    loop = Path(__file__).with_name("bare_loop.py")
    argv = [sys.executable, str(loop), str(binary), str(ImageCache(folder).hello()), str(folder), str(VMS), "32"]
    began_s = time.perf_counter()
    subprocess.run(argv, check=True)
    spent_s = time.perf_counter() - began_s
    kill_all(folder)
    return spent_s


def _wait(holds: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < until, f"waited {PATIENCE_S:g} s for {what}"
        time.sleep(0.2)
