"""A folder that a root disk is made of. Nothing outside of it is ever written or followed.

Each step of a path is opened by itself, from the folder on, and never through a link; the target of a link is walked
in the same way, with the folder as its "/". Nobody else may write there meanwhile: the caller made the folder, closed
to others. Paths are tuples of names, as bytes: an image's names need not be UTF-8.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Self

from mikrom_reconcile.system.download import FetchError
from mikrom_reconcile.times_and_sizes import CONTAINER_IMAGES

Names = tuple[bytes, ...]

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_BLOCK = 4096


def names_in(path: bytes) -> Names:
    """The steps of a path, as they are written: ".." is one."""
    return tuple(name for name in path.split(b"/") if name not in {b"", b"."})


class Tree:
    """What is below `root`, a folder that is there."""

    def __init__(self, root: Path) -> None:
        self._root = os.open(root, _FOLDER)
        self._near: tuple[Names, int, Names] | None = None  # the folder that was asked for last, and where it is
        self.times_ns: dict[Names, int] = {}
        """Those that folders get in the end: whatever is made in one changes them."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._forget_near()
        os.close(self._root)

    def folder(self, path: Names, *, make: bool) -> tuple[int, Names]:
        """A descriptor of a folder, good until the next call, and where it is without links.

        Raises FileNotFoundError unless it may be made, and FetchError where it is no folder or climbs out.
        """
        if self._near is None or self._near[0] != path:
            self._forget_near()
            self._near = (path, *self._walked(path, make=make))
        return self._near[1], self._near[2]

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

    @contextmanager
    def inside(self, fd: int, name: bytes) -> Iterator[int]:
        """A descriptor of a folder in another."""
        inner = os.open(name, _FOLDER, dir_fd=fd)
        try:
            yield inner
        finally:
            os.close(inner)

    @contextmanager
    def new_file(self, fd: int, name: bytes) -> Iterator[IO[bytes]]:
        """A file that was not there before."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(name, flags, 0o600, dir_fd=fd), "wb") as out:
            yield out

    def read(self, path: Names, max_bytes: int) -> bytes:
        """The content of a file, links followed inside the tree; nothing if there is none. Raises FetchError."""
        for _ in range(CONTAINER_IMAGES.links):
            with suppress(FileNotFoundError):
                fd, where = self.folder(path[:-1], make=False)
                found = self.found(fd, path[-1])
                if found is not None and stat.S_ISLNK(found.st_mode):
                    target = os.readlink(path[-1], dir_fd=fd)
                    path = names_in(target) if target.startswith(b"/") else (*where, *names_in(target))
                    if path and path[-1] != b"..":
                        continue
                elif found is not None and stat.S_ISREG(found.st_mode):
                    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
                    with os.fdopen(os.open(path[-1], flags, dir_fd=fd), "rb") as content:
                        return content.read(max_bytes)
            return b""
        raise FetchError(f"/{os.fsdecode(b'/'.join(path))} is a link that leads in a circle", lasting=True)

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
            self._make(self._root, (name,))

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

    def _walked(self, path: Names, *, make: bool) -> tuple[int, Names]:
        todo, links = list(reversed(path)), 0
        fd, where = os.dup(self._root), Names()
        try:
            while todo:
                name = todo.pop()
                step = self._above(where) if name == b".." else self._step(fd, (*where, name), make=make)
                if isinstance(step, int):
                    fd, where = _instead(fd, step), (*where, name)
                    _check(len(where) <= CONTAINER_IMAGES.depth, f"more than {CONTAINER_IMAGES.depth} folders deep")
                    continue
                links += 1
                _check(links <= CONTAINER_IMAGES.links, "behind too many links")
                todo.extend(reversed(names_in(step)))
                if step.startswith(b"/"):
                    fd, where = _instead(fd, os.dup(self._root)), Names()
        except BaseException:
            os.close(fd)
            raise
        return fd, where

    def _above(self, where: Names) -> bytes:
        """What ".." says there, as a link would."""
        _check(len(where) > 0, "outside of the tree, behind a link")
        return b"/" + b"/".join(where[:-1])

    def _step(self, fd: int, where: Names, *, make: bool) -> int | bytes:
        """A descriptor of a folder in another, or what it says where it is a link."""
        name = where[-1]
        try:
            return os.open(name, _FOLDER, dir_fd=fd)
        except FileNotFoundError:
            if not make:
                raise
            self._make(fd, where)
            return os.open(name, _FOLDER, dir_fd=fd)
        except OSError as error:
            if error.errno not in {errno.ELOOP, errno.ENOTDIR}:
                raise
        found = self.found(fd, name)
        if found is None or not stat.S_ISLNK(found.st_mode):
            raise FetchError(f"/{os.fsdecode(b'/'.join(where))} is no folder", lasting=True)
        return os.readlink(name, dir_fd=fd)

    def _make(self, fd: int, where: Names) -> None:
        os.mkdir(where[-1], 0o700, dir_fd=fd)
        os.chmod(where[-1], 0o755, dir_fd=fd)  # noqa: S103 - in a folder that is closed to others
        self.times_ns[where] = 0


def _check(holds: bool, otherwise: str) -> None:  # noqa: FBT001 - as an assertion has it
    if not holds:
        raise FetchError(f"it is {otherwise}", lasting=True)


def _instead(old: int, new: int) -> int:
    os.close(old)
    return new
