"""The disks of simulated machines, in memory, below the system calls: `/sim/<host>/...` is one of them.
What was not synced may be lost when the power fails: names from any moment on, and the content of files.
"""

from __future__ import annotations

import errno
import fcntl
import os
import posix
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from random import Random
from typing import Any, NamedTuple
from unittest.mock import patch

from tests.simulation.clockwork import Process

FIRST_FD = 1 << 20
_BLOCK = 4096
_FLOCK = struct.Struct("hhqqi4x")


class Stat(NamedTuple):
    st_mode: int
    st_ino: int
    st_dev: int
    st_size: int
    st_mtime: float
    st_blocks: int


class Node:
    """A file or, with `names`, a folder."""

    def __init__(self, number: int, *, is_folder: bool, at: float) -> None:
        self.number = number
        self.names: dict[str, Node] | None = {} if is_folder else None
        self.data = b""
        self.synced = b""
        self.at = at
        self.locked_by: dict[int, Open] = {}  # by where the range begins


class Open:
    """An open file description."""

    def __init__(self, disk: Disk, node: Node, path: str, process: Process | None) -> None:
        self.disk, self.node, self.path, self.process = disk, node, path, process
        self.place = 0

    def unlock(self) -> None:
        locks = self.node.locked_by
        self.node.locked_by = {start: holder for start, holder in locks.items() if holder is not self}


class Entry(NamedTuple):
    name: str
    path: str
    found: Stat

    def stat(self, *, follow_symlinks: bool = True) -> Stat:
        return self.found


Seen = Callable[[str, str, bytes], None]
"""Hears of each change of a name: what happened to which path, and the content that is there now."""


class Disk:
    """One disk. `call` is told of each system call that changes something, before it does."""

    def __init__(self, number: int, *, now: Callable[[], float], call: Callable[[str], None], seen: Seen) -> None:
        self._number, self._now, self._call, self._seen = number, now, call, seen
        self._count = 0
        self._root = self._node(is_folder=True)
        self._unsynced: list[list[tuple[dict[str, Node], str, Node | None]]] = []  # what was there before each change
        self.opened: dict[int, Open] = {}
        self.is_full = False

    def _node(self, *, is_folder: bool) -> Node:
        self._count += 1
        return Node(self._count, is_folder=is_folder, at=self._now())

    def find(self, path: str) -> Node | None:
        node: Node | None = self._root
        for part in _parts(path):
            if node is None or node.names is None:
                return None
            node = node.names.get(part)
        return node

    def files(self) -> Iterator[tuple[str, bytes]]:
        """Every file, for who judges."""

        def walk(node: Node, path: str) -> Iterator[tuple[str, bytes]]:
            for name, child in (node.names or {}).items():
                if child.names is None:
                    yield f"{path}/{name}", child.data
                else:
                    yield from walk(child, f"{path}/{name}")

        return walk(self._root, "")

    def power_fails(self, chance: Random) -> None:
        """Only what was synced is certain."""
        kept = chance.randint(0, len(self._unsynced))
        undone = (name for change in reversed(self._unsynced[kept:]) for name in reversed(change))
        for names, name, before in undone:
            if before is None:
                names.pop(name, None)
            else:
                names[name] = before
        self._unsynced.clear()

        def walk(node: Node) -> None:
            for child in (node.names or {}).values():
                if child.names is None and child.data != child.synced:
                    # a block that was written over is old or new; what never was on disk may be there in part
                    part = child.synced or child.data[: chance.randint(0, len(child.data))]
                    child.data = child.synced = chance.choice([child.data, child.synced, part])
                child.locked_by = {}
                walk(child)

        walk(self._root)

    def close_all(self, process: Process) -> None:
        for fd, opened in list(self.opened.items()):
            if opened.process is process:
                self.close(fd)

    # ---- system calls ---------------------------------------------------------------------------------------------

    def _names(self, path: str) -> tuple[dict[str, Node], str]:
        folder, _, name = path.rpartition("/")
        node = self.find(folder)
        if node is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        if node.names is None:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        return node.names, name

    def _at(self, path: str) -> Node:
        node = self.find(path)
        if node is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return node

    def _put(self, *changes: tuple[dict[str, Node], str, Node | None]) -> None:
        """Change names, all or none in the eyes of a power cut: as a journal has it, a rename is one change."""
        self._unsynced.append([(names, name, names.get(name)) for names, name, _ in changes])
        for names, name, node in changes:
            if node is None:
                del names[name]
            else:
                names[name] = node

    def _need_room(self) -> None:
        if self.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def open(self, path: str, flags: int, fd: int, process: Process | None) -> None:
        if flags & os.O_CREAT and self.find(path) is None:
            self._call(f"create {path}")
            names, name = self._names(path)
            if name not in names:  # others had their turn
                self._need_room()
                self._put((names, name, self._node(is_folder=False)))
        if (node := self.find(path)) is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        if flags & os.O_TRUNC and node.data:
            self._call(f"truncate {path}")
            node.data = b""
        self.opened[fd] = Open(self, node, path, process)

    def close(self, fd: int) -> None:
        opened = self.opened.pop(fd, None)
        if opened is not None:
            opened.unlock()

    def read(self, fd: int, size: int) -> bytes:
        opened = self.opened[fd]
        content = opened.node.data[opened.place : opened.place + size]
        opened.place += len(content)
        return content

    def write(self, fd: int, content: bytes | memoryview) -> int:
        opened = self.opened[fd]
        self._call(f"write {opened.path}")
        node, end = opened.node, opened.place + len(content)
        if end > -(-len(node.data) // _BLOCK) * _BLOCK:
            self._need_room()
        node.data = node.data[: opened.place] + bytes(content) + node.data[end:]
        node.at, opened.place = self._now(), end
        self._seen("write", opened.path, node.data)
        return len(content)

    def truncate(self, fd: int, size: int) -> None:
        node = self.opened[fd].node
        if len(node.data) != size:
            self._call(f"truncate {self.opened[fd].path}")
            node.data = node.data[:size].ljust(size, b"\0")

    def sync(self, fd: int) -> None:
        opened = self.opened[fd]
        self._call(f"sync {opened.path}")
        if opened.node.names is None:
            opened.node.synced = opened.node.data
        else:
            self._unsynced.clear()

    def lock(self, fd: int, command: int, packed: bytes) -> bytes:
        opened, node = self.opened[fd], self.opened[fd].node
        kind, *rest = _FLOCK.unpack(packed)
        start = rest[1]
        is_free = node.locked_by.get(start, opened) is opened
        if command == fcntl.F_OFD_GETLK:
            return _FLOCK.pack(fcntl.F_UNLCK if is_free else fcntl.F_WRLCK, *rest)
        if not is_free:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        if kind == fcntl.F_UNLCK:
            opened.unlock()
        else:
            node.locked_by[start] = opened
        return packed

    def stat_of(self, node: Node) -> Stat:
        mode = stat.S_IFREG | 0o600 if node.names is None else stat.S_IFDIR | 0o700
        return Stat(mode, node.number, self._number, len(node.data), node.at, -(-len(node.data) // _BLOCK) * 8)

    def stat(self, path: str) -> Stat:
        return self.stat_of(self._at(path))

    def mkdir(self, path: str) -> None:
        if self.find(path) is None:
            self._call(f"mkdir {path}")
        names, name = self._names(path)
        if name in names:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        self._need_room()
        self._put((names, name, self._node(is_folder=True)))

    def rmdir(self, path: str) -> None:
        if self.find(path) is not None:
            self._call(f"rmdir {path}")
        if self._at(path).names:
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), path)
        names, name = self._names(path)
        self._put((names, name, None))

    def unlink(self, path: str) -> None:
        if self.find(path) is not None:
            self._call(f"unlink {path}")
        self._at(path)
        names, name = self._names(path)
        self._put((names, name, None))
        self._seen("unlink", path, b"")

    def rename(self, path: str, target: str) -> None:
        if self.find(path) is not None:
            self._call(f"rename {path} {target}")
        node, (names, name), (old_names, old) = self._at(path), self._names(target), self._names(path)
        self._put((names, name, node), (old_names, old, None))
        self._seen("unlink", path, b"")
        self._seen("rename", target, node.data)

    def touch(self, path: str) -> None:
        self._at(path).at = self._now()

    def list(self, path: str) -> list[str]:
        names = self._at(path).names
        if names is None:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        return list(names)


def _parts(path: str) -> list[str]:
    """Those below `/sim/<host>`."""
    return [part for part in path.split("/")[3:] if part]


class _Calls:
    """The system calls of Python's `os`: those below `/sim/<host>` go to that host's disk, others where they went."""

    def __init__(self, disk_of: Callable[[str], Disk], process_of: Callable[[], Process | None]) -> None:
        self._disk_of, self._process_of = disk_of, process_of
        self._owners: dict[int, Disk] = {}
        self._last_fd = FIRST_FD
        self.stand_ins: dict[str, Callable[..., Any]] = {
            "open": self.open, "close": self.close, "rename": self.rename, "replace": self.rename,
            "scandir": self.scandir, "stat": self._of_path("stat", Disk.stat),
            "lstat": self._of_path("lstat", Disk.stat), "mkdir": self._of_path("mkdir", Disk.mkdir),
            "rmdir": self._of_path("rmdir", Disk.rmdir), "unlink": self._of_path("unlink", Disk.unlink),
            "listdir": self._of_path("listdir", Disk.list), "utime": self._of_path("utime", Disk.touch),
            "read": self._of_fd("read", Disk.read), "write": self._of_fd("write", Disk.write),
            "fsync": self._of_fd("fsync", Disk.sync), "ftruncate": self._of_fd("ftruncate", Disk.truncate),
            "fstat": self._of_fd("fstat", lambda disk, fd: disk.stat_of(disk.opened[fd].node)),
        }  # fmt: skip
        self._real: dict[str, Callable[..., Any]] = {name: getattr(os, name) for name in self.stand_ins}
        self._real_fcntl: Callable[..., Any] = fcntl.fcntl

    def _disk(self, path: str) -> Disk:
        return self._disk_of(path.split("/")[2])

    def open(self, path: Any, flags: int, mode: int = 0o777, **options: Any) -> Any:
        if (ours := _ours(path)) is None:
            return self._real["open"](path, flags, mode, **options)
        self._last_fd += 1
        fd = self._last_fd  # others may open theirs meanwhile
        self._disk(ours).open(ours, flags, fd, self._process_of())
        self._owners[fd] = self._disk(ours)
        return fd

    def close(self, fd: int) -> None:
        if fd < FIRST_FD:
            self._real["close"](fd)
        elif fd in self._owners:
            self._owners.pop(fd).close(fd)

    def rename(self, path: Any, target: Any, **options: Any) -> None:
        if (ours := _ours(path)) is None:
            self._real["rename"](path, target, **options)
        else:
            self._disk(ours).rename(ours, os.fspath(target))

    @contextmanager
    def scandir(self, path: Any) -> Iterator[Any]:
        if (ours := _ours(path)) is None:
            with self._real["scandir"](path) as found:
                yield found
        else:
            paths = [(name, f"{ours}/{name}") for name in self._disk(ours).list(ours)]
            yield [Entry(name, each, self._disk(ours).stat(each)) for name, each in paths]

    def fcntl(self, fd: Any, command: int, argument: Any = 0) -> Any:
        is_ours = isinstance(fd, int) and fd >= FIRST_FD
        return self._owners[fd].lock(fd, command, argument) if is_ours else self._real_fcntl(fd, command, argument)

    def _of_path(self, name: str, act: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *args: Any, **options: Any) -> Any:
            ours = _ours(path)
            return self._real[name](path, *args, **options) if ours is None else act(self._disk(ours), ours)

        return call

    def _of_fd(self, name: str, act: Callable[..., Any]) -> Callable[..., Any]:
        def call(fd: Any, *args: Any) -> Any:
            is_ours = isinstance(fd, int) and fd >= FIRST_FD
            return act(self._owners[fd], fd, *args) if is_ours else self._real[name](fd, *args)

        return call


def _ours(path: Any) -> str | None:
    text = os.fspath(path) if isinstance(path, os.PathLike) else path
    return text if isinstance(text, str) and text.startswith("/sim/") else None


@contextmanager
def disks_of(disk_of: Callable[[str], Disk], process_of: Callable[[], Process | None]) -> Iterator[None]:
    """While the block runs, `/sim/<host>` is the disk of that host for every system call of Python's `os`."""
    calls = _Calls(disk_of, process_of)
    with ExitStack() as stack:
        for name, stand_in in calls.stand_ins.items():
            stack.enter_context(patch.object(os, name, stand_in))
        stack.enter_context(patch.object(posix, "close", calls.close))
        stack.enter_context(patch.object(fcntl, "fcntl", calls.fcntl))
        yield
