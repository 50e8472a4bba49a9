"""The page of the status beside the metrics of a control worker: who may read it, and how often it is made anew."""

import gzip
import hmac
import re
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterable
from typing import Any

from redis import RedisError

from mikrom_reconcile.core.model.errors import MikromError
from mikrom_reconcile.output.pages import policy
from mikrom_reconcile.output.text import sanitize
from mikrom_reconcile.times_and_sizes import OUTPUT

_LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]"})
_HTML = {
    "Content-Type": "text/html; charset=utf-8",
    "Content-Security-Policy": f"{policy()}; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_TEXT = {"Content-Type": "text/plain; charset=utf-8", "X-Content-Type-Options": "nosniff"}
_EVERY = f"{OUTPUT.page_refresh_s:.0f}"
NOTE = f'<p class="dim">Read anew every {_EVERY} s: <a href="/">yes</a>, <a href="/?still">no</a></p>'
"""The last words of the page's head: whoever reads it may want it to stay."""

Answer = tuple[str, dict[str, str], str]  # status, headers, text
Application = Callable[[dict[str, Any], Any], Iterable[bytes]]  # as WSGI has it


class Page:
    """Answers `/` with the page, and leaves all else to another application. No run waits for anything here."""

    def __init__(self, make: Callable[[], str], auth: str | None, address: str, others: Application) -> None:
        """`make` is asked when the last page is too old; `auth` has users as FLOWER_BASIC_AUTH has."""
        self._make, self._others = make, others
        users = auth.split(",") if auth else []
        self._known = [f"Basic {b64encode(user.encode()).decode()}".encode() for user in users]
        self._is_private = address in _LOOPBACK
        self._lock, self._again_at, self._html = threading.Lock(), 0.0, ""

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Answer one request."""
        if environ["PATH_INFO"] != "/":
            return self._others(environ, start_response)
        status, headers, text = self._refusal(environ) or self._page()
        body, more = text.encode(), {}
        if status[0] != "4" and environ.get("QUERY_STRING") != "still":
            more["Refresh"] = _EVERY  # no element: a page that somebody saves stays as it is
        if "gzip" in environ.get("HTTP_ACCEPT_ENCODING", ""):
            body, more["Content-Encoding"] = gzip.compress(body, 1), "gzip"
        start_response(status, [*(headers | more).items(), ("Content-Length", str(len(body)))])
        return [body]

    def _refusal(self, environ: dict[str, Any]) -> Answer | None:
        if self._known:
            given = environ.get("HTTP_AUTHORIZATION", "").encode()
            if sum(
                hmac.compare_digest(given, known) for known in self._known
            ):  # all of them, so that it takes the same time
                return None
            ask = {"WWW-Authenticate": 'Basic realm="mikrom", charset="UTF-8"'}
            return "401 Unauthorized", _TEXT | ask, "MIKROM_PAGE_AUTH says who may read it.\n"
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
                    return "503 Service Unavailable", _TEXT, f"{sanitize(str(error))}\n"
                took_s = time.monotonic() - began
                self._again_at = began + max(OUTPUT.page_interval_s, 10 * took_s)
            return "200 OK", _HTML, self._html
