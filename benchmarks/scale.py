"""How the cost of what people really write grows: networks, images, drives, checks, constraints, spread, overrides and
a rollout over 1,000 hosts (`rich.py`), failures and refusals included.

    python -m benchmarks scale              # 2,000 to 100,000 VMs; takes minutes
    python -m benchmarks.scale 1000 5000 20000      # of these sizes, for a first look

A plan is the whole process of `mikrom plan` over reports in files, as in `planning.py`. What the first size costs is
mostly the start of Python and the reports of 1,000 hosts: the others are measured from there on. A refused create is
one that the host's driver cannot carry out: planned, sent, refused, noted, observed and told by the embedded engine,
with records on disk.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from math import log
from pathlib import Path

from benchmarks.planning import argv_of, environment_of
from benchmarks.rows import HEAD, Goal, Row, keep_bytecode, line, usage_of
from benchmarks.scratch import scratch

SIZES = (2_000, 20_000, 100_000)
REFUSALS = (200, 2_000, 10_000)
MOST_MS, MOST_EXPONENT = 0.25, 1.05
WORLDS = {
    "new": "a plan of new VMs",
    "0.01": "a plan with 1 % changed",
    "1": "a plan of a rollout to all",
    "full": "a plan that refuses all",
}
REFUSED = """\
apiVersion: mikrom/v1
kind: Fleet
metadata: {{name: web}}
spec:
  replicas: {count}
  template: {{image: hello, machine: {{mem_size_mib: 16}}}}
"""


def measure(sizes: Sequence[int] = SIZES, refusals: Sequence[int] = REFUSALS) -> Iterator[Row]:
    """CPU for each VM at each size, and how it grows from the first to the last."""
    with scratch() as folder:
        for share, what in WORLDS.items():
            yield from _grown(f"{what}, a VM", {size: _plan_s(folder, size, share) for size in sizes}, MOST_MS)
        yield from _grown("a create that is refused", {count: _refused_s(folder, count) for count in refusals})


def _grown(what: str, costs: dict[int, float], most_ms: float | None = None) -> Iterator[Row]:
    """Of each size the cost beyond that of the first, and how it grows."""
    (first, start_s), *others = sorted(costs.items())
    beyond = {size - first: cpu_s - start_s for size, cpu_s in others}
    for size, cpu_s in beyond.items():
        each_ms = cpu_s / size * 1000
        goal = Goal(number=2, bound=most_ms, unit="ms", at_most=True) if most_ms else None
        yield Row(what=f"CPU of {what}, of {size + first:,}", ours=f"{each_ms:.3f} ms", goal=goal, figure=each_ms)
    few, many = min(beyond), max(beyond)
    grown = log(beyond[many] / beyond[few]) / log(many / few)
    goal = Goal(number=2, bound=MOST_EXPONENT, unit="", at_most=True)
    yield Row(what=f"exponent of {what}", ours=f"{grown:.2f}", goal=goal, figure=grown)


def _plan_s(folder: Path, vms: int, share: str) -> float:
    world = folder / f"rich-{vms}-{share}"
    environment = environment_of(world)
    usage_of([sys.executable, "-m", "benchmarks.many_vms", "rich", str(vms), str(world), share], environment)
    return usage_of(argv_of(world, "plan", str(world / "specs")), environment, exit_codes=(0, 8)).cpu_s


def _refused_s(folder: Path, count: int) -> float:
    world = folder / f"refused-{count}"
    (world / "specs").mkdir(parents=True)
    (world / "state").mkdir(mode=0o700)
    (world / "state" / "sim").touch()  # where the simulated driver wants a folder: no VM can be made
    (world / "specs" / "web.yml").write_text(REFUSED.format(count=count))
    apply = [sys.executable, "-m", "mikrom_reconcile", "apply", str(world / "specs"), "--yes", "--timeout", "1800"]
    environment = environment_of(world) | {"MIKROM_DRIVER": "simulated"}
    return usage_of(apply, environment, exit_codes=(2,)).cpu_s


if __name__ == "__main__":
    keep_bytecode()
    print(line(HEAD))
    numbers = [int(word) for word in sys.argv[1:]]
    for row in measure(numbers, [number // 10 for number in numbers]):
        print(line(row.cells()), flush=True)
