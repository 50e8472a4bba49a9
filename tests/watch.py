"""An eye on the VMMs of a test that never closes: it asks /proc and nothing of mikrom."""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Self

PAUSE_S = 0.004
"""Between looks of about a millisecond: the microVMs need the processors more."""


class VMM(NamedTuple):
    """One Firecracker process. Its start time tells it from a later process with the same pid."""

    vm: str
    pid: int
    starttime: int


class Watch:
    """Looks at every VMM below `run_dir`, some hundred times a second, from when it is entered until it is left.

    `started` counts the VMMs that were ever seen in `looks`, `alive` are those of the last look, and `doubles` tells of
    VMs that had two at once. `fewest` is how many VMs lived at least, since a test set it.
    """

    def __init__(self, run_dir: Path) -> None:
        self.started = 0
        self.doubles: list[str] = []
        self.alive: frozenset[VMM] = frozenset()
        self.fewest = 0
        self.looks = 0
        self._marker = f"\0--api-sock\0{run_dir}/".encode()
        # what a test starts comes later, and to read of every process what it is costs the most by far
        self._older = {pid for pid in pids() if self._vmm(pid) is None}
        self._seen: set[VMM] = set()
        self._changed = threading.Condition()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def wait_until(self, holds: Callable[[Watch], object], what: str, *, within_s: float = 20.0) -> None:
        """Return at the first look after which `holds` is true."""
        with self._changed:
            assert self._changed.wait_for(lambda: holds(self), within_s), f"waited {within_s} s for {what}"

    def now(self) -> frozenset[VMM]:
        """The VMMs that live, from a look that began after this was called."""
        with self._changed:
            looks = self.looks + 2
            assert self._changed.wait_for(lambda: self.looks >= looks, 10.0), "the watch has stopped"
            return self.alive

    def _watch(self) -> None:
        while not self._ended.is_set():
            self._look()
            time.sleep(PAUSE_S)

    def _look(self) -> None:
        by_vm: dict[str, list[VMM]] = defaultdict(list)
        now = pids()
        self._older &= now
        for pid in now - self._older:
            if (vmm := self._vmm(pid)) is None:
                continue
            # A look takes its time: two lived at once only if the first is still there after the second was seen.
            self.doubles += [f"{other} beside {vmm}" for other in by_vm[vmm.vm] if self._vmm(other.pid) == other]
            by_vm[vmm.vm].append(vmm)
        with self._changed:
            self.alive = frozenset(vmm for found in by_vm.values() for vmm in found)
            self.fewest = min(self.fewest, len(by_vm))
            self._seen |= self.alive
            self.started = len(self._seen)
            self.looks += 1
            self._changed.notify_all()

    def _vmm(self, pid: int) -> VMM | None:
        # A killed process has no arguments from the moment when its memory goes, long before it is reaped.
        arguments = read(f"/proc/{pid}/cmdline")
        if self._marker not in arguments:
            return None
        stat = read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
        if not stat or stat[0] in {b"Z", b"X"}:
            return None
        vm = arguments.partition(b"\0--id\0")[2].partition(b"\0")[0]
        return VMM(vm.decode(), pid, int(stat[19]))


def pids() -> set[int]:
    """Of all processes."""
    return {int(name) for name in os.listdir("/proc") if name.isdigit()}  # noqa: PTH208 - Paths cost more


def read(path: str) -> bytes:
    """What is in the file, b"" when its process is gone."""
    try:
        fd = os.open(path, os.O_RDONLY)
        try:
            return os.read(fd, 4096)
        finally:
            os.close(fd)
    except (FileNotFoundError, ProcessLookupError):
        return b""
