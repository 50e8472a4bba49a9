"""A driver that is killed between any two of its lines: what is left has a name, and the next call mends it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import mikrom_reconcile.host
from mikrom_reconcile.host.ports import Driver, VMRecord
from tests.contract.drivers import DEADLINE_S, Bench, record_of, wait_until

HOST_FOLDER = str(Path(mikrom_reconcile.host.__file__).parent)
NEVER = sys.maxsize
POINTS = 20

Deed = Callable[[Driver, VMRecord], None]


def start(driver: Driver, record: VMRecord) -> None:
    driver.start(record, deadline_s=DEADLINE_S)


def stop(driver: Driver, record: VMRecord) -> None:
    driver.stop(record, grace_s=0.02)


def pause(driver: Driver, record: VMRecord) -> None:
    driver.set_paused(record, paused=True, deadline_s=DEADLINE_S)


def resume(driver: Driver, record: VMRecord) -> None:
    pause(driver, record)
    driver.set_paused(record, paused=False, deadline_s=DEADLINE_S)


def delete(driver: Driver, record: VMRecord) -> None:
    driver.delete(record)


def lines_until_killed(deed: Deed, driver: Driver, record: VMRecord, *, kill_before: int) -> int | None:
    """Do `deed` in a process that is killed before its line `kill_before`; how many it has, if it gets to its end."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        lines = 0

        def trace(frame: FrameType, event: str, _: object) -> Any:
            nonlocal lines
            if not frame.f_code.co_filename.startswith(HOST_FOLDER):
                return None
            if event == "line":
                lines += 1
                if lines == kill_before:
                    os.kill(os.getpid(), signal.SIGKILL)
            return trace

        try:
            sys.settrace(trace)
            deed(driver, record)
            sys.settrace(None)
            os.write(writer, str(lines).encode())
        finally:
            os._exit(1)
    os.close(writer)
    os.waitpid(child, 0)
    answer = os.read(reader, 20)
    os.close(reader)
    return int(answer) if answer else None


def killed_at_each_of(
    bench: Bench, deed: Deed, *, runs_before: bool, points: int, then: Callable[[VMRecord], None]
) -> None:
    """Kill `deed` at `points` places from its first line to its last, each time on a VM of its own."""
    number = 0

    def victim() -> VMRecord:
        nonlocal number
        number += 1
        record = record_of(f"vm-{number}", "mikrom.mode=ignore")  # or it may leave while it is judged
        if runs_before:
            start(bench.driver, record)
        return record

    record = victim()
    total = lines_until_killed(deed, bench.another(), record, kill_before=NEVER)
    assert total is not None
    bench.driver.delete(record)
    points = min(points // bench.slowness, total)
    for point in range(points):
        record = victim()
        # waiting makes a run longer or shorter by some lines, so that the last point may lie behind its end
        lines_until_killed(deed, bench.another(), record, kill_before=1 + point * total // points)
        assert len(bench.pids(record.vm)) <= 1
        then(record)
        bench.driver.delete(record)
        assert bench.pids(record.vm) == []
        assert bench.leftovers() == []
    assert bench.driver.strays(()) == ()


def points(total: int) -> list[object]:
    return [POINTS, pytest.param(total, marks=[pytest.mark.soak, pytest.mark.timeout(600)])]


@pytest.mark.parametrize("points", points(1000))
@pytest.mark.parametrize("deed", [start, stop, pause, resume, delete])
def test_killed_anywhere_what_is_left_is_known_and_can_be_started(bench: Bench, deed: Deed, points: int) -> None:
    def is_found(record: VMRecord) -> bool:
        pid = bench.driver.observe(record).pid
        return bench.pids(record.vm) == ([] if pid is None else [pid])

    def mend(record: VMRecord) -> None:
        facts = bench.driver.observe(record)
        assert facts.status in {"none", "starting", "running", "paused"}
        if deed is start:
            wait_until(lambda: is_found(record), "the driver and /proc to agree: a jailer may hand over at this moment")
        bench.driver.start(record, deadline_s=DEADLINE_S)
        bench.driver.set_paused(record, paused=False, deadline_s=DEADLINE_S)
        assert bench.driver.observe(record).status == "running"
        assert len(bench.pids(record.vm)) == 1

    killed_at_each_of(bench, deed, runs_before=deed is not start, points=points, then=mend)


@pytest.mark.parametrize("points", points(1000))
def test_killed_anywhere_in_a_start_what_is_left_can_be_stopped(bench: Bench, points: int) -> None:
    def mend(record: VMRecord) -> None:
        stop(bench.driver, record)
        assert bench.driver.observe(record).status == "none"
        assert bench.pids(record.vm) == []

    killed_at_each_of(bench, start, runs_before=False, points=points, then=mend)
