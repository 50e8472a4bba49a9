"""What `mikrom chaos` believes: /proc, the kernel's links, the VMMs' own words and the names of files. Nothing of what
it judges is imported here.
"""

import os
import re
import socket
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

_OUTLIVE_THEIR_VM = {"locks", "tombstones", "tokens", "released"}  # folders of the state


class Judge:
    """Sees the VMMs of its PID namespace; `doubles` tells of VMs that were seen to have two at once."""

    def __init__(self, state_dir: Path, run_dir: Path) -> None:
        self.doubles: list[str] = []
        self._state_dir, self._run_dir = state_dir, run_dir

    def problems(self, wanted: Collection[str], word: str) -> list[str]:
        """What is otherwise than it should be, with these VMs, all of which have `word` on their command lines."""
        return [*self.doubles, *self._problems(wanted, word)]

    def _problems(self, wanted: Collection[str], word: str) -> Iterator[str]:
        vmms, links = dict(_vmms()), [name for _, name in socket.if_nameindex()]
        if vmms.keys() != {*wanted}:
            yield f"VMMs live of {', '.join(sorted(vmms)) or 'no VM'}; wanted are {', '.join(sorted(wanted))}"
        for vm in vmms.keys() & {*wanted}:
            if word not in (boot_args := _boot_args(self._run_dir / vm / "api.sock")).split():
                yield f"{vm} runs with {boot_args!r}; wanted is {word}"
        if len(links) != 2 + len(wanted):
            yield f"links are {', '.join(links)}; wanted are lo, one bridge, and a tap for each of {len(wanted)} VMs"
        for root in (self._state_dir, self._run_dir):
            for folder, folders, files in os.walk(root):  # what goes meanwhile is no error to it
                for name in (*folders, *files) if _OUTLIVE_THEIR_VM.isdisjoint(Path(folder).parts) else ():
                    if name.startswith("web-") and re.split(r"[._]", name)[0] not in wanted:
                        yield f"{folder}/{name} is left of a VM that is not wanted"

    def pids(self) -> list[int]:
        """Of all VMMs."""
        return sorted(pid for _, pid in _vmms())

    def look(self) -> None:
        """See whether a VM has two."""
        seen: dict[str, int] = {}
        for vm, pid in _vmms():
            other = seen.setdefault(vm, pid)
            if other != pid and {(vm, other), (vm, pid)} <= {*_vmms()}:
                self.doubles.append(f"two VMMs of {vm} at once: pid {other} and pid {pid}")


def _vmms() -> Iterator[tuple[str, int]]:
    """The VM and the pid of each VMM. A killed one has no arguments any more, long before it is reaped."""
    for pid in filter(str.isdigit, os.listdir("/proc")):  # noqa: PTH208 - Paths cost more
        with suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if b"--api-sock" in words and b"--id" in words:
                yield words[words.index(b"--id") + 1].decode(), int(pid)


def _boot_args(path: Path) -> str:
    with suppress(OSError), socket.socket(socket.AF_UNIX) as api:
        api.settimeout(2.0)
        api.connect(str(path))
        said = b""
        for asked in (b"/", b"/vm/config"):
            api.sendall(b"GET %s HTTP/1.1\r\n\r\n" % asked)
            said += api.recv(1 << 16)
        if b'"state":"Running"' not in said:  # one that is configured yet may still be refused something
            return "(its guest does not run)"
        if found := re.search(rb'"boot_args":"([^"]*)"', said):
            return found[1].decode()
    return "(its VMM does not say)"
