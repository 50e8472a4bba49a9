"""A folder that a root disk is made of. Nothing outside of it is ever written or followed. The kernel walks each path
with the folder as its root (`openat2` with RESOLVE_IN_ROOT, Linux 5.6), links and ".." included. Nobody else may write
there meanwhile: the caller made the folder, closed to others. Paths are tuples of names, as bytes: an image's names
need not be UTF-8.
"""

import ctypes
import errno
import os
import shutil
import stat
import struct
import time
from pathlib import Path
from typing import IO, Self

from mikrom_reconcile.system.download import FetchError
from mikrom_reconcile.times_and_sizes import CONTAINER_IMAGES

Names = tuple[bytes, ...]

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_LEADS_NOWHERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
_BLOCK = 4096
_OPENAT2, _RESOLVE_IN_ROOT = 437, 0x10
_syscall = ctypes.CDLL(None, use_errno=True).syscall


def names_in(path: bytes) -> Names:
    """The steps of a path, as they are written: ".." is one."""
    return tuple(name for name in path.split(b"/") if name not in {b"", b"."})


class Tree:
    """What is below `root`, a folder that is there."""

    def __init__(self, root: Path) -> None:
        self._root = os.open(root, _FOLDER)
        self._near: tuple[Names, int, Names] | None = None  # the folder that was asked for last, and where it is
        self._depth = 0  # of the folder itself
        self._depth = len(self._place_of(self._root))
        self.times_ns: dict[Names, int] = {}  # those that folders get in the end: whatever is made in one changes them

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._forget_near()
        os.close(self._root)

    def folder(self, path: Names, *, make: bool) -> tuple[int, Names]:
        """A descriptor of a folder, good until the next call, and where it is without links. Raises FileNotFoundError
        unless it may be made, and OSError where it is none, or behind links in a circle.
        """
        if self._near is None or self._near[0] != path:
            self._forget_near()
            fd = self._opened(path, make=make)
            self._near = (path, fd, self._place_of(fd))
        if len(self._near[2]) > CONTAINER_IMAGES.depth:
            raise FetchError(f"it is more than {CONTAINER_IMAGES.depth} folders deep")
        return self._near[1], self._near[2]

    def _opened(self, path: Names, *, make: bool) -> int:
        try:
            return self._open(path, _FOLDER)
        except FileNotFoundError:
            if not make:
                raise
        above = self._opened(path[:-1], make=True)
        try:
            self._make(above, path[-1])
        except FileExistsError:  # a link to what is not there
            target = os.readlink(path[-1], dir_fd=above)
            from_root = () if target.startswith(b"/") else self._place_of(above)
            return self._opened((*from_root, *names_in(target)), make=True)
        finally:
            os.close(above)
        return self._open(path, _FOLDER)

    def _open(self, path: Names, flags: int) -> int:
        how = struct.pack("QQQ", flags, 0, _RESOLVE_IN_ROOT)
        while (fd := _syscall(_OPENAT2, self._root, b"/".join(path) or b".", how, len(how))) < 0:
            if (code := ctypes.get_errno()) != errno.EAGAIN:  # something on this host was renamed meanwhile
                raise OSError(code, os.strerror(code))
        return int(fd)

    def found(self, fd: int, name: bytes) -> os.stat_result | None:
        """What is there, a link as itself."""
        try:
            return os.stat(name, dir_fd=fd, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def remove(self, fd: int, name: bytes) -> None:
        """Remove it, with all that is in it."""
        if stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
            shutil.rmtree(name, dir_fd=fd)
        else:
            os.unlink(name, dir_fd=fd)
        self._forget_near()  # the way there may have led through what is gone

    def new_file(self, fd: int, name: bytes) -> IO[bytes]:
        """A file that was not there before."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.fdopen(os.open(name, flags, 0o600, dir_fd=fd), "wb")

    def read(self, path: Names, max_bytes: int) -> bytes:
        """The content of a file; nothing if there is none. Raises OSError."""
        try:
            fd = self._open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # never waits for a FIFO's other end
        except OSError as error:
            if error.errno in _LEADS_NOWHERE:
                return b""
            raise
        with os.fdopen(fd, "rb") as content:
            return content.read(max_bytes) if stat.S_ISREG(os.fstat(fd).st_mode) else b""

    def put(self, path: Names, content: bytes, mode: int) -> None:
        """A file of ours in its folder."""
        fd, _ = self.folder(path[:-1], make=True)
        with self.new_file(fd, path[-1]) as out:
            out.write(content)
        os.chmod(path[-1], mode, dir_fd=fd)
        os.utime(path[-1], ns=(0, 0), dir_fd=fd)

    def make_folder(self, name: bytes) -> None:
        """A folder at the top, unless there is anything of that name."""
        if self.found(self._root, name) is None:
            self._make(self._root, name)

    def drop(self, name: bytes) -> None:
        """Remove what is there at the top, if there is anything."""
        if self.found(self._root, name) is not None:
            self.remove(self._root, name)

    def finish(self) -> tuple[int, int]:
        """Set the times of all folders; how many inodes there are, and how many bytes they take in blocks."""
        seen: set[int] = set()
        size = 0
        for folder, folders, files, fd in os.fwalk(b".", dir_fd=self._root):
            for name in (*folders, *files):
                found = os.stat(name, dir_fd=fd, follow_symlinks=False)
                if found.st_ino not in seen:
                    seen.add(found.st_ino)
                    size += -(-found.st_size // _BLOCK) * _BLOCK if stat.S_ISREG(found.st_mode) else _BLOCK
                size += 16 + len(name)  # in large folders names take more than a block
            moment = self.times_ns.get(names_in(os.fsencode(folder)), 0)
            os.utime(fd, ns=(moment, moment))
            time.sleep(0)  # lets other greenlets run
        return len(seen) + 1, size

    def _forget_near(self) -> None:
        if self._near is not None:
            os.close(self._near[1])
            self._near = None

    def _make(self, fd: int, name: bytes) -> None:
        os.mkdir(name, 0o700, dir_fd=fd)
        os.chmod(name, 0o755, dir_fd=fd)  # noqa: S103 - in a folder that is closed to others
        self.times_ns[*self._place_of(fd), name] = 0

    def _place_of(self, fd: int) -> Names:
        """Where a folder is, without links."""
        return names_in(os.fsencode(Path(f"/proc/self/fd/{fd}").readlink()))[self._depth :]
