"""C100K: 1,000 hosts with 100 simulated VMs each, through everything that a fleet goes through but the VMMs.

    python -m benchmarks c100k                            # 10, 100 and 1,000 hosts
    python -m benchmarks.c100k [--minutes M] [HOSTS…]     # so many hosts, for a first look

The specs (`rich.py`) are in a git repository; the control worker is the one that is shipped and gets the task that Beat
sends; Redis is real; each host has its queue, executor and records on a tmpfs, a tenth of them in each process
(`crowd.py`), and two orders under way at a time. How far it is goes to stderr. It stops by itself when its minutes are
over: the last row says where.

CPU is that of the control worker, of Redis, and of all hosts together: what a fleet has on a thousand machines takes
its turns on the cores of one here, so that seconds are mostly those of the hosts (`docs/SCALING.md` takes them apart).
The exponent is that of the control worker's CPU beyond what the smallest size takes.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from math import log
from pathlib import Path
from statistics import linear_regression

from benchmarks.rows import HEAD, Goal, Row, keep_bytecode, line
from benchmarks.site import NOTHING, Cpu, Site, Spent, TimeIsUpError
from benchmarks.traffic import counted, difference

HOSTS = (10, 100, 1000)
KILLS = 10
TICKS = 5
MINUTES = 60.0
IDLE_S, APART_S = 30.0, 10.0  # rich.py has checks every 5 s
TMPFS = Path("/dev/shm")
NEEDED = ("redis-server", "git", "unshare", "ip")
PARTS = "control + Redis + hosts"

Costs = defaultdict[str, dict[int, float]]
"""By what was done: the CPU seconds of the control worker for so many VMs."""


def measure(sizes: Sequence[int] = HOSTS, minutes: float = MINUTES) -> Iterator[Row]:
    """The life of a fleet of each size, and how its cost grows."""
    if missing := [name for name in NEEDED if shutil.which(name) is None]:
        yield Row(what=f"C100K: no {missing[0]} was found", ours="not measured")
        return
    until_s, costs = time.monotonic() + 60 * minutes, Costs(dict)
    try:
        for hosts in sizes:
            with tempfile.TemporaryDirectory(prefix="mk-", dir=TMPFS) as name:
                site = Site(Path(name), hosts, until_s)
                try:
                    yield from _life(site, costs)
                finally:
                    site.close()
    except TimeIsUpError as stage:
        yield Row(what=f"{minutes:g} minutes were over in: {hosts:,} hosts, {stage}", ours="not finished")
    for what, by_size in costs.items():
        yield from _grown(what, by_size)


def _life(site: Site, costs: Costs) -> Iterator[Row]:
    fleet = f"{site.vms:,} VMs on {site.hosts:,} hosts"
    site.stage = "from nothing to converged"
    yield from _told(f"{fleet}, {site.stage}", site, site.converge(), costs)
    yield from _ticks(site, costs)
    before = site.generations()
    site.stage = "one field changed, batch by batch"
    site.commit("loud")
    alone = site.converge()
    after = site.generations()
    yield from _told(f"{fleet}, {site.stage}", site, alone, costs)
    yield from _dark(site)
    yield from _killed(site, alone, {vm: 2 * generation - before[vm] for vm, generation in after.items()})
    control_mib, redis_mib, hosts_mib = site.peak_mib()
    peak = f"{control_mib:.0f}, {redis_mib:.0f}, {hosts_mib:.0f} MiB"
    yield Row(what=f"peak memory: control, Redis, {max(site.shares)} hosts", ours=peak)


def _told(what: str, site: Site, spent: Spent, costs: Costs) -> Iterator[Row]:
    costs[site.stage][site.vms] = spent.cpu.control_s
    yield Row(what=what, ours=f"{spent.wall_s:.0f} s, {site.vms / spent.wall_s:.0f}/s")
    yield Row(what=f"CPU of that: {PARTS}", ours=spent.cpu.text())


def _ticks(site: Site, costs: Costs) -> Iterator[Row]:
    """The mean of some, so far apart that every check is due; beyond what the same time costs without them."""
    site.stage, wall_s = "a tick that changes nothing", 0.0
    before, cpu = counted(site.fleet.redis), site.cpu()
    time.sleep(IDLE_S)
    idle, idle_cpu = difference(before, counted(site.fleet.redis)), site.cpu().since(cpu)
    before, cpu = counted(site.fleet.redis), site.cpu()
    for _ in range(TICKS):
        time.sleep(APART_S)
        began_s = time.monotonic()
        assert site.tick() == NOTHING
        wall_s += time.monotonic() - began_s
    busy, used = difference(before, counted(site.fleet.redis)), site.cpu().since(cpu)
    share = busy.at_s / idle.at_s
    moved = sum(busy[2:]) - share * sum(idle[2:])
    own = Cpu(*((all_s - share * idle_s) / TICKS for all_s, idle_s in zip(used, idle_cpu, strict=True)))
    costs[site.stage][site.vms] = own.control_s
    yield Row(what=f"{site.stage}", ours=f"{wall_s / TICKS:.1f} s")
    yield Row(what=f"CPU of that: {PARTS}", ours=own.text())
    yield Row(what="bytes through Redis for it, by host", ours=f"{moved / TICKS / site.hosts / 1000:.1f} kB")
    yield Row(
        what=f"Redis while {site.hosts:,} hosts say that they live",
        ours=f"{idle_cpu.redis_s / idle.at_s:.1%} of a core",
    )


def _dark(site: Site) -> Iterator[Row]:
    before = site.generations()
    site.stage = "some hosts dark"
    dark = site.darken()
    began_s = time.monotonic()
    site.tick()
    tick_s = time.monotonic() - began_s
    changed = len(before.items() ^ site.generations().items())
    yield Row(what=f"{dark} hosts dark: a tick | VMs acted on in it", ours=f"{tick_s:.1f} s", other=str(changed))
    site.stage = "dark hosts back"
    site.lighten()
    spent = site.converge()
    changed = len(before.items() ^ site.generations().items())
    yield Row(
        what="they are back: until all is as specified | acted on", ours=f"{spent.wall_s:.1f} s", other=str(changed)
    )


def _killed(site: Site, alone: Spent, expected: dict[str, int]) -> Iterator[Row]:
    """The change is taken back: it acts on each VM as often as it did before, if it does as it should."""
    site.stage, kills = "the same change, controller killed", 0
    site.commit("quiet")

    def kills_now(done: int) -> bool:
        nonlocal kills
        if kills == KILLS or done < site.vms // (3 * KILLS):
            return False
        kills += 1
        site.kill_control()
        return True

    spent = site.converge(kills_now)
    what = f"{site.stage} {kills} times | not killed"
    ratio = f"{spent.wall_s / alone.wall_s:.2f}"
    yield Row(what=what, ours=f"{spent.wall_s:.0f} s", other=f"{alone.wall_s:.0f} s", ratio=ratio)
    odd = len(site.generations().items() ^ expected.items())
    yield Row(what="VMs that were not acted on as often as without kills", ours=str(odd))


def _grown(what: str, by_size: dict[int, float]) -> Iterator[Row]:
    (first, start_s), *others = sorted(by_size.items())
    if len(others) < 2:
        return
    beyond = [(log(size - first), log(cpu_s - start_s)) for size, cpu_s in others]
    grown = linear_regression(*zip(*beyond, strict=True)).slope
    goal = Goal(number=2, bound=1.05, unit="", at_most=True)
    yield Row(what=f"exponent of {what}", ours=f"{grown:.2f}", goal=goal, figure=grown)


def main(words: list[str]) -> None:
    """Of the sizes that are given, within so many minutes."""
    minutes = float(words.pop(words.index("--minutes") + 1)) if "--minutes" in words else MINUTES
    sizes = [int(word) for word in words if word != "--minutes"] or HOSTS
    keep_bytecode()
    print(line(HEAD))
    for row in measure(sizes, minutes):
        print(line(row.cells()), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
