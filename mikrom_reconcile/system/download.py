"""Reads image files from where a spec says they are, in small pieces, so that other greenlets run meanwhile."""

import errno
import io
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from mikrom_reconcile.core.model.errors import MikromError
from mikrom_reconcile.times_and_sizes import IMAGES


class FetchError(MikromError):
    """It could not be had. `lasting`: asking again changes nothing. `challenge`: how a server wants to be asked."""

    def __init__(self, message: str, *, lasting: bool = True, challenge: str | None = None) -> None:
        super().__init__(message)
        self.lasting = lasting
        self.challenge = challenge


class Opened(NamedTuple):
    """A source that is being read from `offset` on."""

    content: io.BufferedIOBase
    offset: int
    size: int | None = None  # of the whole; None if nobody says
    breaks: tuple[type[Exception], ...] = (OSError,)  # by which its content ends early

    def pieces(self, give_up_at: float) -> Iterator[bytes]:
        """What is left to read. Raises FetchError when it ends early or time does."""
        at, resumes = self.offset, "the next attempt goes on from there"
        try:
            while piece := self.content.read1(IMAGES.piece_bytes):  # what is there, were it a byte
                at += len(piece)
                yield piece
                time.sleep(0)  # lets other greenlets run
                if time.monotonic() > give_up_at:
                    raise FetchError(f"no more time after {at} bytes; {resumes}", lasting=False)
        except self.breaks as error:
            raise FetchError(f"it broke off: {error}; {resumes}", lasting=False) from error
        if self.size is not None and at < self.size:
            raise FetchError(f"it ended after {at} of {self.size} bytes; {resumes}", lasting=False)


@contextmanager
def local_file(path: str, folders: tuple[Path, ...], setting: str) -> Iterator[io.BufferedReader]:
    """The file at `path`, opened step by step below a folder of a `setting`, through no link. Raises FetchError."""
    pure = PurePosixPath(path)
    below = next((folder for folder in folders if pure.is_relative_to(folder)), None)
    if below is None or ".." in pure.parts:
        allowed = ", ".join(map(str, folders))
        raise FetchError(f"{path} is not below {allowed}: {setting} says where files may come from")
    try:
        fd = os.open(below, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        for step in pure.relative_to(below).parts:
            above, fd = fd, -1
            try:
                fd = os.open(step, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=above)
            finally:
                os.close(above)
    except OSError as error:
        linked = error.errno in {errno.ELOOP, errno.ENOTDIR}  # the latter for a link amid the path
        why = f"{error.strerror}" + (" (a symlink is not followed)" if linked else "")
        raise FetchError(f"{path}: {why}") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise FetchError(f"{path} is not a regular file")
    with os.fdopen(fd, "rb") as content:
        yield content
