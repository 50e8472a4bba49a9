"""What a plan costs, beside Terraform's plan of the same VMs where its binary is found.

    python -m benchmarks planning           # 10,000 and 100,000 VMs; takes minutes, most of them Terraform's
    python -m benchmarks.planning 1000      # as many VMs, for a first look

Ours is the whole process of `mikrom plan`, from the start of Python to the text on stdout, with the reports of one host
for every 100 VMs as they arrive over Redis (`replay.py`); neither the hosts' own work nor the broker is in it.
Terraform's is the whole process tree of `terraform plan`, with resources that exist in its state file only. One VM in
a hundred, drawn by lot, runs an older spec on both sides.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from math import log
from pathlib import Path
from statistics import median

from benchmarks.rows import HEAD, Goal, Row, Usage, keep_bytecode, line, usage_of
from benchmarks.scratch import scratch

VMS = 10_000
DRIFTED = 0.01
FOR_EACH = 1000
ROUNDS = 3


def measure(vms: int = VMS) -> Iterator[Row]:
    """Alone, once more in the same process, one fleet; then ten times as many, and how the cost grows."""
    with scratch() as folder:
        other = _terraform(folder, "blocks", vms)
        cold = _ours(folder, "documents", vms)
        yield from _beside(1, f"plan of {vms:,} documents, 1 % changed, cold", cold, other, (50, 60, 10))
        tick = _tick(folder, "documents", vms)
        yield from _beside(1, "the next plan in the same process, files unchanged", tick, other, (150, 0, 0))
        fleet = _ours(folder, "replicas", vms)
        yield from _beside(1, f"plan of one fleet of {vms:,}, 1 % changed", fleet, other, (150, 0, 25))
        some = min(FOR_EACH, vms)
        few = _ours(folder, "documents", some)
        users = _terraform(folder, "for_each", some)
        yield from _beside(1, f"plan of {some:,} documents | for_each", few, users, (100, 0, 0))
        calm = _ours(folder, "documents", 100, drifted=0)
        other = _terraform(folder, "blocks", 100, drifted=0)
        yield from _beside(4, "plan of 100 VMs, nothing to change", calm, other, (3, 3, 0))
        yield from _many(folder, vms * 10, few, some)


def _many(folder: Path, vms: int, few: Usage, some: int) -> Iterator[Row]:
    start = _ours(folder, "documents", 100)
    cold = _ours(folder, "documents", vms)
    grown = log((cold.cpu_s - start.cpu_s) / (few.cpu_s - start.cpu_s)) / log((vms - 100) / (some - 100))
    yield Row(
        what=f"exponent of growth of CPU, {some:,} to {vms:,} documents",
        ours=f"{grown:.2f}",
        goal=Goal(number=2, bound=1.05, unit="", at_most=True),
        figure=grown,
    )
    yield from _alone(f"plan of {vms:,} documents, 1 % changed, cold", cold, 6)
    calm = _tick(folder, "documents", vms, drifted=0)
    yield from _alone("the next plan in the same process, nothing to change", calm, 0.6)
    fleet = _ours(folder, "replicas", vms)
    yield from _alone(f"plan of one fleet of {vms:,}, 1 % changed", fleet, 0.8, most_mib=100)


def _alone(what: str, ours: Usage, most_s: float, most_mib: float | None = None) -> Iterator[Row]:
    goal = Goal(number=3, bound=most_s, unit="s", at_most=True)
    yield Row(what=f"CPU of {what}", ours=f"{ours.cpu_s:.2f} s", goal=goal, figure=ours.cpu_s)
    memory = None if most_mib is None else Goal(number=3, bound=most_mib, unit="MiB", at_most=True)
    yield Row(what=f"memory of {what}", ours=f"{ours.rss_mib:.0f} MiB", goal=memory, figure=ours.rss_mib)


def _beside(number: int, what: str, ours: Usage, other: Usage | None, bounds: tuple[int, int, int]) -> Iterator[Row]:
    """CPU, and wall and memory where there is a goal for them."""
    for measured, bound, name, unit in zip(
        ("cpu_s", "wall_s", "rss_mib"), bounds, ("CPU", "wall", "memory"), ("s", "s", "MiB"), strict=True
    ):
        if not bound:
            continue
        mine = getattr(ours, measured)
        yours = getattr(other, measured) if other else None
        yield Row(
            what=f"{name} of {what}",
            ours=f"{mine:.2f} {unit}",
            other=f"{yours:.2f} {unit}" if yours else "no terraform",
            ratio=f"{yours / mine:.0f}x" if yours else "",
            goal=Goal(number=number, bound=bound),
            figure=yours / mine if yours else None,
        )


def _ours(folder: Path, form: str, vms: int, *, drifted: float = DRIFTED) -> Usage:
    """The median of plans that are processes of their own."""
    world = _world(folder, form, vms, drifted)
    return _median(
        [usage_of(argv_of(world, "plan", str(world / "specs")), environment_of(world)) for _ in range(ROUNDS)]
    )


def _tick(folder: Path, form: str, vms: int, *, drifted: float = DRIFTED) -> Usage:
    """A plan of a process that has planned the same before."""
    world = _world(folder, form, vms, drifted)
    argv = [sys.executable, "-m", "benchmarks.tick", str(world)]
    told = subprocess.run(argv, env=environment_of(world), check=True, capture_output=True, text=True).stdout
    cpu_s, wall_s, rss_mib = map(float, told.split())
    return Usage(cpu_s=cpu_s, wall_s=wall_s, rss_mib=rss_mib)


def _world(folder: Path, form: str, vms: int, drifted: float) -> Path:
    world = folder / f"{form}-{vms}-{drifted:g}"
    if not world.exists():
        prepare = [sys.executable, "-m", "benchmarks.many_vms", form, str(vms), str(world), str(drifted)]
        usage_of(prepare, environment_of(world))
    return world


def _median(usages: list[Usage]) -> Usage:
    return Usage(
        cpu_s=median(usage.cpu_s for usage in usages),
        wall_s=median(usage.wall_s for usage in usages),
        rss_mib=median(usage.rss_mib for usage in usages),
    )


def argv_of(world: Path, *words: str) -> list[str]:
    """`mikrom` with the hosts of a world."""
    return [sys.executable, "-m", "benchmarks.replay", str(world), *words]


def environment_of(world: Path) -> dict[str, str]:
    """Its folders, and no other settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MIKROM_", "CELERY_"))}
    return kept | {"MIKROM_STATE_DIR": str(world / "state"), "MIKROM_RUN_DIR": str(world / "run")}


def _terraform(folder: Path, form: str, vms: int, *, drifted: float = DRIFTED) -> Usage | None:
    if shutil.which("terraform") is None:
        return None
    project = folder / f"terraform-{form}-{vms}-{drifted:g}"
    usage_of([sys.executable, "-m", "benchmarks.terraform", form, str(vms), str(project), str(drifted)])
    return usage_of(["terraform", f"-chdir={project}", "plan", "-input=false", "-no-color"], dict(os.environ))


if __name__ == "__main__":
    keep_bytecode()
    print(line(HEAD))
    for row in measure(int(sys.argv[1])):
        print(line(row.cells()), flush=True)
