"""Checks of guests against real sockets: what passes, what fails and why, and what is remembered of it."""

from __future__ import annotations

import http.server
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from msgspec.structs import replace

from mikrom_reconcile.core.model.desired import Check, NetworkInterface, VMSpec
from mikrom_reconcile.core.model.observed import Phase, VMMFacts
from mikrom_reconcile.host.checks import Checks, tried
from mikrom_reconcile.host.ports import VMRecord
from mikrom_reconcile.host.records import Records
from mikrom_reconcile.system.time_limits import first_match
from tests.contract.drivers import record_of

HERE = "127.0.0.1"


class Guest:
    """A web server that answers with `status`."""

    def __init__(self) -> None:
        self.status = 200
        guest = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(guest.status if self.path == "/health" else 404)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = http.server.ThreadingHTTPServer((HERE, 0), Handler)
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def guest() -> Iterator[Guest]:
    found = Guest()
    yield found
    found.close()


def closed_port() -> int:
    with socket.socket() as found:
        found.bind((HERE, 0))
        port: int = found.getsockname()[1]
        return port


def vm(address: str | None = HERE, **checks: Check) -> VMRecord:
    spec = VMSpec(image="hello", network_interfaces={"eth0": NetworkInterface(network="n")}, checks=checks)
    return replace(record_of("a"), spec=spec, addresses={"eth0": address} if address else {})


def nothing(_: int) -> bytes:
    return b""


BEGAN_S = time.monotonic() - 3.0


def up(pid: int = 7, age_s: float | None = None) -> VMMFacts:
    return VMMFacts(status="running", pid=pid, age_s=time.monotonic() - BEGAN_S if age_s is None else age_s)


def soon() -> float:
    return time.monotonic() + 5


def test_tcp_and_http_pass_where_the_guest_answers(guest: Guest) -> None:
    assert tried(Check(type="tcp", port=guest.port), vm(), nothing) == ""
    assert tried(Check(type="http", port=guest.port, path="/health"), vm(), nothing) == ""
    assert tried(Check(type="http", port=guest.port, path="/"), vm(), nothing) == "GET / answers 404"
    guest.status = 503
    assert tried(Check(type="http", port=guest.port, path="/health"), vm(), nothing) == "GET /health answers 503"


def test_a_guest_that_does_not_answer_is_told_with_its_address() -> None:
    port = closed_port()
    assert tried(Check(type="tcp", port=port), vm(), nothing) == f"{HERE}:{port}: Connection refused"
    assert tried(Check(type="tcp", port=port), vm(address=None), nothing) == "the VM has no address"


def test_a_guest_that_says_nothing_takes_no_longer_than_the_time_out() -> None:
    with socket.socket() as silent:
        silent.bind((HERE, 0))
        silent.listen(1)
        check = Check(type="http", port=silent.getsockname()[1], timeout="200ms")
        began_s = time.monotonic()
        assert "timed out" in tried(check, vm(), nothing)
        assert time.monotonic() - began_s < 2


def test_a_guest_that_answers_a_byte_at_a_time_takes_no_longer_than_the_time_out() -> None:
    with socket.socket() as listening:
        listening.bind((HERE, 0))
        listening.listen(1)

        def drip() -> None:
            with listening.accept()[0] as guest, suppress(OSError):
                for byte in b"HTTP/1.1 200 OK\r\n" + b"X-Slow: " + b"z" * 100:
                    guest.sendall(bytes([byte]))
                    time.sleep(0.1)

        thread = threading.Thread(target=drip)
        thread.start()
        check = Check(type="http", port=listening.getsockname()[1], timeout="300ms")
        began_s = time.monotonic()
        assert "timed out" in tried(check, vm(), nothing)
        assert time.monotonic() - began_s < 10  # the whole answer takes twelve
        thread.join()


def test_an_expression_that_never_ends_on_what_a_guest_prints_fails_the_check_in_time() -> None:
    check = Check(type="console", expect="^(a+)+$", timeout="200ms")
    why = tried(check, vm(), lambda _: b"a" * 60 + b"!")
    assert why == "'^(a+)+$' was not searched for within 0.2 s: write it with fewer repetitions"


@pytest.mark.parametrize("pattern", ["up [0-9]+", "up 7", "[é]+", "(?i)UP .*", "x{3}", "nothing+", "nothing"])
def test_an_expression_finds_the_same_wherever_it_is_searched(pattern: str) -> None:
    text = "so\nit is up 7\né xxx".encode() + b"\xff"
    found = re.search(pattern, text.decode(errors="replace"))
    assert first_match(pattern, text, limit_s=10) == (found and found.group(0))


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"up\n", ""),
        (b"", "the console does not yet say 'up'"),
        (b"up\nKernel panic - not syncing", "the console says 'Kernel panic'"),
    ],
)
def test_a_console_shows_what_is_expected_and_not_what_is_denied(said: bytes, why: str) -> None:
    check = Check(type="console", expect="up", deny="Kernel panic|Oops")
    assert tried(check, vm(), lambda _: said) == why


def test_a_vm_boots_until_all_have_passed_often_enough_and_is_unhealthy_when_one_fails_later(
    guest: Guest, tmp_path: Path
) -> None:
    record = vm(web=Check(type="http", port=guest.port, path="/health", healthy_after=2, interval="0s"))

    def health(pid: int = 7) -> tuple[Phase, str]:
        return Checks(tmp_path).health(record, up(pid), nothing, give_up_at=soon())

    assert health() == ("booting", "check web: 1 of 2 passes")
    assert health() == ("running", "")
    guest.status = 500
    assert health() == ("unhealthy", "check web: GET /health answers 500")
    guest.status = 200
    assert health() == ("running", "")
    assert health(pid=8)[0] == "booting"  # another VMM
    records = Records(tmp_path)
    records.write(record)
    records.remove(record)
    assert list(tmp_path.glob("checks/*")) == []


def test_a_check_is_tried_no_more_often_than_its_interval_says_and_anew_when_it_changes(
    guest: Guest, tmp_path: Path
) -> None:
    checks = Checks(tmp_path)
    web = Check(type="http", port=guest.port, path="/health", interval="1h")
    assert checks.health(vm(web=web), up(), nothing, give_up_at=soon())[0] == "running"
    guest.status = 500
    assert checks.health(vm(web=web), up(), nothing, give_up_at=soon())[0] == "running"
    other = replace(web, timeout="3s")
    assert checks.health(vm(web=other), up(), nothing, give_up_at=soon())[0] == "booting"


def test_when_there_is_no_time_the_last_result_counts(guest: Guest, tmp_path: Path) -> None:
    checks = Checks(tmp_path)
    record = vm(web=Check(type="tcp", port=guest.port, interval="0s"))
    late = time.monotonic() - 1
    assert checks.health(record, up(), nothing, give_up_at=late) == ("booting", "check web: not tried yet")
    assert checks.health(record, up(), nothing, give_up_at=soon())[0] == "running"
    guest.close()
    assert checks.health(record, up(), nothing, give_up_at=late)[0] == "running"


def test_a_spoilt_memory_is_none(guest: Guest, tmp_path: Path) -> None:
    checks = Checks(tmp_path)
    (tmp_path / "checks").mkdir()
    (tmp_path / "checks/a.json").write_bytes(b"{")
    record = vm(web=Check(type="tcp", port=guest.port))
    assert checks.health(record, up(), nothing, give_up_at=soon())[0] == "running"
