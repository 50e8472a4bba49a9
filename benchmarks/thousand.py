"""1,000 microVMs of 4 MiB on this machine: made, looked at, verified and removed by `mikrom`, beside the bare loop.

Its files lie on a tmpfs, so that no disk is measured. Memory is what the machine has less while all of them run, and
what /proc says that one VMM alone would have to give back (Pss).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.rows import Goal, Row
from benchmarks.starts import kill_all, processes_of
from benchmarks.startup import MIKROM
from mikrom_reconcile.host.drivers.select import find, kvm_problem
from mikrom_reconcile.host.resources.images import ImageCache
from mikrom_reconcile.settings import load

VMS = 1000
HUNG = 100
FORKS = 32
TMPFS = Path("/dev/shm")
SPECS = f"""
apiVersion: mikrom/v1
kind: Project
metadata: {{name: thousand}}
---
apiVersion: mikrom/v1
kind: Fleet
metadata: {{name: web}}
spec:
  replicas: {VMS}
  prune: {{allow_empty: true}}
  template: {{image: hello, machine: {{mem_size_mib: 4}}}}
"""


def measure() -> Iterator[Row]:
    """Rates of each deed, and memory of the process and of a VM."""
    settings = load()
    binary = find("firecracker", settings.firecracker, settings.state_dir)
    problem = kvm_problem() or (None if binary else "no firecracker was found")
    if problem or binary is None:
        yield Row(what=f"{VMS} microVMs: {problem}", ours="not measured")
        return
    with tempfile.TemporaryDirectory(prefix="mk-", dir=TMPFS) as name:
        folder = Path(name)
        try:
            yield from _rows(binary, folder)
        finally:
            kill_all(folder)


def _rows(binary: Path, folder: Path) -> Iterator[Row]:
    (folder / "web.yml").write_text(SPECS)
    specs = str(folder / "web.yml")
    environment = _environment(binary, folder)
    free_before = _available_kib()
    apply_s, resident_kib = _timed([MIKROM, "apply", specs, "--yes", "--forks", str(FORKS)], environment)
    yield Row(what=f"{VMS} created and verified by `mikrom apply`", ours=f"{VMS / apply_s:.0f}/s")
    vmms = processes_of(folder)
    shown = subprocess.run([MIKROM, "get", "vms", "-o", "json"], env=environment, check=True, capture_output=True)
    up = sum(vm["phase"] == "running" for vm in json.loads(shown.stdout)["vms"])
    yield Row(what="of them seen to run, and VMMs in /proc", ours=str(up), other=str(len(vmms)))
    yield Row(what="peak memory of `mikrom apply`", ours=f"{resident_kib / 1024:.0f} MiB")
    less_kib = (free_before - _available_kib()) / VMS
    yield Row(
        what="memory of each VM: less available | Pss", ours=f"{less_kib:.0f} KiB", other=f"{_pss_kib(vmms):.0f} KiB"
    )
    again_s, _ = _timed([MIKROM, "apply", specs, "--yes"], environment)
    yield Row(what="an apply that changes nothing", ours=f"{again_s:.2f} s")
    yield _row_of_hung(vmms[:HUNG], environment)
    gone_s, _ = _timed([MIKROM, "destroy", specs, "--yes", "--forks", str(FORKS)], environment)
    yield Row(what="destroyed and verified", ours=f"{VMS / gone_s:.0f}/s", other=f"{len(processes_of(folder))} left")
    bare = folder / "bare"
    bare.mkdir()
    loop = Path(__file__).with_name("bare_loop.py")
    kernel = ImageCache(bare).hello()
    bare_s, _ = _timed([sys.executable, str(loop), str(binary), str(kernel), str(bare), str(VMS), str(FORKS)], {})
    yield Row(
        what="created, in one round: `mikrom apply` | bare loop",
        ours=f"{VMS / apply_s:.0f}/s",
        other=f"{VMS / bare_s:.0f}/s",
        ratio=f"{bare_s / apply_s:.2f}",
    )


def _row_of_hung(vmms: Sequence[Path], environment: Mapping[str, str]) -> Row:
    """A look at all VMs while these VMMs answer nobody."""
    pids = [int(vmm.name) for vmm in vmms]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        began_s = time.perf_counter()
        shown = subprocess.run([MIKROM, "get", "vms", "-o", "json"], env=environment, capture_output=True, check=False)
        spent_s = time.perf_counter() - began_s
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    silent = sum(vm["phase"] == "unresponsive" for vm in json.loads(shown.stdout)["vms"])
    what = f"a look at all of them while {HUNG} hang | seen to hang"
    return Row(
        what=what,
        ours=f"{spent_s:.2f} s",
        other=str(silent),
        goal=Goal(number=9, bound=2, unit="s", at_most=True),
        figure=spent_s,
    )


def _environment(binary: Path, folder: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MIKROM_", "CELERY_"))}
    own = {"STATE_DIR": folder / "state", "RUN_DIR": folder / "run", "FIRECRACKER": binary, "DRIVER": "firecracker"}
    return kept | {f"MIKROM_{name}": str(value) for name, value in own.items()}


def _timed(argv: list[str], environment: Mapping[str, str]) -> tuple[float, int]:
    """Seconds that a program takes, and the KiB that it had in memory at most. Raises CalledProcessError."""
    began_s = time.perf_counter()
    process = subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise subprocess.CalledProcessError(process.returncode, argv)
    return time.perf_counter() - began_s, usage.ru_maxrss


def _available_kib() -> int:
    return int(Path("/proc/meminfo").read_text().partition("MemAvailable:")[2].split()[0])


def _pss_kib(vmms: list[Path]) -> float:
    """Of one VMM on average: shared pages count in parts."""
    rollups = [(vmm / "smaps_rollup").read_text() for vmm in vmms]
    return sum(int(text.partition("\nPss:")[2].split()[0]) for text in rollups) / len(rollups)
