"""Images from https servers: resumed, within a deadline, and redirected to https only. Importing this takes 20 ms."""

import http.client
import io
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from threading import Thread
from types import MappingProxyType
from typing import Any

from mikrom_reconcile.system.download import FetchError, Opened
from mikrom_reconcile.system.time_limits import LimitedSocket
from mikrom_reconcile.times_and_sizes import IMAGES

_LASTING = frozenset({400, 401, 403, 404, 405, 410})


@contextmanager
def opened(
    source: str, *, offset: int, give_up_at: float, accept: str = "*/*", authorization: str | None = None,
    headers: Mapping[str, str] = MappingProxyType({}), content: bytes | None = None,
) -> Iterator[Opened]:  # fmt: skip
    """What the server sends, from `offset` on if it can; `authorization` is for it alone. `content` is posted, and
    redirected nowhere. Raises FetchError.
    """
    headers = {"Accept": accept, **headers, **({"Range": f"bytes={offset}-"} if offset else {})}
    request = urllib.request.Request(source, content, headers=headers)  # noqa: S310 - no caller has any but http and https
    if authorization is not None:
        request.add_unredirected_header("Authorization", authorization)
    timeout_s = min(IMAGES.idle_s, max(0.1, give_up_at - time.monotonic()))
    opener = urllib.request.build_opener(_OnlyHttps(), _InTime(give_up_at))
    try:
        reply: http.client.HTTPResponse = opener.open(request, timeout=timeout_s)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and offset:  # nothing lies behind it
            yield Opened(io.BytesIO(), offset)
            return
        challenge = error.headers.get("WWW-Authenticate", "") if error.code == HTTPStatus.UNAUTHORIZED else None
        message = f"the server answers {error.code} {error.reason}"
        raise FetchError(message, lasting=error.code in _LASTING, challenge=challenge) from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise FetchError(
            f"no connection: {str(reason) or 'timed out'}", lasting=isinstance(reason, ssl.SSLCertVerificationError)
        ) from error
    with reply:
        begin = offset if reply.status == HTTPStatus.PARTIAL_CONTENT else 0
        length = reply.headers.get("Content-Length", "")
        size = begin + int(length) if length.isdigit() else None
        yield Opened(reply, offset=begin, size=size, breaks=(OSError, http.client.HTTPException))


class _Connection(http.client.HTTPConnection):
    def __init__(self, host: str, *, give_up_at: float, **options: Any) -> None:
        super().__init__(host, **options)
        self._give_up_at = give_up_at

    def connect(self) -> None:
        _in_time(super().connect, self._give_up_at)
        self.sock = LimitedSocket(self.sock, self._give_up_at, idle_s=IMAGES.idle_s)


class _SecureConnection(_Connection, http.client.HTTPSConnection):
    pass


class _InTime(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    def __init__(self, give_up_at: float) -> None:
        super().__init__()
        self._give_up_at = give_up_at

    def http_open(self, req):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        return self.do_open(partial(_Connection, give_up_at=self._give_up_at), req)

    def https_open(self, req):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        return self.do_open(partial(_SecureConnection, give_up_at=self._give_up_at), req)


class _OnlyHttps(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req, fp, code, msg, headers, newurl):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        if not newurl.startswith("https://") or req.data is not None:
            fp.close()
            raise FetchError(f"the server redirects to {newurl}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


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
