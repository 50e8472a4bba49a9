"""The page of the status beside the metrics of a control worker: who may read it, and how often it is made anew."""

from __future__ import annotations

import gzip
import hmac
import logging
import re
import threading
import time
from base64 import b64decode
from collections.abc import Callable, Iterable
from typing import Any

from redis import RedisError

from mikrom_reconcile.core.model.errors import MikromError
from mikrom_reconcile.output.pages import policy
from mikrom_reconcile.output.text import sanitize
from mikrom_reconcile.times_and_sizes import OUTPUT

_log = logging.getLogger(__name__)

_LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]"})
_HTML = [
    ("Content-Type", "text/html; charset=utf-8"),
    ("Content-Security-Policy", f"{policy()}; frame-ancestors 'none'"),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cache-Control", "no-store"),
    ("Vary", "Accept-Encoding"),
]
_TEXT = [("Content-Type", "text/plain; charset=utf-8")]
_ASK = [*_TEXT, ("WWW-Authenticate", 'Basic realm="mikrom", charset="UTF-8"')]
_EVERY = f"{OUTPUT.page_refresh_s:.0f}"
NOTE = f'<p class="dim">Read anew every {_EVERY} s: <a href="/">yes</a>, <a href="/?still">no</a></p>'
"""The last words of the page's head: whoever reads it may want it to stay."""

Answer = tuple[str, list[tuple[str, str]], str]  # status, headers, text
Application = Callable[[dict[str, Any], Any], Iterable[bytes]]  # as WSGI has it


class Page:
    """Answers `/` with the page, and leaves all else to another application. No run waits for anything here."""

    def __init__(self, make: Callable[[], str], auth: str | None, address: str, others: Application) -> None:
        """`make` is asked when the last page is too old; `auth` has users as FLOWER_BASIC_AUTH has."""
        self._make, self._others = make, others
        self._users = [user.encode() for user in auth.split(",")] if auth else []
        self._is_private = address in _LOOPBACK
        self._lock, self._again_at, self._html = threading.Lock(), 0.0, ""

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Answer one request."""
        if environ["PATH_INFO"] != "/":
            return self._others(environ, start_response)
        status, headers, text = self._refusal(environ) or self._page()
        body, more = text.encode(), []
        if status[0] != "4" and environ.get("QUERY_STRING") != "still":
            more.append(("Refresh", _EVERY))  # no element: a page that somebody saves stays as it is
        if "gzip" in environ.get("HTTP_ACCEPT_ENCODING", ""):
            more.append(("Content-Encoding", "gzip"))
            body = gzip.compress(body, 1)
        start_response(status, [*headers, *more, ("Content-Length", str(len(body)))])
        return [body]

    def _refusal(self, environ: dict[str, Any]) -> Answer | None:
        if environ["REQUEST_METHOD"] != "GET":
            return "405 Method Not Allowed", [*_TEXT, ("Allow", "GET")], "This page can only be read.\n"
        if self._users:
            given = _credentials(environ.get("HTTP_AUTHORIZATION", ""))
            known = [hmac.compare_digest(given, user) for user in self._users]
            return None if any(known) else ("401 Unauthorized", _ASK, "MIKROM_PAGE_AUTH says who may read it.\n")
        name = re.sub(r":\d+$", "", environ.get("HTTP_HOST", ""))
        if self._is_private and name in _LOOPBACK:  # any other name that leads here is a trick of some site
            return None
        return "403 Forbidden", _TEXT, "Set MIKROM_PAGE_AUTH=user:password, or read it as 127.0.0.1 there.\n"

    def _page(self) -> Answer:
        """One is made at most every few seconds, and takes at most a tenth of the time."""
        with self._lock:
            began = time.monotonic()
            if began >= self._again_at:
                try:
                    self._html = self._make()
                except (MikromError, RedisError) as error:
                    _log.warning("the page of the status: %s", error)
                    return "503 Service Unavailable", _TEXT, f"{sanitize(str(error))}\n"
                now = time.monotonic()
                self._again_at = now + max(OUTPUT.page_interval_s, 10 * (now - began))
            return "200 OK", _HTML, self._html


def _credentials(header: str) -> bytes:
    """The user and password of a request, b"" if it has none."""
    scheme, _, encoded = header.partition(" ")
    try:
        return b64decode(encoded, validate=True) if scheme.lower() == "basic" else b""
    except ValueError:
        return b""
