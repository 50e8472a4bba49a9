"""Processes that outlive who started them, also under gevent. Pid, start time and boot id name one; pids are reused."""

import functools
import math
import os
import resource
import select
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from mikrom_reconcile.system.files import descriptor

_GONE = (FileNotFoundError, ProcessLookupError)
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_DEFAULT_SIGNALS = (
    *(signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM),  # a shell or nohup may ignore them
    *(signal.SIGPIPE, signal.SIGXFSZ),  # Python ignores them
)

_children: set[int] = set()  # Pids that this process spawned and has not reaped

_reaping = threading.Lock()


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """One process of one boot of this host. `starttime` is in clock ticks since that boot."""

    pid: int
    starttime: int
    boot_id: str


@functools.cache
def boot_id() -> str:
    """What names this boot of the host."""
    return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()


def identify(pid: int) -> Identity | None:
    """The identity of the live process `pid`, None when there is none or only its zombie."""
    found = _state_and_starttime(pid)
    if found is None or found[0] in "ZX":
        return None
    return Identity(pid=pid, starttime=found[1], boot_id=boot_id())


def is_alive(identity: Identity) -> bool:
    """Whether this very process lives. A zombie does not."""
    return _state_of(identity) not in {None, "Z", "X"}


def is_known(identity: Identity) -> bool:
    """Whether this very process is still in the process table: alive, dying thread by thread, or a zombie."""
    return _state_of(identity) is not None


def age_s(identity: Identity) -> float:
    """How long ago the process was started."""
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - identity.starttime / _TICKS_PER_S)


def _state_of(identity: Identity) -> str | None:
    found = _state_and_starttime(identity.pid) if identity.boot_id == boot_id() else None
    return found[0] if found is not None and found[1] == identity.starttime else None


def _state_and_starttime(pid: int) -> tuple[str, int] | None:
    """Fields 3 and 22 of /proc/PID/stat; the name before them may hold spaces and parentheses."""
    try:
        with descriptor(f"/proc/{pid}/stat", os.O_RDONLY) as fd:
            stat = os.read(fd, 4096)
    except _GONE:
        return None
    fields = stat[stat.rindex(b")") + 2 :].split()
    return fields[0].decode("ascii"), int(fields[19])


def pids() -> Iterator[int]:
    """Every process."""
    return (int(name) for name in os.listdir("/proc") if name.isdigit())  # noqa: PTH208 - a Path for each costs more


def stdin_of(pid: int) -> str | None:
    """The path of standard input of `pid`, unlinked or not; None: closed, or it is gone; "": it is not to be seen."""
    try:
        link = os.readlink(f"/proc/{pid}/fd/0")  # noqa: PTH115 - once per VM and observation, a Path costs more
    except _GONE:
        return None
    except PermissionError:
        return ""
    return link.removesuffix(" (deleted)")


def has_stdin(pid: int, path: str) -> bool:
    """Whether `pid` has the very file at `path` as standard input, whatever its path is in another mount namespace."""
    try:
        return os.path.samestat(os.stat(f"/proc/{pid}/fd/0"), os.stat(path))  # noqa: PTH116 - as above
    except OSError:
        return False


def holds_lock(pid: int) -> bool:
    """Whether the file that `pid` has as standard input was locked through this very opening, or a duplicate of it."""
    try:
        return "\nlock:" in Path(f"/proc/{pid}/fdinfo/0").read_text("ascii")
    except OSError:
        return False


def with_locked_stdin(path: str) -> tuple[int, ...]:
    """Pids of all processes that have `path` as standard input and hold its lock. Reads all of /proc: milliseconds."""
    return tuple(pid for pid in pids() if has_stdin(pid, path) and holds_lock(pid))


def arguments(pid: int) -> list[str]:
    """The command line of `pid`; none if it is a zombie, gone, or the kernel's own. Raises OSError."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text("utf-8", "replace").split("\0")[:-1]
    except _GONE:
        return []


def programs() -> Iterator[tuple[int, str, list[str]]]:
    """Pid, name and arguments of every process that may be looked into. Reads all of /proc: milliseconds."""
    for pid in pids():
        with suppress(OSError):  # it ended meanwhile
            name = Path(f"/proc/{pid}/comm").read_text("utf-8", "replace").rstrip("\n")
            if argv := arguments(pid):
                yield pid, name, argv


def threads_of(pid: int) -> list[str]:
    """The names of the threads of `pid`; none once it is gone."""
    names = []
    for comm in Path(f"/proc/{pid}/task").glob("*/comm"):
        with suppress(*_GONE):
            names.append(comm.read_text("utf-8", "replace"))
    return names


def allow_descriptors() -> None:
    """Let this process have as many descriptors as the system lets it: often 1,024 are the default, one per VM."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def spawn(argv: tuple[str, ...], *, stdin: int, output: int) -> int:
    """Start `argv` in a session of its own, with these descriptors alone, no environment; its pid. Raises OSError."""
    pid = os.posix_spawn(
        argv[0],
        argv,
        {},  # ours may hold the broker's password, and /proc/PID/environ is there for as long as the child lives
        file_actions=[(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate((stdin, output, output))],
        setsid=True,
        setsigmask=(),
        setsigdef=_DEFAULT_SIGNALS,
    )
    _children.add(pid)
    return pid


def reap() -> None:
    """Take the exit status of every process that `spawn` started here and that has ended: no zombie stays."""
    with _reaping, suppress(ChildProcessError):
        # one call tells that there is nothing to do, however many children live
        if os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return
        for pid in tuple(_children):  # each by its pid: the children of others are theirs
            try:
                is_reaped = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG) is not None
            except ChildProcessError:
                is_reaped = True  # somebody else's SIGCHLD handler was faster
            if is_reaped:
                _children.discard(pid)


def open_pidfd(identity: Identity) -> int | None:
    """A descriptor of this very process, readable once it has ended; None when it is gone. The caller closes it."""
    try:
        pidfd = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return None
    if is_known(identity):
        return pidfd
    os.close(pidfd)
    return None


def wait_for_end(identity: Identity, timeout_s: float) -> bool:
    """Whether the process ended within `timeout_s`. It may still be a zombie then."""
    if (pidfd := open_pidfd(identity)) is None:
        return True
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        return bool(poll.poll(_milliseconds(timeout_s)))
    finally:
        os.close(pidfd)


def kill(identity: Identity, number: int = signal.SIGKILL) -> None:
    """Send a signal. Nothing happens to a process that has ended."""
    if (pidfd := open_pidfd(identity)) is None:
        return
    try:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, number)
    finally:
        os.close(pidfd)


class ExitWatcher:
    """The ends of many processes, awaited at once by one thread or greenlet, which alone may call all but `wake`."""

    def __init__(self) -> None:
        self._pidfds: dict[str, int] = {}
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll = select.poll()
        self._poll.register(self._wake, select.POLLIN)

    def __contains__(self, name: str) -> bool:
        return name in self._pidfds

    def add(self, name: str, pidfd: int) -> None:
        """Await the end of the process of `pidfd`, which is ours from now on, instead of that known by `name`."""
        self.remove(name)
        self._pidfds[name] = pidfd
        self._poll.register(pidfd, select.POLLIN)

    def remove(self, name: str) -> None:
        """Await it no more."""
        if (pidfd := self._pidfds.pop(name, None)) is not None:
            self._poll.unregister(pidfd)
            os.close(pidfd)

    def wait(self, timeout_s: float) -> tuple[str, ...]:
        """Names of those that have ended, not awaited any more; none at the time-out or when woken."""
        ready = {fd for fd, _ in self._poll.poll(_milliseconds(timeout_s))}
        if self._wake in ready:
            os.eventfd_read(self._wake)
        ended = tuple(name for name, pidfd in self._pidfds.items() if pidfd in ready)
        for name in ended:
            self.remove(name)
        return ended

    def wake(self) -> None:
        """Let `wait` return. Never waits, so that a signal handler may call it, too."""
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """Await nothing any more. `wake` may still be called until this object is gone."""
        for name in tuple(self._pidfds):
            self.remove(name)


def _milliseconds(seconds: float) -> int:
    return math.ceil(max(0.0, seconds) * 1000)
