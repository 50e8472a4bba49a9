"""What a plan of an unchanged project costs in a process that goes on, as a control worker does.

    python -m benchmarks.tick WORLD

It prints the CPU and wall seconds of a plan with the specs and placements of the one before, and the process's MiB.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from statistics import median

from benchmarks.replay import replayed_engine
from mikrom_reconcile.control.sources.files import read_files
from mikrom_reconcile.core.model.plan import BEAT, RunRequest
from mikrom_reconcile.settings import load

TICKS = 5


def main(world: str) -> None:
    """Plan several times, as ticks of Beat do."""
    engine = replayed_engine(Path(world) / "reports", load(os.environ))
    figures = []
    for number in range(TICKS + 1):
        began_s, cpu_s = time.perf_counter(), time.process_time()
        tree = read_files([Path(world) / "specs"])
        engine.plan(RunRequest(run_id=f"r{number}", origin=BEAT, tree=tree))
        figures.append((time.process_time() - cpu_s, time.perf_counter() - began_s))
    cpu_s, wall_s = (median(seconds) for seconds in zip(*figures[1:], strict=True))
    print(f"{cpu_s:.4f} {wall_s:.4f} {getrusage(RUSAGE_SELF).ru_maxrss / 1024:.0f}")


if __name__ == "__main__":
    main(sys.argv[1])
