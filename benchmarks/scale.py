"""How the cost of what people really write grows: networks, images, drives, checks, constraints, spread, overrides and
a rollout over 1,000 hosts (`rich.py`), failures and refusals included.

    python -m benchmarks scale              # 2,000 to 100,000 VMs; takes minutes
    python -m benchmarks.scale 1000 5000 20000      # of these sizes, for a first look

A plan is the whole process of `mikrom plan` over reports in files, as in `planning.py`. What the first size costs is
mostly the start of Python and the reports of 1,000 hosts: the others are measured from there on. A refused create is
one that the host's driver cannot carry out: planned, sent, refused, noted, observed and told by the embedded engine.
Its records lie on a tmpfs, and once more on disk: ext4 without a journal searches longer for each inode the more were
freed in the last minutes, as those of lock files are.

Every size has its turn in each round, and the least of the rounds counts: a busy machine makes the same work cost more,
never less. The exponent is the slope of a line through all sizes, both axes logarithmic.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from math import log
from pathlib import Path
from statistics import linear_regression

from benchmarks.planning import argv_of, environment_of
from benchmarks.rows import HEAD, Goal, Row, keep_bytecode, line, usage_of
from benchmarks.scratch import scratch

SIZES = (2_000, 20_000, 50_000, 100_000)
REFUSALS = (200, 4_000, 10_000, 20_000)
ROUNDS = 3
TMPFS = Path("/dev/shm")
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
            worlds = {size: _world(folder, size, share) for size in sizes}
            yield from _grown(f"{what}, a VM", _least(sizes, lambda size: _plan_s(worlds[size])), MOST_MS)  # noqa: B023
        yield from _grown("a refused create, on disk", _least(refusals, lambda count: _refused_s(folder, count)))
    with tempfile.TemporaryDirectory(prefix="mk-", dir=TMPFS) as name:
        yield from _grown("a refused create", _least(refusals, lambda count: _refused_s(Path(name), count)))


def _least(sizes: Sequence[int], cpu_s: Callable[[int], float]) -> dict[int, float]:
    rounds = [{size: cpu_s(size) for size in sizes} for _ in range(ROUNDS)]
    return {size: min(costs[size] for costs in rounds) for size in sizes}


def _grown(what: str, costs: dict[int, float], most_ms: float | None = None) -> Iterator[Row]:
    """Of each size the cost beyond that of the first, and how it grows."""
    (first, start_s), *others = sorted(costs.items())
    beyond = {size - first: cpu_s - start_s for size, cpu_s in others}
    for size, cpu_s in beyond.items():
        each_ms = cpu_s / size * 1000
        goal = Goal(number=2, bound=most_ms, unit="ms", at_most=True) if most_ms else None
        yield Row(what=f"CPU of {what}, of {size + first:,}", ours=f"{each_ms:.3f} ms", goal=goal, figure=each_ms)
    grown = linear_regression([log(size) for size in beyond], [log(cpu_s) for cpu_s in beyond.values()]).slope
    goal = Goal(number=2, bound=MOST_EXPONENT, unit="", at_most=True)
    yield Row(what=f"exponent of {what}", ours=f"{grown:.2f}", goal=goal, figure=grown)


def _world(folder: Path, vms: int, share: str) -> Path:
    world = folder / f"rich-{vms}-{share}"
    prepare = [sys.executable, "-m", "benchmarks.many_vms", "rich", str(vms), str(world), share]
    usage_of(prepare, environment_of(world))
    return world


def _plan_s(world: Path) -> float:
    return usage_of(argv_of(world, "plan", str(world / "specs")), environment_of(world), exit_codes=(0, 8)).cpu_s


def _refused_s(folder: Path, count: int) -> float:
    world = Path(tempfile.mkdtemp(dir=folder))
    (world / "specs").mkdir()
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
