"""300 microVMs of 4 MiB by one `mikrom apply`, beside the bare loop of `bare_loop.py` with the same concurrency.

Whole processes are timed: start-up, plan and last look are included. The sides take turns, so that a busy machine
slows both; the ratio is the median of the rounds' ratios. A first round, which warms the caches, does not count.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from statistics import median

from benchmarks.rows import Goal, Row
from benchmarks.scratch import scratch
from benchmarks.startup import MIKROM
from mikrom_reconcile.host.drivers.select import find, kvm_problem
from mikrom_reconcile.host.resources.images import ImageCache
from mikrom_reconcile.settings import load

VMS = 300
FORKS = 32
ROUNDS = 5
GOAL = Goal(number=5, bound=0.8)
SPECS = f"""
apiVersion: mikrom/v1
kind: Fleet
metadata: {{name: web}}
spec:
  replicas: {VMS}
  template: {{image: hello, machine: {{mem_size_mib: 4}}}}
"""


Rates = tuple[float, float]


def measure() -> Iterator[Row]:
    """Starts a second: of the whole command, and of that part of it in which VMMs are started."""
    settings = load()
    binary = find("firecracker", settings.firecracker, settings.state_dir)
    problem = kvm_problem() or (None if binary else "no firecracker was found")
    if problem or binary is None:
        yield Row(what=f"{VMS} microVMs: {problem}", ours="not measured", goal=GOAL)
        return
    with scratch() as folder:
        pairs = [
            (_apply(binary, folder / f"ours-{number}"), _bare_loop(binary, folder / f"other-{number}"))
            for number in range(ROUNDS + 1)
        ][1:]
    for what, side, goal in (
        (f"{VMS} microVMs, {FORKS} at once: `mikrom apply` | bare loop", 0, GOAL),
        ("of that, from the first Firecracker to the last", 1, None),
    ):
        ratio = median(ours[side] / other[side] for ours, other in pairs)
        yield Row(
            what=what,
            ours=f"{median(ours[side] for ours, _ in pairs):.0f}/s",
            other=f"{median(other[side] for _, other in pairs):.0f}/s",
            ratio=f"{ratio:.2f}",
            goal=goal,
            figure=ratio,
        )


def _apply(binary: Path, folder: Path) -> Rates:
    folder.mkdir()
    (folder / "web.yml").write_text(SPECS)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MIKROM_", "CELERY_"))}
    own = {"STATE_DIR": folder / "state", "RUN_DIR": folder / "run", "FIRECRACKER": binary, "DRIVER": "firecracker"}
    environment = kept | {f"MIKROM_{name}": str(value) for name, value in own.items()}
    return _rates(folder, [MIKROM, "apply", str(folder / "web.yml"), "--yes", "--forks", str(FORKS)], environment)


def _bare_loop(binary: Path, folder: Path) -> Rates:
    folder.mkdir()
    kernel = ImageCache(folder).hello()
    loop = Path(__file__).with_name("bare_loop.py")
    return _rates(folder, [sys.executable, str(loop), str(binary), str(kernel), str(folder), str(VMS), str(FORKS)], {})


def _rates(folder: Path, argv: list[str], environment: dict[str, str]) -> Rates:
    """MicroVMs a second while the program runs, and between the first VMM and the last.

    They are gone when this returns; their files are not.
    """
    try:
        began_s = time.perf_counter()
        subprocess.run(argv, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        whole_s = time.perf_counter() - began_s
        ticks = [_started_ticks(process) for process in processes_of(folder)]
        assert len(ticks) == VMS
        between_s = (max(ticks) - min(ticks)) / os.sysconf("SC_CLK_TCK")
        return VMS / whole_s, (VMS - 1) / between_s
    finally:
        kill_all(folder)


def _started_ticks(process: Path) -> int:
    """When the process was started, field 22 of its stat."""
    return int((process / "stat").read_text().rpartition(")")[2].split()[19])


def kill_all(folder: Path) -> None:
    """End every process that has the folder in its arguments."""
    while processes := processes_of(folder):
        for process in processes:
            with suppress(ProcessLookupError):
                os.kill(int(process.name), signal.SIGKILL)
        time.sleep(0.01)


def processes_of(folder: Path) -> list[Path]:
    """The /proc folders of all processes that have `folder` in their arguments."""
    found = []
    for process in Path("/proc").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):
            if process.name.isdigit() and f"{folder}/".encode() in (process / "cmdline").read_bytes():
                found.append(process)
    return found
