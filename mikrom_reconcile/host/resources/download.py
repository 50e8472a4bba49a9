"""Bytes of an image file from where a spec says they are, into a file of ours: whole, resumed or not at all.

What they must be is checked by the caller (`images.py`). Reads go through in small pieces, so that other greenlets of
a worker run meanwhile; a link of a path is never followed, and a redirect never leaves https.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from threading import Thread
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from mikrom_reconcile.core.model.errors import MikromError
from mikrom_reconcile.limits import IMAGES
from mikrom_reconcile.system.sockets import Limited

if TYPE_CHECKING:
    import http.client
    from urllib.request import OpenerDirector


_LASTING = frozenset({400, 401, 403, 404, 405, 410})


class FetchError(MikromError):
    """It could not be had. `lasting`: asking again changes nothing."""

    def __init__(self, message: str, *, lasting: bool) -> None:
        super().__init__(message)
        self.lasting = lasting


class Opened:
    """A source that is being read from `offset` on; `size` is that of the whole, None if nobody says.

    `breaks` are the errors by which its content ends early: a time-out, a reset, a broken chunk.
    """

    def __init__(
        self,
        content: io.BufferedIOBase,
        *,
        offset: int,
        size: int | None,
        breaks: tuple[type[Exception], ...] = (OSError,),
    ) -> None:
        self._breaks = breaks
        self.content = content
        self.offset = offset
        self.size = size

    def pieces(self, give_up_at: float) -> Iterator[bytes]:
        """What is left to read. Raises FetchError when it ends early or time does."""
        at = self.offset
        while piece := self._read():
            at += len(piece)
            yield piece
            time.sleep(0)  # lets other greenlets run
            if time.monotonic() > give_up_at:
                raise FetchError(f"no more time after {at} bytes; the next attempt goes on from there", lasting=False)
        if self.size is not None and at < self.size:
            message = f"it ended after {at} of {self.size} bytes; the next attempt goes on from there"
            raise FetchError(message, lasting=False)

    def _read(self) -> bytes:
        try:
            return self.content.read1(IMAGES.piece_bytes)  # what is there, for a server that sends a byte at a time
        except self._breaks as error:
            raise FetchError(f"it broke off: {error}; the next attempt goes on from there", lasting=False) from error


@contextmanager
def opened(source: str, *, offset: int, folders: tuple[Path, ...], give_up_at: float) -> Iterator[Opened]:
    """The source, from `offset` on if it can, else from its beginning; a server has until `give_up_at`.

    Raises FetchError.
    """
    parts = urlsplit(source)
    if parts.scheme == "file":
        with local_file(unquote(parts.path), folders, "MIKROM_IMAGE_DIRS") as content:
            size = os.fstat(content.fileno()).st_size
            yield Opened(content, offset=0, size=size)
        return
    from http.client import HTTPException  # noqa: PLC0415 - 20 ms that VMs without such images need not pay

    answer = _answer(source, offset, give_up_at)
    if answer is None:
        yield Opened(io.BytesIO(), offset=offset, size=None)
        return
    with answer:
        begin = offset if answer.status == HTTPStatus.PARTIAL_CONTENT else 0
        length = answer.headers.get("Content-Length", "")
        whole = begin + int(length) if length.isdigit() else None
        yield Opened(answer, offset=begin, size=whole, breaks=(OSError, HTTPException))


def _answer(source: str, offset: int, give_up_at: float) -> http.client.HTTPResponse | None:
    """The server's answer, None when nothing lies behind `offset`."""
    import http.client  # noqa: PLC0415 - as above
    import ssl  # noqa: PLC0415 - as above
    import urllib.error  # noqa: PLC0415 - as above
    import urllib.request  # noqa: PLC0415 - as above

    request = urllib.request.Request(source, headers={"Range": f"bytes={offset}-"} if offset else {})  # noqa: S310 - the schema lets only https through
    try:
        timeout_s = min(IMAGES.idle_s, max(0.1, give_up_at - time.monotonic()))
        answer: http.client.HTTPResponse = _opener(give_up_at).open(request, timeout=timeout_s)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and offset:
            return None
        raise FetchError(f"the server answers {error.code} {error.reason}", lasting=error.code in _LASTING) from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise FetchError(
            f"no connection: {str(reason) or 'timed out'}", lasting=isinstance(reason, ssl.SSLCertVerificationError)
        ) from error
    return answer


def _opener(give_up_at: float) -> OpenerDirector:
    """What asks servers, and follows them to https only."""
    from http.client import HTTPSConnection  # noqa: PLC0415 - as above
    from urllib.request import HTTPRedirectHandler, HTTPSHandler, build_opener  # noqa: PLC0415 - as above

    class Connection(HTTPSConnection):
        def connect(self) -> None:
            _in_time(super().connect, give_up_at)
            self.sock = Limited(self.sock, give_up_at, idle_s=IMAGES.idle_s)

    class Handler(HTTPSHandler):
        def https_open(self, req):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
            return self.do_open(Connection, req)

    class OnlyHttps(HTTPRedirectHandler):
        def redirect_request(self, req, fp, code, msg, headers, newurl):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
            if not newurl.startswith("https://"):
                fp.close()
                raise FetchError(f"the server redirects to {newurl}, which is not https", lasting=True)
            return super().redirect_request(req, fp, code, msg, headers, newurl)

    return build_opener(OnlyHttps(), Handler())


def _in_time(connect: Callable[[], None], give_up_at: float) -> None:
    """A thread connects: nothing limits how long a name is looked up, and each of its addresses gets a new time-out."""
    connected: Future[None] = Future()

    def run() -> None:
        try:
            connect()
            connected.set_result(None)
        except Exception as error:  # noqa: BLE001 - it is raised where it is waited for
            connected.set_exception(error)

    Thread(target=run, name="connect", daemon=True).start()
    connected.result(max(0.0, give_up_at - time.monotonic()))


@contextmanager
def local_file(path: str, folders: tuple[Path, ...], setting: str) -> Iterator[io.BufferedReader]:
    """The file at `path`, opened step by step below one of the folders of a `setting`: no step may be a link.

    Raises FetchError.
    """
    pure = PurePosixPath(path)
    below = next((folder for folder in folders if pure.is_relative_to(folder)), None)
    if below is None or ".." in pure.parts:
        allowed = ", ".join(map(str, folders))
        raise FetchError(f"{path} is not below {allowed}: {setting} says where files may come from", lasting=True)
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
        raise FetchError(f"{path}: {why}", lasting=True) from error
    with _regular(fd, path) as content:
        yield content


def _regular(fd: int, path: str) -> io.BufferedReader:
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return os.fdopen(fd, "rb")
    os.close(fd)
    raise FetchError(f"{path} is not a regular file", lasting=True)
