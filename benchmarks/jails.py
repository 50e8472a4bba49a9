"""What a jail and a link cost a start and a delete: one microVM after the other by the driver, beside bare calls.

All in a network namespace of its own, so that no bridge or tap of the machine is touched. The kinds take turns.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from benchmarks.bare_loop import start as start_bare
from benchmarks.rows import Row
from benchmarks.scratch import scratch
from benchmarks.starts import processes_of
from mikrom_reconcile.core.model.desired import Machine, NetworkInterface, Policy, VMSpec
from mikrom_reconcile.host.drivers.firecracker import FirecrackerDriver
from mikrom_reconcile.host.drivers.select import (
    find,
    find_jailer,
    jail_problem,
    kvm_problem,
)
from mikrom_reconcile.host.ports import VMRecord
from mikrom_reconcile.host.resources.images import ImageCache
from mikrom_reconcile.settings import load

VMS = 30
_CLONE_NEWNET = 0x40000000
_WHAT = "a microVM by the driver | by bare calls"


def measure() -> Iterator[Row]:
    """Milliseconds from nothing to a running guest, and back to nothing."""
    settings = load()
    binary = find("firecracker", settings.firecracker, settings.state_dir)
    jailer = find_jailer(settings.jailer, binary, settings.state_dir) if binary else None
    problem = kvm_problem() or jail_problem(settings.state_dir) or (None if jailer else "no jailer was found")
    if problem or binary is None:
        yield Row(what=f"{_WHAT}: {problem}", ours="not measured")
        return
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET):
        yield Row(what=f"{_WHAT}: no network namespace of its own", ours="not measured")
        return
    try:
        with scratch() as folder:
            yield from _rows(folder, binary, jailer)
    finally:
        libc.setns(before, _CLONE_NEWNET)
        os.close(before)


def _rows(folder: Path, binary: Path, jailer: Path | None) -> Iterator[Row]:
    places = {"state_dir": folder / "state", "run_dir": folder / "run"}
    plain, jailed = FirecrackerDriver(binary, **places), FirecrackerDriver(binary, jailer=jailer, **places)
    kinds = {"": (plain, False), ", jailed": (jailed, False), ", linked": (plain, True), ", both": (jailed, True)}
    kernel = ImageCache(folder / "state").hello()
    took_ms: dict[str, list[tuple[float, float]]] = {kind: [] for kind in ("bare", *kinds)}
    for number in range(VMS):
        at = number % len(took_ms)  # what comes after a delete of links is slower: each kind does, in turn
        for kind in (*took_ms, *took_ms)[at : at + len(took_ms)]:
            if kind == "bare":
                took_ms[kind].append((_bare_ms(binary, kernel, folder, number), 0.0))
            else:
                driver, linked = kinds[kind]
                took_ms[kind].append(_driven_ms(driver, _record(number, linked=linked)))
    other, _ = _medians(took_ms.pop("bare"))
    for kind, pairs in took_ms.items():
        ours, gone = _medians(pairs)
        what = f"a microVM by the driver{kind} (its delete) | by bare calls"
        yield Row(what=what, ours=f"{ours:.1f} ms ({gone:.1f})", other=f"{other:.1f} ms", ratio=f"{ours / other:.2f}")


def _medians(pairs: list[tuple[float, float]]) -> tuple[float, float]:
    """Of starts and deletes; the first of each kind warms the caches."""
    return median(start for start, _ in pairs[1:]), median(delete for _, delete in pairs[1:])


def _driven_ms(driver: FirecrackerDriver, record: VMRecord) -> tuple[float, float]:
    began_s = time.perf_counter()
    driver.start(record, deadline_s=10)
    running_s = time.perf_counter()
    driver.delete(record)
    return (running_s - began_s) * 1000, (time.perf_counter() - running_s) * 1000


def _bare_ms(binary: Path, kernel: Path, folder: Path, number: int) -> float:
    began_s = time.perf_counter()
    start_bare(str(binary), str(kernel), folder, number)
    took_ms = (time.perf_counter() - began_s) * 1000
    for process in processes_of(folder):
        os.kill(int(process.name), signal.SIGKILL)
        os.waitpid(int(process.name), 0)
    return took_ms


def _record(number: int, *, linked: bool) -> VMRecord:
    nic = NetworkInterface(network="bench", cidr="10.0.0.0/24", gateway="10.0.0.1")
    interfaces = {"eth0": nic} if linked else {}
    return VMRecord(
        vm=f"bench-{number}",
        uid="bench",
        project="bench",
        fleet="bench",
        state="running",
        spec=VMSpec(image="hello", machine=Machine(mem_size_mib=4), network_interfaces=interfaces),
        policy=Policy(),
        spec_digest="",
        generation=1,
        token=1,
        action_id="",
        created_at=datetime.now(UTC),
        addresses={"eth0": f"10.0.0.{10 + number}"} if linked else {},
    )
