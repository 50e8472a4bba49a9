"""Who gets the page of the status from a control worker, and how often it is made."""

from __future__ import annotations

import gzip
from base64 import b64encode
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mikrom_reconcile.core.model.errors import MikromError
from mikrom_reconcile.dispatch.control_worker.metrics import Page

Get = Callable[..., tuple[str, dict[str, str], bytes]]


def page(pages: Iterator[str], auth: str | None = None, address: str = "127.0.0.1") -> Get:
    def others(_environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [b"metrics"]

    app = Page(lambda: next(pages), auth, address, others)

    def get(path: str = "/", query: str = "", **headers: str) -> tuple[str, dict[str, str], bytes]:
        told: list[Any] = []
        known = {"REQUEST_METHOD": "GET", "PATH_INFO": path, "QUERY_STRING": query, "HTTP_HOST": "127.0.0.1:9464"}
        body = b"".join(app(known | headers, lambda *start: told.extend(start)))
        return told[0], dict(told[1]), body

    return get


def basic(user: str) -> str:
    return "Basic " + b64encode(user.encode()).decode()


def test_the_page_comes_with_a_strict_policy_and_is_read_anew_unless_it_is_to_stay() -> None:
    get = page(iter(["<p>here"]))
    status, headers, body = get()
    assert (status, body) == ("200 OK", b"<p>here")
    assert headers["Content-Security-Policy"].startswith("default-src 'none'; style-src 'sha256-")
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert (headers["Refresh"], headers["Cache-Control"]) == ("10", "no-store")
    assert "Refresh" not in get(query="still")[1]
    packed = get(HTTP_ACCEPT_ENCODING="gzip, br")
    assert gzip.decompress(packed[2]) == b"<p>here"
    assert packed[1]["Content-Length"] == str(len(packed[2]))


def test_who_asks_again_at_once_gets_the_same_page() -> None:
    get = page(iter(["first", "second"]))
    assert {get()[2] for _ in range(5)} == {b"first"}


def test_everything_else_is_left_to_the_metrics() -> None:
    assert page(iter([]), "ana:pw", "0.0.0.0")("/metrics")[2] == b"metrics"


def test_a_password_lets_its_users_in_and_nobody_else() -> None:
    get = page(iter(["here"]), "ana:pw,bo:päss", "0.0.0.0")
    for header in ("", "Basic", "Basic ???", basic("ana:"), basic("ana:pw,bo:päss"), basic(""), "Bearer ana:pw"):
        status, headers, body = get(HTTP_AUTHORIZATION=header)
        assert status == "401 Unauthorized", header
        assert headers["WWW-Authenticate"].startswith('Basic realm="mikrom"')
        assert b"here" not in body
    for user in ("ana:pw", "bo:päss"):
        assert get(HTTP_AUTHORIZATION=basic(user), HTTP_HOST="status.example.net")[0] == "200 OK"


@pytest.mark.parametrize("host", ["evil.example.net", "127.0.0.1.example.net:9464", "", "[::2]:9464"])
def test_a_name_that_leads_to_loopback_is_not_believed(host: str) -> None:
    assert page(iter(["here"]))(HTTP_HOST=host)[0] == "403 Forbidden"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:1", "[::1]:9464", "[::1]"])
def test_loopback_needs_no_password(host: str) -> None:
    assert page(iter(["here"]), address="[::1]")(HTTP_HOST=host)[0] == "200 OK"


def test_without_a_password_nobody_elsewhere_has_the_page() -> None:
    status, _, body = page(iter(["here"]), address="0.0.0.0")()
    assert status == "403 Forbidden"
    assert b"MIKROM_PAGE_AUTH" in body


def test_a_page_that_cannot_be_made_says_why() -> None:
    def made() -> Iterator[str]:
        yield from ()
        raise MikromError("the broker is\x1b away")

    get = page(made())
    status, headers, body = get()
    assert (status, body) == ("503 Service Unavailable", "the broker is\ufffd away\n".encode())
    assert headers["Refresh"] == "10"
